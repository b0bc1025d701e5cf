"""The facts that `health` and `status` are made of.

Shapes alone: asking belongs in `measure` and `dagster_instance`, judging in `checks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime

from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.signals.coverage import SignalCoverage

GIGABYTE = 10**9


@dataclass(frozen=True)
class Unknown:
    """Stands where a value would that could not be measured."""

    reason: str


NOT_ASKED = Unknown("not asked for")


@dataclass(frozen=True)
class Daemon:
    """One of Dagster's required daemons; `healthy` by Dagster's own tolerance. UTC."""

    name: str
    healthy: bool
    last_heartbeat: datetime | None


@dataclass(frozen=True)
class AutomationStatus:
    """A schedule or a sensor that should be on."""

    name: str
    is_on: bool
    next_tick: datetime | None
    """When the tick after the last one is, or was, to come (UTC); None: no daemon has seen it."""
    error: str | None
    """What its last ticks failed with, where all of them did."""


@dataclass(frozen=True)
class HeldSlot:
    """A place that a run holds although no process works for it."""

    run_id: str
    what: str
    quiet_since: datetime | None
    """The run's end, or the last that was heard of it (UTC); None: there is no such run."""


@dataclass(frozen=True)
class Orchestration:
    """What Dagster knows of itself; empty where it was not asked for."""

    daemons: Sequence[Daemon] = ()
    schedules: Sequence[AutomationStatus] = ()
    sensors: Sequence[AutomationStatus] = ()
    held: Sequence[HeldSlot] = ()


DAGSTERS = frozenset(field.name for field in fields(Orchestration))
"""The facts that Dagster's instance is asked for."""


@dataclass(frozen=True)
class FailedPartition:
    """A partition whose last tries all failed; without a symbol where it is pooled."""

    asset: str
    symbol: str
    day: date
    failures: int
    left_failed: bool
    error: str | None


@dataclass(frozen=True)
class WaitingAlerts:
    """The alerts of a kind that wait; since when (UTC) the oldest could have been delivered."""

    kind: str
    count: int
    since: datetime


@dataclass(frozen=True)
class AlertFacts:
    """What waits, what was given up of each kind, and when the newest was delivered (UTC)."""

    waiting: Sequence[WaitingAlerts]
    not_entered: Sequence[WaitingAlerts]
    """Rows of the bot's that nobody has looked at, as where there is nowhere to send to."""
    dead: Mapping[str, int]
    delivered: datetime | None


@dataclass(frozen=True)
class Sizes:
    """Bytes of both databases now; their growth a day, None before there are two measurements."""

    market: int
    dagster: int
    growth: float | None


@dataclass(frozen=True)
class Facts:
    """Everything that is judged; what was not asked for is not known."""

    unusable: Sequence[str] | Unknown
    """What is wrong with the databases themselves."""
    daemons: Sequence[Daemon] | Unknown
    schedules: Sequence[AutomationStatus] | Unknown
    sensors: Sequence[AutomationStatus] | Unknown
    held: Sequence[HeldSlot] | Unknown
    days: Sequence[CandleCoverage] | Unknown
    """The candles' coverage of the look-back."""
    forgotten: Sequence[tuple[str, date]] | Unknown
    """(symbol, day)s older than the look-back that lack candles or labels."""
    filled_at: datetime | Unknown | None
    """When candles of a closed day of the look-back last came (UTC)."""
    labels: Mapping[str, datetime | None] | Unknown
    """The newest label's as-of of each symbol."""
    model: SignalCoverage | Unknown | None
    """The partition of the last day whose model is due; None: that day is not collected."""
    alerts: AlertFacts | Unknown
    failed: Sequence[FailedPartition] | Unknown
    sizes: Sizes | Unknown
    free_bytes: int | Unknown | None
    """Where the home is; None where the database is not there."""


@dataclass(frozen=True)
class Check:
    """One line of the answer; `good` is None where it can't be known."""

    name: str
    good: bool | None
    found: str
    allowed: str
    advice: str


@dataclass(frozen=True)
class RunInFlight:
    """A run of Dagster's that waits or is at work, on the partitions from first to last."""

    job: str
    symbols: tuple[str, ...]
    """The first and the last, or the only one; none where there is none."""
    days: tuple[date, ...]
    """Likewise."""
    state: str
    since: datetime
