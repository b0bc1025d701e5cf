"""The observer's ticks as the daemon evaluates them, on real tables and Dagster's real storage."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from tests.alerts.conftest import Bot
from tests.conftest import new_database
from trading_pipelines import bot_views
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.database.housekeeping import purge_runs
from trading_pipelines.definitions import build_sensors
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings

AT = datetime(2025, 9, 16, 15, 30, tzinfo=UTC)
KEY = dg.AssetKey("agent_decisions")


@pytest.fixture
def bot(
    connection: psycopg.Connection,
    market_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bot:
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("TRADING_PIPELINES_HOME", str(tmp_path))
    return Bot(connection)


@pytest.fixture(scope="module")
def storage_url(server: EmbeddedServer) -> str:
    return new_database(server, "observations")


@pytest.fixture
def instance(storage_url: str) -> Iterator[dg.DagsterInstance]:
    storage = {"postgres": {"postgres_url": storage_url.replace("://", "+psycopg2://")}}
    with dg.instance_for_test(overrides={"storage": storage}) as instance:
        yield instance
        instance.wipe()


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> SensorExecutionData:
    """Evaluate a tick and store its events as the daemon does."""
    (sensor,) = (
        one for one in build_sensors(StrategySettings()) if one.name == "observe_bot_tables"
    )
    with dg.build_sensor_context(
        instance, cursor=cursor, resources={"database": DatabaseResource()}
    ) as context:
        data = sensor.evaluate_tick(context)
    for event in data.asset_events:
        assert isinstance(event, dg.AssetObservation)
        instance.report_runless_asset_event(event)
    return data


def observations(instance: dg.DagsterInstance) -> list[dg.AssetObservation]:
    """Return those of the decisions, the newest first."""
    records = instance.fetch_observations(KEY, limit=100).records
    return [one.asset_observation for one in records if one.asset_observation]


def test_new_rows_are_shown_on_their_asset_in_korean_time(
    instance: dg.DagsterInstance, bot: Bot
) -> None:
    first = tick(instance)
    assert (first.asset_events, first.skip_message) == ([], "nothing has changed")
    bot.reject(AT, "이유")
    data = tick(instance, first.cursor)
    assert data.skip_message == "observed: agent_decisions"
    (shown,) = observations(instance)
    assert shown.metadata["rows"].value == 1
    assert shown.metadata["newest"] == dg.MetadataValue.timestamp(AT)
    table = shown.metadata["newest_rows"]
    assert isinstance(table, dg.TableMetadataValue)
    assert table.records[0].data["created_at (KST)"] == "2025-09-17 00:30:00"
    assert table.records[0].data["reasoning"] == "이유"
    assert tick(instance, data.cursor).asset_events == []


@pytest.mark.parametrize("lost", [None, "", "no json", "[]", '{"agent_decisions": 1}'])
def test_a_lost_cursor_gives_one_more_observation_and_no_failure(
    instance: dg.DagsterInstance, bot: Bot, lost: str | None
) -> None:
    bot.reject(AT)
    tick(instance)
    again = tick(instance, lost)
    assert len(again.asset_events) == 1
    assert tick(instance, again.cursor).asset_events == []


def test_a_row_without_a_time_is_shown_and_no_newest_moment_is_claimed(
    instance: dg.DagsterInstance, bot: Bot
) -> None:
    bot.reject(None)
    tick(instance)
    (shown,) = observations(instance)
    assert "newest" not in shown.metadata


def test_the_bot_migrates_while_the_services_run_and_the_next_tick_follows(
    instance: dg.DagsterInstance, bot: Bot
) -> None:
    bot.reject(AT)
    cursor = tick(instance).cursor
    bot.connection.execute("ALTER TABLE risk_audit DROP COLUMN description, ADD COLUMN why text")
    bot.insert("risk_audit", violation_type="DRAWDOWN", why="new")
    data = tick(instance, cursor)
    assert data.skip_message == "observed: risk_audit"
    (event,) = data.asset_events
    assert "'why': 'new'" in str(event.metadata)


def test_a_view_that_could_not_follow_is_named(instance: dg.DagsterInstance, bot: Bot) -> None:
    bot.connection.execute(
        "CREATE VIEW mine AS SELECT decision FROM trading_pipelines.agent_decisions_kst"
    )
    bot.connection.execute("ALTER TABLE agent_decisions ADD COLUMN later text")
    assert "agent_decisions_kst stays as it was" in (tick(instance).skip_message or "")


def test_old_observations_are_purged_and_the_newest_stays(
    instance: dg.DagsterInstance, bot: Bot, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot_views, "OBSERVED_EVERY", timedelta(0))
    cursor = None
    for n in range(4):
        bot.reject(AT + timedelta(minutes=n))
        cursor = tick(instance, cursor).cursor
    before = observations(instance)
    assert [one.metadata["rows"].value for one in before] == [4, 3, 2, 1]
    with connect(storage_url) as storage:
        now = datetime.now(UTC)
        assert purge_runs(storage, now - timedelta(hours=1)).total() == 0, "nothing is that old"
        assert purge_runs(storage, now + timedelta(hours=1))["event_logs"] == 3
        rows = storage.execute("SELECT count(*) FROM asset_event_tags").fetchone()
    assert observations(instance) == before[:1]
    assert rows == (0,)
