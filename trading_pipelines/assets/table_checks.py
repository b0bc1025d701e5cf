"""Checks of what a table says, in two forms: evaluated by a run, and by a sensor without one.

Also the one of them that every computed asset has. What else is checked belongs with its asset.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import dagster as dg
import psycopg

from trading_pipelines.assets.metadata import table
from trading_pipelines.partitions import CANDLES_1M
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.left_failed import LeftFailed, left_failed, shown_intervals

CHECKED = [CANDLES_1M, *(signal.asset for signal in SIGNALS)]
"""The assets that have the check `no_partition_left_failed`."""

T = TypeVar("T")


@dataclass(frozen=True)
class TableCheck(Generic[T]):
    """A check of an asset: what is read for it, and whether that is good."""

    asset: str
    name: str
    description: str
    read: Callable[[psycopg.Connection], T]
    judge: Callable[[T], tuple[bool, dict[str, Any]]]
    """Returns whether the check passes, and its metadata."""

    def definition(self) -> dg.AssetChecksDefinition:
        """Return the check as Dagster evaluates it, in a run or alone."""

        @dg.asset_check(asset=self.asset, name=self.name, description=self.description)
        def check(database: DatabaseResource) -> dg.AssetCheckResult:
            with database.connect() as connection:
                passed, metadata = self.judge(self.read(connection))
            return dg.AssetCheckResult(passed=passed, metadata=metadata)

        return check

    def evaluation(self, rows: T) -> dg.AssetCheckEvaluation:
        """Return the event of an evaluation without a run, for a sensor that has read the rows."""
        passed, metadata = self.judge(rows)
        return dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(self.asset),
            check_name=self.name,
            passed=passed,
            metadata=metadata,
        )


def no_partition_left_failed(
    asset: str, settings: StrategySettings
) -> TableCheck[Sequence[LeftFailed]]:
    """Return the check that fails while an asset has partitions that nothing tries any more."""

    def read(connection: psycopg.Connection) -> list[LeftFailed]:
        rows = left_failed(connection, settings.symbols)
        return [row for row in rows if row.asset == asset]

    return TableCheck(
        asset,
        "no_partition_left_failed",
        "No partition has spent its attempts. Those that have are named here and in "
        "`trading-pipelines status`, each with what makes it be tried again.",
        read,
        _judge_left_failed,
    )


def _judge_left_failed(rows: Sequence[LeftFailed]) -> tuple[bool, dict[str, Any]]:
    records = (
        {
            "symbol": row.symbol,
            "days (UTC)": shown_intervals(row.days),
            "error": row.error,
            "tried again by": row.retried_by,
        }
        for row in rows
    )
    return not rows, {"left_failed": table(records)} if rows else {}
