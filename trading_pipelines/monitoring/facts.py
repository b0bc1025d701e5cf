"""The shapes of the facts that `health` and `status` show.

Measuring them belongs in `measure` and `dagster_instance`, judging in `checks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime

from trading_pipelines.alerts.endpoints import Endpoint
from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.rate_limit import Clock
from trading_pipelines.live.state import ReaderState
from trading_pipelines.monitoring.reconciliation import Reconciliation
from trading_pipelines.settings.last_good import RefusedSettings
from trading_pipelines.signals.coverage import SignalCoverage

GIGABYTE = 10**9


@dataclass(frozen=True)
class Unknown:
    """Stands in the place of a value that could not be measured."""

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
    """When the tick after the last one is or was due (UTC); None: no daemon has seen it."""
    error: str | None
    """The error of its last tick, where all of its last ticks failed."""


@dataclass(frozen=True)
class HeldSlot:
    """A slot that a run holds although no process works for it."""

    run_id: str
    description: str
    quiet_since: datetime | None
    """The run's end, or its last event (UTC); None: there is no such run."""


@dataclass(frozen=True)
class Orchestration:
    """What Dagster knows of itself; empty where it was not asked for."""

    daemons: Sequence[Daemon] = ()
    schedules: Sequence[AutomationStatus] = ()
    sensors: Sequence[AutomationStatus] = ()
    held_slots: Sequence[HeldSlot] = ()


DAGSTERS = frozenset(field.name for field in fields(Orchestration))
"""The facts that Dagster's instance is asked for."""


@dataclass(frozen=True)
class FailedPartition:
    """A partition whose last attempts all failed; without a symbol where it is pooled."""

    asset: str
    symbol: str
    day: date
    failures: int
    left_failed: bool
    error: str | None


@dataclass(frozen=True)
class WaitingAlerts:
    """The alerts of a kind that wait; `since` (UTC) the oldest could have been delivered."""

    kind: str
    count: int
    since: datetime


@dataclass(frozen=True)
class AlertFacts:
    """Which alerts wait, how many of each kind are dead, when the newest was delivered (UTC)."""

    waiting: Sequence[WaitingAlerts]
    not_entered: Sequence[WaitingAlerts]
    """Rows of the bot's that no sensor has entered, as where no address to send to is set."""
    dead: Mapping[str, int]
    delivered: datetime | None
    endpoints: Sequence[Endpoint] = ()
    """Those in trouble."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of both databases, and their growth a day: None before there are two measurements."""

    market: int
    dagster: int
    growth: float | None


@dataclass(frozen=True)
class Facts:
    """Everything that is judged; a fact that was not asked for is NOT_ASKED."""

    unusable: Sequence[str] | Unknown
    """What is wrong with the databases themselves."""
    daemons: Sequence[Daemon] | Unknown
    schedules: Sequence[AutomationStatus] | Unknown
    sensors: Sequence[AutomationStatus] | Unknown
    held_slots: Sequence[HeldSlot] | Unknown
    days: Sequence[CandleCoverage] | Unknown
    """The candles' coverage of the look-back."""
    live: ReaderState | Unknown | None
    """How the reader of the exchange's stream did last; None: none has ever worked."""
    compared: Sequence[Reconciliation] | Unknown
    """The last comparison of Dagster's events with the tables, by asset."""
    old_gaps: Sequence[tuple[str, date]] | Unknown
    """(symbol, day)s older than the look-back that lack candles or labels."""
    half_made: Sequence[tuple[str, str, date]] | Unknown
    """(asset, symbol, day)s older than the look-back that were begun and are not done."""
    older_filled_at: datetime | Unknown | None
    """When a partition older than the look-back was last written (UTC)."""
    filled_at: datetime | Unknown | None
    """When candles of a closed day of the look-back last came (UTC)."""
    labels: Mapping[str, datetime | None] | Unknown
    """The newest label's as-of of each symbol."""
    model: SignalCoverage | Unknown | None
    """The last day's partition whose model is due; None: the settings do not collect that day."""
    alerts: AlertFacts | Unknown
    failed: Sequence[FailedPartition] | Unknown
    sizes: Sizes | Unknown
    clock: Clock | Unknown
    """The exchange's, as its answers told it last."""
    refused_settings: RefusedSettings | Unknown | None
    """Why the strategy file can't be used; None where it can."""
    free_bytes: int | Unknown | None
    """On the home's disk; None where the database is on a server of the operator's."""


@dataclass(frozen=True)
class Check:
    """One line of `health`; `good` is None where it can't be known."""

    name: str
    good: bool | None
    found: str
    allowed: str
    advice: str


@dataclass(frozen=True)
class RunInFlight:
    """A run of Dagster's that waits or is at work, and on which partitions."""

    job: str
    symbols: tuple[str, ...]
    """The first and the last, the only one, or none."""
    days: tuple[date, ...]
    """UTC days, likewise."""
    state: str
    since: datetime
