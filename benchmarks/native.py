"""Whole native backfills on the real daemon, at several latencies: how full the line is.

`backfill --latencies` prints it, beside freqtrade at the same latencies.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import NamedTuple

from benchmarks.cuts import FIRST, SYMBOLS, await_that, installed
from benchmarks.runs import TimedExchange
from trading_pipelines.candles import coverage
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database.connection import connect
from trading_pipelines.runtime.backfill import BackfillTarget, launch
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.simulators.upbit.market import GeneratedMarket

STUCK_SECONDS = 600.0


class Line(NamedTuple):
    """What the exchange was asked by one backfill; times in seconds."""

    symbols: int
    days: int
    latency: float
    requests: int
    seconds: float
    """From the first request to the last."""
    longest_gap: float
    refused: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return (self.requests - 1) / self.seconds


def lines(
    latencies: Sequence[float], rate: float, spans: Sequence[tuple[int, int]]
) -> Iterator[Line]:
    """Yield a line for each latency and (symbols, days), each of days that nobody has asked for."""
    with ExitStack() as stack:
        exchange = stack.enter_context(TimedExchange(GeneratedMarket(SYMBOLS), rate=rate))
        first = FIRST - DAY * sum(days for _, days in spans) * len(latencies)
        data = DataSettings(start_date=first, refresh=False)
        settings = StrategySettings(symbols=list(SYMBOLS), data=data)
        installation = stack.enter_context(installed(exchange.url, settings))
        connection = stack.enter_context(connect(installation.urls.market))
        for latency in latencies:
            for symbols, days in spans:
                exchange.latency = latency
                target = BackfillTarget(SYMBOLS[:symbols], first, first + DAY * (days - 1))
                first += DAY * days
                exchange.asked_at.clear()
                refused = exchange.stats().refused
                launch(installation.url, target)

                def is_whole(target: BackfillTarget = target) -> bool:
                    time.sleep(1.0)  # watching must not be the load
                    stored = coverage.read(connection, target.symbols, target.days)
                    return all(day.complete for day in stored)

                await_that(is_whole, STUCK_SECONDS)
                at = exchange.asked_at
                gap = max(after - before for before, after in pairwise(at))
                more = exchange.stats().refused - refused
                yield Line(symbols, days, latency, len(at), at[-1] - at[0], gap, more)
