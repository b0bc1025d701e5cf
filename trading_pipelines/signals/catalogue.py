"""Which signals there are, what each is computed from, and how many days it looks back.

Only names and numbers, so that a process which looks at them imports no computing library. How a
signal is computed belongs in its own folder; `registry` finds it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from trading_pipelines.settings.strategy import StrategySettings, VolatilitySettings
from trading_pipelines.signals.rejections.exit_rules import outcome_days_after

NOTHING = timedelta(0)
POOLED = ""
"""Stands in place of the symbol, for an asset over all symbols."""

ZERO_SHARE_HOURS = 7 * 24
"""Of five-minute returns, in which the share of zeros is counted."""
HAR_HOURS = (1, 6, 24, 168)
WARM_UP_HOURS = max(HAR_HOURS)
# Under this many symbols, as many symbol-days are needed as three would bring: on 14 days of one
# symbol the 24 h forecast was up to four times worse than GARCH.
FEWEST_SYMBOLS = 3
LONGEST_TRAINING_DAYS = 90
EWMA_HOURS = 30 * 24
GARCH_TRAINING_DAYS = 90


@dataclass(frozen=True)
class Signal:
    """One asset of signals: what its partition of day d is computed from."""

    asset: str
    inputs: Callable[[StrategySettings], dict[str, int]]
    """Upstream assets, each with the number of days before d that are looked at."""
    pooled: bool = False
    closed_days_only: bool = False
    """An open day is not computed hour by hour."""
    settles: timedelta = NOTHING
    """How long after midnight the last candles of the day may still be on their way."""
    rejections: bool = False
    """The bot's rejections of the day are an input too."""
    inputs_after: Callable[[StrategySettings], dict[str, int]] = lambda _: {}
    """Those of the inputs of which days after d are looked at too, and how many."""

    def days_after(self, settings: StrategySettings) -> int:
        """Return how many days after its own a partition looks at."""
        return max(self.inputs_after(settings).values(), default=0)


def window_days(settings: StrategySettings) -> int:
    """Return the days before a label's own in which its window must lie: twice what it takes.

    A market whose every other hour is empty still has its labels.
    """
    return 2 * math.ceil(candles_needed(settings) / 24)


def candles_needed(settings: StrategySettings) -> int:
    """Return how many hourly candles a label takes."""
    return max(
        settings.regime_detection.ma_slow_period, settings.data.min_hourly_candles_for_regime
    )


def training_days(settings: VolatilitySettings, symbols: int) -> int:
    """Return the days of training: a pool of one or two symbols needs more of them, up to 90."""
    share = math.ceil(FEWEST_SYMBOLS / symbols)
    return min(LONGEST_TRAINING_DAYS, settings.training_days * share)


def _longest_horizon_days(settings: VolatilitySettings) -> int:
    return -(-max(settings.horizons) // 24)


REGIME_LABELS = Signal("regime_labels", lambda s: {"candles_1h": window_days(s)})
REALIZED_VOLATILITY = Signal(
    "realized_volatility", lambda _: {"candles_1m": ZERO_SHARE_HOURS // 24}
)
VOLATILITY_MODEL = Signal(
    "volatility_model",
    lambda s: {
        "realized_volatility": training_days(s.volatility, len(s.symbols)) + WARM_UP_HOURS // 24 - 1
    },
    pooled=True,
    closed_days_only=True,
    settles=timedelta(minutes=5),
)
VOLATILITY_FORECAST = Signal(
    "volatility_forecast",
    lambda s: {
        "realized_volatility": max(s.volatility.threshold_days, EWMA_HOURS // 24)
        + _longest_horizon_days(s.volatility),
        "volatility_model": 1,
    },
)
GARCH_BASELINE = Signal(
    "garch_baseline", lambda _: {"candles_1h": GARCH_TRAINING_DAYS + 1}, closed_days_only=True
)
VOLATILITY_SCORE = Signal(
    "volatility_score",
    lambda s: {
        "volatility_forecast": _longest_horizon_days(s.volatility),
        "garch_baseline": _longest_horizon_days(s.volatility),
        "realized_volatility": 2 * _longest_horizon_days(s.volatility),
    },
    closed_days_only=True,
)
REJECT_OUTCOMES = Signal(
    "reject_outcomes",
    lambda _: {"candles_1m": 1, "regime_labels": 1},
    rejections=True,
    inputs_after=lambda s: {"candles_1m": outcome_days_after(s)},
)

SIGNALS = (
    REGIME_LABELS,
    REALIZED_VOLATILITY,
    VOLATILITY_MODEL,
    VOLATILITY_FORECAST,
    GARCH_BASELINE,
    VOLATILITY_SCORE,
    REJECT_OUTCOMES,
)
