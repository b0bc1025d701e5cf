"""What `make up` runs, against the real daemon: backfills, faults, and its parts killed."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from typing import Any

import pandas as pd
import psycopg
import pytest
import requests

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.integration.conftest import Installation, await_that, exact, running
from trading_pipelines.runtime.supervisor import STATE
from trading_pipelines.simulators.upbit.faults import KINDS, Fault
from trading_pipelines.simulators.upbit.server import ReplayExchange


@pytest.fixture(scope="module")
def up(exchange: ReplayExchange) -> Iterator[Installation]:
    """An installation that runs as `make up` runs it; its tables are as the last test left them."""
    with running(exchange) as installation:
        yield installation


def freeze(installation: Installation) -> int:
    """Leave what the bot's collector left: minutes stored while they formed, and stale rows."""
    with psycopg.connect(installation.market_url) as connection:
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
    done = up.backfill(FIRST_DAY, LAST_DAY, *SYMBOLS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert exact(up.stored()) == exact(recorded)
    rows = int((recorded.symbol == "KRW-BTC").sum())
    quiet = 21 * 1440 - rows
    assert quiet > 0, "minutes without a trade are in it"
    line = f"21 of 21 │ {rows:>7,} │ {quiet:>13} │     0 │      152 │ 2025-09-01 09:00 KST"
    assert line in done.stdout
    with psycopg.connect(up.market_url) as connection:
        counts = connection.execute(
            "SELECT interval, sum(repaired), sum(rows) FROM trading_pipelines.candle_coverage "
            "GROUP BY interval ORDER BY interval"
        ).fetchall()
    assert counts == [("1h", 0, 21 * 24 * 5), ("1m", frozen, len(recorded))]
    assert "services: http://127.0.0.1" in up.run("status").stdout


def test_with_every_fault_at_once_only_the_day_in_trouble_fails_and_nothing_else_is_lost(
    up: Installation, exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    with psycopg.connect(up.market_url) as connection:
        connection.execute("TRUNCATE market_data, trading_pipelines.candle_coverage")
    # An empty page and a stale one far apart: a window is empty when two answers in a row say so.
    others = {kind for kind in KINDS if not kind.startswith("418")} - {"empty_page", "stale_page"}
    transient = ["empty_page", *sorted(others), "stale_page"]
    exchange.set_faults(
        [
            Fault.parse("502:market=KRW-DOGE,between=2025-09-03T00:00/2025-09-04T00:00"),
            # Far fewer in a row than the twelve at which a request is given up.
            *(Fault(kind, every=5 + n, count=1) for n, kind in enumerate(transient)),
        ]
    )
    done = up.backfill(date(2025, 9, 2), date(2025, 9, 4), *SYMBOLS)
    assert done.returncode == 1, done.stdout + done.stderr
    assert set(exchange.stats().faults) >= set(transient)
    assert "failed KRW-DOGE 2025-09-03: KRW-DOGE 2025-09-03 00:00 to 03:20 UTC: HTTP 502" in (
        done.stdout
    )
    assert "failed: 1 of 15 partitions" in done.stderr, done.stdout
    asked = recorded.timestamp_utc.between("2025-09-02T00:00Z", "2025-09-04T23:59Z")
    trouble = (recorded.symbol == "KRW-DOGE") & (recorded.timestamp_utc.dt.day == 3)
    assert exact(up.stored()) == exact(recorded[asked & ~trouble])


def test_a_home_that_is_in_use_is_refused(up: Installation) -> None:
    second = up.run("up", "--port", "0")
    assert second.returncode == 1
    assert "running already" in second.stderr


def test_a_killed_database_and_daemon_are_back_by_themselves(up: Installation) -> None:
    daemon = up.children["daemon"]
    os.kill(int((up.home / "postgres/data/postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)

    def healed() -> bool:
        with suppress(psycopg.OperationalError, requests.RequestException, KeyError, TypeError):
            psycopg.connect(up.market_url).close()
            state = requests.post(f"{up.url}/graphql", json={"query": STATE}, timeout=10)
            daemons = state.json()["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
            return up.children["daemon"] != daemon and all(d["healthy"] for d in daemons)
        return False

    await_that(healed, "another postmaster and another daemon")


SYMBOLS_IN_THE_UI = """{ assetNodes(assetKeys: [{path: ["candles_1m"]}]) {
    partitionKeysByDimension { name partitionKeys } } }"""
RELOAD = """mutation { reloadRepositoryLocation(repositoryLocationName: "trading_pipelines") {
    __typename } }"""


def symbols_after_a_reload(up: Installation) -> list[str]:
    def ask(query: str) -> dict[str, Any]:
        answer = requests.post(f"{up.url}/graphql", json={"query": query}, timeout=120)
        return dict(answer.json()["data"])

    assert ask(RELOAD)["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry"
    (asset,) = ask(SYMBOLS_IN_THE_UI)["assetNodes"]
    return next(
        list(dimension["partitionKeys"])
        for dimension in asset["partitionKeysByDimension"]
        if dimension["name"] == "symbol"
    )


@pytest.mark.parametrize("text", ["", "symbols: [KRW-BTC, KR", None])
def test_a_reload_while_an_editor_writes_goes_on_with_the_last_good_settings(
    up: Installation, text: str | None
) -> None:
    good = up.config.read_text()
    try:
        if text is None:
            up.config.unlink()
        else:
            up.config.write_text(text)
        assert symbols_after_a_reload(up) == SYMBOLS
        said = up.run("health", "--only", "settings")
        assert said.returncode == 1
        assert f"{up.config}:" in said.stdout.replace("\n", "")
        assert "the last good ones are in use" in up.run("status").stdout
    finally:
        up.config.write_text(good)
    assert symbols_after_a_reload(up) == SYMBOLS
    assert up.run("health", "--only", "settings").returncode == 0
