"""How soon a closed minute can be read in `market_data`, by the reader of the stream, on loopback.

Measured against the replay exchange's stream and a real embedded Postgres: seconds from a minute's
end, by the exchange's clock, to the moment in which another session first sees its row. Beside it,
in the same run, the bot's own way: each symbol asked by REST one after the other when the minute
has ended. Both without Dagster, which has no part in it. Requests are counted by the exchange.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import requests
import typer
import yaml
from rich.console import Console
from rich.table import Table

from trading_pipelines.candles.windows import MINUTE, floor_minute
from trading_pipelines.database.connection import connect, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import LiveSettings, StrategySettings
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

LATENCY, RATE = 0.05, 10.0
GRACE = LiveSettings().grace_seconds
NEWEST = """
SELECT symbol, (SELECT max(timestamp) FROM market_data
    WHERE symbol = symbols.symbol AND interval = '1m')
FROM unnest(%s::text[]) AS symbols (symbol)
"""
LOOK_SECONDS = 0.05


def seen_after(
    connection: psycopg.Connection, symbols: Sequence[str], until: datetime
) -> list[float]:
    """Return the seconds from the end of each minute until its row was seen."""
    newest: dict[str, datetime] = {}
    seconds = []
    while datetime.now(UTC) < until:
        rows = connection.execute(NEWEST, [list(symbols)]).fetchall()
        now = datetime.now(UTC)
        for symbol, start in rows:
            if start and newest.get(symbol) not in {None, start}:
                seconds.append((now - start - MINUTE).total_seconds())
            newest[symbol] = start
        time.sleep(LOOK_SECONDS)
    return seconds


def polled(url: str, symbols: Sequence[str], until: datetime, seconds: list[float]) -> None:
    """Ask for each symbol when a minute has ended, as the bot's collector does."""
    while (end := floor_minute(datetime.now(UTC)) + MINUTE) < until:
        time.sleep((end - datetime.now(UTC)).total_seconds())
        for symbol in symbols:
            query = f"market={symbol}&count=2"
            answer = requests.get(f"{url}/v1/candles/minutes/1?{query}", timeout=10)
            starts = [row["candle_date_time_utc"] for row in answer.json()] if answer.ok else []
            if f"{end - MINUTE:%Y-%m-%dT%H:%M:%S}" in starts:
                seconds.append((datetime.now(UTC) - end).total_seconds())
            time.sleep(max(0.0, 1 / RATE - LATENCY))


def used(pid: int) -> tuple[float, float]:
    """Return a process's seconds of CPU so far, and its memory in MB. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(status.split("VmRSS:")[1].split()[0]) / 1024


def main(symbols: int = 5, minutes: int = 60) -> None:
    """Measure so many SYMBOLS for so many MINUTES."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = [*StrategySettings().symbols, *(f"KRW-X{n:02}" for n in range(symbols))][:symbols]
    by_polling: list[float] = []
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp")))
        home.chmod(0o755)  # under root the server runs as `nobody`
        server = EmbeddedServer(home)
        stack.callback(server.stop)
        server.start()
        url = server.url("postgres")
        upgrade_database(url)
        market = GeneratedMarket(names)
        exchange = stack.enter_context(ReplayExchange(market, rate=RATE, latency=LATENCY))
        bots = stack.enter_context(ReplayExchange(market, rate=RATE, latency=LATENCY))
        today = datetime.now(UTC).date()
        config = home / "strategy.yaml"
        config.write_text(yaml.safe_dump({"symbols": names, "data": {"start_date": today}}))
        environment = os.environ | {
            "DATABASE_URL": url,
            "UPBIT_BASE_URL": exchange.url,
            "TRADING_PIPELINES_HOME": str(home),
            "TRADING_PIPELINES_CONFIG": str(config),
        }
        with (home / "live.log").open("wb") as log:
            reader = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "trading_pipelines.runtime.live", "benchmark"],
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
            )
        stack.callback(reader.kill)
        connection = stack.enter_context(connect(url))
        # The open day is fetched first.
        time.sleep(20 + symbols)
        cpu, asked = used(reader.pid)[0], exchange.stats().requests
        until = floor_minute(datetime.now(UTC)) + timedelta(minutes=minutes, seconds=30)
        beside = threading.Thread(target=polled, args=(bots.url, names, until, by_polling))
        beside.start()
        by_stream = seen_after(connection, names, until)
        beside.join()
        cpu, memory = used(reader.pid)[0] - cpu, used(reader.pid)[1]
        stats = exchange.stats()
        table = Table(
            *("", "minutes", "median s", "99th percentile s", "longest s", "requests"),
            title=f"{symbols} symbols, {minutes} minutes, grace {GRACE:g} s; load "
            f"{os.getloadavg()[0]:.1f}",
        )
        for label, seconds, requested in (
            ("ours, by the stream", by_stream, stats.requests - asked),
            ("polled each minute", by_polling, bots.stats().requests),
        ):
            table.add_row(
                *(label, f"{len(seconds):,}", f"{statistics.median(seconds):.2f}"),
                f"{statistics.quantiles(seconds, n=100)[98]:.2f}",
                *(f"{max(seconds):.2f}", f"{requested:,}"),
            )
        out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        out.print(table)
        out.print(
            f"the reader: {cpu / minutes:.2f} s of CPU a minute, {memory:.0f} MB; "
            f"refused: {stats.refused}"
        )
        held = statistics.median(by_stream) <= GRACE + 1 and (
            statistics.quantiles(by_stream, n=100)[98] <= GRACE + 3
        )
        out.print(f"target, median grace + 1 s, 99th percentile grace + 3 s: "
                  f"{'met' if held else 'MISSED'}")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
