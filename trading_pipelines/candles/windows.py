"""Arithmetic of time: days, minutes and the windows in which the exchange is asked.

Pure functions of aware UTC datetimes; nothing here reads a clock, a table or the network. Every
interval is half-open, [start, end).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass(frozen=True, order=True)
class Interval:
    """The time [start, end), on the minute; aware moments of any zone, which are made UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Make both UTC: the day that they are asked for is the UTC day."""
        object.__setattr__(self, "start", self.start.astimezone(UTC))
        object.__setattr__(self, "end", self.end.astimezone(UTC))

    @property
    def minutes(self) -> int:
        """How many one-minute candles the interval can hold."""
        return (self.end - self.start) // MINUTE

    def days(self) -> list[date]:
        """Return the UTC days it touches, in order."""
        first, last = self.start.date(), (self.end - MINUTE).date()
        return [first + DAY * n for n in range((last - first).days + 1)]

    def clip(self, other: "Interval") -> "Interval":
        """Return the part inside `other`; empty (start >= end) when they do not meet."""
        return Interval(max(self.start, other.start), min(self.end, other.end))


def day_interval(day: date) -> Interval:
    """Return the UTC day as an interval."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return Interval(start, start + DAY)


def floor_minute(moment: datetime) -> datetime:
    """Return the start of the minute that `moment` is in."""
    return moment.replace(second=0, microsecond=0)


def floor_hour(moment: datetime) -> datetime:
    """Return the start of the UTC hour that `moment` is in."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Join intervals that touch or overlap; drop empty ones. Sorted by start."""
    merged: list[Interval] = []
    for interval in sorted(i for i in intervals if i.start < i.end):
        if merged and interval.start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(interval)
    return merged


def windows(interval: Interval, size: int) -> Iterator[Interval]:
    """Yield the interval in windows of `size` minutes; the last may be shorter.

    Windows advance by time, never by the last row seen: a halt longer than a window has no row to
    advance from, and lost 1,800 of 2,229 candles that way (`docs/decisions/0003`).
    """
    at = interval.start
    while at < interval.end:
        end = min(at + MINUTE * size, interval.end)
        yield Interval(at, end)
        at = end


def contiguous(days: Iterable[date]) -> Iterator[tuple[date, date]]:
    """Yield the first and last day of each unbroken run of days."""
    first = last = None
    for day in sorted(set(days)):
        if first is None or last is None or day > last + DAY:
            if first is not None and last is not None:
                yield first, last
            first = day
        last = day
    if first is not None and last is not None:
        yield first, last


def named(first: date, last: date, between: str = " to ") -> str:
    """Return an unbroken run of days in words; one day is named once."""
    return f"{first}" if first == last else f"{first}{between}{last}"
