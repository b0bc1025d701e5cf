"""What a volatility forecast is combined of, its adaptive interval and the odds of its flag.

Revision ID: 0020
"""

from alembic import op
from sqlalchemy import text

revision = "0020"
down_revision = "0018"

COLUMNS = {
    "volatility_forecast": {
        "made_of": ("text", "the members that the variance is the mean of, joined by +; empty "
                    "where there is none"),
        "har": ("double precision", "the variance by the model of all symbols; empty where its "
                "history is too short"),
        "garch": ("double precision", "the variance by the newest fit of garch_baseline; empty "
                  "where that did not converge"),
        "ewma": ("double precision", "the variance by an exponentially weighted mean of 30 days"),
        "interval_width": ("double precision", "by how much the interval of the logarithm is wider "
                           "than the model''s residuals say, so that nine in ten hold; 1: as wide"),
        "interval_status": ("text", "ADAPTED; SHORT: to fewer than 14 days of outcomes; NONE: no "
                            "interval"),
        "probability_high": ("double precision", "that the realised variance of the horizon will "
                             "be above the threshold, 0 to 1"),
        "flag_level": ("double precision", "the probability from which on the flag is up, so that "
                       "it is as often as the threshold was exceeded"),
    },
    "garch_baseline": {
        "fit": ("jsonb", "at a UTC midnight: the parameters fitted then, by which the forecasts "
                "of the next 24 hours are made"),
    },
}  # fmt: skip
COMMENTS = {
    "volatility_forecast.is_high_volatility": (
        "whether the probability to be above the threshold reaches flag_level; the bot refuses "
        "every entry while its key in Redis says true",
        "whether the variance is above the threshold; the bot refuses every entry while its key "
        "in Redis says true",
    ),
    "volatility_forecast.variance": (
        "mean hourly variance over the horizon: the mean of what made_of names",
        "mean hourly variance over the horizon",
    ),
}


def upgrade() -> None:
    """Add the columns; the version before goes on without them."""
    for table, columns in COLUMNS.items():
        for name, (kind, comment) in columns.items():
            op.execute(text(f"ALTER TABLE trading_pipelines.{table} ADD COLUMN {name} {kind}"))
            op.execute(text(f"COMMENT ON COLUMN trading_pipelines.{table}.{name} IS '{comment}'"))
    _comment(0)


def downgrade() -> None:
    """Take them away."""
    for table, columns in COLUMNS.items():
        for name in columns:
            op.drop_column(table, name, schema="trading_pipelines")
    _comment(1)


def _comment(place: int) -> None:
    for column, comments in COMMENTS.items():
        op.execute(text(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{comments[place]}'"))
