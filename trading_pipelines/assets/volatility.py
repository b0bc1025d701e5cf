"""Volatility as partitioned assets: realised, the model, its forecasts, a baseline and a score.

Thin: the arithmetic is in `signals/`. candles_1m → realized_volatility → volatility_model →
volatility_forecast → volatility_score ← garch_baseline ← candles_1h.
"""

from collections.abc import Sequence

import dagster as dg

from trading_pipelines.assets.shared import (
    OWNERS,
    days_before,
    materialize,
    no_partition_left_failed,
    same_day,
)
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings import StrategySettings
from trading_pipelines.signals import due, score

GROUP = "volatility"
DESCRIPTIONS = {
    due.REALIZED_VOLATILITY: (
        "The realised variance of each closed hour of a symbol's UTC day, from five-minute returns "
        "on the full grid, in `trading_pipelines.realized_volatility`; from the hour's range "
        "(Parkinson) where more than 30 % of a week's returns are zero, as for KRW-DOGE's tick. An "
        "hour without a trade has none."
    ),
    due.VOLATILITY_MODEL: (
        "One ridge regression for all symbols on log realised variances (HAR), a partition a UTC "
        "day: fitted on what had closed at its end, refitted daily at 00:05 UTC. Kept as JSON in "
        "`trading_pipelines.volatility_model`, a row a horizon, with everything that a forecast "
        "needs. The status says when there is not enough history (FALLBACK, UNKNOWN_HISTORY) or "
        "no movement (DEGENERATE)."
    ),
    due.VOLATILITY_FORECAST: (
        "The variance of a symbol's next hours (`volatility.horizons`) as of the close of each "
        "hour of a UTC day, with a 90 % interval, annualised volatility, the symbol's own "
        "threshold and whether it is high, in `trading_pipelines.volatility_forecast`. The last "
        "one of day D speaks for D + 1."
    ),
    due.GARCH_BASELINE: (
        "What GARCH(1,1) on hourly returns, refitted daily, says to the same questions as "
        "volatility_forecast, in `trading_pipelines.garch_baseline`; whether it converged is said. "
        "Closed days only."
    ),
    due.VOLATILITY_SCORE: (
        "The forecasts whose horizon ended in a symbol's UTC day against what happened: QLIKE of "
        "ours, of GARCH and of the random walk, bias, coverage of the intervals, whether the flag "
        "was right, in `trading_pipelines.volatility_score`; over 30 days in the view "
        "`volatility_score_30d`. Closed days only."
    ),
}


def build_assets(
    settings: StrategySettings,
    partitions: dg.MultiPartitionsDefinition,
    days: dg.DailyPartitionsDefinition,
) -> list[dg.AssetsDefinition]:
    """Return the assets: volatility_model over `days`, the others over `partitions`."""

    def asset(signal: due.Signal, deps: Sequence[dg.AssetDep]) -> dg.AssetsDefinition:
        @dg.asset(
            name=signal.asset,
            deps=deps,
            partitions_def=days if signal.pooled else partitions,
            backfill_policy=dg.BackfillPolicy.single_run(),
            group_name=GROUP,
            owners=OWNERS,
            kinds={"python", "postgres"},
            description=DESCRIPTIONS[signal],
        )
        def computed(context: dg.AssetExecutionContext, database: DatabaseResource) -> None:
            materialize(context, database, signal, settings)

        return computed

    def looking_back(signal: due.Signal, *upstream: str) -> list[dg.AssetDep]:
        return [days_before(settings, signal, name) for name in upstream]

    realized = due.REALIZED_VOLATILITY
    forecast = due.VOLATILITY_FORECAST
    return [
        asset(realized, looking_back(realized, "candles_1m")),
        asset(due.VOLATILITY_MODEL, [same_day(realized.asset)]),
        asset(
            forecast,
            [same_day(due.VOLATILITY_MODEL.asset), *looking_back(forecast, realized.asset)],
        ),
        asset(due.GARCH_BASELINE, looking_back(due.GARCH_BASELINE, "candles_1h")),
        asset(
            due.VOLATILITY_SCORE,
            looking_back(due.VOLATILITY_SCORE, *due.VOLATILITY_SCORE.inputs(settings)),
        ),
    ]


def build_checks(settings: StrategySettings) -> list[dg.AssetChecksDefinition]:
    """Return the checks that the model is worth having and that nothing is left failed."""

    @dg.asset_check(
        asset=due.VOLATILITY_SCORE.asset,
        description=(
            "Over the last 30 days, of which at least 14 are scored, the model's QLIKE is not "
            "above GARCH's, per horizon."
        ),
    )
    def not_worse_than_garch(database: DatabaseResource) -> dg.AssetCheckResult:
        with database.connect() as connection:
            rolling = score.rolling_scores(connection, settings.symbols)
        return dg.AssetCheckResult(
            passed=not any(one.is_worse_than_garch for one in rolling),
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(str(one) for one in rolling) or "nothing scored yet",
            metadata={
                f"ratio_to_garch_{one.horizon}h": one.ratio_to_garch
                for one in rolling
                if one.ratio_to_garch is not None
            },
        )

    return [
        not_worse_than_garch,
        *(no_partition_left_failed(signal.asset, settings) for signal in DESCRIPTIONS),
    ]
