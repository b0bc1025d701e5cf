"""Comments on the columns whose names do not say it all; docs/assets/ is written from them.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"

COMMENTS = {
    "candle_coverage.error": "what the last attempt failed with; empty after a good one",
    "candles_1h.timestamp": "start of the hour",
    "candles_1h.volume": "in the coin",
    "candles_1h.minutes": "minutes of the hour in which something was traded",
    "request_slots.next_at": "the next free slot of the whole installation",
    "request_slots.recent": "the slots taken last, the newest first",
    "request_slots.blocked_until": "the exchange has blocked this address until then",
    "request_slots.blocks": "blocks in a row, each within a day of the one before",
    "signal_coverage.run_id": "the Dagster root run of the last attempt",
    "signal_coverage.failures": "failed attempts since the last good one",
    "signal_coverage.error": "what the last attempt failed with; empty after a good one",
    "regime_labels.label": "UNKNOWN: fewer candles than the window needs",
    "regime_labels.ma_slow": "the longer average of hourly closes, KRW",
    "realized_volatility.minutes": "minutes of the hour in which something was traded",
    "volatility_model.status": "OK, or why there is no full model: docs/architecture.md",
    "volatility_model.model": "parameters, sample size and all else that a forecast needs",
    "volatility_forecast.horizon": "hours ahead",
    "volatility_forecast.valid_until": "end of the horizon",
    "volatility_forecast.model_day": "the UTC day of the model that made it",
    "volatility_forecast.status": "OK, or why there is no full forecast: docs/architecture.md",
    "volatility_forecast.high": "upper end of the 90 % interval of the variance",
    "volatility_forecast.is_high_volatility": "whether the variance is above the threshold",
    "garch_baseline.as_of": "valid from; only what had closed by then was used",
    "garch_baseline.horizon": "hours ahead",
    "garch_baseline.converged": "whether the fit did; its warnings say why not",
    "garch_baseline.variance": "mean hourly variance over the horizon",
    "volatility_score.horizon": "hours ahead",
    "volatility_score.qlike_garch": "the same of GARCH, for the same hours",
    "volatility_score.qlike_random_walk": "the same of the random walk, for the same hours",
    "volatility_score.intervals": "forecasts with an interval whose outcome is known",
    "volatility_score.flags": "flags that could be told, and whose outcome is known",
    "volatility_score.flagged_and_high": "of the flags that said high, those that were right",
    "volatility_score_30d.ratio_to_garch": "our loss over GARCH's; below 1 ours is better",
    "volatility_score_30d.ratio_to_random_walk": "the same to the random walk",
    "volatility_score_30d.coverage": "share of the 90 % intervals that held, 0 to 1",
    "volatility_score_30d.flag_precision": "share of the flags saying high that were right",
    "volatility_score_30d.flag_rate": "share of the flags that said high",
    "volatility_score_30d.high_rate": "share of the hours that were high",
    "current_signals.regime_since": "as-of of the first label of the unbroken run",
    "current_signals.regime_diff_pct": "fast over slow average, percent",
    "current_signals.regime_as_of": "close of the newest labelled hour",
    "current_signals.annualized_volatility": "1 is 100 % a year",
    "current_signals.volatility_horizon": "hours ahead",
    "current_signals.volatility_as_of": "the newest forecast's, of its longest horizon",
    "alert_kinds.is_on": "the switch in the settings, as it was seen last",
    "alert_deliveries.source_id": "the row's key in the source",
    "alert_deliveries.created_at": "when it was entered",
    "alert_deliveries.attempts": "tries since it was entered or replayed",
    "alert_deliveries.delivered_at": "when Discord had taken it",
    "alert_deliveries.message_id": "Discord's",
    "alert_attempts.number": "of the tries since it was entered or replayed",
    "alert_attempts.seconds": "from the post to its answer",
}


def upgrade() -> None:
    """Say them."""
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS '{quoted}'")


def downgrade() -> None:
    """Take them away."""
    for column in COMMENTS:
        op.execute(f"COMMENT ON COLUMN trading_pipelines.{column} IS NULL")
