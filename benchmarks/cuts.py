"""How long the work stands still after a power cut: everything is killed, then `up` again.

Measured, on a fresh home with the real `up` against the replay exchange at Upbit's limit, during a
native backfill with signals: at random moments everything is killed at once (`up`, its children,
their runs, Postgres). From the start of the next `up`: the seconds until it says that it runs, and
until the exchange is asked again. By then no run that the cut has ended may still be in flight.
After the last cut the backfill runs to its end, and the candles are compared with the market,
minute by minute.

The moments are random, so each line says what was in flight: runs by their status.
"""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path

import psycopg
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from trading_pipelines.candles import coverage
from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.database.connection import DatabaseUrls, connect, database_urls
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.backfill import BackfillTarget, launch
from trading_pipelines.runtime.home import Home, signal_group
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

SYMBOLS = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE")
FIRST = date(2026, 6, 1)
RATE, LATENCY = 10.0, 0.05
STUCK_SECONDS = 400.0
TARGETS = {"median": 15.0, "longest": 30.0}  # seconds, on a quiet machine
IN_FLIGHT = """
SELECT run_id, status FROM runs WHERE status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED')
"""
AT_WORK = {"starting", "started", "canceling"}


class Installation:
    """A home of its own, whose `up` is started, and killed with all that it has started."""

    def __init__(self, folder: Path, exchange_url: str, settings: StrategySettings) -> None:
        config = folder / "strategy.yaml"
        dump_strategy(settings, config)
        self.environment = Environment(
            trading_pipelines_home=folder / "home",
            trading_pipelines_config=config,
            upbit_base_url=exchange_url,
            database_url=None,
            dagster_postgres_url=None,
            heartbeat_url=None,
            redis_url=None,
            n8n_url=None,
            discord_webhook_url=SecretStr(""),
        )
        self._variables = os.environ | {
            "TRADING_PIPELINES_HOME": str(folder / "home"),
            "TRADING_PIPELINES_CONFIG": str(config),
            "UPBIT_BASE_URL": exchange_url,
            "DATABASE_URL": "",
            "DISCORD_WEBHOOK_URL": "",
            "N8N_URL": "",
        }
        self._folder = folder
        self._home = Home.of(self.environment)
        self._up: subprocess.Popen[str] | None = None

    @property
    def urls(self) -> DatabaseUrls:
        """Where its databases are."""
        return database_urls(self.environment)

    def start(self) -> None:
        """Start `up`; returns when it says that it runs. Raises RuntimeError."""
        program = Path(sys.executable).with_name("trading-pipelines")
        self._up = subprocess.Popen(  # noqa: S603
            [program, "up", "--port", "0"], env=self._variables, cwd=self._folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._up.stdout is not None
        if "running" not in self._up.stdout.readline():
            raise RuntimeError("`up` did not start")

    @property
    def url(self) -> str:
        """The address of its web UI. Raises RuntimeError where none runs."""
        services = self._home.running_services()
        if services is None:
            raise RuntimeError("nothing runs")
        return services.url

    def kill(self) -> None:
        """Kill everything at once."""
        services = self._home.running_services()
        if self._up is not None:
            self._up.kill()
            self._up.wait()
        for pid in services.children.values() if services else ():
            signal_group(pid, signal.SIGKILL)
        with suppress(FileNotFoundError, ProcessLookupError):
            pid_file = self._home.path / "postgres" / "data" / "postmaster.pid"
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)

    def stop(self) -> None:
        """Stop what runs, and the database."""
        self._home.stop_services()
        EmbeddedServer(self._home.path).stop()

    def in_flight(self) -> dict[str, str]:
        """Return the status of each run that is not over, by its id."""
        with connect(self.urls.dagster.replace("+psycopg2", "")) as connection:
            rows = connection.execute(IN_FLIGHT).fetchall()
        return {run_id: str(status).lower() for run_id, status in rows}


@contextmanager
def installed(exchange_url: str, settings: StrategySettings) -> Iterator[Installation]:
    """Yield an installation that runs in a fresh folder; nothing is left of either afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    folder.chmod(0o755)  # under root the server runs as `nobody`
    installation = Installation(folder, exchange_url, settings)
    try:
        installation.start()
        yield installation
    finally:
        installation.kill()
        installation.stop()
        shutil.rmtree(folder, ignore_errors=True)


def await_that(holds: Callable[[], bool], seconds: float) -> float:
    """Wait until it holds; return the seconds that it took. Raises TimeoutError."""
    since = time.monotonic()
    while not holds():
        if time.monotonic() - since > seconds:
            raise TimeoutError
        time.sleep(0.05)
    return time.monotonic() - since


def lost_and_doubled(
    connection: psycopg.Connection, market: GeneratedMarket, target: BackfillTarget
) -> tuple[int, int]:
    """Return how many candles of the market are missing or differ, and how many are too many."""
    lost = doubled = 0
    first, end = (
        int(moment.timestamp()) // 60
        for moment in (day_interval(target.first).start, day_interval(target.last).end)
    )
    for symbol in target.symbols:
        rows = connection.execute(
            "SELECT extract(epoch FROM timestamp)::bigint / 60, close_price::float8 "
            "FROM market_data WHERE symbol = %s",
            [symbol],
        ).fetchall()
        stored: dict[int, float] = dict(rows)
        candles = market.candles(symbol, first, end)
        traded = dict(zip(candles.minute.tolist(), candles.close.tolist(), strict=True))
        lost += sum(stored.get(minute) != close for minute, close in traded.items())
        doubled += len(rows) - len(traded.keys() & stored.keys())
    return lost, doubled


def has_asked(exchange: ReplayExchange, before: int) -> bool:
    """Return whether the exchange has been asked more than `before` times."""
    return exchange.stats().requests > before


def told(runs: dict[str, str]) -> str:
    """Return how many runs have which status."""
    counted = sorted(Counter(runs.values()).items())
    return ", ".join(f"{number} {status}" for status, number in counted) or "nothing"


def main(cuts: int = 10, days: int = 60, seed: int = 20261128, longest_wait: float = 20.0) -> None:
    """Cut the power CUTS times during a backfill of DAYS days with signals."""
    chance = random.Random(seed)  # noqa: S311
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(
        "cut", "after s", "in flight", "`up` s", "first request s", "ended, still in flight", "load"
    )
    waits = []
    with ExitStack() as stack:
        market = GeneratedMarket(SYMBOLS)
        exchange = stack.enter_context(ReplayExchange(market, rate=RATE, latency=LATENCY))
        data = DataSettings(start_date=FIRST, refresh=False)
        settings = StrategySettings(symbols=list(SYMBOLS), data=data)
        installation = stack.enter_context(installed(exchange.url, settings))
        target = BackfillTarget(SYMBOLS, FIRST, FIRST + DAY * (days - 1))
        launch(installation.url, target, with_signals=True)
        await_that(partial(has_asked, exchange, 0), STUCK_SECONDS)
        for number in range(cuts):
            wait = chance.uniform(0, longest_wait)
            time.sleep(wait)
            cut_runs = installation.in_flight()
            ended = {run for run, status in cut_runs.items() if status in AT_WORK}
            installation.kill()
            asked, since = exchange.stats().requests, time.monotonic()
            installation.start()
            started = time.monotonic() - since
            with suppress(TimeoutError):
                await_that(partial(has_asked, exchange, asked), STUCK_SECONDS)
            waits.append(time.monotonic() - since)
            row = (
                *(str(number), f"{wait:.1f}", told(cut_runs), f"{started:.1f}"),
                *(f"{waits[-1]:.1f}", str(len(ended & installation.in_flight().keys()))),
                f"{os.getloadavg()[0]:.1f}",
            )
            table.add_row(*row)
            out.print(*row, sep=" | ")
        with connect(installation.urls.market) as connection:

            def complete() -> bool:
                stored = coverage.read(connection, target.symbols, target.days)
                return all(day.complete for day in stored)

            took = await_that(complete, 3600)
            lost, doubled = lost_and_doubled(connection, market, target)
    out.print(table)
    figures = {"median": statistics.median(waits), "longest": max(waits)}
    for name, seconds in figures.items():
        verdict = "met" if seconds <= TARGETS[name] else "MISSED"
        out.print(f"{name}: {seconds:.1f} s; target {TARGETS[name]:.0f} s: {verdict}")
    out.print(f"complete {took:.0f} s after the last cut: {lost} lost, {doubled} doubled")
    sys.exit(1 if lost or doubled else 0)


if __name__ == "__main__":
    typer.run(main)
