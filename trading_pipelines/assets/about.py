"""What each asset must say of itself: grain, unit, refresh, backfill, group, runbook.

Nothing is computed here; a step over a run's partitions belongs in `computed`.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import dagster as dg

import trading_pipelines

OWNERS = ["team:trading-pipelines"]

TABLE_NAME = "dagster/table_name"
COLUMN_SCHEMA = "dagster/column_schema"
COLUMNS_FILE = Path(__file__).with_name("columns.json")
"""The columns of our own tables, as `make docs` reads them from a migrated database.

Definitions connect to nothing while they load.
"""

RUNBOOK = "runbook"
RED = "docs/operations.md: Something is red"
ARRIVES = "docs/architecture.md: How an alert arrives"
REPOSITORY = re.compile(
    r"(?P<git_url>https?://[^/]+/.+?)(?P<gitlab>/-)?/(?:blob|tree)/(?P<branch>.+)/docs"
)
"""Where GitHub and GitLab show `docs/` of a branch, a tag or a commit."""

BY_HAND = "Materialize its partitions in the UI"
"""How any interval of a partitioned asset is backfilled."""


class AssetDescription(TypedDict):
    """The arguments of `dg.asset` and `dg.AssetSpec` that are for a person's eyes."""

    description: str
    group_name: str
    owners: list[str]
    kinds: set[str]
    tags: dict[str, str]
    metadata: dict[str, Any]


def describe(
    sentences: str,
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
) -> AssetDescription:
    """Return what an asset says of itself, the same parts in the same order for each.

    `sentences` say what it is; the other parts are phrases without a full stop. `table` is
    `schema.table`; without one `row` says so. `kinds`: what computes it (python, sql), then where
    it is kept or goes. `interval` is that of its rows: 1m, 1h, 1d, 1w. `runbook`: a page and its
    section, `docs/page.md: Section`.
    """
    parts = {"One row": row, "Unit": unit, "Refreshed": refreshed, "Backfill": backfill}
    return AssetDescription(
        description="\n".join(
            [f"{sentences}\n", *(f"- **{part}**: {text}." for part, text in parts.items())]
        ),
        group_name=group,
        owners=OWNERS,
        kinds=kinds,
        tags={"interval": interval} if interval else {},
        metadata={RUNBOOK: runbook}
        | ({TABLE_NAME: table} if table else {})
        | ({COLUMN_SCHEMA: schema} if (schema := _schemas().get(table or "")) else {}),
    )


@cache
def _schemas() -> dict[str, dg.TableSchema]:
    tables = json.loads(COLUMNS_FILE.read_text(encoding="utf-8"))
    return {
        table: dg.TableSchema(
            [
                dg.TableColumn(
                    column["name"],
                    column["type"],
                    column["comment"] or None,
                    dg.TableColumnConstraints(nullable=column["nullable"]),
                )
                for column in columns
            ]
        )
        for table, columns in tables.items()
    }


def with_location(spec: dg.AssetSpec, database: str, docs_url: str | None) -> dg.AssetSpec:
    """Return the spec with its table's database, and its runbook as a link where docs are read."""
    metadata = dict(spec.metadata)
    if table_name := metadata.get(TABLE_NAME):
        metadata[TABLE_NAME] = f"{database}.{table_name}"
    if docs_url and (runbook := metadata.get(RUNBOOK)):
        metadata[RUNBOOK] = dg.MetadataValue.url(f"{docs_url}/{link(runbook)}")
    return spec.replace_attributes(metadata=metadata)


def with_code_references(
    assets: Sequence[dg.AssetsDefinition | dg.AssetSpec], docs_url: str | None
) -> Sequence[Any]:
    """Return the assets with the lines that compute them, where `docs_url` is in a repository.

    That is a page of GitHub's or GitLab's. What we do not compute has no line, and without such a
    `docs_url` there are none: a path of this machine is of no use in a browser elsewhere.
    """
    place = REPOSITORY.fullmatch(docs_url or "")
    if not place:
        return assets
    return dg.link_code_references_to_git(
        dg.with_source_code_references(assets),
        git_url=place["git_url"],
        git_branch=place["branch"],
        platform="gitlab" if place["gitlab"] else "github",
        file_path_mapping=dg.AnchorBasedFilePathMapping(
            Path(trading_pipelines.__file__), "trading_pipelines/__init__.py"
        ),
    )


def link(runbook: str) -> str:
    """Return where a runbook is below `docs/`: its page and GitHub's anchor of the section."""
    page, _, section = runbook.removeprefix("docs/").partition(": ")
    return f"{page}#{re.sub(r'[^a-z0-9_ -]', '', section.lower()).replace(' ', '-')}"
