"""The shapes of an inspection of the bot's database: findings, holes, repairs."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum


class Level(StrEnum):
    """Who has to act on a finding."""

    MEND = "mend"
    """The operator, before the database can be adopted."""
    REPAIR = "repair"
    """A backfill, afterwards."""
    NOTE = "note"
    """Nobody."""


@dataclass(frozen=True)
class AdoptionFinding:
    """A finding about a table, a symbol or the role; `advice` says what to do."""

    level: Level
    about: str
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Hole:
    """An interval [start, end) UTC in which no minute of a symbol is stored."""

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
        return (
            f"trading-pipelines backfill --symbols {','.join(self.symbols)} "
            f"--start {self.first} --end {self.last} --again"
        )


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
        return all(finding.level is not Level.MEND for finding in self.findings)
