"""Downloading days of candles: what to ask, in which windows, committed page by page.

A killed download continues where it was; a failed day leaves its neighbours alone. How a page is
asked for and believed belongs in `exchange`, when a day is due in `due`.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from itertools import tee
from typing import Protocol

import psycopg

from trading_pipelines.candles import coverage as candle_coverage
from trading_pipelines.candles import due, history_files, store
from trading_pipelines.candles.coverage import FailureKind, FetchedInterval
from trading_pipelines.candles.history_files import HistoryFiles
from trading_pipelines.candles.page import (
    PAGE_SIZE,
    ExchangeError,
    InvalidAnswerError,
    Page,
    RequestStats,
    UnknownMarketError,
)
from trading_pipelines.candles.rate_limit import BlockedError
from trading_pipelines.candles.store import NotStoredError
from trading_pipelines.candles.windows import (
    DAY,
    MINUTE,
    Interval,
    day_interval,
    merge,
    windows,
)
from trading_pipelines.settings.strategy import HealingSettings

# When the exchange is away for two days in a row, the rest is left to the next run, so that an
# outage does not cost an attempt for every day. A day that was answered, however badly, says
# nothing about the next.
FAILED_DAYS_IN_A_ROW = 2


class PageSource(Protocol):
    """What a download needs of an exchange; see `exchange.Exchange`."""

    def pages(self, symbol: str, windows: Iterable[Interval]) -> Generator[Page, None, None]:
        """Yield of each window, in order, the candles that have closed."""

    def first_day(self, symbol: str, until: datetime, spent: RequestStats) -> datetime:
        """Return the start of the first day with a candle of the 200 UTC days before `until`."""

    def closed_until(self) -> datetime:
        """Return the start of the first minute that may still change (UTC)."""


@dataclass(frozen=True)
class FailedDay:
    """A day that could not be had whole, and why."""

    symbol: str
    day: date
    error: str


def pages(
    exchange: PageSource,
    symbol: str,
    interval: Interval,
    size: int = PAGE_SIZE,
    held_from: datetime | None = None,
    at_the_last: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Interval, Page]]:
    """Yield the interval's pages in order, each with the part it covers, without gap or overlap.

    Days before a listing are of one page. A candle that is stored, the first at `held_from`, speaks
    against it. Ends early where the exchange's clock says that the minutes have not closed yet.
    `at_the_last` is called when the last window is asked for: answers are still to come then.
    """

    def windows_from(at: datetime) -> Iterator[Interval]:
        for window in windows(Interval(at, interval.end), size):
            if window.end == interval.end:
                at_the_last()
            yield window

    at, is_asked = interval.start, True
    while at < interval.end:
        to_ask, asked = tee(windows_from(at))
        with closing(exchange.pages(symbol, to_ask)) as answers:
            for window, page in zip(asked, answers, strict=False):
                covered_until = min(window.end, page.closed_until)
                if page.is_first and is_asked:
                    nearest = min(interval.end, page.closed_until, held_from or interval.end)
                    until = day_interval(min(nearest, at + DAY * PAGE_SIZE).date()).start
                    if until > covered_until:
                        # Whoever can't be asked for days is asked for their windows.
                        is_asked = False
                        with suppress(ExchangeError):
                            first = exchange.first_day(symbol, until, page.spent)
                            covered_until = max(covered_until, first)
                            is_asked = first == until
                if covered_until <= at:
                    return
                yield Interval(at, covered_until), page
                at = covered_until
                if at != window.end:
                    break


def download(
    connection: psycopg.Connection,
    exchange: PageSource,
    symbols: Sequence[str],
    days: Sequence[date],
    run_id: str,
    healing: HealingSettings,
    due_at: datetime | None = None,
    between_pages: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
    files: HistoryFiles | None = None,
    when_all_is_asked: Callable[[], None] = lambda: None,
) -> list[FailedDay]:
    """Bring the UTC days of the symbols up to date in `market_data` and `candle_coverage`.

    With `due_at` (UTC) nothing is asked for of days that are as they should be at that moment;
    without it a complete day is asked for again. `between_pages` may end the download by raising,
    `say` is told of each day that has been stored to its end. Returns the days that failed or were
    not reached; everything else is stored and committed. A symbol that fails leaves the others
    alone, but a block by the exchange ends the whole download. Closed days come from `files`, where
    those are given and can be used. `when_all_is_asked` is called, if at all, when the last window
    of the last symbol is asked for; what fails after that is asked for again all the same.
    `connection` is autocommit; `run_id` is the root run's, see `coverage.interval_to_fetch`.
    """
    failed: list[FailedDay] = []
    blocked: BlockedError | None = None
    for symbol in symbols:
        is_last = symbol == symbols[-1]
        if blocked is None:
            try:
                failed += _download_symbol(
                    connection,
                    exchange,
                    files,
                    symbol,
                    days,
                    run_id,
                    healing,
                    due_at,
                    between_pages,
                    say,
                    when_all_is_asked if is_last else lambda: None,
                )
                continue
            except BlockedError as error:
                blocked = error
        failed += [
            FailedDay(symbol, coverage.day, str(blocked))
            for coverage in candle_coverage.read(connection, [symbol], days)
            if not coverage.complete or (due_at is None and coverage.run_id != run_id)
        ]
    return failed


def _download_symbol(
    connection: psycopg.Connection,
    exchange: PageSource,
    files: HistoryFiles | None,
    symbol: str,
    days: Sequence[date],
    run_id: str,
    healing: HealingSettings,
    due_at: datetime | None,
    between_pages: Callable[[], None],
    say: Callable[[str], None],
    at_the_last: Callable[[], None],
) -> list[FailedDay]:
    closed_until = exchange.closed_until()
    overlap = timedelta(minutes=healing.overlap_minutes)
    asked = [
        coverage
        for coverage in candle_coverage.read(connection, [symbol], days)
        if due_at is None or due.lacks_minutes(coverage, due_at)
    ]
    days = [coverage.day for coverage in asked]
    intervals = [
        candle_coverage.interval_to_fetch(coverage, closed_until, run_id, overlap)
        for coverage in asked
    ]
    # Of the day before, only one that is complete is looked at again.
    before = {interval.start.date() for interval in intervals}.difference(days)
    complete = {
        day.day for day in candle_coverage.read(connection, [symbol], before) if day.complete
    }
    failed: list[FailedDay] = []
    away_in_a_row = 0
    stretches = merge(
        interval if interval.start.date() in complete else interval.clip(day_interval(coverage.day))
        for coverage, interval in zip(asked, intervals, strict=True)
    )
    for interval in stretches:
        at, end = interval.start, interval.end
        while at < interval.end:
            between_pages()
            try:
                for covered in _store_pages(
                    connection,
                    exchange,
                    files,
                    symbol,
                    Interval(at, end),
                    run_id,
                    complete,
                    overlap,
                    at_the_last if end == stretches[-1].end else lambda: None,
                ):
                    at, away_in_a_row = covered.end, 0
                    _tell_stored(connection, symbol, covered, complete, say)
                    between_pages()
                if at < end:
                    break  # the rest has not closed yet
                end = interval.end
            except (ExchangeError, NotStoredError) as error:
                midnight = day_interval(at.date()).end
                if at.date() in complete:
                    at = midnight  # the day that was not asked for has lost nothing
                    continue
                if next(windows(Interval(at, end), PAGE_SIZE)).end > midnight:
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
                away_in_a_row = away_in_a_row + 1 if kind is FailureKind.AWAY else 0
                if is_unknown_market or away_in_a_row == FAILED_DAYS_IN_A_ROW:
                    return failed + [
                        FailedDay(symbol, day, f"not asked for after: {error}")
                        for day in remaining[1:]
                    ]
                at, end = midnight, interval.end
    return failed


def _tell_stored(
    connection: psycopg.Connection,
    symbol: str,
    covered: Interval,
    complete: Collection[date],
    say: Callable[[str], None],
) -> None:
    """Say what is stored of each day that ends in `covered`, but for those not asked for."""
    ended = {day for day in covered.days() if day_interval(day).end <= covered.end}
    for day in candle_coverage.read(connection, [symbol], ended.difference(complete)):
        say(f"{symbol} {day.day}: {day.stored} minutes stored, {day.quiet} quiet")


def _failure_kind(error: ExchangeError | NotStoredError) -> FailureKind:
    if isinstance(error, UnknownMarketError):
        return FailureKind.MARKET
    was_answered = isinstance(error, InvalidAnswerError | NotStoredError)
    return FailureKind.ANSWER if was_answered else FailureKind.AWAY


def _store_pages(
    connection: psycopg.Connection,
    exchange: PageSource,
    files: HistoryFiles | None,
    symbol: str,
    interval: Interval,
    run_id: str,
    complete: Collection[date],
    overlap: timedelta,
    at_the_last: Callable[[], None],
) -> Iterator[Interval]:
    """Store the interval page by page; of the `complete` days, which are not asked for, amend."""
    since = time.monotonic()
    # The newest minute so far that the exchange has a row of.
    newest: datetime | None = None
    held_from = store.first_candle(connection, symbol)
    ask = partial(pages, exchange, symbol, held_from=held_from, at_the_last=at_the_last)
    for covered, page in history_files.pages(files, symbol, interval, exchange.closed_until, ask):
        spent, seconds = page.spent, time.monotonic() - since
        with connection.transaction():
            store.lock(connection, symbol)
            for day in covered.days():
                part = covered.clip(day_interval(day))
                candles = [c for c in page.candles if part.start <= c.start < part.end]
                odd_rows = [row for row in page.odd_rows if part.start <= row.start < part.end]
                store.set_aside(connection, symbol, part, odd_rows)
                written = store.write_candles(connection, symbol, candles)
                if day in complete:
                    if written.first is not None:
                        candle_coverage.amend(connection, symbol, day, written.repaired)
                    continue
                candle_coverage.record(
                    connection,
                    FetchedInterval(
                        symbol=symbol,
                        interval=part,
                        day_closed=day_interval(day).end <= page.closed_until,
                        inserted=written.inserted,
                        repaired=written.repaired,
                        corrected=written.of_stream,
                        changed_from=written.first,
                        requests=spent.requests,
                        retries=spent.retries,
                        seconds=seconds,
                        source=page.source,
                        run_id=run_id,
                    ),
                )
                # A page over midnight is the first day's cost.
                spent, seconds = RequestStats(), 0.0
            history_files.record(connection, symbol, page.files)
            rows = sorted([*(c.start for c in page.candles), *(row.start for row in page.odd_rows)])
            if rows:
                first = newest or page.row_before or rows[0]
                _give_up(connection, symbol, Interval(first, rows[-1]), rows, page, overlap)
                newest = rows[-1]
        since = time.monotonic()
        yield covered


def _give_up(
    connection: psycopg.Connection,
    symbol: str,
    between: Interval,
    rows: Sequence[datetime],
    page: Page,
    overlap: timedelta,
) -> None:
    """Move away what is stored in closed days between rows of the exchange's, where it has none.

    Only between two rows is a minute without one believed to have none: an answer that breaks off
    early, or of another moment, also lacks rows. The newest minutes may still come.
    """
    midnight = day_interval(page.closed_until.date()).start
    until = min(midnight, page.closed_until - overlap)
    # At both ends there is a row of the exchange's: what is in question lies between.
    inner = between.clip(Interval(between.start + MINUTE, until))
    confirmed = sum(inner.start <= candle.start < inner.end for candle in page.candles)
    moved = store.move_unconfirmed(connection, symbol, inner, rows, confirmed)
    for day, count in moved.items():
        candle_coverage.amend(connection, symbol, day, count)
