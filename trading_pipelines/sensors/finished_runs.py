"""Dagster's finished runs, as `alerts/failures` wants them. What they mean belongs there."""

from datetime import datetime, timedelta

import dagster as dg
from dagster._core.storage.tags import WILL_RETRY_TAG

from trading_pipelines.alerts.failures import FinishedRun
from trading_pipelines.partitions import RANGE_END, RANGE_START, split

LOOK_BACK = timedelta(days=1)
MOST_RUNS = 500
PARTITION = "dagster/partition"


def finished_runs(instance: dg.DagsterInstance, now: datetime) -> list[FinishedRun]:
    """Return the runs that failed for good in the last day (UTC), and the good ones since.

    Nothing where none failed: the good ones are 300 a day and then of no interest.
    """
    since = now - LOOK_BACK
    failed = [
        record
        for record in _records(instance, dg.DagsterRunStatus.FAILURE, since)
        if record.dagster_run.tags.get(WILL_RETRY_TAG) != "true"
    ]
    if not failed:
        return []
    oldest = min(record.update_timestamp for record in failed)
    good = _records(instance, dg.DagsterRunStatus.SUCCESS, oldest)
    return [_finished(instance, record) for record in (*failed, *good)]


def _records(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, since: datetime
) -> list[dg.RunRecord]:
    wanted = dg.RunsFilter(statuses=[status], updated_after=since)
    return list(instance.get_run_records(wanted, limit=MOST_RUNS))


def _finished(instance: dg.DagsterInstance, record: dg.RunRecord) -> FinishedRun:
    run = record.dagster_run
    failed = run.status is dg.DagsterRunStatus.FAILURE
    keys = [run.tags[tag] for tag in (PARTITION, RANGE_START, RANGE_END) if tag in run.tags]
    return FinishedRun(
        run_id=run.run_id,
        job=run.job_name,
        assets=tuple(sorted(key.to_user_string() for key in run.asset_selection or ())),
        symbols=tuple(dict.fromkeys(symbol for symbol, _ in split(keys) if symbol)),
        failed=failed,
        ended_at=record.update_timestamp,
        error=_error(instance, run.run_id) if failed else "",
    )


def _error(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return what the first failed step, or the run itself, said; empty where nothing did."""
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
        for record in instance.get_records_for_run(run_id, of_type=kind, limit=1).records:
            event = record.event_log_entry.dagster_event
            if event is None:
                continue
            data = event.event_specific_data
            told = getattr(data, "user_failure_data", None)
            error = getattr(data, "error", None)
            cause = getattr(error, "cause", None) or error
            said = (told and told.description) or (cause and cause.message) or event.message
            if said:
                return str(said).strip()
    return ""
