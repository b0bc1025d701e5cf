"""Deletes old runs and events from Dagster's storage, and measures both databases.

Dagster itself never deletes them. What makes a partition green is kept for ever: the newest event
of each kind, asset and partition, and the newest result of each kind of each check. Every statement
looks at `AT_ONCE` rows and is committed by itself: none holds a lock for long, and the next call
goes on where one was killed. Retention of ticks is Dagster's own and set in `dagster.yaml`; that of
alerts belongs in `alerts.retention`.
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import LiteralString

import psycopg

# A first purge after months: 10,000 events are gone in well under a second.
AT_ONCE = 10_000

RUNS: LiteralString = """
WITH gone AS (
    DELETE FROM runs WHERE id BETWEEN %(first)s AND %(last)s
        AND status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND update_timestamp < %(before)s
    RETURNING id)
SELECT 'runs', count(*) FROM gone
"""
# Each look for a newer event is one step in an index, which IS NOT DISTINCT FROM would not be.
EVENTS: LiteralString = """
WITH gone AS (
    DELETE FROM event_logs AS old
    WHERE id BETWEEN %(first)s AND %(last)s AND old.timestamp < %(before)s
        AND NOT EXISTS (SELECT FROM runs WHERE runs.run_id = old.run_id)
        AND (old.asset_key IS NULL
            OR EXISTS (SELECT FROM event_logs AS newer
                WHERE newer.asset_key = old.asset_key
                  AND newer.dagster_event_type = old.dagster_event_type
                  AND newer.partition = old.partition AND newer.id > old.id)
            OR old.partition IS NULL AND EXISTS (SELECT FROM event_logs AS newer
                WHERE newer.asset_key = old.asset_key
                  AND newer.dagster_event_type = old.dagster_event_type
                  AND newer.partition IS NULL AND newer.id > old.id))
    RETURNING id),
tags AS (DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM gone) RETURNING id)
SELECT 'event_logs', count(*) FROM gone UNION ALL SELECT 'asset_event_tags', count(*) FROM tags
"""
CHECKS: LiteralString = """
WITH gone AS (
    DELETE FROM asset_check_executions AS old
    WHERE id BETWEEN %(first)s AND %(last)s AND old.create_timestamp < %(before)s
        AND NOT EXISTS (SELECT FROM runs WHERE runs.run_id = old.run_id)
        AND id NOT IN (SELECT max(id) FROM asset_check_executions
            GROUP BY asset_key, check_name, partition, execution_status)
    RETURNING id)
SELECT 'asset_check_executions', count(*) FROM gone
"""
# The runs first: the others delete what has no run any more, also what a killed purge has left.
PURGES: dict[LiteralString, LiteralString] = {
    "runs": RUNS,
    "event_logs": EVENTS,
    "asset_check_executions": CHECKS,
}


def purge_runs(connection: psycopg.Connection, before: datetime) -> Counter[str]:
    """Delete the runs that ended before `before` (UTC), and what they left; return rows by table.

    `connection` is to Dagster's storage, autocommit. A run that is not finished is kept with all of
    its events, however old.
    """
    purged: Counter[str] = Counter()
    for table, statement in PURGES.items():
        ends = connection.execute(f"SELECT min(id), max(id) FROM {table}").fetchone()  # noqa: S608
        assert ends is not None
        for first in range(ends[0] or 0, (ends[1] or -1) + 1, AT_ONCE):
            span = {"first": first, "last": first + AT_ONCE - 1}
            # Dagster's columns are UTC without saying so.
            utc = {"before": before.replace(tzinfo=None)}
            purged.update(dict(connection.execute(statement, span | utc).fetchall()))
    return purged


def database_bytes(connection: psycopg.Connection) -> int:
    """Return what the connection's database takes on disk."""
    row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


RECORD_SIZES = (
    "INSERT INTO trading_pipelines.database_sizes VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
)
OLDEST_OF_WEEK = """
SELECT measured_at, market_bytes + dagster_bytes FROM trading_pipelines.database_sizes
WHERE measured_at BETWEEN %(now)s - interval '8 days' AND %(now)s - interval '12 hours'
ORDER BY measured_at LIMIT 1
"""


def record_sizes(
    connection: psycopg.Connection, market_bytes: int, dagster_bytes: int, now: datetime
) -> float | None:
    """Record both sizes in the market database; return their `growth`."""
    connection.execute(RECORD_SIZES, [now, market_bytes, dagster_bytes])
    return growth(connection, market_bytes + dagster_bytes, now)


def growth(connection: psycopg.Connection, both_bytes: int, now: datetime) -> float | None:
    """Return by how many bytes a day both databases have grown to what they take at `now` (UTC).

    Measured since the oldest record of the last eight days that is at least half a day old; None
    where there is none.
    """
    earlier = connection.execute(OLDEST_OF_WEEK, {"now": now}).fetchone()
    if earlier is None:
        return None
    return float((both_bytes - earlier[1]) / ((now - earlier[0]) / timedelta(days=1)))
