"""Which partitions and runs are in flight, as Dagster knows them."""

from collections.abc import Sequence
from datetime import date

import dagster as dg

from trading_pipelines.monitoring.dagster_instance import launched_as, unfinished_runs
from trading_pipelines.monitoring.facts import RunInFlight
from trading_pipelines.partitions import PARTITION, RANGE_END, RANGE_START, parse_keys

FAILED = "failed, about to be started again by Dagster"


def in_flight(
    runs: Sequence[dg.RunRecord], partitions: dg.PartitionsDefinition[str], *assets: str
) -> set[tuple[str, date]]:
    """Return (symbol, UTC day) of what `runs` will write of any of the assets."""
    keys: set[str] = set()
    for run in (record.dagster_run for record in runs):
        if run.asset_selection and not run.asset_selection & {dg.AssetKey(a) for a in assets}:
            continue
        if PARTITION in run.tags:
            keys.add(run.tags[PARTITION])
        elif RANGE_START in run.tags:
            span = dg.PartitionKeyRange(run.tags[RANGE_START], run.tags[RANGE_END])
            # The range may be of another kind of partition.
            if partitions.has_partition_key(span.start):
                keys.update(partitions.get_partition_keys_in_range(span))
    return set(parse_keys(keys))


def runs_in_flight(instance: dg.DagsterInstance) -> list[RunInFlight]:
    """Return the runs that are queued, at work or about to be started again, the newest first."""
    runs = []
    for record in unfinished_runs(instance):
        run = record.dagster_run
        keys = [run.tags[tag] for tag in (PARTITION, RANGE_START, RANGE_END) if tag in run.tags]
        pairs = parse_keys(keys)
        runs.append(
            RunInFlight(
                job=launched_as(run),
                symbols=tuple(dict.fromkeys(symbol for symbol, _ in pairs if symbol)),
                days=tuple(dict.fromkeys(day for _, day in pairs)),
                state=(
                    FAILED
                    if run.status is dg.DagsterRunStatus.FAILURE
                    else run.status.value.lower().replace("_", " ")
                ),
                since=record.update_timestamp,
            )
        )
    return runs
