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

from trading_pipelines.candles import coverage, store
from trading_pipelines.candles.coverage import FailureKind
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

# Two days of a symbol that fail in a row are its trouble, or the exchange's, and not the days':
# the rest is left to the next run, so that an outage does not cost a try for every day.
FAILED_DAYS_IN_A_ROW = 2


class PageSource(Protocol):
    """What a download needs of an exchange; see `exchange.Exchange`."""

    effort: RequestStats

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
    exchange: PageSource, symbol: str, piece: Interval, size: int = PAGE_SIZE
) -> Iterator[tuple[Interval, Page]]:
    """Yield the pages of `piece` in order, each with the stretch it covers, without gap or overlap.

    Ends early where the exchange's clock says that the minutes have not closed yet.
    """
    at = piece.start
    while at < piece.end:
        window = first_window(Interval(at, piece.end), size)
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
    symbol's trouble is its own, but a block by the exchange ends the whole download. `connection`
    is autocommit; `run_id` is the root run's, see `coverage.to_ask`.
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
            FailedDay(symbol, known.day, str(blocked))
            for known in coverage.read(connection, [symbol], days)
            if not known.complete or known.run_id != run_id
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
    for piece in merge(
        coverage.interval_to_fetch(known, closed_until, run_id)
        for known in coverage.read(connection, [symbol], days)
    ):
        at, end = piece.start, piece.end
        while at < piece.end:
            try:
                for covered in _store_pages(
                    connection, exchange, symbol, Interval(at, end), run_id
                ):
                    at, in_a_row = covered.end, 0
                if at < end:
                    break  # the rest has not closed yet
                end = piece.end
            except ExchangeError as error:
                midnight = day_interval(at.date()).end
                if first_window(Interval(at, end), PAGE_SIZE).end > midnight:
                    end = midnight  # the trouble may be that of the next day, so ask without it
                    continue
                trouble = _trouble(error)
                unknown = trouble is FailureKind.MARKET
                left = [day for day in days if day >= at.date()]
                for day in left if unknown else left[:1]:
                    coverage.record_failure(
                        connection, symbol, day, str(error), run_id, trouble, healing
                    )
                failed.append(FailedDay(symbol, left[0], str(error)))
                in_a_row += 1
                if unknown or in_a_row == FAILED_DAYS_IN_A_ROW:
                    return failed + [
                        FailedDay(symbol, day, f"not asked for after: {error}") for day in left[1:]
                    ]
                at, end = midnight, piece.end
    return failed


def _trouble(error: ExchangeError) -> FailureKind:
    if isinstance(error, UnknownMarketError):
        return FailureKind.MARKET
    return FailureKind.ANSWER if isinstance(error, InvalidAnswerError) else FailureKind.AWAY


def _store_pages(
    connection: psycopg.Connection,
    exchange: PageSource,
    symbol: str,
    piece: Interval,
    run_id: str,
) -> Iterator[Interval]:
    before, since = copy(exchange.effort), time.monotonic()
    for stretch, page in pages(exchange, symbol, piece):
        spent, seconds = exchange.effort.since(before), time.monotonic() - since
        with connection.transaction():
            # One writer a symbol: a backfill and the schedule may meet on the same day.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"1m {symbol}"])
            for day in stretch.days():
                part = stretch.clip(day_interval(day))
                written = store.write_candles(
                    connection,
                    symbol,
                    [c for c in page.candles if part.start <= c.start < part.end],
                )
                coverage.record(
                    connection,
                    coverage.FetchedInterval(
                        symbol=symbol,
                        interval=part,
                        day_closed=day_interval(day).end <= page.closed_until,
                        inserted=written.inserted,
                        repaired=written.repaired,
                        requests=spent.requests,
                        waits=spent.waits,
                        seconds=seconds,
                        source=page.source,
                        run_id=run_id,
                    ),
                )
                # A page over midnight is the first day's cost.
                spent, seconds = RequestStats(), 0.0
        before, since = copy(exchange.effort), time.monotonic()
        yield stretch
