"""Market regimes: a fast against a slow average of hourly closes. The contract with the bot.

Pure functions of closes, exact decimals throughout. The rows of `regime_history` that the bot reads
are written in `partition`; what a regime is worth belongs in `diagnostics`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext
from itertools import accumulate
from typing import NamedTuple

from trading_pipelines.candles.windows import DAY, HOUR, day_interval
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import candles_needed, window_days
from trading_pipelines.signals.regimes.regime import Regime

# A trend that was entered at 2.0 % is left at 1.5 %: 7-15 % fewer flips. A diagnostic, no label.
HYSTERESIS = Decimal("0.75")


class Close(NamedTuple):
    """The close of the hour [hour, hour + 1 h), UTC."""

    hour: datetime
    price: Decimal


@dataclass(frozen=True)
class Label:
    """The regime as of the close of `hour`; averages in KRW, `diff_pct` of fast over slow."""

    hour: datetime
    label: Regime
    ma_fast: Decimal | None
    ma_slow: Decimal | None
    diff_pct: Decimal | None
    candles: int
    """In the window: at most as many as it takes."""
    empty_hours: int
    """Hours without a candle between the window's first candle and its end."""
    hysteresis_label: Regime
    inputs_from: datetime
    """Nothing before this can have changed the label."""


def label_hours(
    closes: Sequence[Close], hours: Sequence[datetime], settings: StrategySettings
) -> list[Label]:
    """Return one label an hour of `hours`, as of its close; hours without candles are dropped.

    `closes` are one symbol's, in order, from `window_days` before the first day of `hours` on; what
    comes after an hour is not looked at.
    """
    windows = _Windows(closes, settings)
    return [windows.label(hour) for hour in hours]


class _Windows:
    def __init__(self, closes: Sequence[Close], settings: StrategySettings) -> None:
        detection = settings.regime_detection
        self._fast, self._slow = detection.ma_fast_period, detection.ma_slow_period
        self._needed = candles_needed(settings)
        self._reach = DAY * window_days(settings)
        self._bull = Decimal(str(detection.bull_threshold_pct))
        self._bear = Decimal(str(detection.bear_threshold_pct))
        self._hours = [close.hour for close in closes]
        with localcontext(prec=50):  # exact sums: years of closes in won have 25 digits
            self._sums = list(accumulate((c.price for c in closes), initial=Decimal(0)))
            ends = range(self._slow, len(self._sums))
            slow = {end: self._mean(end, self._slow) for end in ends}
            self._diffs = {
                end: (self._mean(end, self._fast) - mean) / mean * 100 for end, mean in slow.items()
            }

    def label(self, hour: datetime) -> Label:
        first_allowed = day_interval(hour.date()).start - self._reach
        lowest = bisect_left(self._hours, first_allowed)
        end = bisect_right(self._hours, hour)
        candles = min(end - lowest, self._needed)
        span = (hour - self._hours[end - candles]) // HOUR + 1 if candles else 0
        if candles < self._needed:
            return Label(hour, Regime.UNKNOWN, None, None, None, candles, span - candles,
                         Regime.UNKNOWN, first_allowed)  # fmt: skip
        hysteresis_label, since = self._hysteresis(end, lowest)
        return Label(
            hour,
            self._regime(self._diffs[end]),
            self._mean(end, self._fast),
            self._mean(end, self._slow),
            self._diffs[end],
            candles,
            span - candles,
            hysteresis_label,
            first_allowed if since is None else self._hours[since - self._needed],
        )

    def _hysteresis(self, end: int, lowest: int) -> tuple[Regime, int | None]:
        """Return the regime that is stayed in, and the end of the earliest hour that decides it."""
        trend = self._trend(self._diffs[end])
        for at in range(end, lowest + self._needed - 1, -1):
            if self._regime(self._diffs[at]) is trend:
                return trend, at
            if self._trend(self._diffs[at]) is not trend:
                return Regime.SIDEWAYS, at
        return Regime.SIDEWAYS, None

    def _regime(self, diff: Decimal) -> Regime:
        if diff > self._bull:
            return Regime.BULL
        return Regime.BEAR if diff < self._bear else Regime.SIDEWAYS

    def _trend(self, diff: Decimal) -> Regime:
        """Return the regime that this difference is enough to stay in."""
        if diff > min(self._bull, self._bull * HYSTERESIS):
            return Regime.BULL
        stays = diff < max(self._bear, self._bear * HYSTERESIS)
        return Regime.BEAR if stays else Regime.SIDEWAYS

    def _mean(self, end: int, period: int) -> Decimal:
        return (self._sums[end] - self._sums[end - period]) / period
