"""Asking the exchange for a page of candles: in a slot of the rate limit, again when it fails.

What a page is belongs in `page`, the HTTP request in `upbit`. Which pages are asked for belongs in
`download`, where they are stored in `store`.
"""

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import tenacity

from trading_pipelines.candles.page import (
    PAGE_SIZE,
    BlockedAnswerError,
    ExchangeError,
    InvalidAnswerError,
    OddRow,
    OddRowsError,
    Page,
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

T = TypeVar("T")

# A trade of the last second of a minute may reach the candle a little after the minute has closed.
CLOSE_MARGIN = timedelta(seconds=5)
# A clock that is farther away from ours is none: a Date of 1970 would say that nothing has closed
# yet. A replayed market has a clock of its own.
FARTHEST_CLOCK = DAY


@dataclass
class RequestStats:
    """How many requests pages have taken so far, and how many of them were retries."""

    requests: int = 0
    retries: int = 0

    def since(self, earlier: "RequestStats") -> "RequestStats":
        """Return what was added after `earlier`."""
        return RequestStats(self.requests - earlier.requests, self.retries - earlier.retries)


class Exchange:
    """Upbit's candle API behind `slots`; one instance a run, used by one thread at a time."""

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

        self._api = Upbit(base_url, settings.timeout_seconds)
        self._slots = slots
        self._settings = settings
        self._now = now
        self._say = say
        self._ahead: timedelta | None = None
        self._clock: Clock | None = None
        self.stats = RequestStats()

    def page(self, symbol: str, window: Interval) -> Page:
        """Return the closed candles of `window`, at most 200 minutes.

        Rows that can't be candles are the page's `odd_rows` when every attempt has found some.
        Raises UnknownMarketError at once, InvalidAnswerError or ExchangeError (the exchange is
        away) of the last attempt when every one has failed, BlockedError.
        """
        page = self._ask(symbol, window)
        if not (page.candles or page.odd_rows) and page.closed_until > window.start:
            # A stale or empty answer looks like a quiet window: it is believed when given twice.
            page = self._ask(symbol, window)
        if page.unanswered_until > window.start:
            older = self.page(symbol, Interval(window.start, page.unanswered_until))
            page = page.after(older)
        return page

    def first_day(self, symbol: str, until: datetime) -> datetime:
        """Return the start of the first UTC day with a candle of the 200 days before `until`.

        That is `until`, a midnight, where the exchange has none; believed when said twice. Raises
        as `page`.
        """
        whole = Interval(until - DAY * PAGE_SIZE, until)

        def ask(_: Mapping[str, Any]) -> datetime:
            answer = self._request(lambda: self._api.days(symbol, until))
            return first_start(answer, symbol, until)

        first = self._retry(ask, symbol, whole)
        return first if first < until else self._retry(ask, symbol, whole)

    def _ask(self, symbol: str, window: Interval) -> Page:
        return self._retry(lambda tries: self._try(symbol, window, tries), symbol, window)

    def _retry(self, ask: Callable[[Mapping[str, Any]], T], symbol: str, window: Interval) -> T:
        asked_for = f"{symbol} {window.start:%Y-%m-%d %H:%M} to {window.end:%H:%M} UTC"
        since, attempts = time.monotonic(), self._settings.attempts

        def note(state: tenacity.RetryCallState) -> None:
            nonlocal since
            self.stats.retries += 1
            again_at = time.monotonic() + state.upcoming_sleep
            # An exchange that does not answer makes wait by its silence, more than by the back-off.
            if again_at - since > LONG_WAIT_SECONDS and state.outcome is not None:
                self._say(
                    f"waiting for {asked_for}: try {state.attempt_number} of {attempts} failed, "
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
            reraise=True,
        )
        try:
            return retrying(ask, retrying.statistics)
        except ExchangeError as error:
            kinds = (UnknownMarketError, InvalidAnswerError, ExchangeError)
            raise next(kind for kind in kinds if isinstance(error, kind))(
                f"{asked_for}: {error} (asked {retrying.statistics['attempt_number']} times)"
            ) from error

    def _request(self, ask: Callable[[], object]) -> object:
        """Return the answer to a question that is asked in the next slot."""
        slot = self._slots.reserve(self._say)
        self.stats.requests += 1
        try:
            answer = ask()
        except TooManyRequestsError:
            # The limit is counted by the second; a whole one with no request starts a new count.
            self._slots.pause(1.0)
            raise
        except BlockedAnswerError as blocked:
            raise self._slots.block(blocked.retry_after) from None
        self._note_headers(slot)
        return answer

    def _try(self, symbol: str, window: Interval, tries: Mapping[str, Any]) -> Page:
        asked_at: list[datetime] = []

        def ask() -> object:
            asked_at.append(self._now())
            return self._api.minutes(symbol, window.end)

        answer = self._request(ask)
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

    def closed_until(self) -> datetime:
        """Return the start of the first minute that may still change, by the exchange's clock."""
        return self._closed_until(self._now())

    def _closed_until(self, moment: datetime) -> datetime:
        if self._ahead is not None:
            return floor_minute(moment + self._ahead - CLOSE_MARGIN)
        is_believed = self._clock is None or self._clock.problem is None
        return floor_minute(moment - CLOSE_MARGIN * (1 if is_believed else 2))
