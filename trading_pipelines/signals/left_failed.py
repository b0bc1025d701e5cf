"""Partitions whose attempts are spent, and what makes each be tried again.

Read by `monitoring/`, the check `no_partition_left_failed` and the alerts of failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles.windows import contiguous, named

SHOWN_INTERVALS = 10
LEFT_FAILED = "no_partition_left_failed"
"""The check that is red for them."""

# Nothing tries a signal that is left failed: when it was last tried is when it was left so.
FAILING = """
FROM (
    SELECT 'candles_' || interval AS asset, symbol, day, failures, left_failed, error, retry_at,
        left_at
    FROM trading_pipelines.candle_coverage
    UNION ALL
    SELECT asset, symbol, day, failures, left_failed, error, retry_at, retry_at
    FROM trading_pipelines.signal_coverage
) AS known
WHERE failures > 0 AND symbol = ANY (%(symbols)s::text[] || ARRAY[''])
"""
READ_LEFT_FAILED = f"""
SELECT asset, symbol, array_agg(day ORDER BY day) AS days,
    array_agg(error ORDER BY day) AS errors,
    (array_agg(error ORDER BY left_at DESC, day DESC))[1] AS error, max(left_at) AS left_at
{FAILING} AND left_failed GROUP BY asset, symbol ORDER BY asset, symbol
"""


@dataclass(frozen=True)
class LeftFailed:
    """Partitions of one asset and symbol (empty where pooled) whose attempts are spent."""

    asset: str
    symbol: str
    days: list[date]
    error: str
    """Of the last one that failed."""
    left_at: datetime
    """When the newest was left so; of a signal, when it was last tried."""
    errors: list[str] = field(default_factory=list)
    """Of each of the days."""

    @property
    def retried_by(self) -> str:
        """What makes them be tried again now; of candles, their newest unbroken run of days."""
        *_, (first, last) = contiguous(self.days)
        if self.asset.startswith("candles_"):
            return (
                f"trading-pipelines backfill --symbols {self.symbol} --start {first} --end {last}"
            )
        return f"Dagster UI, Catalog, {self.asset}: Materialize {shown_intervals(self.days)}"


def left_failed(connection: psycopg.Connection, symbols: Sequence[str]) -> list[LeftFailed]:
    """Return what is left failed of the symbols and of what is pooled, by asset and symbol."""
    with connection.cursor(row_factory=class_row(LeftFailed)) as cursor:
        return cursor.execute(READ_LEFT_FAILED, {"symbols": list(symbols)}).fetchall()


def left_failed_days(
    connection: psycopg.Connection, asset: str, symbols: Sequence[str]
) -> list[tuple[str, date, str]]:
    """Return (symbol, UTC day, error and what retries it) of the asset's partitions left failed."""
    return [
        (of_symbol.symbol, day, f"{error}; tried again by: {of_symbol.retried_by}")
        for of_symbol in left_failed(connection, symbols)
        if of_symbol.asset == asset
        for day, error in zip(of_symbol.days, of_symbol.errors, strict=True)
    ]


def shown_intervals(days: Sequence[date], left_out: str = ", … {}") -> str:
    """Return the unbroken runs of days, the newest ten; `left_out` tells of the others."""
    intervals = [named(first, last, " ~ ") for first, last in contiguous(days)]
    more = len(intervals) - SHOWN_INTERVALS
    return ", ".join(intervals[-SHOWN_INTERVALS:]) + (left_out.format(more) if more > 0 else "")
