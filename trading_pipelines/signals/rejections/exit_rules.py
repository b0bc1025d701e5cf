"""How the strategy leaves a position: the exits in the bot's own section `regimes` of the settings.

The section is the bot's, so nothing in it stops a start: what can't be read is noted with each
outcome instead. What became of a rejection by these rules belongs in `outcomes`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TypeGuard

from trading_pipelines.candles.windows import DAY, HOUR
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.regimes.regime import Regime

HORIZONS = (1, 4, 12, 24)
"""Hours after the decision at which the price is noted; the best and worst are of the longest."""

LONGEST_HORIZON = HOUR * max(HORIZONS)
# Thirty days: an outcome that takes longer says nothing of the decision.
MOST_HOURS = 720
# The names that bots give to their time limit, in hours.
TIME_LIMITS = ("max_hours", "time_limit_hours", "max_holding_hours")


@dataclass(frozen=True)
class ExitRules:
    """How the strategy leaves a position: fractions of the price, a time, and its size (of 1)."""

    take_profit: Decimal
    stop_loss: Decimal
    limit: timedelta
    size: Decimal


def outcome_days_after(settings: StrategySettings) -> int:
    """Return how many UTC days after its own a day's rejections are followed."""
    return -(-time_to_settle(settings) // DAY)


def time_to_settle(settings: StrategySettings) -> timedelta:
    """Return how long after a decision its outcome may still be open."""
    rules = (exit_rules_of(settings, regime) for regime in Regime)
    limits = [exits.limit for exits in rules if isinstance(exits, ExitRules)]
    return max([LONGEST_HORIZON, *limits])


def exit_rules_of(settings: StrategySettings, regime: str) -> ExitRules | str:
    """Return the exits of a regime, or in words why they are not known.

    Those of UNKNOWN are those of `regime_detection.unknown_fallback`.
    """
    if regime == Regime.UNKNOWN:
        regime = settings.regime_detection.unknown_fallback
    if isinstance(settings.regimes, str):
        return settings.regimes
    if not isinstance(settings.regimes, Mapping) or regime not in settings.regimes:
        return f"regimes.{regime} is not in the settings"
    section = settings.regimes[regime]
    content = section if isinstance(section, Mapping) else {}
    given = content.get("exit")
    given = given if isinstance(given, Mapping) else {}
    limit = next((name for name in TIME_LIMITS if name in given), TIME_LIMITS[0])
    numbers = {}
    for name, most in (("take_profit_pct", 1), ("stop_loss_pct", 1), (limit, MOST_HOURS)):
        value = given.get(name)
        if not _is_number(value) or not 0 < value < most:
            allowed = (
                f"hours, less than {MOST_HOURS}"
                if name == limit
                else "a fraction, such as 0.03 for 3 %"
            )
            return f"regimes.{regime}.exit.{name} is {value!r}; wanted: {allowed}"
        numbers[name] = value
    size = content.get("position_size_ratio", 1)
    if not _is_number(size) or not 0 < size < math.inf:
        return f"regimes.{regime}.position_size_ratio is {size!r}; wanted: a share, such as 0.5"
    return ExitRules(
        take_profit=Decimal(str(numbers["take_profit_pct"])),
        stop_loss=Decimal(str(numbers["stop_loss_pct"])),
        limit=timedelta(hours=numbers[limit]),
        size=Decimal(str(size)),
    )


def exit_settings(settings: StrategySettings) -> dict[str, object]:
    """Return the exits of each regime that there is or that the section has, by its name in it.

    As they are read: what the bot keeps beside them in its section makes no difference.
    """
    section = settings.regimes if isinstance(settings.regimes, Mapping) else {}
    names = dict.fromkeys([*map(str, Regime), *(name for name in section if isinstance(name, str))])
    exits = {name: exit_rules_of(settings, name) for name in names}
    return {
        f"regimes.{name}": rules if isinstance(rules, str) else _in_numbers(rules)
        for name, rules in exits.items()
    }


def _in_numbers(rules: ExitRules) -> dict[str, float]:
    return {
        name: value / HOUR if isinstance(value, timedelta) else float(value)
        for name, value in asdict(rules).items()
    }


def _is_number(value: object) -> TypeGuard[int | float]:
    """Return whether the value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
