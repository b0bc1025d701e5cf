"""Which partitions of signals are due, and why, by their coverage.

A partition is due when it is missing, or when the version of anything it was computed from has
changed: a healed hole makes due exactly the days it touches. The versions are the view
`input_versions`. What other settings or other code made is due where the settings say so. Which
runs are in flight is Dagster's knowledge; how a partition is computed belongs in `engine`.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from itertools import product

from trading_pipelines.candles import due as candles_due
from trading_pipelines.candles.windows import DAY, HOUR, day_interval
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import NOTHING, POOLED, Signal
from trading_pipelines.signals.coverage import SignalCoverage


class SignalDueReason(StrEnum):
    """Why a partition is due, or why it is not although it is not what it should be."""

    MISSING = "missing"
    STALE = "older than its inputs"
    FAILED = "failed"
    WAITING = "waiting"
    """Failed a short while ago; not tried before its retry_at."""
    LEFT_FAILED = "left failed"
    """Its attempts are spent; not tried until it is asked for or its inputs change."""
    OTHER_SETTINGS = "made by other settings"
    OTHER_CODE = "made by other code"


MADE_OTHERWISE = {SignalDueReason.OTHER_SETTINGS, SignalDueReason.OTHER_CODE}
# A change of settings concerns all days at once: a tick asks for the newest, the next for older
# ones when those are done, so that no new hour waits behind history.
RECOMPUTED_AT_ONCE = 50


@dataclass(frozen=True)
class SignalRun:
    """A rectangle of one signal's partitions for one run: neighbouring symbols, unbroken days."""

    symbols: tuple[str, ...]
    """One empty name for a pooled signal."""
    first: date
    last: date
    is_newest: bool
    """It brings today or yesterday, of which pictures and the bot's keys are made."""
    is_urgent: bool
    """It must not wait for history."""

    @property
    def partitions(self) -> set[tuple[str, date]]:
        """Its (symbol, UTC day)s."""
        days = [self.first + DAY * n for n in range((self.last - self.first).days + 1)]
        return set(product(self.symbols, days))

    def __str__(self) -> str:
        return f"{', '.join(self.symbols)} {self.first} to {self.last}"


@dataclass(frozen=True)
class SignalPlan:
    """What one tick asks for of one signal."""

    runs: list[SignalRun]
    """The newest days first."""
    summary: str
    """What was looked at, for a tick that asks for nothing."""


def is_ready(coverage: SignalCoverage, signal: Signal) -> bool:
    """Return whether the partition's inputs are there, and the day closed where it has to be."""
    if coverage.until is None or not coverage.has_all_inputs:
        return False
    return not signal.closed_days_only or coverage.until == day_interval(coverage.day).end


def have_inputs(partitions: Sequence[SignalCoverage], run: SignalRun) -> bool:
    """Return whether those of the run are among the partitions, and have something of each input.

    A run that computes one of the inputs can then go on to compute them.
    """
    return run.partitions <= {(p.symbol, p.day) for p in partitions if p.has_all_inputs}


def reason(
    coverage: SignalCoverage, signal: Signal, settings: StrategySettings, now: datetime
) -> SignalDueReason | None:
    """Return why the partition is due at `now`, or None; None too while its inputs are missing."""
    end = day_interval(coverage.day + DAY * signal.days_after(settings)).end
    is_settling = NOTHING <= now - end < signal.settles
    if not is_ready(coverage, signal) or is_settling:
        return None
    if coverage.failures and coverage.failed_inputs == coverage.inputs:
        if coverage.left_failed:
            return SignalDueReason.LEFT_FAILED
        if coverage.retry_at and coverage.retry_at > now:
            return SignalDueReason.WAITING
    if coverage.failures:
        return SignalDueReason.FAILED
    if coverage.computed_until is None:
        return SignalDueReason.MISSING
    # An open day is looked at when `check_interval_hours` more have closed, a closed one at once.
    next_look = min(coverage.computed_until + HOUR * settings.regime_detection.check_interval_hours,
                    end)  # fmt: skip
    is_early = coverage.until is not None and coverage.computed_until < coverage.until < next_look
    return None if is_early else _outdated(coverage, signal, settings)


def _outdated(
    coverage: SignalCoverage, signal: Signal, settings: StrategySettings
) -> SignalDueReason | None:
    if coverage.computed_from != coverage.inputs:
        return SignalDueReason.STALE
    recomputes = settings.signals.when_settings_change == "recompute"
    return made_otherwise(coverage, signal, settings) if recomputes else None


def made_otherwise(
    coverage: SignalCoverage, signal: Signal, settings: StrategySettings
) -> SignalDueReason | None:
    """Return whether other settings or other code made the partition; None too if not known."""
    if coverage.settings_digest not in {None, signal.settings_digest(settings)}:
        return SignalDueReason.OTHER_SETTINGS
    if coverage.code_version not in {None, signal.code_version}:
        return SignalDueReason.OTHER_CODE
    return None


def all_made(
    partitions: Sequence[SignalCoverage],
    signal: Signal,
    settings: StrategySettings,
    now: datetime,
) -> bool:
    """Return whether each of the partitions is there and none is due at `now`."""
    return all(
        partition.computed_until is not None and reason(partition, signal, settings, now) is None
        for partition in partitions
    )


def look_back(signals: Sequence[Signal], settings: StrategySettings, now: datetime) -> list[date]:
    """Return the UTC days a schedule of these signals looks after, up to the one open at `now`.

    At least as many as a partition looks ahead: until then something of it may still be to come.
    """
    followed = max(signal.days_after(settings) for signal in signals) + 1
    days = max(settings.data.look_back_days, followed)
    return candles_due.look_back(settings.data.start_date, days, now)


def plan(
    signal: Signal,
    partitions: Sequence[SignalCoverage],
    in_flight: AbstractSet[tuple[str, date]],
    settings: StrategySettings,
    now: datetime,
) -> SignalPlan:
    """Return the runs that the signal's partitions need at `now`, without what is in flight.

    `partitions` holds at least one entry; `in_flight` holds (symbol, UTC day).
    """
    reasons = {
        (partition.symbol, partition.day): why
        for partition in partitions
        if (why := reason(partition, signal, settings, now)) is not None
    }
    outdated = [key for key, why in reasons.items() if why in MADE_OTHERWISE]
    # Those in flight count: they are still as they were made.
    for key in sorted(outdated, key=lambda key: key[1], reverse=True)[RECOMPUTED_AT_ONCE:]:
        del reasons[key]
    due = {key: why for key, why in reasons.items() if key not in in_flight}
    yesterday = max(partition.day for partition in partitions) - DAY
    return SignalPlan(
        runs=[
            # Nobody trades on what became of a decision.
            SignalRun(
                symbols,
                first,
                last,
                is_newest=last >= yesterday,
                is_urgent=last >= yesterday and signal.decision is None,
            )
            for symbols, first, last in runs(due, settings.symbols)
        ],
        summary=f"{signal.asset} {len(reasons)} due of {len(partitions)}, "
        f"{len(reasons.keys() & in_flight)} of them in flight",
    )


def runs(
    reasons: Mapping[tuple[str, date], SignalDueReason], symbols: Sequence[str]
) -> list[tuple[tuple[str, ...], date, date]]:
    """Cover the due (symbol, day)s with few (symbols, first day, last day), the newest first."""
    days_of: dict[str, set[date]] = {}
    for (symbol, day), why in reasons.items():
        if why not in {SignalDueReason.WAITING, SignalDueReason.LEFT_FAILED}:
            days_of.setdefault(symbol, set()).add(day)
    return candles_due.rectangles(days_of, [POOLED, *symbols])
