"""What a run plans to make, as our storage holds it and as Dagster's own does."""

from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.instance.ref import InstanceRef

from tests.conftest import new_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.processes import STORAGE

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-03-01")
RUN = "5a6f0f6e-0d3c-4f3e-9a39-0b8f4f6a7d10"
RANGE = {
    "dagster/asset_partition_range_start": "2026-01-02",
    "dagster/asset_partition_range_end": "2026-02-10",
}
PLANNED = """
SELECT asset_key, partition, run_id, dagster_event_type FROM event_logs
WHERE dagster_event_type LIKE '%PLANNED' ORDER BY asset_key, partition, dagster_event_type
"""
TRANSACTIONS = """
SELECT count(DISTINCT xmin::text) FROM event_logs
WHERE dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED'
"""
ASSETS = "SELECT asset_key, last_run_id, last_materialization FROM asset_keys ORDER BY 1"
CHECKS = "SELECT asset_key, check_name, execution_status FROM asset_check_executions ORDER BY 1, 2"


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def first() -> None: ...


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run(), deps=[first])
def second() -> None: ...


@dg.asset_check(asset=second)
def is_whole() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def planned_by(url: str, storage: object) -> tuple[list[object], int]:
    """Create a run of forty days; return what is stored of it, and in how many transactions."""
    settings = {"storage": storage, "telemetry": {"enabled": False}}
    ref = InstanceRef.from_dir(str(Path.cwd()), overrides=settings)
    job = dg.Definitions(
        [first, second], asset_checks=[is_whole]
    ).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.from_ref(ref) as instance:
        run = instance.create_run_for_job(job, run_id=RUN, tags=RANGE)
        statuses = instance.get_status_by_partition(second.key, DAYS.get_partition_keys(), DAYS)
    with psycopg.connect(url) as connection:
        stored = [connection.execute(query).fetchall() for query in (PLANNED, ASSETS, CHECKS)]
        (transactions,) = connection.execute(TRANSACTIONS).fetchone() or (0,)
    return [run.tags, statuses, *stored], transactions


def test_what_a_run_plans_is_stored_at_once_and_reads_as_it_did(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "1000")
    monkeypatch.chdir(tmp_path)
    url = new_database(server, "planned_by_ours")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url.replace("://", "+psycopg2://"))
    ours, transactions = planned_by(url, STORAGE["storage"])
    url = new_database(server, "planned_by_dagster")
    storage = {"postgres": {"postgres_url": url.replace("://", "+psycopg2://")}}
    theirs, of_dagster = planned_by(url, storage)
    assert ours == theirs
    assert (transactions, of_dagster) == (1, 80)
