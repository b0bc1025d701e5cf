"""What the runs of all schedules have alike: their key, their priority, their limit, the switch.

Which runs are asked for belongs in the schedule of each subject.
"""

import dagster as dg

from trading_pipelines.settings.strategy import StrategySettings

# Before history and the backfills that may be waiting: what the bot trades on, and the report.
NEWEST = {"dagster/priority": "5"}
REPORT = {"dagster/priority": "10"}
# Seconds, twice the 36 minutes of 30 days of 50 symbols that share the line with a backfill. It
# comes before the limit of `dagster.yaml`, which is for backfills: until a run that hangs is ended,
# its partitions are not asked for again.
MAX_RUNTIME = {"dagster/max_runtime": "4320"}


def default_status(settings: StrategySettings) -> dg.DefaultScheduleStatus:
    """Return whether the schedules are on from the start: not where `data.refresh` is false."""
    running = settings.data.refresh
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED


def run_key(context: dg.ScheduleEvaluationContext, run: object) -> str:
    """Return the key of the run that this tick asks for.

    Dagster launches a key once and never again: with the tick's time in it a later tick may ask for
    the same partitions.
    """
    return f"{context.scheduled_execution_time.isoformat()} {run}"
