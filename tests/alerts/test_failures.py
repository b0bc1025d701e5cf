"""What counts as failing, asked of real tables, and that it is told once a window."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any

import psycopg
import pytest

from tests.conftest import candle, days_of
from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.failures import (
    Failure,
    FinishedRun,
    current,
    dead_alerts,
    failed_partitions,
    failed_runs,
    left_failed_partitions,
    missed_alerts,
    quiet_symbols,
)
from trading_pipelines.alerts.incidents import IncidentTally, reconcile
from trading_pipelines.candles import coverage
from trading_pipelines.candles.coverage import FailureKind
from trading_pipelines.candles.windows import day_interval
from trading_pipelines.database.connection import connect
from trading_pipelines.settings.strategy import AlertSettings, HealingSettings, StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals.catalogue import POOLED
from trading_pipelines.signals.left_failed import left_failed

NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
REPEAT_AFTER = 4 * HOUR
HEALING = HealingSettings()
BTC, ETH, XRP = ALL = ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
TODAY = NOW.date()
REFRESH, ASSETS = "refresh_market_data_job", ("candles_1h", "candles_1m")
BROKEN = Failure("run:job:asset:KRW-BTC", "RUN_FAILED", "WARNING", "실행 실패: job\nboom", 1)
QUIET = Failure("quiet:KRW-XRP", "SYMBOL_QUIET", "WARNING", "캔들 없음: KRW-XRP\n70분", 1)


# ---- runs ----


def run(hours: float, *symbols: str, failed: bool = True, **changes: Any) -> FinishedRun:
    """A run that ended some hours before NOW."""
    error = f"boom {hours:g} h ago" if failed else ""
    ended_at = NOW - hours * HOUR
    made = FinishedRun("0123456789ab", REFRESH, ASSETS, symbols, failed, ended_at, error)
    return replace(made, **changes)


def test_a_run_that_failed_is_told_with_its_newest_error_and_those_since_the_last_good_one() -> (
    None
):
    runs = [
        run(1, BTC),
        run(9, BTC),
        run(5, BTC, failed=False),
        run(3, BTC, run_id="other"),
    ]
    (failure,) = failed_runs(runs)
    assert failure == Failure(
        "run:refresh_market_data_job:candles_1h,candles_1m:KRW-BTC",
        "RUN_FAILED",
        "WARNING",
        "실행 실패: refresh_market_data_job (candles_1h, candles_1m; KRW-BTC)\n"
        "성공 없이 2번 실패, 최근 2026-11-24 11:00 KST (run 01234567)\n"
        "boom 1 h ago",
        2,
        runs[0].ended_at,
    )


def test_a_run_whose_newest_was_good_is_not_failing() -> None:
    assert failed_runs([run(2, BTC), run(3, BTC), run(1, BTC, failed=False)]) == []


def test_runs_are_told_apart_by_job_assets_and_symbols() -> None:
    runs = [
        run(1, BTC),
        run(1, ETH),
        run(1, BTC, assets=("candles_1h",)),
        run(1, BTC, job="backfill"),
        run(1, job="purge_run_events_job", assets=()),
    ]
    found = failed_runs(runs)
    assert [failure.count for failure in found] == [1] * 5
    assert len({failure.fingerprint for failure in found}) == 5
    assert found[-1].fingerprint == "run:purge_run_events_job::"
    assert found[-1].message.startswith("실행 실패: purge_run_events_job\n")


def test_a_failed_run_is_made_up_for_by_runs_of_its_job_that_split_it_otherwise() -> None:
    failed = run(5, BTC, ETH)
    assert failed_runs([failed, run(4, BTC, failed=False), run(3, ETH, XRP, failed=False)]) == []


@pytest.mark.parametrize(
    "good",
    [
        run(4, BTC, failed=False),
        run(4, BTC, ETH, failed=False, assets=("candles_1h",)),
        run(4, BTC, ETH, failed=False, job="backfill"),
        run(6, BTC, ETH, failed=False),
    ],
    ids=["of another symbol", "of another asset", "of another job", "before it"],
)
def test_a_failed_run_is_not_made_up_for_by_a_good_one(good: FinishedRun) -> None:
    assert len(failed_runs([run(5, BTC, ETH), good])) == 1


def test_a_job_without_assets_is_made_up_for_by_its_own_success_only() -> None:
    failed = run(5, job="purge", assets=())
    assert failed_runs([failed, run(4, failed=False, job="purge", assets=())]) == []
    assert len(failed_runs([failed, run(4, failed=False, job="other", assets=())])) == 1


def test_a_run_over_all_symbols_of_the_exchange_has_a_fingerprint_that_fits_the_ledger(
    connection: psycopg.Connection,
) -> None:
    # Names that Postgres can't compress.
    symbols = [f"KRW-{sha256(bytes([n, n])).hexdigest()[:10].upper()}" for n in range(256)]
    one, other = failed_runs([run(1, *symbols), run(1, *symbols[:-1])])
    assert one.fingerprint != other.fingerprint, "the names that were cut off count"
    assert reconcile(connection, [one, other], REPEAT_AFTER, NOW) == IncidentTally(new=2)


def test_a_message_is_cut_and_told_whatever_the_error_holds(
    connection: psycopg.Connection,
) -> None:
    (failure,) = failed_runs([run(1, BTC, error="\udc80\0" + "e" * 5000)])
    assert len(failure.message) == 1500
    reconcile(connection, [failure], REPEAT_AFTER, NOW)
    assert "\n?eee" in bodies(connection)[0]["message"]


# ---- partitions ----


def fail_candles(
    connection: psycopg.Connection,
    symbol: str,
    *days: date,
    times: int = 3,
    error: str = "boom",
    trouble: FailureKind = FailureKind.AWAY,
) -> None:
    for day in days:
        for _ in range(times):
            coverage.record_failure(connection, symbol, day, error, "run", trouble, HEALING)


def fail_signal(
    connection: psycopg.Connection, asset: str, symbol: str, day: date, *, times: int = 3
) -> None:
    for _ in range(times):
        signal_coverage.record_failure(
            connection, computed(asset, symbol, day), "no fit", "run", HEALING
        )


def computed(
    asset: str, symbol: str, day: date, inputs: str = "digest"
) -> signal_coverage.SignalCoverage:
    """What is known of a partition that never succeeded."""
    return signal_coverage.SignalCoverage(
        asset, symbol, day, None, None, 0, None, None, False, None, inputs, None, False
    )


def retry_at(connection: psycopg.Connection, moment: datetime) -> None:
    for table in ("candle_coverage", "signal_coverage"):
        connection.execute(f"UPDATE trading_pipelines.{table} SET retry_at = %s", [moment])


def left_at(connection: psycopg.Connection, moment: datetime) -> None:
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET left_at = %s WHERE left_failed", [moment]
    )


def test_failed_partitions_are_one_failure_an_asset_and_symbol_with_their_days_as_stretches(
    connection: psycopg.Connection,
) -> None:
    first = date(2026, 11, 1)
    fail_candles(connection, BTC, *days_of(first, first + 2 * DAY), first + 5 * DAY)
    fail_candles(connection, ETH, first)
    retry_at(connection, NOW + HOUR)
    fail_candles(connection, BTC, first + 6 * DAY, error="the newest")
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET retry_at = %s WHERE error = 'the newest'",
        [NOW + 2 * HOUR],
    )
    btc, eth = failed_partitions(connection, 3, ALL)
    assert btc == Failure(
        "partition:candles_1m:KRW-BTC",
        "PARTITION_FAILED",
        "WARNING",
        "파티션 실패: candles_1m KRW-BTC\n"
        "2026-11-01 ~ 2026-11-03, 2026-11-06 ~ 2026-11-07 (UTC): 15번 실패, "
        "다음 재시도 2026-11-24 13:00 KST 이후\n"
        "the newest",
        15,
    )
    assert eth.fingerprint == "partition:candles_1m:KRW-ETH"
    assert "\n2026-11-01 (UTC): 3번 실패" in eth.message


def test_hours_and_signals_are_told_as_their_own_assets_and_pooled_ones_say_so(
    connection: psycopg.Connection,
) -> None:
    fail_candles(connection, BTC, TODAY)
    connection.execute("UPDATE trading_pipelines.candle_coverage SET interval = '1h'")
    fail_signal(connection, "regime_labels", BTC, TODAY)
    fail_signal(connection, "volatility_model", POOLED, TODAY)
    found = {one.fingerprint: one.message for one in failed_partitions(connection, 3, ALL)}
    assert list(found) == [
        "partition:candles_1h:KRW-BTC",
        "partition:regime_labels:KRW-BTC",
        "partition:volatility_model:",
    ]
    model = found["partition:volatility_model:"]
    assert model.startswith("파티션 실패: volatility_model (전체 종목 공통)\n")
    assert model.endswith("\nno fit")


def test_a_partition_is_told_only_after_so_many_failed_attempts(
    connection: psycopg.Connection,
) -> None:
    fail_candles(connection, BTC, TODAY, times=2)
    fail_signal(connection, "regime_labels", BTC, TODAY, times=2)
    assert [failure.is_news for failure in failed_partitions(connection, 3, ALL)] == [False, False]
    assert [failure.count for failure in failed_partitions(connection, 2, ALL)] == [2, 2]


def test_a_partition_that_was_done_after_all_is_not_failing(connection: psycopg.Connection) -> None:
    fail_candles(connection, BTC, TODAY)
    connection.execute("UPDATE trading_pipelines.candle_coverage SET failures = 0, error = NULL")
    assert failed_partitions(connection, 1, ALL) == []


def test_partitions_of_a_symbol_no_longer_collected_are_left_out(
    connection: psycopg.Connection,
) -> None:
    fail_candles(connection, BTC, TODAY)
    fail_candles(connection, ETH, TODAY)
    fail_signal(connection, "volatility_model", POOLED, TODAY)
    assert [failure.fingerprint for failure in failed_partitions(connection, 3, [ETH])] == [
        "partition:candles_1m:KRW-ETH",
        "partition:volatility_model:",
    ]


def test_of_many_stretches_the_newest_are_named(connection: psycopg.Connection) -> None:
    fail_candles(connection, BTC, *days_of(date(2026, 10, 1), date(2026, 10, 31))[::2])
    (failure,) = failed_partitions(connection, 3, ALL)
    assert "\n2026-10-13, " in failure.message
    assert "2026-10-31 외 6개 구간 (UTC): 48번 실패" in failure.message


def test_what_is_left_failed_is_told_with_its_days_and_what_retries_them(
    connection: psycopg.Connection,
) -> None:
    first = date(2026, 11, 1)
    gone = [first, first + DAY, first + 4 * DAY]
    fail_candles(connection, BTC, *gone, times=1, error="404", trouble=FailureKind.MARKET)
    fail_signal(connection, "volatility_model", POOLED, first, times=HEALING.attempts)
    left_at(connection, NOW)
    candles, model = left_failed_partitions(connection, ALL)
    assert candles == Failure(
        "left:candles_1m:KRW-BTC",
        "PARTITION_LEFT_FAILED",
        "CRITICAL",
        "파티션 포기: candles_1m KRW-BTC\n"
        "2026-11-01 ~ 2026-11-02, 2026-11-05 (UTC): 재시도를 모두 소진해 실패로 남음\n"
        "이제 하루에 한 번만 다시 시도함\n"
        "지금 다시 시도: trading-pipelines backfill --symbols KRW-BTC --start 2026-11-05 "
        "--end 2026-11-05\n"
        "404",
        3,
        NOW,
    )
    assert model.message.startswith(
        "파티션 포기: volatility_model (전체 종목 공통)\n2026-11-01 (UTC)"
    )
    assert "입력 데이터가 바뀌면 다시 시도함" in model.message
    assert "Dagster UI, Catalog, volatility_model: Materialize 2026-11-01\nno fit" in model.message


def test_of_a_symbol_no_longer_collected_nothing_is_left_failed(
    connection: psycopg.Connection,
) -> None:
    fail_candles(connection, BTC, TODAY, times=1, trouble=FailureKind.MARKET)
    fail_signal(connection, "volatility_model", POOLED, TODAY, times=HEALING.attempts)
    assert [one.asset for one in left_failed(connection, [ETH])] == ["volatility_model"]


def telling(connection: psycopg.Connection, at: datetime) -> list[str]:
    """Tell of the partitions at the moment, delivered at once; return the types that were told."""
    before = len(types(connection))
    found = failed_partitions(connection, 3, ALL) + left_failed_partitions(connection, ALL)
    reconcile(connection, found, REPEAT_AFTER, at)
    become(connection, "delivered", at)
    return types(connection)[before:]


def test_a_partition_left_failed_is_told_once_and_hides_no_other(
    connection: psycopg.Connection,
) -> None:
    closed = date(2025, 9, 1)
    fail_candles(connection, BTC, closed, trouble=FailureKind.ANSWER)
    assert telling(connection, NOW) == ["PARTITION_FAILED"]
    fail_candles(connection, BTC, closed, times=HEALING.attempts - 3, trouble=FailureKind.ANSWER)
    left_at(connection, NOW)
    assert telling(connection, NOW + HOUR) == ["PARTITION_LEFT_FAILED"], "nor has it recovered"
    for days in range(1, 5):
        fail_candles(connection, BTC, closed, times=1, trouble=FailureKind.ANSWER)
        assert telling(connection, NOW + days * DAY) == [], "its daily try is no news"
    fail_candles(connection, BTC, closed + DAY)
    assert telling(connection, NOW + 5 * DAY) == ["PARTITION_FAILED"]
    assert bodies(connection)[-1]["message"].splitlines()[1].startswith("2025-09-02 (UTC): 3번")
    fail_candles(connection, BTC, closed + 2 * DAY, times=1, trouble=FailureKind.MARKET)
    assert telling(connection, NOW + 5.5 * DAY) == ["PARTITION_FAILED", "PARTITION_LEFT_FAILED"]
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET failures = 0, left_failed = false"
    )
    assert telling(connection, NOW + 6 * DAY) == ["RECOVERED", "RECOVERED"]


def test_a_partition_whose_tries_begin_anew_has_not_recovered(
    connection: psycopg.Connection,
) -> None:
    fail_signal(connection, "regime_labels", BTC, TODAY)
    assert telling(connection, NOW) == ["PARTITION_FAILED"]
    signal_coverage.record_failure(
        connection, computed("regime_labels", BTC, TODAY, "other inputs"), "no fit", "run", HEALING
    )
    assert telling(connection, NOW + HOUR) == []
    fail_signal(connection, "regime_labels", BTC, TODAY)
    assert telling(connection, NOW + REPEAT_AFTER) == ["PARTITION_FAILED"]


def test_what_was_left_failed_and_fails_with_other_inputs_has_not_recovered_and_is_told_anew(
    connection: psycopg.Connection,
) -> None:
    fail_signal(connection, "regime_labels", BTC, TODAY, times=HEALING.attempts)
    retry_at(connection, NOW)
    assert telling(connection, NOW) == ["PARTITION_LEFT_FAILED"]
    other = computed("regime_labels", BTC, TODAY, "other inputs")
    signal_coverage.record_failure(connection, other, "no fit", "run", HEALING)
    assert telling(connection, NOW + HOUR) == []
    for _ in range(HEALING.attempts - 1):
        signal_coverage.record_failure(connection, other, "no fit", "run", HEALING)
    retry_at(connection, NOW + 2 * HOUR)
    assert telling(connection, NOW + 2 * HOUR) == [], "told once a window"
    assert telling(connection, NOW + REPEAT_AFTER) == ["PARTITION_LEFT_FAILED"]
    connection.execute("UPDATE trading_pipelines.signal_coverage SET failures = 0")
    assert telling(connection, NOW + 9 * HOUR) == ["RECOVERED"]


# ---- quiet symbols ----


def asked(
    connection: psycopg.Connection, symbol: str, until: datetime, interval: str = "1m"
) -> None:
    """Say that the day before `until` was asked for, from its start."""
    day = (until - MINUTE).date()
    connection.execute(
        "INSERT INTO trading_pipelines.candle_coverage "
        "(symbol, interval, day, status, fetched_until, confirmed_until) "
        "VALUES (%s, %s, %s, 'partial', %s, %s)",
        [symbol, interval, day, until, day_interval(day).start],
    )


def quiet(connection: psycopg.Connection) -> list[Failure]:
    return quiet_symbols(connection, [BTC, ETH, XRP], HOUR)


MIDNIGHT = day_interval(TODAY).start


def test_a_symbol_is_quiet_when_the_exchange_was_asked_and_had_nothing_for_longer(
    connection: psycopg.Connection,
) -> None:
    for symbol, minutes in {BTC: 60, ETH: 61}.items():
        asked(connection, symbol, NOW)
        candle(connection, symbol, NOW - (minutes + 1) * MINUTE)
        candle(connection, symbol, MIDNIGHT)
    assert quiet(connection) == [
        Failure(
            "quiet:KRW-ETH",
            "SYMBOL_QUIET",
            "WARNING",
            "캔들 없음: KRW-ETH\n"
            "거래소에 2026-11-24 12:00 KST까지 물었으나 1시간 1분 동안 체결이 없음\n"
            "마지막 캔들 2026-11-24 10:58 KST",
            1,
        )
    ]


def test_a_symbol_is_quiet_over_midnight_where_both_days_were_asked_for(
    connection: psycopg.Connection,
) -> None:
    candle(connection, BTC, MIDNIGHT - 41 * MINUTE)
    asked(connection, BTC, MIDNIGHT)
    asked(connection, BTC, MIDNIGHT + 25 * MINUTE)
    (failure,) = quiet(connection)
    assert "1시간 5분 동안" in failure.message


def test_what_was_never_fetched_never_had_a_candle_or_is_not_collected_is_not_quiet(
    connection: psycopg.Connection,
) -> None:
    candle(connection, BTC, NOW - 9 * DAY)
    asked(connection, ETH, NOW)
    candle(connection, ETH, NOW - 9 * DAY, interval="1h")
    candle(connection, XRP, MIDNIGHT)
    asked(connection, XRP, NOW, interval="1h")
    candle(connection, "KRW-OLD", MIDNIGHT)
    asked(connection, "KRW-OLD", NOW)
    assert quiet(connection) == []


def test_downtime_is_not_quiet(connection: psycopg.Connection) -> None:
    candle(connection, BTC, MIDNIGHT - MINUTE)
    asked(connection, BTC, MIDNIGHT)
    assert quiet(connection) == [], "it is 3:00, and nobody has asked since midnight"


def test_the_first_minutes_after_downtime_do_not_make_the_downtime_quiet(
    connection: psycopg.Connection,
) -> None:
    candle(connection, BTC, NOW - 3 * DAY)
    asked(connection, BTC, NOW - 3 * DAY + 2 * HOUR)
    asked(connection, BTC, MIDNIGHT + 9 * MINUTE)
    assert quiet(connection) == []
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET fetched_until = %s WHERE day = %s",
        [MIDNIGHT + 61 * MINUTE, TODAY],
    )
    (failure,) = quiet(connection)
    assert "1시간 1분 동안" in failure.message, "of the open day, asked for whole"


def test_a_day_whose_download_failed_was_not_asked_for(connection: psycopg.Connection) -> None:
    candle(connection, BTC, MIDNIGHT - 2 * HOUR)
    asked(connection, BTC, MIDNIGHT - HOUR)
    fail_candles(connection, BTC, TODAY, times=1)
    assert quiet(connection) == []


# ---- dead and missed alerts ----


def enter(
    connection: psycopg.Connection, kind: str, source_id: str, problem: str | None = None
) -> None:
    body = {"timestamp": NOW.isoformat()}
    ledger.enter(connection, kind, kind, source_id, "risk", body, occurred_at=NOW, problem=problem)


def test_dead_alerts_are_one_failure_a_kind_with_the_newest_error_and_what_to_do(
    connection: psycopg.Connection,
) -> None:
    enter(connection, "ai_reject", "1", "older error")
    enter(connection, "ai_reject", "2", "newer error")
    enter(connection, "trade", "1", "other")
    enter(connection, "risk", "1")
    reject, trade = dead_alerts(connection)
    assert reject == Failure(
        "dead:ai_reject",
        "ALERT_DEAD",
        "CRITICAL",
        "전달 포기된 알림: ai_reject\n"
        "2건. 다시 보내기: trading-pipelines alerts replay --dead --since 2d\n"
        "newer error",
        2,
    )
    assert trade.fingerprint == "dead:trade"


def test_the_command_reaches_back_to_the_oldest_dead_alert(connection: psycopg.Connection) -> None:
    enter(connection, "trade", "1", "boom")
    connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET created_at = now() - interval '9.5 days'"
    )
    (failure,) = dead_alerts(connection)
    assert "--since 11d" in failure.message


def test_a_dead_alert_about_the_pipeline_makes_no_other_one(connection: psycopg.Connection) -> None:
    enter(connection, "pipeline_failure", "1", "boom")
    assert dead_alerts(connection) == []


def reject(connection: psycopg.Connection, at: datetime | None) -> None:
    connection.execute(
        "INSERT INTO agent_decisions (symbol, strategy_name, decision, created_at) "
        "VALUES ('KRW-BTC', 's', 'REJECT', %s)",
        [at],
    )


def violate(connection: psycopg.Connection, at: datetime) -> None:
    connection.execute("INSERT INTO risk_audit (violation_type, timestamp) VALUES ('X', %s)", [at])


def test_rows_that_left_the_look_back_undelivered_are_told_with_what_to_do(
    connection: psycopg.Connection,
) -> None:
    for kind in ("ai_reject", "risk"):
        ledger.enable(connection, kind, NOW - 60 * DAY, NOW)
    for days in (14, 8, 7.01, 7, 6.9, 14.01):
        reject(connection, NOW - days * DAY)
    reject(connection, None)
    violate(connection, NOW - 10 * DAY)
    connection.execute(
        "INSERT INTO daily_risk_state VALUES ('2026-11-15', 0, 0, 3, %s, false, %s)",
        [NOW - 8.5 * DAY, NOW - 9 * DAY],
    )
    found = missed_alerts(connection, AlertSettings(), NOW)
    assert [(one.fingerprint, one.count) for one in found] == [
        ("missed:ai_reject", 3),
        ("missed:risk", 2),
    ]
    assert found[0] == Failure(
        "missed:ai_reject",
        "ALERT_MISSED",
        "CRITICAL",
        "놓친 알림: ai_reject\n"
        "3건이 전달되지 않은 채 조회 기간을 벗어남\n"
        "가장 오래된 것 2026-11-10 12:00 KST\n"
        "alerts.look_back_days(현재 7, 최대 30)를 늘리면 그 기간 안의 것은 전송됨",
        3,
    )
    assert "가장 오래된 것 2026-11-14 12:00 KST" in found[1].message


def test_what_the_ledger_holds_was_not_missed(connection: psycopg.Connection) -> None:
    ledger.enable(connection, "ai_reject", NOW - 60 * DAY, NOW)
    reject(connection, NOW - 8 * DAY)
    assert len(missed_alerts(connection, AlertSettings(), NOW)) == 1
    assert ledger.collect(connection, "ai_reject", NOW - 9 * DAY, NOW) == 1
    assert missed_alerts(connection, AlertSettings(), NOW) == []


def test_what_is_older_than_its_kind_or_of_a_kind_that_is_off_was_not_missed(
    connection: psycopg.Connection,
) -> None:
    reject(connection, NOW - 8 * DAY)
    violate(connection, NOW - 8 * DAY)
    ledger.enable(connection, "ai_reject", NOW - 7.5 * DAY, NOW)
    ledger.enable(connection, "risk", NOW - 60 * DAY, NOW)
    assert len(missed_alerts(connection, AlertSettings(), NOW)) == 1
    ledger.disable(connection, "risk")
    assert missed_alerts(connection, AlertSettings(), NOW) == []


# ---- telling ----


def rows(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT id, source_id, state, body FROM trading_pipelines.alert_deliveries "
        "WHERE source = 'pipeline' ORDER BY id"
    ).fetchall()


def bodies(connection: psycopg.Connection) -> list[dict[str, Any]]:
    return [row[-1] for row in rows(connection)]


def types(connection: psycopg.Connection) -> list[str]:
    return [body["type"] for body in bodies(connection)]


def become(connection: psycopg.Connection, state: str, at: datetime | None = None) -> None:
    """Let all that waits become what a sender would make of it."""
    connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = %s, delivered_at = %s "
        "WHERE source = 'pipeline' AND state IN ('pending', 'retrying')",
        [state, at],
    )


def told_and_delivered(connection: psycopg.Connection, *failures: Failure) -> None:
    """Tell of the failures at NOW; they are delivered at NOW."""
    reconcile(connection, failures, REPEAT_AFTER, NOW)
    become(connection, "delivered", NOW)


def test_a_failure_is_entered_with_the_contracts_body_and_its_fingerprint(
    connection: psycopg.Connection,
) -> None:
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, NOW) == IncidentTally(new=1)
    row = connection.execute(
        "SELECT kind, source, source_id, channel, state, occurred_at, body "
        "FROM trading_pipelines.alert_deliveries"
    ).fetchone()
    source_id = "run:job:asset:KRW-BTC 2026-11-24T03:00:00+00:00"
    body = {
        "type": "RUN_FAILED",
        "level": "WARNING",
        "message": "실행 실패: job\nboom",
        "timestamp": "2026-11-24T03:00:00+00:00",
        "fingerprint": "run:job:asset:KRW-BTC",
        "count": 1,
        "failing_since": "2026-11-24T03:00:00+00:00",
        "happened_at": None,
        "idempotency_key": f"pipeline:{source_id}:risk",
    }
    assert row == ("pipeline_failure", "pipeline", source_id, "risk", "pending", NOW, body)


def test_27900_failures_in_14_days_are_one_message_a_window_and_none_is_lost_count_of(
    connection: psycopg.Connection,
) -> None:
    ticks, told = 14 * 24 * 3, IncidentTally()
    for tick in range(1, ticks + 1):
        at = NOW + tick * 20 * MINUTE
        one = reconcile(
            connection, [replace(BROKEN, count=27_900 * tick // ticks)], REPEAT_AFTER, at
        )
        become(connection, "delivered", at)
        told = IncidentTally(told.new + one.new, told.repeated + one.repeated, 0,
                    told.suppressed + one.suppressed)  # fmt: skip
    assert told == IncidentTally(new=1, repeated=14 * 6 - 1, suppressed=ticks - 14 * 6)
    first, *again = bodies(connection)
    assert first["message"] == BROKEN.message
    numbers = [int(body["message"].split("그 사이 ")[1].split("건 더")[0]) for body in again]
    assert first["count"] + sum(numbers) == again[-1]["count"] > 27_000


def test_the_window_opens_only_when_the_message_was_accepted(
    connection: psycopg.Connection,
) -> None:
    reconcile(connection, [BROKEN], REPEAT_AFTER, NOW)
    late = NOW + 10 * HOUR
    for state in ("pending", "retrying"):
        connection.execute("UPDATE trading_pipelines.alert_deliveries SET state = %s", [state])
        assert reconcile(connection, [BROKEN], REPEAT_AFTER, late) == IncidentTally(suppressed=1), (
            state
        )
    become(connection, "delivered", late)
    almost = late + REPEAT_AFTER - MINUTE
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, almost) == IncidentTally(suppressed=1)
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, late + REPEAT_AFTER) == IncidentTally(
        repeated=1
    )


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (12, "그 사이 5건 더 발생 (이전 알림 이후 생략됨)"),
        (3, "그 사이 3건 더 발생 (이전 알림 이후 생략됨)"),
        (7, "이전 알림 이후에도 계속됨"),
    ],
    ids=["grew", "began anew", "goes on"],
)
def test_a_failure_that_lasts_is_told_again_with_the_number_of_those_suppressed(
    connection: psycopg.Connection, count: int, note: str
) -> None:
    told_and_delivered(connection, replace(BROKEN, count=7))
    lasts = replace(BROKEN, count=count, message=f"실행 실패: job\n{'e' * 1480}")
    assert reconcile(connection, [lasts], REPEAT_AFTER, NOW + REPEAT_AFTER) == IncidentTally(
        repeated=1
    )
    again = bodies(connection)[1]
    assert again["message"].endswith(f"e\n{note}")
    assert len(again["message"]) == 1500
    assert again["count"] == count


@pytest.mark.parametrize("state", ["dead", "skipped"])
def test_a_failure_that_nobody_was_told_of_is_told_as_new_after_the_window(
    connection: psycopg.Connection, state: str
) -> None:
    reconcile(connection, [replace(BROKEN, count=7)], REPEAT_AFTER, NOW)
    become(connection, state)
    almost, over = NOW + REPEAT_AFTER - MINUTE, NOW + REPEAT_AFTER
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, almost) == IncidentTally(suppressed=1)
    assert reconcile(connection, [replace(BROKEN, count=9)], REPEAT_AFTER, over) == IncidentTally(
        new=1
    )
    assert bodies(connection)[1]["message"] == BROKEN.message, "all 9 are news"


def test_what_happened_once_is_told_again_only_when_it_has_happened_again(
    connection: psycopg.Connection,
) -> None:
    once = replace(BROKEN, at=NOW - MINUTE)
    reconcile(connection, [once], REPEAT_AFTER, NOW)
    become(connection, "delivered", NOW + HOUR)
    assert reconcile(connection, [once], REPEAT_AFTER, NOW + 9 * HOUR) == IncidentTally(
        suppressed=1
    )
    # Before the first was delivered, and not in its words.
    twice = replace(BROKEN, at=NOW + MINUTE, count=2)
    assert reconcile(connection, [twice], REPEAT_AFTER, NOW + 2 * HOUR) == IncidentTally(
        suppressed=1
    )
    assert reconcile(connection, [twice], REPEAT_AFTER, NOW + 9 * HOUR) == IncidentTally(repeated=1)
    assert "그 사이 1건 더 발생" in bodies(connection)[-1]["message"]


@pytest.mark.parametrize("state", ["dead", "skipped"])
def test_what_happened_once_and_nobody_was_told_of_is_told_after_the_window(
    connection: psycopg.Connection, state: str
) -> None:
    once = replace(BROKEN, at=NOW - MINUTE)
    reconcile(connection, [once], REPEAT_AFTER, NOW)
    become(connection, state)
    assert reconcile(connection, [once], REPEAT_AFTER, NOW + REPEAT_AFTER) == IncidentTally(new=1)


def test_of_a_run_that_failed_a_day_ago_nobody_knows_that_it_has_recovered(
    connection: psycopg.Connection,
) -> None:
    reconcile(connection, [replace(BROKEN, at=NOW)], REPEAT_AFTER, NOW)
    become(connection, "delivered", NOW + 6 * HOUR)
    assert reconcile(connection, [], REPEAT_AFTER, NOW + 23.1 * HOUR) == IncidentTally()
    assert reconcile(connection, [], REPEAT_AFTER, NOW + 22.9 * HOUR) == IncidentTally(recovered=1)


def test_one_failure_does_not_suppress_another(connection: psycopg.Connection) -> None:
    told_and_delivered(connection, BROKEN)
    later = NOW + HOUR
    assert reconcile(connection, [BROKEN, QUIET], REPEAT_AFTER, later) == IncidentTally(
        new=1, suppressed=1
    )


def test_a_recovery_is_told_once_with_how_long_it_lasted(connection: psycopg.Connection) -> None:
    told_and_delivered(connection, replace(BROKEN, count=3))
    reconcile(connection, [replace(BROKEN, count=5)], REPEAT_AFTER, NOW + REPEAT_AFTER)
    become(connection, "delivered", NOW + REPEAT_AFTER)
    over = NOW + 5 * HOUR + 7 * MINUTE
    assert reconcile(connection, [], REPEAT_AFTER, over) == IncidentTally(recovered=1)
    recovery = bodies(connection)[-1]
    assert recovery | {"idempotency_key": ""} == {
        "type": "RECOVERED",
        "level": "INFO",
        "message": "더 이상 실패 상태가 아님: 실행 실패: job\n"
        "5시간 7분 지속 (2026-11-24 12:00 KST ~ 2026-11-24 17:07 KST)",
        "timestamp": over.isoformat(),
        "fingerprint": BROKEN.fingerprint,
        "count": 5,
        "idempotency_key": "",
    }
    for state in ("pending", "delivered", "dead"):
        connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = %s "
            "WHERE body ->> 'type' = 'RECOVERED'",
            [state],
        )
        assert reconcile(connection, [], REPEAT_AFTER, over + 9 * HOUR) == IncidentTally(), state


def test_a_recovery_waits_until_its_failure_has_been_delivered(
    connection: psycopg.Connection,
) -> None:
    reconcile(connection, [BROKEN], REPEAT_AFTER, NOW)
    assert reconcile(connection, [], REPEAT_AFTER, NOW + HOUR) == IncidentTally()
    assert [row[2] for row in rows(connection)] == ["pending"], "it is told all the same"
    become(connection, "delivered", NOW + 2 * HOUR)
    assert reconcile(connection, [], REPEAT_AFTER, NOW + 3 * HOUR) == IncidentTally(recovered=1)


@pytest.mark.parametrize("state", ["dead", "skipped"])
def test_of_what_was_never_told_no_recovery_is(connection: psycopg.Connection, state: str) -> None:
    reconcile(connection, [BROKEN], REPEAT_AFTER, NOW)
    become(connection, state)
    assert reconcile(connection, [], REPEAT_AFTER, NOW + HOUR) == IncidentTally()


def test_a_failure_that_comes_and_goes_is_told_once_a_window(
    connection: psycopg.Connection,
) -> None:
    for minutes in range(0, 12 * 60, 5):
        at = NOW + minutes * MINUTE
        reconcile(connection, [BROKEN] if minutes % 10 == 0 else [], REPEAT_AFTER, at)
        become(connection, "delivered", at)
    assert types(connection) == ["RUN_FAILED", "RECOVERED"] * 3
    times = [datetime.fromisoformat(body["timestamp"]) for body in bodies(connection)]
    assert [at - NOW for at in times[::2]] == [0 * HOUR, 4 * HOUR, 8 * HOUR]


def test_a_failure_after_a_recovery_is_new_when_the_window_is_over(
    connection: psycopg.Connection,
) -> None:
    told_and_delivered(connection, BROKEN)
    reconcile(connection, [], REPEAT_AFTER, NOW + HOUR)
    become(connection, "delivered", NOW + 3 * HOUR)
    again, at = replace(BROKEN, count=4), NOW + REPEAT_AFTER
    assert reconcile(connection, [again], REPEAT_AFTER, at - MINUTE) == IncidentTally(suppressed=1)
    assert reconcile(connection, [again], REPEAT_AFTER, at) == IncidentTally(new=1)
    assert bodies(connection)[-1]["message"] == BROKEN.message
    assert bodies(connection)[-1]["failing_since"] == at.isoformat()


def test_rows_that_were_missed_do_not_recover_by_growing_old(
    connection: psycopg.Connection,
) -> None:
    told_and_delivered(connection, replace(BROKEN, type="ALERT_MISSED"))
    assert reconcile(connection, [], REPEAT_AFTER, NOW + DAY) == IncidentTally()


@pytest.mark.parametrize(
    "act",
    [
        lambda _: None,
        lambda connection: become(connection, "delivered", NOW),
        lambda connection: become(connection, "dead"),
    ],
    ids=["waiting", "delivered", "dead"],
)
def test_telling_the_same_again_ends_in_the_same_rows(
    connection: psycopg.Connection, act: Callable[[psycopg.Connection], None]
) -> None:
    told_and_delivered(connection, QUIET)
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, NOW) == IncidentTally(new=1, recovered=1)
    act(connection)
    before = rows(connection)
    assert reconcile(connection, [BROKEN, BROKEN], REPEAT_AFTER, NOW) == IncidentTally(suppressed=2)
    assert rows(connection) == before


def test_the_same_failure_given_twice_is_told_once(connection: psycopg.Connection) -> None:
    assert reconcile(connection, [BROKEN, BROKEN], REPEAT_AFTER, NOW) == IncidentTally(new=1)
    assert len(rows(connection)) == 1


def test_a_call_that_dies_on_the_way_has_entered_nothing(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ledger.enter

    def dies(*arguments: Any, **named: Any) -> bool:
        if QUIET.fingerprint in arguments[3]:
            raise RuntimeError("killed")
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "enter", dies)
        with pytest.raises(RuntimeError, match="killed"):
            reconcile(connection, [BROKEN, QUIET], REPEAT_AFTER, NOW)
    assert rows(connection) == []
    assert reconcile(connection, [BROKEN, QUIET], REPEAT_AFTER, NOW) == IncidentTally(new=2)


def test_a_killed_daemons_tick_and_the_next_one_do_not_both_tell(
    connection: psycopg.Connection, market_url: str
) -> None:
    with connect(market_url) as other:
        other.execute("SET lock_timeout = '100ms'")
        with connection.transaction():
            reconcile(connection, [BROKEN], REPEAT_AFTER, NOW)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                reconcile(other, [BROKEN], REPEAT_AFTER, NOW + MINUTE)
        assert reconcile(other, [BROKEN], REPEAT_AFTER, NOW + MINUTE) == IncidentTally(suppressed=1)


def digest(connection: psycopg.Connection) -> None:
    waiting = ledger.waiting(connection, "pipeline_failure")
    ledger.enter_digest(connection, "pipeline_failure", waiting, {"type": "DIGEST"}, NOW)


def digest_becomes(connection: psycopg.Connection, state: str, at: datetime | None) -> None:
    connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = %s, delivered_at = %s "
        "WHERE source = 'digest'",
        [state, at],
    )


def test_what_a_digest_tells_is_told_when_the_digest_is_delivered(
    connection: psycopg.Connection,
) -> None:
    reconcile(connection, [BROKEN, QUIET], REPEAT_AFTER, NOW)
    digest(connection)
    later = NOW + 5 * HOUR
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, later) == IncidentTally(suppressed=1)
    digest_becomes(connection, "delivered", later)
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, later) == IncidentTally(
        suppressed=1, recovered=1
    )
    over = later + REPEAT_AFTER
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, over) == IncidentTally(repeated=1)


def test_what_died_with_its_digest_was_not_told(connection: psycopg.Connection) -> None:
    reconcile(connection, [BROKEN, QUIET], REPEAT_AFTER, NOW)
    digest(connection)
    digest_becomes(connection, "dead", None)
    assert reconcile(connection, [BROKEN], REPEAT_AFTER, NOW + REPEAT_AFTER) == IncidentTally(new=1)


def test_what_the_ledger_holds_from_more_than_30_days_ago_is_not_looked_at(
    connection: psycopg.Connection,
) -> None:
    told_and_delivered(connection, BROKEN, QUIET)
    long, at = 40 * DAY, NOW + 30 * DAY
    assert reconcile(connection, [BROKEN, QUIET], long, at) == IncidentTally(suppressed=2)
    assert reconcile(connection, [BROKEN], long, at + MINUTE) == IncidentTally(new=1), (
        "nor recovered"
    )


# ---- all of it ----


def test_all_that_is_failing_is_told_with_the_thresholds_of_the_settings(
    connection: psycopg.Connection,
) -> None:
    settings = StrategySettings(
        symbols=[BTC, ETH],
        alerts=AlertSettings(failures_before_alert=2, quiet_after=600.0, look_back_days=2),
    )
    ledger.enable(connection, "ai_reject", NOW - 60 * DAY, NOW)
    reject(connection, NOW - 3 * DAY)
    enter(connection, "trade", "1", "boom")
    for symbol in (BTC, XRP):
        fail_candles(connection, symbol, TODAY - DAY, times=2)
    for symbol, minutes in {BTC: 11, ETH: 12, XRP: 99}.items():
        asked(connection, symbol, NOW)
        candle(connection, symbol, NOW - minutes * MINUTE)
    found = current(connection, settings, [run(1, BTC)], NOW)
    assert [one.fingerprint for one in found if one.is_news] == [
        "run:refresh_market_data_job:candles_1h,candles_1m:KRW-BTC",
        "partition:candles_1m:KRW-BTC",
        "quiet:KRW-ETH",
        "dead:trade",
        "missed:ai_reject",
    ]
    assert reconcile(connection, found, REPEAT_AFTER, NOW) == IncidentTally(new=5)
    assert types(connection) == [
        "RUN_FAILED",
        "PARTITION_FAILED",
        "SYMBOL_QUIET",
        "ALERT_DEAD",
        "ALERT_MISSED",
    ]
    assert reconcile(
        connection, current(connection, settings, [], NOW), REPEAT_AFTER, NOW
    ) == IncidentTally(suppressed=4), "the run's alert still waits, so its recovery does as well"
