"""The real replay exchange beside a fresh market database, and the recording as exact rows."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pandas as pd
import psycopg
import pytest

from tests.conftest import new_database
from trading_pipelines.candles import coverage
from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.download import FailedDay, PageSource, download
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import ExchangeSettings, HealingSettings
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

FAST = ExchangeSettings(
    requests_per_second=500.0,
    timeout_seconds=5.0,
    attempts=6,
    backoff_seconds=0.001,
    max_backoff_seconds=0.01,
)

HEALING = HealingSettings()

Key = tuple[str, datetime]
Values = tuple[Decimal, ...]
Rows = dict[Key, Values]
"""Open, high, low, close and volume by symbol and start, to the digit."""


@dataclass
class Bench:
    """A market database and the exchange that it is filled from."""

    connection: psycopg.Connection
    replay: ReplayExchange

    def client(
        self,
        *,
        shift: timedelta = timedelta(0),
        say: Callable[[str], None] = lambda _: None,
        **changes: float,
    ) -> Exchange:
        """Return a client whose clock is the exchange's, shifted."""
        settings = FAST.model_copy(update=changes)
        line = psycopg.connect(self.connection.info.dsn, autocommit=True)
        slots = RequestSlots(line, self.replay.url, settings.requests_per_second)
        now = lambda: self.now() + shift  # noqa: E731
        exchange = Exchange(self.replay.url, slots, settings, now=now, say=say)
        weakref.finalize(exchange, line.close)
        return exchange

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.replay.now(), UTC)

    def download(
        self,
        symbols: Sequence[str],
        days: Sequence[date],
        run_id: str = "run",
        exchange: PageSource | None = None,
        due_at: datetime | None = None,
        between_pages: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
        when_all_is_asked: Callable[[], None] = lambda: None,
    ) -> list[FailedDay]:
        source = exchange or self.client()
        return download(
            self.connection,
            source,
            symbols,
            days,
            run_id,
            HEALING,
            due_at,
            between_pages,
            say,
            when_all_is_asked=when_all_is_asked,
        )

    def coverage(self, symbols: Sequence[str], days: Sequence[date]) -> list[CandleCoverage]:
        return coverage.read(self.connection, symbols, days)

    def requests(self) -> int:
        return self.replay.stats().requests


@pytest.fixture(scope="session")
def _url(server: EmbeddedServer, template: str) -> str:
    return new_database(server, "candles", template)


@pytest.fixture
def market_url(_url: str) -> str:
    """The URL of a migrated market database, emptied; to make one takes longer than most tests."""
    with psycopg.connect(_url, autocommit=True) as connection:
        connection.execute(
            "TRUNCATE public.market_data, trading_pipelines.candle_coverage, "
            "trading_pipelines.candles_1h, trading_pipelines.request_slots, "
            "trading_pipelines.set_aside_rows, trading_pipelines.unconfirmed_candles, "
            "trading_pipelines.history_files"
        )
    return _url


@pytest.fixture
def bench(connection: psycopg.Connection, recorded_market: Recording) -> Iterator[Bench]:
    """The recording on a line without limit, at a time when all of it has closed."""
    with ReplayExchange(recorded_market, rate=None) as replay:
        yield Bench(connection, replay)


@pytest.fixture(scope="session")
def _recorded_rows(recorded: pd.DataFrame) -> dict[tuple[str, date], Rows]:
    by_day: dict[tuple[str, date], Rows] = {}
    times = recorded["timestamp_utc"].dt.to_pydatetime()
    numbers = (recorded[name].tolist() for name in ("open", "high", "low", "close", "volume"))
    for symbol, start, *values in zip(recorded["symbol"], times, *numbers, strict=True):
        # The shortest repr of a float is what the exchange wrote.
        row = tuple(Decimal(repr(value)) for value in values)
        by_day.setdefault((symbol, start.date()), {})[symbol, start.replace(tzinfo=UTC)] = row
    return by_day


RecordedRows = Callable[[Iterable[str], Iterable[date]], Rows]


@pytest.fixture
def recorded_rows(_recorded_rows: dict[tuple[str, date], Rows]) -> RecordedRows:
    """The recorded rows of symbols and UTC days."""

    def rows(symbols: Iterable[str], days: Iterable[date]) -> Rows:
        chosen: Rows = {}
        wanted = list(days)
        for symbol in symbols:
            for day in wanted:
                chosen |= _recorded_rows[symbol, day]
        return chosen

    return rows


def stored_rows(connection: psycopg.Connection) -> Rows:
    """Return every one-minute candle of the database."""
    cursor = connection.execute(
        "SELECT symbol, timestamp, open_price, high_price, low_price, close_price, volume "
        "FROM public.market_data WHERE interval = '1m'"
    )
    return {(symbol, start): tuple(values) for symbol, start, *values in cursor}


def versions(
    connection: psycopg.Connection, table: str = "public.market_data", where: str = "true"
) -> set[str]:
    """Return each row with its version: any write to a row, even of equal values, changes it."""
    query = f"SELECT (xmin, ctid, candle.*)::text FROM {table} AS candle WHERE {where}"
    return {row[0] for row in connection.execute(query)}


def differences(got: Rows, wanted: Rows) -> list[tuple[Key, Values | None, Values | None]]:
    """Return the first few rows in which the two differ, as (key, got, wanted)."""
    keys = sorted(key for key in got.keys() | wanted.keys() if got.get(key) != wanted.get(key))
    return [(key, got.get(key), wanted.get(key)) for key in keys[:5]]


def insert(connection: psycopg.Connection, rows: Rows, interval: str = "1m") -> None:
    """Insert rows as the bot does."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO public.market_data (symbol, interval, timestamp, open_price, high_price, "
            "low_price, close_price, volume) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [(symbol, interval, start, *values) for (symbol, start), values in rows.items()],
        )
