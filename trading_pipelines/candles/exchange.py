"""Upbit's one-minute candles, through ccxt: asked politely, believed only when valid.

A page leaves this module whole and validated or not at all. ccxt's own `fetch_ohlcv` is not used:
it answers a truncated page or a maintenance page with rows of None and drops what it can't date, so
a broken answer would look like quiet minutes (`docs/decisions/0004`). Where pages are stored, and
which are asked for, belongs in `store` and `download`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any, NamedTuple

import ccxt
import tenacity

from trading_pipelines.candles.rate_limit import RequestSlots, Slot
from trading_pipelines.candles.windows import Interval, floor_minute
from trading_pipelines.settings import ExchangeSettings

PAGE_SIZE = 200
# A trade of the last second of a minute may reach the candle a little after the minute has closed.
CLOSE_MARGIN = timedelta(seconds=5)
# numeric(20, 8) holds twelve digits before the point.
LARGEST = Decimal(10) ** 12
PRICES = ("opening_price", "high_price", "low_price", "trade_price")


class ExchangeFailure(Exception):  # noqa: N818
    """The exchange did not give a valid page; the message says for what, why and after what."""


class UnknownMarketError(ExchangeFailure):
    """The exchange does not know the symbol, or no longer; asking again soon is of no use."""


class _RetryableError(ExchangeFailure):
    """An answer, or none, that the next try may mend."""


class InvalidAnswerError(_RetryableError):
    """An answer that is not a valid page of the market and window that were asked for."""


class _TooManyRequestsError(_RetryableError):
    pass


class Candle(NamedTuple):
    """One closed minute; prices in KRW, volume in the base asset, to the digit."""

    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal


@dataclass
class Effort:
    """What pages have cost so far."""

    requests: int = 0
    waits: int = 0

    def since(self, earlier: "Effort") -> "Effort":
        """Return what was spent after `earlier`."""
        return Effort(self.requests - earlier.requests, self.waits - earlier.waits)


@dataclass(frozen=True)
class Page:
    """The candles of a window that had closed when it was asked for, oldest first."""

    candles: list[Candle]
    closed_until: datetime
    """The start of the first minute that might still have changed by then (UTC)."""
    source: str = field(default="upbit")


class Exchange:
    """Upbit's candle API behind `slots`; one instance a run, used by one thread at a time."""

    def __init__(
        self,
        base_url: str,
        slots: RequestSlots,
        settings: ExchangeSettings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = _Upbit(base_url, settings.timeout_seconds)
        self._slots = slots
        self._settings = settings
        self._now = now
        self._ahead = timedelta(0)
        self.effort = Effort()

    def closed_until(self) -> datetime:
        """Return the start of the first minute that may still change, by the exchange's clock."""
        return self._closed_until(self._now())

    def _closed_until(self, moment: datetime) -> datetime:
        return floor_minute(moment + self._ahead - CLOSE_MARGIN)

    def page(self, symbol: str, window: Interval) -> Page:
        """Return the closed candles of `window`, at most 200 minutes.

        Raises UnknownMarketError at once, InvalidAnswerError or ExchangeFailure (the exchange is
        away) by the last try when every one has failed, Blocked.
        """
        page = self._ask(symbol, window)
        if not page.candles and page.closed_until > window.start:
            # A stale or empty answer looks like a quiet window: believe it when it is said twice.
            page = self._ask(symbol, window)
        return page

    def _ask(self, symbol: str, window: Interval) -> Page:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_RetryableError),
            stop=tenacity.stop_after_attempt(self._settings.attempts),
            wait=tenacity.wait_random_exponential(
                multiplier=self._settings.backoff_seconds, max=self._settings.max_backoff_seconds
            ),
            before_sleep=self._count_wait,
            reraise=True,
        )
        try:
            return retrying(self._try, symbol, window)
        except ExchangeFailure as error:
            kinds = (UnknownMarketError, InvalidAnswerError, ExchangeFailure)
            raise next(kind for kind in kinds if isinstance(error, kind))(
                f"{symbol} {window.start:%Y-%m-%d %H:%M} to {window.end:%H:%M} UTC: {error} "
                f"(asked {retrying.statistics['attempt_number']} times)"
            ) from error

    def _count_wait(self, _: tenacity.RetryCallState) -> None:
        self.effort.waits += 1

    def _try(self, symbol: str, window: Interval) -> Page:
        slot = self._slots.reserve()
        self.effort.requests += 1
        asked_at = self._now()
        try:
            answer = self._api.minutes(symbol, window.end)
        except _TooManyRequestsError:
            # The limit is counted by the second; a whole one with no request starts a new count.
            self._slots.pause(1.0)
            raise
        except _BlockedAnswer as blocked:
            raise self._slots.block(blocked.retry_after) from None
        self._note_headers(slot)
        candles = validate(answer, symbol, window)
        # As of the question: an answer that was long on its way shows minutes that were forming.
        closed_until = self._closed_until(asked_at)
        return Page(
            [candle for candle in candles if candle.start < closed_until],
            closed_until,
            self._api.answer_headers.get("Replay-Source", "upbit"),
        )

    def _note_headers(self, slot: Slot) -> None:
        headers = self._api.answer_headers
        if "Date" in headers:
            self._ahead = parsedate_to_datetime(headers["Date"]) - self._now()
        fields = dict(
            part.strip().split("=", 1)
            for part in headers.get("Remaining-Req", "").split(";")
            if "=" in part
        )
        if fields.get("sec", "").isdigit():
            self._slots.obey(int(fields["sec"]), slot)


def validate(answer: object, symbol: str, window: Interval) -> list[Candle]:
    """Return the candles of the answer that start inside `window`, oldest first.

    The answer may reach back beyond the window over quiet minutes; those rows must be valid too,
    because a page with one broken row is not to be believed. Raises InvalidAnswerError.
    """
    if not isinstance(answer, list):
        raise InvalidAnswerError(f"the answer is no list of candles: {str(answer)[:120]!r}")
    if len(answer) > PAGE_SIZE:
        raise InvalidAnswerError(f"{len(answer)} rows where at most {PAGE_SIZE} were asked for")
    candles = [_candle(row, symbol) for row in answer]
    for newer, older in pairwise(candles):
        if newer.start <= older.start:
            raise InvalidAnswerError(
                f"rows out of order or doubled at {older.start:%Y-%m-%dT%H:%M:%S}"
            )
    if candles and candles[0].start >= window.end:
        raise InvalidAnswerError(
            f"a row of {candles[0].start:%Y-%m-%dT%H:%M:%S}, at or after the end that was asked for"
        )
    return [candle for candle in reversed(candles) if candle.start >= window.start]


def _candle(row: object, symbol: str) -> Candle:
    if not isinstance(row, dict):
        raise InvalidAnswerError(f"a row that is no object: {str(row)[:120]!r}")
    if row.get("market") != symbol:
        raise InvalidAnswerError(f"a row of market {row.get('market')!r}")
    try:
        start = datetime.strptime(row["candle_date_time_utc"], "%Y-%m-%dT%H:%M:%S")  # noqa: DTZ007
        prices = [_number(row[name]) for name in PRICES]
        volume = _number(row["candle_acc_trade_volume"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidAnswerError(f"a row with a missing or broken field: {error!r}") from error
    open_, high, low, close = prices
    if start.second:
        raise InvalidAnswerError(f"a row that does not start on the minute: {start}")
    if not (0 < low <= min(open_, close) and max(open_, close) <= high < LARGEST):
        raise InvalidAnswerError(f"prices that contradict each other at {start}: {prices}")
    if not 0 <= volume < LARGEST:
        raise InvalidAnswerError(f"a volume out of range at {start}: {volume}")
    return Candle(start.replace(tzinfo=UTC), open_, high, low, close, volume)


def _number(value: object) -> Decimal:
    # JSON's NaN and Infinity come as floats, every other fraction as a Decimal: see parse_json.
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"{value!r} is not a number")
    return Decimal(value)


class _BlockedAnswer(Exception):  # noqa: N818
    def __init__(self, retry_after: timedelta | None) -> None:
        self.retry_after = retry_after


class _Upbit(ccxt.upbit):  # type: ignore[misc]
    """ccxt's client with answers told apart by HTTP status.

    ccxt raises the plain ExchangeError for a 429, 418 or 500 that has an `error` key, and
    RateLimitExceeded for the same status without one (measured, `docs/decisions/0004`).
    """

    def __init__(self, base_url: str, timeout_seconds: float) -> None:
        super().__init__(
            {
                "urls": {"api": {"public": base_url, "private": base_url}},
                # The limiter is per instance, so of no use to several processes: see rate_limit.
                "enableRateLimit": False,
                "timeout": int(timeout_seconds * 1000),
            }
        )

    @property
    def answer_headers(self) -> dict[str, str]:
        return self.last_response_headers or {}

    def minutes(self, symbol: str, to: datetime) -> object:
        """Ask for the newest 200 one-minute candles before `to`."""
        try:
            return self.publicGetCandlesTimeframeUnit(
                {
                    "timeframe": "minutes",
                    "unit": 1,
                    "market": symbol,
                    "to": f"{to:%Y-%m-%dT%H:%M:%S}.000Z",
                    "count": PAGE_SIZE,
                }
            )
        except (ccxt.BaseError, KeyError, ValueError) as error:
            raise _RetryableError(f"no answer: {type(error).__name__}: {error}") from error

    def parse_json(self, http_response: str) -> object:
        """Keep the digits: ccxt's own goes through floats. None is ccxt's word for no JSON."""
        try:
            return json.loads(http_response, parse_float=Decimal)
        except ValueError:
            return None

    def handle_errors(self, code: int, *details: Any) -> None:  # noqa: ANN401
        """Raise what the status says; `details` are ccxt's: reason, url, method, headers, body."""
        _, _, _, headers, body, response, *_ = details
        if code == 200 and response is not None:
            return
        said = f"HTTP {code}: {' '.join(body.split())[:120]}"
        if code == 429:
            raise _TooManyRequestsError(said)
        if code == 418:
            after = str(headers.get("Retry-After", ""))
            raise _BlockedAnswer(timedelta(seconds=int(after)) if after.isdigit() else None)
        if code == 404 and isinstance(response, dict):
            raise UnknownMarketError(said)
        # A 200 or 404 that is no JSON comes from something between us and the exchange.
        if code in {200, 404, 408, 425} or code >= 500:
            raise _RetryableError(said)
        raise ExchangeFailure(said)
