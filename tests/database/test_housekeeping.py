"""A purge takes what is over from Dagster's real storage, and nothing that a person would miss."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg
import pytest

from tests.conftest import new_database
from trading_pipelines.database import housekeeping
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.database.housekeeping import purge_runs, record_sizes

DAYS = dg.MultiPartitionsDefinition(
    {
        "date": dg.StaticPartitionsDefinition(["2025-09-01", "2025-09-02"]),
        "symbol": dg.StaticPartitionsDefinition(["KRW-BTC"]),
    }
)
KEYS = ["2025-09-01|KRW-BTC", "2025-09-02|KRW-BTC"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOON = datetime(2025, 9, 10, 12, tzinfo=UTC)
TABLES = ("runs", "run_tags", "event_logs", "asset_event_tags", "asset_check_executions")


class Config(dg.Config):
    """Whether a step fails, or the check."""

    fails: bool = False


@dg.asset(partitions_def=DAYS)
def candles(config: Config) -> None:
    if config.fails:
        raise ValueError


@dg.asset_check(asset=candles)
def whole(config: Config) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=not config.fails)


@dg.asset
def picture(context: dg.AssetExecutionContext) -> None:
    context.log.info("of no interest in a month")


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> str:
    return new_database(server, "housekeeping")


@pytest.fixture
def instance(url: str) -> Iterator[dg.DagsterInstance]:
    storage = {"postgres": {"postgres_url": url.replace("://", "+psycopg2://")}}
    with dg.instance_for_test(overrides={"storage": storage}) as instance:
        yield instance
        instance.wipe()


@pytest.fixture
def storage(url: str, instance: dg.DagsterInstance) -> Iterator[psycopg.Connection]:
    assert instance.is_persistent
    with connect(url) as connection:
        yield connection


def materialize(
    instance: dg.DagsterInstance, key: str | None = None, *, good: bool = True, passes: bool = True
) -> str:
    """Run an asset, `candles` and its check where a partition is given; return the run's id."""
    config = {"candles": Config(fails=not good), "candles_whole": Config(fails=not passes)}
    result = dg.materialize(
        [candles, whole] if key else [picture],
        instance=instance,
        partition_key=key,
        run_config=dg.RunConfig(ops=config if key else {}),
        raise_on_error=False,
    )
    assert result.success is good
    return result.run_id


def seen(instance: dg.DagsterInstance) -> list[object]:
    """Return what the UI shows of the assets: what is green, when it last was, and its checks."""
    found: list[object] = [instance.get_materialized_partitions(candles.key)]
    for asset in (candles, picture):
        record = instance.get_latest_materialization_event(asset.key)
        found += [instance.has_asset_key(asset.key), record and record.timestamp]
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        list(whole.check_keys)
    )
    for key in KEYS:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=candles.key, asset_partitions=[key]), limit=1
        ).records
        found += [(one.storage_id, one.asset_materialization) for one in records]
    return [*found, *((key, one.id, one.status) for key, one in latest.items())]


def rows(connection: psycopg.Connection) -> dict[str, int]:
    counts = {}
    for table in TABLES:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert row is not None
        counts[table] = row[0]
    return counts


def test_a_purge_takes_what_is_over_and_what_a_person_sees_stays(
    instance: dg.DagsterInstance, storage: psycopg.Connection
) -> None:
    for key in (*KEYS, *KEYS):
        materialize(instance, key, passes=False)
        materialize(instance, key)
    for _ in range(3):
        materialize(instance)
    before, shown = rows(storage), seen(instance)
    assert purge_runs(storage, datetime.now(UTC) - HOUR).total() == 0, "nothing is that old"
    assert rows(storage) == before

    purged = purge_runs(storage, datetime.now(UTC) + HOUR)
    after = rows(storage)
    assert seen(instance) == shown
    assert after["runs"] == after["run_tags"] == 0
    kept = (
        "SELECT asset_key, dagster_event_type, partition, count(*) FROM event_logs GROUP BY 1, 2, 3"
    )
    assert all(row[0] and row[3] == 1 for row in storage.execute(kept))
    assert after["asset_check_executions"] == 2, "the newest that passed and that did not"
    tags = "SELECT FROM asset_event_tags WHERE event_id NOT IN (SELECT id FROM event_logs)"
    assert storage.execute(tags).fetchall() == []
    assert after["asset_event_tags"] > 0
    assert {table: before[table] - after[table] for table in purged} == purged
    assert purge_runs(storage, datetime.now(UTC) + HOUR).total() == 0


def test_what_was_kept_goes_when_it_is_no_longer_the_newest(
    instance: dg.DagsterInstance, storage: psycopg.Connection
) -> None:
    materialize(instance, KEYS[0])
    purge_runs(storage, datetime.now(UTC) + HOUR)
    kept = rows(storage)
    materialize(instance, KEYS[0])
    purge_runs(storage, datetime.now(UTC) + HOUR)
    assert rows(storage) == kept


def test_a_run_that_is_not_finished_keeps_all_of_its_events(
    instance: dg.DagsterInstance, storage: psycopg.Connection
) -> None:
    run_id = materialize(instance, KEYS[0])
    materialize(instance, KEYS[0])
    events = len(instance.all_logs(run_id))
    storage.execute("UPDATE runs SET status = 'STARTED' WHERE run_id = %s", [run_id])
    purge_runs(storage, datetime.now(UTC) + HOUR)
    assert [run.run_id for run in instance.get_runs()] == [run_id]
    assert len(instance.all_logs(run_id)) == events


def test_a_run_that_failed_goes_and_its_partition_is_missing_as_before(
    instance: dg.DagsterInstance, storage: psycopg.Connection
) -> None:
    materialize(instance, KEYS[0])
    materialize(instance, KEYS[1], good=False)
    purge_runs(storage, datetime.now(UTC) + HOUR)
    assert instance.get_materialized_partitions(candles.key) == {KEYS[0]}
    status = instance.get_status_by_partition(candles.key, KEYS, DAYS)
    assert status is not None
    assert {key: one and one.value for key, one in status.items()} == {
        KEYS[0]: "MATERIALIZED",
        KEYS[1]: None,
    }


def test_a_purge_that_was_killed_between_two_statements_is_finished_by_the_next(
    instance: dg.DagsterInstance, storage: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        materialize(instance, KEYS[0])
    shown = seen(instance)
    with monkeypatch.context() as patch:
        patch.setattr(housekeeping, "AT_ONCE", 7)
        patch.setitem(housekeeping.PURGES, "asset_check_executions", "SELECT 1 / 0")
        with pytest.raises(psycopg.errors.DivisionByZero):
            purge_runs(storage, datetime.now(UTC) + HOUR)
        half = rows(storage)
        assert half["runs"] == 0
        assert half["asset_check_executions"] == 5
    assert purge_runs(storage, datetime.now(UTC) + HOUR)["asset_check_executions"] == 4
    assert seen(instance) == shown


def test_sizes_are_noted_and_the_growth_is_that_of_the_last_week(
    connection: psycopg.Connection,
) -> None:
    assert record_sizes(connection, 1000, 100, NOON - 20 * DAY) is None
    assert record_sizes(connection, 2000, 200, NOON - 7 * DAY) is None, "nothing is known of a week"
    assert record_sizes(connection, 2500, 400, NOON) == pytest.approx(100)
    assert record_sizes(connection, 2500, 400, NOON + HOUR) == pytest.approx(700 / (7 + 1 / 24))
    sizes = "SELECT count(*) FROM trading_pipelines.database_sizes"
    assert connection.execute(sizes).fetchone() == (4,)
    assert housekeeping.database_bytes(connection) > 5_000_000
