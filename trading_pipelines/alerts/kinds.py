"""The kinds of alerts and the rows of the bot's tables that each is made of.

Here belongs which row becomes an alert, for which webhook, and the body that the contract asks for.
What became of it belongs in `ledger`; alerts about the pipeline itself in `failures`, the report in
`daily_report/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
import regex

from trading_pipelines.korean_time import kst
from trading_pipelines.signals.regimes.regime import label_as_of
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

AI_REJECT, TRADE, RISK = "ai_reject", "trade", "risk"
DAILY_REPORT, PIPELINE_FAILURE = "daily_report", "pipeline_failure"
KINDS = (AI_REJECT, TRADE, RISK, DAILY_REPORT, PIPELINE_FAILURE, REJECT_SUMMARY)
"""Each is a switch in the settings' section `alerts`, and a sensor."""

CHANNELS = ("ai-reject", "trade", "risk", "daily-report")
"""The webhooks of n8n: what follows /webhook/ in their URLs."""

LONGEST_REASON = 500
# Of one character, in code points; a text that begins with a longer one (Zalgo) is split in it.
LONGEST_CLUSTER = 64
UNKNOWN = "UNKNOWN"

BotRow = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A table of the bot that alerts come from.

    `rows` selects `source_id` (text), `occurred_at` (UTC, NULL where the bot left no time) and
    `row` (jsonb: a column that an older database lacks is a missing key, not an error), of what
    occurred at or after `%(since)s`. `body` is given the row and when it occurred, or now.
    """

    kind: str
    table: str
    channel: str
    rows: LiteralString
    body: Callable[[psycopg.Connection, BotRow, datetime], dict[str, Any]]
    is_updated_in_place: bool = False


def _reject(connection: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    from trading_pipelines.signals.regimes.rsi import rsi_as_of

    symbol = row["symbol"]
    rsi = rsi_as_of(connection, symbol, at)
    return {
        "symbol": symbol,
        "regime": row.get("regime") or label_as_of(connection, symbol, at) or UNKNOWN,
        "rsi": round(rsi.value, 2) if rsi else 0,
        "reason": cut(row["reasoning"] or "", LONGEST_REASON),
        "timestamp": _iso(at),
    }


def _trade(_: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    return {
        "symbol": row["symbol"],
        "side": row["side"],
        "price": row["price"],
        "quantity": row["quantity"],
        "strategy": row["strategy_name"] or UNKNOWN,
        "executed_at": _iso(at),
        "timestamp": _iso(at),
    }


def _violation(_: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    return {
        "type": row["violation_type"],
        "level": "WARNING",
        "message": row["description"] or row["violation_type"],
        "timestamp": _iso(at),
    }


def _cooldown(_: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    until = datetime.fromisoformat(row["cooldown_until"])
    return {
        "type": "COOLDOWN",
        "level": "CRITICAL",
        "message": f"연속 손실 {row['consecutive_losses']}회: {kst(until)}까지 신규 거래 중지",
        "timestamp": _iso(at),
    }


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


SOURCES = (
    Source(
        AI_REJECT,
        "agent_decisions",
        "ai-reject",
        """
        SELECT id::text AS source_id, created_at AS occurred_at, to_jsonb(bot_row) AS row
        FROM public.agent_decisions AS bot_row
        WHERE decision = 'REJECT' AND (created_at >= %(since)s OR created_at IS NULL)
        """,
        _reject,
    ),
    Source(
        TRADE,
        "trading_history",
        "trade",
        """
        SELECT id::text AS source_id, coalesce(executed_at, created_at) AS occurred_at,
            to_jsonb(bot_row) AS row
        FROM public.trading_history AS bot_row
        WHERE status = 'FILLED' AND (coalesce(executed_at, created_at) >= %(since)s
            OR coalesce(executed_at, created_at) IS NULL)
        """,
        _trade,
    ),
    Source(
        RISK,
        "risk_audit",
        "risk",
        """
        SELECT id::text AS source_id, timestamp AS occurred_at, to_jsonb(bot_row) AS row
        FROM public.risk_audit AS bot_row
        WHERE timestamp >= %(since)s OR timestamp IS NULL
        """,
        _violation,
    ),
    Source(
        RISK,
        "daily_risk_state",
        "risk",
        # One alert a cooldown, not a day: a second one of the day moves cooldown_until. A later
        # trade of the day moves updated_at, so one from before the kind came on is skipped.
        """
        SELECT concat(date, ' until ', to_char(cooldown_until AT TIME ZONE 'UTC',
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) AS source_id,
            updated_at AS occurred_at, to_jsonb(bot_row) AS row
        FROM public.daily_risk_state AS bot_row
        WHERE cooldown_until > %(since)s AND (updated_at >= %(since)s OR updated_at IS NULL)
        """,
        _cooldown,
        is_updated_in_place=True,
    ),
)


def sample_bodies(now: datetime) -> dict[str, dict[str, Any]]:
    """Return for each channel a body that is shown as a test."""
    at = _iso(now)
    marked = {"test": True, "timestamp": at, "idempotency_key": f"test {at}"}
    text = "알림 시험입니다. 실제 거래가 아닙니다."
    trade = {"symbol": "KRW-BTC", "side": "BUY", "price": 158_000_000, "quantity": 0.001}
    report = {"title": "일일 리포트", "pnl": 0, "trades": 0, "win_rate": None, "mdd": None}
    return {
        "ai-reject": {
            "symbol": "KRW-BTC", "regime": UNKNOWN, "rsi": 0, "reason": text, **marked
        },
        "trade": {**trade, "strategy": "test", "executed_at": at, **marked},
        "risk": {"type": "TEST", "level": "INFO", "message": text, **marked},
        "daily-report": {**report, "summary": text, **marked},
    }  # fmt: skip


def sources_of(kind: str) -> list[Source]:
    """Return the tables whose rows are alerts of the kind; none for our own messages."""
    return [source for source in SOURCES if source.kind == kind]


def cut(text: str, longest: int) -> str:
    """Return the first characters of the text, at most `longest` code points, none of them split.

    A character is what a reader takes for one (Unicode's extended grapheme cluster): a flag, the
    emoji of a family or a syllable of Korean jamo is kept whole or left out.
    """
    if len(text) <= longest:
        return text
    kept = 0
    for cluster in regex.finditer(r"\X", text[: longest + LONGEST_CLUSTER]):
        if cluster.end() > longest:
            break
        kept = cluster.end()
    return text[:kept] or text[:longest]
