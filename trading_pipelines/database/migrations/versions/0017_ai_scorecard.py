"""The AI's scorecard: what became of each CONFIRM too, and what the decisions came to.

Revision ID: 0017
"""

from alembic import op
from sqlalchemy import text

revision = "0017"
down_revision = "0016"

# As 0006 has it for REJECT alone, with the same versions, so that no outcome is due for this. A
# function's text is not a dependency: the bot may change any column of its table, to text too.
# What can't be a price is none: it would leave the other decisions of its day without an outcome.
DECISIONS = r"""
CREATE FUNCTION trading_pipelines.number_or_null(written text) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN written ~ '^\s*[+-]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][+-]?\d{1,2})?\s*$'
        THEN written::numeric END
$$;
COMMENT ON FUNCTION trading_pipelines.number_or_null IS
    'The number that a text of the bot''s says; NULL where it says none, or NaN or Infinity.';
CREATE FUNCTION trading_pipelines.decisions(
    of_decision text, of_symbol text, since timestamptz, before timestamptz)
RETURNS TABLE (id bigint, decided_at timestamptz, price numeric, regime text, model text,
    reason text)
LANGUAGE sql STABLE AS $$
    SELECT told.id, told.created_at, CASE WHEN said.price < 1e12 THEN said.price END,
        nullif(to_jsonb(told)->>'regime', ''), to_jsonb(told)->>'model_used',
        coalesce(told.reasoning, '')
    FROM public.agent_decisions AS told,
        trading_pipelines.number_or_null(to_jsonb(told)->>'price_at_decision') AS said (price)
    WHERE told.decision = of_decision AND told.symbol = of_symbol
        AND told.created_at >= since AND told.created_at < before
$$;
COMMENT ON FUNCTION trading_pipelines.decisions IS
    'What the bot''s AI decided so of a symbol in [since, before); without a time it is in none.';
CREATE FUNCTION trading_pipelines.decision_versions(
    of_decision text, of_symbols text[], first_day date, last_day date)
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
    WHERE told.decision = of_decision AND told.symbol = ANY (of_symbols)
        AND told.created_at >= first_day::timestamp AT TIME ZONE 'UTC'
        AND told.created_at < (last_day + 1)::timestamp AT TIME ZONE 'UTC'
    GROUP BY asked.symbol, asked.day
$$;
COMMENT ON FUNCTION trading_pipelines.decision_versions IS
    'By symbol and UTC day: differs when such a decision of an hour with candles is added or '
    'changed.';
"""
TABLES = """
CREATE TABLE trading_pipelines.confirm_outcomes (
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
    note text,
    PRIMARY KEY (symbol, day, decision_id)
);
CREATE INDEX idx_confirm_outcomes_decided_at ON trading_pipelines.confirm_outcomes (decided_at);
COMMENT ON TABLE trading_pipelines.confirm_outcomes IS
    'One row a CONFIRM of the bot: the price afterwards, and what the entry makes by the exits.';
CREATE VIEW trading_pipelines.decision_outcomes AS
SELECT 'CONFIRM' AS decision, symbol, day, decision_id, decided_at, regime, model, reason_family,
    state, price, exit_at, exit_price, result_krw FROM trading_pipelines.confirm_outcomes
UNION ALL
SELECT 'REJECT', symbol, day, decision_id, decided_at, regime, model, reason_family,
    state, price, exit_at, exit_price, result_krw FROM trading_pipelines.reject_outcomes;
COMMENT ON VIEW trading_pipelines.decision_outcomes IS
    'What each decision came to by the exits of its regime, whether the AI took the entry or not.';
CREATE TABLE trading_pipelines.ai_scorecard (
    week date NOT NULL,
    grouping text NOT NULL,
    name text NOT NULL,
    verdict text NOT NULL,
    days integer NOT NULL,
    days_needed integer,
    taken integer NOT NULL,
    taken_judged integer NOT NULL,
    taken_by_trades integer NOT NULL,
    taken_won integer NOT NULL,
    taken_stake_krw numeric NOT NULL,
    taken_krw numeric NOT NULL,
    taken_return double precision,
    taken_return_low double precision,
    taken_return_high double precision,
    refused integer NOT NULL,
    refused_judged integer NOT NULL,
    refused_won integer NOT NULL,
    refused_stake_krw numeric NOT NULL,
    refused_krw numeric NOT NULL,
    refused_return double precision,
    refused_return_low double precision,
    refused_return_high double precision,
    every_stake_krw numeric NOT NULL,
    every_krw numeric NOT NULL,
    every_return double precision,
    every_return_low double precision,
    every_return_high double precision,
    edge double precision,
    edge_low double precision,
    edge_high double precision,
    saved_krw numeric NOT NULL,
    saved_krw_low double precision,
    saved_krw_high double precision,
    saved_share double precision,
    chance_krw numeric,
    confidence double precision,
    right_share double precision,
    right_low double precision,
    right_high double precision,
    confidence_slope double precision,
    confidence_slope_low double precision,
    confidence_slope_high double precision,
    computed_from text NOT NULL,
    PRIMARY KEY (week, grouping, name)
);
COMMENT ON TABLE trading_pipelines.ai_scorecard IS
    'What the entries made that the AI took, that it refused, and all of them: thirteen weeks.';
"""
COMMENTS = {
    "confirm_outcomes.day": "the UTC day of the decision",
    "confirm_outcomes.decision_id": "the row of public.agent_decisions",
    "confirm_outcomes.regime": "as the bot wrote it, else the newest label of the 3 hours before",
    "confirm_outcomes.model": "the AI model that decided",
    "confirm_outcomes.state": "pending: 24 hours or the exit are still to come",
    "confirm_outcomes.price": "at the decision, KRW: the bot's own, else the last close",
    "confirm_outcomes.price_1h": "last close one hour after the decision",
    "confirm_outcomes.best_price": "highest in the 24 hours after the decision",
    "confirm_outcomes.worst_price": "lowest in the 24 hours after the decision",
    "confirm_outcomes.exit_at": "when the rules would have left, whatever the bot itself did",
    "confirm_outcomes.result_krw": "what the entry makes after fees, by the rules",
    "confirm_outcomes.note": "why there is no exit",
    "ai_scorecard.week": "the Monday (KST) of the last of its thirteen weeks",
    "ai_scorecard.grouping": "all, model, regime, symbol, reason, confidence; flag: not the AI's "
    "refusals but the volatility flag's",
    "ai_scorecard.verdict": "whether what was taken did better than what was refused",
    "ai_scorecard.days": "Korean days with a judged entry, of the side that has fewer",
    "ai_scorecard.days_needed": "such days that an edge of 3 % a trade takes to be found; empty "
    "without exits in the settings",
    "ai_scorecard.taken": "entries: of the AI its CONFIRM",
    "ai_scorecard.taken_judged": "of them, those whose result is known",
    "ai_scorecard.taken_by_trades": "of the judged, those by the bot's own trades",
    "ai_scorecard.taken_won": "of the judged, those that made money",
    "ai_scorecard.taken_stake_krw": "what was at stake in the judged",
    "ai_scorecard.taken_krw": "what they made after fees",
    "ai_scorecard.taken_return": "mean return an entry by the exits, 0.01 is 1 % of its stake",
    "ai_scorecard.taken_return_low": "lower end of its 95 % interval",
    "ai_scorecard.refused": "entries: of the AI its REJECT",
    "ai_scorecard.every_krw": "what taken and refused entries make together: without an AI",
    "ai_scorecard.edge": "taken_return less refused_return",
    "ai_scorecard.edge_low": "lower end of its 95 % interval; of a group, of all groups together",
    "ai_scorecard.saved_krw": "what refusing saved, below 0 what it cost",
    "ai_scorecard.saved_share": "the same of what was at stake in the refused",
    "ai_scorecard.chance_krw": "what refusing as much at random would have saved",
    "ai_scorecard.confidence": "mean confidence of the decisions judged, percent",
    "ai_scorecard.right_share": "of those, that were right: taken and won, or refused and lost",
    "ai_scorecard.confidence_slope": "how much more often right for one percent more confidence",
    "ai_scorecard.computed_from": "digest of what it was computed from",
}


def upgrade() -> None:
    """Create ours; the functions of 0006 stay for the version before."""
    op.execute(text(DECISIONS))
    op.execute(text(TABLES))
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{quoted}'")


def downgrade() -> None:
    """Take away what was made; all of it can be computed again."""
    op.execute("DROP VIEW trading_pipelines.decision_outcomes")
    for table in ("confirm_outcomes", "ai_scorecard"):
        op.drop_table(table, schema="trading_pipelines")
    for function in (
        "decision_versions(text, text[], date, date)",
        "decisions(text, text, timestamptz, timestamptz)",
        "number_or_null(text)",
    ):
        op.execute(f"DROP FUNCTION trading_pipelines.{function}")
    op.execute("DELETE FROM trading_pipelines.signal_coverage WHERE asset = 'confirm_outcomes'")
