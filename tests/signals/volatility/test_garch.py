"""The GARCH(1,1) baseline, against arch's own analytic forecasts."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from arch import arch_model

from trading_pipelines.signals.catalogue import GARCH_TRAINING_DAYS
from trading_pipelines.signals.volatility.garch import (
    FEWEST_HOURS,
    GarchFit,
    carried,
    fit,
    forecast,
)
from trading_pipelines.signals.volatility.garch import hourly_returns as returns_of

AS_OF = datetime(2025, 6, 3, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LATER = 30


def simulated(days: float = 95) -> pd.Series:
    """Return hourly closes of a GARCH(1,1), `days` before AS_OF and a little on."""
    hours = pd.date_range(AS_OF - DAY * days, AS_OF + HOUR * LATER, freq="h")
    shocks = np.random.default_rng(5).normal(size=len(hours))
    variance, moves = 2.5e-5, []
    for shock in shocks:
        moves.append(shock * np.sqrt(variance))
        variance = 1e-6 + 0.08 * moves[-1] ** 2 + 0.88 * variance
    return pd.Series(1e8 * np.exp(np.cumsum(moves)), index=hours)


def of_arch(returns: pd.Series, horizon: int, params: Sequence[float] | None = None) -> float:
    """Return what arch says of the hours after the last one, refitted or with fixed parameters."""
    model = arch_model(returns, mean="Constant", vol="GARCH", p=1, q=1, rescale=False)
    result = model.fit(disp="off") if params is None else model.fix(params)
    steps = result.forecast(horizon=horizon, reindex=False).variance.iloc[-1]
    return float(steps.sum()) / horizon / 1e4


@pytest.mark.parametrize("horizon", [1, 24])
def test_a_forecast_is_archs_own_at_the_fit_and_hours_after_it(horizon: int) -> None:
    returns = returns_of(simulated(), AS_OF + HOUR * LATER)
    model = fit(returns, AS_OF)
    assert (model.converged, model.warnings) == (True, [])
    assert model.rows == GARCH_TRAINING_DAYS * 24
    trained = returns.loc[AS_OF - DAY * GARCH_TRAINING_DAYS + HOUR : AS_OF]
    as_ofs = [AS_OF, AS_OF + HOUR, AS_OF + HOUR * 23]
    found = forecast(model, returns, as_ofs, horizon)
    assert list(found.index) == as_ofs
    assert found[AS_OF] == pytest.approx(of_arch(trained, horizon), rel=1e-9)
    fitted = model.parameters
    assert fitted is not None
    params = [fitted.mu, fitted.omega, fitted.alpha, fitted.beta]
    for as_of in as_ofs[1:]:
        seen = returns.loc[trained.index[0] : as_of]
        assert found[as_of] == pytest.approx(of_arch(seen, horizon, params), rel=1e-6)
    assert found.nunique() == 3


def test_it_is_fitted_in_percent_and_forecast_on_the_scale_of_log_returns() -> None:
    closes = simulated()
    returns = returns_of(closes, AS_OF)
    logs = np.log(closes.loc[:AS_OF]).diff().dropna()
    np.testing.assert_allclose(returns, 100 * logs, rtol=1e-9, atol=1e-12)
    model = fit(returns, AS_OF)
    assert model.parameters is not None
    assert model.parameters.omega == pytest.approx(1e4 * 1e-6, rel=0.9), "in percent squared"
    variance = forecast(model, returns, [AS_OF], 24)[AS_OF]
    assert variance == pytest.approx(logs.var(), rel=0.8)


def test_an_hour_without_a_trade_has_a_zero_return_and_the_next_one_the_whole_move() -> None:
    hours = [AS_OF, AS_OF + HOUR, AS_OF + HOUR * 4]
    closes = pd.Series([100.0, 110.0, 121.0], index=pd.DatetimeIndex(hours))
    returns = returns_of(closes, AS_OF + HOUR * 6)
    moved = 100 * np.log(1.1)
    assert list(returns.index) == [AS_OF + HOUR * n for n in range(1, 7)]
    assert returns.to_list() == pytest.approx([moved, 0, 0, moved, 0, 0])


@pytest.mark.parametrize(
    ("days", "factor", "words"),
    [
        (FEWEST_HOURS / 24 - 1 / 24, 1.0, "167 hours of returns, fewer than 168"),
        (30, 0.0, "the price did not move"),
        (30, 1e-6, "optimizer"),
    ],
)
def test_what_cannot_be_fitted_says_why_and_has_no_forecast(
    days: float, factor: float, words: str
) -> None:
    returns = factor * returns_of(simulated(days), AS_OF + HOUR * LATER)
    model = fit(returns, AS_OF)
    assert not model.converged
    assert words in "; ".join(model.warnings)
    found = forecast(model, returns, [AS_OF, AS_OF + HOUR], 24)
    assert found.isna().to_list() == [True, True]


def test_168_hours_are_enough() -> None:
    model = fit(returns_of(simulated(FEWEST_HOURS / 24), AS_OF), AS_OF)
    assert (model.rows, model.parameters is not None) == (FEWEST_HOURS, True)


def test_what_comes_after_the_as_of_changes_neither_the_fit_nor_its_forecast() -> None:
    returns = returns_of(simulated(), AS_OF + HOUR * LATER)
    changed = returns.copy()
    changed[changed.index > AS_OF] *= 50
    model = fit(returns, AS_OF)
    assert fit(changed, AS_OF).model_dump_json() == model.model_dump_json()
    assert forecast(model, changed, [AS_OF], 24).equals(forecast(model, returns, [AS_OF], 24))
    known, later = AS_OF + HOUR * 3, AS_OF + HOUR * 4
    cut = returns.where(returns.index <= known, 99.0)
    before, after = (forecast(model, r, [known, later], 24) for r in (returns, cut))
    assert before[known] == after[known]
    assert before[later] != after[later]


def test_older_returns_than_90_days_do_not_count_but_the_oldest_of_them_does() -> None:
    returns = returns_of(simulated(), AS_OF)
    first = AS_OF - DAY * GARCH_TRAINING_DAYS
    older = returns.where(returns.index > first, 77.0)
    assert fit(older, AS_OF).model_dump_json() == fit(returns, AS_OF).model_dump_json()
    oldest = returns.where(returns.index != first + HOUR, 77.0)
    assert fit(oldest, AS_OF).parameters != fit(returns, AS_OF).parameters


@pytest.mark.parametrize("horizon", [1, 24])
def test_a_stored_fit_is_carried_a_day_to_the_same_bits(horizon: int) -> None:
    returns = returns_of(simulated(), AS_OF + HOUR * LATER)
    model = fit(returns, AS_OF)
    as_ofs = [AS_OF + HOUR * n for n in range(LATER)]
    stored = GarchFit.model_validate_json(model.model_dump_json())
    near = returns[returns.index > AS_OF - HOUR * 3]
    found = carried({AS_OF: stored, AS_OF - DAY: stored}, near, as_ofs, horizon)
    day = as_ofs[: 24 + 1]
    assert found.loc[: day[-1]].to_list() == forecast(model, returns, day, horizon).to_list()
    assert found.loc[as_ofs[25] :].isna().all(), "an older fit says nothing"
    cut = carried({AS_OF: stored}, returns[returns.index <= AS_OF + HOUR * 2], as_ofs, horizon)
    assert cut.notna().sum() == 3, "nor does one whose returns are not there yet"
