"""What a repair would change: stored candles beside those the exchange has. Writes no candle.

The pages are those that a download asks for, so what is compared is what it would store. Storing
belongs in `download`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from statistics import median

import psycopg

from trading_pipelines.candles.download import PageSource, pages
from trading_pipelines.candles.page import Candle
from trading_pipelines.candles.windows import Interval

STORED_CANDLES = """
SELECT timestamp, open_price, high_price, low_price, close_price, volume FROM public.market_data
WHERE symbol = %s AND interval = '1m' AND timestamp >= %s AND timestamp < %s
"""
VALUES = Candle._fields[1:]


@dataclass(frozen=True)
class Change:
    """How far stored values are from the exchange's: shares of the larger of both, 0 to 1."""

    values: int
    median: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """One symbol over an interval; counts of candles.

    `added` is missing here, `changed` differs, `kept` is here and not at the exchange: a repair
    leaves it. `changes` has each value of a candle, None where it did not change anywhere.
    """

    symbol: str
    compared: int
    added: int
    changed: int
    kept: int
    changes: dict[str, Change | None]


def compare(
    connection: psycopg.Connection, exchange: PageSource, symbol: str, interval: Interval
) -> Comparison:
    """Ask the exchange for an interval of a symbol, and return how the stored candles differ.

    Minutes that have not closed are left out. Raises ExchangeError and BlockedError.
    """
    compared = added = changed = kept = 0
    shares: dict[str, list[float]] = {name: [] for name in VALUES}
    for covered, page in pages(exchange, symbol, interval):
        stored = {
            row[0]: Candle(*row)
            for row in connection.execute(STORED_CANDLES, [symbol, covered.start, covered.end])
        }
        compared += len(page.candles)
        for candle in page.candles:
            ours = stored.pop(candle.start, None)
            if ours is None:
                added += 1
                continue
            differing = dict(_differences(ours, candle))
            changed += bool(differing)
            for name, share in differing.items():
                shares[name].append(share)
        kept += len(stored)
    changes = {
        name: Change(len(of_value), median(of_value), max(of_value)) if of_value else None
        for name, of_value in shares.items()
    }
    return Comparison(symbol, compared, added, changed, kept, changes)


def _differences(ours: Candle, theirs: Candle) -> Iterator[tuple[str, float]]:
    for name in VALUES:
        old: Decimal = getattr(ours, name)
        new: Decimal = getattr(theirs, name)
        if old != new:
            # No share says how far from NaN, which numeric can hold, a number is.
            yield name, float(abs(new - old) / max(abs(old), new)) if old.is_finite() else 1.0
