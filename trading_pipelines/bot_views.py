"""The bot's tables as a person reads them: newest first, in Korean time, from our views of them.

Also what became of its rejections. The views belong in `database/migrations`, the columns that the
tables must have in `database/adoption/bot_columns`, the alerts about the rows in `alerts/kinds`. A
column that an older database lacks is a missing key.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from trading_pipelines.alerts.kinds import cut
from trading_pipelines.korean_time import kst

BotRow = Mapping[str, Any]

SHOWN_ROWS = 50
LONGEST_TEXT = 200
# An observation is an event of some 20 kB that is kept until housekeeping.
OBSERVED_EVERY = timedelta(minutes=5)


@dataclass(frozen=True)
class View:
    """A view of a table of the bot's: when a row happened, and which of one moment comes first."""

    name: LiteralString
    moment: tuple[LiteralString, ...]
    """The first of these columns that is not empty."""
    then: LiteralString

    def happened(self, row: BotRow) -> datetime | None:
        """Return when the row happened (UTC); None where the bot left no time."""
        return next((row[name] for name in self.moment if row[name]), None)


TRADES = View("trade_history_kst", ("executed_at", "created_at"), "id DESC")
DECISIONS = View("agent_decisions_kst", ("created_at",), "id DESC")
RISK = View("risk_log_kst", ("occurred_at",), "source_id DESC, type")
REJECTIONS = View("reject_outcomes_kst", ("decided_at",), "decision_id DESC")

FOLLOWED = {
    "agent_decisions": DECISIONS,
    "trading_history": TRADES,
    "risk_audit": View("risk_audit_kst", ("timestamp",), "id DESC"),
    "daily_risk_state": View("daily_risk_state_kst", ("updated_at",), "date DESC"),
}
"""The bot's tables, in the order they are observed."""

READ_BOT_ROWS = """
SELECT * FROM trading_pipelines.{view} WHERE {where}
ORDER BY {moment} DESC NULLS LAST, {then} LIMIT %(limit)s
"""


def read(
    connection: psycopg.Connection,
    view: View,
    *,
    since: datetime | None = None,
    symbol: str | None = None,
    limit: int = SHOWN_ROWS,
) -> list[BotRow]:
    """Return the rows since (UTC) and of the symbol, all columns, newest first.

    Those whose time the bot left empty come last, whatever `since` is.
    """
    columns = sql.SQL(", ").join(map(sql.Identifier, view.moment))
    # Of one column, COALESCE would hide its index.
    moment = sql.SQL("coalesce({})").format(columns) if len(view.moment) > 1 else columns
    where: list[sql.Composable] = [sql.SQL("true")]
    if since is not None:
        where.append(sql.SQL("({0} >= %(since)s OR {0} IS NULL)").format(moment))
    if symbol is not None:
        where.append(sql.SQL("symbol = %(symbol)s"))
    query = sql.SQL(READ_BOT_ROWS).format(
        view=sql.Identifier(view.name),
        where=sql.SQL(" AND ").join(where),
        moment=moment,
        then=sql.SQL(view.then),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        arguments = {"since": since, "symbol": symbol, "limit": limit}
        return list(cursor.execute(query, arguments).fetchall())


def json_line(row: BotRow) -> str:
    """Return a row as one line of JSON: times in UTC, exact numbers as text."""
    return json.dumps(_original(row), default=_plain, ensure_ascii=False)


def _original(row: BotRow) -> dict[str, Any]:
    """Return the bot's own columns."""
    return {name: row[name] for name in row if name.removesuffix("_kst") not in row.keys() - {name}}


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def amount(value: Decimal | None) -> str:
    """Return a number with thousands separators and no zeros at its end; "-" for none."""
    if value is None:
        return "-"
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shown_trade(row: BotRow) -> dict[str, str]:
    """Return what a person reads of an order, by column heading; prices and fees in KRW."""
    return {
        "happened": kst(TRADES.happened(row)),
        "symbol": row["symbol"],
        "order": _joined(f"{row['side']} {row['order_type']} {row['status']}", row,
                         "strategy_name", "regime", "exit_reason"),
        "price (KRW)": amount(row["price"]),
        "quantity": amount(row["quantity"]),
        "fee (KRW)": amount(row["fee"]),
    }  # fmt: skip


def shown_decision(row: BotRow) -> dict[str, str]:
    """Return what a person reads of a decision, by column heading; the price in KRW."""
    sure = "" if row["confidence"] is None else f" {row['confidence']} %"
    return {
        "happened": kst(DECISIONS.happened(row)),
        "symbol": row["symbol"],
        "decision": _joined(row["decision"] + sure, row, "strategy_name", "regime", "model_used"),
        "price (KRW)": amount(row.get("price_at_decision")),
        "reason": row["reasoning"] or "-",
    }


def shown_risk(row: BotRow) -> dict[str, str]:
    """Return what a person reads of an entry of the risk log, by column heading."""
    return {
        "happened": kst(RISK.happened(row)),
        "type": row["type"],
        "level": row["level"],
        "symbol": row["symbol"] or "-",
        "message": row["message"],
    }


def shown_rejection(row: BotRow) -> dict[str, str]:
    """Return what a person reads of a rejection's outcome, by column heading; money in KRW."""
    how_it_ended = row["exit_reason"] and f"{row['exit_reason']} {kst(row['exit_at'])}"
    result = row["result_krw"]
    return {
        "happened": kst(row["decided_at"]),
        "symbol": row["symbol"],
        "why": f"{row['regime']}, {row['reason_family']}",
        "price (KRW)": amount(row["price"]),
        "exit": how_it_ended or row["note"] or "-",
        "refusal": f"{row['verdict']} {amount(abs(result))} KRW"
        if row["verdict"]
        else row["state"],
    }


def _joined(first: str, row: BotRow, *names: str) -> str:
    return ", ".join([first, *filter(None, map(row.get, names))])


@dataclass(frozen=True)
class Seen:
    """What was last observed of a table, and when (UTC)."""

    version: str
    at: datetime


@dataclass(frozen=True)
class Newest:
    """A table's newest rows as a person reads them, and what tells them from others."""

    rows: list[dict[str, str]]
    count: int
    happened: datetime | None
    version: str


def newest(connection: psycopg.Connection, table: str) -> Newest:
    """Return the newest rows of one of `FOLLOWED` and the number of all."""
    view = FOLLOWED[table]
    rows = read(connection, view)
    counting = sql.SQL("SELECT count(*) FROM public.{}").format(sql.Identifier(table))
    counted = connection.execute(counting).fetchone()
    assert counted is not None
    count = counted[0]
    digest = hashlib.sha256(json.dumps([count, rows], default=_plain).encode()).hexdigest()
    happened = view.happened(rows[0]) if rows else None
    return Newest([_observed(row) for row in rows], count, happened, digest[:16])


def unseen(
    connection: psycopg.Connection, seen: Mapping[str, Seen], now: datetime
) -> dict[str, Newest]:
    """Return the tables whose newest rows or number are not as seen, `OBSERVED_EVERY` at most.

    A table that was never seen and is empty has nothing to show.
    """
    changed = {}
    for table in FOLLOWED:
        last = seen.get(table)
        # A clock that was set back must not keep a table unseen until it has caught up.
        if last and abs(now - last.at) < OBSERVED_EVERY:
            continue
        current = newest(connection, table)
        if current.version != last.version if last else current.count:
            changed[table] = current
    return changed


def _observed(row: BotRow) -> dict[str, str]:
    """Return a row with its times in Korean time alone, and its texts cut."""
    texts = {}
    for name, value in row.items():
        if f"{name}_kst" in row:
            continue
        base = name.removesuffix("_kst")
        heading = f"{base} (KST)" if base in row.keys() - {name} else name
        if isinstance(value, datetime):
            text = f"{value:%Y-%m-%d %H:%M:%S}"
        elif isinstance(value, Decimal):
            text = amount(value)
        elif isinstance(value, dict | list):
            text = json.dumps(value, ensure_ascii=False)
        else:
            text = "" if value is None else str(value)
        texts[heading] = cut(text, LONGEST_TEXT)
    return texts
