"""Which function computes which signal, and which table holds its rows.

Only this module imports the computing ones, and with them every computing library: it is imported
in the function that computes, never at the top of a module.
"""

from collections.abc import Sequence
from datetime import date

import psycopg

from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import tables
from trading_pipelines.signals.catalogue import (
    CONFIRM_OUTCOMES,
    GARCH_BASELINE,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    REJECT_OUTCOMES,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    VOLATILITY_SCORE,
    Signal,
)
from trading_pipelines.signals.engine import Computation, ComputedPartition, compute_partitions
from trading_pipelines.signals.regimes.partition import compute_regime_labels, sync_history
from trading_pipelines.signals.rejections.partition import compute_outcomes
from trading_pipelines.signals.volatility.partitions import (
    compute_garch_baseline,
    compute_realized_volatility,
    compute_volatility_forecast,
    compute_volatility_model,
    compute_volatility_score,
)


def compute(
    connection: psycopg.Connection,
    signal: Signal,
    symbols: Sequence[str],
    days: Sequence[date],
    settings: StrategySettings,
    run_id: str,
) -> list[ComputedPartition]:
    """Bring the signal's partitions up to date with their inputs; see `compute_partitions`."""
    return compute_partitions(
        connection, signal, COMPUTATIONS[signal.asset], symbols, days, settings, run_id
    )


COMPUTATIONS = {
    REGIME_LABELS.asset: Computation(
        compute_regime_labels, tables.REGIME_LABELS, after=sync_history
    ),
    REALIZED_VOLATILITY.asset: Computation(compute_realized_volatility, tables.REALIZED_VOLATILITY),
    VOLATILITY_MODEL.asset: Computation(compute_volatility_model, tables.VOLATILITY_MODEL),
    VOLATILITY_FORECAST.asset: Computation(compute_volatility_forecast, tables.VOLATILITY_FORECAST),
    GARCH_BASELINE.asset: Computation(compute_garch_baseline, tables.GARCH_BASELINE),
    VOLATILITY_SCORE.asset: Computation(compute_volatility_score, tables.VOLATILITY_SCORE),
    REJECT_OUTCOMES.asset: Computation(compute_outcomes, tables.REJECT_OUTCOMES),
    CONFIRM_OUTCOMES.asset: Computation(compute_outcomes, tables.CONFIRM_OUTCOMES),
}
