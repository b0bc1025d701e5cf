"""How good a forecast was: losses against what happened, and whether a difference is real.

Pure functions of aligned series, and the figures of the last 30 and 90 days as they are stored.
What is forecast belongs in `model` and `garch`; which models can be told apart, in `comparison`.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import psycopg
from psycopg.rows import class_row

from trading_pipelines.signals.volatility.model import outcome, trailing_mean

FEWEST_DAYS = 14
ALL = "all"
"""Stands in place of the symbol, for all of them together."""
COVERAGE_LEAST, COVERAGE_MOST = 0.85, 0.95
FEWEST_APART = 60
"""Of intervals that do not overlap: of 30 good ones, 36 % of all cases hold outside 85-95 %."""
ROLLING = """
WITH scored AS (
    SELECT *, max(day) OVER () - day AS days_ago FROM trading_pipelines.volatility_score
    WHERE symbol = ANY(%(symbols)s) AND day < %(before)s
)
SELECT coalesce(symbol, %(all)s) AS symbol, horizon,
    coalesce(sum(forecasts) FILTER (WHERE days_ago < 30), 0)::int AS forecasts,
    count(DISTINCT day) FILTER (WHERE days_ago < 30)::int AS days,
    sum(forecasts * qlike) FILTER (WHERE days_ago < 30)
        / nullif(sum(forecasts * qlike_garch) FILTER (WHERE days_ago < 30), 0) AS ratio_to_garch,
    coalesce(sum(intervals) FILTER (WHERE days_ago < 30), 0)::int AS intervals_30d,
    coalesce(sum(covered) FILTER (WHERE days_ago < 30), 0)::int AS covered_30d,
    sum(intervals)::int AS intervals_90d, sum(covered)::int AS covered_90d,
    sum(flags)::int AS flags, sum(flagged)::int AS flagged, sum(high)::int AS high,
    sum(flagged_and_high)::int AS flagged_and_high
FROM scored WHERE days_ago < 90
GROUP BY GROUPING SETS ((horizon), (symbol, horizon))
ORDER BY horizon, scored.symbol IS NOT NULL, array_position(%(symbols)s, scored.symbol)
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
    """The last 30 and 90 days of a symbol, or of all (`all`), and a horizon.

    The ratio of QLIKEs is of 30 days, below 1 ours is better; the flags are of 90.
    """

    symbol: str
    horizon: int
    forecasts: int
    days: int
    ratio_to_garch: float | None
    intervals_30d: int
    covered_30d: int
    intervals_90d: int
    covered_90d: int
    flags: int
    flagged: int
    high: int
    flagged_and_high: int

    @property
    def is_worse_than_garch(self) -> bool:
        """Whether GARCH was better over enough days: a single jump decides a week's mean."""
        return self.days >= FEWEST_DAYS and (self.ratio_to_garch or 0.0) > 1

    @property
    def coverage(self) -> dict[int, float | None]:
        """The share of the 90 % intervals that held, by how many days it is of."""
        return {
            30: _share(self.covered_30d, self.intervals_30d),
            90: _share(self.covered_90d, self.intervals_90d),
        }

    @property
    def strayed(self) -> dict[int, float]:
        """Of the coverages, those outside 85-95 % that enough intervals are behind."""
        intervals = {30: self.intervals_30d, 90: self.intervals_90d}
        return {
            days: share
            for days, share in self.coverage.items()
            if share is not None
            and intervals[days] >= FEWEST_APART * self.horizon
            and intervals[days] >= FEWEST_DAYS * 24
            and not COVERAGE_LEAST <= share <= COVERAGE_MOST
        }

    @property
    def flag_precision(self) -> float | None:
        """Of the flags that were up, the share after which it was high."""
        return _share(self.flagged_and_high, self.flagged)

    @property
    def flag_recall(self) -> float | None:
        """Of the hours before which the flag should have been up, the share in which it was."""
        return _share(self.flagged_and_high, self.high)

    @property
    def base_rate(self) -> float | None:
        """How often it was high: the precision of a flag that knows nothing."""
        return _share(self.high, self.flags)

    def __str__(self) -> str:
        if self.ratio_to_garch is None:
            return f"{self.horizon} h: nothing to compare"
        return (
            f"{self.horizon} h: {self.ratio_to_garch:.2f} of GARCH's in {self.forecasts} forecasts"
        )

    def shown(self) -> dict[str, Any]:
        """Return a row for a table that a person reads."""
        return {
            "symbol": self.symbol,
            "hours ahead": self.horizon,
            "our loss / GARCH's, 30 days": self.ratio_to_garch,
            "90 % interval held, 30 days": self.coverage[30],
            "90 % interval held, 90 days": self.coverage[90],
            "flag up": _share(self.flagged, self.flags),
            "flag right (precision)": self.flag_precision,
            "high hours flagged (recall)": self.flag_recall,
            "high hours (base rate)": self.base_rate,
        }


def rolling_scores(
    connection: psycopg.Connection, symbols: Sequence[str], before: date | None = None
) -> list[RollingScore]:
    """Return, by horizon, all symbols together and then each, of the days before a UTC day.

    They end with the newest day that is scored. Without `before`, all days count.
    """
    asked = {"symbols": list(symbols), "before": before or date.max, "all": ALL}
    with connection.cursor(row_factory=class_row(RollingScore)) as cursor:
        return cursor.execute(ROLLING, asked).fetchall()


def not_worse(rolling: Sequence[RollingScore]) -> str:
    """Say how all symbols do against GARCH at each horizon, and name those that do worse."""
    phrases = []
    for together in rolling:
        if together.symbol != ALL:
            continue
        worse = [
            f"{of.symbol} {of.ratio_to_garch:.2f}"
            for of in rolling
            if of.horizon == together.horizon and of.symbol != ALL and of.is_worse_than_garch
        ]
        phrases.append(f"{together}, worse: {', '.join(worse)}" if worse else str(together))
    return "; ".join(phrases) or "nothing scored yet"


def strayed_intervals(rolling: Sequence[RollingScore]) -> str:
    """Name each symbol and horizon whose 90 % intervals hold too seldom or too often."""
    phrases = [
        f"{of.symbol} {of.horizon} h: {share:.0%} of 90 % intervals held in {days} days"
        for of in rolling
        if of.symbol != ALL
        for days, share in of.strayed.items()
    ]
    return (
        "; ".join(phrases) or "no symbol's intervals hold outside 85-95 %, where enough have ended"
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
