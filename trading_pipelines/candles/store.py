"""Writing candles to the bot's `market_data` table: COPY, then an upsert that repairs.

Also what is kept beside it: rows of the exchange's that can't be candles, and stored candles of
minutes for which the exchange has none. Each call is one step of the caller's transaction, so
candles and the coverage that vouches for them are committed together. Who asks for what belongs in
`download`; reading for signals, elsewhere.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import psycopg

from trading_pipelines.candles.page import Candle, OddRow
from trading_pipelines.candles.windows import Interval
from trading_pipelines.errors import OperatorError

INTERVAL = "1m"

# One temporary table a connection: making one a page would grow pg_class by ten rows a second.
STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS candle_staging (
    open_price numeric(20, 8), high_price numeric(20, 8), low_price numeric(20, 8),
    close_price numeric(20, 8), volume numeric(20, 8), timestamp timestamptz
) ON COMMIT DELETE ROWS
"""
# Where nothing is stored, of a plain table, rows are copied as they come, in a third of the time.
# What a trigger or a rule does with them is only seen beside staged rows.
IS_FRESH = """
SELECT relkind = 'r' AND NOT relhastriggers AND NOT relhasrules AND (
    SELECT min(timestamp) FROM public.market_data
    WHERE symbol = %(symbol)s AND interval = %(interval)s AND timestamp >= %(first)s
) <= %(last)s IS NOT TRUE
FROM pg_class WHERE oid = 'public.market_data'::regclass
"""
COPY_FRESH = """
COPY public.market_data
    (symbol, interval, timestamp, open_price, high_price, low_price, close_price, volume)
FROM STDIN (DELIMITER ',')
"""
# Columns of another type would round.
STORED_SUMS = """
SELECT count(*), sum(open_price), sum(high_price), sum(low_price), sum(close_price), sum(volume)
FROM public.market_data
WHERE symbol = %(symbol)s AND interval = %(interval)s
    AND timestamp >= %(first)s AND timestamp <= %(last)s
"""
COPY = """
COPY candle_staging (timestamp, open_price, high_price, low_price, close_price, volume)
FROM STDIN (DELIMITER ',')
"""
# Rows that are equal are not touched: a re-run leaves no dead tuples, and the counts are the truth.
# What was there before is told by the statement's snapshot: a partitioned table has no xmax to ask.
# All look at the stretch alone: a page over midnight is staged in two, and a probe a row cost twice
# as much as the rows.
UPSERT_CANDLES = """
WITH before AS MATERIALIZED (
    SELECT timestamp FROM public.market_data
    WHERE symbol = %(symbol)s AND interval = %(interval)s
        AND timestamp >= %(first)s AND timestamp <= %(last)s
), written AS (
    INSERT INTO public.market_data AS stored
        (symbol, interval, timestamp, open_price, high_price, low_price, close_price, volume)
    SELECT %(symbol)s, %(interval)s, timestamp,
        open_price, high_price, low_price, close_price, volume
    FROM candle_staging WHERE timestamp >= %(first)s AND timestamp <= %(last)s ORDER BY timestamp
    ON CONFLICT (symbol, interval, timestamp) DO UPDATE SET
        open_price = excluded.open_price, high_price = excluded.high_price,
        low_price = excluded.low_price, close_price = excluded.close_price,
        volume = excluded.volume
    WHERE (stored.open_price, stored.high_price, stored.low_price, stored.close_price,
            stored.volume)
        IS DISTINCT FROM (excluded.open_price, excluded.high_price, excluded.low_price,
            excluded.close_price, excluded.volume)
    RETURNING timestamp
)
SELECT count(*), count(before.timestamp), min(written.timestamp),
    count(before.timestamp) FILTER (WHERE EXISTS (
        SELECT FROM trading_pipelines.candle_coverage AS known
        WHERE known.symbol = %(symbol)s AND known.interval = %(interval)s
            AND known.day = (timestamp AT TIME ZONE 'UTC')::date
            AND known.fetched_until <= timestamp AND timestamp < known.provisional_until))
FROM written LEFT JOIN before USING (timestamp)
"""
# A trigger or a rule of the bot's may drop or change what is written, without an error.
NOT_KEPT = """
SELECT staged.timestamp FROM candle_staging AS staged
LEFT JOIN public.market_data AS stored
    ON symbol = %(symbol)s AND interval = %(interval)s AND stored.timestamp = staged.timestamp
        AND stored.timestamp >= %(first)s AND stored.timestamp <= %(last)s
WHERE staged.timestamp >= %(first)s AND staged.timestamp <= %(last)s
    AND (stored.open_price, stored.high_price, stored.low_price, stored.close_price, stored.volume)
    IS DISTINCT FROM (staged.open_price, staged.high_price, staged.low_price,
        staged.close_price, staged.volume)
ORDER BY 1 LIMIT 1
"""
FORGET_ODD_ROWS = """
DELETE FROM trading_pipelines.set_aside_rows
WHERE symbol = %(symbol)s AND timestamp >= %(start)s AND timestamp < %(end)s
    AND timestamp <> ALL(%(minutes)s)
"""
SET_ASIDE = """
INSERT INTO trading_pipelines.set_aside_rows AS known (symbol, timestamp, row, reason)
VALUES (%s, %s, %s, %s)
ON CONFLICT (symbol, timestamp) DO UPDATE
SET row = excluded.row, reason = excluded.reason, set_aside_at = clock_timestamp()
WHERE (known.row, known.reason) IS DISTINCT FROM (excluded.row, excluded.reason)
"""
# A candle that does not start on its minute is left to `db adopt`, which says what to do.
ON_MINUTES = """
FROM public.market_data AS candle
WHERE symbol = %(symbol)s AND interval = %(interval)s
    AND timestamp >= %(start)s AND timestamp < %(end)s
    AND timestamp = date_trunc('minute', timestamp)
"""
# More than the exchange has: which they are is asked for then alone.
HAS_MORE = f"""
SELECT has_table_privilege('public.market_data', 'DELETE')
    AND (SELECT count(*) {ON_MINUTES}) > %(confirmed)s
"""
MOVE_UNCONFIRMED = f"""
WITH moved AS (
    DELETE {ON_MINUTES} AND timestamp <> ALL(%(minutes)s)
    RETURNING timestamp, to_jsonb(candle) AS content)
INSERT INTO trading_pipelines.unconfirmed_candles (symbol, timestamp, candle)
SELECT %(symbol)s, timestamp, content FROM moved RETURNING timestamp
"""  # noqa: S608 - constants


class NotStoredError(OperatorError):
    """The bot's table does not take a candle; the message says which, and why."""


@dataclass(frozen=True)
class Written:
    """What an upsert changed: rows that were missing and rows that differed."""

    inserted: int
    repaired: int
    first: datetime | None = field(default=None, compare=False)
    """The earliest minute that changed."""
    of_stream: int = field(default=0, compare=False)
    """Of the repaired, those that were as the exchange's stream had shown them."""


def first_candle(connection: psycopg.Connection, symbol: str) -> datetime | None:
    """Return the start of the first candle that is stored of a symbol."""
    row = connection.execute(
        "SELECT min(timestamp) FROM public.market_data WHERE symbol = %s AND interval = %s",
        [symbol, INTERVAL],
    ).fetchone()
    return row[0] if row else None


def lock(connection: psycopg.Connection, symbol: str) -> None:
    """Be the one writer of the symbol's minutes until the transaction's end.

    A backfill, the schedule and the reader of the stream may meet on the same day.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"{INTERVAL} {symbol}"])


def write_candles(
    connection: psycopg.Connection, symbol: str, candles: Sequence[Candle]
) -> Written:
    """Insert the candles that are missing and replace those that differ, in this transaction.

    They are oldest first. Raises NotStoredError where the table refuses one, or a trigger of the
    bot's drops or changes it; the transaction is then of no more use.
    """
    if not candles:
        return Written(0, 0)
    stretch = {
        "symbol": symbol,
        "interval": INTERVAL,
        "first": candles[0].start,
        "last": candles[-1].start,
    }
    # In one piece: row by row the driver took as long as the server.
    rows = [",".join(map(str, candle)) + "\n" for candle in candles]
    if _copy_fresh(connection, stretch, candles, rows):
        return Written(len(candles), 0, candles[0].start)
    with connection.cursor() as cursor:
        cursor.execute(STAGING)
        with cursor.copy(COPY) as copy:
            copy.write("".join(rows))
        try:
            row = cursor.execute(UPSERT_CANDLES, stretch).fetchone()
        except (psycopg.IntegrityError, psycopg.errors.RaiseException) as error:
            raise NotStoredError(
                f"market_data takes no candle of {symbol}: {' '.join(str(error).split())}"
            ) from error
        if not_kept := cursor.execute(NOT_KEPT, stretch).fetchone():
            raise NotStoredError(
                f"market_data does not keep the candle of {symbol} at {not_kept[0]:%Y-%m-%d %H:%M}"
                " UTC as it was written: see its triggers"
            )
    assert row is not None, "an aggregate is one row"
    changed, repaired, first, of_stream = row
    return Written(changed - repaired, repaired, first, of_stream)


def _copy_fresh(
    connection: psycopg.Connection,
    stretch: Mapping[str, object],
    candles: Sequence[Candle],
    rows: Iterable[str],
) -> bool:
    """Copy the rows where nothing is stored yet; return whether they are stored as they are."""
    if connection.execute(IS_FRESH, stretch).fetchone() != (True,):
        return False
    key = f"{stretch['symbol']},{stretch['interval']},"
    sums = (len(candles), *map(sum, list(zip(*candles, strict=True))[1:]))
    # A row of somebody else's that came meanwhile, a constraint, a right: the staged way says what.
    with suppress(psycopg.DatabaseError), connection.transaction() as savepoint:
        with connection.cursor().copy(COPY_FRESH) as copy:
            copy.write("".join(key + row for row in rows))
        if connection.execute(STORED_SUMS, stretch).fetchone() == sums:
            return True
        raise psycopg.Rollback(savepoint)
    return False


def set_aside(
    connection: psycopg.Connection, symbol: str, interval: Interval, rows: Sequence[OddRow]
) -> None:
    """Keep the interval's odd rows in the place of those that were set aside of it before."""
    bounds = {"symbol": symbol, "start": interval.start, "end": interval.end}
    connection.execute(FORGET_ODD_ROWS, bounds | {"minutes": [row.start for row in rows]})
    for row in rows:
        connection.execute(SET_ASIDE, [symbol, row.start, row.row, row.reason])


def move_unconfirmed(
    connection: psycopg.Connection,
    symbol: str,
    interval: Interval,
    minutes: Sequence[datetime],
    confirmed: int,
) -> Counter[date]:
    """Move away the interval's stored candles that start in none of `minutes`, the exchange's.

    `confirmed`: how many of those are known to be stored in the interval. Returns how many of each
    UTC day. A role that may not delete leaves them.
    """
    arguments: dict[str, object] = {
        "symbol": symbol,
        "interval": INTERVAL,
        "start": interval.start,
        "end": interval.end,
        "confirmed": confirmed,
    }
    if connection.execute(HAS_MORE, arguments).fetchone() != (True,):
        return Counter()
    moved = connection.execute(MOVE_UNCONFIRMED, arguments | {"minutes": list(minutes)})
    return Counter(start.astimezone(UTC).date() for (start,) in moved)
