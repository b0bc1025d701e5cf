"""The table `failed_checks`: which partition stands red in which check.

A check has a verdict for each partition: a row stays until that very partition is healed, however
many others are green meanwhile. What a check looks for belongs in `checks` or beside its signal.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime

import psycopg
from psycopg.rows import class_row

Partition = tuple[str, date]
"""A symbol (empty where pooled) and a UTC day."""


@dataclass(frozen=True)
class FailedCheck:
    """One partition that stands red in one check."""

    asset: str
    check_name: str
    symbol: str
    day: date
    finding: str
    failed_since: datetime


FAIL = """
INSERT INTO trading_pipelines.failed_checks AS known (asset, check_name, symbol, day, finding)
SELECT %(asset)s, %(check)s, symbol, day, finding
FROM unnest(%(symbols)s::text[], %(days)s::date[], %(findings)s::text[])
    AS red (symbol, day, finding)
ON CONFLICT (asset, check_name, symbol, day) DO UPDATE SET finding = excluded.finding
WHERE known.finding <> excluded.finding
RETURNING symbol, day, xmax = 0
"""
HEAL = """
DELETE FROM trading_pipelines.failed_checks AS known
USING unnest(%(symbols)s::text[], %(days)s::date[]) AS green (symbol, day)
WHERE known.asset = %(asset)s AND known.check_name = %(check)s
  AND known.symbol = green.symbol AND known.day = green.day
RETURNING known.symbol, known.day
"""
# Partitions that the settings no longer have are nobody's red.
STANDING = """
SELECT asset, check_name, symbol, day, finding, failed_since
FROM trading_pipelines.failed_checks
WHERE symbol = ANY (%(symbols)s::text[] || ARRAY['']) AND day >= %(start)s
ORDER BY asset, check_name, day, symbol
"""


def settle(
    connection: psycopg.Connection,
    asset: str,
    check: str,
    partitions: Collection[Partition],
    findings: Mapping[Partition, str],
) -> set[Partition]:
    """Record the check's verdict of each of the partitions; return those it has changed for.

    `findings` says of the red ones what was found; the others are green.
    """
    red = [partition for partition in partitions if partition in findings]
    green = [partition for partition in partitions if partition not in findings]
    arguments = {"asset": asset, "check": check}
    failed = connection.execute(
        FAIL,
        arguments | _columns(red) | {"findings": [findings[partition] for partition in red]},
    ).fetchall()
    passed = connection.execute(HEAL, arguments | _columns(green)).fetchall()
    return {(symbol, day) for symbol, day, is_new in failed if is_new} | set(passed)


def _columns(partitions: Collection[Partition]) -> dict[str, list[str] | list[date]]:
    return {
        "symbols": [symbol for symbol, _ in partitions],
        "days": [day for _, day in partitions],
    }


def standing(
    connection: psycopg.Connection, symbols: Collection[str], start: date
) -> list[FailedCheck]:
    """Return what stands red of the symbols and of what is pooled, from `start` on; by day."""
    with connection.cursor(row_factory=class_row(FailedCheck)) as cursor:
        return cursor.execute(STANDING, {"symbols": list(symbols), "start": start}).fetchall()
