"""Shared fixtures: a real embedded Postgres, a database a test, the recorded candles.

Where `../shared/data` is not there, a generated market of the same shape stands in for them: no
test of behaviour is skipped for want of a file.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import hypothesis
import pandas as pd
import psycopg
import pytest

from trading_pipelines.candles.resample import resample
from trading_pipelines.database.connection import VARIABLES, connect, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.registry import compute
from trading_pipelines.simulators.upbit.market import GeneratedMarket, Recording

RECORDINGS = Path(__file__).parents[2] / "shared" / "data"
MINUTES = RECORDINGS / "upbit_krw5_1m_20250901_20250921.parquet"
SYMBOLS = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"]
FIRST_DAY, LAST_DAY = date(2025, 9, 1), date(2025, 9, 21)
# Of a thousand, one whose weeks are like the recorded ones: no outage, a quiet minute of KRW-BTC,
# trends that end, KRW-XRP sideways at the end; and whose winter of 2023 has outages.
SEED = 922
RECORDED_DAYS = [FIRST_DAY + timedelta(days=n) for n in range(21)]

STRATEGY = StrategySettings(data=DataSettings(start_date=FIRST_DAY))

FOREIGN = (
    "UPBIT_BASE_URL",
    "UPBIT_FILES_URL",
    "UPBIT_FILES_LIST_URL",
    "REDIS_URL",
    "DAGSTER_HOME",
    "N8N_URL",
    "N8N_WEBHOOK_SECRET",
    "DISCORD_WEBHOOK_URL",
    "HEARTBEAT_URL",
    "DOCS_URL",
    "ALLOWED_HOSTS",
    "CODE_SERVER",
    "DAGSTER_OVERRIDES",
    "WEBSERVER_URL",
)
PRICES = ["open", "high", "low", "close", "volume"]
COVERED = """
INSERT INTO trading_pipelines.candle_coverage
    (symbol, interval, day, status, fetched_until, confirmed_until, rows)
SELECT symbol, '1m', (timestamp AT TIME ZONE 'UTC')::date AS day, 'complete',
    (min(timestamp AT TIME ZONE 'UTC')::date + 1)::timestamp AT TIME ZONE 'UTC',
    (min(timestamp AT TIME ZONE 'UTC')::date + 1)::timestamp AT TIME ZONE 'UTC', count(*)
FROM market_data GROUP BY symbol, 3
"""

# Begun first, the longest before the others: what is begun last leaves a core idle at the end.
LONGEST = (
    "test_called_off.py",
    "test_two_books.py",
    "test_hung_runs.py",
    "test_one_off.py",
    "test_up.py",
    "test_fresh_homes.py",
    "test_backup.py",
    "test_download.py",
    "test_embedded.py",
    "test_request_guard.py",
    "test_signals.py",
    "test_schedules.py",
    "test_outcomes.py",
    "test_engine.py",
    "test_dagster_instance.py",
    "test_upgrade.py",
)

# No test is one of speed: on a busy machine Hypothesis's 200 ms an example failed two of them.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

_numbers = itertools.count()
_copies: list[tuple[EmbeddedServer, str]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """A variable of the developer's shell must not lead a test to a real database."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*VARIABLES, *FOREIGN):
            patch.delenv(name, raising=False)
        patch.setenv("PATH", f"{Path(shutil.which('python') or '').parent}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A home with a running embedded server; short and open to `nobody`, unlike tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="tp"))
    path.chmod(0o755)
    yield path
    EmbeddedServer(path).stop()
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def server(home: Path) -> EmbeddedServer:
    """The embedded server of the session."""
    server = EmbeddedServer(home)
    server.start()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        # What it holds need not outlive the session: nothing waits for the disk.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return server


@pytest.fixture(scope="session")
def template(server: EmbeddedServer) -> str:
    """The name of a migrated, empty database."""
    upgrade_database(new_database(server, "template_market"))
    return "template_market"


def copied(server: EmbeddedServer, template: str) -> str:
    """Return the URL of a fresh copy of a database, which is dropped when its test has ended."""
    name = f"{template}_{next(_numbers)}"
    url = new_database(server, name, template)
    _copies.append((server, name))
    return url


@pytest.fixture(autouse=True)
def _dropped_copies() -> Iterator[None]:
    """Drop what the test copied: kept to the session's end, they once filled a disk (30 GB)."""
    kept = len(_copies)
    yield
    while len(_copies) > kept:
        server, name = _copies.pop()
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def empty_url(server: EmbeddedServer) -> str:
    """The URL of a database in which nothing has been made."""
    return copied(server, "template1")


@pytest.fixture
def market_url(server: EmbeddedServer, template: str) -> str:
    """The URL of a fresh, migrated market database."""
    return copied(server, template)


@pytest.fixture
def connection(market_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a fresh market database."""
    with connect(market_url) as connection:
        yield connection


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three weeks of one-minute candles of five symbols: recorded, or generated in their shape."""
    if MINUTES.exists():
        return MINUTES
    path = tmp_path_factory.mktemp("recordings") / f"generated_{MINUTES.name}"
    generated(FIRST_DAY, LAST_DAY).to_parquet(path)
    return path


def generated(first: date, last: date) -> pd.DataFrame:
    """Made-up minutes of the five symbols on these UTC days, in the columns of the recordings."""
    market = GeneratedMarket(SYMBOLS, SEED)
    start, end = ((day - date(1970, 1, 1)).days * 1440 for day in (first, last + timedelta(days=1)))
    held = {
        symbol: pd.DataFrame(market.candles(symbol, start, end)._asdict()) for symbol in SYMBOLS
    }
    rows = pd.concat(held, names=["symbol"]).reset_index("symbol")
    times = (rows.pop("minute") * 60_000).astype("datetime64[ms]").dt.tz_localize("UTC")
    return rows.assign(timestamp_utc=times)[["symbol", "timestamp_utc", *PRICES]]


@pytest.fixture(scope="session")
def recorded(recording: Path) -> pd.DataFrame:
    """The recording as rows, sorted by symbol and time."""
    return pd.read_parquet(recording).sort_values(["symbol", "timestamp_utc"], ignore_index=True)


@pytest.fixture(scope="session")
def recorded_market(recording: Path) -> Recording:
    """The recording as a market to replay; read once."""
    return Recording.load(recording)


def days_of(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def store_minutes(connection: psycopg.Connection, minutes: pd.DataFrame) -> None:
    """Store minutes as a download of their whole days would have, and their hours."""
    copy_minutes(connection, minutes)
    connection.execute(COVERED)
    symbols = list(dict.fromkeys(minutes.symbol))
    first, last = minutes.timestamp_utc.min().date(), minutes.timestamp_utc.max().date()
    resample(connection, symbols, days_of(first, last), "run")


@pytest.fixture(scope="session")
def recorded_template(server: EmbeddedServer, template: str, recorded: pd.DataFrame) -> str:
    """The name of a database that holds the recording, its coverage and its hours."""
    with connect(new_database(server, "template_recorded", template)) as connection:
        store_minutes(connection, recorded)
    return "template_recorded"


@pytest.fixture
def recorded_url(server: EmbeddedServer, recorded_template: str) -> str:
    """The URL of a fresh database that holds the recording."""
    return copied(server, recorded_template)


@pytest.fixture(scope="session")
def computed_template(server: EmbeddedServer, recorded_template: str) -> str:
    """The name of a database that holds the recording and every signal of it."""
    with connect(new_database(server, "template_computed", recorded_template)) as connection:
        for signal in SIGNALS:
            compute(connection, signal, SYMBOLS, RECORDED_DAYS, STRATEGY, "run")
    return "template_computed"


def environment(home: Path) -> Environment:
    """An environment as a process in `home` would read it."""
    return Environment(trading_pipelines_home=home)


def new_database(server: EmbeddedServer, name: str, template: str = "template1") -> str:
    """Create a database, empty or as a copy of another; return its URL."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.url(name)


def copy_minutes(connection: psycopg.Connection, minutes: pd.DataFrame) -> None:
    """Store minutes as the bot does: without coverage and hours."""
    with connection.cursor().copy(
        "COPY market_data (symbol, interval, timestamp, open_price, high_price, low_price, "
        "close_price, volume) FROM STDIN"
    ) as copy:
        for row in minutes[["symbol", "timestamp_utc", *PRICES]].to_dict("split")["data"]:
            copy.write_row([row[0], "1m", *row[1:]])


def candle(connection: psycopg.Connection, symbol: str, at: datetime, interval: str = "1m") -> None:
    """Store a candle of the price 1, at any moment."""
    connection.execute(
        "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, low_price, "
        "close_price, volume) VALUES (%s, %s, %s, 1, 1, 1, 1, 1)",
        [symbol, interval, at],
    )
