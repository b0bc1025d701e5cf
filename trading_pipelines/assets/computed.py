"""What the computed assets share: the step over a run's partitions, and how they depend on days.

What an asset is belongs in its own module, how a partition is computed in `signals/`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg

from trading_pipelines.assets.metadata import metadata_values
from trading_pipelines.assets.runs import SCHEDULE, end_where_called_off
from trading_pipelines.partitions import (
    DAY,
    SYMBOL,
    dimension_tags,
    partition_key,
    partitions_of_run,
)
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage, due
from trading_pipelines.signals.catalogue import Signal

SHOWN_ERRORS = 3
DATA_VERSION = "dagster/data_version"
HAS_OWN_DATA_VERSION = "dagster/data_version_is_user_provided"
CODE_VERSION = "dagster/code_version"
# Of the code and of each input: by them Dagster tells whether a partition is stale.
PROVENANCE = (CODE_VERSION, "dagster/input_")
Materialized = Iterator[dg.MaterializeResult[None] | dg.DagsterEvent]


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


def code_version(signal: Signal, settings: StrategySettings) -> str:
    """Return the asset's code version: the computation's, and a digest of the settings that matter.

    Dagster calls a partition stale for its inputs and its code version alone; settings are neither.
    """
    return f"{signal.code_version}+{signal.settings_digest(settings)}"


def materialize(
    context: dg.AssetExecutionContext,
    database: DatabaseResource,
    signal: Signal,
    settings: StrategySettings,
) -> Materialized:
    """Compute the run's partitions, each with its own figures; fail for the failed ones alone.

    A partition's data version is the digest of its rows: equal rows make nothing after it stale.
    """
    from trading_pipelines.monitoring.partition_events import log_materializations
    from trading_pipelines.signals.registry import compute

    end_where_called_off(context)
    requested = partitions_of_run(context.partition_keys)
    run_id = context.run.root_run_id or context.run_id
    with database.connect() as connection:
        if SCHEDULE in context.run.tags:
            stored = coverage.read(connection, signal, requested.symbols, requested.days, settings)
            if due.all_made(stored, signal, settings, datetime.now(UTC)):
                context.log.info("another run has computed all of this meanwhile")
                yield dg.MaterializeResult()
                tags = _provenance(context, signal)
                same = [made(signal, p.symbol, p.day, p.rows_digest, tags) for p in stored]
                yield from log_materializations(context.op_execution_context, same)
                return
        computed = compute(connection, signal, requested.symbols, requested.days, settings, run_id)
    partitions = {partition_key(p.symbol, p.day): p for p in computed}
    for warning in dict.fromkeys(partition.warning for partition in computed):
        if warning:
            context.log.warning(warning)
    errors = [f"{key}: {p.error}" for key, p in partitions.items() if p.error]
    # Dagster gives all partitions of a run one data version, so each has an event of its own, after
    # Dagster's. Beside failed ones there is only that: Dagster then judges it by its time.
    provenance: dict[str, str] = {}
    if not errors:
        yield dg.MaterializeResult()
        provenance = _provenance(context, signal)
    good = [
        made(signal, p.symbol, p.day, p.rows_digest, provenance, p.figures)
        for p in computed
        if not p.error
    ]
    yield from log_materializations(context.op_execution_context, good)
    if errors:
        raise dg.Failure(
            f"{len(errors)} of {len(partitions)} partitions failed, the others are stored. "
            + "; ".join(errors[:SHOWN_ERRORS])
        )


def made(
    signal: Signal,
    symbol: str,
    day: date,
    rows_digest: str | None,
    provenance: Mapping[str, str],
    figures: Mapping[str, Any] | None = None,
) -> dg.AssetMaterialization:
    """Return the event of a partition: its data version is the digest of its rows."""
    tags = dimension_tags(symbol, day)
    if rows_digest:
        tags |= {**provenance, DATA_VERSION: rows_digest, HAS_OWN_DATA_VERSION: "true"}
    return dg.AssetMaterialization(
        signal.asset,
        partition=partition_key(symbol, day),
        metadata=metadata_values(figures or {}),
        tags=tags,
    )


def _provenance(context: dg.AssetExecutionContext, signal: Signal) -> dict[str, str]:
    """Return the tags of code and inputs that Dagster has just given to the run's partitions."""
    filter_ = dg.AssetRecordsFilter(
        asset_key=dg.AssetKey(signal.asset), asset_partitions=list(context.partition_keys)[:1]
    )
    (record,) = context.instance.fetch_materializations(filter_, limit=1).records
    tags = record.event_log_entry.tags or {}
    return {name: value for name, value in tags.items() if name.startswith(PROVENANCE)}
