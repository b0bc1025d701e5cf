"""Regime labels as a partitioned asset: candles_1h → regime_labels → the bot's regime_history.

Thin: how a regime is told is in `signals/regime`, how its rows are written in `signals/compute`.
"""

import dagster as dg

from trading_pipelines.assets.shared import (
    OWNERS,
    days_before,
    materialize,
    no_partition_left_failed,
)
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings import StrategySettings
from trading_pipelines.signals import due

GROUP = "regimes"


def build_assets(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Return regime_labels over `partitions`."""
    signal = due.REGIME_LABELS
    detection = settings.regime_detection

    @dg.asset(
        name=signal.asset,
        deps=[days_before(settings, signal, "candles_1h")],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        owners=OWNERS,
        kinds={"python", "postgres"},
        tags={"interval": "1h"},
        description=(
            "The market regime of a symbol as of the close of each hour of a UTC day, in "
            "`trading_pipelines.regime_labels`, and as the row that the bot reads in "
            f"`public.regime_history`: the average of the last {detection.ma_fast_period} hourly "
            f"closes against that of {detection.ma_slow_period} (hours without candles dropped); "
            f"more than {detection.bull_threshold_pct:g} % above is BULL, more than "
            f"{-detection.bear_threshold_pct:g} % below BEAR, else SIDEWAYS; UNKNOWN with fewer "
            "candles. `update_regime` labels each hour when it has closed, and again when a candle "
            "of its window has changed; any past stretch is a backfill of its partitions."
        ),
    )
    def regime_labels(context: dg.AssetExecutionContext, database: DatabaseResource) -> None:
        materialize(context, database, signal, settings)

    return [regime_labels]


def build_checks(settings: StrategySettings) -> list[dg.AssetChecksDefinition]:
    """Return the check that no day of labels is left failed."""
    return [no_partition_left_failed(due.REGIME_LABELS.asset, settings)]
