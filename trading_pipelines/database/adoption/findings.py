"""What an inspection of the bot's database can find, and how each finding is said."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum


class Level(StrEnum):
    """Of whom a finding asks something: the operator, before all else; a backfill; nobody."""

    MEND = "mend"
    REPAIR = "repair"
    NOTE = "note"


@dataclass(frozen=True)
class AdoptionFinding:
    """One thing found about a table, a symbol or the role; `advice` says what to do, if needed."""

    level: Level
    about: str
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Hole:
    """A stretch [start, end) UTC in which no minute of a symbol is stored."""

    symbol: str
    start: datetime
    end: datetime

    @property
    def minutes(self) -> int:
        """How many candles would fit."""
        return (self.end - self.start) // timedelta(minutes=1)


@dataclass(frozen=True)
class Repair:
    """UTC days, first to last inclusive, that a backfill of these symbols should ask for."""

    symbols: tuple[str, ...]
    first: date
    last: date

    @property
    def command(self) -> str:
        """What the operator runs after `db upgrade`."""
        return (f"trading-pipelines backfill --symbols {','.join(self.symbols)} "
                f"--start {self.first} --end {self.last}")  # fmt: skip


@dataclass(frozen=True)
class StoredCandles:
    """What is stored of one symbol's interval; times UTC."""

    symbol: str
    interval: str
    rows: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Inspection:
    """All that was found; `adds` is what `db upgrade` would add, by kind and name."""

    role: str
    revision: str | None
    adds: list[str]
    candles: list[StoredCandles]
    holes: list[Hole]
    findings: list[AdoptionFinding]
    repairs: list[Repair]

    @property
    def can_be_adopted(self) -> bool:
        """Whether nothing has to be mended first."""
        return all(one.level is not Level.MEND for one in self.findings)
