"""Contracts of the stored candles, asked of the tables: what is broken, where, and how.

Each function returns findings, never raises for them; whether a finding blocks or warns, and how it
is shown, belongs in `assets/market_data`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import psycopg

from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.windows import day_interval

# An open day's candles may be this old: three ticks of the schedule.
FRESH_OPEN = timedelta(minutes=15)
# A day that has closed is asked for whole by then.
FRESH_CLOSED = timedelta(hours=1)
# The widest step from a close to the next open was 0.7 % in the three recorded weeks of minutes,
# and 1.9 % over the maintenance windows in 3.5 years of hours.
LARGEST_MOVE = 0.05


@dataclass(frozen=True)
class ContractBreach:
    """One day of one symbol that breaks a contract, and how."""

    symbol: str
    day: date
    what: str


CANDLES = """
FROM public.market_data
WHERE interval = '1m' AND symbol = ANY(%(symbols)s)
  AND timestamp >= %(first)s::date::timestamp AT TIME ZONE 'UTC'
  AND timestamp < (%(last)s::date + 1)::timestamp AT TIME ZONE 'UTC'
"""
OVERLAPS = f"""
SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
    count(*) || ' candles in the minute of ' || to_char(min(timestamp), 'HH24:MI') || ' UTC' AS what
{CANDLES}
GROUP BY symbol, 2, date_trunc('minute', timestamp)
HAVING count(*) > 1 OR min(timestamp) <> date_trunc('minute', min(timestamp))
ORDER BY 1, 2
"""
BROKEN_OHLC = f"""
SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
    count(*) || ' candles, the first at ' || to_char(min(timestamp), 'HH24:MI') || ' UTC' AS what
{CANDLES}
-- NaN, which numeric can hold, is above every number.
AND NOT (0 < low_price AND low_price <= least(open_price, close_price)
    AND greatest(open_price, close_price) <= high_price AND high_price < 'NaN'
    AND 0 <= volume AND volume < 'NaN')
GROUP BY 1, 2 ORDER BY 1, 2
"""
JUMPS = f"""
SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
    'from ' || trim_scale(before) || ' to ' || trim_scale(open_price) || ' at '
        || to_char(timestamp, 'HH24:MI') || ' UTC' AS what
FROM (
    SELECT symbol, timestamp, open_price,
        lag(close_price) OVER (PARTITION BY symbol ORDER BY timestamp) AS before
    {CANDLES}
) AS moves
WHERE abs(open_price / before - 1) > %(largest_move)s
ORDER BY 1, 2, timestamp
"""  # noqa: S608


def _find(
    connection: psycopg.Connection, query: str, symbols: Sequence[str], days: Sequence[date]
) -> list[ContractBreach]:
    cursor = connection.execute(
        query,
        {
            "symbols": list(symbols),
            "first": min(days),
            "last": max(days),
            "largest_move": LARGEST_MOVE,
        },
    )
    wanted = set(days)
    return [ContractBreach(*row) for row in cursor if row[1] in wanted]


def overlaps(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date]
) -> list[ContractBreach]:
    """Find minutes with two candles, and candles that do not start on the minute."""
    return _find(connection, OVERLAPS, symbols, days)


def broken_ohlc(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date]
) -> list[ContractBreach]:
    """Find candles whose prices contradict each other or are not positive."""
    return _find(connection, BROKEN_OHLC, symbols, days)


def jumps(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date]
) -> list[ContractBreach]:
    """Find neighbouring candles more than 5 % apart: a wrong market, or a night to remember."""
    return _find(connection, JUMPS, symbols, days)


def holes(known: Sequence[CandleCoverage], now: datetime) -> list[ContractBreach]:
    """Find minutes of closed days that were never asked for, and candles that are gone."""
    return [
        ContractBreach(day.symbol, day.day, f"{missing} minutes")
        for day in known
        if (missing := day.holes(now))
    ]


def stale(known: Sequence[CandleCoverage], now: datetime) -> list[ContractBreach]:
    """Find open days whose candles are old, and closed days not asked for whole in time."""
    return [
        ContractBreach(
            day.symbol, day.day, f"{day.status}, candles until {day.fetched_until:%H:%M} UTC"
        )
        for day in known
        if not day.complete
        and now > min(day.fetched_until + FRESH_OPEN, day_interval(day.day).end + FRESH_CLOSED)
    ]
