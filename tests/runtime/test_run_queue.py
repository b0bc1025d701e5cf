"""The queue of runs, in a real instance."""

import dagster as dg
import pytest

from trading_pipelines.runtime.run_queue import RETRY_NUMBER
from trading_pipelines.schedules.run_requests import NEWEST, REPORT


@dg.job
def some_job() -> None:
    """Does nothing."""


def test_a_run_that_is_started_again_comes_before_all_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dg.QueuedRunCoordinator, "submit_run", lambda _, context: context)
    queue = {"module": "trading_pipelines.runtime.run_queue", "class": "RunQueue"}
    with dg.instance_for_test(overrides={"run_coordinator": queue}) as instance:

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
