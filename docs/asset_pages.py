"""A page of the docs for each group of assets, written from the definitions: `make docs`.

Columns and their comments come from a scratch database, migrated for it; those of our own tables
are written for the UI too. What an asset says of itself belongs in `trading_pipelines/assets/`.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph, AssetNode
from psycopg.rows import dict_row

from trading_pipelines.assets.about import COLUMNS_FILE, RUNBOOK, TABLE_NAME, link
from trading_pipelines.database.connection import connect, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.definitions import build_definitions
from trading_pipelines.settings.strategy import StrategySettings

FOLDER = Path(__file__).parent / "assets"
FIRST_LINE = (
    "<!-- Written by `make docs` (docs/asset_pages.py) from the definitions and a migrated "
    "database: change those. -->"
)
COLUMNS = """
SELECT attname AS name, format_type(atttypid, atttypmod) AS type,
    coalesce(col_description(attrelid, attnum), '') AS comment, NOT attnotnull AS nullable
FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


def pages(connection: psycopg.Connection) -> dict[str, str]:
    """Return the text of each page by its name, for the default settings.

    `connection` is to a migrated market database that no bot has had its tables in.
    """
    definitions = build_definitions(StrategySettings())
    graph = definitions.resolve_asset_graph()
    launched: dict[dg.AssetKey, list[str]] = defaultdict(list)
    ticking: dict[dg.AssetKey, list[str]] = defaultdict(list)
    schedules = definitions.get_repository_def().schedule_defs
    for job in definitions.resolve_all_job_defs():
        if job.name.startswith("__"):
            continue
        for key in job.asset_layer.selected_asset_keys:
            launched[key].append(f"`{job.name}`")
            ticking[key] += [
                f"`{schedule.name}` (`{schedule.cron_schedule}`, {schedule.execution_timezone})"
                for schedule in schedules
                if schedule.job_name == job.name
            ]
    groups: dict[str, list[str]] = defaultdict(list)
    for level in graph.toposorted_asset_keys_by_level:
        for node in sorted((graph.get(key) for key in level), key=lambda node: node.key):
            rows = {
                "key": f"`{node.key.to_user_string()}`",
                "partitions": _partitions(node.partitions_def),
                "from": _links(graph, node.parent_keys),
                "used by": _links(graph, node.child_keys),
                "schedule": ", ".join(sorted(ticking[node.key])),
                "job": ", ".join(sorted(launched[node.key])),
                "kinds": ", ".join(sorted(node.kinds)),
                "runbook": _runbook(node),
            }
            groups[node.group_name].append(
                "\n\n".join(
                    [
                        f"## {node.key.to_user_string()}",
                        str(node.description),
                        _table(["", ""], [[name, text] for name, text in rows.items() if text]),
                        *_checks(graph, node),
                        *_table_of(connection, node),
                    ]
                )
            )
    return {
        f"{group}.md": "\n\n".join([FIRST_LINE, f"# Assets: {group}", *sections]) + "\n"
        for group, sections in groups.items()
    }


def write(folder: Path, connection: psycopg.Connection) -> None:
    """Write the pages, and delete those of groups that are gone."""
    folder.mkdir(exist_ok=True)
    texts = pages(connection)
    for page in folder.glob("*.md"):
        if page.name not in texts:
            page.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def columns_of_ours(connection: psycopg.Connection) -> str:
    """Return the columns of each table of ours that is an asset's, as `assets/about.py` reads it.

    Not of those in the schema `public`: the bot may have made or changed them.
    """
    names = {
        str(node.metadata[TABLE_NAME]).partition(".")[2]
        for node in build_definitions(StrategySettings()).resolve_asset_graph().asset_nodes
        if TABLE_NAME in node.metadata
    }
    tables = {
        name: _columns(connection, name) for name in sorted(names) if not name.startswith("public.")
    }
    return json.dumps(tables, indent=1, ensure_ascii=False) + "\n"


def _partitions(definition: dg.PartitionsDefinition[str] | None) -> str:
    if definition is None:
        return "none"
    parts = (
        [dimension.partitions_def for dimension in definition.partitions_defs]
        if isinstance(definition, dg.MultiPartitionsDefinition)
        else [definition]
    )
    (window,) = (part for part in parts if isinstance(part, dg.TimeWindowPartitionsDefinition))
    assert window.schedule_type is not None
    each = f"{window.schedule_type.value.lower()}, {window.timezone}"
    symbols = "per symbol, " if len(parts) > 1 else ""
    return f"{symbols}{each}, from `data.start_date` on: `{definition.get_partition_keys()[0]}`, …"


def _links(graph: AssetGraph, keys: Iterable[dg.AssetKey]) -> str:
    targets = sorted((graph.get(key).group_name, key.to_user_string()) for key in keys)
    return ", ".join(f"[{name}]({group}.md#{name})" for group, name in targets)


def _runbook(node: AssetNode) -> str:
    text = str(node.metadata[RUNBOOK])
    return f"[{text}](../{link(text)})"


def _checks(graph: AssetGraph, node: AssetNode) -> list[str]:
    specs = [graph.get_check_spec(key) for key in sorted(node.check_keys)]
    rows = [
        [f"`{spec.name}`", "yes" if spec.blocking else "no", str(spec.description)]
        for spec in specs
    ]
    return [_table(["check", "blocking", "passes when"], rows)] if rows else []


def _table_of(connection: psycopg.Connection, node: AssetNode) -> list[str]:
    if TABLE_NAME not in node.metadata:
        return []
    table = str(node.metadata[TABLE_NAME]).partition(".")[2]
    rows = [[c["name"], c["type"], c["comment"]] for c in _columns(connection, table)]
    return [f"Table `{table}`:", _table(["column", "type", "what it says"], rows)]


def _columns(connection: psycopg.Connection, table: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(COLUMNS, [table]).fetchall()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def main() -> None:
    """Write the pages from a scratch embedded database."""
    # Short for a Unix socket, and open to the user that the server runs as under root.
    with tempfile.TemporaryDirectory(prefix="tp") as home:
        Path(home).chmod(0o755)
        server = EmbeddedServer(Path(home))
        server.start()
        try:
            upgrade_database(server.url("postgres"))
            with connect(server.url("postgres")) as connection:
                COLUMNS_FILE.write_text(columns_of_ours(connection), encoding="utf-8")
                write(FOLDER, connection)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
