"""The main job against the real daemon: a native backfill by the command line, whatever dies."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.integration.conftest import Installation, installed
from trading_pipelines import backfill, database, services
from trading_pipelines.candles.windows import MINUTE
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.replay import Fault, Recording, ReplayExchange
from trading_pipelines.replay.faults import KINDS

AWAIT_SECONDS = 240
Done = subprocess.CompletedProcess[str]
PRICES = ["open", "high", "low", "close", "volume"]


@pytest.fixture(scope="module")
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None, clock=recorded_market.end + MINUTE) as exchange:
        yield exchange


@pytest.fixture(autouse=True)
def _sound(exchange: ReplayExchange) -> None:
    exchange.set_faults([])
    exchange.latency = 0.0


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


def exact(frame: pd.DataFrame) -> list[tuple[str, pd.Timestamp, list[Decimal]]]:
    """Return rows whose numbers are compared as decimals of eight places, not as floats."""
    return [
        (symbol, pd.Timestamp(start), [Decimal(str(n)).quantize(Decimal("1e-8")) for n in numbers])
        for symbol, start, *numbers in frame[["symbol", "timestamp_utc", *PRICES]].itertuples(
            index=False
        )
    ]


def url_of(installation: Installation) -> str:
    """Return where the services run, or "" when they do not or not yet."""
    running = services.running(installation.home)
    return running.url if running else ""


@pytest.fixture(scope="module")
def up(exchange: ReplayExchange) -> Iterator[Installation]:
    """An installation that runs as `make up` runs it; its tables are as the last test left them."""
    with installed() as installation:
        installation.configure(exchange.url)
        process = installation.start("up", "--port", "0")
        await_that(lambda: bool(url_of(installation)), "up says where it runs")
        yield installation
        assert process.poll() is None, "it still runs"


def backfilled(installation: Installation, first: date, last: date, *symbols: str) -> Done:
    return installation.run(
        *("backfill", "--symbols", ",".join(symbols), "--start", f"{first}", "--end", f"{last}")
    )


def freeze(installation: Installation) -> int:
    """Leave what the bot's collector left: minutes stored while they formed, and stale rows."""
    with psycopg.connect(market_url(installation)) as connection:
        connection.execute(
            "INSERT INTO market_data AS stored (symbol, interval, timestamp, open_price, "
            "high_price, low_price, close_price, volume) SELECT symbol, '1m', "
            "'2025-09-10 12:00Z'::timestamptz + interval '7 minutes' * n, 300, 301, 299, 300, 0.5 "
            "FROM generate_series(0, 99) AS n, unnest(%s::text[]) AS symbol "
            "ON CONFLICT (symbol, interval, timestamp) DO UPDATE SET volume = stored.volume / 2",
            [["KRW-BTC", "KRW-SOL"]],
        )
    return 200


def test_a_backfill_equals_the_recording_row_by_row_and_repairs_what_was_there_before(
    up: Installation, recorded: pd.DataFrame
) -> None:
    frozen = freeze(up)
    done = backfilled(up, FIRST_DAY, LAST_DAY, *SYMBOLS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert exact(stored(up)) == exact(recorded)
    line = "21 of 21 │  30,238 │             2 │     0 │      152 │ 2025-09-01 09:00 KST"
    assert line in done.stdout
    with psycopg.connect(market_url(up)) as connection:
        counts = connection.execute(
            "SELECT interval, sum(repaired), sum(rows) FROM trading_pipelines.candle_coverage "
            "GROUP BY interval ORDER BY interval"
        ).fetchall()
    assert counts == [("1h", 0, 21 * 24 * 5), ("1m", frozen, len(recorded))]
    assert "services: http://127.0.0.1" in up.run("status").stdout


def test_with_every_fault_at_once_only_the_day_in_trouble_fails_and_nothing_else_is_lost(
    up: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    with psycopg.connect(market_url(up)) as connection:
        connection.execute("TRUNCATE market_data, trading_pipelines.candle_coverage")
    transient = [kind for kind in KINDS if not kind.startswith("418")]
    exchange.set_faults(
        [
            Fault.parse("502:market=KRW-DOGE,between=2025-09-03T00:00/2025-09-04T00:00"),
            # Never six in a row, which is when a request is given up.
            *(Fault(kind, every=5 + n, count=1) for n, kind in enumerate(transient)),
        ]
    )
    done = backfilled(up, date(2025, 9, 2), date(2025, 9, 4), *SYMBOLS)
    assert done.returncode == 1, done.stdout + done.stderr
    assert set(exchange.stats().faults) >= set(transient)
    assert "failed KRW-DOGE 2025-09-03: KRW-DOGE 2025-09-03 00:00 to 03:20 UTC: HTTP 502" in (
        done.stdout
    )
    assert "failed: 3 of 15 partitions" in done.stderr, "and the hours beside it"
    asked = recorded.timestamp_utc.between("2025-09-02T00:00Z", "2025-09-04T23:59Z")
    trouble = (recorded.symbol == "KRW-DOGE") & (recorded.timestamp_utc.dt.day == 3)
    assert exact(stored(up)) == exact(recorded[asked & ~trouble])

    exchange.set_faults([])
    assert backfilled(up, date(2025, 9, 2), date(2025, 9, 4), "KRW-DOGE").returncode == 0
    assert exact(stored(up)) == exact(recorded[asked])


def test_a_home_that_is_in_use_is_refused(up: Installation) -> None:
    second = up.run("up", "--port", "0")
    assert second.returncode == 1
    assert "running already" in second.stderr


def test_a_killed_database_and_daemon_are_back_by_themselves(up: Installation) -> None:
    children = json.loads((up.home / "up.json").read_text())["children"]
    postmaster = up.home / "postgres" / "data" / "postmaster.pid"
    killed = int(postmaster.read_text().split()[0])
    os.kill(killed, signal.SIGKILL)
    os.kill(children["daemon"], signal.SIGKILL)

    def alive() -> bool:
        with suppress(OSError, ValueError, KeyError, psycopg.Error):
            psycopg.connect(market_url(up)).close()
            now = json.loads((up.home / "up.json").read_text())["children"]
            os.kill(now["daemon"], 0)
            return bool(now["daemon"] != children["daemon"])
        return False

    await_that(alive, "another postmaster and another daemon")
    done = backfilled(up, FIRST_DAY, FIRST_DAY, "KRW-BTC")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_backfill_killed_half_way_goes_on_by_itself_and_ends_in_the_same_rows(
    installation: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    exchange.latency = 0.05
    installation.configure(exchange.url)
    up = installation.start("up", "--port", "0")
    await_that(lambda: bool(url_of(installation)), "up says where it runs")
    target = backfill.Target(tuple(SYMBOLS), FIRST_DAY, LAST_DAY)
    before = exchange.stats().requests
    backfill_id = backfill.launch(url_of(installation), target)
    await_that(lambda: exchange.stats().requests - before > 150, "the backfill is under way")
    for pid in [
        up.pid,
        *json.loads((installation.home / "up.json").read_text())["children"].values(),
    ]:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL) if pid != up.pid else os.kill(pid, signal.SIGKILL)
    up.wait()
    EmbeddedServer(installation.home)._run("pg_ctl", "stop", "-m", "immediate", "-D",
                                           installation.home / "postgres" / "data")  # fmt: skip
    asked = exchange.stats().requests - before
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
    assert exchange.stats().requests - before < 800, "what was committed was not asked for again"
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


def test_the_demo_replays_a_recording_says_so_and_leaves_nothing_running(
    installation: Installation, recorded: pd.DataFrame, tmp_path: Path
) -> None:
    installation.configure("http://127.0.0.1:1")
    installation.variables["DAGSTER_POSTGRES_URL"] = "postgresql+psycopg2://not@the/demos"
    file = tmp_path / "two_days.parquet"
    recorded[recorded.timestamp_utc < datetime(2025, 9, 3, tzinfo=UTC)].to_parquet(file)
    done = installation.run("demo", "--recording", f"{file}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Upbit is not used (no answer within 3 s): replaying a recording two_days" in done.stdout
    assert "2 of 2 │   2,859 │            21 │     0 │       15 │ 2025-09-01 09:00 KST │" in (
        done.stdout
    )
    assert "source: recording two_days.parquet" in done.stdout
    home = installation.home / "demo"
    assert services.running(home) is None
    assert not EmbeddedServer(home).is_running()
