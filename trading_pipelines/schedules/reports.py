"""The schedules of the reports: the daily report, the weekly summary and the AI's scorecard."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import psycopg

from trading_pipelines.alerts.kinds import AI_SCORECARD, DAILY_REPORT
from trading_pipelines.alerts.periodic import due_reports
from trading_pipelines.korean_time import KST
from trading_pipelines.monitoring.dagster_instance import unfinished_runs
from trading_pipelines.partitions import kst_days, kst_weeks, partition_key
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import in_flight
from trading_pipelines.schedules.run_requests import MAX_RUNTIME, REPORT, default_status, run_key
from trading_pipelines.scorecard import weekly
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY, due_weeks


def build_daily_report(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the schedule that makes the report of each KST day at 09:00 KST of the next."""
    return _build(
        settings,
        DAILY_REPORT,
        kst_days(settings),
        lambda connection, now: due_reports(connection, settings.alerts, now),
        cron_schedule="*/10 * * * *",
        job_description="The report of the KST days it is given.",
        description="Asks the ledger which KST days of the look-back have closed and have no "
        "report, from 09:00 KST on: at 09:00, and after a downtime when it ends.",
        # Tried again once an hour, not six times.
        failed_wait=timedelta(hours=1),
        tags=REPORT,
    )


def build_reject_summary(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the schedule that sums up each Korean week of rejections when it is settled."""
    return _build(
        settings,
        REJECT_SUMMARY,
        kst_weeks(settings),
        lambda connection, now: due_weeks(connection, settings, now),
        cron_schedule="15 * * * *",
        job_description="The summary of the Korean weeks it is given.",
        description="Asks the tables every hour which Korean weeks of the look-back have all their "
        "outcomes and are not summed up, or are older than one of them.",
    )


def build_ai_scorecard(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the schedule that makes the AI's scorecard of each Korean week when it is settled."""
    return _build(
        settings,
        AI_SCORECARD,
        kst_weeks(settings),
        lambda connection, now: weekly.due_weeks(connection, settings, now),
        cron_schedule="20 * * * *",
        job_description="The AI's scorecard of the Korean weeks it is given.",
        description="Asks the tables every hour which Korean weeks of the look-back have all their "
        "outcomes and no scorecard, or one that is older than an outcome or a trade.",
    )


def _build(
    settings: StrategySettings,
    asset: str,
    partitions: dg.PartitionsDefinition[str],
    due: Callable[[psycopg.Connection, datetime], list[date]],
    *,
    cron_schedule: str,
    job_description: str,
    description: str,
    failed_wait: timedelta | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.ScheduleDefinition:
    """Return the schedule that asks for a run for each due partition that is not in flight.

    `due` returns the Korean days or weeks that are due at a moment (UTC). After `failed_wait` a
    partition whose run failed is asked for again; without it at the next tick.
    """
    job = dg.define_asset_job(
        f"{asset}_job",
        selection=dg.AssetSelection.assets(asset),
        partitions_def=partitions,
        description=job_description,
        tags=MAX_RUNTIME,
    )

    @dg.schedule(
        name=f"make_{asset}",
        job=job,
        cron_schedule=cron_schedule,
        execution_timezone=KST.key,
        default_status=default_status(settings),
        description=description,
    )
    def make(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        with database.connect() as connection:
            days = due(connection, now)
        runs = unfinished_runs(context.instance)
        if failed_wait is not None:
            just_failed = dg.RunsFilter(
                job_name=job.name,
                statuses=[dg.DagsterRunStatus.FAILURE],
                updated_after=now - failed_wait,
            )
            runs = [*runs, *context.instance.get_run_records(just_failed)]
        running = in_flight(runs, partitions, asset)
        keys = [partition_key("", day) for day in days if ("", day) not in running]
        requests = [
            dg.RunRequest(run_key=run_key(context, key), partition_key=key, tags=tags)
            for key in keys
            if partitions.has_partition_key(key)
        ]
        yield from requests
        if not requests:
            yield dg.SkipReason(
                f"{len(days)} due, in flight, of no partition or failed within the hour"
                if days
                else "nothing is due"
            )

    return make
