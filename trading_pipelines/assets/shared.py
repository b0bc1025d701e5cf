"""What the assets share: what is said of each, and one step over a run's partitions of a signal.

Also tables of metadata, how one depends on a stretch of days of another, and the check that nothing
is left failed. What an asset is belongs in its own module.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

import dagster as dg

from trading_pipelines.alerts.failures import LeftFailed, left_failed, stretches
from trading_pipelines.partitions import DAY, SYMBOL, of_run, partition_key
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings import StrategySettings
from trading_pipelines.signals.compute import compute
from trading_pipelines.signals.due import SIGNALS, Signal

OWNERS = ["team:trading-pipelines"]
SHOWN_ERRORS = 3
NO_PARTITION_LEFT_FAILED = "no_partition_left_failed"
CHECKED = ["candles_1m", *(signal.asset for signal in SIGNALS)]
"""The assets that have this check."""

TABLE_NAME = "dagster/table_name"
RUNBOOK = "runbook"
RED = "docs/operations.md: Something is red"
ARRIVES = "docs/architecture.md: How an alert arrives"
BY_HAND = "Materialize its partitions in the UI"
"""How any stretch of a partitioned asset is backfilled."""


class Resend(dg.Config):
    """What a person may ask of a run that sends something."""

    resend: bool = False
    """Send it again, with what it says now."""


class About(TypedDict):
    """The arguments of `dg.asset` and `dg.AssetSpec` that are for a person's eyes."""

    description: str
    group_name: str
    owners: list[str]
    kinds: set[str]
    tags: dict[str, str]
    metadata: dict[str, Any]


def about(
    what: str,
    *,
    row: str,
    unit: str,
    refreshed: str,
    backfill: str,
    group: str,
    kinds: set[str],
    table: str | None = None,
    interval: str | None = None,
    runbook: str = RED,
) -> About:
    """Return what an asset says of itself, the same parts in the same order for each.

    `what` is sentences, the other parts are phrases without a full stop. `table` is `schema.table`;
    without one `row` says so. `kinds`: what computes it (python, sql), then where it is kept or
    goes. `interval` is that of its rows: 1m, 1h, 1d, 1w. `runbook`: a page and its section,
    `docs/page.md: Section`.
    """
    parts = {"One row": row, "Unit": unit, "Refreshed": refreshed, "Backfill": backfill}
    return About(
        description="\n".join([f"{what}\n", *(f"- **{n}**: {text}." for n, text in parts.items())]),
        group_name=group,
        owners=OWNERS,
        kinds=kinds,
        tags={"interval": interval} if interval else {},
        metadata={RUNBOOK: runbook} | ({TABLE_NAME: table} if table else {}),
    )


def in_place(spec: dg.AssetSpec, database: str, docs_url: str | None) -> dg.AssetSpec:
    """Return the spec with its table's database, and its runbook as a link where docs are read."""
    metadata = dict(spec.metadata)
    if table_name := metadata.get(TABLE_NAME):
        metadata[TABLE_NAME] = f"{database}.{table_name}"
    if docs_url and (runbook := metadata.get(RUNBOOK)):
        metadata[RUNBOOK] = dg.MetadataValue.url(f"{docs_url}/{link(runbook)}")
    return spec.replace_attributes(metadata=metadata)


def link(runbook: str) -> str:
    """Return where a runbook is below `docs/`: its page and GitHub's anchor of the section."""
    page, _, section = runbook.removeprefix("docs/").partition(": ")
    return f"{page}#{re.sub(r'[^a-z0-9_ -]', '', section.lower()).replace(' ', '-')}"


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
            "days (UTC)": stretches(one.days),
            "error": one.error,
            "tried again by": one.retried_by,
        }
        for one in found
    )
    return {"left_failed": table(rows)} if found else {}


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


def picture(name: str, png: bytes) -> dg.MarkdownMetadataValue:
    """Return the picture as the UI shows it, with a click on Show Markdown."""
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{b64encode(png).decode()})")


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
