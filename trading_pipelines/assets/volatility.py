"""Volatility as partitioned assets: realised, the model, its forecasts, a baseline and a score.

candles_1m → realized_volatility → volatility_model → volatility_forecast → volatility_score, and
candles_1h → garch_baseline → both of the last. The arithmetic belongs in `signals/volatility`.
"""

from collections.abc import Sequence

import dagster as dg

from trading_pipelines.assets.about import BY_HAND, AssetDescription, describe
from trading_pipelines.assets.computed import (
    Materialized,
    code_version,
    days_before,
    materialize,
    same_day,
)
from trading_pipelines.assets.metadata import table
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import (
    GARCH_BASELINE,
    REALIZED_VOLATILITY,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    VOLATILITY_SCORE,
    Signal,
)

GROUP = "volatility"
# The last step of a run that has others: when a backfill sees its partitions, and asks for the
# model and the forecasts, those of garch_baseline are there, and the scores come in the same runs.
LAST = {"dagster/priority": "-1"}


def _about(
    signal: Signal,
    sentences: str,
    *,
    row: str,
    unit: str,
    refreshed: str,
    interval: str,
    after: str = "",
) -> AssetDescription:
    return describe(
        sentences,
        row=row,
        unit=unit,
        refreshed=refreshed,
        backfill=f"`trading-pipelines backfill --with-signals`, or {BY_HAND}{after}",
        group=GROUP,
        kinds={"python", "postgres"},
        table=f"trading_pipelines.{signal.asset}",
        interval=interval,
    )


ABOUT = {
    REALIZED_VOLATILITY: _about(
        REALIZED_VOLATILITY,
        "The realised variance of each closed hour of a symbol's UTC day, from the five-minute "
        "returns of candles_1m on the full grid; from the hour's range (Parkinson) where more "
        "than 30 % of a week's returns are zero, as for KRW-DOGE's tick.",
        row="per symbol and hour, at its start; the variance is empty where nothing was traded",
        unit="variance of log returns in the hour",
        refreshed="by `update_volatility` when the hour has closed, and again when its candles "
        "have changed",
        interval="1h",
    ),
    VOLATILITY_MODEL: _about(
        VOLATILITY_MODEL,
        "One ridge regression for all symbols on log realised variances (HAR), fitted on what "
        "had closed at the end of a UTC day. The JSON holds everything that a forecast needs. "
        "The status says when there is not enough history (FALLBACK, UNKNOWN_HISTORY) or no "
        "movement (DEGENERATE).",
        row="per UTC day and horizon (hours ahead)",
        unit="log of the mean hourly variance",
        refreshed="by `retrain_volatility` at 00:05 UTC (09:05 KST), and again when its training "
        "data have changed",
        after=" after realized_volatility",
        interval="1d",
    ),
    VOLATILITY_FORECAST: _about(
        VOLATILITY_FORECAST,
        "The variance of a symbol's next hours (`volatility.horizons`) as of the close of each "
        "hour of a UTC day: one hour ahead by the newest volatility_model of that moment, further "
        "ahead the mean of it, of garch_baseline's newest fit and of an EWMA, each kept beside it "
        "(`made_of` says what there was). With a 90 % interval whose width adapts to what "
        "happened, the symbol's own threshold, the probability to be above it and whether that is "
        "high: that flag, `is_high_volatility`, keeps the bot from every entry where it is "
        "published (`volatility.published_horizon`). The last forecast of day D is about D + 1.",
        row="per symbol, hour's close (as_of) and horizon",
        unit="mean hourly variance; annualised volatility as a fraction, 1 is 100 % a year",
        refreshed="by `update_volatility` when the hour has closed, and again when variances or "
        "model have changed",
        after=" after volatility_model and garch_baseline",
        interval="1h",
    ),
    GARCH_BASELINE: _about(
        GARCH_BASELINE,
        "The forecasts of GARCH(1,1) on the hourly returns of candles_1h, refitted daily, for the "
        "same hours and horizons as volatility_forecast, whether the fit converged, and at "
        "midnight the fit itself, of which the forecasts are made too. Closed days only.",
        row="per symbol, hour's close (as_of) and horizon",
        unit="mean hourly variance",
        refreshed="by `update_volatility` when the day has closed, and again when its candles have "
        "changed",
        interval="1h",
    ),
    VOLATILITY_SCORE: _about(
        VOLATILITY_SCORE,
        "Compares the forecasts whose horizon ended in a symbol's UTC day with what happened: "
        "QLIKE of our model, of GARCH and of the random walk, bias, coverage of the intervals, "
        "whether the flag was right. The view `trading_pipelines.volatility_score_30d` sums up 30 "
        "days. Closed days only.",
        row="per symbol, UTC day and horizon",
        unit="QLIKE, a loss (lower is better); counts of forecasts, intervals and flags",
        refreshed="by `update_volatility` when the day has closed, and again when what it scores "
        "has changed",
        after=" after the forecasts and garch_baseline",
        interval="1d",
    ),
}


def build_assets(
    settings: StrategySettings,
    partitions: dg.MultiPartitionsDefinition,
    days: dg.DailyPartitionsDefinition,
) -> list[dg.AssetsDefinition]:
    """Return the assets: volatility_model over `days`, the others over `partitions`."""

    def asset(signal: Signal, deps: Sequence[dg.AssetDep]) -> dg.AssetsDefinition:
        @dg.asset(
            name=signal.asset,
            code_version=code_version(signal, settings),
            deps=deps,
            partitions_def=days if signal.pooled else partitions,
            backfill_policy=dg.BackfillPolicy.single_run(),
            op_tags=LAST if signal is REALIZED_VOLATILITY else None,
            **ABOUT[signal],
        )
        def computed(context: dg.AssetExecutionContext, database: DatabaseResource) -> Materialized:
            yield from materialize(context, database, signal, settings)

        return computed

    def looking_back(signal: Signal, *upstream: str) -> list[dg.AssetDep]:
        return [days_before(settings, signal, name) for name in upstream]

    realized = REALIZED_VOLATILITY
    forecast = VOLATILITY_FORECAST
    return [
        asset(realized, looking_back(realized, "candles_1m")),
        asset(VOLATILITY_MODEL, [same_day(realized.asset)]),
        asset(GARCH_BASELINE, looking_back(GARCH_BASELINE, "candles_1h")),
        asset(
            forecast,
            [
                same_day(VOLATILITY_MODEL.asset),
                *looking_back(forecast, realized.asset, GARCH_BASELINE.asset, "candles_1h"),
            ],
        ),
        asset(
            VOLATILITY_SCORE,
            looking_back(VOLATILITY_SCORE, *VOLATILITY_SCORE.inputs(settings)),
        ),
    ]


def build_checks(settings: StrategySettings) -> list[dg.AssetChecksDefinition]:
    """Return the checks of the score: that GARCH is not better, that the intervals hold."""

    @dg.asset_check(
        asset=VOLATILITY_SCORE.asset,
        description=(
            "For each horizon the forecasts' QLIKE over the last 30 days, of which at least 14 are "
            "scored, is not above GARCH's: for no symbol, nor for all together."
        ),
    )
    def not_worse_than_garch(database: DatabaseResource) -> dg.AssetCheckResult:
        from trading_pipelines.signals.volatility import score

        with database.connect() as connection:
            rolling = score.rolling_scores(connection, settings.symbols)
        return dg.AssetCheckResult(
            passed=not any(scored.is_worse_than_garch for scored in rolling),
            severity=dg.AssetCheckSeverity.WARN,
            description=score.not_worse(rolling),
            metadata={
                f"ratio_to_garch_{scored.horizon}h": scored.ratio_to_garch
                for scored in rolling
                if scored.symbol == score.ALL and scored.ratio_to_garch is not None
            }
            | {"symbols": table(scored.shown() for scored in rolling)},
        )

    @dg.asset_check(
        asset=VOLATILITY_SCORE.asset,
        description=(
            "The 90 % intervals of each symbol and horizon held for 85 to 95 % of the forecasts of "
            "the last 30 and 90 days, where at least 14 days and 60 intervals that do not overlap "
            "have ended (24 h ahead: in 90 days only)."
        ),
    )
    def intervals_hold(database: DatabaseResource) -> dg.AssetCheckResult:
        from trading_pipelines.signals.volatility import score

        with database.connect() as connection:
            rolling = score.rolling_scores(connection, settings.symbols)
        return dg.AssetCheckResult(
            passed=not any(scored.strayed for scored in rolling if scored.symbol != score.ALL),
            severity=dg.AssetCheckSeverity.WARN,
            description=score.strayed_intervals(rolling),
            metadata={"symbols": table(scored.shown() for scored in rolling)},
        )

    return [not_worse_than_garch, intervals_hold]
