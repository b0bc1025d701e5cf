"""The reader's loop: connected, it writes each minute when it has closed; cut, it connects again.

What a message means belongs in `stream` and `edge`, what REST does beside it in `confirm`. Nothing
here ends by itself: whatever fails is tried again.
"""

import contextlib
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import NoReturn

import psycopg

from trading_pipelines.candles.exchange import FARTHEST_CLOCK
from trading_pipelines.candles.store import NotStoredError
from trading_pipelines.database.connection import SILENCE, DatabaseError, open_session
from trading_pipelines.database.url import PostgresUrl
from trading_pipelines.live.clock import ExchangeClock
from trading_pipelines.live.confirm import Confirmer
from trading_pipelines.live.edge import Closed, Edge, Verdict
from trading_pipelines.live.minutes import Heartbeat, store_shown
from trading_pipelines.live.stream import (
    BadMessageError,
    CandleStream,
    NoStreamError,
    NotThereError,
    opened,
)
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.errors import SettingsError
from trading_pipelines.settings.last_good import read_settings
from trading_pipelines.settings.strategy import StrategySettings

# How long a message is waited for before the clock is looked at.
LOOK_SECONDS = 0.1
HEARTBEAT_SECONDS = 5.0
# The settings file, and a database that is away.
SETTINGS_SECONDS = 30.0
DATABASE_SECONDS = 1.0
# Between connections: Upbit allows five a second.
LEAST_WAIT = 0.3
LONGEST_WAIT = 30.0
LONGEST_WAIT_WITHOUT_STREAM = 300.0
# A run that holds a symbol's lock for longer does not stop the others.
SESSION = {"lock_timeout": "2000", "idle_session_timeout": "0"}


class LiveReader:
    """The reader of one installation; `alive` is touched as long as it works or waits."""

    def __init__(
        self, environment: Environment, market_url: str, alive: Path, say: Callable[[str], None]
    ) -> None:
        self._environment = environment
        self._url = PostgresUrl.parse(market_url).with_query(SILENCE).render("postgresql")
        self._alive = alive
        self._say = say
        self._session: psycopg.Connection | None = None
        self._session_at = self._heartbeat_at = self._settings_at = 0.0
        self._began = time.monotonic()
        self._connected_at: float | None = None
        self._message_at: float | None = None
        self._connections = 0
        self._problem: str | None = None
        self._not_written: str | None = None
        self._closed_until: datetime | None = None

    def run(self) -> NoReturn:
        """Read until the process ends."""
        while True:
            settings = self._settings()
            if settings is None:
                self._note_problem("the settings can't be read")
            elif settings.live.enabled and settings.data.refresh:
                self._work(settings)
                continue
            else:
                self._note_problem("switched off by the settings")
            self._tick(None, None)
            time.sleep(HEARTBEAT_SECONDS)

    def _settings(self) -> StrategySettings | None:
        with contextlib.suppress(SettingsError):
            return read_settings(self._environment).settings
        return None

    def _have_changed(self, settings: StrategySettings) -> bool:
        """Return, now and then, whether the settings file says something else."""
        if time.monotonic() - self._settings_at < SETTINGS_SECONDS:
            return False
        self._settings_at = time.monotonic()
        return self._settings() not in (None, settings)

    def _work(self, settings: StrategySettings) -> None:
        """Read by these settings until there are others."""
        live = settings.live
        clock = ExchangeClock()
        edge = Edge(
            settings.symbols,
            timedelta(seconds=live.grace_seconds),
            timedelta(seconds=live.late_seconds),
        )
        confirmer = Confirmer(
            self._url, self._environment.upbit_base_url, settings, clock, self._say
        )
        confirmer.start()
        failures, longest = 0, LONGEST_WAIT
        while not self._have_changed(settings):
            until = time.monotonic()
            try:
                with opened(self._environment.stream_url, settings.symbols) as stream:
                    self._note_connected(stream, clock, confirmer)
                    self._message_at = None
                    self._read(stream, settings, edge, clock)
                    break
            except NoStreamError as error:
                self._note_problem(str(error))
                failures = 0 if self._message_at else failures + 1
                no_stream = isinstance(error, NotThereError)
                longest = LONGEST_WAIT_WITHOUT_STREAM if no_stream else LONGEST_WAIT
                most = longest if no_stream else min(longest, 2.0**failures)
                until = time.monotonic() + LEAST_WAIT + most * random.random()  # noqa: S311
            edge.cut()
            confirmer.is_connected = False
            self._connected_at = None
            while time.monotonic() < until and not self._have_changed(settings):
                self._tick(edge, clock)
                time.sleep(LOOK_SECONDS)
        confirmer.stop()
        self._connected_at = None

    def _note_connected(
        self, stream: CandleStream, clock: ExchangeClock, confirmer: Confirmer
    ) -> None:
        now = datetime.now(UTC)
        if stream.date and (abs(stream.date - now) <= FARTHEST_CLOCK or stream.is_replay):
            clock.note_date(stream.date, stream.taken)
        self._connections += 1
        self._connected_at = time.monotonic()
        self._problem = None
        confirmer.note_connected()
        self._say(f"connected to {self._environment.stream_url}")

    def _read(
        self, stream: CandleStream, settings: StrategySettings, edge: Edge, clock: ExchangeClock
    ) -> None:
        """Take the messages until there are other settings; raises NoStreamError."""
        spoken_at, is_bad_known = time.monotonic(), False
        while not self._have_changed(settings):
            try:
                shown = stream.receive(LOOK_SECONDS)
            except BadMessageError as error:
                if not is_bad_known:
                    self._say(f"left out, as all such messages of this connection: {error}")
                shown, is_bad_known = None, True
            if shown and clock.note_trade(shown.traded_at) and (now := clock.now()):
                self._message_at = time.monotonic()
                if edge.take(shown, now) in {Verdict.NEW, Verdict.LATE}:
                    spoken_at = self._message_at
            self._tick(edge, clock)
            if time.monotonic() - spoken_at > settings.live.silence_seconds:
                raise NoStreamError(
                    f"no trade of any symbol was shown for {settings.live.silence_seconds:g} s"
                )

    def _tick(self, edge: Edge | None, clock: ExchangeClock | None) -> None:
        """Write what has closed, and say how it goes; what can't be written waits."""
        now = clock and clock.now()
        closed = edge.closed(now) if edge and now else []
        is_heard = time.monotonic() - self._heartbeat_at < HEARTBEAT_SECONDS
        if is_heard and not closed:
            return
        try:
            session = self._open_session()
            if session is None:
                return
            if edge and now:
                self._write(session, edge, closed, now)
            if not is_heard:
                self._say_how_it_goes(session)
                self._heartbeat_at = time.monotonic()
            self._not_written = None
        except (DatabaseError, psycopg.Error) as error:
            problem = f"nothing can be written: {' '.join(str(error).split())}"
            if problem != self._not_written:
                self._say(problem)
            self._not_written = problem
            if self._session:
                self._session.close()
            self._session = None

    def _open_session(self) -> psycopg.Connection | None:
        """Return the session, or None while a database that is away is left alone."""
        self._alive.touch()
        if self._session is None:
            if time.monotonic() - self._session_at < DATABASE_SECONDS:
                return None
            self._session_at = time.monotonic()
            self._session = open_session(self._url, SESSION)
        return self._session

    def _write(
        self, session: psycopg.Connection, edge: Edge, closed: list[Closed], now: datetime
    ) -> None:
        for (symbol, is_late), minutes in groupby(closed, lambda c: (c.symbol, c.is_late)):
            written = [*minutes]
            candles = [minute.candle for minute in written]
            try:
                store_shown(session, symbol, candles, kind="late" if is_late else "streamed")
            except psycopg.errors.LockNotAvailable:
                continue  # tried again
            except NotStoredError as error:
                self._say(str(error))
            edge.note_written(written, now)
        edge.note_written([], now)
        self._closed_until = max(filter(None, [self._closed_until, edge.closed_until(now)]))

    def _say_how_it_goes(self, session: psycopg.Connection) -> None:
        at = time.monotonic()
        Heartbeat(
            worked=at - self._began,
            connected=at - self._connected_at if self._connected_at else None,
            silent=at - self._message_at if self._message_at else None,
            closed_until=self._closed_until,
            reconnects=max(0, self._connections - 1),
            problem=self._problem,
        ).write(session)

    def _note_problem(self, problem: str) -> None:
        if problem != self._problem:
            self._say(problem)
        self._problem = problem
