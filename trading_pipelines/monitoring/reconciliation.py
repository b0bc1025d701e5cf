"""Two books compared: what the tables hold whole, and what Dagster's events say is materialised.

Everything here is a question to one of the two databases, or the difference of two answers. Dagster
is told, and a false event taken back, by `sensors/partitions`; what is due belongs in `due`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row, dict_row

from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import SIGNALS

CANDLES = {"candles_1m": "1m", "candles_1h": "1h"}
ASSETS = (*CANDLES, *(signal.asset for signal in SIGNALS))
"""Whose partitions are rows of coverage."""

# A database that was exchanged for another one, or restored without Dagster's, looks like a
# thousand false events: nothing is taken back then.
MOST_TAKEN_BACK = 100


@dataclass(frozen=True)
class Book:
    """Some partitions: how many, a digest of their keys, and the keys where asked for."""

    count: int
    digest: str
    keys: Sequence[str] | None = None


@dataclass(frozen=True)
class Difference:
    """Where the two books part; keys are Dagster's partition keys."""

    not_recorded: list[str] = field(default_factory=list)
    """Whole in the tables; Dagster does not know, or shows it as failed."""
    not_stored: list[str] = field(default_factory=list)
    """Materialised by Dagster's events; the tables have nothing of it."""

    def __bool__(self) -> bool:
        """Return whether they part at all."""
        return bool(self.not_recorded or self.not_stored)


@dataclass(frozen=True)
class Reconciliation:
    """The last comparison of one asset, and what differed the last time that something did."""

    asset: str
    compared_at: datetime
    differed_at: datetime | None
    difference: str | None
    left_over: int
    """The partitions that differ still."""


# A day is whole when it was asked for, or computed, to its end. One that has begun, failed or is
# open may stand in Dagster's book or not.
STORED: LiteralString = """
WITH known AS (
    SELECT day || '|' || symbol AS key, status = 'complete' AND failures = 0 AS whole
    FROM trading_pipelines.candle_coverage
    WHERE interval = %(interval)s AND symbol = ANY (%(symbols)s) AND day >= %(start)s
    UNION ALL
    SELECT day || CASE WHEN symbol = '' THEN '' ELSE '|' || symbol END,
        coalesce(computed_until = (day + 1)::timestamp AT TIME ZONE 'UTC' AND failures = 0, false)
    FROM trading_pipelines.signal_coverage
    WHERE asset = %(asset)s AND symbol = ANY (%(symbols)s || ARRAY['']) AND day >= %(start)s
)
SELECT array_agg(key) FILTER (WHERE NOT whole) AS begun,
    count(*) FILTER (WHERE whole AND key <> ALL (%(in_flight)s)) AS count,
    md5(coalesce(sum(('x' || left(md5(key), 16))::bit(64)::bigint::numeric)
        FILTER (WHERE whole AND key <> ALL (%(in_flight)s)), 0)::text) AS digest,
    CASE WHEN %(keys)s
        THEN array_agg(key) FILTER (WHERE whole AND key <> ALL (%(in_flight)s)) END AS keys
FROM known
"""
# Of each partition the newest materialization, and the newest attempt: where that failed after it,
# the UI shows the partition as failed.
RECORDED: LiteralString = """
WITH wiped AS (
    SELECT max(wipe_timestamp) AS at FROM asset_keys WHERE asset_key = %(asset_key)s
),
latest AS (
    SELECT partition AS key,
        max(id) FILTER (WHERE dagster_event_type = 'ASSET_MATERIALIZATION') AS made,
        max(id) FILTER (WHERE dagster_event_type <> 'ASSET_MATERIALIZATION') AS planned
    FROM event_logs
    WHERE asset_key = %(asset_key)s AND partition IS NOT NULL
      AND dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_MATERIALIZATION_PLANNED')
      AND id > coalesce((SELECT max(id) FROM event_logs, wiped
            WHERE wiped.at IS NOT NULL AND asset_key = %(asset_key)s AND timestamp <= wiped.at), 0)
      AND left(partition, 10) >= %(start)s
      AND (length(partition) = 10 OR substr(partition, 12) = ANY (%(symbols)s))
    GROUP BY partition
),
green AS (
    SELECT key FROM latest
    WHERE made IS NOT NULL AND key <> ALL (%(left_out)s)
      AND (planned IS NULL OR planned < made OR NOT EXISTS (
        SELECT FROM event_logs AS attempt JOIN runs ON runs.run_id = attempt.run_id
        WHERE attempt.id = planned AND runs.status = 'FAILURE'))
)
SELECT count(*) AS count,
    md5(coalesce(sum(('x' || left(md5(key), 16))::bit(64)::bigint::numeric), 0)::text) AS digest,
    CASE WHEN %(keys)s THEN array_agg(key) END AS keys
FROM green
"""
MATERIALISED: LiteralString = """
SELECT DISTINCT partition FROM event_logs
WHERE asset_key = %(asset_key)s AND dagster_event_type = 'ASSET_MATERIALIZATION'
  AND partition = ANY (%(keys)s)
  AND timestamp > coalesce((SELECT max(wipe_timestamp) FROM asset_keys
        WHERE asset_key = %(asset_key)s), '-infinity')
  AND timestamp >= coalesce(%(since)s, '-infinity'::timestamptz) AT TIME ZONE 'UTC'
"""
# Of candles, which a reader of the exchange's stream brings without a run.
OPEN: LiteralString = """
SELECT day || '|' || symbol FROM trading_pipelines.candle_coverage
WHERE interval = %(interval)s AND symbol = ANY (%(symbols)s) AND day = %(day)s
  AND status = 'partial' AND failures = 0
  AND fetched_until >= %(since)s AND fetched_until > day::timestamp AT TIME ZONE 'UTC'
"""
TAKE_BACK: LiteralString = """
WITH gone AS (
    DELETE FROM event_logs
    WHERE asset_key = %(asset_key)s AND partition = ANY (%(keys)s)
      AND dagster_event_type = 'ASSET_MATERIALIZATION'
    RETURNING id),
tags AS (DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM gone))
SELECT count(*) FROM gone
"""
# Of each check and partition the newest materialization, where no verdict is about it.
UNJUDGED: LiteralString = """
SELECT checks.name, made.partition
FROM (
    SELECT partition, max(id) AS id FROM event_logs
    WHERE asset_key = %(asset_key)s AND dagster_event_type = 'ASSET_MATERIALIZATION'
      AND partition = ANY (%(keys)s)
    GROUP BY partition
) AS made
CROSS JOIN unnest(%(names)s::text[]) AS checks (name)
WHERE NOT EXISTS (
    SELECT FROM asset_check_executions AS judged
    WHERE judged.asset_key = %(asset_key)s AND judged.check_name = checks.name
      AND judged.materialization_event_storage_id = made.id
      AND judged.partition = made.partition
      AND judged.execution_status IN ('SUCCEEDED', 'FAILED'))
"""
# What the UI shows where it has room for one verdict of the asset; none while its run is at work.
SHOWN: LiteralString = """
SELECT checks.asset_key, checks.name, shown.partition, shown.execution_status = 'FAILED' AS red,
    shown.execution_status = 'PLANNED' AS is_planned
FROM unnest(%(asset_keys)s::text[], %(names)s::text[]) AS checks (asset_key, name)
CROSS JOIN LATERAL (
    SELECT partition, execution_status, run_id FROM asset_check_executions
    WHERE asset_key = checks.asset_key AND check_name = checks.name ORDER BY id DESC LIMIT 1
) AS shown
WHERE shown.execution_status <> 'PLANNED' OR NOT EXISTS (
    SELECT FROM runs WHERE runs.run_id = shown.run_id
      AND status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED'))
"""


def compare(
    market: psycopg.Connection,
    dagster: psycopg.Connection,
    asset: str,
    settings: StrategySettings,
    in_flight: Collection[str],
) -> Difference:
    """Return where the books of the asset part, without the partitions in flight.

    Both databases answer with a count and a digest; only where these differ are keys read. What is
    in flight has to be read before this is called.
    """
    arguments: dict[str, Any] = {
        "asset": asset,
        "asset_key": f'["{asset}"]',
        "interval": CANDLES.get(asset, ""),
        "symbols": list(settings.symbols),
        "start": settings.data.start_date,
        "in_flight": list(in_flight),
        "keys": False,
    }
    stored, begun = _stored(market, arguments)
    arguments["left_out"] = [*in_flight, *begun]
    of_dagster = arguments | {"start": f"{settings.data.start_date}"}
    recorded = _recorded(dagster, of_dagster)
    if (stored.count, stored.digest) == (recorded.count, recorded.digest):
        return Difference()
    stored, _ = _stored(market, arguments | {"keys": True})
    recorded = _recorded(dagster, of_dagster | {"keys": True})
    whole, green = set(stored.keys or ()), set(recorded.keys or ())
    return Difference(sorted(whole - green, reverse=True), sorted(green - whole, reverse=True))


def _stored(
    connection: psycopg.Connection, arguments: Mapping[str, Any]
) -> tuple[Book, Sequence[str]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(STORED, arguments).fetchone()
    assert row is not None
    return Book(row["count"], row["digest"], row["keys"]), row["begun"] or []


def _recorded(connection: psycopg.Connection, arguments: Mapping[str, Any]) -> Book:
    with connection.cursor(row_factory=class_row(Book)) as cursor:
        book = cursor.execute(RECORDED, arguments).fetchone()
    assert book is not None
    return book


def materialised(
    dagster: psycopg.Connection, asset: str, keys: Collection[str], since: datetime | None = None
) -> list[str]:
    """Return which of the partitions have a materialization, one `since` then; wiped ones' none."""
    arguments = {"asset_key": f'["{asset}"]', "keys": list(keys), "since": since}
    return [key for (key,) in dagster.execute(MATERIALISED, arguments)]


def not_told(
    market: psycopg.Connection,
    dagster: psycopg.Connection,
    asset: str,
    symbols: Sequence[str],
    day: date,
    since: datetime,
) -> list[str]:
    """Return the open day's partitions that reach `since` (UTC) and have no event since then."""
    arguments = {"interval": CANDLES[asset], "symbols": list(symbols), "day": day, "since": since}
    held = [key for (key,) in market.execute(OPEN, arguments)]
    told = materialised(dagster, asset, held, since)
    return [key for key in held if key not in told]


def take_back(dagster: psycopg.Connection, asset: str, keys: Sequence[str]) -> int:
    """Delete the materialization events of the partitions; return how many there were.

    Dagster's wipe of a partition is "not supported yet for this event log storage" (1.13.27).
    """
    row = dagster.execute(TAKE_BACK, {"asset_key": f'["{asset}"]', "keys": list(keys)}).fetchone()
    assert row is not None
    return int(row[0])


def unjudged(
    dagster: psycopg.Connection, asset: str, names: Sequence[str], keys: Collection[str]
) -> dict[str, list[str]]:
    """Return, by check, which of the partitions have no verdict about what they now hold."""
    arguments = {"asset_key": f'["{asset}"]', "names": list(names), "keys": list(keys)}
    checks: dict[str, list[str]] = {}
    for name, key in dagster.execute(UNJUDGED, arguments):
        checks.setdefault(name, []).append(key)
    return checks


@dataclass(frozen=True)
class ShownVerdict:
    """The one verdict of a check that the UI shows for the asset."""

    of_partition: bool
    """It is one partition's, not the asset's."""
    red: bool
    is_planned: bool
    """Its run ended without one."""


def shown_verdicts(
    dagster: psycopg.Connection, checks: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], ShownVerdict]:
    """Return what the UI shows of each (asset, check), without those that a run is working at."""
    arguments = {
        "asset_keys": [f'["{asset}"]' for asset, _ in checks],
        "names": [name for _, name in checks],
    }
    return {
        (key[2:-2], name): ShownVerdict(partition is not None, red, is_planned)
        for key, name, partition, red, is_planned in dagster.execute(SHOWN, arguments)
    }


RECORD: LiteralString = """
INSERT INTO trading_pipelines.reconciliations AS known
    (asset, compared_at, differed_at, difference, left_over)
VALUES (%(asset)s, %(now)s, CASE WHEN %(difference)s::text IS NOT NULL THEN %(now)s END,
    %(difference)s, %(left_over)s)
ON CONFLICT (asset) DO UPDATE SET compared_at = excluded.compared_at,
    left_over = excluded.left_over,
    differed_at = coalesce(excluded.differed_at, known.differed_at),
    difference = coalesce(excluded.difference, known.difference)
"""


def record(
    connection: psycopg.Connection,
    asset: str,
    difference: str | None,
    left_over: int,
    now: datetime,
) -> None:
    """Record that the asset's books were compared at `now`, and what differed, if anything.

    `left_over` is the number of partitions that differ still.
    """
    arguments = {"asset": asset, "difference": difference, "left_over": left_over, "now": now}
    connection.execute(RECORD, arguments)


def read(connection: psycopg.Connection) -> list[Reconciliation]:
    """Return the last comparison of each asset."""
    with connection.cursor(row_factory=class_row(Reconciliation)) as cursor:
        return cursor.execute(
            "SELECT asset, compared_at, differed_at, difference, left_over "
            "FROM trading_pipelines.reconciliations ORDER BY asset"
        ).fetchall()


def named_keys(keys: Sequence[str]) -> str:
    """Return how many partitions these are, with the newest and the oldest; `keys` newest first."""
    if len(keys) == 1:
        return f"1 ({keys[0]})"
    return f"{len(keys):,} ({keys[-1]} to {keys[0]})"
