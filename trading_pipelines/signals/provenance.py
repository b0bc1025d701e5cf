"""By which settings and which code the stored partitions were made, counted by asset.

What one number was made from belongs in `explain`, whether a partition is due for it in `due`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row

from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import POOLED, SIGNALS

MADE_BY = """
SELECT coverage.asset, coverage.settings_digest, coverage.code_version, kept.settings,
    count(*) AS partitions
FROM trading_pipelines.signal_coverage AS coverage
LEFT JOIN trading_pipelines.signal_settings AS kept
    ON kept.asset = coverage.asset AND kept.digest = coverage.settings_digest
WHERE coverage.computed_until IS NOT NULL AND coverage.symbol = ANY(%(symbols)s)
    AND coverage.day >= %(start)s
GROUP BY 1, 2, 3, 4
ORDER BY 1, 2, 3
"""


@dataclass(frozen=True)
class Making:
    """How many partitions of an asset the same settings and the same code made."""

    asset: str
    settings_digest: str | None
    """None, as the code's version: they were made before provenance was kept."""
    code_version: str | None
    settings: Mapping[str, Any] | None
    partitions: int


@dataclass(frozen=True)
class MadeOtherwise:
    """How many partitions of an asset are not known to be made by the settings and code of now."""

    asset: str
    partitions: int
    """All that were computed."""
    by_other_settings: int
    changed: tuple[str, ...]
    """Which settings were other, and what they are now: `name 2.0, now 3.0`."""
    by_other_code: int
    """By the settings of now, but by a version of the computation that is not the code's."""
    not_known: int
    """Made before provenance was kept."""


def made_otherwise(
    connection: psycopg.Connection, settings: StrategySettings
) -> list[MadeOtherwise]:
    """Return an entry for each asset with such partitions, of the symbols and days collected."""
    arguments = {"symbols": [POOLED, *settings.symbols], "start": settings.data.start_date}
    with connection.cursor(row_factory=class_row(Making)) as cursor:
        makings = cursor.execute(MADE_BY, arguments).fetchall()
    entries = []
    for signal in SIGNALS:
        digest, matter = signal.settings_digest(settings), signal.settings_that_matter(settings)
        of_asset = [making for making in makings if making.asset == signal.asset]
        other = [m for m in of_asset if m.settings_digest not in {None, digest}]
        code = [
            m for m in of_asset
            if m.settings_digest == digest and m.code_version != signal.code_version
        ]  # fmt: skip
        unknown = [m for m in of_asset if m.settings_digest is None]
        if other or code or unknown:
            changed = (text for m in other for text in changes(m.settings or {}, matter))
            entries.append(
                MadeOtherwise(
                    signal.asset,
                    _sum(of_asset),
                    by_other_settings=_sum(other),
                    changed=tuple(dict.fromkeys(changed)),
                    by_other_code=_sum(code),
                    not_known=_sum(unknown),
                )
            )
    return entries


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return, for each setting of which the values differ, its name and both values in words."""
    return [
        f"{name} {_shown(before, name)}, now {_shown(now, name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return f"{values[name]}" if name in values else "not there"


def _sum(makings: list[Making]) -> int:
    return sum(making.partitions for making in makings)
