"""Checks of what a table says, in two forms: evaluated by a run, and by a sensor without one.

What is checked belongs with its asset; a verdict for each partition in `partition_checks`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import dagster as dg
import psycopg

from trading_pipelines.resources.database import DatabaseResource

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
