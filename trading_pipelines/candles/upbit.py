"""Upbit's candle API on the wire, through ccxt's client: one request, one answer or one error.

ccxt signs, sends and paces nothing here but knows the endpoint; what an answer is worth is told by
its HTTP status, which ccxt's errors do not say (`docs/decisions/0004`).
"""

import contextlib
import json
from datetime import datetime, timedelta
from decimal import Decimal

import ccxt
import requests

from trading_pipelines.candles.page import (
    PAGE_SIZE,
    BlockedAnswerError,
    ExchangeError,
    RetryableError,
    TooManyRequestsError,
    UnknownMarketError,
)


class Upbit:
    """ccxt's client at `base_url`; the last answer is kept as it came."""

    def __init__(self, base_url: str, timeout_seconds: float) -> None:
        session = requests.Session()
        session.hooks["response"].append(self._keep)
        self._answer: requests.Response | None = None
        self._client = ccxt.upbit(
            {
                "urls": {"api": {"public": base_url, "private": base_url}},
                # The limiter is per instance, so of no use to several processes: see rate_limit.
                "enableRateLimit": False,
                "timeout": int(timeout_seconds * 1000),
                "session": session,
            }
        )

    @property
    def answer_headers(self) -> dict[str, str]:
        """The headers of the last answer."""
        return {} if self._answer is None else dict(self._answer.headers)

    def minutes(self, symbol: str, to: datetime) -> object:
        """Ask for the newest 200 one-minute candles before `to`; numbers keep their digits.

        Raises ExchangeError or one of its kinds, BlockedAnswerError.
        """
        self._answer = None
        error: Exception | None = None
        try:
            self._client.publicGetCandlesTimeframeUnit(
                {
                    "timeframe": "minutes",
                    "unit": 1,
                    "market": symbol,
                    "to": f"{to:%Y-%m-%dT%H:%M:%S}.000Z",
                    "count": PAGE_SIZE,
                }
            )
        # A KeyError is what ccxt makes of a 200 with a JSON object; the status says more.
        except (ccxt.BaseError, KeyError, ValueError) as raised:
            error = raised
        if self._answer is None:
            raise RetryableError(f"no answer: {type(error).__name__}: {error}") from error
        return _content(self._answer)

    def _keep(self, answer: requests.Response, **_kwargs: object) -> None:
        # A body that breaks off is no answer: reading it raises here, as ccxt expects it to.
        answer.content  # noqa: B018
        self._answer = answer


def _content(answer: requests.Response) -> object:
    """Return the JSON of a good answer; raise what the status says of any other."""
    content: object = None
    with contextlib.suppress(ValueError):
        # ccxt's own parsing goes through floats.
        content = json.loads(answer.text, parse_float=Decimal)
    code = answer.status_code
    if code == 200 and content is not None:
        return content
    message = f"HTTP {code}: {' '.join(answer.text.split())[:120]}"
    if code == 429:
        raise TooManyRequestsError(message)
    if code == 418:
        after = answer.headers.get("Retry-After", "")
        raise BlockedAnswerError(timedelta(seconds=int(after)) if after.isdigit() else None)
    if code == 404 and isinstance(content, dict):
        raise UnknownMarketError(message)
    # A 200 or 404 that is no JSON comes from something between us and the exchange.
    if code in {200, 404, 408, 425} or code >= 500:
        raise RetryableError(message)
    raise ExchangeError(message)
