"""Downloading days of candles: what to ask, in which windows, committed page by page.

A killed download continues where it was; a failed day leaves its neighbours alone. How a page is
asked for and believed belongs in `exchange`, when a day is due in `due`.
"""

import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol

import psycopg

from trading_pipelines.candles import coverage as candle_coverage
from trading_pipelines.candles import store
from trading_pipelines.candles.coverage import FailureKind, FetchedInterval
from trading_pipelines.candles.exchange import RequestStats
from trading_pipelines.candles.page import (
    PAGE_SIZE,
    ExchangeError,
    InvalidAnswerError,
    Page,
    UnknownMarketError,
)
from trading_pipelines.candles.rate_limit import BlockedError
from trading_pipelines.candles.windows import Interval, day_interval, first_window, merge
from trading_pipelines.settings.strategy import HealingSettings

# When two days in a row fail, the symbol or the exchange is at fault and not the days: the rest is
# left to the next run, so that an outage does not cost an attempt for every day.
FAILED_DAYS_IN_A_ROW = 2


class PageSource(Protocol):
    """What a download needs of an exchange; see `exchange.Exchange`."""

    stats: RequestStats

    def page(self, symbol: str, window: Interval) -> Page:
        """Return the candles of the window that have closed."""

    def closed_until(self) -> datetime:
        """Return the start of the first minute that may still change (UTC)."""


@dataclass(frozen=True)
class FailedDay:
    """A day that could not be had whole, and why."""

    symbol: str
    day: date
    error: str


def pages(
    exchange: PageSource, symbol: str, interval: Interval, size: int = PAGE_SIZE
) -> Iterator[tuple[Interval, Page]]:
    """Yield the interval's pages in order, each with the part it covers, without gap or overlap.

    Ends early where the exchange's clock says that the minutes have not closed yet.
    """
    at = interval.start
    while at < interval.end:
        window = first_window(Interval(at, interval.end), size)
        page = exchange.page(symbol, window)
        covered_until = min(window.end, page.closed_until)
        if covered_until <= at:
            return
        yield Interval(at, covered_until), page
        at = covered_until


def download(
    connection: psycopg.Connection,
    exchange: PageSource,
    symbols: Sequence[str],
    days: Sequence[date],
    run_id: str,
    healing: HealingSettings,
) -> list[FailedDay]:
    """Bring the UTC days of the symbols up to date in `market_data` and `candle_coverage`.

    Returns the days that failed or were not reached; everything else is stored and committed. A
    symbol that fails leaves the others alone, but a block by the exchange ends the whole download.
    `connection` is autocommit; `run_id` is the root run's, see `coverage.interval_to_fetch`.
    """
    failed: list[FailedDay] = []
    blocked: BlockedError | None = None
    for symbol in symbols:
        if blocked is None:
            try:
                failed += _download_symbol(connection, exchange, symbol, days, run_id, healing)
                continue
            except BlockedError as error:
                blocked = error
        failed += [
            FailedDay(symbol, coverage.day, str(blocked))
            for coverage in candle_coverage.read(connection, [symbol], days)
            if not coverage.complete or coverage.run_id != run_id
        ]
    return failed


def _download_symbol(
    connection: psycopg.Connection,
    exchange: PageSource,
    symbol: str,
    days: Sequence[date],
    run_id: str,
    healing: HealingSettings,
) -> list[FailedDay]:
    closed_until = exchange.closed_until()
    failed: list[FailedDay] = []
    in_a_row = 0
    for interval in merge(
        candle_coverage.interval_to_fetch(coverage, closed_until, run_id)
        for coverage in candle_coverage.read(connection, [symbol], days)
    ):
        at, end = interval.start, interval.end
        while at < interval.end:
            try:
                for covered in _store_pages(
                    connection, exchange, symbol, Interval(at, end), run_id
                ):
                    at, in_a_row = covered.end, 0
                if at < end:
                    break  # the rest has not closed yet
                end = interval.end
            except ExchangeError as error:
                midnight = day_interval(at.date()).end
                if first_window(Interval(at, end), PAGE_SIZE).end > midnight:
                    end = midnight  # the next day may be at fault, so ask without it
                    continue
                kind = _failure_kind(error)
                is_unknown_market = kind is FailureKind.MARKET
                remaining = [day for day in days if day >= at.date()]
                for day in remaining if is_unknown_market else remaining[:1]:
                    candle_coverage.record_failure(
                        connection, symbol, day, str(error), run_id, kind, healing
                    )
                failed.append(FailedDay(symbol, remaining[0], str(error)))
                in_a_row += 1
                if is_unknown_market or in_a_row == FAILED_DAYS_IN_A_ROW:
                    return failed + [
                        FailedDay(symbol, day, f"not asked for after: {error}")
                        for day in remaining[1:]
                    ]
                at, end = midnight, interval.end
    return failed


def _failure_kind(error: ExchangeError) -> FailureKind:
    if isinstance(error, UnknownMarketError):
        return FailureKind.MARKET
    return FailureKind.ANSWER if isinstance(error, InvalidAnswerError) else FailureKind.AWAY


def _store_pages(
    connection: psycopg.Connection,
    exchange: PageSource,
    symbol: str,
    interval: Interval,
    run_id: str,
) -> Iterator[Interval]:
    before, since = copy(exchange.stats), time.monotonic()
    for covered, page in pages(exchange, symbol, interval):
        spent, seconds = exchange.stats.since(before), time.monotonic() - since
        with connection.transaction():
            # One writer a symbol: a backfill and the schedule may meet on the same day.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"1m {symbol}"])
            for day in covered.days():
                part = covered.clip(day_interval(day))
                written = store.write_candles(
                    connection,
                    symbol,
                    [c for c in page.candles if part.start <= c.start < part.end],
                )
                candle_coverage.record(
                    connection,
                    FetchedInterval(
                        symbol=symbol,
                        interval=part,
                        day_closed=day_interval(day).end <= page.closed_until,
                        inserted=written.inserted,
                        repaired=written.repaired,
                        requests=spent.requests,
                        retries=spent.retries,
                        seconds=seconds,
                        source=page.source,
                        run_id=run_id,
                    ),
                )
                # A page over midnight is the first day's cost.
                spent, seconds = RequestStats(), 0.0
        before, since = copy(exchange.stats), time.monotonic()
        yield covered
