"""Regime labels as a partitioned asset: candles_1h → regime_labels → the bot's regime_history.

How a regime is told belongs in `signals/regimes`, how its rows are written in `signals/engine`.
"""

import dagster as dg

from trading_pipelines.assets.about import BY_HAND, describe
from trading_pipelines.assets.computed import Materialized, code_version, days_before, materialize
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import REGIME_LABELS

GROUP = "regimes"


def build_assets(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Return regime_labels over `partitions`."""
    signal = REGIME_LABELS
    detection = settings.regime_detection

    @dg.asset(
        name=signal.asset,
        code_version=code_version(signal, settings),
        deps=[days_before(settings, signal, "candles_1h")],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        **describe(
            "The market regime of a symbol as of the close of each hour of a UTC day; each label "
            "is also a row of `public.regime_history`, which the bot reads. The average of the "
            f"last {detection.ma_fast_period} hourly closes of candles_1h is set against that of "
            f"{detection.ma_slow_period} (hours without candles dropped): more than "
            f"{detection.bull_threshold_pct:g} % above is BULL, more than "
            f"{-detection.bear_threshold_pct:g} % below BEAR, else SIDEWAYS; UNKNOWN with fewer "
            "candles.",
            row="per symbol and hour, at its start; its label holds as of its close",
            unit="averages in KRW, their difference in percent",
            refreshed="by `update_regime`, a minute or two after the hour's close, and again when "
            "a candle of its window has changed",
            backfill=f"`trading-pipelines backfill --with-signals`, or {BY_HAND}",
            group=GROUP,
            kinds={"python", "postgres"},
            table="trading_pipelines.regime_labels",
            interval="1h",
        ),
    )
    def regime_labels(
        context: dg.AssetExecutionContext, database: DatabaseResource
    ) -> Materialized:
        yield from materialize(context, database, signal, settings)

    return [regime_labels]
