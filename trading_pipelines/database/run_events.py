"""Old run events in Dagster's storage, which grow without limit and which Dagster never purges.

What makes a partition green is kept for ever: the newest event of each kind, asset and partition.
Retention of ticks is Dagster's own and set in `config/dagster.yaml`.
"""

from datetime import datetime

import psycopg

PURGE = """
DELETE FROM event_logs AS old
WHERE old.timestamp < %(before)s AND (
    old.asset_key IS NULL
    OR EXISTS (
        SELECT FROM event_logs AS newer
        WHERE newer.asset_key = old.asset_key
          AND newer.dagster_event_type = old.dagster_event_type
          AND newer.partition IS NOT DISTINCT FROM old.partition
          AND newer.id > old.id))
"""


def purge_run_events(connection: psycopg.Connection, before: datetime) -> int:
    """Delete events older than `before` (UTC) that no partition's state rests on; return how many.

    `connection` is to Dagster's storage, autocommit.
    """
    return connection.execute(PURGE, {"before": before.replace(tzinfo=None)}).rowcount
