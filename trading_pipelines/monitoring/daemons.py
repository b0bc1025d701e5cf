"""The heartbeats of Dagster's daemons and whether it has its tables, each by one query.

Without Dagster itself: a container's probe asks nothing else every few seconds, and importing
Dagster costs 2 s of a core. A test compares what is written here with the installed version.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import psycopg

from trading_pipelines.database.connection import DatabaseError, probe_database, within_deadline
from trading_pipelines.monitoring.facts import Daemon, Orchestration, Unknown

REQUIRED = (
    "SENSOR",
    "BACKFILL",
    "SCHEDULER",
    "QUEUED_RUN_COORDINATOR",
    "MONITORING",
    "EVENT_LOG_CONSUMER",
    "ASSET",
    "FRESHNESS_DAEMON",
)
"""The daemons that our dagster.yaml asks for."""
TOLERANCE = timedelta(seconds=1830)
"""How old a heartbeat may be: Dagster's interval and its tolerance."""

# Not the column `timestamp`: it has no zone, and Dagster writes it in the server's.
HEARTBEATS = "SELECT daemon_type, (body::jsonb ->> 'timestamp')::float8 FROM daemon_heartbeats"
NEVER_RAN = Unknown("Dagster has never run on this database")


def ask_for_daemons(url: str, now: datetime) -> Orchestration | Unknown:
    """Return the daemons as of `now` (UTC), and nothing else, from the storage at `url`.

    Raises nothing, and waits no longer than a probe's deadline.
    """

    def ask() -> dict[str, datetime]:
        with probe_database(url) as connection:
            rows = connection.execute(HEARTBEATS).fetchall()
        return {name: datetime.fromtimestamp(timestamp, UTC) for name, timestamp in rows}

    try:
        return Orchestration(daemons=healthy_daemons(within_deadline(ask), REQUIRED, now))
    except psycopg.errors.UndefinedTable:
        return NEVER_RAN
    except (DatabaseError, psycopg.Error):
        return Unknown("see database")


def has_dagsters_tables(connection: psycopg.Connection) -> bool:
    """Return whether Dagster has created its tables here; that of the ticks is the last."""
    row = connection.execute("SELECT to_regclass('public.job_ticks') IS NOT NULL").fetchone()
    return row == (True,)


def healthy_daemons(
    heartbeats: Mapping[str, datetime], required: Iterable[str], now: datetime
) -> list[Daemon]:
    """Return the required daemons, each with its last heartbeat (UTC) and whether it is recent."""
    last = {name: heartbeats.get(name) for name in required}
    return [Daemon(name, at is not None and now - at <= TOLERANCE, at) for name, at in last.items()]
