"""The kinds of alerts and the rows of the bot's tables that each is made of.

Here belongs which row becomes an alert, for which webhook, and the body that the contract asks for.
What became of it belongs in `ledger`; alerts about the pipeline itself in `failures`, the report in
`daily_report/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
import regex

from trading_pipelines.korean_time import kst
from trading_pipelines.signals.regimes.regime import label_as_of
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

AI_REJECT, AI_DECISION, TRADE, RISK = "ai_reject", "ai_decision", "trade", "risk"
DAILY_REPORT, PIPELINE_FAILURE = "daily_report", "pipeline_failure"
AI_SCORECARD = "ai_scorecard"
KINDS = (
    *(AI_REJECT, AI_DECISION, TRADE, RISK, DAILY_REPORT, PIPELINE_FAILURE),
    *(REJECT_SUMMARY, AI_SCORECARD),
)
"""Each is a switch in the settings' section `alerts`, and a sensor."""

CHANNELS = ("ai-reject", "ai-decision", "trade", "risk", "daily-report")
"""The webhooks of n8n: what follows /webhook/ in their URLs."""

LONGEST_REASON = 500
LONGEST_DECISION_REASON = 1500
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
    `observe`, where the bot updates its rows in place, notes for `rows` what they say now.
    """

    kind: str
    table: str
    channel: str
    rows: LiteralString
    body: Callable[[psycopg.Connection, BotRow, datetime], dict[str, Any]]
    observe: LiteralString | None = None


def _reject(connection: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    return {
        "symbol": row["symbol"],
        "regime": _regime(connection, row, at),
        "rsi": 0,
        **_rsi(connection, row, at),
        "reason": cut(row["reasoning"] or "", LONGEST_REASON),
        "timestamp": _iso(at),
    }


def _decision(connection: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    """Return the bot's own post without what its table does not hold: its `boundary_…` fields."""
    stored = {name: row.get(name) for name in ("confidence", "model_used")}
    return {
        "symbol": row["symbol"],
        "decision": row["decision"],
        "regime": _regime(connection, row, at),
        **_rsi(connection, row, at),
        **{name: value for name, value in stored.items() if value is not None},
        "reason": cut(row["reasoning"] or "", LONGEST_DECISION_REASON),
        "timestamp": _iso(at),
    }


def _regime(connection: psycopg.Connection, row: BotRow, at: datetime) -> str:
    return row.get("regime") or label_as_of(connection, row["symbol"], at) or UNKNOWN


def _rsi(connection: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    """Return the RSI as the bot has it, and say where the bot saw a minute more; else nothing."""
    from trading_pipelines.signals.regimes.rsi import rsi_as_of

    rsi = rsi_as_of(connection, row["symbol"], at)
    if rsi is None:
        return {}
    if rsi.open_minute is None:
        return {"rsi": round(rsi.value, 1)}
    note = f"닫힌 1분봉 기준, 봇의 최신 봉 {kst(rsi.open_minute)}은 미완성"
    return {"rsi": round(rsi.value, 1), "rsi_note": note}


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


def _risk_state(_: psycopg.Connection, row: BotRow, at: datetime) -> dict[str, Any]:
    return {
        "type": row["type"],
        "level": "CRITICAL",
        "message": RISK_STATES[row["type"]](row),
        "timestamp": _iso(at),
    }


def _cooldown(row: BotRow) -> str:
    until = kst(datetime.fromisoformat(row["cooldown_until"]))
    return f"{_losses(row) or '쿨다운'}: {until}까지 신규 거래 중지"


def _halt(row: BotRow) -> str:
    pnl = f"{Decimal(str(row['total_pnl'])).normalize():f}"
    figures = [f"손익 {pnl}", f"거래 {row['trade_count']}회", _losses(row)]
    return f"거래 정지: {', '.join(filter(None, figures))}"


def _lifted(row: BotRow) -> str:
    return f"거래 정지 해제: {row['date']}의 정지가 풀림"


def _losses(row: BotRow) -> str:
    """Say how many losses in a row there were, unless the bot has counted anew since."""
    return f"연속 손실 {losses}회" if (losses := row["consecutive_losses"]) > 1 else ""


RISK_STATES: dict[str, Callable[[BotRow], str]] = {
    "COOLDOWN": _cooldown,
    "HALT": _halt,
    "HALT_LIFTED": _lifted,
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
        AI_DECISION,
        "agent_decisions",
        "ai-decision",
        # A rejection is told by ai_reject where that is on: one decision is one alert.
        """
        SELECT id::text AS source_id, created_at AS occurred_at, to_jsonb(bot_row) AS row
        FROM public.agent_decisions AS bot_row
        WHERE decision IN ('CONFIRM', 'REJECT')
            AND (created_at >= %(since)s OR created_at IS NULL)
            AND (decision = 'CONFIRM' OR NOT EXISTS (
                SELECT FROM trading_pipelines.alert_kinds AS other
                WHERE kind = 'ai_reject' AND is_on
                    AND (other.since <= created_at OR created_at IS NULL)))
        """,
        _decision,
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
        # One alert a cooldown, a halt and its end, not a day. A later trade of the day moves
        # updated_at, so that each is kept as it was first seen.
        """
        SELECT source_id, occurred_at, bot_row || jsonb_build_object('type', type) AS row
        FROM trading_pipelines.risk_states
        WHERE (occurred_at >= %(since)s OR occurred_at IS NULL)
            AND (type <> 'COOLDOWN' OR (bot_row ->> 'cooldown_until')::timestamptz > %(since)s)
        """,
        _risk_state,
        observe="""
        INSERT INTO trading_pipelines.risk_state_history
            (source_id, date, type, occurred_at, bot_row)
        SELECT source_id, date, type, occurred_at, bot_row
        FROM trading_pipelines.unseen_risk_states() ON CONFLICT DO NOTHING
        """,
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
        "ai-decision": {
            "symbol": "KRW-BTC", "decision": "CONFIRM", "regime": UNKNOWN, "reason": text, **marked
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
