"""What the computed assets share: the step over a run's partitions, and how they depend on days.

What an asset is belongs in its own module, how a partition is computed in `signals/`.
"""

from datetime import UTC, datetime

import dagster as dg

from trading_pipelines.assets.metadata import metadata_values
from trading_pipelines.assets.runs import SCHEDULE, end_where_called_off
from trading_pipelines.partitions import DAY, SYMBOL, partition_key, partitions_of_run
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage, due
from trading_pipelines.signals.catalogue import Signal

SHOWN_ERRORS = 3


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

    end_where_called_off(context)
    requested = partitions_of_run(context.partition_keys)
    run_id = context.run.root_run_id or context.run_id
    with database.connect() as connection:
        if SCHEDULE in context.run.tags:
            stored = coverage.read(connection, signal, requested.symbols, requested.days, settings)
            if due.all_made(stored, signal, settings, datetime.now(UTC)):
                context.log.info("another run has computed all of this meanwhile")
                return
        computed = compute(connection, signal, requested.symbols, requested.days, settings, run_id)
    partitions = {partition_key(p.symbol, p.day): p for p in computed}
    for warning in dict.fromkeys(partition.warning for partition in computed):
        if warning:
            context.log.warning(warning)
    errors = [f"{key}: {p.error}" for key, p in partitions.items() if p.error]
    for key, partition in partitions.items():
        values = metadata_values(partition.figures)
        if not partition.error and errors:
            context.log_event(dg.AssetMaterialization(signal.asset, partition=key, metadata=values))
        elif not partition.error:
            context.add_asset_metadata(values, partition_key=key)
    if errors:
        raise dg.Failure(
            f"{len(errors)} of {len(partitions)} partitions failed, the others are stored. "
            + "; ".join(errors[:SHOWN_ERRORS])
        )
