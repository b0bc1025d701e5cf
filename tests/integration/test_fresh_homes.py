"""Homes where all was killed, where a service dies at the start, and that another `up` is on."""

import os
import signal
from contextlib import suppress

import pandas as pd
import psycopg

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.integration.conftest import AWAIT_SECONDS, Installation, await_that, exact
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.backfill import BackfillTarget, follow, launch
from trading_pipelines.simulators.upbit.server import ReplayExchange


def test_a_backfill_killed_half_way_goes_on_by_itself_and_ends_in_the_same_rows(
    installation: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    exchange.latency = 0.5
    installation.configure(exchange.url)
    up = installation.start("up", "--port", "0")
    await_that(lambda: bool(installation.url), "up says where it runs")
    target = BackfillTarget(tuple(SYMBOLS), FIRST_DAY, LAST_DAY)
    before = exchange.stats().requests
    backfill_id = launch(installation.url, target)
    await_that(lambda: exchange.stats().requests - before > 150, "the backfill is under way")
    for pid in installation.children.values():
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    up.kill()
    up.wait()
    await_that(lambda: not installation.children, "what was killed has ended")
    EmbeddedServer(installation.home)._run("pg_ctl", "stop", "-m", "immediate", "-D",
                                           installation.home / "postgres" / "data")  # fmt: skip
    asked = exchange.stats().requests - before
    assert asked < 700, "it was killed half-way"

    exchange.latency = 0.0
    again = installation.start("up", "--port", "0")
    await_that(lambda: bool(installation.url), "up starts again on the same home")
    with connect(installation.market_url) as connection:
        outcome = follow(connection, installation.url, backfill_id, target, lambda _: None)
    assert outcome.succeeded, installation.failures()
    assert outcome.failed == []
    assert exact(installation.stored()) == exact(recorded)
    # Of 760 requests; the pages on their way and the days begun are asked for again.
    assert exchange.stats().requests - before < 800, "what was committed was not asked for again"
    again.terminate()
    again.wait(AWAIT_SECONDS)


def test_a_service_that_is_killed_while_up_starts_is_started_again(
    installation: Installation, exchange: ReplayExchange
) -> None:
    installation.configure(exchange.url)
    up = installation.start("up", "--port", "0")
    await_that(lambda: "code-server" in installation.children, "it starts")
    assert not installation.url
    first = installation.children["code-server"]
    os.kill(first, signal.SIGKILL)
    await_that(lambda: bool(installation.url), "up says where it runs")
    assert up.poll() is None
    assert installation.children["code-server"] != first


def test_a_second_up_on_one_database_is_refused_until_the_first_is_gone(
    installation: Installation, exchange: ReplayExchange
) -> None:
    installation.configure(exchange.url)
    server = EmbeddedServer(installation.home)
    first, second = (Installation(installation.home / name) for name in ("first", "second"))
    for home in (first, second):
        home.home.mkdir()
        home.configure(exchange.url)
        home.variables["DATABASE_URL"] = server.url("shared")
    server.start()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE shared")
    up = first.start("up", "--port", "0")
    await_that(lambda: bool(first.url), "the first runs")
    for command in (["up", "--port", "0"], ["backfill", "--start", "2025-09-03"]):
        refused = second.run(*command)
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert f"in {first.home}, process {first.children['daemon']} " in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    # Its parent is killed, and its daemon works on.
    up.kill()
    up.wait()
    assert f"in {first.home}" in second.run("up", "--port", "0").stderr
    first.run("down")
    up = second.start("up", "--port", "0")
    await_that(lambda: bool(second.url), "the second runs")
    up.terminate()
    up.wait(AWAIT_SECONDS)
