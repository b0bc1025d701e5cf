"""The schedule's tick: what it asks for, against real tables and Dagster's own run storage."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg
import psycopg
import pytest

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.due import due_reports
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.candles.due import look_back
from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.definitions import build_definitions
from trading_pipelines.partitions import RANGE_END, RANGE_START, range_tags
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings import DataSettings, StrategySettings
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.compute import compute

SYMBOLS = ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
SETTINGS = StrategySettings(symbols=SYMBOLS, data=DataSettings(look_back_days=3))
TODAY = look_back(SETTINGS.data.start_date, 3, datetime.now(UTC))[-1]
YESTERDAY = TODAY - DAY
COMPLETE = """
INSERT INTO trading_pipelines.candle_coverage
    (symbol, interval, day, status, fetched_until, confirmed_until, computed_from, changed_at)
SELECT symbol, interval, %(day)s, 'complete', %(end)s, %(end)s, %(end)s, %(end)s
FROM unnest(%(symbols)s::text[]) AS symbol, unnest(ARRAY['1m', '1h']) AS interval
"""


@pytest.fixture
def instance(market_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DATABASE_URL", market_url)
    with dg.instance_for_test() as instance:
        yield instance


def tick(
    instance: dg.DagsterInstance, schedule: str = "refresh_market_data"
) -> Sequence[dg.RunRequest] | str:
    """Evaluate the schedule; return its run requests, or why it skips."""
    definitions = build_definitions(SETTINGS)
    with dg.build_schedule_context(
        instance,
        scheduled_execution_time=datetime.now(UTC),
        resources={"database": DatabaseResource()},
        repository_def=definitions.get_repository_def(),
    ) as context:
        data = definitions.resolve_schedule_def(schedule).evaluate_tick(context)
    return data.run_requests or str(data.skip_message)


def ranges(requests: Sequence[dg.RunRequest] | str) -> list[tuple[str, str]]:
    assert not isinstance(requests, str), requests
    return [(request.tags[RANGE_START], request.tags[RANGE_END]) for request in requests]


def complete(connection: psycopg.Connection, *symbols: str) -> None:
    for n in (1, 2, 3):
        day = TODAY - DAY * n
        connection.execute(
            COMPLETE, {"symbols": list(symbols), "day": day, "end": day_interval(day).end}
        )


def test_a_first_start_asks_for_the_open_day_and_then_for_the_look_back(
    instance: dg.DagsterInstance,
) -> None:
    assert ranges(tick(instance)) == [
        (f"{TODAY}|KRW-BTC", f"{TODAY}|KRW-XRP"),
        (f"{TODAY - DAY * 3}|KRW-BTC", f"{YESTERDAY}|KRW-XRP"),
    ]


def test_what_is_complete_is_left_alone(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    assert ranges(tick(instance)) == [(f"{TODAY}|KRW-BTC", f"{TODAY}|KRW-XRP")]


def test_a_hole_behind_complete_days_is_found(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    connection.execute(
        "DELETE FROM trading_pipelines.candle_coverage WHERE symbol = 'KRW-ETH' AND day = %s",
        [TODAY - DAY * 2],
    )
    hole = f"{TODAY - DAY * 2}|KRW-ETH"
    assert (hole, hole) in ranges(tick(instance))


def test_hours_that_are_older_than_their_minutes_are_computed_alone(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET changed_at = now() "
        "WHERE symbol = 'KRW-XRP' AND interval = '1m' AND day = %s",
        [YESTERDAY],
    )
    requests = tick(instance)
    assert not isinstance(requests, str)
    (hours,) = [r for r in requests if r.tags[RANGE_START] == f"{YESTERDAY}|KRW-XRP"]
    assert hours.asset_selection == [dg.AssetKey("candles_1h")]


def test_what_is_in_flight_is_not_asked_for_again_and_the_skip_says_what_was_looked_at(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    job = build_definitions(SETTINGS).resolve_job_def("refresh_market_data_job")
    instance.create_run_for_job(job, tags=range_tags(SYMBOLS, TODAY, TODAY))
    said = tick(instance)
    assert said == (
        f"looked at 12 partitions from {TODAY - DAY * 3} to {TODAY}: "
        "3 due, 3 of them in flight, 0 waiting after a failure"
    )


def test_a_failed_day_waits_and_then_is_retried_alone(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    fail = (
        "UPDATE trading_pipelines.candle_coverage SET failures = 1, error = 'no answer', "
        "retry_at = now() + %s * interval '1 minute' "
        "WHERE symbol = 'KRW-BTC' AND interval = '1m' AND day = %s"
    )
    connection.execute(fail, [5, YESTERDAY])
    open_day = (f"{TODAY}|KRW-BTC", f"{TODAY}|KRW-XRP")
    assert ranges(tick(instance)) == [open_day]
    connection.execute(fail, [-1, YESTERDAY])
    retried = (f"{YESTERDAY}|KRW-BTC", f"{YESTERDAY}|KRW-BTC")
    assert ranges(tick(instance)) == [open_day, retried]


def test_nothing_is_asked_during_a_block(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    connection.execute(
        "INSERT INTO trading_pipelines.request_slots (exchange, blocked_until) "
        "VALUES ('upbit', now() + interval '1 hour')"
    )
    assert str(tick(instance)).startswith("the exchange has blocked this address until")


def selected(requests: Sequence[dg.RunRequest] | str) -> list[list[str]]:
    assert not isinstance(requests, str), requests
    return [[key.path[0] for key in request.asset_selection or []] for request in requests]


def test_what_has_closed_is_labelled_in_one_run_and_shown(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    requests = tick(instance, "update_regime")
    assert ranges(requests) == [(f"{TODAY - DAY * 3}|KRW-BTC", f"{YESTERDAY}|KRW-XRP")]
    assert selected(requests) == [["regime_labels", "current_signals"]]
    assert "realized_volatility" in str(tick(instance, "update_volatility"))


def test_a_label_that_is_older_than_its_candles_is_asked_for_alone(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    days = [TODAY - DAY * n for n in (3, 2, 1)]
    compute(connection, signals_due.REGIME_LABELS, SYMBOLS, days, SETTINGS, "run")
    assert str(tick(instance, "update_regime")) == (
        f"looked at {TODAY - DAY * 3} to {TODAY}: regime_labels 0 due of 12, 0 of them in flight"
    )
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET changed_at = now() "
        "WHERE symbol = 'KRW-XRP' AND interval = '1h' AND day = %s",
        [YESTERDAY],
    )
    healed = f"{YESTERDAY}|KRW-XRP"
    assert ranges(tick(instance, "update_regime")) == [(healed, healed)]


def test_labels_in_flight_are_not_asked_for_again_and_candles_in_flight_do_not_count(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    definitions = build_definitions(SETTINGS)
    tags = range_tags(SYMBOLS, TODAY - DAY * 3, YESTERDAY)
    instance.create_run_for_job(
        definitions.resolve_job_def("refresh_market_data_job"),
        tags=tags,
        asset_selection=frozenset({dg.AssetKey("candles_1m")}),
    )
    assert selected(tick(instance, "update_regime")) == [["regime_labels", "current_signals"]]
    instance.create_run_for_job(
        definitions.resolve_job_def("update_regime_job"),
        tags=tags,
        asset_selection=frozenset({dg.AssetKey("regime_labels")}),
    )
    assert "regime_labels 9 due of 12, 9 of them in flight" in str(tick(instance, "update_regime"))


def test_the_model_of_a_day_is_asked_for_when_its_variances_are_there(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    assert "volatility_model 0 due of 4" in str(tick(instance, "retrain_volatility"))
    day = TODAY - DAY * 2
    compute(connection, signals_due.REALIZED_VOLATILITY, SYMBOLS, [day], SETTINGS, "run")
    requests = tick(instance, "retrain_volatility")
    assert ranges(requests) == [(f"{day}", f"{day}")]
    assert selected(requests) == [["volatility_model"]]
    definitions = build_definitions(SETTINGS)
    instance.create_run_for_job(
        definitions.resolve_job_def("retrain_volatility_job"), tags=range_tags([], day, day)
    )
    assert "1 due of 4, 1 of them in flight" in str(tick(instance, "retrain_volatility"))
    assert "realized_volatility" in str(tick(instance, "update_volatility")), "another partition"


def test_the_report_of_each_day_that_has_closed_is_asked_for_and_a_failed_one_once_an_hour(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    assert tick(instance, "make_daily_report") == "no report is due", "the kind was never on"
    since = datetime.now(UTC) - 3 * DAY
    ledger.switch_on(connection, DAILY_REPORT, since, datetime.now(UTC))
    requests = tick(instance, "make_daily_report")
    assert not isinstance(requests, str)
    keys = [str(request.partition_key) for request in requests]
    due = due_reports(connection, SETTINGS.alerts, datetime.now(UTC))
    assert keys == [day.isoformat() for day in due]
    assert len(keys) in (2, 3)
    run = dg.DagsterRun(
        job_name="daily_report_job",
        status=dg.DagsterRunStatus.FAILURE,
        tags={"dagster/partition": keys[-1]},
        asset_selection=frozenset({dg.AssetKey("daily_report")}),
    )
    instance.add_run(run)
    again = tick(instance, "make_daily_report")
    assert not isinstance(again, str)
    assert [str(request.partition_key) for request in again] == keys[:-1]
