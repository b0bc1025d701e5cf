"""Contracts of the stored candles, asked of the tables: what is broken, where, and how.

Each check returns breaches, never raises for them; `settle_contract` records what they mean for the
next attempt. Which partition stands red belongs in
`failed_checks`, how a breach is shown in `assets/partition_checks`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import psycopg

from trading_pipelines.candles import coverage, history_files
from trading_pipelines.candles.coverage import CandleCoverage, FailureKind
from trading_pipelines.candles.failed_checks import Partition
from trading_pipelines.candles.windows import day_interval
from trading_pipelines.settings.strategy import HealingSettings

# Of a day that breaks one of these no hours are computed.
BLOCKING = {
    "no_hole_in_a_closed_day": "Each minute of a closed day was asked for; no candle is gone.",
    "no_overlap": "One candle a minute, and each starts on its minute.",
    "ohlc_valid": "Prices are positive, low <= open, close <= high.",
}
# The day goes on without the row, and its check is red.
SERIOUS = {
    "no_row_set_aside": "Each row that the exchange gave is a candle: none was set aside.",
}
WARNING = {
    "prices_continuous": "No candle opens more than 5 % away from the close before it.",
    "history_files_agree": "A history file that was compared has the candles of the exchange, "
    "which are stored where they differ.",
    "fresh": "The open day is at most 15 minutes old; a closed day is complete in an hour.",
}
# These need no candle to be read.
OF_COVERAGE = ("no_hole_in_a_closed_day", "no_row_set_aside", "fresh")
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


FROM_CANDLES = """
FROM public.market_data
WHERE interval = '1m' AND symbol = ANY(%(symbols)s)
  AND timestamp >= %(first)s::date::timestamp AT TIME ZONE 'UTC'
  AND timestamp < (%(last)s::date + 1)::timestamp AT TIME ZONE 'UTC'
"""
OVERLAPS = f"""
SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
    count(*) || ' candles in the minute of ' || to_char(min(timestamp), 'HH24:MI') || ' UTC' AS what
{FROM_CANDLES}
GROUP BY symbol, 2, date_trunc('minute', timestamp)
HAVING count(*) > 1 OR min(timestamp) <> date_trunc('minute', min(timestamp))
ORDER BY 1, 2
"""
BROKEN_OHLC = f"""
SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
    count(*) || ' candles, the first at ' || to_char(min(timestamp), 'HH24:MI') || ' UTC' AS what
{FROM_CANDLES}
-- NaN, which numeric can hold, is above every number.
AND NOT (0 < low_price AND low_price <= least(open_price, close_price)
    AND greatest(open_price, close_price) <= high_price AND high_price < 'NaN'
    AND 0 <= volume AND volume < 'NaN')
GROUP BY 1, 2 ORDER BY 1, 2
"""
ODD_ROWS = """
SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
    to_char(timestamp AT TIME ZONE 'UTC', 'HH24:MI') || ' UTC: ' || reason || ': ' || row AS what
FROM trading_pipelines.set_aside_rows
WHERE symbol = ANY(%(symbols)s)
  AND timestamp >= %(first)s::date::timestamp AT TIME ZONE 'UTC'
  AND timestamp < (%(last)s::date + 1)::timestamp AT TIME ZONE 'UTC'
ORDER BY symbol, timestamp
"""
JUMPS = f"""
SELECT symbol, (timestamp AT TIME ZONE 'UTC')::date AS day,
    'from ' || trim_scale(before) || ' to ' || trim_scale(open_price) || ' at '
        || to_char(timestamp, 'HH24:MI') || ' UTC' AS what
FROM (
    SELECT symbol, timestamp, open_price,
        lag(close_price) OVER (PARTITION BY symbol ORDER BY timestamp) AS before
    {FROM_CANDLES}
) AS moves
WHERE abs(open_price / before - 1) > %(largest_move)s
ORDER BY 1, 2, timestamp
"""  # noqa: S608


def find_breaches(
    connection: psycopg.Connection,
    checks: Iterable[str],
    symbols: Sequence[str],
    days: Sequence[date],
    now: datetime,
) -> dict[str, list[ContractBreach]]:
    """Return what each of the named checks finds on the symbols' UTC days, as of `now` (UTC)."""
    stored = coverage.read(connection, symbols, days)
    finders: dict[str, Callable[[], list[ContractBreach]]] = {
        "no_hole_in_a_closed_day": lambda: holes(stored, now),
        "no_overlap": lambda: overlaps(connection, symbols, days),
        "ohlc_valid": lambda: broken_ohlc(connection, symbols, days),
        "no_row_set_aside": lambda: odd_rows(connection, symbols, days),
        "prices_continuous": lambda: jumps(connection, symbols, days),
        "history_files_agree": lambda: differing_files(connection, symbols, days),
        "fresh": lambda: stale(stored, now),
    }
    return {check: finders[check]() for check in checks}


def settled(partitions: Iterable[Partition], now: datetime) -> list[Partition]:
    """Return the partitions without the days whose last minutes may still be on their way."""
    return [
        (symbol, day)
        for symbol, day in partitions
        if not timedelta(0) <= now - day_interval(day).end < FRESH_CLOSED
    ]


def settle_contract(
    connection: psycopg.Connection,
    breaches: Mapping[str, Mapping[Partition, Sequence[ContractBreach]]],
    partitions: Collection[Partition],
    run_id: str,
    healing: HealingSettings,
) -> set[Partition]:
    """Record each partition that breaks a blocking check as failed, and the others as kept.

    Returns the failed ones. The schedule then retries the day alone and with back-off; without this
    the other symbols of its run would lose their hours at every tick. A day with several breaches
    has failed once. Nothing is recorded as kept unless `breaches` has an entry for every blocking
    check.
    """
    broken = {
        partition: f"{check}: {of_day[-1].what}"
        for check in BLOCKING
        for partition, of_day in breaches.get(check, {}).items()
    }
    for (symbol, day), error in broken.items():
        coverage.record_failure(
            connection, symbol, day, error, run_id, FailureKind.CONTRACT, healing
        )
    if BLOCKING.keys() <= breaches.keys():
        for symbol in {symbol for symbol, _ in partitions}:
            kept = [day for other, day in partitions
                    if other == symbol and (symbol, day) not in broken]  # fmt: skip
            coverage.record_contract_kept(connection, symbol, kept)
    return set(broken)


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
    requested = set(days)
    return [ContractBreach(*row) for row in cursor if row[1] in requested]


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


def odd_rows(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date]
) -> list[ContractBreach]:
    """Find rows of the exchange's that can't be candles."""
    return _find(connection, ODD_ROWS, symbols, days)


def jumps(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date]
) -> list[ContractBreach]:
    """Find neighbouring candles more than 5 % apart: a wrong market, or a night to remember."""
    return _find(connection, JUMPS, symbols, days)


def differing_files(
    connection: psycopg.Connection, symbols: Sequence[str], days: Sequence[date]
) -> list[ContractBreach]:
    """Find days whose history file has other candles than the exchange."""
    return [
        ContractBreach(note.symbol, note.day, f"{note.name}: {note.difference}")
        for note in history_files.read(connection, symbols, days)
        if note.differs
    ]


def holes(coverages: Sequence[CandleCoverage], now: datetime) -> list[ContractBreach]:
    """Find minutes of closed days that were never asked for, and candles that are gone."""
    return [
        ContractBreach(coverage.symbol, coverage.day, f"{missing} minutes")
        for coverage in coverages
        if (missing := coverage.holes(now))
    ]


def stale(coverages: Sequence[CandleCoverage], now: datetime) -> list[ContractBreach]:
    """Find open days whose candles are old, and closed days not asked for whole in time."""
    return [
        ContractBreach(
            coverage.symbol,
            coverage.day,
            f"{coverage.status}, candles until {coverage.fetched_until:%H:%M} UTC",
        )
        for coverage in coverages
        if not coverage.complete
        and now
        > min(coverage.fetched_until + FRESH_OPEN, day_interval(coverage.day).end + FRESH_CLOSED)
    ]
