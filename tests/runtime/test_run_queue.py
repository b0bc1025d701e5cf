"""The queue of runs, in a real instance."""

import threading

import dagster as dg
import pytest

from trading_pipelines.runtime import run_queue
from trading_pipelines.runtime.run_queue import RETRY_NUMBER
from trading_pipelines.schedules.run_requests import NEWEST, REPORT

QUEUE = {"module": "trading_pipelines.runtime.run_queue", "class": "RunQueue"}


@dg.job
def some_job() -> None:
    """Does nothing."""


def test_a_run_that_is_started_again_comes_before_all_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dg.QueuedRunCoordinator, "submit_run", lambda _, context: context)
    with dg.instance_for_test(overrides={"run_coordinator": QUEUE}) as instance:

        def priority(**tags: str) -> int:
            run = instance.create_run_for_job(some_job, tags=tags)
            context = dg.SubmitRunContext(run, workspace=None)  # type: ignore[arg-type]
            instance.run_coordinator.submit_run(context)
            queued = instance.get_run_by_id(run.run_id)
            assert queued is not None
            return int(queued.tags.get("dagster/priority", "0"))

        assert priority() == 0
        assert priority(**NEWEST) == int(NEWEST["dagster/priority"])
        assert priority(**{RETRY_NUMBER: "1"}, **NEWEST) > int(REPORT["dagster/priority"])


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_a_run_that_is_cancelled_is_interrupted_only_where_it_does_not_end_by_itself(
    monkeypatch: pytest.MonkeyPatch, *, ends_by_itself: bool
) -> None:
    interrupted: list[str] = []

    def interrupt(_: object, run_id: str) -> bool:
        interrupted.append(run_id)
        return True

    monkeypatch.setattr(dg.QueuedRunCoordinator, "cancel_run", interrupt)
    if not ends_by_itself:
        monkeypatch.setattr(run_queue, "_await_end", lambda *_: False)
    with dg.instance_for_test(overrides={"run_coordinator": QUEUE}) as instance:
        run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED)
        if ends_by_itself:
            threading.Timer(0.3, instance.report_run_canceled, [run]).start()
        assert instance.run_coordinator.cancel_run(run.run_id)
        told = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_CANCELING)
    assert len(told) == 1, "the run is told before anything else happens to it"
    assert interrupted == ([] if ends_by_itself else [run.run_id])
