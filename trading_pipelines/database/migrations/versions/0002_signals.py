"""Signals: regime labels, realised variance, the volatility model, its forecasts and their score.

Revision ID: 0002
"""

from alembic import op
from sqlalchemy import text

revision = "0002"
down_revision = "0001"

# The contract: the bot's own DDL, made only where the bot has not made it. Its coin_symbol is
# varchar(10), which is too short for KRW-BIGTIME.
REGIME_HISTORY = """
CREATE TABLE public.regime_history (
    id bigserial PRIMARY KEY,
    detected_at timestamptz,
    regime varchar(10) NOT NULL,
    ma50 numeric(20, 8),
    ma200 numeric(20, 8),
    diff_pct numeric(10, 4),
    coin_symbol varchar(20) NOT NULL
)
"""
REGIME_HISTORY_INDEX = """
CREATE INDEX idx_regime_history_symbol_detected_at
    ON public.regime_history (coin_symbol, detected_at DESC)
"""

TABLES = """
CREATE TABLE trading_pipelines.signal_coverage (
    asset text NOT NULL,
    symbol varchar(20) NOT NULL,
    day date NOT NULL,
    computed_until timestamptz,
    inputs_from date,
    inputs text,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id text NOT NULL,
    failures integer NOT NULL DEFAULT 0,
    error text,
    retry_at timestamptz,
    PRIMARY KEY (asset, symbol, day)
);
CREATE TABLE trading_pipelines.regime_labels (
    symbol varchar(20) NOT NULL,
    hour timestamptz NOT NULL,
    label text NOT NULL CHECK (label IN ('BULL', 'SIDEWAYS', 'BEAR', 'UNKNOWN')),
    ma_fast numeric(28, 8),
    ma_slow numeric(28, 8),
    diff_pct numeric(20, 8),
    candles integer NOT NULL,
    empty_hours integer NOT NULL,
    hysteresis_label text NOT NULL,
    history_id bigint,
    PRIMARY KEY (symbol, hour)
);
CREATE TABLE trading_pipelines.realized_volatility (
    symbol varchar(20) NOT NULL,
    hour timestamptz NOT NULL,
    realized_variance double precision,
    estimator text NOT NULL,
    zero_share double precision NOT NULL,
    minutes smallint NOT NULL,
    PRIMARY KEY (symbol, hour)
);
CREATE TABLE trading_pipelines.volatility_model (
    day date NOT NULL,
    horizon smallint NOT NULL,
    status text NOT NULL,
    model jsonb NOT NULL,
    PRIMARY KEY (day, horizon)
);
CREATE TABLE trading_pipelines.volatility_forecast (
    symbol varchar(20) NOT NULL,
    as_of timestamptz NOT NULL,
    horizon smallint NOT NULL,
    valid_until timestamptz NOT NULL,
    model_day date NOT NULL,
    status text NOT NULL,
    variance double precision,
    low double precision,
    high double precision,
    annualized_volatility double precision,
    threshold double precision,
    is_high_volatility boolean,
    PRIMARY KEY (symbol, as_of, horizon)
);
CREATE TABLE trading_pipelines.garch_baseline (
    symbol varchar(20) NOT NULL,
    as_of timestamptz NOT NULL,
    horizon smallint NOT NULL,
    converged boolean NOT NULL,
    warnings text,
    variance double precision,
    PRIMARY KEY (symbol, as_of, horizon)
);
CREATE TABLE trading_pipelines.volatility_score (
    symbol varchar(20) NOT NULL,
    day date NOT NULL,
    horizon smallint NOT NULL,
    forecasts smallint NOT NULL,
    qlike double precision,
    qlike_garch double precision,
    qlike_random_walk double precision,
    bias double precision,
    intervals smallint NOT NULL,
    covered smallint NOT NULL,
    flags smallint NOT NULL,
    flagged smallint NOT NULL,
    high smallint NOT NULL,
    flagged_and_high smallint NOT NULL,
    PRIMARY KEY (symbol, day, horizon)
)
"""
COMMENTS = {
    "signal_coverage.symbol": "empty for an asset that is pooled over the symbols",
    "signal_coverage.day": "the UTC day",
    "signal_coverage.computed_until": "as of when the partition was computed",
    "signal_coverage.inputs_from": "first day whose candles it depends on, where that varies",
    "signal_coverage.inputs": "digest of the versions of the partitions it was computed from",
    "signal_coverage.changed_at": "when a row of the partition last changed",
    "signal_coverage.retry_at": "after a failure: not tried again by a schedule before this",
    "regime_labels.hour": "start of the hour; the label is as of its close",
    "regime_labels.ma_fast": "simple moving average of hourly closes, KRW",
    "regime_labels.diff_pct": "fast over slow average, percent",
    "regime_labels.candles": "hourly candles in the window",
    "regime_labels.empty_hours": "hours without a candle inside the window",
    "regime_labels.hysteresis_label": "a diagnostic: a trend is left later than it is entered",
    "regime_labels.history_id": "the row of public.regime_history that says the same",
    "realized_volatility.hour": "start of the hour; usable from its close on",
    "realized_volatility.realized_variance": "of the hour; empty where nothing was traded",
    "realized_volatility.estimator": "5m_returns, or parkinson where ticks drown the signal",
    "realized_volatility.zero_share": "of the five-minute returns of the last 7 days",
    "volatility_model.day": "fitted on what had closed at the end of this UTC day",
    "volatility_model.horizon": "hours ahead",
    "volatility_forecast.as_of": "valid from; only what had closed by then was used",
    "volatility_forecast.variance": "mean hourly variance over the horizon",
    "volatility_forecast.low": "lower end of the 90 % interval of the variance",
    "volatility_forecast.annualized_volatility": "of the variance; 1 is 100 % a year",
    "volatility_forecast.threshold": "variance above which the symbol's volatility is high",
    "volatility_score.day": "the UTC day in which what was forecast had happened",
    "volatility_score.forecasts": "scored: those that GARCH and the random walk have as well",
    "volatility_score.qlike": "mean loss of our forecasts; lower is better",
    "volatility_score.bias": "mean log of realised over forecast variance",
    "volatility_score.covered": "of the intervals, those that held",
    "volatility_score.flagged": "of the flags that could be told, those that said high",
    "volatility_score.high": "of the flags that could be told, hours that were high",
}

# A tick asks for many days of each symbol.
COVERAGE_INDEX = """
CREATE INDEX idx_candle_coverage_symbol_day ON trading_pipelines.candle_coverage (symbol, day)
"""
# What a partition is computed from, each with a version that changes when its rows do. An open day
# of minutes has a new version with each closed hour, not with each minute.
INPUT_VERSIONS = """
CREATE VIEW trading_pipelines.input_versions AS
SELECT 'candles_' || interval AS asset, symbol, day,
    date_trunc('hour', fetched_until, 'UTC') AS computed_until,
    concat_ws(' ', date_trunc('hour', fetched_until, 'UTC'),
        CASE WHEN interval <> '1m' OR status = 'complete' THEN changed_at END) AS version
FROM trading_pipelines.candle_coverage
WHERE fetched_until > day::timestamp AT TIME ZONE 'UTC'
UNION ALL
SELECT asset, symbol, day, computed_until, concat_ws(' ', computed_until, changed_at)
FROM trading_pipelines.signal_coverage
WHERE computed_until IS NOT NULL
"""
CURRENT_SIGNALS = """
CREATE VIEW trading_pipelines.current_signals AS
SELECT symbols.symbol,
    label.label AS regime,
    (SELECT min(same.hour) + interval '1 hour' FROM trading_pipelines.regime_labels AS same
     WHERE same.symbol = symbols.symbol AND same.hour > coalesce(
        (SELECT max(other.hour) FROM trading_pipelines.regime_labels AS other
         WHERE other.symbol = symbols.symbol AND other.label <> label.label), '-infinity')
    ) AS regime_since,
    label.diff_pct AS regime_diff_pct,
    label.hour + interval '1 hour' AS regime_as_of,
    now() - (label.hour + interval '1 hour') AS regime_age,
    forecast.annualized_volatility, forecast.is_high_volatility,
    forecast.status AS volatility_status, forecast.horizon AS volatility_horizon,
    forecast.as_of AS volatility_as_of, now() - forecast.as_of AS volatility_age,
    forecast.valid_until AS volatility_valid_until
FROM (
    SELECT DISTINCT symbol FROM trading_pipelines.signal_coverage WHERE symbol <> ''
) AS symbols
LEFT JOIN LATERAL (
    SELECT * FROM trading_pipelines.regime_labels WHERE symbol = symbols.symbol
    ORDER BY hour DESC LIMIT 1
) AS label ON true
LEFT JOIN LATERAL (
    SELECT * FROM trading_pipelines.volatility_forecast WHERE symbol = symbols.symbol
    ORDER BY as_of DESC, horizon DESC LIMIT 1
) AS forecast ON true
ORDER BY symbols.symbol
"""
ROLLING_SCORE = """
CREATE VIEW trading_pipelines.volatility_score_30d AS
SELECT symbol, day, horizon, sum(forecasts) OVER last_30_days AS forecasts,
    sum(forecasts * qlike) OVER last_30_days
        / nullif(sum(forecasts * qlike_garch) OVER last_30_days, 0) AS ratio_to_garch,
    sum(forecasts * qlike) OVER last_30_days
        / nullif(sum(forecasts * qlike_random_walk) OVER last_30_days, 0) AS ratio_to_random_walk,
    sum(covered) OVER last_30_days::double precision
        / nullif(sum(intervals) OVER last_30_days, 0) AS coverage,
    sum(flagged_and_high) OVER last_30_days::double precision
        / nullif(sum(flagged) OVER last_30_days, 0) AS flag_precision,
    sum(flagged) OVER last_30_days::double precision
        / nullif(sum(flags) OVER last_30_days, 0) AS flag_rate,
    sum(high) OVER last_30_days::double precision
        / nullif(sum(flags) OVER last_30_days, 0) AS high_rate
FROM trading_pipelines.volatility_score
WINDOW last_30_days AS (PARTITION BY symbol, horizon ORDER BY day
    RANGE BETWEEN interval '29 days' PRECEDING AND CURRENT ROW)
"""


def upgrade() -> None:
    """Adopt or create the bot's table, create ours."""
    bind = op.get_bind()
    if bind.execute(text("SELECT to_regclass('public.regime_history')")).scalar() is None:
        op.execute(REGIME_HISTORY)
        op.execute(REGIME_HISTORY_INDEX)
    for statement in TABLES.split(";"):
        op.execute(statement)
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{quoted}'")
    for statement in (COVERAGE_INDEX, INPUT_VERSIONS, CURRENT_SIGNALS, ROLLING_SCORE):
        op.execute(statement)


def downgrade() -> None:
    """Refuse: restore a backup instead."""
    raise NotImplementedError("there is no way back from 0002: restore a backup")
