"""What a changed settings file brings at the next reload: which symbols and days, at what cost.

Told from the settings by which the last tick looked after the candles. What a file may hold belongs
in `settings`, and what is due by the settings in use in `candles/due`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from math import ceil

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles import due
from trading_pipelines.candles.page import PAGE_SIZE
from trading_pipelines.candles.windows import DAY, MINUTE
from trading_pipelines.settings.strategy import DataSettings, StrategySettings

IN_USE = """
SELECT symbol, start_date, look_back_days FROM trading_pipelines.look_backs
WHERE NOT is_dropped AND look_back_days IS NOT NULL ORDER BY symbol
"""
COMPLETE = """
SELECT symbol, day FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND status = 'complete' AND symbol = ANY (%s)
"""


@dataclass(frozen=True)
class _LookedAfter:
    symbol: str
    start_date: date
    look_back_days: int


@dataclass(frozen=True)
class SettingsChange:
    """How the settings of the file differ from those in use, and what the difference costs."""

    coming: list[str]
    going: list[str]
    values: list[str]
    """Each changed value of the section `data`, with the one in use."""
    partitions_in_use: int
    """Symbols by UTC days from the start date to today, by the settings in use."""
    partitions: int
    looked_after: int
    """Partitions that a refresh then downloads by itself."""
    others: int
    """Further new partitions, which only a backfill downloads."""
    requests_per_second: float

    def lines(self) -> list[str]:
        """Return what is to be said of it, a line each."""
        names = [
            *(f"{', '.join(names)} {verb}" for names, verb in self._symbols() if names),
            *self.values,
        ]
        downloads = self._cost(self.looked_after)
        lines = [
            f"changed in the file, in use after a reload of the code location: {'; '.join(names)}",
            f"partitions {self.partitions_in_use:,} -> {self.partitions:,}; refreshed: {downloads}",
        ]
        if self.others:
            lines.append(f"further new ones, by `backfill` alone: {self._cost(self.others)}")
        if self.going:
            lines.append(f"{', '.join(self.going)}: refreshed no more, what is stored stays")
        return lines

    def _symbols(self) -> list[tuple[list[str], str]]:
        return [
            (self.coming, "comes" if len(self.coming) == 1 else "come"),
            (self.going, "goes" if len(self.going) == 1 else "go"),
        ]

    def _cost(self, partitions: int) -> str:
        requests = ceil(partitions * (DAY / MINUTE) / PAGE_SIZE)
        minutes = ceil(timedelta(seconds=requests / self.requests_per_second) / MINUTE)
        return f"{partitions:,} ({requests:,} requests, {minutes:,} min or more)"


def settings_change(
    connection: psycopg.Connection, settings: StrategySettings, now: datetime
) -> SettingsChange | None:
    """Return how `settings` differ at `now` (UTC) from those of the last tick; None: not at all.

    Nor is there a difference where no tick has looked after the candles, or none is to.
    """
    with connection.cursor(row_factory=class_row(_LookedAfter)) as cursor:
        in_use = {row.symbol: row for row in cursor.execute(IN_USE)}
    if not in_use or not settings.data.refresh:
        return None
    coming = [symbol for symbol in settings.symbols if symbol not in in_use]
    going = [symbol for symbol in in_use if symbol not in settings.symbols]
    newest = next(iter(in_use.values()))
    values = [
        f"data.{key} {changed} (in use: {used})"
        for key in ("start_date", "look_back_days")
        if (changed := getattr(settings.data, key)) != (used := getattr(newest, key))
    ]
    if not (coming or going or values):
        return None
    partitions, looked_after = _partitions(settings.symbols, settings.data, now)
    partitions_now, looked_after_now = set[tuple[str, date]](), set[tuple[str, date]]()
    for row in in_use.values():
        data = settings.data.model_copy(
            update={"start_date": row.start_date, "look_back_days": row.look_back_days}
        )
        all_days, its_look_back = _partitions([row.symbol], data, now)
        partitions_now |= all_days
        looked_after_now |= its_look_back
    complete = set(connection.execute(COMPLETE, [settings.symbols]).fetchall())
    return SettingsChange(
        coming,
        going,
        values,
        partitions_in_use=len(partitions_now),
        partitions=len(partitions),
        looked_after=len(looked_after - looked_after_now - complete),
        others=len(partitions - partitions_now - looked_after - complete),
        requests_per_second=settings.exchange.requests_per_second,
    )


def _partitions(
    symbols: Collection[str], data: DataSettings, now: datetime
) -> tuple[set[tuple[str, date]], set[tuple[str, date]]]:
    """Return the (symbol, UTC day)s of all partitions, and those of the look-back."""
    back = due.look_back(data.start_date, data.look_back_days, now)
    whole = [data.start_date + DAY * n for n in range((back[-1] - data.start_date).days + 1)]
    return (
        {(symbol, day) for symbol in symbols for day in whole},
        {(symbol, day) for symbol in symbols for day in back},
    )
