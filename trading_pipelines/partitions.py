"""The partitions that assets share: symbol × UTC day, the UTC day alone for what is pooled.

Reports are by Korean days and weeks. Keys are Dagster's, `2026-11-24|KRW-BTC` and `2026-11-24`.
What a partition holds belongs to its asset.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import dagster as dg

from trading_pipelines.korean_time import KST
from trading_pipelines.settings.strategy import StrategySettings

SYMBOL = "symbol"
DAY = "date"
BACKFILL = "dagster/backfill"
PARTITION = "dagster/partition"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def days(settings: StrategySettings) -> dg.DailyPartitionsDefinition:
    """Return each UTC day from `data.start_date` up to the one that is open now."""
    return dg.DailyPartitionsDefinition(
        start_date=settings.data.start_date.isoformat(), end_offset=1
    )


def kst_days(settings: StrategySettings) -> dg.DailyPartitionsDefinition:
    """Return each Korean day from `data.start_date` up to the last one that has closed."""
    return dg.DailyPartitionsDefinition(
        start_date=settings.data.start_date.isoformat(), timezone=KST.key
    )


def kst_weeks(settings: StrategySettings) -> dg.WeeklyPartitionsDefinition:
    """Return each Korean week from `data.start_date` on that has closed, by its Monday."""
    return dg.WeeklyPartitionsDefinition(
        start_date=settings.data.start_date.isoformat(), timezone=KST.key, day_offset=1
    )


def symbol_days(settings: StrategySettings) -> dg.MultiPartitionsDefinition:
    """Return symbol × UTC day, over the same days."""
    return dg.MultiPartitionsDefinition(
        {SYMBOL: dg.StaticPartitionsDefinition(settings.symbols), DAY: days(settings)}
    )


@dataclass(frozen=True)
class SymbolDays:
    """The partitions of one run: every symbol on every day."""

    symbols: list[str]
    days: list[date]


def partition_key(symbol: str, day: date) -> str:
    """Return Dagster's key of the partition; of the day alone without a symbol."""
    if not symbol:
        return day.isoformat()
    return dg.MultiPartitionKey({SYMBOL: symbol, DAY: day.isoformat()})


def dimension_tags(symbol: str, day: date) -> dict[str, str]:
    """Return the tags of an event of the partition, by which Dagster searches for a dimension."""
    dimensions = {f"{PARTITION}/{SYMBOL}": symbol, f"{PARTITION}/{DAY}": day.isoformat()}
    return dimensions if symbol else {}


def parse_keys(keys: Iterable[str]) -> list[tuple[str, date]]:
    """Return (symbol, UTC day) of each partition key; the symbol is empty where it is pooled."""
    return [
        (symbol, date.fromisoformat(day)) for day, _, symbol in (k.partition("|") for k in keys)
    ]


def partitions_of_run(keys: Sequence[str]) -> SymbolDays:
    """Return the rectangle that a run's partition keys span; Dagster's ranges are rectangles."""
    pairs = parse_keys(keys)
    return SymbolDays(
        symbols=list(dict.fromkeys(symbol for symbol, _ in pairs if symbol)),
        days=sorted({day for _, day in pairs}),
    )


def range_tags(symbols: Sequence[str], first: date, last: date) -> dict[str, str]:
    """Return the tags by which one run materialises neighbouring symbols over unbroken days.

    Without symbols: the days of a pooled asset.
    """
    ends = symbols or [""]
    return {
        RANGE_START: partition_key(ends[0], first),
        RANGE_END: partition_key(ends[-1], last),
    }


CANDLES_1M = "candles_1m"
CANDLES_1H = "candles_1h"
