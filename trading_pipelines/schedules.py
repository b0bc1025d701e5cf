"""When to ask what is due. What is due comes from the data, in `candles/due`, never from the clock.

A tick that was missed therefore costs nothing but time: the next one finds the same days due.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from trading_pipelines.assets.market_data import CANDLES_1H, CANDLES_1M
from trading_pipelines.candles import coverage, due, rate_limit
from trading_pipelines.database.run_events import purge_run_events
from trading_pipelines.partitions import RANGE_END, RANGE_START, range_tags, split
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings import StrategySettings

PARTITION = "dagster/partition"
CANDLES = {dg.AssetKey(CANDLES_1M), dg.AssetKey(CANDLES_1H)}
# Five symbols refreshed every five minutes write some 300 runs a day.
KEEP_RUN_EVENTS = timedelta(days=30)
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def in_flight(instance: dg.DagsterInstance, partitions: dg.MultiPartitionsDefinition) -> set[str]:
    """Return the keys of candle partitions that queued or running runs will write."""
    keys: set[str] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        if run.asset_selection and not run.asset_selection & CANDLES:
            continue
        if PARTITION in run.tags:
            keys.add(run.tags[PARTITION])
        elif RANGE_START in run.tags:
            keys.update(
                partitions.get_partition_keys_in_range(
                    dg.PartitionKeyRange(run.tags[RANGE_START], run.tags[RANGE_END])
                )
            )
    return keys


def build_refresh_market_data(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> dg.ScheduleDefinition:
    """Return the schedule that keeps the candles of the look-back complete, every five minutes."""
    job = dg.define_asset_job(
        "refresh_market_data_job",
        selection=dg.AssetSelection.assets(CANDLES_1M, CANDLES_1H),
        partitions_def=partitions,
        description="Candles of the partitions it is given, and their hours.",
    )

    @dg.schedule(
        name="refresh_market_data",
        job=job,
        cron_schedule="*/5 * * * *",
        execution_timezone="UTC",
        default_status=(
            dg.DefaultScheduleStatus.RUNNING
            if settings.data.refresh
            else dg.DefaultScheduleStatus.STOPPED
        ),
        description=(
            "Asks the tables which days of the look-back are missing, incomplete, damaged or open, "
            "and launches as few runs as their ranges allow. It needs no catching up: what a "
            "missed tick would have found is found by the next."
        ),
    )
    def refresh_market_data(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
        with database.connect() as connection:
            if until := rate_limit.blocked_until(connection):
                yield dg.SkipReason(f"the exchange has blocked this address until {until} UTC")
                return
            known = coverage.read(connection, settings.symbols, days)
        reasons = {
            (day.symbol, day.day): why for day in known if (why := due.reason(day, now)) is not None
        }
        flying = split(in_flight(context.instance, partitions))
        runs = due.runs(
            {key: why for key, why in reasons.items() if key not in flying}, settings.symbols
        )
        if not runs:
            waiting = sum(why is due.Reason.WAITING for why in reasons.values())
            yield dg.SkipReason(
                f"looked at {len(known)} partitions from {days[0]} to {days[-1]}: "
                f"{len(reasons)} due, {len(reasons.keys() & set(flying))} of them in flight, "
                f"{waiting} waiting after a failure"
            )
        for run in runs:
            yield dg.RunRequest(
                # Keys dedupe for ever: the tick's time lets a later tick ask for the same again.
                run_key=f"{context.scheduled_execution_time.isoformat()} {run}",
                tags=range_tags(run.symbols, run.first, run.last),
                asset_selection=[dg.AssetKey(CANDLES_1H)]
                if run.hours_only
                else [dg.AssetKey(CANDLES_1M), dg.AssetKey(CANDLES_1H)],
            )

    return refresh_market_data


def build_purge_run_events() -> dg.ScheduleDefinition:
    """Return the daily schedule that keeps Dagster's event log from growing without limit."""

    @dg.op
    def purge_old_events(context: dg.OpExecutionContext, database: DatabaseResource) -> None:
        with database.connect_to_dagster() as connection:
            purged = purge_run_events(connection, datetime.now(UTC) - KEEP_RUN_EVENTS)
        context.add_output_metadata({"purged": purged})

    @dg.job(description="Deletes run events older than 30 days; partitions stay green.")
    def purge_run_events_job() -> None:
        purge_old_events()

    return dg.ScheduleDefinition(
        name="purge_run_events",
        job=purge_run_events_job,
        cron_schedule="10 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Deletes run events older than 30 days, daily at 03:10 UTC.",
    )
