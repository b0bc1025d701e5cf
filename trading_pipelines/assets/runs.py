"""What a step asks of its run: who asked for it, and whether it was called off.

Which runs are in flight belongs in `schedules/in_flight`, Dagster's own state in
`monitoring/dagster_instance`.
"""

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Protocol

import dagster as dg

from trading_pipelines.monitoring.dagster_instance import is_called_off
from trading_pipelines.partitions import BACKFILL

SCHEDULE = "dagster/schedule_name"
AGAIN = "again"
"""The tag of a backfill that asks for complete days too."""
# Two questions to Dagster's storage; a page takes a tenth of a second.
ASK_SECONDS = 1.0


class StepContext(Protocol):
    """What is needed of the context of an asset."""

    @property
    def instance(self) -> dg.DagsterInstance:
        """Dagster's instance."""

    @property
    def run(self) -> dg.DagsterRun:
        """The run, as it was when the step began."""


def is_by_hand(run: dg.DagsterRun) -> bool:
    """Return whether a person asked for these very partitions, complete or not.

    The UI materialises one partition in a run without either tag, and more of them by a backfill.
    """
    return run.tags.get(AGAIN) == "true" or not {BACKFILL, SCHEDULE} & run.tags.keys()


def wanted_assets(context: StepContext) -> AbstractSet[str]:
    """Return the names of the assets that the run, or its backfill, was asked for."""
    backfill_id = context.run.tags.get(BACKFILL)
    backfill = context.instance.get_backfill(backfill_id) if backfill_id else None
    asked = backfill.asset_selection if backfill else context.run.asset_selection
    return {key.to_user_string() for key in asked or ()}


def end_where_called_off(context: StepContext) -> None:
    """End the run, as cancelled, where it or its backfill was called off."""
    instance = context.instance
    if not is_called_off(instance, context.run):
        return
    run = instance.get_run_by_id(context.run.run_id)
    # One that was only interrupted counts as failed, and would be started again.
    if run is not None and not run.is_finished:
        instance.report_run_canceling(run, "The run, or its backfill, was called off.")
    raise dg.DagsterExecutionInterruptedError


def ender(context: StepContext) -> Callable[[], None]:
    """Return `end_where_called_off` for a loop: it asks at the first call, then once a second."""
    asked_at = -ASK_SECONDS

    def end() -> None:
        nonlocal asked_at
        if time.monotonic() - asked_at >= ASK_SECONDS:
            end_where_called_off(context)
            asked_at = time.monotonic()

    return end
