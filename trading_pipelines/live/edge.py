"""What the messages add up to: which minutes have closed and may be written, and which may not.

Nothing closes a minute but the exchange's clock: the stream sends a minute again and again, only
when something is traded, and may bring the last trade of one after the next has begun. Pure: every
moment is an argument.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from trading_pipelines.candles.page import Candle
from trading_pipelines.candles.windows import MINUTE, floor_minute
from trading_pipelines.live.stream import Shown

# For a database that is away; REST brings what is older.
LONGEST_WAIT = timedelta(hours=1)


class Verdict(Enum):
    """What became of a message."""

    NEW = auto()
    LATE = auto()
    """Of a minute that had closed."""
    KNOWN = auto()
    """A double, or older than what is known of its minute."""
    OLD = auto()
    """Of a minute that is left to REST."""
    FUTURE = auto()
    FOREIGN = auto()
    """Of a symbol that was not asked for."""


class _State(Enum):
    FORMING = auto()
    TORN = auto()
    """The stream was cut in the minute, and has not shown it since: it may lack trades."""
    WRITTEN = auto()
    REWRITTEN = auto()
    """Shown anew after it was written."""


@dataclass
class _Minute:
    shown: Shown
    state: _State


@dataclass(frozen=True)
class Closed:
    """A minute to write; `is_late` where the stream has shown it anew since it was written."""

    symbol: str
    candle: Candle
    is_late: bool


class Edge:
    """The minutes around the exchange's present; one instance while the symbols are the same.

    A minute has closed `grace` after its end. A message that comes later rewrites it, until `late`
    after its end.
    """

    def __init__(self, symbols: Iterable[str], grace: timedelta, late: timedelta) -> None:
        self._symbols = frozenset(symbols)
        self._grace = grace
        self._late = min(max(late, grace), LONGEST_WAIT)
        self._minutes: dict[tuple[str, datetime], _Minute] = {}

    def take(self, shown: Shown, now: datetime) -> Verdict:
        """Take a message that came at `now`, by the exchange's clock."""
        verdict = self._judge(shown, now)
        key = (shown.symbol, shown.candle.start)
        minute = self._minutes.get(key)
        if minute and minute.state is _State.TORN and _version(shown) == _version(minute.shown):
            # The snapshot of a new connection: no trade was missed.
            minute.state = _State.FORMING
        if verdict in {Verdict.NEW, Verdict.LATE}:
            was_written = minute and minute.state in {_State.WRITTEN, _State.REWRITTEN}
            state = _State.REWRITTEN if was_written else _State.FORMING
            self._minutes[key] = _Minute(shown, state)
        return verdict

    def _judge(self, shown: Shown, now: datetime) -> Verdict:
        start = shown.candle.start
        if shown.symbol not in self._symbols:
            return Verdict.FOREIGN
        if start > now:
            return Verdict.FUTURE
        if start + MINUTE + self._late <= now:
            return Verdict.OLD
        minute = self._minutes.get((shown.symbol, start))
        if minute and _version(shown) <= _version(minute.shown):
            return Verdict.KNOWN
        return Verdict.LATE if start + MINUTE + self._grace <= now else Verdict.NEW

    def cut(self) -> None:
        """Note that the stream was cut: what happened since in the minutes at hand is not known."""
        for minute in self._minutes.values():
            if minute.state is _State.FORMING:
                minute.state = _State.TORN

    def closed_until(self, now: datetime) -> datetime:
        """Return the start of the first minute that may still be forming."""
        return floor_minute(now - self._grace)

    def closed(self, now: datetime) -> list[Closed]:
        """Return the minutes that have closed and are not written as they were shown last."""
        return [
            Closed(symbol, minute.shown.candle, minute.state is _State.REWRITTEN)
            for (symbol, start), minute in sorted(self._minutes.items())
            if minute.state in {_State.FORMING, _State.REWRITTEN}
            and start + MINUTE + self._grace <= now
        ]

    def note_written(self, written: Iterable[Closed], now: datetime) -> None:
        """Note that these minutes were written, and forget those that can't be shown any more."""
        for closed in written:
            minute = self._minutes[closed.symbol, closed.candle.start]
            if minute.shown.candle == closed.candle:
                minute.state = _State.WRITTEN
        for key, minute in [*self._minutes.items()]:
            waits = minute.state in {_State.FORMING, _State.REWRITTEN}
            if key[1] + MINUTE + (LONGEST_WAIT if waits else self._late) <= now:
                del self._minutes[key]


def _version(shown: Shown) -> tuple[datetime, object]:
    """Order what is shown of a minute: its last trade's moment, and what was traded until then."""
    return shown.traded_at, shown.candle.volume
