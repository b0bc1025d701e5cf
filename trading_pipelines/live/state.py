"""How the reader does and how far the newest minute is, for `status` and `health`.

Whether that is good is judged in `monitoring/checks`; what is written belongs in `minutes`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles.coverage import CandleCoverage

READ = """
SELECT connected_since, reconnects, problem, updated_at FROM trading_pipelines.live_edge
"""


@dataclass(frozen=True)
class ReaderState:
    """What the reader last said of itself; see the comments on `live_edge`'s columns (UTC)."""

    connected_since: datetime | None
    reconnects: int
    problem: str | None
    updated_at: datetime


@dataclass(frozen=True)
class LiveEdge:
    """The newest minute of any symbol, and what the stream brought of its UTC day."""

    ended_at: datetime
    """By the exchange's clock (UTC)."""
    age: timedelta
    streamed: int
    late: int
    corrected: int


def read(connection: psycopg.Connection) -> ReaderState | None:
    """Return how the reader did last; None where none has ever worked."""
    with connection.cursor(row_factory=class_row(ReaderState)) as cursor:
        return cursor.execute(READ).fetchone()


def live_edge(
    days: Iterable[CandleCoverage], now: datetime, ahead: timedelta | None
) -> LiveEdge | None:
    """Return the live edge at `now` (UTC) by the coverage of days; None where they hold nothing.

    `ahead`: how far the exchange's clock is ahead of ours. A symbol that nobody trades has no
    minute of its own: the newest of all is the edge.
    """
    begun = [day for day in days if day.status != "missing"]
    newest = [day for day in begun if day.day == max(day.day for day in begun)]
    if not newest:
        return None
    ends = [end for day in newest for end in (day.fetched_until, day.provisional_until) if end]
    return LiveEdge(
        max(ends),
        now + (ahead or timedelta()) - max(ends),
        streamed=sum(day.streamed for day in newest),
        late=sum(day.late for day in newest),
        corrected=sum(day.corrected for day in newest),
    )
