"""The exchange's clock, never ahead of it: what nothing closes a minute but.

This machine's own may be wrong by minutes and may be set while we run, so that the time between two
looks is taken from a clock that only ticks. What has closed by it belongs in `edge`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

# A Date has whole seconds, and an exchange's servers differ a little.
DATE_SECONDS = 2.0


class ExchangeClock:
    """A lower bound of the exchange's time, from its Dates and the moments of its trades."""

    def __init__(self, ticks: Callable[[], float] = time.monotonic) -> None:
        self._ticks = ticks
        # Seconds since 1970 less our ticks: what it is at least, and at most.
        self._least: float | None = None
        self._most = 0.0

    def note_date(self, date: datetime, taken: float) -> None:
        """Go by a Date that has just come in an answer that took so many seconds.

        It replaces what the trades have said: a clock of ours that is too fast gets no further.
        """
        self._least = date.timestamp() - self._ticks()
        self._most = self._least + DATE_SECONDS + taken

    def note_trade(self, at: datetime) -> bool:
        """Go by a trade that has just been shown; return False for one from the future."""
        if self._least is None:
            return False
        seconds = at.timestamp() - self._ticks()
        if seconds > self._most:
            return False
        self._least = max(self._least, seconds)
        return True

    def now(self) -> datetime | None:
        """Return the exchange's time (UTC), or None while it has not said it."""
        if self._least is None:
            return None
        return datetime.fromtimestamp(self._least + self._ticks(), UTC)
