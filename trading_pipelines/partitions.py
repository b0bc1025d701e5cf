"""The partitions every market asset shares: symbol × UTC day.

Keys are Dagster's, `2026-11-24|KRW-BTC`. What a partition holds belongs to its asset.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import dagster as dg

from trading_pipelines.settings import StrategySettings

SYMBOL = "symbol"
DAY = "date"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def symbol_days(settings: StrategySettings) -> dg.MultiPartitionsDefinition:
    """Return symbol × UTC day from `data.start_date` up to the day that is open now."""
    return dg.MultiPartitionsDefinition(
        {
            SYMBOL: dg.StaticPartitionsDefinition(settings.symbols),
            DAY: dg.DailyPartitionsDefinition(
                start_date=settings.data.start_date.isoformat(), end_offset=1
            ),
        }
    )


@dataclass(frozen=True)
class SymbolDays:
    """The partitions of one run: every symbol on every day."""

    symbols: list[str]
    days: list[date]


def partition_key(symbol: str, day: date) -> str:
    """Return Dagster's key of the partition."""
    return dg.MultiPartitionKey({SYMBOL: symbol, DAY: day.isoformat()})


def split(keys: Iterable[str]) -> list[tuple[str, date]]:
    """Return (symbol, UTC day) of each partition key."""
    return [
        (symbol, date.fromisoformat(day)) for day, _, symbol in (k.partition("|") for k in keys)
    ]


def of_run(keys: Sequence[str]) -> SymbolDays:
    """Return the rectangle that a run's partition keys span; Dagster's ranges are rectangles."""
    pairs = split(keys)
    return SymbolDays(
        symbols=list(dict.fromkeys(symbol for symbol, _ in pairs)),
        days=sorted({day for _, day in pairs}),
    )


def range_tags(symbols: Sequence[str], first: date, last: date) -> dict[str, str]:
    """Return the tags by which one run materialises neighbouring symbols over unbroken days."""
    return {
        RANGE_START: partition_key(symbols[0], first),
        RANGE_END: partition_key(symbols[-1], last),
    }
