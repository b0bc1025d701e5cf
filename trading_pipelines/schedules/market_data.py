"""The schedule of the candles: each tick asks `candles/due` which days to download.

A tick that was missed costs nothing but time: the next one finds the same days due.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from trading_pipelines.candles import coverage, due, rate_limit
from trading_pipelines.monitoring.dagster_instance import backfills_at_work, unfinished_runs
from trading_pipelines.partitions import CANDLES_1H, CANDLES_1M, range_tags
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import in_flight
from trading_pipelines.schedules.run_requests import MAX_RUNTIME, NEWEST, default_status, run_key
from trading_pipelines.settings.strategy import StrategySettings


def build_refresh_market_data(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> dg.ScheduleDefinition:
    """Return the schedule that keeps the candles of the look-back complete."""
    job = dg.define_asset_job(
        "refresh_market_data_job",
        selection=dg.AssetSelection.assets(CANDLES_1M, CANDLES_1H),
        partitions_def=partitions,
        description="Downloads the candles of the partitions it is given and computes their hours.",
        tags=MAX_RUNTIME,
    )

    @dg.schedule(
        name="refresh_market_data",
        job=job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=default_status(settings),
        description=(
            "Asks the tables every minute which days of the look-back are missing, incomplete or "
            "damaged, which older ones were begun and are not done, and whether the open day was "
            "last asked for more than five minutes ago; launches as few runs as their ranges "
            "allow. It needs no catching up: the next tick finds what a missed one would have "
            "found."
        ),
    )
    def refresh_market_data(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
        # Before the tables: a run that ended in between would be launched again, for whole days.
        unfinished = unfinished_runs(context.instance)
        with database.connect() as connection:
            if until := rate_limit.blocked_until(connection):
                yield dg.SkipReason(f"the exchange has blocked this address until {until} UTC")
                return
            coverage.look_after(connection, settings.symbols, settings.data, days)
            stored = coverage.read(connection, settings.symbols, days)
            # What a backfill has begun it does itself, as long as it is at work.
            if not backfills_at_work(context.instance):
                start = settings.data.start_date
                stored += coverage.half_made(connection, settings.symbols, start, days[0])
        running = in_flight(unfinished, partitions, CANDLES_1M, CANDLES_1H)
        plan = due.plan(stored, running, settings.symbols, now)
        if not plan.runs:
            yield dg.SkipReason(plan.summary)
        for run in plan.runs:
            assets = [CANDLES_1H] if run.hours_only else [CANDLES_1M, CANDLES_1H]
            yield dg.RunRequest(
                run_key=run_key(context, run),
                tags=range_tags(run.symbols, run.first, run.last)
                | (NEWEST if run.is_urgent else {}),
                asset_selection=[dg.AssetKey(asset) for asset in assets],
            )

    return refresh_market_data
