"""Deleting the ledger's alerts that are done and old. What is still to be delivered stays."""

from collections import Counter
from datetime import datetime
from typing import LiteralString

import psycopg

from trading_pipelines.alerts.kinds import AI_SCORECARD, DAILY_REPORT, SOURCES
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

PURGED_AT_ONCE = 1000

# A row that the bot's table still offers keeps its alert (it has no time, or a time to come); a
# digest is kept as long as the alerts in it. A row that a replay has locked is skipped.
PURGE: LiteralString = """
DELETE FROM trading_pipelines.alert_deliveries WHERE id IN (
    SELECT id FROM trading_pipelines.alert_deliveries AS done
    WHERE source = %(source)s AND state IN ('delivered', 'digested', 'skipped')
      AND greatest(created_at, delivered_at) < %(since)s
      AND NOT EXISTS (SELECT FROM ({rows}) AS bot_row WHERE bot_row.source_id = done.source_id)
      AND NOT EXISTS (SELECT FROM trading_pipelines.alert_deliveries AS digested
          WHERE digested.digest_id = done.id)
    LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
"""
# Our own alerts have no row in a table of the bot. Digests last: after the alerts in them.
OUR_OWN: dict[str, LiteralString] = dict.fromkeys(
    (DAILY_REPORT, REJECT_SUMMARY, AI_SCORECARD, "pipeline", "digest"), "SELECT '' AS source_id"
)


def purge(connection: psycopg.Connection, before: datetime) -> Counter[str]:
    """Delete alerts done before `before` (UTC) with their attempts; return rows by table.

    The ledger is what keeps an alert from being sent again: `before` has to be twice the longest
    look-back ago, as far as anyone searches for what was missed. Two kinds are kept for ever. A
    source that is updated in place has no time that stays: its rows are one a cooldown. A dead
    alert waits for its replay: without it a recovery that never was would be news.
    """
    bot_rows: dict[str, LiteralString] = {}
    for source in SOURCES:
        if source.observe is None:
            others = bot_rows.get(source.table)
            offered = (others, source.rows) if others else (source.rows,)
            bot_rows[source.table] = " UNION ALL ".join(offered)
    purged = 0
    for name, rows in (bot_rows | OUR_OWN).items():
        arguments = {"source": name, "since": before, "limit": PURGED_AT_ONCE}
        while deleted := connection.execute(PURGE.format(rows=rows), arguments).rowcount:
            purged += deleted
    return Counter(alert_deliveries=purged)
