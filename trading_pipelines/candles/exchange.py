"""Asking the exchange for pages of candles: in slots of the rate limit, again when one fails.

As many are asked for side by side as fill the line at the latency that is seen. What a page is
belongs in `page`, the HTTP request in `upbit`. Which pages are asked for belongs in `download`,
where they are stored in `store`.
"""

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from trading_pipelines.candles.ahead import in_order
from trading_pipelines.candles.page import (
    PAGE_SIZE,
    BlockedAnswerError,
    ExchangeError,
    InvalidAnswerError,
    OddRow,
    OddRowsError,
    Page,
    RequestStats,
    RetryableError,
    TooManyRequestsError,
    UnknownMarketError,
    first_start,
    reach,
    validate,
)
from trading_pipelines.candles.rate_limit import LONG_WAIT_SECONDS, Clock, RequestSlots, Slot
from trading_pipelines.candles.windows import DAY, Interval, floor_minute
from trading_pipelines.settings.strategy import ExchangeSettings

if TYPE_CHECKING:
    from trading_pipelines.candles.upbit import Upbit

T = TypeVar("T")

# A trade of the last second of a minute may reach the candle a little after the minute has closed.
CLOSE_MARGIN = timedelta(seconds=5)
# A clock that is farther away from ours is none: a Date of 1970 would say that nothing has closed
# yet. A replayed market has a clock of its own.
FARTHEST_CLOCK = DAY
# An exchange that takes longer than 1.4 s to answer is slow, and not far away.
MOST_SIDE_BY_SIDE = 16
# Servers close a connection after a minute without a request, some earlier.
OPEN_AGAIN_SECONDS = 10.0
# The latency is recorded again when it has changed by this share.
NOTED_CHANGE = 0.25


@dataclass(frozen=True)
class _Question:
    """What is asked for, and what that took so far."""

    symbol: str
    window: Interval
    spent: RequestStats = field(default_factory=RequestStats)
    called_off: threading.Event = field(default_factory=threading.Event)

    def __str__(self) -> str:
        return f"{self.symbol} {self.window.start:%Y-%m-%d %H:%M} to {self.window.end:%H:%M} UTC"


class Exchange:
    """Upbit's candle API behind `slots`; one instance a run."""

    def __init__(
        self,
        base_url: str,
        slots: RequestSlots,
        settings: ExchangeSettings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`say` is told of each wait longer than `LONG_WAIT_SECONDS`, and why."""
        from trading_pipelines.candles.upbit import Upbit

        self._threads = ThreadPoolExecutor(MOST_SIDE_BY_SIDE, "exchange")
        self._of_thread = threading.local()
        self._client: Callable[[], Upbit] = lambda: Upbit(base_url, settings.timeout_seconds)
        self._slots = slots
        self._settings = settings
        self._now = now
        self._say = say
        self._ahead: timedelta | None = None
        self._clock: Clock | None = None
        # Seconds that an answer takes, smoothed; None while there is none, or a bad one.
        self._latency: float | None = None
        self._noted_latency: float | None = None
        self._has_begun = False
        self._open_again_at = -math.inf

    @property
    def _api(self) -> "Upbit":
        if not hasattr(self._of_thread, "api"):
            self._of_thread.api = self._client()
        api: Upbit = self._of_thread.api
        return api

    def pages(self, symbol: str, windows: Iterable[Interval]) -> Generator[Page, None, None]:
        """Yield the page of each window, in order; see `page` for what it is and raises.

        The windows that follow are asked for meanwhile: where the iterator is closed early, some
        were asked for in vain.
        """

        def ask(window: Interval, called_off: threading.Event) -> Page:
            return self._page(_Question(symbol, window, called_off=called_off))

        # What the run before has seen is believed once: a market that is not there costs no more.
        at_first = 1 if self._has_begun else self._how_many(self._slots.latency())
        self._has_begun = True
        return in_order(
            self._threads, ask, windows, lambda: self._how_many(self._latency), at_first
        )

    def connect(self) -> None:
        """Open the connections of the first windows, and open again what was closed meanwhile.

        For whoever waits to ask: it may be called all the time, and waits for nothing.
        """
        now = time.monotonic()
        if now < self._open_again_at:
            return
        self._open_again_at = now + OPEN_AGAIN_SECONDS
        number = self._how_many(self._slots.latency())
        together = threading.Barrier(number)

        def connect() -> None:
            together.wait()  # each in a thread of its own
            self._api.connect()

        for _ in range(number):
            self._threads.submit(connect)

    def _how_many(self, latency: float | None) -> int:
        """Return how many requests fill the line, with one to follow and one that is stored."""
        if latency is None:
            return 1
        return min(math.ceil(latency / self._slots.spacing) + 2, MOST_SIDE_BY_SIDE)

    def _note_latency(self, seconds: float | None) -> None:
        """Take in how long an answer took, or that there was no good one; tell the runs to come."""
        if seconds is not None and self._latency is not None:
            seconds = self._latency + (seconds - self._latency) / 5
        self._latency = noted = seconds
        was = self._noted_latency
        if noted is None or was is None or abs(noted - was) > NOTED_CHANGE * was:
            self._noted_latency = noted
            self._slots.note_latency(noted)

    def page(self, symbol: str, window: Interval) -> Page:
        """Return the closed candles of `window`, at most 200 minutes.

        Rows that can't be candles are the page's `odd_rows` when every attempt has found some.
        Raises UnknownMarketError at once, InvalidAnswerError or ExchangeError (the exchange is
        away) of the last attempt when every one has failed, BlockedError.
        """
        return self._page(_Question(symbol, window))

    def _page(self, question: _Question) -> Page:
        window = question.window
        page = self._ask(question)
        if not (page.candles or page.odd_rows) and page.closed_until > window.start:
            # A stale or empty answer looks like a quiet window: it is believed when given twice.
            page = self._ask(question)
        if page.unanswered_until > window.start:
            rest = replace(question, window=Interval(window.start, page.unanswered_until))
            page = page.after(self._page(rest))
        return page

    def first_day(self, symbol: str, until: datetime, spent: RequestStats) -> datetime:
        """Return the start of the first UTC day with a candle of the 200 days before `until`.

        That is `until`, a midnight, where the exchange has none; believed when said twice. Raises
        as `page`. Its requests are added to `spent`.
        """
        question = _Question(symbol, Interval(until - DAY * PAGE_SIZE, until), spent)

        def ask(_: Mapping[str, Any]) -> datetime:
            answer = self._request(question, lambda api: api.days(symbol, until))
            return first_start(answer, symbol, until)

        first = self._retry(ask, question)
        return first if first < until else self._retry(ask, question)

    def _ask(self, question: _Question) -> Page:
        return self._retry(lambda tries: self._try(question, tries), question)

    def _retry(self, ask: Callable[[Mapping[str, Any]], T], question: _Question) -> T:
        since, attempts = time.monotonic(), self._settings.attempts

        def note(state: tenacity.RetryCallState) -> None:
            nonlocal since
            question.spent.retries += 1
            self._note_latency(None)
            again_at = time.monotonic() + state.upcoming_sleep
            # An exchange that does not answer makes wait by its silence, more than by the back-off.
            if again_at - since > LONG_WAIT_SECONDS and state.outcome is not None:
                self._say(
                    f"waiting for {question}: try {state.attempt_number} of {attempts} failed, "
                    f"the next is in {state.upcoming_sleep:.0f} s: {state.outcome.exception()}"
                )
                since = again_at

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RetryableError),
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_random_exponential(
                multiplier=self._settings.backoff_seconds, max=self._settings.max_backoff_seconds
            ),
            before_sleep=note,
            sleep=tenacity.sleep_using_event(question.called_off),
            reraise=True,
        )
        try:
            return retrying(ask, retrying.statistics)
        except ExchangeError as error:
            self._note_latency(None)
            kinds = (UnknownMarketError, InvalidAnswerError, ExchangeError)
            raise next(kind for kind in kinds if isinstance(error, kind))(
                f"{question}: {error} (asked {retrying.statistics['attempt_number']} times)"
            ) from error

    def _request(self, question: _Question, ask: Callable[["Upbit"], object]) -> object:
        """Return the answer to a question that is asked in the next slot."""
        # Before the slot has come: a first request that came late left its second eleven of them.
        api = self._api
        if not question.called_off.is_set():
            api.connect()
            slot = self._slots.reserve(self._say, question.called_off.wait)
        if question.called_off.is_set():
            raise CancelledError
        question.spent.requests += 1
        # At once: an answer may take longer than the tenth request after it waits for its slot.
        api.on_sent(partial(self._slots.note_sent, slot))
        since = time.monotonic()
        try:
            answer = ask(api)
        except TooManyRequestsError:
            # The limit is counted by the second; a whole one with no request starts a new count.
            self._slots.pause(1.0)
            raise
        except BlockedAnswerError as blocked:
            self._note_latency(None)
            raise self._slots.block(blocked.retry_after, slot) from None
        seconds = time.monotonic() - since
        self._note_latency(seconds)
        self._note_headers(slot)
        return answer

    def _try(self, question: _Question, tries: Mapping[str, Any]) -> Page:
        symbol, window = question.symbol, question.window
        asked_at: list[datetime] = []

        def ask(api: "Upbit") -> object:
            asked_at.append(self._now())
            return api.minutes(symbol, window.end)

        answer = self._request(question, ask)
        # As of the question: an answer that was long on its way shows minutes that were forming.
        closed_until = self._closed_until(asked_at[0])
        odd_rows: list[OddRow] = []
        try:
            candles = validate(answer, symbol, window)
        except OddRowsError as error:
            candles, odd_rows = error.candles, [r for r in error.rows if r.start < closed_until]
            if odd_rows and tries["attempt_number"] < self._settings.attempts:
                raise
        return Page(
            [candle for candle in candles if candle.start < closed_until],
            closed_until,
            self._api.answer_headers.get("Replay-Source", "upbit"),
            odd_rows,
            *reach(answer, window),
            spent=question.spent,
        )

    def _note_headers(self, slot: Slot) -> None:
        headers = self._api.answer_headers
        self._note_clock(headers.get("Date", ""), is_replay="Replay-Source" in headers)
        fields = dict(
            part.strip().split("=", 1)
            for part in headers.get("Remaining-Req", "").split(";")
            if "=" in part
        )
        if re.fullmatch("[0-9]{1,9}", fields.get("sec", "")):
            self._slots.obey(int(fields["sec"]), slot)

    def _note_clock(self, header: str, *, is_replay: bool) -> None:
        """Go by the exchange's clock where its Date can be believed, and record it for `health`."""
        ahead, problem = None, None
        # Of a Date that can't be read, or has no time zone, nothing is learnt.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            ahead = parsedate_to_datetime(header) - self._now()
        is_near = ahead is not None and abs(ahead) <= FARTHEST_CLOCK
        if ahead is not None and (is_near or is_replay):
            self._ahead = ahead
        else:
            problem = f"{header[:40]!r} is no time that can be believed"
        seen = Clock(ahead if is_near else None, problem)
        if self._clock is None or seen.differs(self._clock):
            self._clock = seen
            self._slots.note_clock(seen)

    @property
    def ahead(self) -> timedelta | None:
        """How far its clock is ahead of ours by its last Date; None where none can be believed."""
        return self._ahead

    def closed_until(self) -> datetime:
        """Return the start of the first minute that may still change, by the exchange's clock."""
        return self._closed_until(self._now())

    def _closed_until(self, moment: datetime) -> datetime:
        if self._ahead is not None:
            return floor_minute(moment + self._ahead - CLOSE_MARGIN)
        is_believed = self._clock is None or self._clock.problem is None
        return floor_minute(moment - CLOSE_MARGIN * (1 if is_believed else 2))
