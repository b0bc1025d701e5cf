"""Upbit's candle endpoints through ccxt's client: one request gives one answer or raises one error.

ccxt knows the endpoint and sends the request. Its errors do not tell one HTTP status from another,
and its numbers are floats: the answer is taken from its session as it came (`docs/decisions/0004`).
Asking again belongs in `exchange`, judging the rows in `page`.
"""

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
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
from trading_pipelines.http_calls import MEGABYTE, BoundedSession
from trading_pipelines.settings.environment import spare_from_proxies

# Seconds, up to 27 hours. Anything else, a date included, counts as no Retry-After.
RETRY_AFTER = re.compile("[0-9]{1,5}")
# 200 candles are 90 KB.
MOST_BYTES = MEGABYTE
NO_SUCH_MARKET = "Code not found"
CAUSES = (
    (socket.gaierror, "name not resolved"),
    (ssl.SSLCertVerificationError, "certificate refused"),
    (ConnectionRefusedError, "connection refused"),
    (TimeoutError, "too late"),
)


class Upbit:
    """A client of the API at `base_url`; used by one thread at a time."""

    def __init__(self, base_url: str, timeout_seconds: float) -> None:
        self._base_url = base_url
        self._session = BoundedSession(timeout_seconds, MOST_BYTES)
        # No password of a ~/.netrc.
        self._session.auth = lambda request: request
        self._client = ccxt.upbit(
            {
                "session": self._session,
                "urls": {"api": {"public": base_url, "private": base_url}},
                # The limiter is per instance, so of no use to several processes: see rate_limit.
                "enableRateLimit": False,
                # Proxies and certificates, of which ccxt's own session would not know.
                "requests_trust_env": True,
            }
        )
        spare_from_proxies()

    def on_sent(self, call: Callable[[float], object]) -> None:
        """Have it called when a request leaves, with the moment in monotonic seconds."""
        self._session.on_sent = call

    def connect(self) -> None:
        """Open the connection of the next request, which then leaves when it is sent."""
        self._session.connect(self._base_url)

    def minutes(self, symbol: str, to: datetime) -> object:
        """Return what Upbit answers for the newest 200 one-minute candles before `to`.

        That is parsed JSON, fractions as Decimal with every digit. Raises ExchangeError or one of
        its kinds, BlockedAnswerError.
        """
        return self._get(
            self._client.publicGetCandlesTimeframeUnit, symbol, to, timeframe="minutes", unit=1
        )

    def days(self, symbol: str, to: datetime) -> object:
        """Return what it answers for the newest 200 candles of UTC days before `to`; likewise."""
        return self._get(self._client.publicGetCandlesTimeframe, symbol, to, timeframe="days")

    def _get(
        self, ask: Callable[[dict[str, object]], object], symbol: str, to: datetime, **path: object
    ) -> object:
        self._session.answer = None
        error: Exception | None = None
        try:
            ask(
                {
                    **path,
                    "market": symbol,
                    "to": f"{to.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000Z",
                    "count": PAGE_SIZE,
                }
            )
        # ValueError and RecursionError: what a body makes of ccxt's parser. The status says more.
        except (ccxt.BaseError, ValueError, RecursionError) as raised:
            error = raised
        if self._session.answer is None:
            raise RetryableError(f"no answer: {type(error).__name__}: {_cause(error)}") from error
        return _content(self._session.answer)

    @property
    def answer_headers(self) -> Mapping[str, str]:
        """The headers of the last answer, whatever their case."""
        return {} if self._session.answer is None else self._session.answer.headers


def _content(answer: requests.Response) -> object:
    """Return the JSON of a good answer; raise what the status says of any other."""
    content: object = None
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(answer.content, parse_float=Decimal)
    code = answer.status_code
    if code == 200 and content is not None:
        return content
    # Postgres, which keeps the message, takes no NUL.
    message = f"HTTP {code}: {' '.join(answer.text.replace(chr(0), ' ').split())[:120]}"
    if code == 429:
        raise TooManyRequestsError(message)
    if code == 418:
        after = RETRY_AFTER.fullmatch(answer.headers.get("Retry-After", ""))
        raise BlockedAnswerError(timedelta(seconds=int(after[0])) if after else None)
    if code == 404 and _is_of_a_market(content):
        raise UnknownMarketError(message)
    # A 200 that is no JSON, and any other 404, comes from between us and the exchange.
    if code in {200, 404, 408, 425} or code >= 500:
        raise RetryableError(message)
    raise ExchangeError(message)


def _is_of_a_market(content: object) -> bool:
    """Return whether a 404 is Upbit's own: a gateway's knows no route, and not no market."""
    error = content.get("error") if isinstance(content, dict) else None
    return (
        isinstance(error, dict)
        and error.get("name") == 404
        and error.get("message", NO_SUCH_MARKET) == NO_SUCH_MARKET
    )


def _cause(error: BaseException | None) -> str:
    """Return in words what a request failed of: ccxt says what was asked, and wraps the cause."""
    root = error
    while root and (inner := root.__cause__ or root.__context__):
        root = inner
    words = (word for kind, word in CAUSES if isinstance(root, kind))
    return f"{next(words, 'failed')} ({root}), {error}"
