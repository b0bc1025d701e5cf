"""The schedules of the reports: the daily report and the weekly summary of rejections."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.alerts.periodic import due_reports
from trading_pipelines.korean_time import KST
from trading_pipelines.partitions import kst_days, kst_weeks, partition_key
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import UNFINISHED, in_flight
from trading_pipelines.schedules.market_data import status
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.rejections import summary as reject_summary
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

# Before history and the backfills that may be waiting: what the bot trades on.
REPORT = {"dagster/priority": "10"}


def build_daily_report(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the schedule that makes the report of each KST day at 09:00 KST of the next."""
    partitions = kst_days(settings)
    job = dg.define_asset_job(
        "daily_report_job",
        selection=dg.AssetSelection.assets(DAILY_REPORT),
        partitions_def=partitions,
        description="The report of the KST days it is given.",
    )

    @dg.schedule(
        name="make_daily_report",
        job=job,
        cron_schedule="*/10 * * * *",
        execution_timezone=KST.key,
        default_status=status(settings),
        description="Asks the ledger which KST days of the look-back have closed and have no "
        "report, from 09:00 KST on: at 09:00, and after a downtime when it ends.",
    )
    def daily_report(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        with database.connect() as connection:
            days = due_reports(connection, settings.alerts, datetime.now(UTC))
        # Tried again once an hour, not six times.
        failed = context.instance.get_runs(
            dg.RunsFilter(
                job_name=job.name,
                statuses=[dg.DagsterRunStatus.FAILURE],
                updated_after=datetime.now(UTC) - timedelta(hours=1),
            )
        )
        yield from _a_run_each(context, partitions, DAILY_REPORT, days, failed, REPORT)

    return daily_report


def _a_run_each(
    context: dg.ScheduleEvaluationContext,
    partitions: dg.PartitionsDefinition[str],
    asset: str,
    due: Sequence[date],
    just_failed: Sequence[dg.DagsterRun] = (),
    tags: Mapping[str, str] | None = None,
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Ask for a run for each of the asset's Korean days or weeks that is not in flight."""
    unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    flying = in_flight([*unfinished, *just_failed], partitions, asset)
    keys = [partition_key("", day) for day in due if ("", day) not in flying]
    wanted = [key for key in keys if partitions.has_partition_key(key)]
    for key in wanted:
        yield dg.RunRequest(
            # Keys dedupe for ever: a later tick may ask for the same again.
            run_key=f"{context.scheduled_execution_time.isoformat()} {key}",
            partition_key=key,
            tags=tags,
        )
    if not wanted:
        yield dg.SkipReason(
            f"{len(due)} due, in flight, of no partition or failed within the hour"
            if due
            else "nothing is due"
        )


def build_reject_summary(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the schedule that sums up each Korean week of rejections when it is settled."""
    partitions = kst_weeks(settings)
    job = dg.define_asset_job(
        "reject_summary_job",
        selection=dg.AssetSelection.assets(REJECT_SUMMARY),
        partitions_def=partitions,
        description="The summary of the Korean weeks it is given.",
    )

    @dg.schedule(
        name="make_reject_summary",
        job=job,
        cron_schedule="15 * * * *",
        execution_timezone=KST.key,
        default_status=status(settings),
        description="Asks the tables every hour which Korean weeks of the look-back have all their "
        "outcomes and are not summed up, or are older than one of them.",
    )
    def make_reject_summary(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        with database.connect() as connection:
            weeks = reject_summary.due_weeks(connection, settings, datetime.now(UTC))
        yield from _a_run_each(context, partitions, REJECT_SUMMARY, weeks)

    return make_reject_summary
