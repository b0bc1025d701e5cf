"""What the reader writes: minutes as the stream has shown them, and how it does itself.

Never over what REST vouches for: a minute before `fetched_until` is left to REST's next look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

import psycopg

from trading_pipelines.candles import coverage, store
from trading_pipelines.candles.page import Candle
from trading_pipelines.candles.resample import resample
from trading_pipelines.candles.windows import MINUTE

RUN_ID = "live"
HEARTBEAT = """
INSERT INTO trading_pipelines.live_edge
    (started_at, connected_since, last_message_at, closed_until, reconnects, problem, updated_at)
SELECT at - make_interval(secs => %(worked)s), at - make_interval(secs => %(connected)s),
    at - make_interval(secs => %(silent)s), %(closed_until)s, %(reconnects)s, %(problem)s, at
FROM clock_timestamp() AS at
ON CONFLICT (is_only) DO UPDATE SET
    started_at = excluded.started_at, connected_since = excluded.connected_since,
    last_message_at = excluded.last_message_at, closed_until = excluded.closed_until,
    reconnects = excluded.reconnects, problem = excluded.problem, updated_at = excluded.updated_at
"""


def store_shown(
    connection: psycopg.Connection, symbol: str, candles: Sequence[Candle], *, kind: str
) -> None:
    """Store closed minutes of a symbol, oldest first, and their coverage.

    `kind`: `streamed` or `late` as in the coverage, or `asked` for a page of REST's that the
    coverage does not reach yet. Raises NotStoredError. `connection` is autocommit.
    """
    begun: list[date] = []
    with connection.transaction():
        store.lock(connection, symbol)
        for day, minutes in groupby(candles, lambda candle: candle.start.date()):
            asked_until = coverage.fetched_until(connection, symbol, day)
            own = [minute for minute in minutes if minute.start >= asked_until]
            if not own:
                continue
            written = store.write_candles(connection, symbol, own)
            changed = written.inserted + written.repaired
            if coverage.record_shown(
                connection,
                symbol,
                day,
                own[-1].start + MINUTE,
                streamed=changed if kind == "streamed" else 0,
                late=changed if kind == "late" else 0,
            ):
                begun.append(day)
    # A day of which anything is known has hours, if none yet: without them it would be due.
    resample(connection, [symbol], begun, RUN_ID)


@dataclass
class Heartbeat:
    """See the comments on `live_edge`'s columns; the ages are in seconds."""

    worked: float
    connected: float | None
    silent: float | None
    closed_until: object
    reconnects: int
    problem: str | None

    def write(self, connection: psycopg.Connection) -> None:
        """Say it."""
        connection.execute(HEARTBEAT, vars(self))
