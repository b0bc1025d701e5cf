"""A whole installation in a world of the test's own: its clock, its exchange, its bot, its Discord.

The clock of every process is shifted by libfaketime, and can be set while they run; the exchange
replays the recording by the same clock. Only with RUN_FAULTS=1, as `make test-faults` has.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from tests.conftest import FIRST_DAY, STRATEGY, SYMBOLS, days_of, environment, store_minutes
from tests.integration.conftest import Installation, exact, rejections_in, unanswered_tries
from trading_pipelines.candles.windows import DAY, MINUTE
from trading_pipelines.database.connection import SCHEMA, connect, prepare_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import (
    AlertSettings,
    DataSettings,
    ExchangeSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.registry import compute
from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

collect_ignore_glob = [] if os.environ.get("RUN_FAULTS") == "1" else ["test_*.py"]

# The history ends here; two weeks are what the volatility model needs.
START = datetime(2025, 9, 16, 1, 10, 48, tzinfo=UTC)
HISTORY = days_of(FIRST_DAY, START.date() - DAY)
SHIFTED = Path(__file__).parent / "shifted"
TABLES = {
    # Each signal's table and the time at which a row of it is due.
    "regime_labels": "hour + interval '1 hour'",
    "realized_volatility": "hour + interval '1 hour'",
    "volatility_model": "day::timestamp AT TIME ZONE 'UTC' + interval '1 day 5 minutes'",
    "volatility_forecast": "as_of",
}
HEAD = "|---|---|---:|---:|---:|---:|---:|---:|\n"
REJECT = """
INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, created_at)
VALUES (%s, 'test', 'REJECT', %s, %s) RETURNING id
"""


@dataclass
class Row:
    """A line of the table in docs/reliability.md; models are counted by horizon."""

    scenario: str
    done: str
    expected: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    doubles: int = 0
    explained: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = [
            f"{self.found[name]:,} of {self.expected[name]:,}"
            for name in ("candles", "regime_labels", "volatility_model", "alerts")
        ]
        doubles = f"{self.doubles}, {self.explained} explained" if self.doubles else "0"
        cells = [self.scenario, self.done, *counts, doubles, f"{self.seconds:.0f} s"]
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Reference:
    """What an undisturbed installation would have: the recording, and every signal of it."""

    candles: pd.DataFrame
    signals: dict[str, dict[str, datetime]]
    """By table: each row as text, and when it is due."""

    def due(self, table: str, since: datetime, until: datetime) -> set[str]:
        """Return the rows that are due in (since, until]."""
        return {row for row, at in self.signals[table].items() if since < at <= until}


def rows_of(
    connection: psycopg.Connection, table: str, since: datetime, until: datetime
) -> dict[str, datetime]:
    """Return rows due in (since, until] as Postgres writes them, and when each is due.

    But for the numbers that regime_history has given.
    """
    return dict(
        connection.execute(
            f"SELECT (to_jsonb(stored) - 'history_id')::text, {TABLES[table]} "
            f"FROM trading_pipelines.{table} AS stored "
            f"WHERE {TABLES[table]} > %s AND {TABLES[table]} <= %s",
            [since, until],
        ).fetchall()
    )


class World(Installation):
    """An installation whose time, exchange, bot and Discord are the test's."""

    def __init__(
        self, home: Path, exchange: ReplayExchange, inbox: DiscordInbox, reference: Reference
    ) -> None:
        super().__init__(home)
        self.exchange = exchange
        self.inbox = inbox
        self.reference = reference
        self.chance = random.Random(f"{home.name}")
        self.written: list[int] = []
        # Not in the home, whose disk may be full.
        self._clock = home.with_name(f"{home.name}.clock")
        self.shift = timedelta()
        self.has_small_disk = False
        self.variables |= {
            "UPBIT_BASE_URL": exchange.url,
            "DISCORD_WEBHOOK_URL": inbox.url,
            "PYTHONPATH": os.pathsep.join([str(SHIFTED), *sys.path[:1]]),
            "LD_PRELOAD": str(next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.configure_world()

    def configure_world(self, symbols: Iterable[str] = SYMBOLS, **data: object) -> None:
        """Write settings as shipped, but for what would only make the test slower."""
        dump_strategy(
            StrategySettings(
                symbols=list(symbols),
                data=DataSettings.model_validate({"start_date": FIRST_DAY, **data}),
                exchange=ExchangeSettings(timeout_seconds=2.0, attempts=3, max_backoff_seconds=1.0),
                alerts=AlertSettings(
                    since=START, messages_per_minute=150, digest_over=1000, retry_waits=[2.0] * 100
                ),
            ),
            self.config,
        )

    @property
    def now(self) -> datetime:
        """The time in this world."""
        return datetime.now(UTC) + self.shift

    def set_clock(self, at: datetime, *, exchange: bool = True) -> None:
        """Set the clock of all processes, and by default that of the exchange too."""
        self.shift = at - datetime.now(UTC)
        new = self._clock.with_suffix(".new")
        new.write_text(f"{self.shift.total_seconds():+.0f}\n")
        new.replace(self._clock)
        if exchange:
            self.exchange.set_clock(self.shift)

    @property
    def dagster_url(self) -> str:
        """Dagster's storage."""
        return EmbeddedServer(self.home).url(f"{SCHEMA}_dagster")

    def pause(self, seconds: float) -> None:
        """Let it run: what is killed a while later is killed at another point."""
        time.sleep(seconds)

    def up(self, *, awaited: bool = True) -> None:
        """Start it as `make up` does."""
        self.process = self.start("up", "--port", "0")
        if awaited:
            self.until(self.is_up, "up says where it runs")

    def is_up(self) -> bool:
        """Return whether it says where it runs; fails when it has ended."""
        if self.process.poll() is not None:
            log = self.home / "logs" / "code-server.log"
            raise AssertionError(f"{self.process.communicate()[0]}\n{log.read_text()[-5000:]}")
        return bool(self.url)

    def down(self) -> None:
        """Stop it all but the database, which goes on for the bot."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, said
        self.run("db", "url")

    def comes(self, holds: Callable[[], bool], seconds: float, every: float = 1.0) -> bool:
        """Return whether it holds in time, asked so often. A database that is away is not yet."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(psycopg.Error):
                if holds():
                    return True
            time.sleep(every)
        return False

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 240) -> float:
        """Wait for it; return the seconds it took."""
        started = time.monotonic()
        if not self.comes(holds, seconds):
            raise AssertionError(
                f"not in {seconds:.0f} s, at {self.now}: {what}\n{self.run('status').stdout}"
            )
        return time.monotonic() - started

    def reject(self, at: datetime | None = None, count: int = 1) -> bool:
        """Refuse trades as the bot does; return that it is done, for `until`."""
        with psycopg.connect(self.market_url, autocommit=True) as connection:
            for _ in range(count):
                symbol = self.chance.choice(SYMBOLS)
                row = connection.execute(REJECT, [symbol, "이유", at or self.now]).fetchone()
                assert row is not None
                self.written.append(row[0])
        return True

    def arrived(self) -> Counter[str]:
        """Return how often each rejection has arrived in Discord, by its idempotency key."""
        return rejections_in(self.inbox)

    def wanted(self) -> set[str]:
        """Return the idempotency keys of what the bot has refused."""
        return {f"agent_decisions:{number}:ai-reject" for number in self.written}

    def newest(self, symbols: Sequence[str] = SYMBOLS) -> datetime:
        """Return the start of the newest candle that all of the symbols have."""
        with psycopg.connect(self.market_url) as connection:
            row = connection.execute(
                "SELECT min(newest) FROM (SELECT max(timestamp) AS newest FROM market_data "
                "WHERE interval = '1m' AND symbol = ANY(%s) GROUP BY symbol) AS by_symbol",
                [list(symbols)],
            ).fetchone()
        assert row is not None
        return row[0]  # type: ignore[no-any-return]

    def missing(self, since: datetime, until: datetime) -> dict[str, int]:
        """Return how many rows due in (since, until] are not there, by table; empty when healed."""
        minutes = self.reference.candles.timestamp_utc
        wanted = int(((minutes >= since - MINUTE) & (minutes < until - MINUTE)).sum())
        with psycopg.connect(self.market_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM market_data "
                "WHERE interval = '1m' AND timestamp >= %s AND timestamp < %s",
                [since - MINUTE, until - MINUTE],
            ).fetchone()
            found = {
                table: len(
                    self.reference.due(table, since, until)
                    - rows_of(connection, table, since, until).keys()
                )
                for table in TABLES
            }
        assert row is not None
        found |= {"candles": wanted - row[0], "alerts": len(self.wanted() - self.arrived().keys())}
        return {name: number for name, number in found.items() if number}

    def healed(self, since: datetime, until: datetime) -> bool:
        """Return whether all that was due in (since, until] is there."""
        return not self.missing(since, until)

    def account(self, row: Row, since: datetime, until: datetime) -> None:
        """Count what was due in (since, until] and what of it is there, equal to the last digit."""
        minutes = self.reference.candles.timestamp_utc
        recorded = self.reference.candles[(minutes >= since - MINUTE) & (minutes < until - MINUTE)]
        stored = self.stored()
        times = stored.timestamp_utc
        stored = stored[(times >= since - MINUTE) & (times < until - MINUTE)]
        same = {repr(one) for one in exact(recorded)} & {repr(one) for one in exact(stored)}
        with psycopg.connect(self.market_url) as connection:
            unanswered = unanswered_tries(connection)
            found = {
                table: len(
                    self.reference.due(table, since, until)
                    & rows_of(connection, table, since, until).keys()
                )
                for table in TABLES
            }
        due = {table: len(self.reference.due(table, since, until)) for table in TABLES}
        arrived = self.arrived()
        row.expected = {"candles": len(recorded), **due, "alerts": len(self.wanted())}
        row.found = {
            "candles": len(same), **found, "alerts": len(self.wanted() & arrived.keys()),
        }  # fmt: skip
        doubles = {key: number - 1 for key, number in arrived.items() if number > 1}
        row.doubles = sum(doubles.values())
        row.explained = sum(min(number, unanswered.get(key, 0)) for key, number in doubles.items())
        assert row.found == row.expected, "nothing is lost, and nothing differs"
        assert len(stored) == len(recorded), "nothing is there that the exchange does not have"
        assert row.explained == row.doubles, "each double follows a try that was left unanswered"
        assert arrived.keys() == self.wanted(), "nothing else was sent"


@pytest.fixture(scope="session")
def reference(server: EmbeddedServer, computed_template: str, recorded: pd.DataFrame) -> Reference:
    """The recording and its signals, computed in one go."""
    with psycopg.connect(server.url(computed_template)) as connection:
        return Reference(
            recorded,
            {
                table: rows_of(connection, table, START - 90 * DAY, START + 90 * DAY)
                for table in TABLES
            },
        )


@pytest.fixture(scope="session")
def history(recorded: pd.DataFrame) -> Iterator[Path]:
    """A stopped home whose database holds all up to START's day."""
    home = Path(tempfile.mkdtemp(prefix="tph"))
    home.chmod(0o755)
    with connect(prepare_database(environment(home)).market) as connection:
        before = recorded.timestamp_utc < pd.Timestamp(START.date(), tz="UTC")
        store_minutes(connection, recorded[before])
        for one in SIGNALS:
            compute(connection, one, SYMBOLS, HISTORY, STRATEGY, "history")
    EmbeddedServer(home).stop()
    yield home
    shutil.rmtree(home)


@contextmanager
def world_of(
    history: Path, market: Recording, reference: Reference, home: Path | None = None
) -> Iterator[World]:
    """Yield a world at START, nothing of it running yet; whatever it started is stopped."""
    home = home or Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    shutil.copytree(history / "postgres", home / "postgres", symlinks=True)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "nobody", home / "postgres"], check=True)
    with ReplayExchange(market, rate=10.0, latency=0.01) as exchange, DiscordInbox() as inbox:
        world = World(home, exchange, inbox, reference)
        world.set_clock(START - MINUTE)
        try:
            yield world
        finally:
            world.run("down")
            EmbeddedServer(home).stop()
            world._clock.unlink()
            shutil.rmtree(home, ignore_errors=True)


class Reliability:
    """The rows of the table in docs/reliability.md, which `make reliability` writes."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def row(self, scenario: str, done: str = "") -> Row:
        """Add a line."""
        self.rows.append(Row(scenario, done))
        return self.rows[-1]

    def write(self, page: Path) -> None:
        """Put the accounted rows into the page's table, in the place of those of the same name."""
        before, head, rest = page.read_text().partition(HEAD)
        lines, gap, after = rest.partition("\n\n")
        known = {line.split(" | ")[0]: line for line in lines.splitlines()}
        known |= {f"| {one.scenario}": str(one) for one in self.rows if one.found}
        page.write_text(before + head + "\n".join(known.values()) + gap + after)


@pytest.fixture(scope="session")
def reliability() -> Iterator[Reliability]:
    """What the suite has shown."""
    found = Reliability()
    yield found
    if page := os.environ.get("RELIABILITY"):
        found.write(Path(page))
