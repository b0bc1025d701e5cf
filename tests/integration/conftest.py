"""A whole installation on loopback: replayed exchange, embedded Postgres, the real Dagster."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from tests.conftest import FIRST_DAY, SYMBOLS
from trading_pipelines.candles.windows import MINUTE
from trading_pipelines.database.connection import SCHEMA
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.home import Home
from trading_pipelines.settings.strategy import DataSettings, ExchangeSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

AWAIT_SECONDS = 600
UNANSWERED = """
SELECT body ->> 'idempotency_key', count(*) FROM trading_pipelines.alert_deliveries
JOIN trading_pipelines.alert_attempts ON delivery_id = alert_deliveries.id
WHERE outcome IS DISTINCT FROM 'delivered' GROUP BY 1
"""
FAILURES = """
SELECT run_id, timestamp, left(event::json -> 'dagster_event' ->> 'message', 400)
FROM event_logs WHERE run_id IN (SELECT run_id FROM runs WHERE status = 'FAILURE')
AND dagster_event_type IN ('PIPELINE_FAILURE', 'STEP_FAILURE', 'ENGINE_EVENT') ORDER BY id
"""
PRICES = ["open", "high", "low", "close", "volume"]


class Installation:
    """A home, its settings and its environment, used as a person would: by the command line."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / "strategy.yaml"
        self.variables = {
            **os.environ,
            "TRADING_PIPELINES_HOME": str(home),
            "TRADING_PIPELINES_CONFIG": str(self.config),
        }

    def configure(self, base_url: str, requests_per_second: float = 1000.0) -> None:
        """Write settings for a replayed exchange whose rate limit is lifted; no schedule."""
        self.variables["UPBIT_BASE_URL"] = base_url
        dump_strategy(
            StrategySettings(
                symbols=SYMBOLS,
                data=DataSettings(start_date=FIRST_DAY, refresh=False),
                exchange=ExchangeSettings(
                    requests_per_second=requests_per_second,
                    timeout_seconds=2.0,
                    # Faults that are meant for all requests met one of them six times, once.
                    attempts=12,
                    backoff_seconds=0.01,
                    max_backoff_seconds=0.1,
                ),
            ),
            self.config,
        )

    @property
    def url(self) -> str:
        """Where the services run, or "" when they do not or not yet."""
        running = Home(self.home).running_services()
        return running.url if running else ""

    @property
    def children(self) -> dict[str, int]:
        """The process of each service."""
        running = Home(self.home).running_services()
        return running.children if running else {}

    @property
    def market_url(self) -> str:
        """The embedded market database."""
        return EmbeddedServer(self.home).url(SCHEMA)

    def failures(self) -> str:
        """Return what Dagster's events say of the runs that have failed, for an assertion."""
        with psycopg.connect(EmbeddedServer(self.home).url("dagster")) as connection:
            return "\n".join(" ".join(map(str, row)) for row in connection.execute(FAILURES))

    def stored(self) -> pd.DataFrame:
        """Return every one-minute candle of the database."""
        with psycopg.connect(self.market_url) as connection:
            rows = connection.execute(
                "SELECT symbol, timestamp, open_price, high_price, low_price, close_price, volume "
                "FROM market_data WHERE interval = '1m' ORDER BY symbol, timestamp"
            ).fetchall()
        return pd.DataFrame(rows, columns=["symbol", "timestamp_utc", *PRICES])

    def backfill(self, first: date, last: date, *symbols: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        days = ("--start", f"{first}", "--end", f"{last}")
        return self.run("backfill", "--symbols", ",".join(symbols), *days)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "trading_pipelines.cli.main", *arguments],
            env=self.variables, capture_output=True, text=True, timeout=AWAIT_SECONDS, check=False,
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that stays."""
        return subprocess.Popen(
            [sys.executable, "-m", "trading_pipelines.cli.main", *arguments],
            env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def exact(frame: pd.DataFrame) -> list[tuple[str, pd.Timestamp, list[Decimal]]]:
    """Return rows whose numbers are compared as decimals of eight places, not as floats."""
    return [
        (symbol, pd.Timestamp(start), [Decimal(str(n)).quantize(Decimal("1e-8")) for n in numbers])
        for symbol, start, *numbers in frame[["symbol", "timestamp_utc", *PRICES]].itertuples(
            index=False
        )
    ]


def unanswered_tries(connection: psycopg.Connection) -> dict[str, int]:
    """Return, by idempotency key, how many tries of an alert were left without "delivered"."""
    return dict(connection.execute(UNANSWERED).fetchall())


def rejections_in(inbox: DiscordInbox) -> Counter[str]:
    """Return how often each rejection has arrived in Discord, by its idempotency key."""
    return Counter(
        footer
        for message in inbox.messages
        for embed in message.payload["embeds"]
        if (footer := embed["footer"]["text"]).endswith(":ai-reject")
    )


def await_that(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + AWAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not in {AWAIT_SECONDS} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None, clock=recorded_market.end + MINUTE) as exchange:
        yield exchange


@pytest.fixture(autouse=True)
def _sound(exchange: ReplayExchange) -> None:
    exchange.set_faults([])
    exchange.latency = 0.0


@contextmanager
def installed() -> Iterator[Installation]:
    """A fresh installation; whatever it has started is stopped at the end."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    try:
        yield Installation(home)
    finally:
        Installation(home).run("down")
        for path in (home, home / "demo", home / "drill"):
            EmbeddedServer(path).stop()
        shutil.rmtree(home)


@contextmanager
def running(
    exchange: ReplayExchange, requests_per_second: float = 1000.0
) -> Iterator[Installation]:
    """An installation that runs as `make up` runs it, and still does at the end."""
    with installed() as installation:
        installation.configure(exchange.url, requests_per_second)
        process = installation.start("up", "--port", "0")
        await_that(lambda: bool(installation.url), "up says where it runs")
        yield installation
        assert process.poll() is None, "it still runs"


@pytest.fixture
def installation() -> Iterator[Installation]:
    """An installation of the test's own."""
    with installed() as installation:
        yield installation
