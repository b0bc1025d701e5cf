"""REST beside the stream: it confirms, repairs and fills holes, in a thread of its own.

The open day is asked for by `candles/download` as every refresh does: every few minutes, at once
when an hour has closed or the stream has come back, and each minute while there is no stream. What
the stream shows belongs in `edge`.
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import psycopg

from trading_pipelines.candles import coverage
from trading_pipelines.candles.download import download
from trading_pipelines.candles.exchange import CLOSE_MARGIN, Exchange
from trading_pipelines.candles.page import PAGE_SIZE, ExchangeError
from trading_pipelines.candles.rate_limit import BlockedError, RequestSlots, blocked_until
from trading_pipelines.candles.resample import resample
from trading_pipelines.candles.store import NotStoredError
from trading_pipelines.candles.windows import (
    DAY,
    HOUR,
    MINUTE,
    Interval,
    day_interval,
    floor_minute,
)
from trading_pipelines.database.connection import connect
from trading_pipelines.live.clock import ExchangeClock
from trading_pipelines.live.minutes import RUN_ID, store_shown
from trading_pipelines.settings.strategy import StrategySettings

LOOK_SECONDS = 0.2
# After a pass, whatever came of it; a database or an exchange that fails is left alone for longer.
PAUSE_SECONDS = 1.0
FAILED_SECONDS = 5.0
# The exchange's Dates, by which REST sees a minute as closed, have whole seconds.
DATE_MARGIN = timedelta(seconds=1)
# What a clock of ours may be set by while a pass lasts before its Date is not believed.
STEP_SECONDS = 0.1


class Confirmer:
    """Asks REST until it is stopped; `is_connected` is set by whoever reads the stream."""

    def __init__(
        self,
        url: str,
        base_url: str,
        settings: StrategySettings,
        clock: ExchangeClock,
        say: Callable[[str], None],
    ) -> None:
        self.is_connected = False
        self._url = url
        self._base_url = base_url
        self._settings = settings
        self._clock = clock
        self._say = say
        self._stopped = threading.Event()
        self._reached = self._hole_until = datetime.min.replace(tzinfo=UTC)
        self._thread = threading.Thread(target=self._run, name="confirm", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the page at hand."""
        self._stopped.set()

    def note_connected(self) -> None:
        """Ask for the hole before the connection that stands now."""
        self.is_connected = True
        if now := self._clock.now():
            self._hole_until = floor_minute(now)

    def _run(self) -> None:
        last_problem = ""
        while not self._stopped.is_set():
            try:
                with connect(self._url) as connection, connect(self._url) as line:
                    rate = self._settings.exchange.requests_per_second
                    slots = RequestSlots(line, self._base_url, rate)
                    exchange = Exchange(
                        self._base_url, slots, self._settings.exchange, say=self._say
                    )
                    while not self._stopped.wait(LOOK_SECONDS):
                        if self._is_due():
                            self._ask(connection, exchange)
                            last_problem = ""
                            self._stopped.wait(PAUSE_SECONDS)
            # Whatever fails, it is tried again: a thread that has ended confirms nothing any more.
            except Exception as error:  # noqa: BLE001
                problem = f"nothing is confirmed: {' '.join(str(error).split())}"
                if problem != last_problem:
                    self._say(problem)
                last_problem = problem
                self._stopped.wait(FAILED_SECONDS)

    def _is_due(self) -> bool:
        now = self._clock.now()
        return now is None or now - CLOSE_MARGIN - DATE_MARGIN >= next_look(
            self._reached,
            self._hole_until,
            MINUTE * (self._settings.live.confirm_minutes if self.is_connected else 1),
        )

    def _ask(self, connection: psycopg.Connection, exchange: Exchange) -> None:
        """Ask for the open day of every symbol, and compute its hours."""
        # Where the stream has come back, whatever REST has failed by is likely to be over.
        is_back = self.is_connected and self._hole_until > self._reached
        was_known, stepped = exchange.ahead is not None, _wall_less_ticks()
        closed = exchange.closed_until()
        day = (closed - MINUTE).date()
        symbols = [
            partition.symbol
            for partition in coverage.read(connection, self._settings.symbols, [day])
            if not partition.complete
            and (is_back or not (partition.retry_at and partition.retry_at > datetime.now(UTC)))
        ]
        if symbols and not blocked_until(connection):
            self._bring_newest(connection, exchange, symbols, closed)
            run_id = f"{RUN_ID}-{uuid.uuid4()}"
            healing = self._settings.healing
            # Whatever fails is on record, and due for the schedule.
            download(
                connection,
                exchange,
                symbols,
                [day],
                run_id,
                healing,
                between_pages=self._end_where_stopped,
            )
            resample(connection, symbols, [day], run_id)
        # A clock that was not known may have been behind: then it is asked again.
        if was_known or not symbols:
            self._reached = max(self._reached, closed)
        if abs(_wall_less_ticks() - stepped) < STEP_SECONDS:
            self._note_clock(exchange)

    def _end_where_stopped(self) -> None:
        if self._stopped.is_set():
            raise InterruptedError("stopped")

    def _bring_newest(
        self,
        connection: psycopg.Connection,
        exchange: Exchange,
        symbols: Sequence[str],
        closed: datetime,
    ) -> None:
        """Of every symbol with a hole of more than a page store the newest page first."""
        day = (closed - MINUTE).date()
        newest = closed - MINUTE * PAGE_SIZE
        for symbol in symbols:
            start = max(newest, day_interval(day).start)
            if coverage.fetched_until(connection, symbol, day) >= start:
                continue
            try:
                page = exchange.page(symbol, Interval(start, closed))
                store_shown(connection, symbol, page.candles, kind="asked")
            except (BlockedError, ExchangeError, NotStoredError):
                return  # said and recorded by the download that follows

    def _note_clock(self, exchange: Exchange) -> None:
        if exchange.ahead is not None:
            self._clock.note_date(datetime.now(UTC) + exchange.ahead, DATE_MARGIN.total_seconds())
        elif self._clock.now() is None:
            # A Date that can't be believed: our own, with a margin, as requests take it.
            own = datetime.now(UTC) - CLOSE_MARGIN
            self._clock.note_date(own, 2 * CLOSE_MARGIN.total_seconds())


def next_look(reached: datetime, hole_until: datetime, step: timedelta) -> datetime:
    """Return until when REST is to be asked next (UTC).

    `reached`: until when it was asked. That is the next multiple of `step` in the UTC day, the next
    hour's end, or `hole_until` where it was not asked until then.
    """
    if hole_until > reached:
        return hole_until
    midnight = day_interval(reached.date()).start
    steps = midnight + ((reached - midnight) // step + 1) * step
    hours = midnight + ((reached - midnight) // HOUR + 1) * HOUR
    return min(steps, hours, midnight + DAY)


def _wall_less_ticks() -> float:
    return time.time() - time.monotonic()
