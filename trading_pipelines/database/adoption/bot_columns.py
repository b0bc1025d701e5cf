"""The bot's tables as a contract, as data: columns, types, indexes, and who made what."""

import re
from collections.abc import Mapping

VARCHAR, NUMBER, MOMENT = "character varying", "numeric(20,8)", "timestamp with time zone"
# The columns as the bot makes them, `*` for NOT NULL. Those that older databases lack are in NEWER.
CONTRACT: Mapping[str, Mapping[str, str]] = {
    "market_data": {
        "id": "bigint*",
        "symbol": f"{VARCHAR}(20)*",
        "interval": f"{VARCHAR}(10)*",
        "open_price": f"{NUMBER}*",
        "high_price": f"{NUMBER}*",
        "low_price": f"{NUMBER}*",
        "close_price": f"{NUMBER}*",
        "volume": f"{NUMBER}*",
        "timestamp": f"{MOMENT}*",
    },
    "regime_history": {
        "id": "bigint*",
        "detected_at": MOMENT,
        "regime": f"{VARCHAR}(10)*",
        "ma50": NUMBER,
        "ma200": NUMBER,
        "diff_pct": "numeric(10,4)",
        "coin_symbol": f"{VARCHAR}(10)*",
    },
    "trading_history": {
        "id": "uuid*",
        "symbol": f"{VARCHAR}(20)*",
        "side": f"{VARCHAR}(10)*",
        "order_type": f"{VARCHAR}(10)*",
        "price": f"{NUMBER}*",
        "quantity": f"{NUMBER}*",
        "fee": NUMBER,
        "status": f"{VARCHAR}(20)*",
        "strategy_name": f"{VARCHAR}(50)",
        "signal_info": "jsonb",
        "regime": f"{VARCHAR}(10)",
        "high_water_mark": NUMBER,
        "exit_reason": f"{VARCHAR}(30)",
        "post_exit_prices": "jsonb",
        "created_at": MOMENT,
        "executed_at": MOMENT,
    },
    "risk_audit": {
        "id": "bigint*",
        "violation_type": f"{VARCHAR}(50)*",
        "description": "text",
        "related_order_id": "uuid",
        "timestamp": MOMENT,
    },
    "daily_risk_state": {
        "date": "date*",
        "total_pnl": f"{NUMBER}*",
        "buy_count": "integer*",
        "sell_count": "integer*",
        "trade_count": "integer*",
        "consecutive_losses": "integer*",
        "cooldown_until": MOMENT,
        "is_trading_halted": "boolean*",
        "updated_at": MOMENT,
    },
    "agent_decisions": {
        "id": "bigint*",
        "symbol": f"{VARCHAR}(20)*",
        "strategy_name": f"{VARCHAR}(50)*",
        "decision": f"{VARCHAR}(20)*",
        "reasoning": "text",
        "confidence": "integer",
        "model_used": f"{VARCHAR}(50)",
        "created_at": MOMENT,
        "price_at_decision": NUMBER,
        "regime": f"{VARCHAR}(10)",
    },
}
# Where our DDL is wider than the bot's: as wide as the symbols that the settings allow.
WIDER: Mapping[str, Mapping[str, str]] = {"regime_history": {"coin_symbol": f"{VARCHAR}(20)*"}}
NEWER = {
    "trading_history": {"regime", "high_water_mark", "exit_reason", "post_exit_prices"},
    "daily_risk_state": {"buy_count", "sell_count"},
    "agent_decisions": {"price_at_decision", "regime"},
}
# The tables that we write to, and the columns that our INSERTs leave to the table.
WRITTEN = {"market_data": {"id"}, "regime_history": {"id"}}
FAMILIES = {
    VARCHAR: "text",
    "text": "text",
    "json": "json",
    "jsonb": "json",
    "numeric": "number",
    "double precision": "float",
    "real": "float",
    "bigint": "integer",
    "integer": "integer",
    "smallint": "integer",
}
INDEXES_ON_THEIRS = {
    "0003": {
        "idx_agent_decisions_rejects": "agent_decisions",
        "idx_trading_history_filled": "trading_history",
        "idx_risk_audit_timestamp": "risk_audit",
    },
    "0008": {"idx_agent_decisions_created_at": "agent_decisions"},
}
"""By the revision that makes them in one statement, all or none: each with its table."""

KEY = "uq_market_data_symbol_interval_ts"
# The revisions that create, once, what is missing of the bot's tables and of their newer columns.
ALERTS = "0003"
BOT_OF_TODAY = "0009"
MADE_BY = {"market_data": "0001", "regime_history": "0002"}


def fits(actual: str, contract: str, *, exactly: bool) -> bool:
    """Return whether a column of the actual type will do for the contract's type.

    `exactly`: whatever is written by the contract's type has to fit.
    """
    base, *limits = re.split(r"[(,)]+", actual)
    contract_base, *contract_limits = re.split(r"[(,)]+", contract)
    families = {FAMILIES.get(name, name) for name in (base, contract_base)}
    if len(families) > 1 and (exactly or not families <= {"number", "float", "integer"}):
        return False
    if not exactly or not limits or not contract_limits:
        return True
    # Precision and scale; a text has a length alone.
    (precision, scale), (contract_precision, contract_scale) = (
        [int(limit or 0) for limit in (*texts, "0")][:2] for texts in (limits, contract_limits)
    )
    digits, contract_digits = precision - scale, contract_precision - contract_scale
    return digits >= contract_digits and scale >= contract_scale
