"""The baseline that the model has to beat: GARCH(1,1) on hourly returns, a symbol at a time.

Fitted by `arch`; pure functions of hourly closes, indexed by the close of their hour (UTC), NaN
where nothing was traded. Its failure to converge is recorded, never hidden behind a number.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from trading_pipelines.candles.windows import DAY
from trading_pipelines.signals.catalogue import GARCH_TRAINING_DAYS

SCALE = 100.0
"""Returns in percent: `arch` does not converge well on numbers as small as 0.001."""
FEWEST_HOURS = 7 * 24


class Parameters(BaseModel):
    """In percent and percent squared an hour."""

    model_config = ConfigDict(frozen=True)

    mu: float
    omega: float
    alpha: float
    beta: float
    next_variance: float
    """Of the hour that begins at the fit's `as_of`: the state from which it is carried forward."""


class GarchFit(BaseModel):
    """One fit; without parameters where there was nothing to fit."""

    model_config = ConfigDict(frozen=True)

    as_of: datetime
    rows: int
    converged: bool = False
    """False: no forecast is made of it."""
    warnings: list[str] = []
    parameters: Parameters | None = None
    data_hash: str | None = None
    """Of the returns; None: there were too few."""


def hourly_returns(closes: pd.Series, until: datetime) -> pd.Series:
    """Return log returns in percent, each hour up to `until`; zero in an hour without a trade."""
    if closes.empty:
        return closes
    grid = closes.reindex(pd.date_range(closes.index[0], until, freq="h")).ffill()
    return SCALE * grid.apply(np.log).diff().iloc[1:]


def fit(returns: pd.Series, as_of: datetime) -> GarchFit:
    """Fit on the returns of the last `GARCH_TRAINING_DAYS` that had closed at `as_of`.

    Constant prices, too few hours, a failed optimiser: `converged` is false and `warnings` says it;
    nothing is raised.
    """
    first = as_of - timedelta(days=GARCH_TRAINING_DAYS)
    training = returns[(returns.index > first) & (returns.index <= as_of)]
    model = GarchFit(as_of=as_of, rows=len(training))
    if len(training) < FEWEST_HOURS:
        warning = f"{len(training)} hours of returns, fewer than {FEWEST_HOURS}"
        return model.model_copy(update={"warnings": [warning]})
    digest = hashlib.sha256(training.to_numpy().tobytes()).hexdigest()[:16]
    model = model.model_copy(update={"data_hash": digest})
    if not training.any():
        return model.model_copy(update={"warnings": ["the price did not move"]})
    from arch import arch_model

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = arch_model(training, mean="Constant", vol="GARCH", p=1, q=1, rescale=False).fit(
            disp="off"
        )
    mu, omega, alpha, beta = (float(value) for value in result.params)
    residual, deviation = (
        float(np.asarray(series)[-1]) for series in (result.resid, result.conditional_volatility)
    )
    ahead = omega + alpha * residual**2 + beta * deviation**2
    return model.model_copy(
        update={
            "converged": result.convergence_flag == 0,
            "warnings": [" ".join(str(warning.message).split()) for warning in caught],
            "parameters": Parameters(
                mu=mu, omega=omega, alpha=alpha, beta=beta, next_variance=ahead
            ),
        }
    )


def forecast(
    model: GarchFit, returns: pd.Series, as_ofs: Sequence[datetime], horizon: int
) -> pd.Series:
    """Return the mean hourly variance of the next `horizon` hours, as of each moment.

    The sum of the steps' variances over `horizon`, back on the scale of log returns. `as_ofs` are
    hours from the model's own on. NaN where it did not converge or a return is missing.
    """
    variances = pd.Series(np.nan, index=pd.DatetimeIndex(list(as_ofs)))
    fitted = model.parameters
    if not model.converged or fitted is None:
        return variances
    ahead = fitted.next_variance
    next_variance = {pd.Timestamp(model.as_of): ahead}
    later = returns[(returns.index > model.as_of) & (returns.index <= max(as_ofs))]
    for at, value in zip(pd.DatetimeIndex(later.index), later, strict=True):
        ahead = fitted.omega + fitted.alpha * (value - fitted.mu) ** 2 + fitted.beta * ahead
        next_variance[at] = ahead
    for as_of in variances.index.intersection(list(next_variance)):
        step, total = next_variance[as_of], 0.0
        for _ in range(horizon):
            total += step
            step = fitted.omega + (fitted.alpha + fitted.beta) * step
        variances[as_of] = total / horizon / SCALE**2
    return variances


def carried(
    fits: Mapping[datetime, GarchFit], returns: pd.Series, as_ofs: Sequence[datetime], horizon: int
) -> pd.Series:
    """Return `forecast` as of each moment by the newest of the fits that is at most a day old.

    NaN where there is none, and where the returns do not reach. `fits` are by their as-of.
    """
    hours_of: dict[datetime, list[datetime]] = {}
    for as_of in as_ofs:
        if fitted := [at for at in fits if as_of - DAY <= at <= as_of]:
            hours_of.setdefault(max(fitted), []).append(as_of)
    parts = [forecast(fits[at], returns, hours, horizon) for at, hours in hours_of.items()]
    index = pd.DatetimeIndex(list(as_ofs), tz="UTC")
    variances: pd.Series = pd.concat([pd.Series(np.nan, index[:0]), *parts]).reindex(index)
    return variances
