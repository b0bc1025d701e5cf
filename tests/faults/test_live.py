"""The reader of the exchange's stream, through every fault of the stream and forty kills.

The replay's clock runs twenty times as fast, and the reader's with it.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from tests.candles.conftest import (
    RecordedRows,
    _recorded_rows,
    differences,
    recorded_rows,
    stored_rows,
)
from tests.conftest import SYMBOLS
from trading_pipelines.candles import coverage
from trading_pipelines.candles.windows import MINUTE
from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

__all__ = ["_recorded_rows", "recorded_rows"]

pytestmark = pytest.mark.timeout(900)

SPEED = 20
DAY = date(2025, 9, 3)
BEGIN = datetime(2025, 9, 3, 9, 30, tzinfo=UTC)
FAULTY, KILLS = timedelta(minutes=75), 40
READER = f"""
import time
from trading_pipelines.live import clock, reader
from trading_pipelines.live.clock import ExchangeClock
from trading_pipelines.runtime.live import main
# A Date of REST's is counted on by a clock of ours, which is slow here.
clock.DATE_SECONDS = 40.0
reader.ExchangeClock = lambda: ExchangeClock(lambda: time.monotonic() * {SPEED})
main("up")
"""
SETTINGS = """
data: {start_date: 2025-09-03}
live: {grace_seconds: 5, silence_seconds: 5}
"""
FAULTS = (
    Fault("stream_cut", every=60),
    Fault("stream_silent", every=700),
    Fault("stream_dead", every=900),
    Fault("stream_double", every=7),
    Fault("stream_old", every=31),
    Fault("stream_other_market", every=41),
    Fault("stream_garbage", every=37),
    Fault("stream_error", every=800),
    Fault("stream_refused_503", every=5),
    Fault("stream_late", every=9, seconds=20),
    Fault("stream_forming_wrong", every=11),
    Fault("stream_missing", every=13),
)
NEWEST = """
SELECT timestamp FROM market_data WHERE symbol = %s ORDER BY timestamp DESC LIMIT 3
"""


@contextmanager
def bot_beside(url: str, exchange: ReplayExchange) -> Iterator[list[datetime]]:
    """Yield the forming minutes that the bot's own query has ever seen."""
    forming: list[datetime] = []
    stop = threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True) as bot:
            while not stop.wait(0.02):
                for symbol in SYMBOLS:
                    starts = [start for (start,) in bot.execute(NEWEST, [symbol])]
                    now = datetime.fromtimestamp(exchange.now(), UTC)
                    forming.extend(start for start in starts if start + MINUTE > now)

    thread = threading.Thread(target=look)
    thread.start()
    yield forming
    stop.set()
    thread.join()


def test_after_confirmation_nothing_is_missing_and_nothing_differs(
    recorded_market: Recording,
    recorded_rows: RecordedRows,
    connection: psycopg.Connection,
    market_url: str,
    tmp_path: Path,
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text(SETTINGS)
    chance = random.Random(7)
    with ReplayExchange(
        recorded_market, rate=None, clock=BEGIN, speed=SPEED, faults=FAULTS
    ) as exchange:
        environment = os.environ | {
            "DATABASE_URL": market_url,
            "DAGSTER_POSTGRES_URL": market_url,
            "UPBIT_BASE_URL": exchange.url,
            "TRADING_PIPELINES_HOME": str(tmp_path),
            "TRADING_PIPELINES_CONFIG": str(config),
        }

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-c", READER], env=environment)

        def now() -> datetime:
            return datetime.fromtimestamp(exchange.now(), UTC)

        reader = start()
        with bot_beside(market_url, exchange) as forming:
            for kill in itertools.count():
                time.sleep(chance.uniform(0.5, 2 * FAULTY.total_seconds() / SPEED / KILLS))
                if now() > BEGIN + FAULTY:
                    break
                if kill % 2:
                    # Its sessions are ended, as when the server is started again.
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                        "AND query NOT LIKE '%ORDER BY timestamp DESC%'"
                    )
                else:
                    reader.send_signal(signal.SIGKILL)
                    reader.wait()
                    reader = start()
                assert {day.complete for day in coverage.read(connection, SYMBOLS, [DAY])} == {
                    False
                }
            struck = exchange.stats().faults
            exchange.set_faults([])
            # The next hour's end is confirmed as each is.
            end = (BEGIN + FAULTY + timedelta(hours=1)).replace(minute=0)

            def is_confirmed() -> bool:
                days = coverage.read(connection, SYMBOLS, [DAY])
                return all(day.fetched_until >= end for day in days)

            while not is_confirmed():
                assert now() < end + timedelta(minutes=20), "not confirmed"
                time.sleep(0.5)
        with suppress(ProcessLookupError):
            reader.kill()
            reader.wait()
    assert forming == []
    assert struck.keys() == {fault.kind for fault in FAULTS}
    assert struck["stream_cut"] > 20
    days = coverage.read(connection, SYMBOLS, [DAY])
    assert sum(day.streamed for day in days) > 100, "the stream brought minutes"
    assert sum(day.corrected for day in days) > 10, "and requests corrected some"
    rows = {key: values for key, values in recorded_rows(SYMBOLS, [DAY]).items() if key[1] < end}
    stored = {key: values for key, values in stored_rows(connection).items() if key[1] < end}
    assert differences(stored, rows) == []
