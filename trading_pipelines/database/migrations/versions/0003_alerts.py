"""Alerts: the bot's tables they come from, and the ledger of what was delivered.

Revision ID: 0003
"""

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"

# The contract: the bot's own DDL, each table made only where the bot has not made it.
BOT_TABLES = {
    "trading_history": """
CREATE TABLE public.trading_history (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    symbol varchar(20) NOT NULL,
    side varchar(10) NOT NULL,
    order_type varchar(10) NOT NULL,
    price numeric(20, 8) NOT NULL,
    quantity numeric(20, 8) NOT NULL,
    fee numeric(20, 8),
    status varchar(20) NOT NULL,
    strategy_name varchar(50),
    signal_info jsonb,
    regime varchar(10),
    high_water_mark numeric(20, 8),
    exit_reason varchar(30),
    created_at timestamptz DEFAULT now(),
    executed_at timestamptz
)
""",
    "risk_audit": """
CREATE TABLE public.risk_audit (
    id bigserial PRIMARY KEY,
    violation_type varchar(50) NOT NULL,
    description text,
    related_order_id uuid REFERENCES public.trading_history (id),
    timestamp timestamptz DEFAULT now()
)
""",
    "daily_risk_state": """
CREATE TABLE public.daily_risk_state (
    date date PRIMARY KEY,
    total_pnl numeric(20, 8) NOT NULL,
    trade_count integer NOT NULL,
    consecutive_losses integer NOT NULL,
    cooldown_until timestamptz,
    is_trading_halted boolean NOT NULL,
    updated_at timestamptz
)
""",
    "agent_decisions": """
CREATE TABLE public.agent_decisions (
    id bigserial PRIMARY KEY,
    symbol varchar(20) NOT NULL,
    strategy_name varchar(50) NOT NULL,
    decision varchar(20) NOT NULL,
    reasoning text,
    confidence integer,
    model_used varchar(50),
    created_at timestamptz DEFAULT now(),
    price_at_decision numeric(20, 8),
    regime varchar(10)
)
""",
}
# The senders ask five times a second; without these each question would read the whole table.
# Only a table's owner may add one: elsewhere the questions are slower, and that is all.
INDEXES = """
DO $$ BEGIN
    CREATE INDEX IF NOT EXISTS idx_agent_decisions_rejects
        ON public.agent_decisions (created_at) WHERE decision = 'REJECT';
    CREATE INDEX IF NOT EXISTS idx_trading_history_filled
        ON public.trading_history (coalesce(executed_at, created_at)) WHERE status = 'FILLED';
    CREATE INDEX IF NOT EXISTS idx_risk_audit_timestamp ON public.risk_audit (timestamp);
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'the bot''s tables belong to another role: no indexes were added to them';
END $$
"""

LEDGER = """
CREATE TABLE trading_pipelines.alert_kinds (
    kind text PRIMARY KEY,
    is_on boolean NOT NULL,
    since timestamptz NOT NULL
);
COMMENT ON COLUMN trading_pipelines.alert_kinds.since IS
    'what happened before this is never sent: when the kind was last switched on';
CREATE TABLE trading_pipelines.alert_deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    source text NOT NULL,
    source_id text NOT NULL,
    channel text NOT NULL,
    state text NOT NULL CHECK
        (state IN ('pending', 'retrying', 'delivered', 'dead', 'digested', 'skipped')),
    body jsonb NOT NULL,
    occurred_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    via text NOT NULL DEFAULT 'n8n' CHECK (via IN ('n8n', 'discord')),
    attempts integer NOT NULL DEFAULT 0,
    is_away boolean NOT NULL DEFAULT false,
    delivered_at timestamptz,
    message_id text,
    last_error text,
    digest_id bigint REFERENCES trading_pipelines.alert_deliveries,
    UNIQUE (source, source_id, channel)
);
CREATE INDEX idx_alert_deliveries_waiting
    ON trading_pipelines.alert_deliveries (kind, next_at) WHERE state IN ('pending', 'retrying');
CREATE INDEX idx_alert_deliveries_dead
    ON trading_pipelines.alert_deliveries (kind) WHERE state = 'dead';
CREATE TABLE trading_pipelines.alert_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id bigint NOT NULL
        REFERENCES trading_pipelines.alert_deliveries ON DELETE CASCADE,
    number integer NOT NULL,
    started_at timestamptz NOT NULL,
    via text NOT NULL,
    outcome text CHECK
        (outcome IN ('delivered', 'refused', 'away', 'unreachable')),
    status smallint,
    answer text,
    seconds double precision
);
CREATE INDEX idx_alert_attempts_started_at ON trading_pipelines.alert_attempts (started_at);
CREATE INDEX idx_alert_attempts_delivery ON trading_pipelines.alert_attempts (delivery_id);
"""
COMMENTS = {
    "alert_deliveries.kind": "the switch in the settings, and the sensor that delivers it",
    "alert_deliveries.source": "the table the alert comes from; digest and pipeline are ours",
    "alert_deliveries.channel": "the webhook of n8n it goes to",
    "alert_deliveries.state": "skipped: older than its kind's since, or switched off",
    "alert_deliveries.body": "what is posted, the idempotency key of all tries in it",
    "alert_deliveries.occurred_at": "when what is told happened; empty where the bot left no time",
    "alert_deliveries.next_at": "not tried before this",
    "alert_deliveries.via": "discord: n8n was away too long, or refused it",
    "alert_deliveries.is_away": "the last try found no n8n, so its return brings the next forward",
    "alert_deliveries.digest_id": "of a digested alert, the digest that told it",
    "alert_attempts.outcome": "empty: in flight, or its sender died; away: not our workflow's word",
    "alert_attempts.status": "the HTTP status, of Discord where n8n reports it",
}


def upgrade() -> None:
    """Adopt or create the bot's tables, create ours."""
    bind = op.get_bind()
    for name, statement in BOT_TABLES.items():
        if bind.execute(text(f"SELECT to_regclass('public.{name}')")).scalar() is None:
            op.execute(statement)
    op.execute(INDEXES)
    op.execute(LEDGER)
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{quoted}'")


def downgrade() -> None:
    """Refuse: without the ledger everything would be sent again; restore a backup instead."""
    raise NotImplementedError("there is no way back from 0003: restore a backup")
