"""The schedules of the signals: each tick asks `signals/due` which partitions to compute."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime

import dagster as dg

from trading_pipelines.candles import resample
from trading_pipelines.candles.windows import floor_hour
from trading_pipelines.monitoring.dagster_instance import backfills_at_work, unfinished_runs
from trading_pipelines.partitions import range_tags
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import in_flight
from trading_pipelines.schedules.run_requests import MAX_RUNTIME, NEWEST, default_status, run_key
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage, due
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
from trading_pipelines.signals.published.current import CURRENT_SIGNALS, SIGNALS_OVERVIEW

# What a person or the bot looks at, refreshed by the runs that bring something newer.
SHOWN_WITH = {
    REGIME_LABELS: [CURRENT_SIGNALS],
    VOLATILITY_FORECAST: [CURRENT_SIGNALS],
    VOLATILITY_SCORE: [SIGNALS_OVERVIEW],
}
# What a run of the newest hours goes on to compute: the next tick would ask a minute later.
FOLLOWED_BY = {REALIZED_VOLATILITY: VOLATILITY_FORECAST}
# The live edge asks for the hour that has closed 6 s after its end, a symbol each 0.1 s.
HOURS_SECONDS = 20.0
# For a person who does not want to wait for the next hour.
REFRESH_OVERVIEW = dg.define_asset_job(
    "refresh_overview_job",
    selection=dg.AssetSelection.assets(CURRENT_SIGNALS, SIGNALS_OVERVIEW),
    description="Writes the bot's keys in Redis and draws the overview anew from the stored labels "
    "and forecasts, for example after Redis was down.",
    tags=MAX_RUNTIME,
)


def build_signal_schedules(
    settings: StrategySettings,
    partitions: dg.MultiPartitionsDefinition,
    days: dg.DailyPartitionsDefinition,
) -> list[dg.ScheduleDefinition]:
    """Return a schedule for each job of signals; that of the volatility model is by day."""
    volatility = [
        REALIZED_VOLATILITY,
        GARCH_BASELINE,
        VOLATILITY_FORECAST,
        VOLATILITY_SCORE,
    ]
    return [
        _build_update(
            "update_regime",
            [REGIME_LABELS],
            settings,
            partitions,
            "Labels each hour within a minute or two of its candles, and again where candles have "
            "changed since.",
        ),
        _build_update(
            "update_volatility",
            volatility,
            settings,
            partitions,
            "Measures and forecasts each hour when it has closed, scores each day when it has, and "
            "again where candles or a model have changed since.",
        ),
        _build_update(
            "retrain_volatility",
            [VOLATILITY_MODEL],
            settings,
            days,
            "Fits the model of the day that has closed, at 00:05 UTC (09:05 KST), and again each "
            "model whose training data have changed since.",
        ),
        _build_update(
            "update_reject_outcomes",
            [REJECT_OUTCOMES, CONFIRM_OUTCOMES],
            settings,
            partitions,
            "Follows what became of the bot's decisions for each hour that has closed, and again "
            "where a candle, a label or a decision has changed since.",
        ),
    ]


def _build_update(
    name: str,
    signals: Sequence[Signal],
    settings: StrategySettings,
    partitions: dg.PartitionsDefinition[str],
    description: str,
) -> dg.ScheduleDefinition:
    """Return a schedule that asks every minute which partitions of the signals are due.

    Where the live edge brings the candles, the tick of a full hour waits for that hour's.

    Labels are hourly and the model daily because their inputs are. The question costs some
    milliseconds; asked hourly, a label whose candles came ten seconds late would be an hour late.
    """
    # Nobody trades on what became of a decision.
    is_hourly = any(not s.closed_days_only and s.decision is None for s in signals)
    shown_with = {asset for signal in signals for asset in SHOWN_WITH.get(signal, [])}
    job = dg.define_asset_job(
        f"{name}_job",
        selection=dg.AssetSelection.assets(*(signal.asset for signal in signals), *shown_with),
        partitions_def=partitions,
        description=description,
        tags=MAX_RUNTIME,
    )

    @dg.schedule(
        name=name,
        job=job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=default_status(settings),
        description=f"{description} Asks the tables every minute; most often nothing is due.",
    )
    def update(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        days = due.look_back(signals, settings, now)
        # Before the tables: a run that ended in between would be launched again.
        unfinished = unfinished_runs(context.instance)
        at_work = backfills_at_work(context.instance)
        stored, plans = {}, {}
        with database.connect() as connection:
            if settings.live.enabled and is_hourly and now.minute == 0:
                resample.await_hours(connection, settings.symbols, floor_hour(now), HOURS_SECONDS)
            for signal in signals:
                stored[signal] = coverage.read(connection, signal, settings.symbols, days, settings)
                # What a backfill has begun it does itself, as long as it is at work.
                if not at_work:
                    start = settings.data.start_date
                    older = coverage.half_made(connection, signal, start, days[0], settings)
                    stored[signal] += older
        taken: dict[Signal, set[tuple[str, date]]] = {signal: set() for signal in signals}
        requests = []
        for signal in signals:
            running = in_flight(unfinished, partitions, signal.asset) | taken[signal]
            plans[signal] = due.plan(signal, stored[signal], running, settings, now)
            for run in plans[signal].runs:
                together = [signal]
                following = FOLLOWED_BY.get(signal)
                if following and run.is_newest and due.have_inputs(stored[following], run):
                    together.append(following)
                    taken[following] |= run.partitions
                requests.append((run, together))
        for run, together in requests:
            shown = [asset for signal in together for asset in SHOWN_WITH.get(signal, [])]
            assets = [*(signal.asset for signal in together), *(shown if run.is_newest else [])]
            yield dg.RunRequest(
                run_key=run_key(context, f"{together[0].asset} {run}"),
                tags=range_tags(run.symbols, run.first, run.last)
                | (NEWEST if run.is_urgent else {}),
                asset_selection=[dg.AssetKey(asset) for asset in assets],
            )
        if not requests:
            looked_at = "; ".join(plan.summary for plan in plans.values())
            yield dg.SkipReason(f"looked at {days[0]} to {days[-1]}: {looked_at}")

    return update
