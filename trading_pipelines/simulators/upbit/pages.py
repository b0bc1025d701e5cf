"""What a page of candles holds: which ones, how they are aggregated, and what is still forming.

Here belongs the exchange's view of a market at one moment, as the rows of Upbit's JSON. Where
the candles come from belongs to `market`; HTTP, limits and faults do not belong here.
"""

from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from trading_pipelines.simulators.upbit.market import Array, Candles, Market

UNITS = (1, 3, 5, 10, 15, 30, 60, 240)
DAY = 1440
MAX_COUNT = 200
MINUTE_MS = 60_000

CandleJson = dict[str, Any]

_KST = ZoneInfo("Asia/Seoul")


class PageQuery(NamedTuple):
    """A candle request: `unit` in minutes, `to_ms` exclusive, in ms since 1970, `size` rows."""

    symbol: str
    unit: int
    to_ms: int
    size: int


def page(market: Market, query: PageQuery, now_ms: int) -> list[CandleJson]:
    """The rows that the exchange shows at `now_ms` (ms since 1970 UTC), newest first."""
    unit, size = query.unit, query.size
    end_of_to = -(-query.to_ms // (unit * MINUTE_MS)) * unit
    before = min(end_of_to, -(-now_ms // MINUTE_MS))
    # A candle has at most `unit` minutes, so these fill `size` candles, and more than `size` if
    # any lacks one: the oldest is then the only one that can be cut off, and is not shown.
    minutes = market.newest(query.symbol, before, size * unit)
    return rows(query.symbol, unit, as_of(minutes, now_ms), now_ms)[:size]


def last_tick(minute: Array | int) -> Array:
    """When the last trade of a minute is taken to have happened, in ms since 1970 UTC."""
    return np.asarray(minute * MINUTE_MS + 59_999 - minute * 7_919 % 8_000)


def as_of(candles: Candles, now_ms: int) -> Candles:
    """These candles as they stood at `now_ms`: one whose minute has not passed is still forming.

    It trades at its open, at 20 s and 40 s at its extremes, and at its last tick at its close,
    so that it only ever shows prices that its final self has been at; volume grows evenly.
    """
    if not candles.minute.size or (candles.minute[-1] + 1) * MINUTE_MS <= now_ms:
        return candles
    minute, open_, high, low, close, volume = (column[-1] for column in candles)
    elapsed = now_ms - minute * MINUTE_MS
    extremes = (low, high) if close >= open_ else (high, low)
    at = (0, 20_000, 40_000, last_tick(minute) - minute * MINUTE_MS)
    traded = [p for t, p in zip(at, (open_, *extremes, close), strict=True) if t <= elapsed]
    forming = (max(traded), min(traded), traded[-1], round(volume * elapsed / MINUTE_MS, 8))
    changed = (np.append(old[:-1], new) for old, new in zip(candles[2:], forming, strict=True))
    return Candles(candles.minute, candles.open, *changed)


def rows(symbol: str, unit: int, minutes: Candles, now_ms: int) -> list[CandleJson]:
    """Return candles of `unit` minutes as Upbit's rows, newest first, of these at `now_ms`."""
    if not minutes.minute.size:
        return []
    candle = minutes.minute // unit
    first = np.flatnonzero(np.diff(candle, prepend=-1))
    last = np.append(first[1:], len(candle)) - 1
    mean = (minutes.open + minutes.high + minutes.low + minutes.close) / 4
    columns = (
        np.datetime_as_string((candle[first] * unit).astype("datetime64[m]"), unit="s"),
        candle[first] * unit * 60,
        minutes.open[first],
        np.maximum.reduceat(minutes.high, first),
        np.minimum.reduceat(minutes.low, first),
        minutes.close[last],
        np.minimum(last_tick(minutes.minute[last]), now_ms),
        np.add.reduceat(mean * minutes.volume, first).round(5),
        np.add.reduceat(minutes.volume, first).round(8),
    )
    return [
        {
            "market": symbol,
            "candle_date_time_utc": utc,
            "candle_date_time_kst": datetime.fromtimestamp(seconds, _KST).isoformat()[:19],
            "opening_price": open_,
            "high_price": high,
            "low_price": low,
            "trade_price": close,
            "timestamp": tick,
            "candle_acc_trade_price": turnover,
            "candle_acc_trade_volume": volume,
            **({} if unit == DAY else {"unit": unit}),
        }
        for utc, seconds, open_, high, low, close, tick, turnover, volume in zip(
            *(column[::-1].tolist() for column in columns), strict=True
        )
    ]
