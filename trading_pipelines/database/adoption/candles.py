"""The second half of an inspection: the candles and the regimes that the bot has stored.

Which of them are missing, torn or impossible, and which days a backfill should repair. Tables and
rights belong in `schema`; what a backfill would change, by the exchange's word, in
`candles.compare`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from statistics import correlation
from typing import Any

import psycopg
from psycopg import sql

from trading_pipelines.database.adoption.bot_columns import KEY, MOMENT
from trading_pipelines.database.adoption.findings import Hole, Level, Repair, StoredCandles
from trading_pipelines.database.adoption.inspector import Inspector, listed
from trading_pipelines.database.adoption.queries import (
    COMPRESSED,
    DAYS,
    DOUBLES,
    FUTURE,
    HOLES,
    HOURLY_SHARES,
    HYPERTABLE,
    REGIMES,
    SETTLED,
    STRAYS,
    TOTALS,
)
from trading_pipelines.database.connection import SCHEMA

# In the 105 recorded days of whole candles the sum of the steps from a close to the next minute's
# open was 0.22 to 0.75 of the sum of the moves inside the candles; cut at the half of their minute
# the same candles come to 1.05 to 1.8.
SUSPECT_PAIRS = 60
# Repairs of one symbol that are less than this apart are asked for as one.
JOINED = timedelta(days=7)
# From these on TimescaleDB takes an upsert, and a new unique key, where chunks are compressed.
UPSERT_SINCE, UNIQUE_SINCE = (2, 11), (2, 20)
WRITTEN_AT = ("created_at", "inserted_at")
# A candle this far ahead may be of a machine whose clock is.
CLOCKS_APART = timedelta(minutes=2)
KOREA = 9
# The median share of each UTC hour in the volume of a day, over the mean hour's: five symbols of
# Upbit, January 2022 to June 2025. Of their 910 weeks none correlates better nine hours later; of
# the recorded weeks, moved by nine hours, each correlates more than 0.5 better.
USUAL_SHARES = [
    *(1.84, 1.43, 1.16, 1.00, 0.96, 0.94, 0.98, 1.02, 1.07, 0.99, 0.96, 1.03),
    *(1.25, 1.45, 1.47, 1.19, 0.84, 0.56, 0.46, 0.42, 0.49, 0.65, 0.84, 0.99),
]


class CandleInspector(Inspector):
    """Judges the stored candles; `now` is aware UTC."""

    def __init__(
        self, connection: psycopg.Connection, symbols: Sequence[str], now: datetime
    ) -> None:
        super().__init__(connection, symbols)
        self._now = now
        self._today = now.astimezone(UTC).date()
        self._days: dict[str, set[date]] = {}
        self.candles: list[StoredCandles] = []
        self.holes: list[Hole] = []

    def judge_candles(
        self, columns: Sequence[Any], *, has_coverage: bool, moves_doubles: bool
    ) -> None:
        """Judge market_data, which has these columns; with coverage, complete days are sound."""
        if not self._are_in_time():
            return
        settled = {(symbol, day) for symbol, day in self.rows(SETTLED)} if has_coverage else set()
        self.candles = [StoredCandles(*row) for row in self.rows(TOTALS)]
        self._judge_totals(moves_doubles=moves_doubles)
        holes = [Hole(*row) for row in self.rows(HOLES, [self._symbols])]
        self.holes = [part for hole in holes for part in _unsettled(hole, settled)]
        self._judge_holes()
        self._judge_days(columns, settled)
        self._judge_clock(settled)

    def _are_in_time(self) -> bool:
        strays = self.rows(STRAYS)
        for symbol, rows in strays:
            self.mend(
                about=symbol,
                what=f"{rows:,} candles outside the years 2000 to 2100",
                advice="look at them, then: DELETE FROM public.market_data "
                "WHERE timestamp NOT BETWEEN '2000-01-01Z' AND '2100-01-01Z';",
            )
        return not strays

    def _judge_totals(self, *, moves_doubles: bool) -> None:
        if moves_doubles:
            self.note(
                about="market_data",
                what=f"no unique key: `db upgrade` moves {self.value(DOUBLES):,} doubles to "
                f"{SCHEMA}.market_data_doubles, of each the row written last stays, and adds {KEY}",
                advice="stop the bot meanwhile: nobody can write while "
                f"{sum(stored.rows for stored in self.candles):,} rows get the key",
            )
        for stored in self.candles:
            symbol, rows = stored.symbol, f"{stored.rows:,}"
            if stored.interval != "1m":
                self.note(symbol, f"{rows} rows of interval {stored.interval}: left alone")
            elif symbol not in self._symbols:
                self.note(
                    about=symbol,
                    what=f"{rows} candles of a symbol that is not in the settings: left alone",
                )
        with_minutes = {stored.symbol for stored in self.candles if stored.interval == "1m"}
        for symbol in self._symbols:
            if symbol not in with_minutes:
                self.note(symbol, "no candles yet")

    def _judge_holes(self) -> None:
        for symbol in self._symbols:
            of_symbol = [hole for hole in self.holes if hole.symbol == symbol]
            minutes = [hole.minutes for hole in of_symbol]
            if minutes:
                self.find(
                    level=Level.REPAIR,
                    about=symbol,
                    what=f"{sum(minutes):,} minutes missing in {len(minutes):,} stretches, the "
                    f"longest of {max(minutes):,}; the exchange alone can tell a hole from minutes "
                    "without a trade",
                )
            for hole in of_symbol:
                self._days.setdefault(symbol, set()).update(_days(hole))

    def _judge_days(self, columns: Sequence[Any], settled: set[tuple[str, date]]) -> None:
        names = {column.name for column in columns if column.type == MOMENT}
        written_at = next((name for name in WRITTEN_AT if name in names), None)
        early: sql.Composable = sql.SQL("false")
        if written_at:
            early = sql.SQL("{} < timestamp + interval '1 minute'").format(
                sql.Identifier(written_at)
            )
        days = self.rows(sql.SQL(DAYS).format(early=early), [self._symbols])
        unsure = [day for day in days if (day.symbol, day.day) not in settled]
        torn = [day for day in unsure if day.is_torn and day.pairs >= SUSPECT_PAIRS]
        self._judge_faults(
            level=Level.MEND,
            days=days,
            column="misaligned",
            what="candles do not start on the minute",
            advice="no backfill replaces them, and their days stay red. Look at them, then: DELETE "
            "FROM public.market_data WHERE interval = '1m' AND symbol = '{symbol}' "
            "AND timestamp <> date_trunc('minute', timestamp);",
        )
        self._judge_faults(
            level=Level.REPAIR,
            days=days,
            column="impossible",
            what="candles with prices or a volume that can't be",
        )
        self._judge_faults(
            level=Level.REPAIR,
            days=unsure,
            column="early",
            what=f"candles were written ({written_at}) before their minute had closed: frozen",
        )
        self._judge_faults(
            level=Level.REPAIR,
            days=torn,
            column="pairs",
            what="candles of days in which closes do not meet the next open: frozen while they "
            "formed, or a market with a trade a minute",
        )

    def _judge_faults(
        self, level: Level, days: Sequence[Any], column: str, what: str, advice: str = ""
    ) -> None:
        for symbol in self._symbols:
            candles_by_day = {
                day.day: getattr(day, column)
                for day in days
                if day.symbol == symbol and getattr(day, column)
            }
            if candles_by_day:
                self.find(
                    level=level,
                    about=symbol,
                    what=f"{sum(candles_by_day.values()):,} {what}; {listed(candles_by_day)} (UTC)",
                    advice=advice.format(symbol=symbol),
                )
                if level is Level.REPAIR:
                    self._days.setdefault(symbol, set()).update(candles_by_day)

    def _judge_clock(self, settled: set[tuple[str, date]]) -> None:
        """Judge whether candles stand where they were traded: Korean time is nine hours ahead."""
        future = self.rows(FUTURE, {"symbols": self._symbols, "now": self._now + CLOCKS_APART})
        for symbol, rows, first, last in future:
            days = [self._today - timedelta(days=n) for n in range(1, 8)]
            self.mend(
                about=symbol,
                what=f"{rows:,} candles start after now, up to {last:%Y-%m-%d %H:%M} UTC: Korean "
                "time stored as UTC is nine hours ahead, and so are the days before",
                advice=OF_THE_FUTURE.format(
                    symbol=symbol, first=first, comparison=_comparison(symbol, days)
                ),
            )
        for symbol, nested, shares in self.rows(HOURLY_SHARES, [self._symbols]):
            days = sorted({day for days in nested for day in days if (symbol, day) not in settled})
            if days and _is_ahead(shares):
                self.find(
                    level=Level.REPAIR,
                    about=symbol,
                    what=f"the busy hours of {listed(days)} (UTC) lie nine hours after the usual "
                    "ones: Korean time stored as UTC",
                    advice=f"look before the repair: {_comparison(symbol, days)}",
                )
                self._days.setdefault(symbol, set()).update(days)

    def judge_regimes(self, condition: str) -> None:
        """Judge the rows of regime_history that meet the SQL condition: the bot's own."""
        for row in self.rows(sql.SQL(REGIMES).format(theirs=sql.SQL(condition))):
            if row.minutes:
                self.note(
                    about=row.symbol,
                    what=f"{row.minutes:,} minutes with more than one row of regime_history: left, "
                    "the bot reads the newest",
                )
            if row.timeless:
                self.note(
                    about=row.symbol,
                    what=f"{row.timeless:,} rows of regime_history without a time: "
                    "ORDER BY detected_at DESC puts them first",
                    advice="look at them: SELECT * FROM public.regime_history "
                    "WHERE detected_at IS NULL;",
                )

    def repairs(self) -> list[Repair]:
        """Return the backfills that repair the closed days; symbols of equal days are one."""
        by_days: dict[tuple[date, date], list[str]] = {}
        for symbol in self._symbols:
            # Today is still open: the schedule refreshes it.
            days = (day for day in self._days.get(symbol, ()) if day < self._today)
            for interval in _joined(days):
                by_days.setdefault(interval, []).append(symbol)
        return [Repair(tuple(symbols), *days) for days, symbols in sorted(by_days.items())]

    def judge_hypertable(self, repairs: Sequence[Repair], *, has_key: bool) -> None:
        """Judge market_data where TimescaleDB keeps it."""
        for table in self.rows(HYPERTABLE):
            version = tuple(map(int, re.findall(r"\d+", table.version or "")[:2]))
            chunks = self.rows(COMPRESSED)
            self.note(
                about="market_data",
                what=f"a hypertable of TimescaleDB {table.version}, {len(chunks)} chunks "
                f"compressed, policy: {table.compress_after or 'none'}; this project was never run "
                "on one",
            )
            if not has_key and table.is_compressing and version < UNIQUE_SINCE:
                self.mend(
                    about="market_data",
                    what="no unique key, and this TimescaleDB adds none while compression is on",
                    advice=f"{UNPACK}ALTER TABLE public.market_data "
                    "SET (timescaledb.compress = false); then `db upgrade`, then switch "
                    "compression and its policy on again",
                )
            touched = [
                name
                for name, start, end in chunks
                if any(
                    start < _midnight(repair.last) + timedelta(days=1)
                    and _midnight(repair.first) < end
                    for repair in repairs
                )
            ]
            if touched:
                is_old = version < UPSERT_SINCE
                self.find(
                    level=Level.MEND if is_old else Level.NOTE,
                    about="market_data",
                    what=f"the repair writes to compressed chunks ({listed(touched)}), which this "
                    f"TimescaleDB {'refuses' if is_old else 'unpacks in parts as it goes'}",
                    advice=f"{'before' if is_old else 'the sure way, before'} a repair: {UNPACK}"
                    "the policy, added again afterwards, compresses them anew",
                )


OF_THE_FUTURE = (
    "the bot takes the newest for now's price. Stop what writes them, then: DELETE FROM "
    "public.market_data WHERE interval = '1m' AND symbol = '{symbol}' AND timestamp >= "
    "'{first:%Y-%m-%d %H:%M}Z'; {comparison}"
)
UNPACK = (
    "SELECT remove_compression_policy('public.market_data', if_exists => true); SELECT "
    "decompress_chunk(chunk, true) FROM show_chunks('public.market_data') AS chunk; "
)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _is_ahead(shares: list[float]) -> bool:
    """Return whether the volume's shares of the 24 hours look like the usual ones in Korea's."""
    if max(shares) < 1.2 * min(shares):
        return False
    ahead = correlation(shares[KOREA:] + shares[:KOREA], USUAL_SHARES)
    return ahead > 0.5 and ahead - correlation(shares, USUAL_SHARES) > 0.5


def _comparison(symbol: str, days: Sequence[date]) -> str:
    return (
        f"`trading-pipelines db adopt --compare --symbols {symbol} --start {min(days)} "
        f"--end {max(days)}` (after `db upgrade`) sets them beside the exchange's"
    )


def _days(hole: Hole) -> Iterator[date]:
    day = hole.start.date()
    while _midnight(day) < hole.end:
        yield day
        day += timedelta(days=1)


def _unsettled(hole: Hole, settled: set[tuple[str, date]]) -> Iterator[Hole]:
    """Yield the parts of a hole that are outside complete days."""
    start = hole.start
    for day in _days(hole):
        if (hole.symbol, day) in settled:
            if start < _midnight(day):
                yield Hole(hole.symbol, start, _midnight(day))
            start = _midnight(day) + timedelta(days=1)
    if start < hole.end:
        yield Hole(hole.symbol, start, hole.end)


def _joined(days: Iterable[date]) -> list[tuple[date, date]]:
    """Return the first and last day of each interval; days less than JOINED apart are of one."""
    intervals: list[list[date]] = []
    for day in sorted(days):
        if not intervals or day - intervals[-1][-1] >= JOINED:
            intervals.append([])
        intervals[-1].append(day)
    return [(interval[0], interval[-1]) for interval in intervals]
