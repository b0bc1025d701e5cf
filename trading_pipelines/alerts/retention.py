"""How long the ledger keeps what is over. What is still to be delivered stays."""

from collections import Counter
from datetime import datetime
from typing import LiteralString

import psycopg

from trading_pipelines.alerts.kinds import DAILY_REPORT, SOURCES
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

PURGED_AT_ONCE = 1000

# A row that the bot's table would still offer keeps its alert (no time on it, or a time to come); a
# digest is kept as long as what it told. A replay at the same moment is waited out, or skipped.
PURGE: LiteralString = """
DELETE FROM trading_pipelines.alert_deliveries WHERE id IN (
    SELECT id FROM trading_pipelines.alert_deliveries AS done
    WHERE source = %(source)s AND state IN ('delivered', 'digested', 'skipped')
      AND greatest(created_at, delivered_at) < %(since)s
      AND NOT EXISTS (SELECT FROM ({rows}) AS found WHERE found.source_id = done.source_id)
      AND NOT EXISTS (SELECT FROM trading_pipelines.alert_deliveries AS told
          WHERE told.digest_id = done.id)
    LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
"""
# What we say ourselves is never found in a table again. Digests last: after what they told.
OUR_OWN: dict[str, LiteralString] = dict.fromkeys(
    (DAILY_REPORT, REJECT_SUMMARY, "pipeline", "digest"), "SELECT '' AS source_id"
)


def purge(connection: psycopg.Connection, before: datetime) -> Counter[str]:
    """Delete alerts done before `before` (UTC) with their attempts; return rows by table.

    The ledger is what keeps an alert from being sent again: `before` has to be twice the longest
    look-back ago, as far as anyone searches for what was missed. Two kinds are kept for ever. A
    source that is updated in place has no time that stays: its rows are one a cooldown. A dead
    alert waits for its replay: without it a recovery would be told that never was.
    """
    rows_of = {one.table: one.rows for one in SOURCES if not one.is_updated_in_place} | OUR_OWN
    purged = 0
    for source, rows in rows_of.items():
        wanted = {"source": source, "since": before, "limit": PURGED_AT_ONCE}
        while found := connection.execute(PURGE.format(rows=rows), wanted).rowcount:
            purged += found
    return Counter(alert_deliveries=purged)
