"""Coverage: for each symbol and UTC day, what the exchange was asked for and what it had.

A day is complete when it was asked for whole after it had closed, never by counting rows: a minute
in which nothing was traded has no candle (`quiet`); one that was never asked for is a hole. What to
do about it belongs in `due`; the rows themselves in `store`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles.back_off import BACK_OFF, back_off_parameters
from trading_pipelines.candles.page import PAGE_SIZE
from trading_pipelines.candles.store import INTERVAL
from trading_pipelines.candles.windows import MINUTE, Interval, day_interval
from trading_pipelines.settings.strategy import DataSettings, HealingSettings

FILE = re.compile(r"^\S+\.zip")
"""The name of a history file, at the start of a `source`: a year of them is one in a summary."""


class FailureKind(StrEnum):
    """What has failed; a day's attempts are spent by failures in a row of the same kind."""

    AWAY = "away"
    """The exchange gave no answer: it will be back, so this spends no attempt, however long."""
    ANSWER = "answer"
    """The exchange answered, and the answer can't be used."""
    CONTRACT = "contract"
    """The stored candles break a contract, whatever is fetched: only a passing check ends it."""
    MARKET = "market"
    """The exchange does not know the market, which may be listed by tomorrow."""


@dataclass(frozen=True)
class CandleCoverage:
    """What is known of one symbol's UTC day; see the comments on `candle_coverage`'s columns.

    A day that was never asked for has status `missing` and zeros.
    """

    symbol: str
    day: date
    status: str
    fetched_until: datetime
    confirmed_until: datetime
    rows: int
    quiet: int
    repaired: int
    requests: int
    waits: int
    seconds: float
    source: str | None
    run_id: str | None
    failures: int
    error: str | None
    retry_at: datetime | None
    left_failed: bool
    """Its attempts are spent: it is due once a day, or when somebody asks for it."""
    hours_current: bool
    """The hourly candles were computed from the minutes as they are."""
    stored: int
    """Candles in the table now, up to fetched_until."""
    first: datetime | None
    last: datetime | None
    set_aside: int = 0
    """Rows of the exchange's that can't be candles."""
    set_aside_from: datetime | None = None
    provisional_until: datetime | None = None
    streamed: int = 0
    late: int = 0
    corrected: int = 0

    @property
    def complete(self) -> bool:
        """Whether the day was asked for whole after it had closed."""
        return self.status == "complete"

    @property
    def damaged(self) -> bool:
        """Whether candles have come or gone since the exchange was fetched."""
        return self.stored != self.rows

    def holes(self, now: datetime) -> int:
        """Return the minutes of a closed day never asked for, and the candles that are gone."""
        end = day_interval(self.day).end
        never_asked = (end - self.fetched_until) // MINUTE if end <= now else 0
        return never_asked + max(0, self.rows - self.stored)


@dataclass(frozen=True)
class FetchedInterval:
    """A piece of one day that was asked for and stored."""

    symbol: str
    interval: Interval
    day_closed: bool
    inserted: int
    repaired: int
    corrected: int
    """Of the repaired, those that were as the stream had shown them."""
    changed_from: datetime | None
    """The earliest minute that was inserted or repaired."""
    requests: int
    retries: int
    seconds: float
    source: str
    run_id: str


READ_COVERAGE = """
SELECT symbols.symbol, days.day,
    coalesce(minutes.status, 'missing') AS status,
    coalesce(minutes.fetched_until, day_start) AS fetched_until,
    coalesce(minutes.confirmed_until, day_start) AS confirmed_until,
    coalesce(minutes.rows, 0) AS rows, coalesce(minutes.quiet, 0) AS quiet,
    coalesce(minutes.repaired, 0) AS repaired, coalesce(minutes.requests, 0) AS requests,
    coalesce(minutes.waits, 0) AS waits, coalesce(minutes.seconds, 0) AS seconds,
    minutes.source, minutes.run_id, coalesce(minutes.failures, 0) AS failures,
    minutes.error, minutes.retry_at, coalesce(minutes.left_failed, false) AS left_failed,
    hours.computed_from IS NOT DISTINCT FROM minutes.changed_at
        AND (hours.status = 'complete') IS NOT DISTINCT FROM (minutes.status = 'complete')
        AS hours_current,
    candles.stored, candles.first, candles.last, odd.set_aside, odd.set_aside_from,
    minutes.provisional_until, coalesce(minutes.streamed, 0) AS streamed,
    coalesce(minutes.late, 0) AS late, coalesce(minutes.corrected, 0) AS corrected
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS symbols (symbol, place)
CROSS JOIN unnest(%(days)s::date[]) AS days (day)
CROSS JOIN LATERAL (SELECT days.day::timestamp AT TIME ZONE 'UTC' AS day_start) AS start
LEFT JOIN trading_pipelines.candle_coverage AS minutes
    ON minutes.symbol = symbols.symbol AND minutes.interval = '1m' AND minutes.day = days.day
LEFT JOIN trading_pipelines.candle_coverage AS hours
    ON hours.symbol = symbols.symbol AND hours.interval = '1h' AND hours.day = days.day
CROSS JOIN LATERAL (
    SELECT count(*) AS stored, min(timestamp) AS first, max(timestamp) AS last
    FROM public.market_data AS candle
    WHERE candle.symbol = symbols.symbol AND candle.interval = '1m'
      AND candle.timestamp >= day_start AND candle.timestamp < minutes.fetched_until
) AS candles
CROSS JOIN LATERAL (
    SELECT count(*) AS set_aside, min(timestamp) AS set_aside_from
    FROM trading_pipelines.set_aside_rows AS odd_row
    WHERE odd_row.symbol = symbols.symbol
      AND odd_row.timestamp >= day_start AND odd_row.timestamp < day_start + interval '1 day'
) AS odd
ORDER BY place, days.day
"""

# A pass is one root run: its figures add up, the next pass starts them over. `confirmed_until`
# advances only from where it stands, so that it never vouches for a minute in between. Candles that
# were provisional are new to the hours.
RECORD_FETCHED = """
INSERT INTO trading_pipelines.candle_coverage AS known
    (symbol, interval, day, status, fetched_until, confirmed_until, rows, quiet,
     repaired, requests, waits, seconds, source, run_id)
SELECT %(symbol)s, %(interval)s, %(day)s,
    CASE WHEN %(closed)s AND %(start)s = %(day_start)s AND %(end)s = %(day_end)s
         THEN 'complete' ELSE 'partial' END,
    %(end)s, CASE WHEN %(closed)s AND %(start)s = %(day_start)s THEN %(end)s ELSE %(day_start)s END,
    0, 0, %(repaired)s, %(requests)s, %(waits)s, %(seconds)s, %(source)s, %(run_id)s
ON CONFLICT (symbol, interval, day) DO UPDATE SET
    fetched_until = greatest(known.fetched_until, excluded.fetched_until),
    confirmed_until = CASE WHEN %(closed)s AND %(start)s <= known.confirmed_until
        THEN %(end)s ELSE known.confirmed_until END,
    status = CASE WHEN known.status = 'complete'
        OR (%(closed)s AND %(start)s <= known.confirmed_until AND %(end)s = %(day_end)s)
        THEN 'complete' ELSE 'partial' END,
    repaired = excluded.repaired
        + known.repaired * coalesce(known.run_id = excluded.run_id, false)::int,
    corrected = known.corrected + %(corrected)s,
    requests = excluded.requests
        + known.requests * coalesce(known.run_id = excluded.run_id, false)::int,
    waits = excluded.waits
        + known.waits * coalesce(known.run_id = excluded.run_id, false)::int,
    seconds = excluded.seconds
        + known.seconds * coalesce(known.run_id = excluded.run_id, false)::int,
    source = excluded.source, run_id = excluded.run_id,
    changed_at = CASE WHEN %(changed)s OR (known.provisional_until > known.fetched_until
            AND excluded.fetched_until > known.fetched_until)
        THEN clock_timestamp() ELSE known.changed_at END,
    revised_at = CASE WHEN %(changed_from)s < date_trunc('hour', known.fetched_until, 'UTC')
        THEN clock_timestamp() ELSE known.revised_at END
"""
AMEND = """
UPDATE trading_pipelines.candle_coverage
SET repaired = repaired + %(repaired)s, changed_at = clock_timestamp()
WHERE symbol = %(symbol)s AND interval = %(interval)s AND day = %(day)s
"""
COUNT = """
UPDATE trading_pipelines.candle_coverage AS known
SET rows = stored.rows,
    quiet = extract(epoch FROM known.fetched_until - %(day_start)s) / 60 - stored.rows
        - (SELECT count(*) FROM trading_pipelines.set_aside_rows AS odd
           WHERE symbol = %(symbol)s
             AND timestamp >= %(day_start)s AND timestamp < known.fetched_until
             AND NOT EXISTS (SELECT FROM public.market_data AS candle
                WHERE candle.symbol = %(symbol)s AND candle.interval = %(interval)s
                  AND candle.timestamp = odd.timestamp))
FROM (SELECT count(*) AS rows FROM public.market_data
      WHERE symbol = %(symbol)s AND interval = %(interval)s
        AND timestamp >= %(day_start)s
        AND timestamp < (SELECT fetched_until FROM trading_pipelines.candle_coverage
            WHERE symbol = %(symbol)s AND interval = %(interval)s AND day = %(day)s)) AS stored
WHERE known.symbol = %(symbol)s AND known.interval = %(interval)s AND known.day = %(day)s
"""
CLEAR = """
UPDATE trading_pipelines.candle_coverage
SET failures = 0, trouble = NULL, tries = 0, left_failed = false, left_at = NULL, error = NULL,
    retry_at = NULL
WHERE symbol = %(symbol)s AND interval = %(interval)s AND day = ANY(%(days)s)
    AND failures > 0 AND (trouble IS NOT DISTINCT FROM 'contract') = %(contract_kept)s
"""
# An open day has new minutes to ask for, so its attempts are never spent: a single 404 at 00:30
# would have cost a day of candles and labels. The wait and the alerts count `failures` of every
# kind: 20 that alternated between two kinds were 20 first ones, and no alert was sent.
FAIL_DAY = f"""
INSERT INTO trading_pipelines.candle_coverage AS known
    (symbol, interval, day, status, fetched_until, confirmed_until,
     failures, trouble, tries, left_failed, left_at, error, retry_at, run_id)
SELECT %(symbol)s, %(interval)s, %(day)s, 'failed', %(day_start)s, %(day_start)s,
    failures, trouble, tries, left_failed, CASE WHEN left_failed THEN coalesce(left_at, now()) END,
    %(error)s,
    now() + CASE WHEN left_failed AND %(trouble)s <> 'away' THEN interval '1 day'
        ELSE {BACK_OFF} END, %(run_id)s
FROM (
    SELECT failures, trouble, tries, left_at, was_left OR (now() >= %(day_end)s AND (
        trouble = 'market' OR trouble <> 'away' AND tries >= %(attempts)s)) AS left_failed
    FROM (
        SELECT coalesce(bool_or(left_failed), false) AS was_left,
            coalesce(max(trouble) FILTER (WHERE left_failed), %(trouble)s) AS trouble,
            1 + coalesce(max(failures), 0) AS failures,
            1 + coalesce(max(tries) FILTER (WHERE trouble = %(trouble)s), 0) AS tries,
            max(left_at) AS left_at
        FROM trading_pipelines.candle_coverage
        WHERE symbol = %(symbol)s AND interval = %(interval)s AND day = %(day)s
    ) AS before
) AS tried
ON CONFLICT (symbol, interval, day) DO UPDATE SET
    status = CASE WHEN known.status = 'complete' THEN 'complete' ELSE 'failed' END,
    failures = excluded.failures, trouble = excluded.trouble, tries = excluded.tries,
    left_failed = excluded.left_failed, left_at = excluded.left_at,
    error = excluded.error, retry_at = excluded.retry_at, run_id = excluded.run_id
"""  # noqa: S608 - constants


def read(
    connection: psycopg.Connection, symbols: Iterable[str], days: Iterable[date]
) -> list[CandleCoverage]:
    """Return one entry for each symbol and UTC day, in the symbols' order and by day."""
    with connection.cursor(row_factory=class_row(CandleCoverage)) as cursor:
        cursor.execute(READ_COVERAGE, {"symbols": list(symbols), "days": list(days)})
        return cursor.fetchall()


DAYS_BETWEEN = """
SELECT day FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND day >= %s AND day < %s GROUP BY day ORDER BY day LIMIT %s
"""


def days_between(
    connection: psycopg.Connection, start: date, before: date, number: int
) -> list[date]:
    """Return the first UTC days in [start, before) with minutes on record, at most `number`."""
    return [day for (day,) in connection.execute(DAYS_BETWEEN, [start, before, number])]


# 9 ms with 20,000 rows of coverage, 110 ms with 100,000, which are 27 years of five symbols.
HALF_MADE = """
SELECT minutes.symbol, minutes.day
FROM trading_pipelines.candle_coverage AS minutes
LEFT JOIN trading_pipelines.candle_coverage AS hours
    ON hours.symbol = minutes.symbol AND hours.interval = '1h' AND hours.day = minutes.day
WHERE minutes.interval = '1m' AND minutes.symbol = ANY(%(symbols)s)
  AND minutes.day >= %(start)s AND minutes.day < %(before)s
  AND (minutes.status <> 'complete' OR minutes.failures > 0
    OR hours.computed_from IS DISTINCT FROM minutes.changed_at
    OR hours.status IS DISTINCT FROM 'complete')
  AND NOT minutes.left_failed AND coalesce(minutes.retry_at <= now(), true)
ORDER BY minutes.day DESC LIMIT %(most)s
"""
# The candles of each are counted, a millisecond a day.
MOST_HALF_MADE = 200


def half_made(
    connection: psycopg.Connection, symbols: Sequence[str], start: date, before: date
) -> list[CandleCoverage]:
    """Return the UTC days in [start, before) that were begun and are not done, the newest 200.

    Their minutes were not asked for to the end, or failed, or lack their hours. `before` is where
    the look-back begins; a day that nobody has asked for is none of them, nor one left failed, nor
    one that waits after a failure.
    """
    arguments = {
        "symbols": list(symbols),
        "start": start,
        "before": before,
        "most": MOST_HALF_MADE,
    }
    begun = set(connection.execute(HALF_MADE, arguments).fetchall())
    days = read(connection, {symbol for symbol, _ in begun}, {day for _, day in begun})
    return sorted(
        (day for day in days if (day.symbol, day.day) in begun),
        key=lambda day: (symbols.index(day.symbol), day.day),
    )


# Days that left the look-back by time are what an outage may have left behind; days that left it by
# a change of the settings are not. So an empty settings file of a moment leaves nothing behind.
LOOK_AFTER = """
INSERT INTO trading_pipelines.look_backs AS known (symbol, first_day, start_date, look_back_days)
SELECT symbol, %(first_day)s, %(start_date)s, %(look_back_days)s
FROM unnest(%(symbols)s::text[]) AS symbols (symbol)
ON CONFLICT (symbol) DO UPDATE SET
    left_behind = known.left_behind + CASE WHEN known.is_dropped THEN '{}'::datemultirange
        ELSE datemultirange(daterange(known.first_day, greatest(known.first_day, known.start_date,
            %(today)s::date - known.look_back_days))) END,
    first_day = CASE WHEN known.look_back_days IS NULL AND NOT known.is_dropped
        THEN least(known.first_day, excluded.first_day) ELSE excluded.first_day END,
    start_date = excluded.start_date, look_back_days = excluded.look_back_days, is_dropped = false
WHERE known.is_dropped OR excluded.first_day < known.first_day
    OR (known.start_date, known.look_back_days)
        IS DISTINCT FROM (excluded.start_date, excluded.look_back_days)
"""
DROP_OTHERS = """
UPDATE trading_pipelines.look_backs SET
    left_behind = left_behind + datemultirange(daterange(first_day,
        greatest(first_day, start_date, %(today)s::date - look_back_days))),
    is_dropped = true
WHERE NOT is_dropped AND symbol <> ALL(%(symbols)s)
"""


def look_after(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    settings: DataSettings,
    days: Sequence[date],
) -> None:
    """Record that a schedule looks after the symbols on the UTC days of its look-back.

    The rows tell the gaps that an outage longer than the look-back leaves from history that nobody
    has asked for. They follow the settings: what other settings looked after for a while is no gap.
    """
    arguments = {
        "symbols": list(symbols),
        "first_day": days[0],
        "today": days[-1],
        "start_date": settings.start_date,
        "look_back_days": settings.look_back_days,
    }
    connection.execute(LOOK_AFTER, arguments)
    connection.execute(DROP_OTHERS, arguments)


def record(connection: psycopg.Connection, fetched: FetchedInterval) -> None:
    """Record that a piece of a day was asked for, in the transaction that stored its candles."""
    day = fetched.interval.start.date()
    whole = day_interval(day)
    arguments = {
        "symbol": fetched.symbol,
        "interval": INTERVAL,
        "day": day,
        "day_start": whole.start,
        "day_end": whole.end,
        "start": fetched.interval.start,
        "end": fetched.interval.end,
        "closed": fetched.day_closed,
        "changed": fetched.changed_from is not None,
        "repaired": fetched.repaired,
        "corrected": fetched.corrected,
        "changed_from": fetched.changed_from,
        "requests": fetched.requests,
        "waits": fetched.retries,
        "seconds": fetched.seconds,
        "source": fetched.source,
        "run_id": fetched.run_id,
    }
    connection.execute(RECORD_FETCHED, arguments)
    connection.execute(COUNT, arguments)
    if fetched.interval.end == whole.end or not fetched.day_closed:
        # Pages before the one that fails are no success of the day.
        connection.execute(CLEAR, arguments | {"days": [day], "contract_kept": False})


# Neither what REST vouches for nor when a candle changed for the hours, which wait for REST.
RECORD_SHOWN = """
INSERT INTO trading_pipelines.candle_coverage AS known
    (symbol, interval, day, status, fetched_until, confirmed_until,
     provisional_until, streamed, late)
VALUES (%(symbol)s, %(interval)s, %(day)s, 'partial', %(day_start)s, %(day_start)s,
    %(until)s, %(streamed)s, %(late)s)
ON CONFLICT (symbol, interval, day) DO UPDATE SET
    provisional_until = greatest(known.provisional_until, excluded.provisional_until),
    streamed = known.streamed + excluded.streamed, late = known.late + excluded.late
RETURNING xmax = 0
"""
FETCHED_UNTIL = """
SELECT fetched_until FROM trading_pipelines.candle_coverage
WHERE symbol = %s AND interval = %s AND day = %s
"""


def fetched_until(connection: psycopg.Connection, symbol: str, day: date) -> datetime:
    """Return until when the minutes of the UTC day are REST's."""
    row = connection.execute(FETCHED_UNTIL, [symbol, INTERVAL, day]).fetchone()
    return row[0] if row else day_interval(day).start


def record_shown(
    connection: psycopg.Connection,
    symbol: str,
    day: date,
    until: datetime,
    *,
    streamed: int,
    late: int,
) -> bool:
    """Record minutes that are stored as the stream has shown them, the last one until `until`.

    `streamed` of them are new, `late` were rewritten. Returns whether nothing was known of the day.
    """
    arguments = {
        "symbol": symbol,
        "interval": INTERVAL,
        "day": day,
        "day_start": day_interval(day).start,
        "until": until,
        "streamed": streamed,
        "late": late,
    }
    return connection.execute(RECORD_SHOWN, arguments).fetchone() == (True,)


def amend(connection: psycopg.Connection, symbol: str, day: date, repaired: int) -> None:
    """Record that candles of a day came, were repaired or moved away outside of a pass over it."""
    arguments = {
        "symbol": symbol,
        "interval": INTERVAL,
        "day": day,
        "day_start": day_interval(day).start,
        "repaired": repaired,
    }
    connection.execute(AMEND, arguments)
    connection.execute(COUNT, arguments)


def record_contract_kept(connection: psycopg.Connection, symbol: str, days: Iterable[date]) -> None:
    """Record that what is stored of the days breaks no contract, which ends a failure of that."""
    connection.execute(
        CLEAR,
        {"symbol": symbol, "interval": INTERVAL, "days": list(days), "contract_kept": True},
    )


def record_failure(
    connection: psycopg.Connection,
    symbol: str,
    day: date,
    error: str,
    run_id: str,
    kind: FailureKind,
    healing: HealingSettings,
) -> None:
    """Record a failed attempt, and when the next is; a complete day stays complete.

    When its attempts are spent the day is left failed, until it has been asked for to its end.
    """
    whole = day_interval(day)
    connection.execute(
        FAIL_DAY,
        {
            "symbol": symbol,
            "interval": INTERVAL,
            "day": day,
            "day_start": whole.start,
            "day_end": whole.end,
            "error": error,
            "run_id": run_id,
            "trouble": kind,
            **back_off_parameters(healing),
        },
    )


def interval_to_fetch(
    coverage: CandleCoverage,
    closed_until: datetime,
    run_id: str,
    overlap: timedelta = timedelta(0),
) -> Interval:
    """Return what is still to be fetched of the day; minutes before `closed_until` have closed.

    An open day is topped up from `overlap` before where it stands, which may be on the day before:
    a minute may come late, or be revised. What was set aside is asked for again where that takes no
    request of its own. A closed day is asked for whole once more, or from where an earlier attempt
    stopped. A complete day is asked for again, whole, unless this very run (before it was killed
    and retried) has done so: `run_id` is the root run's.
    """
    whole = day_interval(coverage.day)
    if closed_until < whole.end:
        if closed_until <= coverage.fetched_until:
            return Interval(coverage.fetched_until, closed_until)
        start = coverage.fetched_until - overlap
        odd, page = coverage.set_aside_from, closed_until - MINUTE * PAGE_SIZE
        return Interval(min(start, odd) if odd and odd >= page else start, closed_until)
    if coverage.complete and coverage.run_id != run_id:
        return whole
    return Interval(coverage.confirmed_until, whole.end)


@dataclass(frozen=True)
class SymbolSummary:
    """One symbol over a range of days; counts of one-minute candles, times UTC."""

    symbol: str
    days: int
    complete_days: int
    candles: int
    quiet: int
    holes: int
    requests: int
    first: datetime | None
    last: datetime | None
    source: str


def summarise(coverages: Iterable[CandleCoverage], now: datetime) -> list[SymbolSummary]:
    """Return one line a symbol, in the order in which the symbols come."""
    by_symbol: dict[str, list[CandleCoverage]] = {}
    for coverage in coverages:
        by_symbol.setdefault(coverage.symbol, []).append(coverage)
    return [
        SymbolSummary(
            symbol,
            days=len(days),
            complete_days=sum(day.complete for day in days),
            candles=sum(day.stored for day in days),
            quiet=sum(day.quiet for day in days),
            holes=sum(day.holes(now) for day in days),
            requests=sum(day.requests for day in days),
            first=min((day.first for day in days if day.first), default=None),
            last=max((day.last for day in days if day.last), default=None),
            source=", ".join(
                sorted({FILE.sub("history files", day.source) for day in days if day.source})
            ),
        )
        for symbol, days in by_symbol.items()
    ]
