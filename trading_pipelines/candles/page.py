"""A page of candles: what a candle is, which answers are believed, and how an answer can fail.

A page is whole and valid, or there is none. Asking for one belongs in `exchange`, Upbit's HTTP in
`upbit`. Another exchange needs another `validate`: the names of a row's fields are Upbit's.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

from trading_pipelines.candles.windows import Interval
from trading_pipelines.errors import OperatorError

PAGE_SIZE = 200
# numeric(20, 8) holds twelve digits before the point.
LARGEST = Decimal(10) ** 12
PRICES = ("opening_price", "high_price", "low_price", "trade_price")


class Candle(NamedTuple):
    """One closed minute; prices in KRW, volume in the base asset, to the digit."""

    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal


@dataclass(frozen=True)
class Page:
    """The candles of a window that had closed when it was asked for, oldest first."""

    candles: list[Candle]
    closed_until: datetime
    """The start of the first minute that might still have changed by then (UTC)."""
    source: str = field(default="upbit")


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
    # JSON's NaN and Infinity come as floats, every other fraction as a Decimal: see `upbit`.
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"{value!r} is not a number")
    return Decimal(value)


class ExchangeError(OperatorError):
    """The exchange did not give a valid page; the message says for what, why and after what."""


class UnknownMarketError(ExchangeError):
    """The exchange does not know the symbol, or no longer; asking again soon is of no use."""


class RetryableError(ExchangeError):
    """No answer, or a bad one; the next request may get a good one."""


class InvalidAnswerError(RetryableError):
    """An answer that is not a valid page of the market and window that were asked for."""


class TooManyRequestsError(RetryableError):
    """HTTP 429: the limit of requests a second was passed."""


class BlockedAnswerError(Exception):
    """HTTP 418: the exchange refuses every request until `retry_after`, where it says so."""

    def __init__(self, retry_after: timedelta | None) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after
