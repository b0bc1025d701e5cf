"""The sensors' ticks as the daemon evaluates them, against real tables and a Discord stand-in."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from tests.alerts.conftest import Bot
from trading_pipelines.alerts import delivery, ledger
from trading_pipelines.alerts.kinds import KINDS
from trading_pipelines.definitions import build_definitions
from trading_pipelines.partitions import range_tags
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.resources.webhooks import WebhooksResource
from trading_pipelines.sensors.finished_runs import finished_runs
from trading_pipelines.settings.strategy import AlertSettings, StrategySettings
from trading_pipelines.simulators.discord import DiscordInbox

SETTINGS = StrategySettings()


@pytest.fixture(autouse=True)
def _environment(market_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("TRADING_PIPELINES_HOME", str(tmp_path))
    monkeypatch.setattr(delivery, "TICK_SECONDS", 0.5)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[DiscordInbox]:
    with DiscordInbox() as inbox:
        monkeypatch.setenv("DISCORD_WEBHOOK_URL", inbox.url)
        yield inbox


def tick(
    instance: dg.DagsterInstance,
    sensor: str,
    settings: StrategySettings = SETTINGS,
    cursor: str | None = None,
) -> SensorExecutionData:
    definitions = build_definitions(settings)
    with dg.build_sensor_context(
        instance,
        cursor=cursor,
        resources={"database": DatabaseResource(), "webhooks": WebhooksResource()},
        repository_def=definitions.get_repository_def(),
    ) as context:
        return definitions.resolve_sensor_def(sensor).evaluate_tick(context)


def evaluations(data: SensorExecutionData) -> list[tuple[bool, object]]:
    """Return of each evaluation whether it passed, and the number of dead alerts of trades."""
    return [
        (event.passed, event.metadata["dead_trade"].value)
        for event in data.asset_events
        if isinstance(event, dg.AssetCheckEvaluation) and event.check_name == "no_dead_alerts"
    ]


def test_each_kind_has_a_sensor_that_is_on_by_default() -> None:
    sensors = {
        one.name: one.default_status
        for one in build_definitions(SETTINGS).sensors or []
        if one.name.endswith("_alerts")
    }
    assert sensors == {f"{kind}_alerts": dg.DefaultSensorStatus.RUNNING for kind in KINDS}


def test_without_a_webhook_nothing_is_switched_on_and_the_tick_says_why(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    said = tick(instance, "ai_reject_alerts").skip_message
    assert said == "neither N8N_URL nor DISCORD_WEBHOOK_URL is set: nothing can be sent"
    assert connection.execute("SELECT * FROM trading_pipelines.alert_kinds").fetchall() == []


def test_a_rejection_arrives_and_the_tick_says_so(
    instance: dg.DagsterInstance, connection: psycopg.Connection, inbox: DiscordInbox
) -> None:
    tick(instance, "ai_reject_alerts")
    Bot(connection).reject(datetime.now(UTC))
    assert tick(instance, "ai_reject_alerts").skip_message == "1 new, 1 delivered"
    assert [m.payload["embeds"][0]["title"] for m in inbox.messages] == ["AI 거절: KRW-BTC"]


def test_a_tick_that_stays_ends_when_the_services_are_stopped(
    instance: dg.DagsterInstance,
    inbox: DiscordInbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "TICK_SECONDS", 1e9)
    (tmp_path / "stopping").touch()
    assert tick(instance, "ai_reject_alerts").skip_message == "0 new"
    assert inbox.messages == []


def test_a_kind_that_is_off_is_left_to_the_bot_and_later_sends_nothing_older(
    instance: dg.DagsterInstance, connection: psycopg.Connection, inbox: DiscordInbox
) -> None:
    off = SETTINGS.model_copy(update={"alerts": AlertSettings(ai_reject=False)})
    tick(instance, "ai_reject_alerts")
    Bot(connection).reject(datetime.now(UTC))
    assert "off in the settings" in (tick(instance, "ai_reject_alerts", off).skip_message or "")
    tick(instance, "ai_reject_alerts")
    assert inbox.messages == []


def test_a_risk_state_is_noted_as_it_was_first_seen_though_its_kind_is_off(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    off = SETTINGS.model_copy(update={"alerts": AlertSettings(risk=False)})
    first = datetime(2025, 9, 10, 10, 58, tzinfo=UTC)
    Bot(connection).halt(True, first)
    tick(instance, "risk_alerts", off)
    Bot(connection).halt(True, datetime(2025, 9, 10, 11, 0, tzinfo=UTC))
    tick(instance, "risk_alerts", off)
    noted = connection.execute("SELECT type, occurred_at FROM trading_pipelines.risk_states")
    assert noted.fetchall() == [("HALT", first)]


def test_the_check_is_evaluated_when_the_number_of_dead_alerts_changes_and_only_then(
    instance: dg.DagsterInstance, connection: psycopg.Connection, inbox: DiscordInbox
) -> None:
    del inbox
    sensor = "pipeline_failure_alerts"
    first = tick(instance, sensor)
    assert evaluations(first) == [(True, 0)]
    assert tick(instance, sensor, cursor=first.cursor).asset_events == []
    ledger.enter(
        connection, "trade", "trading_history", "1", "trade", {}, occurred_at=None, problem="odd"
    )
    dead = tick(instance, sensor, cursor=first.cursor)
    assert evaluations(dead) == [(False, 1)]


def test_a_dead_alert_is_told(
    instance: dg.DagsterInstance, connection: psycopg.Connection, inbox: DiscordInbox
) -> None:
    tick(instance, "pipeline_failure_alerts")
    ledger.enter(
        connection, "trade", "trading_history", "1", "trade", {}, occurred_at=None, problem="odd"
    )
    tick(instance, "pipeline_failure_alerts")
    assert ["ALERT_DEAD" in m.payload["embeds"][0]["title"] for m in inbox.messages] == [True]


def run(instance: dg.DagsterInstance, *, fails: bool, **tags: str) -> None:
    @dg.op
    def step() -> None:
        if fails:
            raise dg.Failure("KRW-BTC|2026-11-24: no such market")

    @dg.job
    def some_job() -> None:
        step()

    some_job.execute_in_process(instance=instance, raise_on_error=False, tags=tags)


def test_a_failed_run_is_seen_with_its_words_and_with_the_good_ones_since(
    instance: dg.DagsterInstance,
) -> None:
    now = datetime.now(UTC)
    run(instance, fails=False)
    assert finished_runs(instance, SETTINGS.symbols, now) == [], "nothing failed"
    run(instance, fails=True)
    run(instance, fails=False)
    found = finished_runs(instance, SETTINGS.symbols, now)
    assert sorted(one.failed for one in found) == [False, True]
    assert [one.error for one in found if one.failed] == ["KRW-BTC|2026-11-24: no such market"]


def test_a_range_names_the_symbols_between_its_ends(instance: dg.DagsterInstance) -> None:
    now = datetime.now(UTC)
    day = date(2026, 11, 24)
    run(instance, fails=True, **range_tags(["KRW-ETH", "KRW-SOL"], day, day))
    (found,) = finished_runs(instance, SETTINGS.symbols, now)
    assert found.symbols == ("KRW-ETH", "KRW-XRP", "KRW-SOL")


def test_a_run_that_is_tried_again_has_not_failed_for_good(
    instance: dg.DagsterInstance,
) -> None:
    run(instance, fails=True, **{"dagster/will_retry": "true"})
    assert finished_runs(instance, SETTINGS.symbols, datetime.now(UTC)) == []
