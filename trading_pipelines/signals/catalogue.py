"""Which signals there are, what each is computed from, how far it looks back, by which settings.

Only names and numbers, so that a process which looks at them imports no computing library. How a
signal is computed belongs in its own folder; `registry` finds it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from operator import attrgetter
from typing import Literal

from trading_pipelines.settings.strategy import StrategySettings, VolatilitySettings
from trading_pipelines.signals.rejections.exit_rules import exit_settings, outcome_days_after

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
SMALL_POOL_DAYS = 90
EWMA_HOURS = 30 * 24
GARCH_TRAINING_DAYS = 90
ADAPTED_DAYS = 60
"""Of forecasts and outcomes by which an interval's width and the flag's level are found."""


@dataclass(frozen=True)
class Signal:
    """One asset of signals: what its partition of day d is computed from."""

    asset: str
    inputs: Callable[[StrategySettings], dict[str, int]]
    """Upstream assets, each with the number of days before d that are looked at."""
    settings_that_matter: Callable[[StrategySettings], Mapping[str, object]]
    """The settings on which its rows depend, by their names in config/strategy.yaml."""
    code_version: str
    """Raised by hand when the same inputs and settings can give other rows than before.

    tests/signals/test_golden.py fails where that was forgotten.
    """
    pooled: bool = False
    closed_days_only: bool = False
    """An open day is not computed hour by hour."""
    settles: timedelta = NOTHING
    """How long after midnight the last candles of the day may still be on their way."""
    decision: Literal["CONFIRM", "REJECT"] | None = None
    """The bot's decisions of the day that say this are an input too."""
    inputs_after: Callable[[StrategySettings], dict[str, int]] = lambda _: {}
    """Those of the inputs of which days after d are looked at too, and how many."""

    def days_after(self, settings: StrategySettings) -> int:
        """Return how many days after its own a partition looks at."""
        return max(self.inputs_after(settings).values(), default=0)

    def settings_digest(self, settings: StrategySettings) -> str:
        """Return a digest of the settings that matter to its rows."""
        matter = json.dumps(self.settings_that_matter(settings), sort_keys=True)
        return hashlib.sha256(matter.encode()).hexdigest()[:16]


def _values_of(*names: str) -> Callable[[StrategySettings], dict[str, object]]:
    """Return a function that takes the named settings; the order of a list makes no difference."""

    def take(settings: StrategySettings) -> dict[str, object]:
        values = ((name, attrgetter(name)(settings)) for name in names)
        return {name: sorted(v) if isinstance(v, list) else v for name, v in values}

    return take


def _outcome_settings(settings: StrategySettings) -> dict[str, object]:
    costs = settings.reject_outcomes
    return {
        "reject_outcomes.notional_krw": costs.notional_krw,
        "reject_outcomes.fee_pct": costs.fee_pct,
        # Asked in their order.
        "reject_outcomes.reason_families": [list(i) for i in costs.reason_families.items()],
        **exit_settings(settings),
    }


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
    return max(settings.training_days, min(SMALL_POOL_DAYS, settings.training_days * share))


def _longest_horizon_days(settings: VolatilitySettings) -> int:
    return -(-max(settings.horizons) // 24)


REGIME_LABELS = Signal(
    "regime_labels",
    lambda s: {"candles_1h": window_days(s)},
    settings_that_matter=_values_of(
        "data.min_hourly_candles_for_regime",
        "regime_detection.ma_fast_period",
        "regime_detection.ma_slow_period",
        "regime_detection.bear_threshold_pct",
        "regime_detection.bull_threshold_pct",
    ),
    code_version="1",
)
REALIZED_VOLATILITY = Signal(
    "realized_volatility",
    lambda _: {"candles_1m": ZERO_SHARE_HOURS // 24},
    settings_that_matter=_values_of(),
    code_version="1",
)
VOLATILITY_MODEL = Signal(
    "volatility_model",
    lambda s: {
        "realized_volatility": training_days(s.volatility, len(s.symbols)) + WARM_UP_HOURS // 24 - 1
    },
    settings_that_matter=_values_of(
        "symbols",
        "volatility.training_days",
        "volatility.min_training_days",
        "volatility.horizons",
        "volatility.ridge_alpha",
    ),
    code_version="2",
    pooled=True,
    closed_days_only=True,
    settles=timedelta(minutes=5),
)
GARCH_BASELINE = Signal(
    "garch_baseline",
    lambda _: {"candles_1h": GARCH_TRAINING_DAYS + 1},
    settings_that_matter=_values_of("volatility.horizons"),
    code_version="2",
    closed_days_only=True,
)
VOLATILITY_FORECAST = Signal(
    "volatility_forecast",
    lambda s: {
        "realized_volatility": ADAPTED_DAYS
        + max(s.volatility.threshold_days, EWMA_HOURS // 24)
        + _longest_horizon_days(s.volatility),
        "volatility_model": ADAPTED_DAYS + 1,
        "garch_baseline": ADAPTED_DAYS,
        "candles_1h": 1,
    },
    settings_that_matter=_values_of(
        "volatility.horizons",
        "volatility.high_percentile",
        "volatility.threshold_days",
        "volatility.min_threshold_days",
    ),
    code_version="2",
)
VOLATILITY_SCORE = Signal(
    "volatility_score",
    lambda s: {
        "volatility_forecast": _longest_horizon_days(s.volatility),
        "garch_baseline": _longest_horizon_days(s.volatility),
        "realized_volatility": 2 * _longest_horizon_days(s.volatility),
    },
    settings_that_matter=_values_of("volatility.horizons"),
    code_version="1",
    closed_days_only=True,
)
REJECT_OUTCOMES = Signal(
    "reject_outcomes",
    lambda _: {"candles_1m": 1, "regime_labels": 1},
    settings_that_matter=_outcome_settings,
    code_version="1",
    decision="REJECT",
    inputs_after=lambda s: {"candles_1m": outcome_days_after(s)},
)
CONFIRM_OUTCOMES = replace(REJECT_OUTCOMES, asset="confirm_outcomes", decision="CONFIRM")

SIGNALS = (
    REGIME_LABELS,
    REALIZED_VOLATILITY,
    VOLATILITY_MODEL,
    GARCH_BASELINE,
    VOLATILITY_FORECAST,
    VOLATILITY_SCORE,
    REJECT_OUTCOMES,
    CONFIRM_OUTCOMES,
)
