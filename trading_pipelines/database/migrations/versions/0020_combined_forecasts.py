"""What a volatility forecast is combined of, its adaptive interval and the odds of its flag.

Revision ID: 0020
"""

from alembic import op
from sqlalchemy import text

revision = "0020"
down_revision = "0019"

SCHEMA = """
ALTER TABLE trading_pipelines.volatility_forecast
    ADD COLUMN made_of text,
    ADD COLUMN har double precision,
    ADD COLUMN garch double precision,
    ADD COLUMN ewma double precision,
    ADD COLUMN interval_width double precision,
    ADD COLUMN interval_status text,
    ADD COLUMN probability_high double precision,
    ADD COLUMN flag_level double precision;
ALTER TABLE trading_pipelines.garch_baseline ADD COLUMN fit jsonb;
COMMENT ON COLUMN trading_pipelines.volatility_forecast.made_of IS
    'the members that the variance is the mean of, joined by +; empty without a variance';
COMMENT ON COLUMN trading_pipelines.volatility_forecast.har IS
    'the variance by the model of all symbols; empty where its history is too short';
COMMENT ON COLUMN trading_pipelines.volatility_forecast.garch IS
    'the variance by the newest fit of garch_baseline; empty where that did not converge';
COMMENT ON COLUMN trading_pipelines.volatility_forecast.ewma IS
    'the variance by an exponentially weighted mean of 30 days';
COMMENT ON COLUMN trading_pipelines.volatility_forecast.interval_width IS
    'of the interval, over what the residuals of the model say; found so that nine in ten hold';
COMMENT ON COLUMN trading_pipelines.volatility_forecast.interval_status IS
    'ADAPTED; SHORT: the width is adapted to fewer than 14 days of outcomes; NONE: no interval';
COMMENT ON COLUMN trading_pipelines.volatility_forecast.probability_high IS
    'that the realised variance of the horizon will be above the threshold, .01 to .99';
COMMENT ON COLUMN trading_pipelines.volatility_forecast.flag_level IS
    'the probability above which the flag is up, as often as the threshold was passed';
COMMENT ON COLUMN trading_pipelines.garch_baseline.fit IS
    'at a UTC midnight: what was fitted then, by which the next 24 hours are forecast';
"""
WHAT_IT_DOES = "the bot refuses every entry while its key in Redis says true"
COMMENTS = {
    "variance": (
        "mean hourly variance over the horizon: the mean of what made_of names",
        "mean hourly variance over the horizon",
    ),
    "is_high_volatility": (
        f"whether probability_high is above flag_level; {WHAT_IT_DOES}",
        f"whether the variance is above the threshold; {WHAT_IT_DOES}",
    ),
}


def upgrade() -> None:
    """Add the columns; the version before goes on without them."""
    op.execute(text(SCHEMA))
    _comment(0)


def downgrade() -> None:
    """Take them away."""
    for column in (
        "made_of", "har", "garch", "ewma",
        "interval_width", "interval_status", "probability_high", "flag_level",
    ):  # fmt: skip
        op.drop_column("volatility_forecast", column, schema="trading_pipelines")
    op.drop_column("garch_baseline", "fit", schema="trading_pipelines")
    _comment(1)


def _comment(place: int) -> None:
    for column, comments in COMMENTS.items():
        name = f"trading_pipelines.volatility_forecast.{column}"
        op.execute(text(f"COMMENT ON COLUMN {name} IS '{comments[place]}'"))
