"""Hourly candles of minutes: [hh:00, hh+1:00) UTC, closed hours only.

An hour has closed for us when each of its minutes has been asked for; an hour in which nothing was
traded has no candle, as on the exchange. Indicators on hours belong in `signals/`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import psycopg

from trading_pipelines.candles.windows import MINUTE, day_interval

# Read before the minutes: a minute that arrives in between makes the hours look older than they
# are, which costs a recomputation; the other order would lose it.
READ_MINUTE_COVERAGE = """
SELECT date_trunc('hour', fetched_until, 'UTC') AS until, changed_at,
    CASE status WHEN 'complete' THEN 'complete' ELSE 'partial' END AS status, source
FROM trading_pipelines.candle_coverage
WHERE symbol = %(symbol)s AND interval = '1m' AND day = %(day)s
"""
# In numeric throughout, so that a second run gives the same digits.
UPSERT_HOURS = """
WITH written AS (
INSERT INTO trading_pipelines.candles_1h AS stored
    (symbol, timestamp, open_price, high_price, low_price, close_price, volume, minutes)
SELECT symbol, date_trunc('hour', timestamp, 'UTC'),
    (array_agg(open_price ORDER BY timestamp))[1], max(high_price), min(low_price),
    (array_agg(close_price ORDER BY timestamp DESC))[1], sum(volume), count(*)
FROM public.market_data
WHERE symbol = %(symbol)s AND interval = '1m'
    AND timestamp >= %(start)s AND timestamp < %(until)s
GROUP BY 1, 2
ON CONFLICT (symbol, timestamp) DO UPDATE SET
    open_price = excluded.open_price, high_price = excluded.high_price,
    low_price = excluded.low_price, close_price = excluded.close_price,
    volume = excluded.volume, minutes = excluded.minutes
WHERE (stored.open_price, stored.high_price, stored.low_price, stored.close_price,
        stored.volume, stored.minutes)
    IS DISTINCT FROM (excluded.open_price, excluded.high_price, excluded.low_price,
        excluded.close_price, excluded.volume, excluded.minutes)
RETURNING timestamp
)
SELECT EXISTS (
    SELECT FROM trading_pipelines.candles_1h AS before
    WHERE symbol = %(symbol)s AND before.timestamp = written.timestamp)
FROM written
"""
DELETE_EMPTY = """
DELETE FROM trading_pipelines.candles_1h AS hour
WHERE symbol = %(symbol)s AND timestamp >= %(start)s AND timestamp < %(end)s AND NOT EXISTS (
    SELECT FROM public.market_data AS minute
    WHERE minute.symbol = hour.symbol AND minute.interval = '1m'
      AND minute.timestamp >= hour.timestamp
      AND minute.timestamp < hour.timestamp + interval '1 hour')
"""
RECORD_HOURS = """
INSERT INTO trading_pipelines.candle_coverage AS known
    (symbol, interval, day, status, fetched_until, confirmed_until, rows, quiet, repaired,
     source, run_id, computed_from)
SELECT %(symbol)s, %(interval)s, %(day)s, %(status)s, %(until)s, %(until)s, hours.rows,
    extract(epoch FROM %(until)s - %(start)s) / 3600 - hours.rows, %(repaired)s,
    %(source)s, %(run_id)s, %(changed_at)s
FROM (SELECT count(*) AS rows FROM trading_pipelines.candles_1h
      WHERE symbol = %(symbol)s AND timestamp >= %(start)s AND timestamp < %(end)s) AS hours
ON CONFLICT (symbol, interval, day) DO UPDATE SET
    status = excluded.status, fetched_until = excluded.fetched_until,
    confirmed_until = excluded.confirmed_until, rows = excluded.rows, quiet = excluded.quiet,
    repaired = excluded.repaired, source = excluded.source, run_id = excluded.run_id,
    computed_from = excluded.computed_from,
    changed_at = CASE WHEN %(changed)s THEN clock_timestamp() ELSE known.changed_at END
"""
READ_HOURS = """
SELECT known.symbol, known.day, known.rows, known.repaired, known.quiet, hours.first, hours.last
FROM trading_pipelines.candle_coverage AS known
CROSS JOIN LATERAL (SELECT known.day::timestamp AT TIME ZONE 'UTC' AS day_start) AS start
CROSS JOIN LATERAL (
    SELECT min(timestamp) AS first, max(timestamp) AS last FROM trading_pipelines.candles_1h
    WHERE symbol = known.symbol
        AND timestamp >= day_start AND timestamp < day_start + interval '1 day'
) AS hours
WHERE known.interval = '1h' AND known.symbol = ANY(%s) AND known.day = ANY(%s)
"""


HOURS_UNTIL = """
SELECT count(*) FROM trading_pipelines.candle_coverage
WHERE interval = '1h' AND symbol = ANY(%s) AND fetched_until >= %s AND day = %s
"""
LOOK_SECONDS = 0.3


@dataclass(frozen=True)
class ResampledDay:
    """The hours of one UTC day: candles, those that were replaced or removed, hours without one."""

    symbol: str
    day: date
    rows: int
    repaired: int
    quiet: int
    first: datetime | None
    last: datetime | None


def resample(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date], run_id: str
) -> list[ResampledDay]:
    """Bring `candles_1h` of the UTC days up to date with the minutes, a transaction a day.

    Days that were never asked for are passed over. `connection` is autocommit.
    """
    resampled: list[ResampledDay] = []
    for symbol in symbols:
        for day in days:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"1h {symbol}"])
                whole = day_interval(day)
                arguments: dict[str, object] = {
                    "symbol": symbol,
                    "interval": "1h",
                    "day": day,
                    "start": whole.start,
                    "end": whole.end,
                    "run_id": run_id,
                }
                minute_coverage = cursor.execute(READ_MINUTE_COVERAGE, arguments).fetchone()
                if minute_coverage is None:
                    continue
                arguments |= zip(
                    ("until", "changed_at", "status", "source"), minute_coverage, strict=True
                )
                was_there = [row[0] for row in cursor.execute(UPSERT_HOURS, arguments)]
                removed = cursor.execute(DELETE_EMPTY, arguments).rowcount
                arguments["repaired"] = sum(was_there) + removed
                arguments["changed"] = bool(was_there or removed)
                cursor.execute(RECORD_HOURS, arguments)
                resampled += read(connection, [symbol], [day])
    return resampled


def read(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date]
) -> list[ResampledDay]:
    """Return the hours of each symbol's UTC day that has been computed, in any order."""
    arguments = [list(symbols), list(days)]
    return [ResampledDay(*row) for row in connection.execute(READ_HOURS, arguments)]


def await_hours(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    until: datetime,
    seconds: float,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Wait until the hours of every symbol reach `until` (UTC), at most for so many seconds.

    Returns whether they do. `connection` is autocommit.
    """
    # Midnight is the end of the day before.
    day = (until - MINUTE).date()
    deadline = time.monotonic() + seconds
    while True:
        row = connection.execute(HOURS_UNTIL, [list(symbols), until, day]).fetchone()
        if row == (len(symbols),):
            return True
        if time.monotonic() > deadline:
            return False
        sleep(LOOK_SECONDS)
