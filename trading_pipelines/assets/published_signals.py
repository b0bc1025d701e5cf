"""What a person and the bot look at first: the current signals, and pictures of them.

Unpartitioned, refreshed with the schedules, times in Korean time. What they show is computed in
`signals/`.
"""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from trading_pipelines.assets.about import describe
from trading_pipelines.assets.metadata import picture, table
from trading_pipelines.candles.windows import day_interval
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.resources.redis import RedisResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.published.current import (
    CURRENT_SIGNALS,
    SIGNALS_OVERVIEW,
    read_current_signals,
)

GROUP = "published_signals"
BY_JOB = "nothing to backfill; `refresh_overview_job` does it now"
DIAGNOSED = timedelta(days=90)


def build_assets(settings: StrategySettings) -> list[dg.AssetsDefinition]:
    """Return current_signals and signals_overview."""
    horizon = settings.volatility.published_horizon

    @dg.asset(
        name=CURRENT_SIGNALS,
        deps=["regime_labels", "volatility_forecast"],
        **describe(
            "The signals as they are now, for the bot and for people: per symbol the newest label "
            "and since when, the newest volatility, whether it is high, as of when and until when. "
            "Where REDIS_URL is set, also the bot's keys `market:regime:{symbol}` and "
            "`coinpilot:volatility_state`, which expire `redis_ttl_seconds` after their as-of. "
            "**The bot refuses every entry, in every regime, while `is_high_volatility` in that "
            "state is true**: it is the first symbol's flag of `volatility.published_horizon`, or "
            "of the longest horizon, and `trading-pipelines flags` shows how much of the time each "
            "horizon's was up.",
            row="per symbol, of a view on the tables of labels and forecasts",
            unit="annualised volatility as a fraction, 1 is 100 % a year",
            refreshed="by `update_regime` and `update_volatility`, with each hour's labels and "
            "forecasts; the view itself is always current",
            backfill=BY_JOB,
            group=GROUP,
            kinds={"sql", "postgres", "redis"},
            table="trading_pipelines.current_signals",
        ),
    )
    def current_signals(
        context: dg.AssetExecutionContext, database: DatabaseResource, redis: RedisResource
    ) -> dg.MaterializeResult[None]:
        with database.connect() as connection:
            signals = read_current_signals(connection, settings.symbols, horizon)
        published = redis.publish(signals, settings, datetime.now(UTC))
        metadata: dict[str, Any] = {"signals": table(signal.shown() for signal in signals)}
        if published:
            metadata["redis_keys"] = len(published.keys)
            reasons = [published.skipped] if published.skipped else []
            reasons += [f"{key} is {age} old" for key, age in published.stale.items()]
            if reasons:
                metadata["redis_not_written"] = "; ".join(reasons)
                context.log.warning("not written to Redis: %s", "; ".join(reasons))
        return dg.MaterializeResult(metadata=metadata)

    @dg.asset(
        name=SIGNALS_OVERVIEW,
        deps=["regime_labels", "volatility_score"],
        **describe(
            "Pictures and tables to look at: per symbol the price with its regimes, forecast "
            "against realised volatility, the score against GARCH; the current signals; and what "
            "followed each regime in the last 90 days: returns and volatility. A second picture "
            "shows what can be told from the volatility forecasts of the 90 days before the newest "
            "09:00 KST: by symbol our loss beside those of our members, GARCH, EWMA and the random "
            "walk, whether they can be told apart (Diebold-Mariano, model confidence set), how "
            "many 90 % intervals held, and what followed each probability of a high volatility.",
            row="per symbol (and `all`), horizon and model of the comparison; the rest is on the "
            "latest materialisation",
            unit="prices in KRW, volatility in percent a year, losses in QLIKE; times in KST",
            refreshed="by `update_volatility`, daily when the day has been scored",
            backfill=BY_JOB,
            group=GROUP,
            kinds={"python", "postgres", "matplotlib"},
            table="trading_pipelines.volatility_comparison",
        ),
    )
    def signals_overview(database: DatabaseResource) -> dg.MaterializeResult[None]:
        from trading_pipelines.signals.published import overview
        from trading_pipelines.signals.regimes import diagnostics
        from trading_pipelines.signals.volatility import comparison, plots, score

        now = datetime.now(UTC)
        # A closed day's baseline and score are there.
        as_of = day_interval(now.date()).start
        with database.connect() as connection:
            drawn = overview.draw(connection, settings.symbols, now)
            signals = read_current_signals(connection, settings.symbols, horizon)
            diagnosed = diagnostics.read(
                connection, settings.symbols, now - DIAGNOSED, settings.regime_detection
            )
            compared = comparison.read(connection, settings.symbols, as_of)
            rolling = score.rolling_scores(connection, settings.symbols, as_of.date())
            comparison.store(connection, compared)
        return dg.MaterializeResult(
            metadata={
                "plots": picture("signals", drawn),
                "signals": table(signal.shown() for signal in signals),
                "labels": table(labels.shown() for labels in diagnosed),
                "regimes": table(
                    {"symbol": labels.symbol, "regime": regime, **asdict(figures)}
                    for labels in diagnosed
                    for regime, figures in labels.regimes.items()
                ),
                "forecasts": "; ".join(comparison.headlines(compared)) or "nothing to compare yet",
                "forecast_plots": picture("forecasts", plots.draw(compared, rolling)),
                "models": table(comparison.shown(compared)),
                "intervals_and_flag": table(scored.shown() for scored in rolling),
            }
        )

    return [current_signals, signals_overview]
