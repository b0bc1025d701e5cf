"""The assets as Dagster runs them: real tables, a replayed exchange, an ephemeral instance."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from tests.assets.conftest import Dagster, add_backfill, metadata
from tests.conftest import FIRST_DAY, candle
from trading_pipelines.assets import market_data
from trading_pipelines.assets.metadata import ROW_COUNT
from trading_pipelines.candles import coverage, rate_limit
from trading_pipelines.candles.download import FailedDay, download
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.candles.turns import GIVE_BACK, TAKE, turn
from trading_pipelines.candles.windows import MINUTE, day_interval
from trading_pipelines.definitions import build_definitions
from trading_pipelines.partitions import CANDLES_1H, CANDLES_1M, range_tags
from trading_pipelines.settings.strategy import (
    DataSettings,
    ExchangeSettings,
    HealingSettings,
    StrategySettings,
)
from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

BTC, DOGE = "KRW-BTC", "KRW-DOGE"
SECOND_DAY = FIRST_DAY + timedelta(days=1)
JOB = "refresh_market_data_job"
SETTINGS = StrategySettings(
    symbols=[BTC, DOGE],
    data=DataSettings(start_date=FIRST_DAY),
    healing=HealingSettings(attempts=2),
    exchange=ExchangeSettings(
        requests_per_second=1000.0, backoff_seconds=0.001, max_backoff_seconds=0.01, attempts=3
    ),
)


@pytest.fixture
def dagster(
    market_url: str, exchange: ReplayExchange, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dagster]:
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("UPBIT_BASE_URL", exchange.url)
    with dg.instance_for_test() as instance:
        yield Dagster(instance, SETTINGS)


@pytest.fixture
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None, clock=recorded_market.end + MINUTE) as exchange:
        yield exchange


def test_each_partition_says_what_it_holds_and_what_it_cost(
    dagster: Dagster, recorded: pd.DataFrame
) -> None:
    result = dagster.run(JOB, FIRST_DAY, SECOND_DAY, [BTC, DOGE])
    assert result.success
    found = metadata(result, CANDLES_1M)
    assert found.keys() == {f"{day}|{s}" for day in (FIRST_DAY, SECOND_DAY) for s in (BTC, DOGE)}
    doge = found[f"{FIRST_DAY}|{DOGE}"]
    day = recorded[(recorded.symbol == DOGE) & (recorded.timestamp_utc.dt.date == FIRST_DAY)]
    assert len(day) < 1440, "minutes without a trade are in it"
    assert (doge[ROW_COUNT], doge["quiet"]) == (len(day), 1440 - len(day))
    assert (doge["holes"], doge["repaired"]) == (0, 0)
    assert doge["status"] == "complete"
    assert str(doge["source"]).startswith("recording")
    assert sum(int(str(day["requests"])) for day in found.values()) == 2 * 15
    assert doge.keys() >= {"waits", "seconds", "first", "last", "fetched_until"}
    assert metadata(result, CANDLES_1H)[f"{FIRST_DAY}|{DOGE}"][ROW_COUNT] == 24
    assert all(check.passed for check in result.get_asset_check_evaluations()), "recorded is clean"
    log = [entry.user_message for entry in dagster.instance.all_logs(result.run_id)]
    assert log.count(f"{DOGE} {FIRST_DAY}: {len(day)} minutes stored, {1440 - len(day)} quiet") == 1
    assert sum(" minutes stored, " in line for line in log) == 4, "one a day"


def test_with_history_files_a_partition_names_its_file_or_says_why_it_is_not_used(
    dagster: Dagster, exchange: ReplayExchange
) -> None:
    exchange.set_faults([Fault("file_cut", market=DOGE), Fault("file_replaced", market=BTC)])
    with_files = DataSettings(start_date=FIRST_DAY, history_files=True, history_files_sample=1e-9)
    settings = SETTINGS.model_copy(update={"data": with_files})
    result = Dagster(dagster.instance, settings).run(JOB, FIRST_DAY, SECOND_DAY, [BTC, DOGE])
    assert result.success
    partitions = metadata(result, CANDLES_1M)
    of_file = partitions[f"{SECOND_DAY}|{BTC}"]
    name = f"KRW-BTC_candle-1m_{SECOND_DAY:%Y%m%d}.zip"
    assert (of_file["file"], of_file["requests"]) == (name, 0)
    assert str(of_file["source"]).startswith(name)
    assert "file_not_used" not in of_file

    not_used = partitions[f"{SECOND_DAY}|{DOGE}"]
    assert str(not_used["source"]).startswith("recording")
    assert "no zip that can be read" in str(not_used["file_not_used"])

    differing = partitions[f"{FIRST_DAY}|{BTC}"]
    compared = differing["file_compared"]
    assert isinstance(compared, dict)
    assert (compared["added"], compared["changed"], compared["kept"]) == (0, 1, 0)
    log = [entry.user_message for entry in dagster.instance.all_logs(result.run_id)]
    assert any(f"{BTC} {FIRST_DAY}" in line and "the exchange's are stored" in line for line in log)
    of_day, of_asset = [e for e in result.get_asset_check_evaluations() if not e.passed]
    assert (of_day.check_name, of_day.partition) == ("history_files_agree", f"{FIRST_DAY}|{BTC}")
    assert of_asset.check_name == "history_files_agree"
    assert of_day.severity is dg.AssetCheckSeverity.WARN
    assert "1 differ" in str(of_day.description)

    exchange.set_faults([])
    healed = Dagster(dagster.instance, settings).run(JOB, FIRST_DAY, SECOND_DAY, [BTC, DOGE])
    assert all(check.passed for check in healed.get_asset_check_evaluations())


def test_a_run_that_waits_for_the_rate_limit_says_so(
    dagster: Dagster,
    connection: psycopg.Connection,
    exchange: ReplayExchange,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limit, "LONG_WAIT_SECONDS", 0.1)
    RequestSlots(connection, exchange.url, 1000.0).pause(5)
    result = dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC])
    log = [entry.user_message for entry in dagster.instance.all_logs(result.run_id)]
    (said,) = [line for line in log if line.startswith("waiting")]
    assert said.endswith(" s for the next request that the rate limit leaves")


def test_a_failed_symbol_fails_alone(dagster: Dagster, exchange: ReplayExchange) -> None:
    exchange.set_faults([Fault.parse(f"wrong_market:market={DOGE}")])
    result = dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC, DOGE])
    assert not result.success
    assert dagster.materialized(CANDLES_1M) == {f"{FIRST_DAY}|{BTC}"}
    (failure,) = [e for e in result.all_events if e.is_step_failure and e.step_key == CANDLES_1M]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert "1 of 2 partitions failed" in (said.description or "")
    assert DOGE in (said.description or "")
    assert dagster.materialized(CANDLES_1H) == {f"{FIRST_DAY}|{BTC}"}, "the good day has its hours"


def test_an_odd_row_is_red_in_the_check_of_its_partition_and_the_hours_are_computed(
    dagster: Dagster, exchange: ReplayExchange
) -> None:
    exchange.set_faults([Fault.parse(f"impossible_row:market={DOGE},at=2025-09-01T10:07")])
    result = dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC, DOGE])
    assert result.success
    red, of_asset = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert (red.partition, of_asset.partition) == (f"{FIRST_DAY}|{DOGE}", None)
    assert (red.check_name, red.severity) == ("no_row_set_aside", dg.AssetCheckSeverity.ERROR)
    assert "contradict" in str(red.metadata["findings"])
    assert metadata(result, CANDLES_1M)[f"{FIRST_DAY}|{DOGE}"]["set_aside"] == 1
    assert metadata(result, CANDLES_1M)[f"{FIRST_DAY}|{BTC}"]["set_aside"] == 0
    assert metadata(result, CANDLES_1H)[f"{FIRST_DAY}|{DOGE}"][ROW_COUNT] == 24


def test_a_broken_contract_keeps_the_hours_from_being_computed_and_backs_off(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    candle(connection, BTC, day_interval(FIRST_DAY).start + MINUTE / 2)
    result = dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC])
    assert not result.success
    broken = {e.check_name for e in result.get_asset_check_evaluations() if not e.passed}
    assert "no_overlap" in broken
    assert dagster.materialized(CANDLES_1M) == {f"{FIRST_DAY}|{BTC}"}
    assert dagster.materialized(CANDLES_1H) == set()
    (day,) = coverage.read(connection, [BTC], [FIRST_DAY])
    assert day.failures == 1
    assert day.error is not None
    assert day.error.startswith("no_overlap: ")

    connection.execute("DELETE FROM market_data WHERE timestamp = '2025-09-01 00:00:30Z'")
    assert dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC]).success, "mended, it goes on"
    (day,) = coverage.read(connection, [BTC], [FIRST_DAY])
    assert (day.failures, day.error) == (0, None)


def test_a_contract_that_stays_broken_spends_a_try_a_run_and_then_the_day_is_left_failed(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    for n in range(3):  # three findings, one failure
        candle(connection, BTC, day_interval(FIRST_DAY).start + MINUTE * (n + 0.5))

    def spent() -> tuple[int, bool]:
        assert not dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC]).success
        (day,) = coverage.read(connection, [BTC], [FIRST_DAY])
        return day.failures, day.left_failed

    assert [spent(), spent()] == [(1, False), (2, True)]
    connection.execute("DELETE FROM market_data WHERE extract(second FROM timestamp) = 30")
    mended = dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC])
    assert mended.success, "asked for, it is tried at once"
    (day,) = coverage.read(connection, [BTC], [FIRST_DAY])
    assert (day.failures, day.left_failed) == (0, False)


def test_an_unusual_step_of_the_price_warns_and_blocks_nothing(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    assert dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC]).success
    connection.execute(
        "UPDATE market_data SET open_price = 2 * open_price, high_price = 3 * high_price"
        " WHERE timestamp = '2025-09-01 12:00Z'"
    )
    alone = build_definitions(SETTINGS).resolve_job_def(JOB)
    result = alone.execute_in_process(
        instance=dagster.instance,
        tags=range_tags([BTC], FIRST_DAY, FIRST_DAY),
        op_selection=["candles_1m_contract", CANDLES_1H],
    )
    assert result.success
    jump, of_asset = [e for e in result.get_asset_check_evaluations() if not e.passed]
    assert (jump.partition, of_asset.partition) == (f"{FIRST_DAY}|{BTC}", None)
    assert jump.check_name == "prices_continuous"
    assert jump.severity is dg.AssetCheckSeverity.WARN


def test_a_day_that_closes_while_its_run_is_at_work_is_judged_as_of_the_runs_start(
    dagster: Dagster, exchange: ReplayExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_midnight = day_interval(FIRST_DAY).end - MINUTE / 2
    exchange.set_clock(before_midnight)
    dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC])
    record = dg.DagsterInstance.get_run_record_by_id

    def started(instance: dg.DagsterInstance, run_id: str) -> dg.RunRecord | None:
        found = record(instance, run_id)
        return found and found._replace(start_time=before_midnight.timestamp())

    def holes() -> list[bool]:
        checks = dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC]).get_asset_check_evaluations()
        return [
            one.passed
            for one in checks
            if one.check_name == "no_hole_in_a_closed_day" and not one.partition
        ]

    assert holes() == [False], "by the clock of the test it closed long ago"
    monkeypatch.setattr(dg.DagsterInstance, "get_run_record_by_id", started)
    assert holes() == [True]


BY_BACKFILL = {"dagster/backfill": "abcdefgh"}


def test_a_backfill_asks_for_what_is_missing_and_a_person_for_what_he_names(
    dagster: Dagster, exchange: ReplayExchange, connection: psycopg.Connection
) -> None:
    def requests(last: date = FIRST_DAY, **tags: str) -> int:
        before = exchange.stats().requests
        by_name = {name.replace("_", "/", 1): value for name, value in tags.items()}
        assert dagster.run(JOB, FIRST_DAY, last, [BTC], tags=by_name).success
        return exchange.stats().requests - before

    assert requests(dagster_backfill="abcdefgh") == 8
    assert requests(dagster_backfill="ijklmnop") == 0
    assert requests(dagster_schedule_name="refresh_market_data") == 0, "another has done it"
    assert requests(SECOND_DAY, dagster_backfill="qrstuvwx") == 8, "the second day alone"
    assert requests(dagster_backfill="yzabcdef", again="true") == 8

    connection.execute("UPDATE market_data SET close_price = close_price + 1")
    assert requests() == 8
    (day,) = coverage.read(connection, [BTC], [FIRST_DAY])
    assert day.repaired == day.rows > 0, "what a person asks for is repaired"
    connection.execute("DELETE FROM market_data WHERE extract(minute FROM timestamp) = 7")
    assert requests(dagster_backfill="ghijklmn") > 0, "candles have gone"


def test_a_run_that_was_called_off_asks_the_exchange_for_nothing_and_ends_as_cancelled(
    dagster: Dagster, exchange: ReplayExchange
) -> None:
    add_backfill(dagster.instance, "abcdefgh", CANDLES_1M, status=BulkActionStatus.CANCELING)
    assert not dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC], tags=BY_BACKFILL).success
    assert exchange.stats().requests == 0
    (run,) = dagster.instance.get_runs()
    assert run.status is dg.DagsterRunStatus.CANCELED


def test_signals_that_a_backfill_was_asked_for_are_wanted_whatever_becomes_of_it(
    dagster: Dagster, exchange: ReplayExchange, connection: psycopg.Connection
) -> None:
    add_backfill(dagster.instance, "abcdefgh", CANDLES_1M, CANDLES_1H, "regime_labels")
    wanted = "SELECT asset, symbol, day, computed_until FROM trading_pipelines.signal_coverage"
    assert dagster.run(JOB, FIRST_DAY, FIRST_DAY, [DOGE]).success
    assert connection.execute(wanted).fetchall() == [], "candles alone"
    exchange.set_faults([Fault.parse("502")])
    assert not dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC], tags=BY_BACKFILL).success
    assert connection.execute(wanted).fetchall() == [("regime_labels", BTC, FIRST_DAY, None)]


def asked(connection: psycopg.Connection, query: str) -> bool:
    return connection.execute(query).fetchone() == (True,)


def lost(connection: psycopg.Connection) -> None:
    connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def refused(connection: psycopg.Connection) -> None:
    connection.execute("SELECT 1 / 0")


@pytest.mark.parametrize(("trouble", "attempts"), [(lost, 2), (refused, 1)])
def test_a_step_that_lost_its_database_is_tried_again_and_one_that_failed_is_not(
    dagster: Dagster,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[psycopg.Connection], None],
    attempts: int,
) -> None:
    asked = []

    def once(connection: psycopg.Connection, *arguments: Any, **options: Any) -> list[FailedDay]:
        asked.append(arguments)
        if len(asked) == 1:
            trouble(connection)
        return download(connection, *arguments, **options)

    monkeypatch.setattr(market_data, "download", once)
    result = dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC])
    assert result.success == (attempts == 2)
    assert len(asked) == attempts


def test_a_backfills_run_that_asks_for_something_takes_its_turn_and_no_other_does(
    dagster: Dagster, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []

    @contextmanager
    def counted(*_: object) -> Iterator[Callable[[], None]]:
        turns.append(1)
        yield lambda: None

    monkeypatch.setattr(market_data, "turn", counted)

    def turns_of_a_run(tags: dict[str, str]) -> int:
        turns.clear()
        assert dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC], tags=tags).success
        return len(turns)

    add_backfill(dagster.instance, "abcdefgh", CANDLES_1M, CANDLES_1H)
    by_schedule = {"dagster/schedule_name": "refresh_market_data"}
    assert turns_of_a_run(by_schedule) == 0, "the newest minutes wait for none"
    assert turns_of_a_run({}) == 0, "nor does a person"
    assert turns_of_a_run(BY_BACKFILL) == 0, "it has nothing to ask for"
    assert turns_of_a_run(BY_BACKFILL | {"again": "true"}) == 1


def test_a_backfills_run_opens_its_connections_while_it_waits_and_lets_the_next_ask_beside_its_end(
    dagster: Dagster, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, is_the_next_ones, opened = coverage.record, list[bool](), list[Exchange]()

    def look(*arguments: Any) -> None:
        is_the_next_ones.append(asked(connection, TAKE))
        if is_the_next_ones[-1]:
            asked(connection, GIVE_BACK)
        record(*arguments)

    def connect(client: Exchange) -> None:
        opened.append(client)
        give_back()

    monkeypatch.setattr(coverage, "record", look)
    monkeypatch.setattr(Exchange, "connect", connect)
    # Should nothing be opened, the test ends too.
    monkeypatch.setattr(market_data, "turn", partial(turn, longest_wait=30.0))
    add_backfill(dagster.instance, "abcdefgh", CANDLES_1M, CANDLES_1H)
    with turn(connection) as give_back:
        assert dagster.run(JOB, FIRST_DAY, FIRST_DAY, [BTC], tags=BY_BACKFILL).success
    assert len(opened) == 1
    assert is_the_next_ones[0] is False
    assert is_the_next_ones[-1] is True


def test_the_materialisations_of_a_step_are_stored_in_one_go_also_where_some_failed(
    dagster: Dagster, exchange: ReplayExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backfill that sees some of them asks for what comes after those, and then for the rest."""
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "100000")
    stored: list[tuple[str, int]] = []
    storage = dagster.instance.event_log_storage
    in_one_go = storage.store_event_batch

    def store(events: Sequence[dg.EventLogEntry]) -> None:
        event = events[0].get_dagster_event()
        if event.is_step_materialization and event.asset_key:
            stored.append((event.asset_key.to_user_string(), len(events)))
        in_one_go(events)

    monkeypatch.setattr(storage, "store_event_batch", store)
    days = 3
    last = FIRST_DAY + timedelta(days=days - 1)
    assert dagster.run(JOB, FIRST_DAY, last, [BTC]).success
    assert stored == [(CANDLES_1M, days), (CANDLES_1H, days)]
    stored.clear()
    exchange.set_faults([Fault.parse(f"503_html:market={DOGE}")])
    later = last + timedelta(days=2)
    assert not dagster.run(JOB, FIRST_DAY, later, [BTC, DOGE]).success
    assert {asset for asset, _ in stored} == {CANDLES_1M, CANDLES_1H}
    assert len(stored) == 2
