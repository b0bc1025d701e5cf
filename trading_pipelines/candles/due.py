"""What is due: every tick asks the data, so that a missed tick costs only time.

Due is a symbol's UTC day that is missing, incomplete, open, damaged (candles have gone), or whose
hours are older than its minutes. Which runs are already in flight is Dagster's knowledge and comes
in as an argument; how a day is downloaded belongs in `download`.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum

from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.windows import DAY, MINUTE, contiguous, day_interval, named

# A tick right at midnight: the new day has no closed minute yet.
FIRST_MINUTE = MINUTE + timedelta(seconds=10)
# The open day is asked for once in five minutes of the clock, by the tick of a minute past: at :00
# itself the last minute is not yet closed, and the hour's label came five minutes late.
REFRESHED_EVERY = timedelta(minutes=5)
LOOK_MARGIN = timedelta(seconds=50)


class CandleDueReason(StrEnum):
    """Why a day is due."""

    OPEN = "open"
    MISSING = "missing"
    INCOMPLETE = "incomplete"
    DAMAGED = "damaged"
    FAILED = "failed"
    HOURS = "hours"
    WAITING = "waiting"
    """Failed a short while ago; nothing is asked before its retry_at."""
    LEFT_FAILED = "left failed"
    """Its attempts are spent; it is due once a day."""


@dataclass(frozen=True)
class DueRun:
    """A rectangle of partitions for one run: neighbouring symbols over unbroken days."""

    symbols: tuple[str, ...]
    first: date
    last: date
    hours_only: bool
    """The minutes are as they should be; only their hours have to be computed."""
    is_urgent: bool = False
    """It brings the newest day, which must not wait for history."""

    def __str__(self) -> str:
        return f"{', '.join(self.symbols)}: {named(self.first, self.last)}"


@dataclass(frozen=True)
class CandlePlan:
    """What one tick of the schedule asks for."""

    runs: list[DueRun]
    """The newest days first."""
    summary: str
    """What was looked at, for a tick that asks for nothing."""


def look_back(start_date: date, look_back_days: int, now: datetime) -> list[date]:
    """Return the UTC days the schedule looks after, up to the day that is open at `now`."""
    last = (now - FIRST_MINUTE).date()
    first = max(start_date, last - DAY * look_back_days)
    return [first + DAY * n for n in range((last - first).days + 1)]


def reason(coverage: CandleCoverage, now: datetime) -> CandleDueReason | None:
    """Return why the day is due at `now`, or None."""
    if coverage.retry_at and coverage.retry_at > now:
        return CandleDueReason.LEFT_FAILED if coverage.left_failed else CandleDueReason.WAITING
    is_open = coverage.day == (now - FIRST_MINUTE).date()
    midnight = day_interval(coverage.day).start
    last_look = now - LOOK_MARGIN - (now - LOOK_MARGIN - midnight) % REFRESHED_EVERY
    checks = {
        CandleDueReason.FAILED: coverage.failures > 0,
        CandleDueReason.OPEN: is_open and coverage.fetched_until < last_look,
        CandleDueReason.MISSING: not is_open and coverage.status == "missing",
        CandleDueReason.INCOMPLETE: not is_open and not coverage.complete,
        CandleDueReason.DAMAGED: coverage.damaged,
        CandleDueReason.HOURS: not coverage.hours_current,
    }
    return next((name for name, holds in checks.items() if holds), None)


def lacks_minutes(coverage: CandleCoverage, now: datetime) -> bool:
    """Return whether the exchange has to be asked for the day; whoever asks does not wait."""
    return reason(coverage, now) not in {None, CandleDueReason.HOURS}


def plan(
    days: Sequence[CandleCoverage],
    in_flight: AbstractSet[tuple[str, date]],
    symbols: Sequence[str],
    now: datetime,
) -> CandlePlan:
    """Return the runs that the looked-at days need at `now` (UTC), without what is in flight.

    `days` holds at least one entry; `in_flight` holds (symbol, UTC day); `symbols` are those of the
    settings, in their order.
    """
    reasons = {(day.symbol, day.day): why for day in days if (why := reason(day, now)) is not None}
    first, last = min(day.day for day in days), max(day.day for day in days)
    due = {key: why for key, why in reasons.items() if key not in in_flight}
    counts = Counter(reasons.values())
    return CandlePlan(
        runs=[replace(run, is_urgent=run.last == last) for run in runs(due, symbols)],
        summary=f"looked at {len(days)} partitions from {first} to {last}: "
        f"{len(reasons)} due, {len(reasons.keys() & in_flight)} of them in flight, "
        f"{counts[CandleDueReason.WAITING]} waiting after a failure, "
        f"{counts[CandleDueReason.LEFT_FAILED]} left failed",
    )


def runs(due: Mapping[tuple[str, date], CandleDueReason], symbols: Sequence[str]) -> list[DueRun]:
    """Cover the due (symbol, day)s with few runs, the newest days first.

    Failed and damaged days get a run a symbol: in a run over several symbols one broken contract
    keeps the hours of all from being computed. The open day goes before history, which may take
    long after downtime.
    """
    by_kind: dict[str, dict[str, set[date]]] = {}
    for (symbol, day), why in due.items():
        kind = {
            CandleDueReason.FAILED: f"failed {symbol}",
            CandleDueReason.DAMAGED: f"failed {symbol}",
            CandleDueReason.MISSING: "history",
            CandleDueReason.INCOMPLETE: "history",
        }.get(why, why)
        if why not in {CandleDueReason.WAITING, CandleDueReason.LEFT_FAILED}:
            by_kind.setdefault(kind, {}).setdefault(symbol, set()).add(day)
    due_runs = [
        DueRun(group, first, last, hours_only=kind == CandleDueReason.HOURS)
        for kind, days_of in by_kind.items()
        for group, first, last in rectangles(days_of, symbols)
    ]
    return sorted(due_runs, key=lambda run: (run.last, run.first), reverse=True)


def rectangles(
    days_of: Mapping[str, set[date]], symbols: Sequence[str]
) -> list[tuple[tuple[str, ...], date, date]]:
    """Cover the symbols' days with (neighbouring symbols, first day, last day), newest first."""
    covering = [
        (group, first, last)
        for (first, last), due_symbols in _by_interval(days_of).items()
        for group in _neighbours(due_symbols, symbols)
    ]
    return sorted(covering, key=lambda rectangle: (rectangle[2], rectangle[1]), reverse=True)


def _by_interval(days_of: Mapping[str, set[date]]) -> dict[tuple[date, date], set[str]]:
    symbols_of: dict[tuple[date, date], set[str]] = {}
    for symbol, days in days_of.items():
        for interval in contiguous(days):
            symbols_of.setdefault(interval, set()).add(symbol)
    return symbols_of


def _neighbours(chosen: Collection[str], symbols: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Cut into groups that are neighbours in `symbols`: a Dagster range is from one to another."""
    group: list[str] = []
    for symbol in symbols:
        if symbol in chosen:
            group.append(symbol)
        elif group:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)
