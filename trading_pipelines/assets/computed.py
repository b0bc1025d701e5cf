"""What the assets share: what is said of each, and one step over a run's partitions of a signal.

Also tables of metadata, how one depends on a stretch of days of another, and the check that nothing
is left failed. What an asset is belongs in its own module.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from trading_pipelines.assets.metadata import metadata_values, table
from trading_pipelines.partitions import DAY, SYMBOL, partition_key, partitions_of_run
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import SIGNALS, Signal
from trading_pipelines.signals.left_failed import LeftFailed, left_failed, shown_intervals

SHOWN_ERRORS = 3
NO_PARTITION_LEFT_FAILED = "no_partition_left_failed"
CHECKED = ["candles_1m", *(signal.asset for signal in SIGNALS)]
"""The assets that have this check."""


class Resend(dg.Config):
    """What a person may ask of a run that sends something."""

    resend: bool = False
    """Send it again, with what it says now."""


def days_before(settings: StrategySettings, signal: Signal, upstream: str) -> dg.AssetDep:
    """Return the dependency on the upstream's days that the signal looks at, before and after."""
    return dg.AssetDep(
        upstream,
        partition_mapping=dg.MultiPartitionMapping(
            {
                SYMBOL: dg.DimensionPartitionMapping(SYMBOL, dg.IdentityPartitionMapping()),
                DAY: dg.DimensionPartitionMapping(
                    DAY,
                    dg.TimeWindowPartitionMapping(
                        start_offset=-signal.inputs(settings)[upstream],
                        end_offset=signal.inputs_after(settings).get(upstream, 0),
                        allow_nonexistent_upstream_partitions=True,
                    ),
                ),
            }
        ),
    )


def same_day(upstream: str) -> dg.AssetDep:
    """Return the dependency between symbol × day and day."""
    return dg.AssetDep(upstream, partition_mapping=dg.MultiToSingleDimensionPartitionMapping(DAY))


def materialize(
    context: dg.AssetExecutionContext,
    database: DatabaseResource,
    signal: Signal,
    settings: StrategySettings,
) -> None:
    """Compute the run's partitions, each with its own figures; fail for the failed ones alone."""
    from trading_pipelines.signals.registry import compute

    wanted = partitions_of_run(context.partition_keys)
    run_id = context.run.root_run_id or context.run_id
    with database.connect() as connection:
        found = compute(connection, signal, wanted.symbols, wanted.days, settings, run_id)
    failed = [f"{partition_key(one.symbol, one.day)}: {one.error}" for one in found if one.error]
    for one in found:
        key, values = partition_key(one.symbol, one.day), metadata_values(one.figures)
        if not one.error and failed:
            context.log_event(dg.AssetMaterialization(signal.asset, partition=key, metadata=values))
        elif not one.error:
            context.add_asset_metadata(values, partition_key=key)
    if failed:
        raise dg.Failure(
            f"{len(failed)} of {len(found)} partitions failed, the others are stored. "
            + "; ".join(failed[:SHOWN_ERRORS])
        )


def no_partition_left_failed(asset: str, settings: StrategySettings) -> dg.AssetChecksDefinition:
    """Return the check of that name; a sensor evaluates it too, at each change without a run."""

    @dg.asset_check(
        asset=asset,
        name=NO_PARTITION_LEFT_FAILED,
        description="The tries of no partition are spent. Those that are left failed are named "
        "here and in `trading-pipelines status`, with what makes them be tried again.",
    )
    def check(database: DatabaseResource) -> dg.AssetCheckResult:
        with database.connect() as connection:
            found = left_failed(connection, settings.symbols)
        mine = [one for one in found if one.asset == asset]
        return dg.AssetCheckResult(passed=not mine, metadata=_left_failed_metadata(mine))

    return check


def evaluate_no_partition_left_failed(
    asset: str, found: Sequence[LeftFailed]
) -> dg.AssetCheckEvaluation:
    """Return the check's evaluation as an event, for a sensor; `found` is of the asset."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=NO_PARTITION_LEFT_FAILED,
        passed=not found,
        metadata=_left_failed_metadata(found),
    )


def _left_failed_metadata(found: Sequence[LeftFailed]) -> dict[str, Any]:
    rows = (
        {
            "symbol": one.symbol,
            "days (UTC)": shown_intervals(one.days),
            "error": one.error,
            "tried again by": one.retried_by,
        }
        for one in found
    )
    return {"left_failed": table(rows)} if found else {}
