"""What the assets share: owners, tables of metadata, one step over a run's partitions of a signal.

Also how one depends on a stretch of days of another. What an asset is belongs in its own module.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import dagster as dg

from trading_pipelines.partitions import DAY, SYMBOL, of_run, partition_key
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings import StrategySettings
from trading_pipelines.signals.compute import compute
from trading_pipelines.signals.due import Signal

OWNERS = ["team:trading-pipelines"]
SHOWN_ERRORS = 3


def days_before(settings: StrategySettings, signal: Signal, upstream: str) -> dg.AssetDep:
    """Return the dependency on the upstream's days that the signal looks back at, its own last."""
    return dg.AssetDep(
        upstream,
        partition_mapping=dg.MultiPartitionMapping(
            {
                SYMBOL: dg.DimensionPartitionMapping(SYMBOL, dg.IdentityPartitionMapping()),
                DAY: dg.DimensionPartitionMapping(
                    DAY,
                    dg.TimeWindowPartitionMapping(
                        start_offset=-signal.inputs(settings)[upstream],
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
    wanted = of_run(context.partition_keys)
    run_id = context.run.root_run_id or context.run_id
    with database.connect() as connection:
        found = compute(connection, signal, wanted.symbols, wanted.days, settings, run_id)
    failed = [f"{partition_key(one.symbol, one.day)}: {one.error}" for one in found if one.error]
    for one in found:
        key, values = partition_key(one.symbol, one.day), _metadata(one.figures)
        if not one.error and failed:
            context.log_event(dg.AssetMaterialization(signal.asset, partition=key, metadata=values))
        elif not one.error:
            context.add_asset_metadata(values, partition_key=key)
    if failed:
        raise dg.Failure(
            f"{len(failed)} of {len(found)} partitions failed, the others are stored. "
            + "; ".join(failed[:SHOWN_ERRORS])
        )


def _metadata(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures as Dagster shows them: numbers are charted over the partitions."""
    return {
        name: dg.MetadataValue.timestamp(value)
        if isinstance(value, datetime)
        else dg.MetadataValue.json(value)
        if isinstance(value, dict)
        else value
        for name, value in figures.items()
        if value is not None
    }


def table(rows: Iterable[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Return the rows as a table that the UI shows in place."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {key: "" if value is None else f"{value:.4g}" if isinstance(value, float)
                 else str(value) for key, value in row.items()}
            )
            for row in rows
        ]
    )  # fmt: skip
