"""Shared fixtures: a real embedded Postgres, a database a test, the recorded candles."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from trading_pipelines import database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.replay import Recording
from trading_pipelines.settings import Environment

RECORDINGS = Path(__file__).parents[2] / "shared" / "data"
MINUTES = RECORDINGS / "upbit_krw5_1m_20250901_20250921.parquet"
SYMBOLS = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"]
FIRST_DAY, LAST_DAY = date(2025, 9, 1), date(2025, 9, 21)
RECORDED_DAYS = [FIRST_DAY + timedelta(days=n) for n in range(21)]

_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """A variable of the developer's shell must not lead a test to a real database."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*database.VARIABLES, "UPBIT_BASE_URL", "DAGSTER_HOME"):
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
    return server


@pytest.fixture(scope="session")
def template(server: EmbeddedServer) -> str:
    """The name of a migrated, empty database."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_market")
    database.upgrade(server.url("template_market"))
    return "template_market"


@pytest.fixture
def market_url(server: EmbeddedServer, template: str) -> str:
    """The URL of a fresh, migrated market database."""
    name = f"market_{next(_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.url(name)


@pytest.fixture
def connection(market_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a fresh market database."""
    with database.connect(market_url) as connection:
        yield connection


@pytest.fixture(scope="session")
def recording() -> Path:
    """The recorded three weeks of one-minute candles; skips where shared/data is not there."""
    if not MINUTES.exists():
        pytest.skip(f"{MINUTES.name} is not beside the clone (shared/data)")
    return MINUTES


@pytest.fixture(scope="session")
def recorded(recording: Path) -> pd.DataFrame:
    """The recording as rows, sorted by symbol and time."""
    return pd.read_parquet(recording).sort_values(["symbol", "timestamp_utc"], ignore_index=True)


@pytest.fixture(scope="session")
def recorded_market(recording: Path) -> Recording:
    """The recording as a market to replay; read once."""
    return Recording.load(recording)


def environment(home: Path) -> Environment:
    """An environment as a process in `home` would read it."""
    return Environment(trading_pipelines_home=home)
