"""The demo and one-off backfills, which start what they need on a home of their own and stop it."""

from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import psycopg

from tests.integration.conftest import Installation, exact
from trading_pipelines.database.connection import SCHEMA
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.home import Home
from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.server import ReplayExchange


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
