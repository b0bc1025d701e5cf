"""Figures, tables and pictures as Dagster's metadata."""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import dagster as dg

ROW_COUNT = "dagster/partition_row_count"
"""The name by which Dagster's UI knows how many rows a partition has."""


def metadata_values(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures as Dagster shows them: numbers are charted over the partitions."""
    return {
        ROW_COUNT if name == "rows" else name: dg.MetadataValue.timestamp(value)
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
    """Return the rows as a table that the UI shows in place; there may be none."""
    records = [
        dg.TableRecord(
            {key: "" if value is None else f"{value:.4g}" if isinstance(value, float)
             else str(value) for key, value in row.items()}
        )
        for row in rows
    ]  # fmt: skip
    return dg.MetadataValue.table(records, None if records else dg.TableSchema([]))
