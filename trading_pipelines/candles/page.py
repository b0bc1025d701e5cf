"""A page of candles: what a candle is, which answers are believed, and how an answer can fail.

A page is whole and valid, or there is none; a few rows that can't be candles do not make it false.
Asking for one belongs in `exchange`, Upbit's HTTP in `upbit`. Another exchange needs another
`validate`: the names of a row's fields are Upbit's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from trading_pipelines.candles.windows import MINUTE, Interval, floor_minute
from trading_pipelines.errors import OperatorError

PAGE_SIZE = 200
# More than one row in twenty, and it is the page that is wrong and not its rows.
MOST_ODD_ROWS = 10
# numeric(20, 8) holds twelve digits before the point, and rounds to eight behind it.
LARGEST = Decimal(10) ** 12
DIGITS = Decimal("1e-8")
EARLIEST = datetime.min.replace(tzinfo=UTC)
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
class OddRow:
    """A row of the exchange's that can't be a candle."""

    start: datetime
    """Its minute (UTC); of a row that does not say, the one before the next newer row's."""
    row: str
    """As it came, as JSON; a list of two rows where they speak of one minute and differ."""
    reason: str


@dataclass
class RequestStats:
    """How many requests something has taken so far, and how many of them were retries."""

    requests: int = 0
    retries: int = 0


@dataclass(frozen=True)
class FileOfDay:
    """What became of a day's history file; see the comments on `history_files`' columns."""

    day: date
    name: str | None = None
    sha256: str | None = None
    not_used: str | None = None
    comparison: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Page:
    """The candles of a window that had closed when it was asked for, oldest first."""

    candles: list[Candle]
    closed_until: datetime
    """The start of the first minute that might still have changed by then (UTC)."""
    source: str = field(default="upbit")
    odd_rows: Sequence[OddRow] = ()
    """Closed minutes whose row can't be a candle, however often it was asked for."""
    row_before: datetime | None = None
    """The newest minute before the window that has a row, where the answer reaches back to it.

    Of a history file, which is whole, the minute before it.
    """
    unanswered_until: datetime = EARLIEST
    """The answer was full before it had reached back to the start of the window: only to here."""
    is_first: bool = False
    """Without any row: the exchange has nothing before the end of the window."""
    spent: RequestStats = field(default_factory=RequestStats, compare=False)
    files: Sequence[FileOfDay] = ()
    """Of the days that begin in it, where history files are read."""

    def after(self, older: "Page") -> "Page":
        """Return this page and the one of the minutes before it as one."""
        return replace(
            self,
            candles=[*older.candles, *self.candles],
            odd_rows=[*older.odd_rows, *self.odd_rows],
            row_before=older.row_before,
            unanswered_until=older.unanswered_until,
        )


def validate(answer: object, symbol: str, window: Interval) -> list[Candle]:
    """Return the candles of the answer that start inside `window`, oldest first.

    The answer may reach back beyond the window over quiet minutes; those rows are not judged. A row
    that comes twice is one. Raises InvalidAnswerError; OddRowsError where no more than a few rows
    are at fault.
    """
    candles, odd = _judge(_rows(answer, symbol, window), window)
    sound = [candles[minute] for minute in sorted(candles)]
    if odd:
        more = f", and {len(odd) - 1} more such rows" if len(odd) > 1 else ""
        if len(odd) > MOST_ODD_ROWS:
            raise InvalidAnswerError(odd[0].reason + more)
        raise OddRowsError(odd[0].reason + more, sound, odd)
    return sound


def _rows(answer: object, symbol: str, window: Interval) -> list[object]:
    """Return the rows of a page of this market and window; raise InvalidAnswerError."""
    if not isinstance(answer, list):
        raise InvalidAnswerError(f"the answer is no list of candles: {str(answer)[:120]!r}")
    if len(answer) > PAGE_SIZE:
        raise InvalidAnswerError(f"{len(answer)} rows where at most {PAGE_SIZE} were asked for")
    markets = [row.get("market") for row in answer if isinstance(row, dict)]
    for market in filter(None, markets):
        if market != symbol:
            raise InvalidAnswerError(f"a row of market {str(market)[:20]!r}")
    newest = _start(answer[0]) if answer else None
    if newest and newest >= window.end:
        raise InvalidAnswerError(
            f"a row of {newest:%Y-%m-%dT%H:%M:%S}, at or after the end that was asked for"
        )
    return answer


def _judge(
    answer: Sequence[object], window: Interval
) -> tuple[dict[datetime, Candle], list[OddRow]]:
    """Return the candles inside the window by their minutes, and the odd rows."""
    starts = [_start(row) for row in answer]
    minutes = [
        floor_minute(start) if start and window.start <= start < window.end else None
        for start in starts
    ]
    last_inside = max((n for n, minute in enumerate(minutes) if minute), default=-1)
    rows: dict[datetime, object] = {}
    candles: dict[datetime, Candle] = {}
    odd: list[OddRow] = []
    # `place` is below `at` where rows without a legible minute have come since.
    at = place = window.end
    for n, (row, minute) in enumerate(zip(answer, minutes, strict=True)):
        if n > last_inside and (starts[n] or place == window.start):
            break
        if minute and row == rows.get(minute):
            continue
        try:
            _check_place(starts[n], minute, rows, at)
            candle = candle_of(row)
            candles[candle.start] = candle
        except _OddRowError as error:
            place = minute or max(place - MINUTE, window.start)
            whole = [rows[minute], row] if minute in rows else row
            odd.append(OddRow(place, json.dumps(whole, default=str), str(error)))
        if minute:
            rows[minute] = row
            at = place = min(at, minute)
    # Of two rows that differ neither is more credible.
    doubled = {row.start for row in odd} & rows.keys()
    return {minute: candles[minute] for minute in candles.keys() - doubled}, odd


def _check_place(
    start: datetime | None,
    minute: datetime | None,
    rows: Mapping[datetime, object],
    at: datetime,
) -> None:
    if minute in rows:
        raise _OddRowError(f"rows doubled at {minute:%Y-%m-%dT%H:%M:%S} that differ")
    if start and (minute is None or minute >= at):
        raise _OddRowError(f"a row out of order: {start:%Y-%m-%dT%H:%M:%S}")


def reach(answer: object, window: Interval) -> tuple[datetime | None, datetime, bool]:
    """Return the `row_before`, `unanswered_until` and `is_first` of an answer's page."""
    rows = answer if isinstance(answer, list) else []
    starts = [start for start in map(_start, rows) if start]
    before = max((start for start in starts if start < window.start), default=None)
    # A row that comes twice takes the place of one at the other end.
    is_full = len(rows) == PAGE_SIZE and before is None
    return before, min(starts, default=window.start) if is_full else EARLIEST, not rows


def first_start(answer: object, symbol: str, until: datetime) -> datetime:
    """Return where the oldest candle of the answer starts, of any length; `until` without one.

    Raises InvalidAnswerError.
    """
    starts = [_start(row) for row in _rows(answer, symbol, Interval(EARLIEST, until))]
    legible = [start for start in starts if start]
    if len(legible) < len(starts):
        raise InvalidAnswerError("a row with a missing or broken field: candle_date_time_utc")
    return min(legible, default=until)


def _start(row: object) -> datetime | None:
    try:
        text = row["candle_date_time_utc"]  # type: ignore[index]
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except (KeyError, TypeError, ValueError):
        return None


def candle_of(row: object) -> Candle:
    """Return the candle of a row of Upbit's; raises ValueError, which says what is wrong."""
    if not isinstance(row, dict):
        raise _OddRowError(f"a row that is no object: {str(row)[:120]!r}")
    try:
        start = datetime.strptime(row["candle_date_time_utc"], "%Y-%m-%dT%H:%M:%S")  # noqa: DTZ007
        numbers = [_number(row[name]) for name in (*PRICES, "candle_acc_trade_volume")]
    except (KeyError, TypeError, ValueError) as error:
        raise _OddRowError(f"a row with a missing or broken field: {error!r}") from error
    if not row.get("market"):
        raise _OddRowError(f"a row without a market at {start}")
    return sound_candle(start, *numbers)


def sound_candle(
    start: datetime, open_: Decimal, high: Decimal, low: Decimal, close: Decimal, volume: Decimal
) -> Candle:
    """Return the candle of a minute that starts at `start` (UTC, naive), its numbers `fitted`.

    Raises ValueError, which says what is wrong with it.
    """
    if start.second:
        raise _OddRowError(f"a row that does not start on the minute: {start}")
    if not (0 < low <= min(open_, close) and max(open_, close) <= high < LARGEST):
        shown = ", ".join(map(str, (open_, high, low, close)))
        raise _OddRowError(f"prices that contradict each other, or don't fit, at {start}: {shown}")
    if not 0 <= volume < LARGEST:
        raise _OddRowError(f"a volume out of range at {start}: {volume}")
    return Candle(start.replace(tzinfo=UTC), open_, high, low, close, volume)


def _number(value: object) -> Decimal:
    # JSON's NaN and Infinity come as floats, every other fraction as a Decimal: see `upbit`.
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"{value!r} is not a number")
    return fitted(Decimal(value))


def fitted(number: Decimal) -> Decimal:
    """Return the number as numeric(20, 8) holds it; one that it can't hold, as it is."""
    fits = -LARGEST < number < LARGEST
    return number.quantize(DIGITS, ROUND_HALF_UP) if fits else number


class ExchangeError(OperatorError):
    """The exchange did not give a valid page; the message says for what, why and after what."""


class UnknownMarketError(ExchangeError):
    """The exchange does not know the symbol, or no longer; asking again soon is of no use."""


class RetryableError(ExchangeError):
    """No answer, or a bad one; the next request may get a good one."""


class InvalidAnswerError(RetryableError):
    """An answer that is not a valid page of the market and window that were asked for."""


class OddRowsError(InvalidAnswerError):
    """A page in which a few rows can't be candles; `candles` are the others, both oldest first."""

    def __init__(self, reason: str, candles: list[Candle], rows: list[OddRow]) -> None:
        super().__init__(reason)
        self.candles = candles
        self.rows = rows


class _OddRowError(ValueError):
    """Says what is wrong with a row."""


class TooManyRequestsError(RetryableError):
    """HTTP 429: the limit of requests a second was passed."""


class BlockedAnswerError(Exception):
    """HTTP 418: the exchange refuses every request until `retry_after`, where it says so."""

    def __init__(self, retry_after: timedelta | None) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after
