"""Which partitions of signals are due, and why, by their coverage.

A partition is due when it is missing, or when the version of anything it was computed from has
changed: a healed hole makes due exactly the days it touches. The versions are the view
`input_versions`. Which runs are in flight is Dagster's knowledge; how a partition is computed
belongs in `engine`.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import StrEnum

from trading_pipelines.candles.due import rectangles
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


def is_ready(coverage: SignalCoverage, signal: Signal) -> bool:
    """Return whether the partition's inputs are there, and the day closed where it has to be."""
    if coverage.until is None or not coverage.has_all_inputs:
        return False
    return not signal.closed_days_only or coverage.until == day_interval(coverage.day).end


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
    return None if is_early or coverage.computed_from == coverage.inputs else SignalDueReason.STALE


def runs(
    reasons: Mapping[tuple[str, date], SignalDueReason], symbols: Sequence[str]
) -> list[tuple[tuple[str, ...], date, date]]:
    """Cover the due (symbol, day)s with few (symbols, first day, last day), the newest first."""
    days_of: dict[str, set[date]] = {}
    for (symbol, day), why in reasons.items():
        if why not in {SignalDueReason.WAITING, SignalDueReason.LEFT_FAILED}:
            days_of.setdefault(symbol, set()).add(day)
    return rectangles(days_of, [POOLED, *symbols])
