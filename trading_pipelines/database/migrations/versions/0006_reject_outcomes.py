"""Reject outcomes: what became of the bot's rejections, and their sums over a week.

Revision ID: 0006
"""

from alembic import op
from sqlalchemy import text

revision = "0006"
down_revision = "0005"

# A function's text is not a dependency: the bot may change any column of its table.
REJECTIONS = """
CREATE FUNCTION trading_pipelines.rejections(
    of_symbol text, since timestamptz, before timestamptz)
RETURNS TABLE (id bigint, decided_at timestamptz, price numeric, regime text, model text,
    reason text)
LANGUAGE sql STABLE AS $$
    SELECT told.id, told.created_at,
        nullif((to_jsonb(told)->>'price_at_decision')::numeric, 'NaN'),
        nullif(to_jsonb(told)->>'regime', ''), to_jsonb(told)->>'model_used',
        coalesce(told.reasoning, '')
    FROM public.agent_decisions AS told
    WHERE told.decision = 'REJECT' AND told.symbol = of_symbol
        AND told.created_at >= since AND told.created_at < before
$$;
COMMENT ON FUNCTION trading_pipelines.rejections IS
    'What the bot refused of a symbol in [since, before); one without a time is in none.';
CREATE FUNCTION trading_pipelines.rejection_versions(
    of_symbols text[], first_day date, last_day date)
RETURNS TABLE (symbol text, day date, version text)
LANGUAGE sql STABLE AS $$
    SELECT asked.symbol, asked.day,
        md5(string_agg(concat_ws(' ', told.id, told.created_at AT TIME ZONE 'UTC',
            to_jsonb(told)->>'price_at_decision', to_jsonb(told)->>'regime',
            to_jsonb(told)->>'model_used', told.reasoning), ';' ORDER BY told.id))
    FROM public.agent_decisions AS told
    JOIN trading_pipelines.candle_coverage AS asked ON asked.symbol = told.symbol
        AND asked.interval = '1m' AND asked.day = (told.created_at AT TIME ZONE 'UTC')::date
        AND told.created_at < date_trunc('hour', asked.fetched_until, 'UTC')
    WHERE told.decision = 'REJECT' AND told.symbol = ANY (of_symbols)
        AND told.created_at >= first_day::timestamp AT TIME ZONE 'UTC'
        AND told.created_at < (last_day + 1)::timestamp AT TIME ZONE 'UTC'
    GROUP BY asked.symbol, asked.day
$$;
COMMENT ON FUNCTION trading_pipelines.rejection_versions IS
    'By symbol and UTC day: differs when a rejection of an hour with candles is added or changed.';
"""
TABLES = """
CREATE TABLE trading_pipelines.reject_outcomes (
    symbol varchar(20) NOT NULL,
    day date NOT NULL,
    decision_id bigint NOT NULL,
    decided_at timestamptz NOT NULL,
    regime text NOT NULL,
    model text,
    reason_family text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'completed', 'no_price')),
    price numeric(20, 8),
    price_1h numeric(20, 8),
    price_4h numeric(20, 8),
    price_12h numeric(20, 8),
    price_24h numeric(20, 8),
    best_price numeric(20, 8),
    worst_price numeric(20, 8),
    exit_at timestamptz,
    exit_price numeric(20, 8),
    exit_reason text CHECK (exit_reason IN ('take_profit', 'stop_loss', 'time_limit')),
    result_krw numeric,
    verdict text CHECK (verdict IN ('saved', 'cost', 'even')),
    note text,
    PRIMARY KEY (symbol, day, decision_id)
);
CREATE INDEX idx_reject_outcomes_decided_at ON trading_pipelines.reject_outcomes (decided_at);
COMMENT ON TABLE trading_pipelines.reject_outcomes IS
    'One row a REJECT of the bot: the price afterwards, and what the entry would have made.';
CREATE VIEW trading_pipelines.reject_outcomes_kst AS
SELECT *, decided_at AT TIME ZONE 'Asia/Seoul' AS decided_at_kst,
    exit_at AT TIME ZONE 'Asia/Seoul' AS exit_at_kst
FROM trading_pipelines.reject_outcomes;
CREATE TABLE trading_pipelines.reject_summary (
    week date NOT NULL,
    grouping text NOT NULL CHECK (grouping IN ('all', 'symbol', 'regime', 'model', 'reason')),
    name text NOT NULL,
    rejections integer NOT NULL,
    judged integer NOT NULL,
    saved integer NOT NULL,
    saved_krw numeric NOT NULL,
    cost_krw numeric NOT NULL,
    hit_rate double precision,
    hit_rate_low double precision,
    hit_rate_high double precision,
    computed_from text NOT NULL,
    PRIMARY KEY (week, grouping, name)
);
COMMENT ON TABLE trading_pipelines.reject_summary IS
    'What the rejections of a Korean week came to, together and by what they had in common.';
"""
COMMENTS = {
    "reject_outcomes.day": "the UTC day of the decision",
    "reject_outcomes.decision_id": "the row of public.agent_decisions",
    "reject_outcomes.regime": "as the bot wrote it, else the newest label of the 3 hours before",
    "reject_outcomes.model": "the AI model that decided",
    "reject_outcomes.state": "pending: 24 hours or the exit are still to come",
    "reject_outcomes.price": "at the decision, KRW: the bot's own, else the last close",
    "reject_outcomes.price_1h": "last close one hour after the decision",
    "reject_outcomes.best_price": "highest in the 24 hours after the decision",
    "reject_outcomes.worst_price": "lowest in the 24 hours after the decision",
    "reject_outcomes.exit_at": "when the strategy would have left",
    "reject_outcomes.result_krw": "what the entry would have made after fees; a loss was saved",
    "reject_outcomes.note": "why there is no exit",
    "reject_summary.week": "the Monday (KST) it begins with",
    "reject_summary.judged": "of the rejections, those that saved or cost money",
    "reject_summary.saved": "of the judged, those that saved money",
    "reject_summary.hit_rate": "saved of judged, 0 to 1",
    "reject_summary.hit_rate_low": "lower end of its 95 % interval",
    "reject_summary.computed_from": "digest of the outcomes it was computed from",
}


def upgrade() -> None:
    """Create ours."""
    op.execute(text(REJECTIONS))
    op.execute(text(TABLES))
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{quoted}'")


def downgrade() -> None:
    """Take away what was made; all of it can be computed again."""
    op.execute(text("DROP VIEW trading_pipelines.reject_outcomes_kst"))
    for table in ("reject_outcomes", "reject_summary"):
        op.drop_table(table, schema="trading_pipelines")
    op.execute(text("DROP FUNCTION trading_pipelines.rejection_versions(text[], date, date)"))
    op.execute(text("DROP FUNCTION trading_pipelines.rejections(text, timestamptz, timestamptz)"))
    op.execute(
        text("DELETE FROM trading_pipelines.signal_coverage WHERE asset = 'reject_outcomes'")
    )
