"""The main job against the real daemon: a native backfill by the command line, whatever dies."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal

import pandas as pd
import psycopg
import pytest

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.integration.conftest import Installation
from trading_pipelines import backfill, database, services
from trading_pipelines.candles.windows import MINUTE
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.replay import Fault, Recording, ReplayExchange

AWAIT_SECONDS = 240


@pytest.fixture
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None, clock=recorded_market.end + MINUTE) as exchange:
        yield exchange


def await_that(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + AWAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not in {AWAIT_SECONDS} s: {what}"
        time.sleep(0.2)


def market_url(installation: Installation) -> str:
    return EmbeddedServer(installation.home).url(database.SCHEMA)


def stored(installation: Installation) -> pd.DataFrame:
    with psycopg.connect(market_url(installation)) as connection:
        rows = connection.execute(
            "SELECT symbol, timestamp, open_price, high_price, low_price, close_price, volume "
            "FROM market_data WHERE interval = '1m' ORDER BY symbol, timestamp"
        ).fetchall()
    return pd.DataFrame(rows, columns=["symbol", "timestamp_utc", *PRICES])


PRICES = ["open", "high", "low", "close", "volume"]


def exact(frame: pd.DataFrame) -> list[tuple[str, pd.Timestamp, list[Decimal]]]:
    """Return rows whose numbers are compared as decimals of eight places, not as floats."""
    return [
        (symbol, pd.Timestamp(start), [Decimal(str(n)).quantize(Decimal("1e-8")) for n in numbers])
        for symbol, start, *numbers in frame[["symbol", "timestamp_utc", *PRICES]].itertuples(
            index=False
        )
    ]


@pytest.fixture
def up(installation: Installation, exchange: ReplayExchange) -> Iterator[Installation]:
    """The installation, running as `make up` runs it."""
    installation.configure(exchange.url)
    process = installation.start("up", "--port", "0")
    await_that(lambda: bool(url_of(installation)), "up says where it runs")
    yield installation
    process.terminate()
    process.wait(60)


def url_of(installation: Installation) -> str:
    """Return where the services run, or "" when they do not or not yet."""
    running = services.running(installation.home)
    return running.url if running else ""


def test_a_backfill_of_the_recorded_days_equals_the_recording_row_by_row(
    up: Installation, recorded: pd.DataFrame
) -> None:
    done = up.run(
        "backfill",
        "--symbols",
        ",".join(SYMBOLS),
        "--start",
        f"{FIRST_DAY}",
        "--end",
        f"{LAST_DAY}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert exact(stored(up)) == exact(recorded)
    assert (
        "21 of 21 │  30,238 │             2 │     0 │      152 │ 2025-09-01 09:00 KST"
        in done.stdout
    )
    status = up.run("status")
    assert "services: http://127.0.0.1" in status.stdout


def test_a_backfill_killed_half_way_goes_on_by_itself_and_ends_in_the_same_rows(
    installation: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    exchange.latency = 0.05
    installation.configure(exchange.url)
    up = installation.start("up", "--port", "0")
    await_that(lambda: bool(url_of(installation)), "up says where it runs")
    target = backfill.Target(tuple(SYMBOLS), FIRST_DAY, LAST_DAY)
    backfill_id = backfill.launch(url_of(installation), target)
    await_that(lambda: exchange.stats().requests > 150, "the backfill is under way")
    for pid in [
        up.pid,
        *json.loads((installation.home / "up.json").read_text())["children"].values(),
    ]:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL) if pid != up.pid else os.kill(pid, signal.SIGKILL)
    up.wait()
    EmbeddedServer(installation.home)._run("pg_ctl", "stop", "-m", "immediate", "-D",
                                           installation.home / "postgres" / "data")  # fmt: skip
    asked = exchange.stats().requests
    assert asked < 700, "it was killed half-way"

    exchange.latency = 0.0
    again = installation.start("up", "--port", "0")
    await_that(lambda: bool(url_of(installation)), "up starts again on the same home")
    with database.connect(market_url(installation)) as connection:
        outcome = backfill.follow(
            connection, url_of(installation), backfill_id, target, lambda _: None
        )
    assert outcome.succeeded
    assert outcome.failed == []
    assert exact(stored(installation)) == exact(recorded)
    # Of 760 requests; at most one page in flight a run and the days begun are asked for again.
    assert exchange.stats().requests < 800, "what was committed was not asked for again"
    again.terminate()
    again.wait(60)


def test_a_one_off_backfill_starts_what_it_needs_names_what_failed_and_needs_no_settings(
    installation: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    exchange.set_faults([Fault.parse("html_200:market=KRW-DOGE")])
    installation.variables["UPBIT_BASE_URL"] = exchange.url
    assert not installation.config.exists()
    done = installation.run(
        "backfill", "--symbols", "KRW-BTC,KRW-DOGE", "--start", "2025-09-03", "--end", "2025-09-03"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "KRW-DOGE 2025-09-03: " in done.stdout
    assert "the answer is no list of candles: '<" in done.stdout
    assert services.running(installation.home) is None
    server = EmbeddedServer(installation.home)
    assert not server.is_running(), "what it started is stopped"
    server.start()
    days = recorded[recorded.timestamp_utc.dt.strftime("%Y-%m-%d") == "2025-09-03"]
    assert exact(stored(installation)) == exact(days[days.symbol == "KRW-BTC"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--symbols", "BTC", "--start", "2025-09-01", "--end", "2025-09-01"], "symbols"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2025-09-01"], "after"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2099-09-01"], "future"),
        (["--symbols", "KRW-BTC", "--start", "2016-09-02", "--end", "2025-09-01"], "start_date"),
        (["--symbols", "KRW-BTC", "--start", "yesterday", "--end", "2025-09-01"], "yesterday"),
        (["--symbols", "KRW-BTC"], "--start"),
    ],
)
def test_wrong_usage_is_exit_status_2_and_says_what_is_wrong(
    installation: Installation, arguments: list[str], said: str
) -> None:
    done = installation.run("backfill", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_two_instances_on_one_home_are_refused(up: Installation) -> None:
    second = up.run("up", "--port", "0")
    assert second.returncode == 1
    assert "running already" in second.stderr
    down = up.run("down")
    assert down.returncode == 0
    assert "stopped" in down.stdout
    assert services.running(up.home) is None
