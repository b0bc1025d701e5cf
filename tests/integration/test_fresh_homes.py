"""Commands that start what they need on a home of their own, and a home where all was killed."""

import os
import signal
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import psycopg

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.integration.conftest import AWAIT_SECONDS, Installation, await_that, exact
from trading_pipelines.database.connection import SCHEMA, connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.backfill import BackfillTarget, follow, launch
from trading_pipelines.runtime.home import Home
from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.server import ReplayExchange


def test_a_backfill_killed_half_way_goes_on_by_itself_and_ends_in_the_same_rows(
    installation: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    exchange.latency = 0.05
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
    EmbeddedServer(installation.home)._run("pg_ctl", "stop", "-m", "immediate", "-D",
                                           installation.home / "postgres" / "data")  # fmt: skip
    asked = exchange.stats().requests - before
    assert asked < 700, "it was killed half-way"

    exchange.latency = 0.0
    again = installation.start("up", "--port", "0")
    await_that(lambda: bool(installation.url), "up starts again on the same home")
    with connect(installation.market_url) as connection:
        outcome = follow(connection, installation.url, backfill_id, target, lambda _: None)
    assert outcome.succeeded
    assert outcome.failed == []
    assert exact(installation.stored()) == exact(recorded)
    # Of 760 requests; at most one page in flight a run and the days begun are asked for again.
    assert exchange.stats().requests - before < 800, "what was committed was not asked for again"
    again.terminate()
    again.wait(AWAIT_SECONDS)


def test_a_one_off_backfill_starts_what_it_needs_names_what_failed_and_needs_no_settings(
    installation: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    exchange.set_faults([Fault.parse("html_200:market=KRW-DOGE")])
    installation.variables["UPBIT_BASE_URL"] = exchange.url
    assert not installation.config.exists()
    day = date(2025, 9, 3)
    done = installation.backfill(day, day, "KRW-BTC", "KRW-DOGE")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "KRW-DOGE 2025-09-03: " in done.stdout
    assert "HTTP 200: <" in done.stdout
    assert Home(installation.home).running_services() is None
    server = EmbeddedServer(installation.home)
    assert not server.is_running(), "what it started is stopped"
    server.start()
    days = recorded[recorded.timestamp_utc.dt.strftime("%Y-%m-%d") == "2025-09-03"]
    assert exact(installation.stored()) == exact(days[days.symbol == "KRW-BTC"])


def test_the_demo_replays_a_recording_says_so_and_leaves_nothing_running(
    installation: Installation, recorded: pd.DataFrame, tmp_path: Path
) -> None:
    installation.variables["UPBIT_BASE_URL"] = "http://127.0.0.1:1"
    installation.variables["TRADING_PIPELINES_CONFIG"] = "config/strategy.yaml"
    installation.variables["DAGSTER_POSTGRES_URL"] = "postgresql+psycopg2://not@the/demos"
    installation.variables["REDIS_URL"] = "redis://not.the.demos"
    file = tmp_path / "two_days.parquet"
    two_days = recorded[recorded.timestamp_utc < datetime(2025, 9, 3, tzinfo=UTC)]
    two_days.to_parquet(file)
    rows = int((two_days.symbol == "KRW-DOGE").sum())
    assert rows < 2880, "minutes without a trade are in it"
    done = installation.run("demo", "--recording", f"{file}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Upbit is not used (no answer within 3 s): replaying a recording two_days" in done.stdout
    line = f"│ 2 of 2 │ {rows:>7,} │ {2880 - rows:>13} │     0 │       16 │ 2025-09-01 09:00 KST │"
    assert line in done.stdout, done.stdout
    assert "source: recording two_days.parquet" in done.stdout
    signal = next(line for line in done.stdout.splitlines() if "│ KRW-BTC  │ UNKNOWN" in line)
    assert "│ FALLBACK │ 2025-09-03 09:00 KST │ 2025-09-04 09:00 KST │" in signal, signal
    home = installation.home / "demo"
    assert Home(home).running_services() is None
    server = EmbeddedServer(home)
    assert not server.is_running()
    server.start()
    with psycopg.connect(server.url(f"{SCHEMA}_dagster")) as connection:
        shown = "SELECT event FROM event_logs WHERE asset_key = '[\"current_signals\"]'"
        said = str(connection.execute(shown).fetchall())
    assert "FALLBACK" in said
    assert "redis_" not in said, "the bot's cache is not for a replayed market"


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


def test_in_a_home_of_any_signs_a_backfill_is_run(
    installation: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    odd = Installation(installation.home / '바탕 화면 %41 + it\'s "q" $HOME &#?')
    odd.home.mkdir()
    odd.configure(exchange.url)
    day = date(2025, 9, 3)
    try:
        done = odd.backfill(day, day, "KRW-BTC")
        assert done.returncode == 0, done.stdout + done.stderr
        EmbeddedServer(odd.home).start()
        days = recorded[recorded.timestamp_utc.dt.strftime("%Y-%m-%d") == "2025-09-03"]
        assert exact(odd.stored()) == exact(days[days.symbol == "KRW-BTC"])
    finally:
        odd.run("down")


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
