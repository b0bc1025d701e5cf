"""The forecast that is published: the members' mean, its interval's width, the odds of its flag.

Pure functions of one symbol and horizon, on frames indexed by the as-of (UTC). The members belong
in `model` and `garch`. Width and flag learn from the forecasts of `ADAPTED_DAYS` and from what
happened: as of t from those alone whose horizon had passed at t.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trading_pipelines.signals.volatility.model import (
    COVERAGE,
    ENDS,
    LEVELS,
    Floats,
    ModelStatus,
    VolatilityModel,
)

Flags = NDArray[np.bool_]
MEMBERS = ("har", "garch", "ewma")
LONGEST_ALONE = 1
"""Hours ahead to which the regression of all symbols is better alone, for each symbol measured."""
LEARNING_RATE = 0.02
WIDEST = 1.6
"""Of the logarithm of a width: five times the residuals' own interval, or a fifth of it."""
FEWEST_OUTCOMES = 14 * 24
EVEN_ODDS = 0.5
"""The flag's level before there are outcomes to find it by: more likely than not."""


class IntervalStatus(StrEnum):
    """What an interval's width is worth."""

    ADAPTED = "ADAPTED"
    SHORT = "SHORT"
    """Adapted to fewer than 14 days of outcomes."""
    NONE = "NONE"
    """There is no interval."""


def combine(members: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Return the members (status, har, garch, ewma, floor) with `variance` and `made_of`.

    With status OK the mean of the members that are there, or up to `LONGEST_ALONE` hours ahead the
    regression alone; in a FALLBACK the EWMA. `made_of` names them, joined by +.
    """
    is_ok = members["status"].eq(ModelStatus.OK)
    asked = ("har",) if horizon <= LONGEST_ALONE else MEMBERS
    used = pd.DataFrame({name: is_ok & (name in asked) for name in MEMBERS})
    used["ewma"] |= members["status"].eq(ModelStatus.FALLBACK)
    values = members[list(MEMBERS)].where(used)
    made_of = pd.Series("", members.index)
    for name in MEMBERS:
        made_of += values[name].notna().map({True: f"{name}+", False: ""})
    made_of = made_of.str.rstrip("+").astype(object).where(values.notna().any(axis=1), None)
    return members.assign(variance=values.mean(axis=1), made_of=made_of)


def adapt(
    rows: pd.DataFrame,
    models: Sequence[VolatilityModel | None],
    realized: pd.Series,
    thresholds: pd.Series,
    symbol: str,
    horizon: int,
    shown: int,
) -> pd.DataFrame:
    """Return the last `shown` rows with interval and flag, each learnt from all rows before it.

    `rows` are every hour's, NaN where there is no forecast, with their `models`; `realized` is what
    the `horizon` hours after each as-of came to. The width is that of adaptive conformal inference
    (Gibbs and Candès 2021), with the horizon as delay: wider by 1.8 % after a miss, narrower by
    0.2 % after a hit. The flag is up where the odds to be above the threshold are higher than a
    level that was passed as often as the threshold was.

    Columns: interval_width, interval_status, low, high, probability_high, flag_level, and
    is_high_volatility (None: not known). Without a model's distribution, as in a FALLBACK, it is
    whether the variance is above the threshold.
    """
    variance = rows["variance"].to_numpy(dtype=float)
    happened = realized.reindex(rows.index).to_numpy(dtype=float)
    happened = np.maximum(happened, rows["floor"].to_numpy(dtype=float))
    threshold = thresholds.reindex(rows.index).to_numpy(dtype=float)
    is_ok = rows["status"].eq(ModelStatus.OK).to_numpy()
    # Of one model the same for all its hours.
    errors_of = {id(m): m.errors(symbol) for m in models if m is not None}
    errors = [
        errors_of[id(m)] if m is not None and ok else None
        for m, ok in zip(models, is_ok, strict=True)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.array([_ends(of) for of in errors])
        widths = _widths(np.log(happened / variance), ends, horizon)
        odds = _odds(np.log(threshold / variance) / widths, errors)
    seen = pd.Series(happened).notna() & ~np.isnan(ends[:, 0])
    outcomes = seen.shift(horizon, fill_value=False).cumsum().to_numpy()
    has_interval = ~np.isnan(ends[:, 0]) & ~np.isnan(variance)
    is_known = ~np.isnan(happened) & ~np.isnan(odds)
    levels = _levels(odds, happened > threshold, is_known, horizon, shown)
    status = np.where(outcomes < FEWEST_OUTCOMES, IntervalStatus.SHORT, IntervalStatus.ADAPTED)
    is_high = np.where(np.isnan(odds), variance > threshold, odds > levels).astype(object)
    is_high[np.isnan(variance) | np.isnan(threshold)] = None
    return rows.assign(
        threshold=threshold,
        interval_width=np.where(has_interval, widths, np.nan),
        interval_status=np.where(has_interval, status, IntervalStatus.NONE),
        low=variance * np.exp(widths * ends[:, 0]),
        high=variance * np.exp(widths * ends[:, 1]),
        probability_high=odds,
        flag_level=np.where(np.isnan(odds), np.nan, levels),
        is_high_volatility=is_high,
    ).iloc[-shown:]


def _ends(errors: Floats | None) -> tuple[float, float]:
    """Return the ends of the interval of log(outcome / forecast), as the model's residuals say."""
    if errors is None:
        return np.nan, np.nan
    levels = LEVELS if len(errors) == len(LEVELS) else ENDS
    low, high = np.interp(ENDS, levels, errors)
    return float(low), float(high)


def _widths(errors: Floats, ends: Floats, horizon: int) -> Floats:
    widths = np.ones(len(errors))
    log_width = 0.0
    for n in range(len(errors)):
        passed = n - horizon
        if passed >= 0:
            low, high = ends[passed] * widths[passed]
            error = errors[passed]
            if not (np.isnan(error) or np.isnan(low)):
                missed = not low <= error <= high
                log_width += LEARNING_RATE * (missed - (1 - COVERAGE))
                log_width = min(max(log_width, -WIDEST), WIDEST)
        widths[n] = np.exp(log_width)
    return widths


def _odds(distances: Floats, errors: Sequence[Floats | None]) -> Floats:
    """Return the probability that a residual is beyond each distance; between .01 and .99."""
    return np.array(
        [
            np.nan
            if of is None or len(of) != len(LEVELS) or np.isnan(distance)
            else 1 - np.interp(distance, of, LEVELS)
            for distance, of in zip(distances, errors, strict=True)
        ]
    )


def _levels(odds: Floats, was_high: Flags, is_known: Flags, horizon: int, shown: int) -> Floats:
    levels = np.full(len(odds), EVEN_ODDS)
    for n in range(len(odds) - shown, len(odds)):
        passed = slice(0, max(0, n - horizon + 1))
        answered = is_known[passed]
        if answered.sum() >= FEWEST_OUTCOMES:
            share = was_high[passed][answered].mean()
            levels[n] = np.quantile(odds[passed][answered], 1 - share)
    return levels
