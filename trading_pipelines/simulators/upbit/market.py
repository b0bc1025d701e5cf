"""What there is to replay: one-minute candles of several symbols, recorded or generated.

Here belongs where candles come from. How the exchange shows them (pages, aggregates, the forming
candle, JSON) belongs to `pages`; HTTP belongs to `server`. A minute is counted as whole minutes
since 1970-01-01 UTC, and stands for the candle that starts there.
"""

import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pandas as pd

from trading_pipelines.errors import OperatorError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 1440
_COLUMNS = ("symbol", "timestamp_utc", "open", "high", "low", "close", "volume")

Array = np.ndarray[Any, np.dtype[Any]]


class Candles(NamedTuple):
    """One symbol's one-minute candles, oldest first; six arrays of one length.

    `minute` is int64; the prices are in quote currency and `volume` in base asset (float64).
    """

    minute: Array
    open: Array
    high: Array
    low: Array
    close: Array
    volume: Array

    def rows(self, which: slice | Array) -> "Candles":
        """The candles at these positions."""
        return Candles(*(column[which] for column in self))


class Market(Protocol):
    """Symbols and their one-minute candles, between two aware UTC times."""

    @property
    def label(self) -> str:
        """What it is, for everything that shows its data."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Its markets, such as KRW-BTC."""

    @property
    def first(self) -> datetime:
        """The start of its first minute."""

    @property
    def end(self) -> datetime:
        """The end of its last minute."""

    def candles(self, symbol: str, start: int, end: int) -> Candles:
        """All candles of one of `symbols` whose minute lies in [start, end)."""

    def newest(self, symbol: str, before: int, count: int) -> Candles:
        """Its newest `count` candles of minutes before `before`, however far back they lie."""


class BadRecordingError(OperatorError):
    """A file that cannot be replayed; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Recording:
    """Candles from a file, held in memory."""

    label: str
    symbols: tuple[str, ...]
    first: datetime
    end: datetime
    by_symbol: dict[str, Candles]

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a parquet or CSV file of one-minute candles, in any order.

        Columns: symbol, timestamp_utc (candle start; without an offset it is UTC), open, high,
        low, close, volume. Raises BadRecordingError for a file that cannot be replayed.
        """
        path = Path(path)
        frame = _checked(path, _read(path))
        by_symbol = {
            str(symbol): Candles(*(rows[name].to_numpy() for name in Candles._fields))
            for symbol, rows in frame.groupby("symbol")
        }
        return cls(
            label=f"recording {path.name}",
            symbols=tuple(by_symbol),
            first=EPOCH + timedelta(minutes=int(frame["minute"].min())),
            end=EPOCH + timedelta(minutes=int(frame["minute"].max()) + 1),
            by_symbol=by_symbol,
        )

    def candles(self, symbol: str, start: int, end: int) -> Candles:
        """See `Market.candles`."""
        candles = self.by_symbol[symbol]
        return candles.rows(slice(*np.searchsorted(candles.minute, (start, end))))

    def newest(self, symbol: str, before: int, count: int) -> Candles:
        """See `Market.newest`."""
        candles = self.by_symbol[symbol]
        stop = int(np.searchsorted(candles.minute, before))
        return candles.rows(slice(max(0, stop - count), stop))


def _read(path: Path) -> pd.DataFrame:
    """The file as it is, with every column there; raises BadRecordingError."""
    if path.suffix not in (".parquet", ".csv"):
        raise BadRecordingError(f"{path}: neither .parquet nor .csv; convert it to one of them")
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except ImportError as error:
        raise BadRecordingError(
            f"{path}: a parquet file needs pyarrow, which {sys.prefix} has not; there "
            "`pip install pyarrow` (or `uv pip install pyarrow`), or convert the file to .csv"
        ) from error
    except (OSError, ValueError) as error:  # pyarrow's and pandas' parse errors are ValueErrors
        raise BadRecordingError(
            f"{path}: unreadable; check the path and the file ({error})"
        ) from error
    if missing := [name for name in _COLUMNS if name not in frame.columns]:
        needed = ", ".join(_COLUMNS)
        raise BadRecordingError(f"{path}: no column {', '.join(missing)}; it needs {needed}")
    if frame.empty:
        raise BadRecordingError(f"{path}: no rows; record at least one candle")
    return frame.reset_index(drop=True)


def _checked(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Its rows by symbol and `minute`, in that order; raises BadRecordingError."""
    times, numbers = frame["timestamp_utc"], frame[list(_COLUMNS[2:])]
    try:
        if pd.api.types.is_numeric_dtype(times):
            raise ValueError("timestamp_utc holds numbers")
        times = pd.to_datetime(times, utc=True, format="ISO8601")
        numbers = numbers.astype("float64")
    except (TypeError, ValueError) as error:
        needed = "times like 2025-09-01T00:00:00Z, and numbers for prices and volume"
        raise BadRecordingError(f"{path}: unparsable; write {needed} ({error})") from error
    for problem, wrong in _faulty_rows(frame["symbol"], times, numbers).items():
        if wrong.any():
            where = f"{frame['symbol'][wrong].iloc[0]} at {frame['timestamp_utc'][wrong].iloc[0]}"
            raise BadRecordingError(f"{path}: {problem}, first {where}; correct or drop such rows")
    minute = (times - EPOCH) // pd.Timedelta(minutes=1)
    rows = numbers.assign(symbol=frame["symbol"].astype(str), minute=minute.astype("int64"))
    return rows.sort_values(["symbol", "minute"])


def _faulty_rows(
    symbols: "pd.Series[Any]", times: "pd.Series[Any]", numbers: pd.DataFrame
) -> dict[str, "pd.Series[bool]"]:
    """What can be wrong with a row, and which rows it is wrong with."""
    prices = numbers[["open", "high", "low", "close"]]
    top, bottom = prices.max(axis=1), prices.min(axis=1)
    return {
        "no symbol": symbols.isna(),
        "no time, or not a whole minute": times.isna() | (times != times.dt.floor("min")),
        "a missing or infinite number": ~pd.Series(np.isfinite(numbers.to_numpy()).all(axis=1)),
        "a price that is not above zero": bottom <= 0,
        "a high or a low inside the candle": (prices["high"] < top) | (prices["low"] > bottom),
        "a negative volume": numbers["volume"] < 0,
        "two candles of one minute": pd.concat([symbols, times], axis=1).duplicated(),
    }


class _Character(NamedTuple):
    """How a generated symbol trades."""

    price: float  # around which it wanders
    volatility: float  # standard deviation of a day's log return
    turnover: float  # quote currency a minute
    quiet: float  # share of minutes without a trade; several times that around 18-20 UTC


# Orders of magnitude of Upbit's KRW markets in September 2025.
_CHARACTERS = {
    "KRW-BTC": _Character(150_000_000, 0.016, 1.3e8, 0.00003),
    "KRW-ETH": _Character(6_000_000, 0.024, 2.1e8, 0.00003),
    "KRW-XRP": _Character(4_200, 0.026, 2.4e8, 0.00003),
    "KRW-SOL": _Character(300_000, 0.032, 1.3e8, 0.0002),
    "KRW-DOGE": _Character(350, 0.036, 1.2e8, 0.0025),
}
_UNKNOWN = _Character(10_000, 0.03, 2e7, 0.003)

# Upbit's KRW price steps since 2025-07-31: from this price on, this tick.
_TICK_FROM = np.array([1e-3, 1e-2, 0.1, 1, 10, 100, 5e3, 1e4, 5e4, 1e5, 5e5, 1e6])
_TICK = np.array([1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 5, 10, 50, 100, 500, 1000])

# Trading by UTC hour relative to the day's mean: busy when the United States wake up.
_SEASON = np.repeat([1.0] * 5 + [0.8] * 7 + [1.5] * 3 + [1.2] * 3 + [1.0] * 2 + [0.9] * 4, 60)
_QUIET_SEASON = np.repeat([0.5] * 18 + [5.0] * 3 + [0.5] * 3, 60)

_LISTED = datetime(2017, 10, 1, tzinfo=UTC)
_END = datetime(2100, 1, 1, tzinfo=UTC)
_LISTED_DAY, _END_DAY = (_LISTED - EPOCH).days, (_END - EPOCH).days
_CACHED_DAYS = 512  # 70 kB each


def ticked(price: Array, chance: Array | float = 0.5) -> Array:
    """Put prices on the exchange's price steps.

    `chance` in [0, 1) added before rounding down: 0.5 rounds to the nearest step, and uniform
    noise makes a price between two steps bounce from one to the other, as bid and ask do.
    """
    tick = _TICK[np.searchsorted(_TICK_FROM, price, side="right")]
    steps = np.maximum(np.floor(price / tick + chance), 1)
    return np.asarray(np.round(steps * tick, 8))


class GeneratedMarket:
    """A market made up from a seed, listed since 2017-10-01, for any day until 2100.

    Each UTC day is made by itself from (seed, symbol, day), so that an answer never depends on
    what was asked before. Midnights lie on one path per symbol; a day is a bridge between two.
    """

    def __init__(self, symbols: Iterable[str], seed: int = 7) -> None:
        """Take `symbols`, of which unknown ones trade around 10,000, and a `seed` from 0."""
        self.symbols = tuple(symbols)
        self.first, self.end = _LISTED, _END
        self.label = f"generated market (seed {seed})"
        self._seed = seed
        days = _END_DAY - _LISTED_DAY + 1
        noise = 0.1 * self._random("volatility").standard_normal(days)
        # One state for all symbols: turmoil is market-wide.
        self._state = np.exp(list(accumulate(noise, lambda state, new: 0.95 * state + new)))
        self._midnights = {symbol: self._walk(symbol, days) for symbol in self.symbols}
        self._day = lru_cache(_CACHED_DAYS)(self._generate)

    def candles(self, symbol: str, start: int, end: int) -> Candles:
        """See `Market.candles`."""
        days = range(max(start // _DAY, _LISTED_DAY), min(-(-end // _DAY), _END_DAY))
        candles = _joined([self._day(symbol, day) for day in days])
        return candles.rows(slice(*np.searchsorted(candles.minute, (start, end))))

    def newest(self, symbol: str, before: int, count: int) -> Candles:
        """See `Market.newest`."""
        before = min(before, _END_DAY * _DAY)
        parts: list[Candles] = []
        for day in range((before - 1) // _DAY, _LISTED_DAY - 1, -1):
            candles = self._day(symbol, day)
            candles = candles.rows(slice(np.searchsorted(candles.minute, before)))
            parts.insert(0, candles.rows(slice(max(0, len(candles.minute) - count), None)))
            count -= len(parts[0].minute)
            if count <= 0:
                break
        return _joined(parts)

    def _random(self, *purpose: str | int) -> np.random.Generator:
        words = (zlib.crc32(str(word).encode()) for word in purpose)
        return np.random.default_rng([self._seed, *words])

    def _walk(self, symbol: str, days: int) -> Array:
        """The log price at each midnight since the listing, pulled gently to its level."""
        character = _CHARACTERS.get(symbol, _UNKNOWN)
        step = self._random(symbol).standard_normal(days) * character.volatility * self._state
        path = accumulate(step, lambda price, new: 0.997 * price + new)
        return np.asarray(np.log(character.price) + np.fromiter(path, float))

    def _generate(self, symbol: str, day: int) -> Candles:
        character = _CHARACTERS.get(symbol, _UNKNOWN)
        random = self._random(symbol, day)
        index = day - _LISTED_DAY
        start, target = self._midnights[symbol][index : index + 2]
        hours = np.exp(0.3 * random.standard_normal(24)).repeat(60)
        activity = _SEASON * hours * self._state[index]
        sigma = activity * character.volatility / np.sqrt(_DAY)
        free = np.cumsum(random.standard_normal(_DAY) * sigma)
        spent = np.cumsum(sigma**2)
        path = start + free + (target - start - free[-1]) * spent / spent[-1]
        path[-1] = target  # exactly, so that the next day opens at the very same price

        chance = random.random((3, _DAY))
        chance[0, -1] = 0.5  # the next day's open rounds the same price the same way
        close = ticked(np.exp(path), chance[0])
        open_ = np.append(ticked(np.exp(start)), close[:-1])
        reach = 0.4 * sigma * np.abs(random.standard_normal((2, _DAY)))
        top, bottom = np.maximum(open_, close), np.minimum(open_, close)
        high = np.maximum(top, ticked(top * np.exp(reach[0]), chance[1]))
        low = np.minimum(bottom, ticked(bottom * np.exp(-reach[1]), chance[2]))
        traded = character.turnover * activity**2 * np.exp(random.normal(-1.1, 1.1, _DAY))
        volume = np.maximum(np.round(traded / close, 8), 1e-8)

        quiet = random.random(_DAY) < character.quiet * _QUIET_SEASON
        quiet[1:] |= quiet[:-1] & (random.random(_DAY - 1) < 0.3)
        quiet |= self._outage(day)
        minute = np.arange(day * _DAY, (day + 1) * _DAY)
        return Candles(minute, open_, high, low, close, volume).rows(~quiet)

    def _outage(self, day: int) -> Array:
        """The minutes of a day in which the whole exchange is down, as on 1 day in 45."""
        random = self._random("outage", day)
        hours = random.integers(2, 7)
        start = random.integers(0, 24 - hours + 1)
        hour = np.arange(24)
        down = (hour >= start) & (hour < start + hours) & (random.random() < 1 / 45)
        return np.asarray(down.repeat(60))


def _joined(parts: list[Candles]) -> Candles:
    none = Candles(np.empty(0, np.int64), *(np.empty(0),) * 5)
    return Candles(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True)))
