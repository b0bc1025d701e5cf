"""When to ask what is due. That comes from the data: `candles/due`, `signals/due`, `alerts/due`.

A tick that was missed therefore costs nothing but time: the next one finds the same days due.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from trading_pipelines.candles import coverage, due, rate_limit
from trading_pipelines.partitions import CANDLES_1H, CANDLES_1M, range_tags
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import NEWEST, UNFINISHED, in_flight
from trading_pipelines.settings.strategy import StrategySettings


def build_refresh_market_data(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> dg.ScheduleDefinition:
    """Return the schedule that keeps the candles of the look-back complete."""
    job = dg.define_asset_job(
        "refresh_market_data_job",
        selection=dg.AssetSelection.assets(CANDLES_1M, CANDLES_1H),
        partitions_def=partitions,
        description="Candles of the partitions it is given, and their hours.",
    )

    @dg.schedule(
        name="refresh_market_data",
        job=job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=status(settings),
        description=(
            "Asks the tables every minute which days of the look-back are missing, incomplete or "
            "damaged, and whether the open day was not asked for in the last five minutes; "
            "launches as few runs as their ranges allow. It needs no catching up: what a missed "
            "tick would have found is found by the next."
        ),
    )
    def refresh_market_data(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
        # Asked first: a run that ends in between would be asked for again, and whole.
        unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        with database.connect() as connection:
            if until := rate_limit.blocked_until(connection):
                yield dg.SkipReason(f"the exchange has blocked this address until {until} UTC")
                return
            coverage.look_after(connection, settings.symbols, days[0])
            known = coverage.read(connection, settings.symbols, days)
        reasons = {
            (day.symbol, day.day): why for day in known if (why := due.reason(day, now)) is not None
        }
        flying = in_flight(unfinished, partitions, CANDLES_1M, CANDLES_1H)
        runs = due.runs(
            {key: why for key, why in reasons.items() if key not in flying}, settings.symbols
        )
        if not runs:
            waiting, left = (
                sum(why is one for why in reasons.values())
                for one in (due.CandleDueReason.WAITING, due.CandleDueReason.LEFT_FAILED)
            )
            yield dg.SkipReason(
                f"looked at {len(known)} partitions from {days[0]} to {days[-1]}: "
                f"{len(reasons)} due, {len(reasons.keys() & flying)} of them in flight, "
                f"{waiting} waiting after a failure, {left} left failed"
            )
        for run in runs:
            yield dg.RunRequest(
                # Keys dedupe for ever: the tick's time lets a later tick ask for the same again.
                run_key=f"{context.scheduled_execution_time.isoformat()} {run}",
                tags=range_tags(run.symbols, run.first, run.last)
                | (NEWEST if run.last == days[-1] else {}),
                asset_selection=[dg.AssetKey(CANDLES_1H)]
                if run.hours_only
                else [dg.AssetKey(CANDLES_1M), dg.AssetKey(CANDLES_1H)],
            )

    return refresh_market_data


def status(settings: StrategySettings) -> dg.DefaultScheduleStatus:
    """Return whether the schedules are on from the start: not where `data.refresh` is false."""
    running = settings.data.refresh
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
