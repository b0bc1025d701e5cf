"""Losses by hand, and against scikit-learn's and a plain Newey-West estimate."""

import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_gamma_deviance

from trading_pipelines.signals.volatility.score import day_score, hac_t_value, qlike

MIDNIGHT = datetime(2025, 6, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)


def loss(realized: float, forecast: float) -> float:
    return realized / forecast - math.log(realized / forecast) - 1


def test_qlike_is_zero_where_they_agree_and_half_the_gamma_deviance_elsewhere() -> None:
    random = np.random.default_rng(1)
    realized = pd.Series(random.lognormal(-11, 1, 300))
    forecast = pd.Series(random.lognormal(-11, 1, 300))
    assert qlike(realized, realized).to_list() == [0.0] * 300
    assert (qlike(realized, forecast) > 0).all()
    half = mean_gamma_deviance(realized, forecast) / 2
    assert qlike(realized, forecast).mean() == pytest.approx(half, rel=1e-12)
    too_low, too_high = (qlike(realized, realized * factor)[0] for factor in (0.5, 2))
    assert too_low > too_high, "to be surprised costs more than to be cautious"


def newey_west(values: list[float], lags: int) -> float:
    mean, n = math.fsum(values) / len(values), len(values)
    off = [value - mean for value in values]
    total = math.fsum(d * d for d in off)
    for lag in range(1, lags + 1):
        weight = 1 - lag / (lags + 1)
        total += 2 * weight * math.fsum(a * b for a, b in zip(off, off[lag:], strict=False))
    return mean / math.sqrt(total / n**2)


@pytest.mark.parametrize("lags", [0, 23])
def test_a_t_value_is_newey_wests_and_has_the_sign_of_the_mean(lags: int) -> None:
    noise = np.random.default_rng(2).normal(0.1, 1, 400)
    overlapping = pd.Series(np.convolve(noise, np.ones(24) / 24, mode="valid"))
    found = hac_t_value(overlapping, lags)
    assert found > 0
    assert found == pytest.approx(newey_west(overlapping.to_list(), lags), rel=1e-9)
    assert hac_t_value(-overlapping, lags) == pytest.approx(-found)
    with_holes = pd.Series([np.nan, *overlapping, np.nan])
    assert hac_t_value(with_holes, lags) == found


def test_too_short_or_constant_a_sample_has_no_t_value() -> None:
    values = pd.Series(np.random.default_rng(3).normal(1, 1, 30))
    assert hac_t_value(values, 5) > 2
    assert math.isnan(hac_t_value(values[:-1], 5))
    assert math.isnan(hac_t_value(values.mask(values.index == 7), 5))
    assert math.isnan(hac_t_value(pd.Series([0.25] * 50), 5))
    assert math.isnan(hac_t_value(pd.Series(dtype=float), 5))


def forecasts(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return forecasts as of one hour after the other, as they come from their table."""
    usual = {
        "variance": 2.0, "low": 1.0, "high": 4.0, "garch": 1.0, "floor": 0.5,
        "threshold": 2.5, "is_high_volatility": False,
    }  # fmt: skip
    return pd.DataFrame(
        [{"as_of": MIDNIGHT + HOUR * n, **usual, **row} for n, row in enumerate(rows)]
    )


def hourly(*variances: float) -> pd.Series:
    """Return the variances of the hours that close at MIDNIGHT and after it."""
    return pd.Series(
        variances, index=pd.date_range(MIDNIGHT, periods=len(variances), freq="h"), dtype=float
    )


def test_a_day_is_scored_as_by_hand() -> None:
    rows = forecasts(
        {"is_high_volatility": True, "low": 3.0},  # realized 3: high, covered, at the edge
        {},  # realized 4: high, covered, at the edge
        {"is_high_volatility": True},  # realized 0.1 counts as the floor, 0.5: not covered
        {"high": 5.0},  # realized 8: high, not covered
    )
    found = day_score(rows, hourly(1, 3, 4, 0.1, 8), horizon=1)
    by_hand = {
        "forecasts": 4,
        "qlike": (loss(3, 2) + loss(4, 2) + loss(0.5, 2) + loss(8, 2)) / 4,
        "qlike_garch": (loss(3, 1) + loss(4, 1) + loss(0.5, 1) + loss(8, 1)) / 4,
        "qlike_random_walk": (loss(3, 1) + loss(4, 3) + loss(0.5, 4) + loss(8, 0.5)) / 4,
        "bias": math.log(3 * 4 * 0.5 * 8 / 2**4) / 4,
        "intervals": 4,
        "covered": 2,
        "flags": 4,
        "flagged": 2,
        "high": 3,
        "flagged_and_high": 1,
    }
    assert asdict(found) == pytest.approx(by_hand)
    assert found.row() == tuple(asdict(found)[name] for name in by_hand), "the table's order"


def test_a_longer_horizon_is_judged_by_the_mean_of_its_hours() -> None:
    before_and_after = hourly(1, 5, 3, 6, 4).shift(-1, freq="h")  # 1 and 5 are known at MIDNIGHT
    found = day_score(forecasts({}, {}), before_and_after, horizon=2)
    assert found.qlike == pytest.approx((loss(4.5, 2) + loss(5, 2)) / 2)
    assert found.qlike_random_walk == pytest.approx((loss(4.5, 3) + loss(5, 4)) / 2)


def test_losses_are_of_the_forecasts_that_all_three_made() -> None:
    rows = forecasts(
        {"variance": np.nan, "low": np.nan, "high": np.nan, "is_high_volatility": None},
        {"garch": None},
        {"low": None, "high": None},  # a fallback
        {"is_high_volatility": None, "threshold": None},
        {},  # of which the outcome was an outage
        {},  # whose random walk is that outage
    )
    found = day_score(rows, hourly(1, 3, 3, 3, 3, np.nan, 6), horizon=1)
    assert found.forecasts == 2
    assert found.qlike == pytest.approx(loss(3, 2))
    assert found.qlike_garch == pytest.approx(loss(3, 1))
    assert found.qlike_random_walk == 0
    assert (found.intervals, found.covered) == (3, 2)
    assert (found.flags, found.flagged, found.high, found.flagged_and_high) == (3, 0, 3, 0)


def test_nothing_that_happened_is_none_and_not_zero() -> None:
    found = day_score(forecasts({}, {}), hourly(1, np.nan, np.nan), horizon=1)
    assert found.row() == (0, None, None, None, None, 0, 0, 0, 0, 0, 0)
    never = forecasts({"variance": None, "low": None, "high": None, "is_high_volatility": None})
    assert day_score(never, hourly(1, 2), horizon=1).row()[:5] == (0, None, None, None, None)
