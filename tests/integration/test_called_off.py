"""Backfills that are cancelled, launched again, or lose what they run on, on the real instance."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest

from tests.conftest import FIRST_DAY
from tests.integration.conftest import Installation, await_that, exact, running
from trading_pipelines.database.connection import SCHEMA
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime import graphql
from trading_pipelines.runtime.backfill import ENDED, BackfillTarget, launch
from trading_pipelines.simulators.upbit.server import ReplayExchange

BTC = "KRW-BTC"
LAST = FIRST_DAY + timedelta(days=4)
TARGET = BackfillTarget((BTC,), FIRST_DAY, LAST)
PAGES = 36
SIDE_BY_SIDE = 4
"""At most so many pages are on their way at this pace and latency."""
COMPLETE = """
SELECT count(*) FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND status = 'complete'
"""
STATUS = """
query Status($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status } } }
"""
CANCEL = """
mutation Cancel($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }
"""
TERMINATE = """
mutation Terminate($id: String!) { terminateRun(runId: $id) { __typename } }
"""
CURSOR = """
UPDATE kvs SET value = coalesce(%s::text, (SELECT max(id)::text FROM event_logs))
WHERE key = 'EVENT_LOG_CONSUMER_CURSOR-PIPELINE_FAILURE'
"""
PROCESS = """
SELECT substring(event FROM 'Started process for run .pid: ([0-9]+)') FROM event_logs
WHERE run_id = %s AND event LIKE '%%Started process for run%%'
"""
STARTED_AGAIN = """
SELECT status FROM runs JOIN run_tags USING (run_id)
WHERE key = 'dagster/parent_run_id' AND value = %s
"""
# As the UI does for one partition.
MATERIALIZE = """
mutation Materialize($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }
"""


@pytest.fixture(scope="module")
def up(exchange: ReplayExchange) -> Iterator[Installation]:
    """An installation that runs as `make up` runs it."""
    with running(exchange, requests_per_second=5.0) as installation:
        yield installation


@pytest.fixture(autouse=True)
def _nothing_stored(up: Installation, exchange: ReplayExchange) -> None:
    with psycopg.connect(up.market_url) as connection:
        connection.execute("TRUNCATE market_data, trading_pipelines.candle_coverage")
        connection.execute("TRUNCATE trading_pipelines.signal_coverage")
    exchange.latency = 0.2


def ask(up: Installation, query: str, **variables: object) -> Any:
    return next(iter(graphql.ask(up.url, query, variables).values()))


def storage(up: Installation) -> psycopg.Connection:
    return psycopg.connect(EmbeddedServer(up.home).url(f"{SCHEMA}_dagster"))


def runs_of(up: Installation, backfill_id: str) -> list[tuple[str, str]]:
    """Return (id, status) of its runs."""
    with storage(up) as connection:
        return connection.execute(
            "SELECT runs.run_id, status FROM runs JOIN run_tags USING (run_id) "
            "WHERE key = 'dagster/backfill' AND value = %s",
            [backfill_id],
        ).fetchall()


def ended(up: Installation, backfill_id: str) -> str:
    """Wait for the backfill's end; return how it ended, which it has not before its runs have."""

    def status() -> str:
        # While the database or the web UI is away there is none.
        with suppress(graphql.GraphQLError, KeyError, StopIteration, TypeError):
            return str(ask(up, STATUS, id=backfill_id)["status"])
        return ""

    await_that(lambda: status() in ENDED, "the backfill has ended")
    return status()


def count(up: Installation, query: str) -> int:
    with psycopg.connect(up.market_url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def asked(exchange: ReplayExchange, pages: int) -> Callable[[], bool]:
    """Return a question for `await_that`: whether so many requests more have come."""
    before = exchange.stats().requests
    return lambda: exchange.stats().requests >= before + pages


def recorded_of(recorded: pd.DataFrame) -> list[Any]:
    in_time = recorded.timestamp_utc < pd.Timestamp(LAST + timedelta(days=1), tz="UTC")
    return exact(recorded[in_time & (recorded.symbol == BTC)])


def test_a_backfill_cancelled_while_its_run_starts_downloads_next_to_nothing(
    up: Installation, exchange: ReplayExchange
) -> None:
    before = exchange.stats().requests
    backfill_id = launch(up.url, TARGET)
    await_that(
        lambda: {"STARTING"} == {status for _, status in runs_of(up, backfill_id)},
        "its run is starting",
    )
    ask(up, CANCEL, id=backfill_id)
    assert ended(up, backfill_id) == "CANCELED"
    assert {status for _, status in runs_of(up, backfill_id)} == {"CANCELED"}
    assert exchange.stats().requests - before < PAGES / 4


def test_a_cancelled_backfill_goes_on_with_what_is_missing_and_a_person_may_ask_again(
    up: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    before = exchange.stats().requests
    backfill_id = launch(up.url, TARGET)
    in_the_middle = asked(exchange, PAGES // 2)
    await_that(in_the_middle, "it is in the middle")
    ask(up, CANCEL, id=backfill_id)
    assert ended(up, backfill_id) == "CANCELED"
    begun = exchange.stats().requests - before
    assert PAGES // 2 <= begun < PAGES - 5, "obeyed between two pages"
    assert 0 < count(up, COMPLETE) < 5
    told = up.run("status").stdout
    assert "due: candles_1m KRW-BTC" in told, "what was begun is named"

    done = up.backfill(FIRST_DAY, LAST, BTC)
    assert done.returncode == 0, done.stdout + done.stderr
    assert count(up, COMPLETE) == 5
    assert exact(up.stored()) == recorded_of(recorded)
    # The pages that were on their way when it was cancelled are asked for again.
    assert exchange.stats().requests - before <= PAGES + SIDE_BY_SIDE

    exchange.latency, whole = 0.0, exchange.stats().requests
    assert up.backfill(FIRST_DAY, LAST, BTC).returncode == 0
    assert exchange.stats().requests == whole, "complete days are not done over"

    with psycopg.connect(up.market_url) as connection:
        connection.execute("UPDATE market_data SET close_price = close_price + 1")
    materialize(up, LAST)
    await_that(lambda: len(wrong(up, recorded)) == 4 * 1440 - quiet(up), "the day is repaired")


def materialize(up: Installation, day: date) -> str:
    """Launch a run of the day; return its id."""
    parameters = {
        "selector": {
            "repositoryName": "__repository__",
            "repositoryLocationName": "trading_pipelines",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": ["candles_1m"]}, {"path": ["candles_1h"]}],
            "assetCheckSelection": [],
        },
        "mode": "default",
        "runConfigData": {},
        "executionMetadata": {
            "tags": [
                {"key": "dagster/partition", "value": f"{day}|{BTC}"},
                {"key": "dagster/partition/date", "value": f"{day}"},
                {"key": "dagster/partition/symbol", "value": BTC},
            ]
        },
    }
    return str(ask(up, MATERIALIZE, parameters=parameters)["run"]["runId"])


def wrong(up: Installation, recorded: pd.DataFrame) -> list[Any]:
    """Return the stored rows that differ from the exchange's."""
    same = {repr(row) for row in recorded_of(recorded)}
    return [row for row in exact(up.stored()) if repr(row) not in same]


def quiet(up: Installation) -> int:
    """Return the minutes of the first four days without a trade."""
    return count(
        up,
        "SELECT sum(quiet) FROM trading_pipelines.candle_coverage "
        f"WHERE interval = '1m' AND day < '{LAST}'",
    )


def test_a_terminated_run_ends_between_two_pages(
    up: Installation, exchange: ReplayExchange
) -> None:
    backfill_id = launch(up.url, TARGET)
    await_that(asked(exchange, 5), "it is at work")
    ((run_id, _),) = runs_of(up, backfill_id)
    ask(up, TERMINATE, id=run_id)
    await_that(
        lambda: {"CANCELED"} == {status for _, status in runs_of(up, backfill_id)}, "it has ended"
    )
    at_end = exchange.stats().requests
    time.sleep(1)  # five requests at its pace
    assert exchange.stats().requests == at_end
    assert count(up, "SELECT count(*) FROM trading_pipelines.candle_coverage") > 0


def test_a_run_whose_failure_dagsters_daemon_has_overlooked_is_started_again(
    up: Installation, exchange: ReplayExchange
) -> None:
    with storage(up) as connection:
        # As if it had read of all failures to come before the runs had failed.
        connection.execute(CURSOR, [10**9])
    run_id = materialize(up, LAST)
    await_that(asked(exchange, 1), "it is at work")
    with storage(up) as connection:
        ((process,),) = connection.execute(PROCESS, [run_id]).fetchall()
        os.kill(int(process), signal.SIGTERM)

    def again() -> list[tuple[str]]:
        with storage(up) as connection:
            return connection.execute(STARTED_AGAIN, [run_id]).fetchall()

    await_that(lambda: again() == [("SUCCESS",)], "another run has done it")
    with storage(up) as connection:
        connection.execute(CURSOR, [None])
    assert count(up, COMPLETE) == 1


def end_its_session(up: Installation) -> None:
    with psycopg.connect(up.market_url, autocommit=True) as connection:
        killed = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = %s AND pid <> pg_backend_pid()",
            [SCHEMA],
        ).fetchall()
    assert killed


def end_all_sessions(up: Installation) -> None:
    with psycopg.connect(up.market_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def kill_postgres(up: Installation) -> None:
    pid = int((up.home / "postgres/data/postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)


def kill_code_server(up: Installation) -> None:
    os.kill(up.children["code-server"], signal.SIGKILL)


@pytest.mark.skipif(os.environ.get("RUN_FAULTS") != "1", reason="a fault: RUN_FAULTS=1")
@pytest.mark.timeout(900)
def test_a_backfill_survives_what_happens_to_its_machine(
    up: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    harms = [end_its_session, end_all_sessions, kill_postgres, kill_code_server]
    before = exchange.stats().requests
    backfill_id = launch(up.url, TARGET)
    for harm in harms:
        await_that(asked(exchange, 6), f"it is at work, before {harm.__name__}")
        harm(up)
    assert ended(up, backfill_id) == "COMPLETED_SUCCESS"
    assert exact(up.stored()) == recorded_of(recorded)
    assert count(up, COMPLETE) == 5
    # The pages that were on their way are asked for again, and one that was not stored yet.
    most = PAGES + (SIDE_BY_SIDE + 1) * len(harms)
    assert exchange.stats().requests - before <= most, "nothing was done twice"
