"""Dagster as it is read, from its real storage; and the sensor that tells that all is well."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.tags import (
    DOCKER_IMAGE_TAG,
    GRPC_INFO_TAG,
    MAX_RETRIES_TAG,
    PARENT_RUN_ID_TAG,
    PRIORITY_TAG,
    ROOT_RUN_ID_TAG,
)
from dagster._daemon import controller
from dagster._daemon.backfill import execute_backfill_iteration_loop
from dagster._daemon.controller import (
    DEFAULT_DAEMON_HEARTBEAT_TOLERANCE_SECONDS,
    DEFAULT_HEARTBEAT_INTERVAL_SECONDS,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster._grpc.types import CanCancelExecutionResult
from dagster._serdes import serialize_value
from dagster_shared.error import SerializableErrorInfo
from typer.testing import CliRunner

from tests.alerts.conftest import Receiver, Reply
from tests.conftest import copied, new_database
from trading_pipelines.alerts import ledger
from trading_pipelines.candles.windows import HOUR, MINUTE
from trading_pipelines.cli import render
from trading_pipelines.cli.main import app
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.definitions import build_definitions, build_schedules, build_sensors
from trading_pipelines.monitoring import daemons, dagster_instance
from trading_pipelines.monitoring.facts import Daemon, HeldSlot, Orchestration, Unknown
from trading_pipelines.runtime.daemon import works
from trading_pipelines.schedules.run_requests import REPORT
from trading_pipelines.settings.shipped import INSTANCE_SETTINGS, shipped
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy

SETTINGS = StrategySettings()
NOW = datetime(2026, 11, 24, 12, 3, tzinfo=UTC)
REPOSITORY = RemoteRepositoryOrigin(
    RegisteredCodeLocationOrigin("trading_pipelines"), "__repository__"
)
SCHEDULES = [
    *("refresh_market_data", "update_regime", "update_volatility", "retrain_volatility"),
    *("update_reject_outcomes", "make_daily_report", "make_reject_summary"),
    *("make_ai_scorecard", "housekeeping"),
]
SENSORS = [
    *("ai_reject_alerts", "ai_decision_alerts", "trade_alerts", "risk_alerts"),
    *("daily_report_alerts", "reject_summary_alerts", "ai_scorecard_alerts"),
    *("pipeline_failure_alerts", "reconcile_partitions", "observe_bot_tables"),
]


@pytest.fixture(scope="session")
def storage_template(server: EmbeddedServer) -> str:
    """The name of a database with Dagster's tables."""
    with opened(new_database(server, "template_storage")):
        return "template_storage"


def opened(url: str) -> dg.DagsterInstance:
    storage = {"postgres": {"postgres_url": url}}
    settings = str(shipped(INSTANCE_SETTINGS).parent)
    return dg.DagsterInstance.from_ref(
        InstanceRef.from_dir(settings, overrides={"storage": storage})
    )


@pytest.fixture
def storage(server: EmbeddedServer, storage_template: str) -> str:
    """The URL of Dagster's storage, in which nothing has happened yet."""
    return copied(server, storage_template).replace("postgresql:", "postgresql+psycopg2:")


@pytest.fixture
def well(storage: str) -> Iterator[dg.DagsterInstance]:
    """An instance of which all is well at `NOW`."""
    with opened(storage) as found:
        make_well(found, NOW)
        yield found


def make_well(found: dg.DagsterInstance, now: datetime) -> None:
    for daemon in found.get_required_daemon_types():
        beat(found, daemon, now)
    for name in (*SCHEDULES, *SENSORS):
        state = state_of(name, now - 400 * HOUR)
        found.add_instigator_state(state)
        # A day ago for the daily one, which a schedule's tick is stamped with.
        at = now.replace(hour=3, minute=10) if name == "housekeeping" else now - MINUTE
        tick(found, name, at if at < now else at - 24 * HOUR)


def beat(found: dg.DagsterInstance, daemon: str, at: datetime) -> None:
    found.add_daemon_heartbeat(DaemonHeartbeat(at.timestamp(), daemon, "id", []))


def state_of(
    name: str, since: datetime, status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE
) -> InstigatorState:
    origin = RemoteInstigatorOrigin(REPOSITORY, name)
    if name in SENSORS:
        data = SensorInstigatorData(last_sensor_start_timestamp=since.timestamp())
        return InstigatorState(origin, InstigatorType.SENSOR, status, data)
    cron = ScheduleInstigatorData("* * * * *", since.timestamp())
    return InstigatorState(origin, InstigatorType.SCHEDULE, status, cron)


def tick(
    found: dg.DagsterInstance, name: str, at: datetime, status: TickStatus = TickStatus.SKIPPED
) -> None:
    state = state_of(name, at)
    error = SerializableErrorInfo("KeyError: 'x'\nand more\n", [], "KeyError")
    found.create_tick(
        TickData(
            state.instigator_origin_id,
            name,
            state.instigator_type,
            status,
            at.timestamp(),
            error=error if status is TickStatus.FAILURE else None,
            selector_id=state.selector_id,
        )
    )


def read(found: dg.DagsterInstance, now: datetime = NOW) -> Orchestration:
    known = dagster_instance.read(found, build_schedules(SETTINGS), build_sensors(SETTINGS), now)
    assert isinstance(known, Orchestration), known
    return known


def late(known: Orchestration, now: datetime = NOW) -> list[str]:
    return [
        one.name
        for one in (*known.schedules, *known.sensors)
        if one.next_tick is None or one.next_tick < now
    ]


def test_what_should_be_on_is_read_with_its_ticks(well: dg.DagsterInstance) -> None:
    known = read(well)
    assert all(daemon.healthy for daemon in known.daemons)
    assert {daemon.name for daemon in known.daemons} >= {"SENSOR", "SCHEDULER", "BACKFILL"}
    assert [one.name for one in known.schedules] == SCHEDULES
    assert [one.name for one in known.sensors] == SENSORS, "the heartbeat does not judge itself"
    assert all(one.is_on and not one.error for one in (*known.schedules, *known.sensors))
    next_ticks = {one.name: one.next_tick for one in (*known.schedules, *known.sensors)}
    assert next_ticks["refresh_market_data"] == NOW
    assert next_ticks["make_daily_report"] == NOW.replace(minute=10)
    assert next_ticks["housekeeping"] == datetime(2026, 11, 25, 3, 10, tzinfo=UTC)
    assert next_ticks["risk_alerts"] == NOW - MINUTE + timedelta(seconds=1)
    assert known.held_slots == []


def test_where_the_data_are_not_refreshed_their_schedules_need_not_be_on() -> None:
    off = StrategySettings(data=DataSettings(refresh=False))
    wanted = [one.name for one in build_schedules(off) if dagster_instance._should_be_on(one)]
    assert wanted == ["housekeeping"]


def test_a_daemon_works_when_each_part_has_given_a_heartbeat_since_it_began(
    well: dg.DagsterInstance, storage: str, tmp_path: Path
) -> None:
    alive = tmp_path / "daemon"
    assert works(alive, storage, began=NOW - MINUTE, now=NOW + MINUTE)
    assert not works(alive, storage, began=NOW + MINUTE, now=NOW + MINUTE), "the one before"
    assert not works(alive, storage, began=NOW - MINUTE, now=NOW + HOUR), "it hangs"
    beat(well, "SENSOR", NOW + HOUR)
    assert not works(alive, storage, began=NOW - MINUTE, now=NOW + HOUR), "a part of it hangs"


def test_a_daemon_whose_database_is_away_counts_as_before(tmp_path: Path) -> None:
    alive, nobody = tmp_path / "daemon", "postgresql+psycopg2://u:p@127.0.0.1:1/nothing"
    assert not works(alive, nobody, began=NOW, now=NOW)
    alive.touch()
    assert works(alive, nobody, began=NOW, now=NOW)


def test_a_heartbeat_that_is_old_or_missing_is_not_healthy(well: dg.DagsterInstance) -> None:
    beat(well, "SENSOR", NOW - HOUR)
    (old,) = [daemon for daemon in read(well).daemons if not daemon.healthy]
    assert (old.name, old.last_heartbeat) == ("SENSOR", NOW - HOUR)
    well.wipe_daemon_heartbeats()
    assert {daemon.last_heartbeat for daemon in read(well).daemons} == {None}


def test_the_daemons_alone_are_read_without_dagster_and_are_the_same(
    well: dg.DagsterInstance, storage: str
) -> None:
    assert set(daemons.REQUIRED) == set(well.get_required_daemon_types())
    tolerance = DEFAULT_HEARTBEAT_INTERVAL_SECONDS + DEFAULT_DAEMON_HEARTBEAT_TOLERANCE_SECONDS
    assert timedelta(seconds=tolerance) == daemons.TOLERANCE
    beat(well, "SENSOR", NOW - daemons.TOLERANCE)
    beat(well, "ASSET", NOW - daemons.TOLERANCE - timedelta(seconds=1))
    # Dagster writes a column in the server's time zone.
    with connect(storage) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET timezone TO 'Asia/Seoul'")
    alone = daemons.ask_for_daemons(storage, NOW)
    assert isinstance(alone, Orchestration), alone
    assert {one.name for one in alone.daemons if not one.healthy} == {"ASSET"}
    assert sorted(alone.daemons, key=by_name) == sorted(read(well).daemons, key=by_name)


def by_name(daemon: Daemon) -> str:
    return daemon.name


def test_where_dagster_has_never_run_its_daemons_are_not_known(empty_url: str) -> None:
    assert daemons.ask_for_daemons(empty_url, NOW) == daemons.NEVER_RAN
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    assert daemons.ask_for_daemons(nowhere, NOW) == Unknown("see database")


@pytest.mark.parametrize("name", ["update_regime", "risk_alerts"])
def test_what_was_stopped_is_off(well: dg.DagsterInstance, name: str) -> None:
    well.update_instigator_state(state_of(name, NOW, InstigatorStatus.STOPPED))
    known = read(well)
    assert [one.name for one in (*known.schedules, *known.sensors) if not one.is_on] == [name]


def test_without_ticks_the_next_one_is_long_over(well: dg.DagsterInstance) -> None:
    later = NOW + HOUR
    assert set(late(read(well, later), later)) == {*SCHEDULES, *SENSORS} - {"housekeeping"}


def test_what_no_daemon_has_seen_has_no_next_tick(storage: str) -> None:
    with opened(storage) as new:
        known = read(new)
    assert {one.next_tick for one in (*known.schedules, *known.sensors)} == {None}


def test_what_was_just_switched_on_is_not_late(well: dg.DagsterInstance) -> None:
    later = NOW + 48 * HOUR
    assert "housekeeping" in late(read(well, later), later)
    well.update_instigator_state(state_of("housekeeping", later, InstigatorStatus.RUNNING))
    assert "housekeeping" not in late(read(well, later), later)


def test_ticks_that_fail_again_and_again_are_told_and_a_single_one_is_not(
    well: dg.DagsterInstance,
) -> None:
    for n in (50, 40):
        tick(well, "risk_alerts", NOW - timedelta(seconds=n), TickStatus.FAILURE)
    assert {one.error for one in read(well).sensors} == {None}
    tick(well, "risk_alerts", NOW - timedelta(seconds=30), TickStatus.FAILURE)
    tick(well, "risk_alerts", NOW - timedelta(seconds=20), TickStatus.STARTED)
    errors = {one.name: one.error for one in read(well).sensors if one.error}
    assert errors == {"risk_alerts": "KeyError: 'x'"}


@dg.op
def step() -> None: ...


@dg.job
def some_job() -> None:
    step()


def run_of(found: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
    run = found.create_run_for_job(some_job, tags=tags)
    found.handle_run_event(run.run_id, event_of(status))
    return run


def event_of(status: dg.DagsterRunStatus) -> Any:
    kinds = {
        dg.DagsterRunStatus.STARTING: dg.DagsterEventType.RUN_STARTING,
        dg.DagsterRunStatus.STARTED: dg.DagsterEventType.RUN_START,
        dg.DagsterRunStatus.FAILURE: dg.DagsterEventType.RUN_FAILURE,
    }
    return dg.DagsterEvent(kinds[status].value, "some_job")


def test_a_run_that_no_code_server_vouches_for_holds_its_pool(
    well: dg.DagsterInstance, tmp_path: object
) -> None:
    server = {"host": "localhost", "socket": f"{tmp_path}/gone.sock"}
    run = run_of(well, dg.DagsterRunStatus.STARTED, **{GRPC_INFO_TAG: json.dumps(server)})
    (held,) = read(well).held_slots
    assert (held.run_id, held.description) == (run.run_id, "some_job STARTED, no process")
    assert held.quiet_since is not None
    assert abs(held.quiet_since - datetime.now(UTC)) < MINUTE
    well.report_run_failed(run)
    assert read(well).held_slots == []


def test_a_code_server_that_is_slow_may_vouch_for_its_runs_where_that_is_waited_for(
    well: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: object, __: object, timeout: int) -> str:
        if timeout < 10:
            raise DagsterUserCodeUnreachableError
        return serialize_value(CanCancelExecutionResult(can_cancel=True))

    monkeypatch.setattr(
        "trading_pipelines.monitoring.dagster_instance.DagsterGrpcClient.can_cancel_execution",
        answer,
    )
    server = {"host": "localhost", "port": 4000}
    run = run_of(well, dg.DagsterRunStatus.STARTED, **{GRPC_INFO_TAG: json.dumps(server)})
    (dead,) = dagster_instance.orphaned_runs(well)
    assert dead.dagster_run.run_id == run.run_id
    assert dagster_instance.orphaned_runs(well, 60) == []


def test_a_run_that_a_cluster_launched_is_left_to_dagsters_own_monitoring(
    well: dg.DagsterInstance,
) -> None:
    run_of(well, dg.DagsterRunStatus.STARTED, **{DOCKER_IMAGE_TAG: "trading-pipelines:1"})
    assert read(well).held_slots == []


def next_attempt(found: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    """Start the run again, as Dagster does: with the tags of the one before, in its group."""
    root = run.root_run_id or run.run_id
    tags = {PARENT_RUN_ID_TAG: run.run_id, ROOT_RUN_ID_TAG: root}
    if MAX_RETRIES_TAG in run.tags:
        tags[MAX_RETRIES_TAG] = run.tags[MAX_RETRIES_TAG]
    next_run = found.create_run_for_job(
        some_job, tags=tags, parent_run_id=run.run_id, root_run_id=root
    )
    found.handle_run_event(next_run.run_id, event_of(dg.DagsterRunStatus.STARTED))
    return next_run


def test_cuts_use_up_none_of_a_runs_retries_and_it_goes_on_before_what_waits(
    well: dg.DagsterInstance,
) -> None:
    def ended() -> dg.DagsterRun:
        found = well.get_run_by_id(run.run_id)
        assert found is not None
        assert found.status is dg.DagsterRunStatus.FAILURE
        return found

    run = run_of(well, dg.DagsterRunStatus.STARTED)
    for _ in range(2 * well.run_retries_max_retries):
        dagster_instance.fail_orphaned_runs(well, 0)
        assert dagster_instance.will_retry(ended())
        assert int(ended().tags[PRIORITY_TAG]) > int(REPORT[PRIORITY_TAG])
        run = next_attempt(well, ended())
    for _ in range(well.run_retries_max_retries):
        well.report_run_failed(run)
        assert dagster_instance.will_retry(ended())
        run = next_attempt(well, ended())
    well.report_run_failed(run)
    assert not dagster_instance.will_retry(ended()), "its own failures count"


def test_the_daemon_looks_at_backfills_every_few_seconds(
    well: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its 30 s there is no setting: they passed before each wave of a backfill's runs."""
    monkeypatch.setattr(controller, "DEFAULT_DAEMON_INTERVAL_SECONDS", 30)
    monkeypatch.setattr("dagster._daemon.cli.cli", lambda _: None)
    dagster_instance.run_daemon("workspace.yaml")

    class Waits(threading.Event):
        waited: float | None = None

        def wait(self, timeout: float | None = None) -> bool:
            self.waited = timeout
            return True

    shutdown, workspace = Waits(), Workspace(well)
    for _ in execute_backfill_iteration_loop(
        workspace,  # type: ignore[arg-type]
        logging.getLogger(),
        shutdown,
    ):
        if shutdown.waited is not None:
            break
    assert shutdown.waited is not None
    assert 0 < shutdown.waited <= 5


class Workspace:
    """What a daemon is given, as far as it is asked for here."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance


def test_a_run_that_a_cluster_will_not_start_fails_with_the_clusters_words(
    well: dg.DagsterInstance,
) -> None:
    image = {DOCKER_IMAGE_TAG: "trading-pipelines:1"}
    lost, waits = (run_of(well, dg.DagsterRunStatus.STARTING, **image) for _ in range(2))
    started = run_of(well, dg.DagsterRunStatus.STARTED, **image)
    of_a_code_server = run_of(well, dg.DagsterRunStatus.STARTING)
    gone = {lost.run_id: "its Job is gone", started.run_id: "x", of_a_code_server.run_id: "x"}

    def left(before: datetime) -> list[str]:
        dagster_instance.fail_runs_that_will_not_start(well, gone.get, before)
        failed = well.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        return [run.run_id for run in failed]

    assert left(datetime.now(UTC) - MINUTE) == [], "its launcher may be about to create the Job"
    assert left(datetime.now(UTC) + MINUTE) == [lost.run_id]
    run = well.get_run_by_id(waits.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.STARTING
    said = [entry.message for entry in well.all_logs(lost.run_id)]
    assert any("the run does not start: its Job is gone" in message for message in said)


def test_a_slot_of_a_run_that_is_over_is_held(well: dg.DagsterInstance) -> None:
    storage = well.event_log_storage
    storage.set_concurrency_slots("upbit", 2)
    run = run_of(well, dg.DagsterRunStatus.FAILURE)
    storage.claim_concurrency_slot("upbit", run.run_id, "step")
    storage.claim_concurrency_slot("upbit", "no such run", "step")
    held = sorted(read(well).held_slots, key=lambda one: one.run_id)
    assert [(one.run_id, one.description) for one in held] == sorted(
        [
            (run.run_id, "FAILURE, holds a slot of upbit"),
            ("no such run", "gone, holds a slot of upbit"),
        ]
    )
    gone = next(one for one in held if one.run_id == "no such run")
    assert gone == replace(gone, quiet_since=None)
    assert all(isinstance(one, HeldSlot) for one in held)


def test_an_instance_is_opened_without_a_change_and_a_new_database_left_alone(
    server: EmbeddedServer, storage: str, well: dg.DagsterInstance
) -> None:
    del well
    wanted = (build_schedules(SETTINGS), build_sensors(SETTINGS))
    found = dagster_instance.probe_dagster(storage, *wanted, NOW)
    assert isinstance(found, Orchestration)
    assert [one.name for one in found.sensors] == SENSORS
    assert dagster_instance.probe_dagster(
        "postgresql://nobody@/x?host=/nowhere", *wanted, NOW
    ) == Unknown("see database")
    empty = new_database(server, "storage_to_be")
    assert dagster_instance.probe_dagster(empty, *wanted, NOW) == Unknown(
        "Dagster has never run on this database"
    )
    with psycopg.connect(empty) as connection:
        tables = connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'")
        assert tables.fetchall() == []


def test_storage_with_a_part_of_its_tables_is_not_known(server: EmbeddedServer) -> None:
    part = new_database(server, "storage_in_part")
    with psycopg.connect(part) as connection:
        connection.execute("CREATE TABLE job_ticks ()")
    found = dagster_instance.probe_dagster(
        part, build_schedules(SETTINGS), build_sensors(SETTINGS), NOW
    )
    assert isinstance(found, Unknown)
    assert "read-only" in found.reason


def test_a_server_that_stops_is_waited_for_until_the_deadline(
    storage: str, well: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    undo: list[Callable[[], None]] = []

    def stop(found: dg.DagsterInstance, *_: object) -> None:
        with found.run_storage.connect() as connection:  # type: ignore[attr-defined]
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            os.kill(pid, signal.SIGSTOP)
            undo.append(lambda: os.kill(pid, signal.SIGCONT))
            # Without a deadline the test would wait for ever, and not fail.
            late = threading.Timer(60, undo[-1])
            late.daemon = True
            late.start()
            undo.append(late.cancel)
            connection.scalar(sa.text("SELECT 1"))

    monkeypatch.setattr(dagster_instance, "_daemons", stop)
    monkeypatch.setattr("trading_pipelines.database.connection.DEADLINE_SECONDS", 1)
    wanted = (build_schedules(SETTINGS), build_sensors(SETTINGS), NOW)
    started = time.monotonic()
    try:
        known = [
            dagster_instance.probe_dagster(storage, *wanted),
            dagster_instance.read(well, *wanted),
        ]
        assert time.monotonic() - started < 20, "which is the deadline as it is set"
    finally:
        for one in undo:
            one()
    assert known == [Unknown("DatabaseError: no answer within 1 s")] * 2


@pytest.fixture
def running(
    storage: str, market_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An installation of which all is well now, whose data are not refreshed, and its environment.

    The real clock: a sensor's tick has no other.
    """
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", storage)
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(tmp_path / "strategy.yaml"))
    dump_strategy(UNREFRESHED, tmp_path / "strategy.yaml")
    with opened(storage) as found:
        make_well(found, datetime.now(UTC))
        yield found


UNREFRESHED = StrategySettings(data=DataSettings(refresh=False))


def heartbeat(found: dg.DagsterInstance) -> str:
    definitions = build_definitions(UNREFRESHED)
    with dg.build_sensor_context(found, repository_def=definitions.get_repository_def()) as context:
        tick = definitions.resolve_sensor_def(dagster_instance.HEARTBEAT).evaluate_tick(context)
    assert tick.skip_message is not None
    return tick.skip_message


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    receiver = Receiver()
    monkeypatch.setenv("HEARTBEAT_URL", f"{receiver.url}/ping/secret")
    yield receiver
    receiver.close()


def test_the_heart_beats_while_all_is_well_is_silent_in_a_fault_and_beats_again(
    running: dg.DagsterInstance, market_url: str, listener: Receiver
) -> None:
    assert heartbeat(running) == "all is well, told (200)"
    assert [(one.method, one.path) for one in listener.requests] == [("GET", "/ping/secret")]
    with connect(market_url) as connection:
        ledger.enter(
            connection, "risk", "risk_audit", "1", "risk", {}, occurred_at=None, problem="odd"
        )
        assert heartbeat(running) == "silent: dead_alerts (risk 1)"
        assert len(listener.requests) == 1
        connection.execute("DELETE FROM trading_pipelines.alert_deliveries")
    assert heartbeat(running) == "all is well, told (200)"
    assert len(listener.requests) == 2


def test_a_heart_that_is_not_heard_says_so_without_the_secret(
    running: dg.DagsterInstance, listener: Receiver
) -> None:
    listener.answer = lambda _: Reply(404, {})
    assert heartbeat(running) == "all is well, but HEARTBEAT_URL answers (404)"
    listener.stop()
    assert heartbeat(running) == "all is well, but HEARTBEAT_URL can't be asked: ConnectionError"


def test_without_a_url_nobody_is_told(running: dg.DagsterInstance) -> None:
    assert heartbeat(running) == "HEARTBEAT_URL is not set: nobody is told"


def test_the_command_says_by_its_exit_status_and_in_json_whether_all_is_well(
    running: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(app, ["health", "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["good"]) == (0, True), said
    assert datetime.fromisoformat(said["checked_at"]).utcoffset() == timedelta(0)
    assert set(said["checks"][0]) == {"name", "good", "found", "allowed", "advice"}
    beat(running, "SENSOR", NOW - HOUR)
    monkeypatch.setattr(render.out, "width", 400)
    shown = CliRunner().invoke(app, ["health"])
    assert shown.exit_code == 1
    assert "2026-11-24 20:03 KST" in shown.stdout
    again = json.loads(CliRunner().invoke(app, ["health", "--json"]).stdout)
    (daemons,) = [check for check in again["checks"] if not check["good"]]
    assert "2026-11-24T11:03:00+00:00" in daemons["found"]


def test_the_status_says_where_services_run_that_are_not_on_this_home(
    running: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render.out, "width", 400)
    for daemon in running.get_required_daemon_types():
        beat(running, daemon, datetime.now(UTC))
    assert "services: served apart (daemon healthy as of 20" in (
        CliRunner().invoke(app, ["status"]).stdout
    )


def test_the_commands_tell_of_storage_that_can_not_be_read(
    running: dg.DagsterInstance, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    monkeypatch.setattr(render.out, "width", 400)
    with psycopg.connect(storage.replace("+psycopg2", "")) as connection:
        connection.execute("DROP TABLE runs CASCADE")
    said = json.loads(CliRunner().invoke(app, ["health", "--json"]).stdout)
    assert {check["name"]: check["good"] for check in said["checks"]}["slots"] is None
    shown = CliRunner().invoke(app, ["status"])
    assert shown.exit_code == 0, shown.exception
    assert "in flight: not known, InternalError" in shown.stdout


def test_a_run_that_was_marked_as_cancelled_while_it_started_is_called_off() -> None:
    with dg.instance_for_test() as instance:
        job = dg.Definitions(assets=[dg.AssetSpec("a")]).resolve_implicit_global_asset_job_def()
        run = instance.create_run_for_job(job)
        assert not dagster_instance.is_called_off(instance, run)
        instance.report_run_canceled(run)
        instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name), run.run_id
        )
        started = instance.get_run_by_id(run.run_id)
        assert started is not None
        assert started.status is dg.DagsterRunStatus.STARTED, "Dagster forgets it"
        assert dagster_instance.is_called_off(instance, started)
