"""Dagster's events and checks beside the tables, on Dagster's storage in a real Postgres."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime

import dagster as dg
import psycopg
import pytest

from tests.assets.conftest import Dagster
from tests.conftest import FIRST_DAY, copied, new_database
from tests.monitoring.test_dagster_instance import opened
from trading_pipelines.candles import coverage, failed_checks
from trading_pipelines.candles.due import look_back
from trading_pipelines.candles.windows import DAY, MINUTE, day_interval
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.definitions import build_definitions, partition_checks
from trading_pipelines.monitoring import reconciliation
from trading_pipelines.partitions import CANDLES_1H, CANDLES_1M, symbol_days
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

BTC, DOGE = "KRW-BTC", "KRW-DOGE"
JOB = "refresh_market_data_job"
HOLES = "no_hole_in_a_closed_day"
LAST = FIRST_DAY + DAY * 3
SETTINGS = StrategySettings(symbols=[BTC, DOGE], data=DataSettings(start_date=FIRST_DAY))


@contextmanager
def installed(market_url: str, dagster_url: str, exchange: ReplayExchange) -> Iterator[Dagster]:
    with (
        pytest.MonkeyPatch.context() as patch,
        opened(dagster_url.replace("postgresql:", "postgresql+psycopg2:")) as instance,
    ):
        patch.setenv("DATABASE_URL", market_url)
        patch.setenv("DAGSTER_POSTGRES_URL", dagster_url)
        patch.setenv("UPBIT_BASE_URL", exchange.url)
        yield Dagster(instance, SETTINGS)


@pytest.fixture(scope="session")
def downloaded(
    server: EmbeddedServer, template: str, recorded_market: Recording
) -> tuple[str, str]:
    """The names of two databases: two symbols were downloaded for four days."""
    names = ("downloaded_market", "downloaded_dagster")
    urls = (new_database(server, names[0], template), new_database(server, names[1]))
    with (
        ReplayExchange(recorded_market, rate=None, clock=recorded_market.end + MINUTE) as exchange,
        installed(*urls, exchange) as dagster,
    ):
        assert dagster.run(JOB, FIRST_DAY, LAST, SETTINGS.symbols).success
        assert tick(dagster) == AGREE
    return names


@pytest.fixture
def market_url(server: EmbeddedServer, downloaded: tuple[str, str]) -> str:
    return copied(server, downloaded[0])


@pytest.fixture
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None, clock=recorded_market.end + MINUTE) as exchange:
        yield exchange


@pytest.fixture
def dagster(
    server: EmbeddedServer, market_url: str, downloaded: tuple[str, str], exchange: ReplayExchange
) -> Iterator[Dagster]:
    """An instance on which two symbols were downloaded for four days."""
    with installed(market_url, copied(server, downloaded[1]), exchange) as dagster:
        yield dagster


AGREE = "Dagster's events and the tables agree"


def tick(dagster: Dagster, cursors: list[str | None] | None = None) -> str:
    """Let the sensor look; return what it says. Takes its last cursor, and adds the next one."""
    definitions = build_definitions(SETTINGS)
    cursors = cursors if cursors is not None else [None]
    with dg.build_sensor_context(
        dagster.instance,
        cursor=cursors[-1],
        resources={"database": DatabaseResource()},
        repository_def=definitions.get_repository_def(),
    ) as context:
        data = definitions.resolve_sensor_def("reconcile_partitions").evaluate_tick(context)
    assert not data.run_requests
    cursors.append(data.cursor)
    return str(data.skip_message)


def colours(dagster: Dagster, check: str = HOLES) -> dict[str, str]:
    """Return what the UI shows of each partition in the check: succeeded or failed."""
    key = dg.AssetCheckKey(dg.AssetKey(CANDLES_1M), check)
    partitions = symbol_days(SETTINGS)
    state = dagster.instance.event_log_storage.get_asset_check_state([(key, partitions)])[key]
    return {
        partition: status.value.lower()
        for status, subset in state.subsets.items()
        for partition in subset.subset_value.get_partition_keys()
    }


def shown(dagster: Dagster, check: str = HOLES) -> tuple[bool, str]:
    """Return the one verdict of the check that the UI shows for the asset."""
    key = dg.AssetCheckKey(dg.AssetKey(CANDLES_1M), check)
    storage = dagster.instance.event_log_storage
    evaluation = storage.get_latest_asset_check_execution_by_key([key])[key].evaluation
    assert evaluation is not None
    return evaluation.passed, evaluation.description or ""


ALL = {f"{FIRST_DAY + DAY * n}|{symbol}" for n in range(4) for symbol in (BTC, DOGE)}
HOLED = f"{FIRST_DAY + DAY}|{BTC}"


def lose_an_hour(connection: psycopg.Connection, day: date = FIRST_DAY + DAY) -> None:
    connection.execute(
        "DELETE FROM market_data WHERE symbol = %s AND interval = '1m' AND timestamp >= %s "
        "AND timestamp < %s + interval '1 hour'",
        [BTC, day_interval(day).start, day_interval(day).start],
    )


def test_every_check_has_a_verdict_of_each_partition(dagster: Dagster) -> None:
    for checks in partition_checks(SETTINGS):
        if checks.asset == CANDLES_1M:
            for check in checks.descriptions:
                assert colours(dagster, check) == dict.fromkeys(ALL, "succeeded"), check


def test_a_hole_stays_red_through_green_runs_of_others_and_is_green_when_it_is_healed(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    lose_an_hour(connection)
    assert "verdicts" in tick(dagster), "found without a run"
    red = colours(dagster)
    assert red.pop(HOLED) == "failed"
    assert set(red.values()) == {"succeeded"}
    for _ in range(3):
        assert dagster.run(JOB, LAST, LAST, SETTINGS.symbols).success
        assert colours(dagster)[HOLED] == "failed"
        assert shown(dagster) == (False, f"1 partition is red; the newest is {HOLED}: 60 minutes")
    assert tick(dagster) == AGREE, "nothing is told twice"

    assert dagster.run(JOB, FIRST_DAY + DAY, FIRST_DAY + DAY, [BTC]).success
    assert colours(dagster) == dict.fromkeys(ALL, "succeeded")
    tick(dagster)
    assert shown(dagster)[0]


def test_a_hole_healed_without_a_run_is_green_within_a_tick(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE lost AS SELECT * FROM market_data")
    lose_an_hour(connection)
    lose_an_hour(connection, LAST)
    tick(dagster)
    newest, oldest = f"{LAST}|{BTC}: 60 minutes", f"{HOLED}: 60 minutes"
    red = f"2 partitions are red; the newest is {newest}; the oldest is {oldest}"
    assert shown(dagster) == (False, red)
    connection.execute("INSERT INTO market_data SELECT * FROM lost ON CONFLICT DO NOTHING")
    tick(dagster)
    assert colours(dagster) == dict.fromkeys(ALL, "succeeded")
    assert shown(dagster) == (True, "no partition is red")
    assert failed_checks.standing(connection, SETTINGS.symbols, FIRST_DAY) == []


def test_a_blocking_check_keeps_the_hours_of_its_own_partitions_alone_from_being_computed(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    next_day = LAST + DAY
    connection.execute(
        "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, low_price, "
        "close_price, volume) VALUES (%s, '1m', %s, 1, 1, 1, 1, 1)",
        [DOGE, day_interval(next_day).start + MINUTE / 2],
    )
    result = dagster.run(JOB, next_day, next_day + DAY, SETTINGS.symbols)
    assert not result.success
    assert colours(dagster, "no_overlap")[f"{next_day}|{DOGE}"] == "failed"
    hours = dagster.materialized(CANDLES_1H)
    assert hours - ALL == {
        f"{next_day}|{BTC}",
        f"{next_day + DAY}|{BTC}",
        f"{next_day + DAY}|{DOGE}",
    }
    (good,) = coverage.read(connection, [BTC], [next_day])
    assert (good.failures, good.hours_current) == (0, True)


def test_the_check_of_a_failed_run_over_a_range_can_be_run_again_alone(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    connection.execute(
        "UPDATE market_data SET low_price = -1 WHERE symbol = %s AND timestamp = %s",
        [DOGE, day_interval(FIRST_DAY).start + MINUTE],
    )
    job = build_definitions(SETTINGS).resolve_job_def(JOB)
    failed = job.execute_in_process(
        instance=dagster.instance,
        tags={
            "dagster/asset_partition_range_start": f"{FIRST_DAY}|{BTC}",
            "dagster/asset_partition_range_end": f"{FIRST_DAY}|{DOGE}",
        },
        op_selection=["candles_1m_contract"],
        raise_on_error=False,
    )
    assert not failed.success
    assert colours(dagster, "ohlc_valid")[f"{FIRST_DAY}|{DOGE}"] == "failed"
    assert colours(dagster, "ohlc_valid")[f"{FIRST_DAY}|{BTC}"] == "succeeded"


def test_what_is_left_failed_is_red_on_its_partition_and_says_what_retries_it(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    check, day = "no_partition_left_failed", LAST + DAY * 3

    def fail() -> None:
        coverage.record_failure(
            connection, BTC, day, "404", "run", coverage.FailureKind.MARKET, SETTINGS.healing
        )

    fail()
    tick(dagster)
    assert colours(dagster, check)[f"{day}|{BTC}"] == "failed"
    assert "--start 2025-09-07 --end 2025-09-07" in shown(dagster, check)[1]
    fail()
    assert tick(dagster) == AGREE, "an evaluation at each change"
    connection.execute("DELETE FROM trading_pipelines.candle_coverage WHERE status = 'failed'")
    tick(dagster)
    assert shown(dagster, check)[0]


def test_what_is_whole_in_the_tables_is_green_again_after_a_wipe(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    dagster.instance.wipe_assets([dg.AssetKey(CANDLES_1M), dg.AssetKey(CANDLES_1H)])
    assert dagster.materialized(CANDLES_1M) == set()
    said = tick(dagster)
    assert f"candles_1m: 8 ({FIRST_DAY}|KRW-BTC to {LAST}|KRW-DOGE) whole in the tables" in said
    assert dagster.materialized(CANDLES_1M) == dagster.materialized(CANDLES_1H) == ALL
    assert colours(dagster) == dict.fromkeys(ALL, "succeeded"), "with its verdicts"
    assert tick(dagster) == AGREE
    told = {one.asset: one for one in reconciliation.read(connection)}
    assert "put right" in str(told[CANDLES_1M].difference)
    assert told["regime_labels"].difference is None


def test_the_open_day_is_told_once_an_hour_where_no_run_brings_it(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    now = datetime.now(UTC)
    day = look_back(FIRST_DAY, 30, now)[-1]
    whole = day_interval(day)
    minutes = "INSERT INTO trading_pipelines.candle_coverage (symbol, interval, day, status, "
    connection.execute(
        minutes + "fetched_until, confirmed_until, rows, computed_from, changed_at) "
        "SELECT %s, interval, %s, 'partial', %s, %s, 0, %s, %s FROM unnest(%s::text[]) AS interval",
        [BTC, day, max(now, whole.start + MINUTE), whole.start, now, now, ["1m", "1h"]],
    )
    said = tick(dagster)
    today = f"{day}|{BTC}"
    assert said.startswith("candles_1m: 1 of the open day told; candles_1h: 1 of the open day told")
    assert today in dagster.materialized(CANDLES_1M) & dagster.materialized(CANDLES_1H)
    assert today in colours(dagster), "with its verdicts"
    assert "open day" not in tick(dagster), "not again before the next hour"
    with connect(os.environ["DAGSTER_POSTGRES_URL"]) as book:
        book.execute("UPDATE event_logs SET timestamp = timestamp - interval '1 hour'")
    assert "candles_1m: 1 of the open day told" in tick(dagster)


def test_deleting_the_run_that_made_them_leaves_partitions_green(dagster: Dagster) -> None:
    (run,) = dagster.instance.get_runs()
    dagster.instance.delete_run(run.run_id)
    assert dagster.materialized(CANDLES_1M) == set()
    tick(dagster)
    assert dagster.materialized(CANDLES_1M) == ALL
    assert tick(dagster) == AGREE


def test_a_report_by_hand_of_a_day_without_a_row_is_taken_back(dagster: Dagster) -> None:
    false = f"{LAST + DAY}|{BTC}"
    for asset in (CANDLES_1M, "regime_labels"):
        dagster.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=false))
    said = tick(dagster)
    assert f"candles_1m: 1 ({false}) green, of which the tables have nothing; put right" in said
    assert dagster.materialized(CANDLES_1M) == ALL
    assert dagster.materialized("regime_labels") == set()


def test_a_report_by_hand_of_a_whole_day_is_judged_again(dagster: Dagster) -> None:
    dagster.instance.report_runless_asset_event(
        dg.AssetMaterialization(CANDLES_1M, partition=HOLED)
    )
    assert HOLED not in colours(dagster), "the verdict was about another materialization"
    tick(dagster)
    assert colours(dagster)[HOLED] == "succeeded"


def test_events_of_a_database_that_was_exchanged_are_left_alone(
    dagster: Dagster, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trading_pipelines.sensors.partitions.MOST_TAKEN_BACK", 7)
    connection.execute("TRUNCATE trading_pipelines.candle_coverage")
    assert "green, of which the tables have nothing; 8 still are" in tick(dagster)
    assert dagster.materialized(CANDLES_1M) == ALL
    (one,) = [one for one in reconciliation.read(connection) if one.asset == CANDLES_1M]
    assert one.left_over == 8


def test_what_a_run_is_working_at_is_left_to_it(dagster: Dagster) -> None:
    dagster.instance.wipe_assets([dg.AssetKey(CANDLES_1M)])
    job = build_definitions(SETTINGS).resolve_job_def(JOB)
    run = dagster.instance.create_run_for_job(
        job,
        tags={"dagster/partition": HOLED},
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey(CANDLES_1M)}),
    )
    tick(dagster)
    assert dagster.materialized(CANDLES_1M) == ALL - {HOLED}
    dagster.instance.report_run_failed(run)
    tick(dagster)
    assert dagster.materialized(CANDLES_1M) == ALL


def test_history_is_looked_at_some_days_a_tick(
    dagster: Dagster, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trading_pipelines.sensors.partitions.PARTITIONS_A_TICK", 4)
    lose_an_hour(connection, LAST)
    cursors: list[str | None] = [None]
    assert tick(dagster, cursors=cursors) == AGREE, "its day is the fourth"
    assert "verdicts" in tick(dagster, cursors=cursors)
    assert cursors[1:] == [f"{FIRST_DAY + DAY}", f"{LAST}"]
    assert "verdicts" not in tick(dagster, cursors=cursors), "the first days again"
    assert cursors[-1] == f"{FIRST_DAY + DAY}"
    for unusable in ("nobody's", "2099-01-01", "2001-01-01"):
        again: list[str | None] = [unusable]
        tick(dagster, cursors=again)
        assert again[1] == f"{FIRST_DAY + DAY}", unusable
