"""Each decision is one alert; cooldowns, halts and their ends, as each was first seen.

Revision ID: 0008
"""

from importlib import import_module

from alembic import op

revision = "0008"
down_revision = "0007"

korean_views = import_module("trading_pipelines.database.migrations.versions.0005_korean_views")

ONE_ALERT = """
CREATE UNIQUE INDEX uq_alert_deliveries_decision
    ON trading_pipelines.alert_deliveries (source_id) WHERE source = 'agent_decisions'
"""
# Without a predicate on the decision, so that the bot may change that column's type.
INDEX = """
DO $$ BEGIN
    CREATE INDEX IF NOT EXISTS idx_agent_decisions_created_at
        ON public.agent_decisions (created_at);
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'the bot''s tables belong to another role: no index was added to them';
END $$
"""
HISTORY = """
CREATE TABLE trading_pipelines.risk_state_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id text NOT NULL UNIQUE,
    date date NOT NULL,
    type text NOT NULL CHECK (type IN ('COOLDOWN', 'HALT', 'HALT_LIFTED')),
    occurred_at timestamptz,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    bot_row jsonb NOT NULL
);
CREATE INDEX idx_risk_state_history_date ON trading_pipelines.risk_state_history (date);
COMMENT ON TABLE trading_pipelines.risk_state_history IS
    'Cooldowns, halts and their ends, as the bot''s daily_risk_state had them when first seen.';
"""
# A halt ends in its own row, or when the next day begins without one. A row that ended so stays
# halted for ever: only the newest can be halted anew.
# The bot updates its newest rows alone; of 1,000 days five looks a second were 12 % of a core.
# A function's text is not a dependency: the bot may change any column of its table.
UNSEEN = """
CREATE FUNCTION trading_pipelines.unseen_risk_states(days integer DEFAULT 31)
RETURNS TABLE (source_id text, date date, type text, occurred_at timestamptz, bot_row jsonb)
LANGUAGE sql STABLE AS $$
    WITH state AS (
        SELECT told.date::date AS date, told.is_trading_halted AS is_halted,
            told.updated_at::timestamptz AS updated_at,
            told.cooldown_until::timestamptz AS cooldown_until, to_jsonb(told) AS bot_row,
            lead(told.is_trading_halted) OVER by_date AS next_is_halted,
            lead(told.updated_at) OVER by_date AS next_updated_at,
            seen.type AS seen_type, seen.occurred_at AS seen_occurred_at,
            (SELECT count(*) FROM trading_pipelines.risk_state_history AS halt
             WHERE halt.date = told.date::date AND halt.type = 'HALT') AS halts
        FROM public.daily_risk_state AS told
        LEFT JOIN LATERAL (
            SELECT * FROM trading_pipelines.risk_state_history AS history
            WHERE history.date = told.date::date AND history.type <> 'COOLDOWN'
            ORDER BY history.id DESC LIMIT 1
        ) AS seen ON true
        WHERE told.date::date >= (
            SELECT max(newest.date)::date FROM public.daily_risk_state AS newest) - days
        WINDOW by_date AS (ORDER BY told.date)
    ), unseen AS (
        SELECT concat(date, ' until ', to_char(cooldown_until AT TIME ZONE 'UTC',
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) AS source_id,
            date, 'COOLDOWN' AS type, updated_at AS occurred_at, bot_row
        FROM state WHERE cooldown_until IS NOT NULL
        UNION ALL
        SELECT concat(date, ' halted ', halts + 1), date, 'HALT',
            CASE WHEN updated_at <= seen_occurred_at THEN now() ELSE updated_at END, bot_row
        FROM state WHERE is_halted AND (seen_type IS NULL
            OR seen_type = 'HALT_LIFTED' AND next_is_halted IS NULL)
        UNION ALL
        SELECT concat(date, ' lifted ', halts), date, 'HALT_LIFTED',
            CASE WHEN lifted_at > seen_occurred_at THEN lifted_at ELSE now() END, bot_row
        FROM state, LATERAL (SELECT CASE WHEN is_halted THEN next_updated_at ELSE updated_at END
            ) AS lifted (lifted_at)
        WHERE seen_type = 'HALT' AND (NOT is_halted OR NOT next_is_halted)
    )
    SELECT unseen.* FROM unseen WHERE NOT EXISTS (
        SELECT FROM trading_pipelines.risk_state_history AS history
        WHERE history.source_id = unseen.source_id)
$$
"""
STATES = """
CREATE VIEW trading_pipelines.risk_states AS
SELECT source_id, date, type, occurred_at, bot_row FROM trading_pipelines.risk_state_history
UNION ALL
SELECT source_id, date, type, occurred_at, bot_row FROM trading_pipelines.unseen_risk_states();
COMMENT ON VIEW trading_pipelines.risk_states IS
    'risk_state_history, and what daily_risk_state says now that no sensor has seen yet.';
"""
# Twice: a halt is seen before its end is.
SEEN_BEFORE = """
INSERT INTO trading_pipelines.risk_state_history (source_id, date, type, occurred_at, bot_row)
SELECT source_id, date, type, occurred_at, bot_row
FROM trading_pipelines.unseen_risk_states(100000)
"""
# The words are those of `alerts/kinds`. A cooldown or a halt is of all symbols, and names none.
RISK_LOG = """
    SELECT audit.timestamp::timestamptz, (audit.timestamp AT TIME ZONE 'Asia/Seoul')::timestamp,
        'risk_audit', audit.id::text, audit.violation_type::text, 'WARNING',
        coalesce(nullif(audit.description, ''), audit.violation_type)::text,
        ordered.symbol::text, audit.related_order_id::uuid
    FROM public.risk_audit AS audit
    LEFT JOIN public.trading_history AS ordered ON ordered.id = audit.related_order_id
    UNION ALL
    SELECT occurred_at, occurred_at AT TIME ZONE 'Asia/Seoul', 'daily_risk_state', date::text, type,
        'CRITICAL',
        CASE type
            WHEN 'COOLDOWN' THEN format('%s: %s KST까지 신규 거래 중지', coalesce(losses, '쿨다운'),
                to_char((bot_row ->> 'cooldown_until')::timestamptz AT TIME ZONE 'Asia/Seoul',
                    'YYYY-MM-DD HH24:MI'))
            WHEN 'HALT' THEN '거래 정지: ' || concat_ws(', ',
                '손익 ' || trim_scale((bot_row ->> 'total_pnl')::numeric),
                '거래 ' || (bot_row ->> 'trade_count') || '회', losses)
            ELSE format('거래 정지 해제: %s의 정지가 풀림', date)
        END,
        NULL::text, NULL::uuid
    FROM trading_pipelines.risk_states, LATERAL (SELECT '연속 손실 '
        || nullif(greatest((bot_row ->> 'consecutive_losses')::integer, 1), 1) || '회'
        ) AS counted (losses)
"""
COMMENTS = {
    "risk_state_history.source_id": "the alert's, of the source daily_risk_state",
    "risk_state_history.date": "the key of the bot's row",
    "risk_state_history.occurred_at": "the row's updated_at when the state was first seen",
    "risk_state_history.bot_row": "the row as it was then",
    "volatility_forecast.is_high_volatility": "whether the variance is above the threshold; the "
    "bot refuses every entry while its key in Redis says true",
    "current_signals.is_high_volatility": "of the longest horizon",
}


def _korean_views(risk_log: str) -> str:
    """Return the statement that makes the function that makes the views."""
    made = korean_views.REFRESH.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
    made = made.replace("RISK_LOG_COLUMNS", korean_views.RISK_LOG_COLUMNS)
    return str(made.replace("RISK_LOG", risk_log))


def upgrade() -> None:
    """Create ours, and the risk log of what was first seen; `database.upgrade` makes that view."""
    for statement in (ONE_ALERT, INDEX, HISTORY, UNSEEN, STATES, SEEN_BEFORE, SEEN_BEFORE):
        op.execute(statement)
    op.execute(_korean_views(RISK_LOG))
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{quoted}'")


def downgrade() -> None:
    """Take away what was made, and make the risk log as before."""
    op.execute(_korean_views(korean_views.RISK_LOG))
    op.execute("SELECT trading_pipelines.refresh_korean_views()")
    op.execute("DROP VIEW trading_pipelines.risk_states")
    op.execute("DROP FUNCTION trading_pipelines.unseen_risk_states(integer)")
    op.drop_table("risk_state_history", schema="trading_pipelines")
    op.execute("DROP INDEX trading_pipelines.uq_alert_deliveries_decision")
    op.execute("DROP INDEX public.idx_agent_decisions_created_at")
