"""The schedule's tick: what it asks for, against real tables and Dagster's own run storage."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from tests.assets.conftest import add_backfill
from tests.conftest import new_database
from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.alerts.periodic import due_reports
from trading_pipelines.candles.due import look_back
from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.definitions import build_definitions
from trading_pipelines.partitions import RANGE_END, RANGE_START, range_tags
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import runs_in_flight
from trading_pipelines.settings.strategy import DataSettings, LiveSettings, StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals.catalogue import (
    GARCH_BASELINE,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
)
from trading_pipelines.signals.registry import compute

SYMBOLS = ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
# Without the live edge no tick waits for the hour that has just closed.
SETTINGS = StrategySettings(
    symbols=SYMBOLS, data=DataSettings(look_back_days=3), live=LiveSettings(enabled=False)
)
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
    instance: dg.DagsterInstance,
    schedule: str = "refresh_market_data",
    settings: StrategySettings = SETTINGS,
) -> Sequence[dg.RunRequest] | str:
    """Evaluate the schedule; return its run requests, or why it skips."""
    definitions = build_definitions(settings)
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


def complete(
    connection: psycopg.Connection, *symbols: str, days_ago: Iterable[int] = (1, 2, 3)
) -> None:
    for n in days_ago:
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


LONG = SETTINGS.model_copy(
    update={"data": DataSettings(look_back_days=30), "symbols": StrategySettings().symbols}
)


def prioritised(requests: Sequence[dg.RunRequest] | str) -> list[tuple[str, str, int]]:
    """Return (first key, last key, priority) in the order in which the queue takes the runs."""
    assert not isinstance(requests, str), requests
    found = [
        (r.tags[RANGE_START], r.tags[RANGE_END], int(r.tags.get("dagster/priority", 0)))
        for r in requests
    ]
    return sorted(found, key=lambda one: -one[2])


@pytest.mark.parametrize("down", [7, 30])
def test_after_days_of_downtime_the_newest_comes_first_and_the_runs_are_few(
    instance: dg.DagsterInstance, connection: psycopg.Connection, down: int
) -> None:
    complete(connection, *LONG.symbols, days_ago=range(down + 1, 31))
    first, last = LONG.symbols[0], LONG.symbols[-1]
    missed = TODAY - DAY * down
    requests = tick(instance, settings=LONG)
    assert prioritised(requests) == [
        (f"{TODAY}|{first}", f"{TODAY}|{last}", 5),
        (f"{missed}|{first}", f"{YESTERDAY}|{last}", 0),
    ]
    assert prioritised(requests) == [
        (*span, priority) for span, priority in zip(ranges(requests), (5, 0), strict=True)
    ], "launched in that order too"

    complete(connection, *LONG.symbols, days_ago=range(down, 0, -1))
    connection.execute(
        "DELETE FROM trading_pipelines.candle_coverage WHERE day = %s", [TODAY - DAY * 2]
    )
    assert [priority for *_, priority in prioritised(tick(instance, "update_regime", LONG))] == [
        5,
        0,
    ]


def test_what_is_left_failed_is_launched_by_no_schedule(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET failures = 8, left_failed = true, "
        "retry_at = now() + interval '1 day' WHERE symbol = 'KRW-BTC' AND interval = '1m' "
        "AND day = %s",
        [YESTERDAY],
    )
    assert ranges(tick(instance)) == [(f"{TODAY}|KRW-BTC", f"{TODAY}|KRW-XRP")]
    days = [TODAY - DAY * n for n in (3, 2, 1)]
    compute(connection, REGIME_LABELS, SYMBOLS, days, SETTINGS, "run")
    connection.execute(
        "UPDATE trading_pipelines.signal_coverage SET failures = 8, left_failed = true, "
        "failed_inputs = inputs WHERE symbol = 'KRW-BTC' AND day = %s",
        [YESTERDAY],
    )
    assert "regime_labels 1 due of 12" in str(tick(instance, "update_regime"))


def test_the_runs_that_wait_and_are_at_work_are_named(instance: dg.DagsterInstance) -> None:
    now = datetime.now(UTC)
    tags = range_tags(SYMBOLS, TODAY - DAY * 3, YESTERDAY)
    for status in (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.SUCCESS):
        instance.add_run(dg.DagsterRun(job_name="refresh", status=status, tags=tags))
    instance.add_run(dg.DagsterRun(job_name="purge", status=dg.DagsterRunStatus.STARTED))
    purge, refresh = runs_in_flight(instance)
    assert (purge.job, purge.symbols, purge.days, purge.state) == ("purge", (), (), "started")
    assert (refresh.symbols, refresh.days, refresh.state) == (
        ("KRW-BTC", "KRW-XRP"),
        (TODAY - DAY * 3, YESTERDAY),
        "not started",
    )
    assert abs(refresh.since - now) < timedelta(minutes=1)


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
        "3 due, 3 of them in flight, 0 waiting after a failure, 0 left failed"
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
    compute(connection, REGIME_LABELS, SYMBOLS, days, SETTINGS, "run")
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


def test_a_run_of_assets_without_a_job_is_named_by_how_it_was_launched(
    instance: dg.DagsterInstance,
) -> None:
    for tags in ({}, {"dagster/backfill": "abcdefgh"}):
        job = build_definitions(SETTINGS).resolve_job_def("__ASSET_JOB")
        instance.create_run_for_job(job, tags=tags)
    assert [run.job for run in runs_in_flight(instance)] == ["backfill", "materialization"]


def test_the_run_that_measures_the_newest_hours_forecasts_them_too(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    older = [TODAY - DAY * 3, TODAY - DAY * 2]
    assert selected(tick(instance, "update_volatility"))[0] == ["realized_volatility"], "no model"
    compute(connection, REALIZED_VOLATILITY, SYMBOLS, older, SETTINGS, "run")
    compute(connection, VOLATILITY_MODEL, SYMBOLS, older, SETTINGS, "run")
    compute(connection, GARCH_BASELINE, SYMBOLS, older, SETTINGS, "run")
    compute(connection, VOLATILITY_FORECAST, SYMBOLS, older, SETTINGS, "run")
    requests = tick(instance, "update_volatility")
    run = (f"{YESTERDAY}|KRW-BTC", f"{YESTERDAY}|KRW-XRP")
    assert (ranges(requests)[0], selected(requests)[0]) == (
        run,
        ["realized_volatility", "volatility_forecast", "current_signals"],
    )
    asked_for = [asset for assets in selected(requests) for asset in assets]
    assert asked_for.count("volatility_forecast") == 1, "no run of its own beside it"


def test_the_model_of_a_day_is_asked_for_when_its_variances_are_there(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    assert "volatility_model 0 due of 4" in str(tick(instance, "retrain_volatility"))
    day = TODAY - DAY * 2
    compute(connection, REALIZED_VOLATILITY, SYMBOLS, [day], SETTINGS, "run")
    requests = tick(instance, "retrain_volatility")
    assert ranges(requests) == [(f"{day}", f"{day}")]
    assert selected(requests) == [["volatility_model"]]
    definitions = build_definitions(SETTINGS)
    instance.create_run_for_job(
        definitions.resolve_job_def("retrain_volatility_job"), tags=range_tags([], day, day)
    )
    assert "1 due of 4, 1 of them in flight" in str(tick(instance, "retrain_volatility"))
    assert "realized_volatility" in str(tick(instance, "update_volatility")), "another partition"


def test_housekeeping_deletes_what_is_over_says_what_and_notes_the_sizes(
    server: EmbeddedServer,
    market_url: str,
    connection: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = new_database(server, "housekeeping_job").replace("://", "+psycopg2://")
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    keep = SETTINGS.housekeeping
    now = datetime.now(UTC)
    for days in (keep.keep_alerts_days + 1, keep.keep_alerts_days - 1):
        ledger.enter(connection, "risk", "pipeline", f"{days}", "risk", {}, occurred_at=None)
        connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = 'delivered', created_at = %s "
            "WHERE source_id = %s",
            [now - days * DAY, f"{days}"],
        )
    storage = {"postgres": {"postgres_url": url}}
    job = build_definitions(SETTINGS).resolve_job_def("housekeeping_job")
    with dg.instance_for_test(overrides={"storage": storage}) as instance:
        for days in (keep.keep_runs_days + 1, keep.keep_runs_days - 1):
            run = instance.add_run(dg.DagsterRun(job_name="j", status=dg.DagsterRunStatus.SUCCESS))
            with connect(url) as dagster:
                dagster.execute(
                    "UPDATE runs SET update_timestamp = %s WHERE run_id = %s",
                    [(now - days * DAY).replace(tzinfo=None), run.run_id],
                )
        result = job.execute_in_process(instance=instance)
        kept = instance.get_runs(dg.RunsFilter(job_name="j"))
    assert [run.run_id for run in kept] == [run.run_id]
    assert ledger.source_ids(connection, "pipeline") == {f"{keep.keep_alerts_days - 1}"}
    (output,) = [event for event in result.all_node_events if event.is_successful_output]
    said = {name: one.value for name, one in output.step_output_data.metadata.items()}
    assert said["runs_deleted"] == said["alert_deliveries_deleted"] == 1
    assert said["asset_event_tags_deleted"] == 0
    sizes = "SELECT market_bytes, dagster_bytes FROM trading_pipelines.database_sizes"
    assert connection.execute(sizes).fetchall() == [
        (said["market_bytes_after"], said["dagster_bytes_after"])
    ]
    assert "bytes_a_day" not in said, "one day is not known from one look"


def test_the_report_of_each_day_that_has_closed_is_asked_for_and_a_failed_one_once_an_hour(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    assert tick(instance, "make_daily_report") == "nothing is due", "the kind was never on"
    since = datetime.now(UTC) - 3 * DAY
    ledger.enable(connection, DAILY_REPORT, since, datetime.now(UTC))
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


LOOKED_AT = "EVENT_LOG_CONSUMER_CURSOR-PIPELINE_FAILURE"
OLD = TODAY - DAY * 30
MINUTES_ALONE = """
INSERT INTO trading_pipelines.candle_coverage
    (symbol, interval, day, status, fetched_until, confirmed_until)
VALUES ('KRW-ETH', '1m', %(day)s, %(status)s, %(end)s, %(end)s)
"""


def test_a_failed_run_is_in_flight_until_dagster_has_looked_whether_to_start_it_again(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS, days_ago=(2, 3))
    run = instance.create_run_for_job(
        build_definitions(SETTINGS).resolve_job_def("refresh_market_data_job"),
        tags=range_tags(SYMBOLS, YESTERDAY, TODAY),
    )
    instance.daemon_cursor_storage.set_cursor_values({LOOKED_AT: "0"})
    instance.report_run_failed(run)
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    assert "6 due, 6 of them in flight" in str(tick(instance))
    (waiting,) = runs_in_flight(instance)
    assert waiting.state == "failed, about to be started again by Dagster"

    instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    assert len(ranges(tick(instance))) == 2, "it failed for good"

    instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    instance.daemon_cursor_storage.set_cursor_values({LOOKED_AT: "1000000"})
    assert len(ranges(tick(instance))) == 2, "its retry was deleted, or never came"
    assert runs_in_flight(instance) == []


def test_days_that_were_begun_are_due_however_old_and_those_that_nobody_wanted_are_not(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    complete(connection, *SYMBOLS)
    complete(connection, "KRW-BTC", days_ago=[30])
    for n, status in ((30, "complete"), (31, "partial")):
        day = TODAY - DAY * n
        arguments = {"day": day, "status": status, "end": day_interval(day).end}
        connection.execute(MINUTES_ALONE, arguments)
    requests = tick(instance)
    assert ranges(requests)[1:] == [
        (f"{OLD}|KRW-ETH", f"{OLD}|KRW-ETH"),
        (f"{OLD - DAY}|KRW-ETH", f"{OLD - DAY}|KRW-ETH"),
    ]
    assert selected(requests)[1:] == [["candles_1h"], ["candles_1m", "candles_1h"]]

    def labels() -> list[str]:
        spans = ranges(tick(instance, "update_regime"))
        return [first for first, _ in spans if first < f"{TODAY - DAY * 3}"]

    assert labels() == [], "candles alone were asked for"
    signal_coverage.ask_for(connection, [REGIME_LABELS], ["KRW-BTC", "KRW-ETH"], [OLD], "run")
    assert labels() == [f"{OLD}|KRW-BTC"], "wanted, and its hours are there"

    backfill = add_backfill(instance, "atwork", "candles_1m")
    assert len(ranges(tick(instance))) == 1, "it does them itself"
    assert labels() == []
    instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))  # type: ignore[no-untyped-call]
    assert labels() == [f"{OLD}|KRW-BTC"]
