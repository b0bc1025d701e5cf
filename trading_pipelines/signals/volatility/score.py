"""How good a forecast was: losses against what happened, and whether a difference is real.

Pure functions of aligned series, and the figures of the last 30 days as they are stored. What is
forecast belongs in `model` and `garch`.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
import psycopg
from psycopg.rows import class_row

from trading_pipelines.signals.volatility.model import outcome, trailing_mean

FEWEST_DAYS = 14
ROLLING = """
SELECT horizon, sum(forecasts)::int AS forecasts, count(DISTINCT day)::int AS days,
    sum(forecasts * qlike) / nullif(sum(forecasts * qlike_garch), 0) AS ratio_to_garch
FROM trading_pipelines.volatility_score
WHERE symbol = ANY(%s) AND day > (SELECT max(day) FROM trading_pipelines.volatility_score) - 30
GROUP BY horizon ORDER BY horizon
"""


def qlike(realized: pd.Series, forecast: pd.Series) -> pd.Series:
    """Return RV/F - ln(RV/F) - 1, zero where they agree: robust to a noisy proxy (Patton 2011).

    Both positive: floor them first.
    """
    ratio = realized / forecast
    return ratio - ratio.apply(np.log) - 1


def hac_t_value(values: pd.Series, lags: int) -> float:
    """Return the t-value of the mean with Newey-West errors over `lags`; NaN for fewer than 30.

    Of a difference of two losses it is the Diebold-Mariano statistic: below -2 the first is better.
    """
    sample = values.dropna()
    if len(sample) < 30 or sample.std() == 0:
        return float("nan")
    from statsmodels.regression.linear_model import OLS

    fitted = OLS(sample.to_numpy(), np.ones(len(sample))).fit(
        cov_type="HAC", cov_kwds={"maxlags": lags}
    )
    return float(fitted.tvalues[0])


@dataclass(frozen=True)
class DayScore:
    """One symbol's forecasts of one horizon against one day; the fields as in the table."""

    forecasts: int
    qlike: float | None
    qlike_garch: float | None
    qlike_random_walk: float | None
    bias: float | None
    intervals: int
    covered: int
    flags: int
    flagged: int
    high: int
    flagged_and_high: int

    def row(self) -> tuple[float | None, ...]:
        """The values in the order of the table's columns."""
        return astuple(self)


def day_score(forecasts: pd.DataFrame, hourly: pd.Series, horizon: int) -> DayScore:
    """Score forecasts (as of the hours of the index `as_of`) against the hourly variances.

    Losses are means over those forecasts that GARCH and the random walk have as well, so that all
    three answer the same questions. Nothing that happened is None, not zero.
    """
    rows = forecasts.set_index("as_of")
    floor = rows["floor"].astype(float)
    realized = outcome(hourly, horizon).reindex(rows.index).clip(lower=floor)
    walk = trailing_mean(hourly, horizon).reindex(rows.index).clip(lower=floor)
    ours, theirs = rows["variance"].astype(float), rows["garch"].astype(float)
    is_paired = realized.notna() & walk.notna() & ours.notna() & theirs.notna()

    def mean(values: pd.Series) -> float | None:
        return float(values[is_paired].mean()) if is_paired.any() else None

    low, high = rows["low"].astype(float), rows["high"].astype(float)
    has_interval = low.notna() & realized.notna()
    can_tell = rows["is_high_volatility"].notna() & realized.notna()
    is_flagged = rows["is_high_volatility"][can_tell].astype(bool)
    is_high = (realized > rows["threshold"].astype(float))[can_tell]
    return DayScore(
        forecasts=int(is_paired.sum()),
        qlike=mean(qlike(realized, ours)),
        qlike_garch=mean(qlike(realized, theirs)),
        qlike_random_walk=mean(qlike(realized, walk)),
        bias=mean((realized / ours).apply(np.log)),
        intervals=int(has_interval.sum()),
        covered=int((has_interval & (low <= realized) & (realized <= high)).sum()),
        flags=int(can_tell.sum()),
        flagged=int(is_flagged.sum()),
        high=int(is_high.sum()),
        flagged_and_high=int((is_flagged & is_high).sum()),
    )


@dataclass(frozen=True)
class RollingScore:
    """The last 30 scored days over all symbols; a ratio of QLIKEs, below 1 ours is better."""

    horizon: int
    forecasts: int
    days: int
    ratio_to_garch: float | None

    @property
    def is_worse_than_garch(self) -> bool:
        """Whether GARCH was better over enough days: a single jump decides a week's mean."""
        return self.days >= FEWEST_DAYS and (self.ratio_to_garch or 0.0) > 1

    def __str__(self) -> str:
        if self.ratio_to_garch is None:
            return f"{self.horizon} h: nothing to compare"
        return (
            f"{self.horizon} h: {self.ratio_to_garch:.2f} of GARCH's in {self.forecasts} forecasts"
        )


def rolling_scores(connection: psycopg.Connection, symbols: Sequence[str]) -> list[RollingScore]:
    """Return one entry a horizon."""
    with connection.cursor(row_factory=class_row(RollingScore)) as cursor:
        cursor.execute(ROLLING, [list(symbols)])
        return cursor.fetchall()
