"""The queue of runs, which `dagster.yaml` names: Dagster's own, with two promises more.

A retry goes before the others, and a run that is cancelled ends by itself where it can. How many
runs are at work at once, and which wait, is set in `dagster.yaml`.
"""

import dagster as dg
import tenacity

from trading_pipelines.monitoring.dagster_instance import WAS_AT_WORK

RETRY_NUMBER = "dagster/retry_number"
# A page takes a tenth of a second; the imports before a run's first step take some seconds.
GRACE_SECONDS = 8.0


class RunQueue(dg.QueuedRunCoordinator):
    """Dagster's queue, in which a run that Dagster starts again keeps its place."""

    def submit_run(self, context: dg.SubmitRunContext) -> dg.DagsterRun:
        """Put the run in the queue; one that is started again comes before all that waits."""
        run = context.dagster_run
        if RETRY_NUMBER in run.tags:
            self._instance.add_run_tags(run.run_id, WAS_AT_WORK)
        return super().submit_run(context)

    def cancel_run(self, run_id: str) -> bool:
        """Let a run that is at work end between two pages, and interrupt it where it does not.

        An interrupt that meets the start of its first step makes it count as failed.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            self._instance.report_run_canceling(run)
            if _await_end(self._instance, run_id):
                return True
        return super().cancel_run(run_id)


@tenacity.retry(
    retry=tenacity.retry_if_result(lambda is_over: not is_over),
    stop=tenacity.stop_after_delay(GRACE_SECONDS),
    wait=tenacity.wait_fixed(0.2),
    retry_error_callback=lambda _: False,
)
def _await_end(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished
