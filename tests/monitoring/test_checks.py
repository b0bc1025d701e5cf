"""What is measured and how it is judged: from a healthy installation on, one fault at a time."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta

import psycopg
import pytest
from pydantic import SecretStr

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS, copied, new_database
from trading_pipelines.alerts import ledger
from trading_pipelines.candles import coverage, due
from trading_pipelines.candles.rate_limit import Clock, RequestSlots
from trading_pipelines.candles.windows import DAY, HOUR, MINUTE, day_interval
from trading_pipelines.database.connection import (
    connect,
    database_urls,
    newest_schema,
    probe_database,
)
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring import reconciliation
from trading_pipelines.monitoring.checks import judge
from trading_pipelines.monitoring.facts import (
    AutomationStatus,
    Check,
    Daemon,
    HeldSlot,
    Orchestration,
    Unknown,
)
from trading_pipelines.monitoring.measure import measure
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import (
    AlertSettings,
    DataSettings,
    HealthSettings,
    StrategySettings,
)
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals.catalogue import REALIZED_VOLATILITY, REGIME_LABELS, VOLATILITY_MODEL
from trading_pipelines.signals.registry import compute

SETTINGS = StrategySettings(data=DataSettings(start_date=FIRST_DAY))
NOW = day_interval(LAST_DAY).end + 4 * MINUTE
DAY_BEFORE = LAST_DAY - DAY
WELL = Orchestration(
    daemons=[Daemon("SENSOR", healthy=True, last_heartbeat=NOW - MINUTE)],
    schedules=[AutomationStatus("update_regime", is_on=True, next_tick=NOW, error=None)],
    sensors=[AutomationStatus("risk_alerts", is_on=True, next_tick=NOW, error=None)],
    held_slots=[],
)
NAMES = [
    *("database", "daemons", "settings", "schedules", "sensors", "candles", "live", "labels"),
    *("models", "alerts", "dead_alerts", "holes", "failed_partitions", "events", "slots", "clock"),
    *("database_size", "disk"),
]
# No candle of a closed day has come lately.
SETTLED = (
    "UPDATE trading_pipelines.candle_coverage SET changed_at = day::timestamp AT TIME ZONE 'UTC', "
    "computed_from = CASE interval WHEN '1h' THEN day::timestamp AT TIME ZONE 'UTC' END"
)

LIVE = """
WITH reader AS (
    INSERT INTO trading_pipelines.live_edge (started_at, connected_since, reconnects, updated_at)
    VALUES (%(now)s, %(now)s, 0, %(now)s))
UPDATE trading_pipelines.candle_coverage SET provisional_until = %(now)s
WHERE interval = '1m' AND symbol = 'KRW-BTC' AND day = (SELECT max(day)
    FROM trading_pipelines.candle_coverage)
"""


@pytest.fixture(scope="session")
def healthy_template(server: EmbeddedServer, recorded_template: str) -> str:
    """The name of a database of which, at `NOW`, all is well."""
    with connect(new_database(server, "template_healthy", recorded_template)) as connection:
        connection.execute(SETTLED)
        connection.execute(LIVE, {"now": NOW})
        for signal, days in {
            REGIME_LABELS: [DAY_BEFORE, LAST_DAY],
            REALIZED_VOLATILITY: [DAY_BEFORE],
            VOLATILITY_MODEL: [DAY_BEFORE],
        }.items():
            compute(connection, signal, SYMBOLS, days, SETTINGS, "run")
    return "template_healthy"


@pytest.fixture
def environment(server: EmbeddedServer, healthy_template: str) -> Environment:
    return Environment(
        database_url=SecretStr(copied(server, healthy_template)),
        dagster_postgres_url=SecretStr(server.url("postgres")),
    )


def plant(environment: Environment, statement: str) -> None:
    with connect(database_urls(environment).market) as connection:
        assert connection.execute(statement).rowcount > 0, "nothing was planted"


def checked(
    environment: Environment,
    orchestration: Orchestration | Unknown = WELL,
    settings: StrategySettings = SETTINGS,
    now: datetime = NOW,
) -> dict[str, Check]:
    facts = measure(environment, settings, orchestration, now)
    return {check.name: check for check in judge(facts, settings, now, kst)}


def bad(checks: dict[str, Check]) -> dict[str, str]:
    """Return what is not good, and what was found there."""
    return {name: check.found for name, check in checks.items() if not check.good}


def test_of_a_healthy_installation_everything_is_good(environment: Environment) -> None:
    checks = checked(environment)
    assert list(checks) == NAMES
    assert bad(checks) == {}
    assert checks["candles"].found == "to 2025-09-22 09:00 KST"
    assert checks["labels"].found == "as of 2025-09-22 09:00 KST"
    assert checks["models"].found == "of 2025-09-20"
    assert "growth a day: not known yet" in checks["database_size"].found


OF_DAGSTER: dict[str, tuple[Orchestration, str, str]] = {
    "a daemon's heartbeat is old": (
        replace(WELL, daemons=[Daemon("SENSOR", healthy=False, last_heartbeat=NOW - HOUR)]),
        "daemons",
        "SENSOR: last heartbeat 2025-09-22 08:04 KST",
    ),
    "a daemon was never there": (
        replace(WELL, daemons=[Daemon("SENSOR", healthy=False, last_heartbeat=None)]),
        "daemons",
        "SENSOR: last heartbeat: never",
    ),
    "a schedule was stopped": (
        replace(WELL, schedules=[replace(WELL.schedules[0], is_on=False)]),
        "schedules",
        "update_regime: off",
    ),
    "a schedule does not tick": (
        replace(WELL, schedules=[replace(WELL.schedules[0], next_tick=NOW - HOUR)]),
        "schedules",
        "update_regime: no tick since 2025-09-22 08:04 KST",
    ),
    "a sensor was stopped": (
        replace(WELL, sensors=[replace(WELL.sensors[0], is_on=False)]),
        "sensors",
        "risk_alerts: off",
    ),
    "the code location does not load": (
        replace(WELL, sensors=[replace(WELL.sensors[0], next_tick=None)]),
        "sensors",
        "risk_alerts: no daemon has seen it",
    ),
    "a sensor fails": (
        replace(WELL, sensors=[replace(WELL.sensors[0], error="KeyError: 'x'")]),
        "sensors",
        "risk_alerts: fails: KeyError: 'x'",
    ),
    "a dead run holds a slot": (
        replace(WELL, held_slots=[HeldSlot("0123456789", "job STARTED, no process", NOW - HOUR)]),
        "slots",
        "run 01234567: job STARTED, no process, quiet since 2025-09-22 08:04 KST",
    ),
}


@pytest.mark.parametrize("fault", OF_DAGSTER)
def test_a_fault_of_dagster_is_told_and_nothing_else(environment: Environment, fault: str) -> None:
    orchestration, name, found = OF_DAGSTER[fault]
    assert bad(checked(environment, orchestration)) == {name: found}


def test_events_that_differ_from_the_tables_are_told(environment: Environment) -> None:
    assert environment.database_url is not None
    with connect(environment.database_url.get_secret_value()) as connection:
        reconciliation.record(connection, "candles_1m", "8 differ", 8, NOW)
        reconciliation.record(connection, "candles_1h", None, 0, NOW)
        assert bad(checked(environment)) == {"events": "candles_1m: 8 partitions differ"}
        reconciliation.record(connection, "candles_1m", None, 0, NOW)
        assert bad(checked(environment)) == {}


def test_what_is_a_little_late_is_no_fault(environment: Environment) -> None:
    late = NOW - 14 * MINUTE
    orchestration = Orchestration(
        WELL.daemons,
        [replace(WELL.schedules[0], next_tick=late)],
        [replace(WELL.sensors[0], next_tick=late)],
        [HeldSlot("0123456789", "job STARTING, no process", late)],
    )
    assert bad(checked(environment, orchestration)) == {}


ONE_DAY = "symbol = 'KRW-SOL' AND interval = '1m' AND day = '2025-09-10'"
OF_DATA = {
    "one symbol's candles are late": (
        (
            "UPDATE trading_pipelines.candle_coverage SET fetched_until = fetched_until - "
            "interval '17 minutes' "
            "WHERE symbol = 'KRW-ETH' AND interval = '1m' AND day = '2025-09-21'"
        ),
        "candles",
        "KRW-ETH: to 2025-09-22 08:43 KST",
    ),
    "one symbol's labels are late": (
        (
            "DELETE FROM trading_pipelines.regime_labels "
            "WHERE symbol = 'KRW-XRP' AND hour >= '2025-09-21 22:00Z'"
        ),
        "labels",
        "KRW-XRP: as of 2025-09-22 07:00 KST",
    ),
    "the model is late": (
        "DELETE FROM trading_pipelines.signal_coverage WHERE asset = 'volatility_model'",
        "models",
        "none of 2025-09-20: missing",
    ),
    "candles have gone": (
        (
            "DELETE FROM market_data WHERE symbol = 'KRW-SOL' AND interval = '1m' "
            "AND timestamp >= '2025-09-10 05:00Z' AND timestamp < '2025-09-10 05:07Z'"
        ),
        "holes",
        "KRW-SOL: 7 (2025-09-10)",
    ),
    "a closed day was never asked for": (
        f"DELETE FROM trading_pipelines.candle_coverage WHERE {ONE_DAY}",
        "holes",
        "KRW-SOL: 1,440 (2025-09-10)",
    ),
    "a day of candles is left failed": (
        (
            "UPDATE trading_pipelines.candle_coverage SET status = 'failed', failures = 8, "
            "left_failed = true, fetched_until = '2025-09-10Z', confirmed_until = '2025-09-10Z', "
            f"error = 'no market', rows = 0 WHERE {ONE_DAY}"
        ),
        "failed_partitions",
        "left failed candles_1m KRW-SOL: 2025-09-10",
    ),
    "a day of labels keeps failing": (
        (
            "UPDATE trading_pipelines.signal_coverage SET failures = 3 "
            "WHERE asset = 'regime_labels' AND symbol = 'KRW-BTC'"
        ),
        "failed_partitions",
        "failing regime_labels KRW-BTC: 2025-09-20 to 2025-09-21",
    ),
    "the newest minute is old": (
        (
            "UPDATE trading_pipelines.candle_coverage SET provisional_until = NULL "
            "WHERE provisional_until IS NOT NULL"
        ),
        "live",
        "the newest minute ended 2025-09-22 09:00 KST",
    ),
    "the reader is dead": (
        "UPDATE trading_pipelines.live_edge SET updated_at = updated_at - interval '2 minutes'",
        "live",
        "its reader is silent since 2025-09-22 09:02 KST",
    ),
    "no reader has ever worked": (
        "DELETE FROM trading_pipelines.live_edge",
        "live",
        "no reader of the stream has ever worked",
    ),
    "the schema is old": (
        "UPDATE trading_pipelines.alembic_version SET version_num = '0003'",
        "database",
        f"the schema is at 0003, {newest_schema()} is the newest",
    ),
}


@pytest.mark.parametrize("fault", OF_DATA)
def test_a_fault_of_the_data_is_told_and_nothing_else(environment: Environment, fault: str) -> None:
    statement, name, found = OF_DATA[fault]
    plant(environment, statement)
    assert bad(checked(environment)) == {name: found}


LABELLED = """
INSERT INTO trading_pipelines.signal_coverage (asset, symbol, day, computed_until, run_id)
SELECT 'regime_labels', symbol, day, fetched_until, 'run' FROM trading_pipelines.candle_coverage
WHERE interval = '1m' ON CONFLICT DO NOTHING
"""
SHORT = SETTINGS.model_copy(update={"data": DataSettings(start_date=FIRST_DAY, look_back_days=7)})


def look_after(environment: Environment, first_day: date) -> None:
    plant(environment, LABELLED)
    with connect(database_urls(environment).market) as connection:
        # As by a tick of that time, with a look-back of seven days.
        days = [first_day + DAY * n for n in range(8)]
        coverage.look_after(connection, SYMBOLS, SHORT.data, days)


def test_days_that_an_outage_left_before_the_look_back_are_told(environment: Environment) -> None:
    look_after(environment, date(2025, 9, 4))
    assert bad(checked(environment, settings=SHORT)) == {}
    plant(environment, f"DELETE FROM trading_pipelines.candle_coverage WHERE {ONE_DAY}")
    plant(
        environment,
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial' "
        "WHERE symbol = 'KRW-BTC' AND day BETWEEN '2025-09-05' AND '2025-09-06'",
    )
    plant(
        environment,
        "DELETE FROM trading_pipelines.signal_coverage "
        "WHERE symbol = 'KRW-ETH' AND asset = 'regime_labels' AND day = '2025-09-08'",
    )
    assert bad(checked(environment, settings=SHORT)) == {
        "holes": "KRW-BTC: 2025-09-05 to 2025-09-06, older than the look-back; "
        "KRW-ETH: 2025-09-08, older than the look-back; "
        "KRW-SOL: 2025-09-10, older than the look-back"
    }


def test_history_that_no_schedule_ever_looked_after_is_no_fault(environment: Environment) -> None:
    plant(environment, "DELETE FROM trading_pipelines.candle_coverage WHERE day = '2025-09-06'")
    assert bad(checked(environment, settings=SHORT)) == {}
    look_after(environment, date(2025, 9, 7))
    assert bad(checked(environment, settings=SHORT)) == {}


def test_days_that_were_begun_and_nobody_goes_on_with_are_told(environment: Environment) -> None:
    plant(
        environment,
        "DELETE FROM trading_pipelines.candle_coverage "
        "WHERE symbol = 'KRW-BTC' AND interval = '1h' "
        "AND day BETWEEN '2025-09-03' AND '2025-09-05'",
    )
    with connect(database_urls(environment).market) as connection:
        wanted = ["KRW-ETH", "KRW-SOL"]
        signal_coverage.ask_for(connection, [REGIME_LABELS], wanted, [date(2025, 9, 4)], "run")
    plant(
        environment,
        "UPDATE trading_pipelines.signal_coverage SET changed_at = '2025-09-21Z', "
        "left_failed = symbol = 'KRW-SOL', failures = (symbol = 'KRW-SOL')::int "
        "WHERE day < '2025-09-14'",
    )
    left_failed = {"failed_partitions": "left failed regime_labels KRW-SOL: 2025-09-04"}
    assert bad(checked(environment, settings=SHORT)) == left_failed | {
        "holes": "candles KRW-BTC: 2025-09-03 to 2025-09-05, begun and not done; "
        "regime_labels KRW-ETH: 2025-09-04, begun and not done"
    }
    plant(
        environment,
        "UPDATE trading_pipelines.candle_coverage SET changed_at = '2025-09-22 00:03Z' "
        "WHERE symbol = 'KRW-BTC' AND interval = '1m' AND day = '2025-09-05'",
    )
    assert bad(checked(environment, settings=SHORT)) == left_failed, "somebody is at it"


def test_settings_of_a_moment_leave_no_gap_and_hide_none(environment: Environment) -> None:
    look_after(environment, date(2025, 9, 4))
    gaps = "day IN ('2025-09-02', '2025-09-06', '2025-09-16')"
    plant(environment, f"DELETE FROM trading_pipelines.candle_coverage WHERE {gaps}")

    def tick(data: DataSettings, symbols: Sequence[str] = SYMBOLS) -> None:
        with connect(database_urls(environment).market) as connection:
            days = due.look_back(data.start_date, data.look_back_days, NOW)
            coverage.look_after(connection, symbols, data, days)

    def gaps_of(data: DataSettings) -> list[tuple[str, date]]:
        with connect(database_urls(environment).market) as connection:
            days = due.look_back(data.start_date, data.look_back_days, NOW)
            return signal_coverage.gaps_before_look_back(connection, SYMBOLS, data.start_date, days)

    outage = [(symbol, date(2025, 9, 6)) for symbol in SYMBOLS]
    assert gaps_of(SHORT.data) == outage
    for of_a_moment in (
        DataSettings(start_date=date(2024, 1, 1), look_back_days=30),
        DataSettings(start_date=FIRST_DAY, look_back_days=2),
        DataSettings(start_date=date(2025, 9, 20), look_back_days=7),
    ):
        tick(of_a_moment)
        assert gaps_of(SHORT.data) == outage, "seen from the right file, before its tick"
        tick(SHORT.data)
        assert gaps_of(SHORT.data) == outage
    tick(SHORT.data, SYMBOLS[1:])
    tick(SHORT.data)
    assert gaps_of(SHORT.data) == outage, "a symbol that was away has what an outage left, no more"
    shorter = DataSettings(start_date=FIRST_DAY, look_back_days=2)
    tick(shorter)
    assert gaps_of(shorter) == outage, "nor does the day that the settings gave up count"


def enter(environment: Environment, **more: object) -> None:
    with connect(database_urls(environment).market) as connection:
        arguments = {"occurred_at": NOW, "next_at": NOW - HOUR} | more
        ledger.enter(connection, "risk", "risk_audit", "1", "risk", {}, **arguments)  # type: ignore[arg-type]


def test_a_dead_alert_is_told(environment: Environment) -> None:
    enter(environment, problem="odd")
    assert bad(checked(environment)) == {"dead_alerts": "risk 1"}


def test_an_alert_that_waits_too_long_is_told_unless_its_kind_is_off(
    environment: Environment,
) -> None:
    enter(environment)
    assert bad(checked(environment)) == {"alerts": "risk: 1 waiting, since 2025-09-22 08:04 KST"}
    off = SETTINGS.model_copy(update={"alerts": AlertSettings(risk=False)})
    assert bad(checked(environment, settings=off)) == {}


def test_a_row_of_the_bots_that_nothing_enters_is_told_where_its_kind_is_on(
    environment: Environment,
) -> None:
    plant(
        environment,
        "INSERT INTO agent_decisions (symbol, strategy_name, decision, created_at) "
        "SELECT 'KRW-BTC', 's', 'REJECT', moment::timestamptz "
        "FROM unnest(ARRAY['2025-09-15Z', '2025-09-20Z', '2025-09-21Z']) AS moment",
    )
    assert bad(checked(environment)) == {}, "it was never on: there never was a webhook"
    with connect(database_urls(environment).market) as connection:
        ledger.enable(connection, "ai_reject", NOW - 5 * DAY, NOW)
    checks = checked(environment)
    assert bad(checks) == {"alerts": "ai_reject: 2 not entered, since 2025-09-20 09:00 KST"}
    assert "set N8N_URL or DISCORD_WEBHOOK_URL" in checks["alerts"].advice
    just = day_interval(date(2025, 9, 20)).start + 14 * MINUTE
    assert checked(environment, now=just)["alerts"].good is True
    off = SETTINGS.model_copy(update={"alerts": AlertSettings(ai_reject=False)})
    assert bad(checked(environment, settings=off)) == {}
    with connect(database_urls(environment).market) as connection:
        assert ledger.collect(connection, "ai_reject", NOW - 5 * DAY, NOW) == 2
    plant(environment, "UPDATE trading_pipelines.alert_deliveries SET state = 'delivered'")
    assert bad(checked(environment)) == {}


def test_an_alert_waits_from_its_first_try_on_not_from_when_it_was_entered(
    environment: Environment,
) -> None:
    enter(environment, next_at=NOW + HOUR)
    assert bad(checked(environment)) == {}, "it may not be sent yet"
    tried = (
        (
            "UPDATE trading_pipelines.alert_deliveries SET state = 'retrying', attempts = 2, "
            "created_at = '2025-09-21 00:00Z'"
        ),
        (
            "INSERT INTO trading_pipelines.alert_attempts (delivery_id, number, started_at, via) "
            "SELECT id, 1, '2025-09-22 00:01Z', 'n8n' FROM trading_pipelines.alert_deliveries"
        ),
    )
    for statement in tried:
        plant(environment, statement)
    assert bad(checked(environment)) == {}
    assert checked(environment, now=NOW + 13 * MINUTE)["alerts"].good is False


def test_a_database_that_is_too_large_is_told_with_its_growth(environment: Environment) -> None:
    plant(
        environment,
        "INSERT INTO trading_pipelines.database_sizes VALUES ('2025-09-20 03:10Z', 0, 0)",
    )
    tiny = SETTINGS.model_copy(update={"health": HealthSettings(max_database_gb=0.001)})
    (found,) = bad(checked(environment, settings=tiny)).items()
    assert found[0] == "database_size"
    assert "GB, growth a day: 0.0" in found[1]


def test_a_full_disk_is_told(environment: Environment) -> None:
    facts = replace(measure(environment, SETTINGS, WELL, NOW), free_bytes=10**9)
    (found,) = [check for check in judge(facts, SETTINGS, NOW, kst) if not check.good]
    assert (found.name, found.found, found.allowed) == ("disk", "1.0 GB free", "2 GB free")


FIRST_DAYS = "DELETE FROM trading_pipelines.candle_coverage WHERE day < '2025-09-11'"
JUST_CAME = (
    "UPDATE trading_pipelines.candle_coverage SET changed_at = '2025-09-21 23:55Z' "
    "WHERE day = '2025-09-11'"
)


def test_history_that_is_still_arriving_is_no_fault_and_is_told(environment: Environment) -> None:
    plant(environment, FIRST_DAYS)
    assert "holes" in bad(checked(environment))
    plant(environment, JUST_CAME)
    checks = checked(environment)
    assert bad(checks) == {}
    assert checks["holes"].found == "filling: 72,000 left"


def test_candles_that_have_gone_are_a_fault_while_history_is_arriving(
    environment: Environment,
) -> None:
    plant(environment, JUST_CAME)
    plant(environment, OF_DATA["candles have gone"][0])
    assert list(bad(checked(environment))) == ["holes"]


def test_a_day_that_has_just_closed_is_no_hole_yet(environment: Environment) -> None:
    plant(
        environment,
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial' "
        "WHERE day = '2025-09-21' AND interval = '1m'",
    )
    assert bad(checked(environment)) == {}


def test_where_nothing_is_refreshed_nothing_has_to_be_fresh(environment: Environment) -> None:
    settings = SETTINGS.model_copy(update={"data": DataSettings(refresh=False)})
    off = replace(WELL, schedules=[], sensors=[])
    years_later = NOW + timedelta(days=700)
    assert bad(checked(environment, off, settings, years_later)) == {}


def test_without_candles_it_says_so(market_url: str, server: EmbeddedServer) -> None:
    fresh = Environment(
        database_url=SecretStr(market_url), dagster_postgres_url=SecretStr(server.url("postgres"))
    )
    found = bad(checked(fresh))
    assert list(found) == ["candles", "live", "labels", "models", "holes"]
    assert found["candles"].startswith("KRW-BTC: none in the look-back; ")
    assert found["models"] == "none of 2025-09-20: its inputs are missing"


def nothing_is_known_but(checks: dict[str, Check], *names: str) -> bool:
    return [name for name, check in checks.items() if check.good is not None] == list(names)


def test_where_nothing_was_ever_started_the_database_is_bad_and_the_rest_not_known(
    tmp_path: object,
) -> None:
    environment = Environment(trading_pipelines_home=f"{tmp_path}/home")  # type: ignore[arg-type]
    checks = checked(environment, Unknown("see database"))
    assert nothing_is_known_but(checks, "database", "settings", "disk")
    assert checks["database"].good is False
    assert "No such file" in checks["database"].found
    assert not environment.trading_pipelines_home.exists(), "a probe makes nothing"


def test_a_server_that_accepts_and_never_answers_is_told_in_a_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trading_pipelines.database.connection.PROBE_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = SecretStr(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/market")
        started = time.monotonic()
        checks = checked(Environment(database_url=url), Unknown("see database"))
        assert time.monotonic() - started < 20
    assert nothing_is_known_but(checks, "database", "settings", "disk")
    assert "timeout" in checks["database"].found


def test_a_server_that_stops_after_the_connect_is_told_at_the_deadline(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[Callable[[], None]] = []

    def stop(connection: psycopg.Connection, *_: object) -> None:
        pid = connection.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        stopped.append(lambda: os.kill(pid, signal.SIGCONT))
        # Without a deadline the test would wait for ever, and not fail.
        late = threading.Timer(60, stopped[0])
        late.daemon = True
        late.start()
        stopped.append(late.cancel)
        connection.execute("SELECT 1")

    monkeypatch.setattr("trading_pipelines.monitoring.measure._failed", stop)
    monkeypatch.setattr("trading_pipelines.database.connection.DEADLINE_SECONDS", 1)
    started = time.monotonic()
    try:
        checks = checked(environment, Unknown("see database"))
        assert time.monotonic() - started < 20, "which is the deadline as it is set"
    finally:
        for undo in stopped:
            undo()
    assert nothing_is_known_but(checks, "database", "settings", "disk")
    assert bad(checks)["database"] == "no answer within 1 s"


@pytest.mark.parametrize(
    ("ahead", "problem", "found"),
    [
        ("20 minutes", None, "1,200 s behind the exchange's"),
        ("-61 seconds", None, "61 s ahead of the exchange's"),
        (None, "'' is no time", "the exchange's Date '' is no time: this machine's clock is used"),
    ],
)
def test_a_clock_that_is_not_the_exchanges_is_told(
    environment: Environment, ahead: str | None, problem: str | None, found: str
) -> None:
    with connect(database_urls(environment).market) as connection:
        slots = RequestSlots(connection, environment.upbit_base_url, 10)
        slots.note_clock(Clock(timedelta(seconds=-59), None))
        assert bad(checked(environment)) == {}
        connection.execute(
            "UPDATE trading_pipelines.exchange_clocks SET ahead = %s, problem = %s",
            [ahead, problem],
        )
    assert bad(checked(environment))["clock"] == found


def test_storage_of_dagster_that_is_away_is_told_apart(environment: Environment) -> None:
    missing = SecretStr("postgresql+psycopg2://postgres@/none?host=/nowhere")
    apart = environment.model_copy(update={"dagster_postgres_url": missing})
    found = bad(checked(apart))
    assert list(found) == ["database", "database_size"]
    assert found["database"].startswith("Dagster's storage: the database can't be reached")


def test_a_query_that_can_not_be_answered_is_never_good(environment: Environment) -> None:
    with connect(database_urls(environment).market) as connection:
        connection.execute("DROP TABLE trading_pipelines.regime_labels CASCADE")
    checks = checked(environment)
    assert checks["labels"].good is None
    assert "UndefinedTable" in checks["labels"].found
    assert list(bad(checks)) == ["labels"]


def test_where_failed_days_are_not_known_holes_are_not_known(environment: Environment) -> None:
    facts = measure(environment, SETTINGS, WELL, NOW)
    for name in ("days", "failed", "old_gaps", "filled_at"):
        odd = replace(facts, **{name: Unknown("odd")})
        (holes,) = [one for one in judge(odd, SETTINGS, NOW, kst) if one.name == "holes"]
        assert (holes.good, holes.found) == (None, "not known: odd")


def test_what_is_allowed_is_said_in_minutes(environment: Environment) -> None:
    checks = checked(environment)
    assert {name: checks[name].allowed for name in ("candles", "labels", "holes")} == {
        "candles": "20 min old",
        "labels": "each hour within 20 min",
        "holes": "none in closed days, 20 min after they closed",
    }


def test_options_of_the_url_hold_and_those_of_a_probe_are_added(environment: Environment) -> None:
    url = f"{database_urls(environment).market}&options=-c%20search_path%3Dbot"
    show = "SELECT current_setting(name) FROM unnest(%s::text[]) AS name"
    names = ["search_path", "TimeZone", "default_transaction_read_only", "statement_timeout"]
    with connect(url) as usual, probe_database(url) as careful:
        of = [usual.execute(show, [names]).fetchall(), careful.execute(show, [names]).fetchall()]
    assert [[value for (value,) in one] for one in of] == [
        ["bot", "UTC", "off", "0"],
        ["bot", "UTC", "on", "3s"],
    ]


def test_a_probe_can_not_write(environment: Environment) -> None:
    with (
        probe_database(database_urls(environment).market) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        connection.execute(SETTLED)
