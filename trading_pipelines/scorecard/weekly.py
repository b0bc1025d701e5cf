"""The scorecard of a Korean week: of the thirteen weeks up to its end; which are due; storing one.

Nothing is computed here, so that a schedule which asks imports no computing library.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

import psycopg
from psycopg import sql

from trading_pipelines.candles.windows import Interval
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.rejections.summary import (
    WEEK,
    ended_weeks,
    is_settled,
    settled_at,
    week_interval,
)

WEEKS = 13

STORED_DIGEST = "SELECT computed_from FROM trading_pipelines.ai_scorecard WHERE week = %s LIMIT 1"
# Of what `entries` reads: outcomes and flags by the digests of their partitions, the bot's rows by
# the columns that count. What the bot notes on an order later makes no week due.
INPUTS_DIGEST = """
SELECT md5(concat_ws(';',
    (SELECT string_agg(concat_ws(' ', asset, symbol, day, rows_digest), ';'
        ORDER BY asset, symbol, day)
     FROM trading_pipelines.signal_coverage
     WHERE (asset IN ('confirm_outcomes', 'reject_outcomes')
            OR asset = 'volatility_forecast' AND symbol = %(symbol)s)
        AND day BETWEEN (%(start)s AT TIME ZONE 'UTC')::date - 1
            AND (%(end)s AT TIME ZONE 'UTC')::date),
    (SELECT concat_ws(' ', count(*), sum(hashtextextended(
        concat_ws(' ', told.id, to_jsonb(told)->>'confidence'), 0)))
     FROM public.agent_decisions AS told
     WHERE told.created_at >= %(start)s AND told.created_at < %(end)s),
    (SELECT concat_ws(' ', count(*), sum(hashtextextended(concat_ws(' ', told.id, told.symbol,
        told.side, told.price, told.quantity, told.fee, told.executed_at AT TIME ZONE 'UTC',
        told.created_at AT TIME ZONE 'UTC'), 0)))
     FROM public.trading_history AS told
     WHERE told.status = 'FILLED' AND coalesce(told.executed_at, told.created_at) <= %(as_of)s)))
"""


def weeks_interval(week: date) -> Interval:
    """Return the thirteen Korean weeks up to and with the one that begins on this Monday, UTC."""
    return Interval(week_interval(week - WEEK * (WEEKS - 1)).start, week_interval(week).end)


def due_weeks(
    connection: psycopg.Connection, settings: StrategySettings, now: datetime
) -> list[date]:
    """Return the Mondays of the weeks whose outcomes are all there, and that have no scorecard.

    Or one that is older than what it was computed from. What is open for too long keeps no week.
    """
    return [
        week
        for week in ended_weeks(settings, now)
        if connection.execute(STORED_DIGEST, [week]).fetchone()
        != (inputs_digest(connection, week, settings),)
        and all(is_settled(connection, week, d, settings, now) for d in ("CONFIRM", "REJECT"))
    ]


def inputs_digest(connection: psycopg.Connection, week: date, settings: StrategySettings) -> str:
    """Return a digest of what the week's scorecard is computed from."""
    whole = weeks_interval(week)
    arguments = {
        "symbol": settings.symbols[0],
        "start": whole.start,
        "end": whole.end,
        "as_of": settled_at(week, settings),
    }
    row = connection.execute(INPUTS_DIGEST, arguments).fetchone()
    assert row is not None
    return str(row[0])


def store(
    connection: psycopg.Connection,
    week: date,
    figures: Sequence[Mapping[str, Any]],
    computed_from: str,
) -> None:
    """Put the figures, a row a group, in the place of the week's earlier ones."""
    rows = [{"week": week, **row, "computed_from": computed_from} for row in figures]
    names = list(rows[0])
    add = sql.SQL("INSERT INTO trading_pipelines.ai_scorecard ({}) VALUES ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(map(sql.Placeholder, names)),
    )
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM trading_pipelines.ai_scorecard WHERE week = %s", [week])
        cursor.executemany(add, rows)
