"""Dagster's finished runs, as `alerts/failures` takes them. What they mean belongs there."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import dagster as dg

from trading_pipelines.alerts.failures import FinishedRun
from trading_pipelines.monitoring.dagster_instance import launched_as, will_retry
from trading_pipelines.partitions import PARTITION, RANGE_END, RANGE_START, parse_keys

LOOK_BACK = timedelta(days=1)
MOST_RUNS = 500


def finished_runs(
    instance: dg.DagsterInstance, symbols: Sequence[str], now: datetime
) -> list[FinishedRun]:
    """Return the runs that failed for good in the 24 hours before `now` (UTC), and the good since.

    Empty where none failed: the good ones are 300 a day and then of no interest. `symbols` are
    those of the settings, in their order, which is that of the partitions.
    """
    since = now - LOOK_BACK
    failed = [
        record
        for record in _records(instance, dg.DagsterRunStatus.FAILURE, since)
        if not will_retry(record.dagster_run)
    ]
    if not failed:
        return []
    oldest = min(record.update_timestamp for record in failed)
    good = _records(instance, dg.DagsterRunStatus.SUCCESS, oldest)
    runs = [_finished(record, symbols) for record in (*failed, *good)]
    # Only the error of the newest is sent, so no other is read; `runs` has the newest first.
    newest = {(run.job, run.assets, run.symbols): run for run in reversed(runs) if run.failed}
    errors = {run.run_id: _error(instance, run.run_id) for run in newest.values()}
    return [replace(run, error=errors.get(run.run_id, "")) for run in runs]


def _records(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, since: datetime
) -> list[dg.RunRecord]:
    filters = dg.RunsFilter(statuses=[status], updated_after=since)
    return list(instance.get_run_records(filters, limit=MOST_RUNS))


def _finished(record: dg.RunRecord, symbols: Sequence[str]) -> FinishedRun:
    run = record.dagster_run
    keys = [run.tags[tag] for tag in (PARTITION, RANGE_START, RANGE_END) if tag in run.tags]
    return FinishedRun(
        run_id=run.run_id,
        job=launched_as(run),
        assets=tuple(sorted(key.to_user_string() for key in run.asset_selection or ())),
        symbols=_between([symbol for symbol, _ in parse_keys(keys) if symbol], symbols),
        failed=run.status is dg.DagsterRunStatus.FAILURE,
        ended_at=record.update_timestamp,
        error="",
    )


def _between(ends: Sequence[str], symbols: Sequence[str]) -> tuple[str, ...]:
    """Return the symbols of a range, or just its ends where the settings no longer have them."""
    if not ends or not set(ends) <= set(symbols):
        return tuple(dict.fromkeys(ends))
    return tuple(symbols[symbols.index(ends[0]) : symbols.index(ends[-1]) + 1])


def _error(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return what the first failed step, or the run itself, said; empty where nothing did."""
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
        for record in instance.get_records_for_run(run_id, of_type=kind, limit=1).records:
            event = record.event_log_entry.dagster_event
            if event is None:
                continue
            data = event.event_specific_data
            failure = getattr(data, "user_failure_data", None)
            error = getattr(data, "error", None)
            cause = getattr(error, "cause", None) or error
            message = (
                (failure and failure.description) or (cause and cause.message) or event.message
            )
            if message:
                return str(message).strip()
    return ""
