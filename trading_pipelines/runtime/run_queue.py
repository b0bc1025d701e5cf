"""The queue of runs, which `dagster.yaml` names: Dagster's own, but a retry goes before the others.

How many runs are at work at once, and which wait, is set in `dagster.yaml`.
"""

import dagster as dg

from trading_pipelines.monitoring.dagster_instance import WAS_AT_WORK

RETRY_NUMBER = "dagster/retry_number"


class RunQueue(dg.QueuedRunCoordinator):
    """Dagster's queue, in which a run that Dagster starts again keeps its place."""

    def submit_run(self, context: dg.SubmitRunContext) -> dg.DagsterRun:
        """Put the run in the queue; one that is started again comes before all that waits."""
        run = context.dagster_run
        if RETRY_NUMBER in run.tags:
            self._instance.add_run_tags(run.run_id, WAS_AT_WORK)
        return super().submit_run(context)
