"""Hourly realised variance of five-minute bars, and the range-based fallback.

Pure functions. An hour is known by its close: the value at t is of [t - 1 h, t), usable from t on.
What is forecast from it belongs in `model`.
"""

import math
from datetime import datetime
from enum import StrEnum

import numpy as np
import pandas as pd

from trading_pipelines.candles.windows import HOUR
from trading_pipelines.signals.catalogue import ZERO_SHARE_HOURS

BAR = pd.Timedelta(minutes=5)
BARS_AN_HOUR = 12
# Where the price often does not move from one bar to the next, what moves it is the tick: KRW-DOGE
# bounces between 300 and 301 KRW, and its squared returns then measure the bounce.
LARGEST_ZERO_SHARE = 0.30
HOURS_A_YEAR = 365 * 24


class Estimator(StrEnum):
    """How an hour's variance was measured."""

    RETURNS = "5m_returns"
    PARKINSON = "parkinson"


def parkinson(high: pd.Series, low: pd.Series) -> pd.Series:
    """Return the variance of each bar by its range, ln(high / low)^2 / (4 ln 2): Parkinson 1980."""
    log_range = (high / low).apply(np.log)
    return log_range.pow(2) / (4 * math.log(2))


def annualized(variance: float) -> float:
    """Return the yearly volatility (1 = 100 %) of a mean hourly variance; markets never close."""
    return float(np.sqrt(variance * HOURS_A_YEAR))


def realized_variance(bars: pd.DataFrame, until: datetime) -> pd.DataFrame:
    """Return one row an hour from the first bar's up to `until`, indexed by the hour's close, UTC.

    `bars` are one symbol's traded five-minute bars, indexed by their start: open, high, low, close,
    minutes (traded); `until` is on the hour. A bar without a trade carries the close forward, a
    zero return. An hour without a single trade is an outage: it has no variance (NaN), and the
    first return after it starts at the open there: the step over the outage is not of that hour.

    Columns: `realized_variance` (of the hour, by `estimator`), `estimator`, `zero_share` (of the
    five-minute returns of the last 7 days), `minutes`. The estimator of an hour depends on what
    came before it alone, so that it never changes later.
    """
    if bars.empty:
        return pd.DataFrame(columns=["realized_variance", "estimator", "zero_share", "minutes"])
    start = pd.Timestamp(bars.index[0]).floor("h")
    times = pd.date_range(start, until, freq=BAR, inclusive="left")
    grid, hour = bars.reindex(times), times.floor("h")
    minutes = grid["minutes"].fillna(0).groupby(hour).sum()
    resumed = minutes.gt(0) & minutes.shift(1, fill_value=0).eq(0)

    close = grid["close"].ffill()
    base = close.shift(1)
    traded = grid["minutes"].notna()
    first_traded = traded & (traded.groupby(hour).cumsum() == 1)
    restarts = first_traded & pd.Series(resumed.reindex(hour).to_numpy(), index=times)
    # Before the first trade after an outage the carried close is of before it: no return at all.
    returns = (close / base.where(~restarts, grid["open"])).apply(np.log).fillna(0.0)

    by_hour = pd.DataFrame({"squared": returns**2, "zero": returns.eq(0)}).groupby(hour).sum()
    ranges = grid.groupby(hour).agg({"high": "max", "low": "min"})
    is_open = minutes.gt(0)
    zero_share = _trailing(by_hour["zero"].where(is_open)) / BARS_AN_HOUR
    by_range = zero_share > LARGEST_ZERO_SHARE
    hours = pd.DataFrame(
        {
            "realized_variance": by_hour["squared"]
            .where(~by_range, parkinson(ranges["high"], ranges["low"]))
            .where(is_open),
            "estimator": np.where(by_range, Estimator.PARKINSON, Estimator.RETURNS),
            "zero_share": zero_share,
            "minutes": minutes.astype(int),
        }
    )
    hours.index += HOUR
    return hours


def _trailing(zeros: pd.Series) -> pd.Series:
    # Whole numbers: exact, wherever the window starts.
    return zeros.rolling(ZERO_SHARE_HOURS, min_periods=1).mean().fillna(0.0)
