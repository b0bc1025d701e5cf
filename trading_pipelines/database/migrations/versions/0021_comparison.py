"""The volatility models side by side, and what share of the high hours the flag found.

Revision ID: 0021
"""

from alembic import op
from sqlalchemy import text

revision = "0021"
down_revision = "0020"

SCHEMA = """
CREATE TABLE trading_pipelines.volatility_comparison (
    symbol varchar(20) NOT NULL,
    horizon smallint NOT NULL,
    model text NOT NULL,
    as_of timestamptz NOT NULL,
    forecasts integer NOT NULL,
    qlike double precision,
    qlike_ours double precision,
    ratio_to_garch double precision,
    t_value double precision,
    verdict text NOT NULL,
    set_forecasts integer NOT NULL,
    set_p_value double precision,
    told text NOT NULL,
    PRIMARY KEY (symbol, horizon, model)
);
COMMENT ON TABLE trading_pipelines.volatility_comparison IS
    'Our forecasts, their members, GARCH, EWMA and the random walk over 90 days: who is better.';
CREATE VIEW trading_pipelines.volatility_comparison_kst AS
SELECT *, as_of AT TIME ZONE 'Asia/Seoul' AS as_of_kst
FROM trading_pipelines.volatility_comparison;
"""
COMMENTS = {
    "volatility_comparison.symbol": "all: of each hour the mean over the symbols",
    "volatility_comparison.horizon": "hours ahead",
    "volatility_comparison.model": "ours; har: the model of all symbols; garch; ewma; random_walk",
    "volatility_comparison.as_of": "of the 90 days before it are the forecasts; their horizons had "
    "ended by then",
    "volatility_comparison.forecasts": "those that both made, this model and ours",
    "volatility_comparison.qlike": "its mean loss in these; lower is better",
    "volatility_comparison.qlike_ours": "our mean loss in the same",
    "volatility_comparison.ratio_to_garch": "its loss over GARCH's, of the forecasts that these "
    "two made; below 1 it is better",
    "volatility_comparison.t_value": "Diebold-Mariano, our loss less its loss; below 0 ours is "
    "better",
    "volatility_comparison.verdict": "what the t-value tells at 5 %, or why there is none",
    "volatility_comparison.set_forecasts": "those that all models made: of them is the confidence "
    "set",
    "volatility_comparison.set_p_value": "of the model confidence set; 0.1 or less: is not the "
    "best",
    "volatility_comparison.told": "whether it is in the 90 % model confidence set, or why that is "
    "not known",
    "volatility_comparison_kst.as_of_kst": "as_of in Korean time (Asia/Seoul)",
}
# Of the days of each window, as 0002 has it; what is new comes last.
ROLLING = """
CREATE OR REPLACE VIEW trading_pipelines.volatility_score_{days}d AS
SELECT symbol, day, horizon, sum(forecasts) OVER last_days AS forecasts,
    sum(forecasts * qlike) OVER last_days
        / nullif(sum(forecasts * qlike_garch) OVER last_days, 0) AS ratio_to_garch,
    sum(forecasts * qlike) OVER last_days
        / nullif(sum(forecasts * qlike_random_walk) OVER last_days, 0) AS ratio_to_random_walk,
    sum(covered) OVER last_days::double precision
        / nullif(sum(intervals) OVER last_days, 0) AS coverage,
    sum(flagged_and_high) OVER last_days::double precision
        / nullif(sum(flagged) OVER last_days, 0) AS flag_precision,
    sum(flagged) OVER last_days::double precision
        / nullif(sum(flags) OVER last_days, 0) AS flag_rate,
    sum(high) OVER last_days::double precision
        / nullif(sum(flags) OVER last_days, 0) AS high_rate,
    sum(flagged_and_high) OVER last_days::double precision
        / nullif(sum(high) OVER last_days, 0) AS flag_recall
FROM trading_pipelines.volatility_score
WINDOW last_days AS (PARTITION BY symbol, horizon ORDER BY day
    RANGE BETWEEN interval '{before} days' PRECEDING AND CURRENT ROW)
"""
OF_A_VIEW = {
    "ratio_to_garch": "our loss over GARCH's; below 1 ours is better",
    "ratio_to_random_walk": "the same to the random walk",
    "coverage": "share of the 90 % intervals that held, 0 to 1",
    "flag_precision": "share of the flags saying high that were right",
    "flag_rate": "share of the flags that said high",
    "high_rate": "share of the hours that were high: the base rate of the precision",
    "flag_recall": "share of the high hours that the flag had said",
}


def upgrade() -> None:
    """Add the table and the views, and a column to the view of 30 days."""
    op.execute(text(SCHEMA))
    for days in (30, 90):
        op.execute(ROLLING.format(days=days, before=days - 1))
    comments = COMMENTS | {
        f"volatility_score_{days}d.{column}": comment
        for days in (30, 90)
        for column, comment in OF_A_VIEW.items()
    }
    for column, comment in comments.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{quoted}'")


def downgrade() -> None:
    """Take them away; the view of 30 days keeps its new column, which harms nobody."""
    op.execute("DROP VIEW trading_pipelines.volatility_score_90d")
    op.execute("DROP VIEW trading_pipelines.volatility_comparison_kst")
    op.drop_table("volatility_comparison", schema="trading_pipelines")
