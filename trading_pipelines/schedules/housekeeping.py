"""The schedule that deletes old runs from Dagster's storage and old alerts from the ledger."""

from datetime import UTC, datetime

import dagster as dg

from trading_pipelines.alerts.retention import purge
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database import housekeeping
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.run_requests import MAX_RUNTIME
from trading_pipelines.settings.strategy import StrategySettings


def build_housekeeping(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the daily schedule that keeps both databases from growing without limit."""
    keep = settings.housekeeping

    @dg.op
    def delete_what_is_over(context: dg.OpExecutionContext, database: DatabaseResource) -> None:
        now = datetime.now(UTC)
        with database.connect() as market, database.connect_to_dagster() as dagster:
            connections = (market, dagster)
            before = [housekeeping.database_bytes(connection) for connection in connections]
            deleted = housekeeping.purge_runs(dagster, now - DAY * keep.keep_runs_days)
            deleted.update(purge(market, now - DAY * keep.keep_alerts_days))
            after = [housekeeping.database_bytes(connection) for connection in connections]
            growth = housekeeping.record_sizes(market, after[0], after[1], now)
        metadata = {
            **{f"{table}_deleted": rows for table, rows in deleted.items()},
            "market_bytes_before": before[0],
            "market_bytes_after": after[0],
            "dagster_bytes_before": before[1],
            "dagster_bytes_after": after[1],
        }
        if growth is not None:
            metadata["bytes_a_day"] = round(growth)
        context.add_output_metadata(metadata)

    @dg.job(
        description=f"Deletes runs and their events {keep.keep_runs_days} days after their end and "
        f"finished alerts after {keep.keep_alerts_days} days, and records how large both databases "
        "are. Partitions and checks keep their newest results: green stays green.",
        tags=MAX_RUNTIME,
    )
    def housekeeping_job() -> None:
        delete_what_is_over()

    return dg.ScheduleDefinition(
        name="housekeeping",
        job=housekeeping_job,
        cron_schedule="10 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Deletes old runs and alerts, daily at 03:10 UTC; the job says which.",
    )
