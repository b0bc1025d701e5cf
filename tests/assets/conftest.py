"""The schedules' jobs as Dagster runs them, in process on an ephemeral instance."""

from datetime import date
from typing import Any

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from trading_pipelines.definitions import build_definitions
from trading_pipelines.partitions import range_tags
from trading_pipelines.settings.strategy import StrategySettings


class Dagster:
    """Runs a job over partitions."""

    def __init__(self, instance: dg.DagsterInstance, settings: StrategySettings) -> None:
        self.instance = instance
        self._definitions = build_definitions(settings)

    def run(
        self,
        job: str,
        first: date,
        last: date,
        symbols: list[str],
        *assets: str,
        run_config: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        return self._definitions.resolve_job_def(job).execute_in_process(
            run_config=run_config,
            instance=self.instance,
            tags=range_tags(symbols, first, last) | (tags or {}),
            asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
            raise_on_error=False,
        )

    def materialized(self, asset: str) -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))


def add_backfill(
    instance: dg.DagsterInstance,
    backfill_id: str,
    *assets: str,
    status: BulkActionStatus = BulkActionStatus.REQUESTED,
) -> PartitionBackfill:
    """Return a backfill of the assets that the instance has now."""
    backfill = PartitionBackfill(
        backfill_id=backfill_id,
        status=status,
        from_failure=False,
        tags={},
        backfill_timestamp=0.0,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
    )
    instance.add_backfill(backfill)
    return backfill


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dict[str, object]]:
    """Return each partition's metadata."""
    return {
        event.partition or "": {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    }
