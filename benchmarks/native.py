"""Whole native backfills on the real daemon, at several latencies: how full the line is.

`backfill` prints it beside freqtrade's `download-data`; run `backfill`, not this.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psycopg

from benchmarks.cuts import FIRST, SYMBOLS, Installation
from trading_pipelines.candles import coverage
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database.connection import connect
from trading_pipelines.runtime.backfill import BackfillTarget, launch
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

LOOK_SECONDS = 0.02
STUCK_SECONDS = 600.0


class Line(NamedTuple):
    """What the exchange counted of one backfill; `seconds` from its first request to its last."""

    symbols: int
    days: int
    latency: float
    requests: int
    seconds: float
    idle: float
    """The longest time without a request, in seconds."""
    refused: int
    peak: int

    @property
    def rate(self) -> float:
        """Requests a second; between the first and the last lies one interval less."""
        return (self.requests - 1) / self.seconds


def lines(
    latencies: Sequence[float], rate: float, spans: Sequence[tuple[int, int]]
) -> Iterator[Line]:
    """Yield a line for each latency and (symbols, days), each of days that nobody has asked for."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="tp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # under root the server runs as `nobody`
        exchange = stack.enter_context(ReplayExchange(GeneratedMarket(SYMBOLS), rate=rate))
        asked = sum(days for _, days in spans) * len(latencies)
        data = DataSettings(start_date=FIRST - DAY * asked, refresh=False)
        installation = Installation(
            folder, exchange.url, StrategySettings(symbols=list(SYMBOLS), data=data)
        )
        stack.callback(installation.stop)
        stack.callback(installation.kill)
        installation.start()
        first = data.start_date
        with connect(installation.urls.market) as connection:
            for latency in latencies:
                for symbols, days in spans:
                    exchange.latency = latency
                    yield _line(installation, exchange, connection, first, symbols, days)
                    first += DAY * days


def _line(
    installation: Installation,
    exchange: ReplayExchange,
    connection: psycopg.Connection,
    first: date,
    symbols: int,
    days: int,
) -> Line:
    target = BackfillTarget(SYMBOLS[:symbols], first, first + DAY * (days - 1))
    before = exchange.stats()
    since = time.monotonic()
    launch(installation.url, target)
    moments: list[float] = []
    count, looked_at = before.requests, since
    while True:
        asked, now = exchange.stats().requests, time.monotonic()
        moments += [now] * (asked - count)
        count = asked
        if now - looked_at > 1:
            looked_at = now
            if all(day.complete for day in coverage.read(connection, target.symbols, target.days)):
                break
            if now - since > STUCK_SECONDS:
                raise TimeoutError
        time.sleep(LOOK_SECONDS)
    after = exchange.stats()
    gaps = [b - a for a, b in pairwise(moments)]
    return Line(
        symbols,
        days,
        exchange.latency,
        len(moments),
        moments[-1] - moments[0],
        max(gaps),
        after.refused - before.refused,
        after.peak,
    )
