"""The volatility model: one ridge regression on log realised variances, pooled over all symbols.

HAR on logs (Corsi 2009), demeaned by symbol, with the hour of the day and the weekend. Pure
functions of a panel: hourly realised variances, a column a symbol, indexed by the close of the hour
(UTC); NaN where nothing was traded. Every function takes the moment it speaks as of and looks at
nothing that closed after it. How a variance is measured belongs in `realized`, what else a forecast
is made of in `combined`, how good it was in `score`.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from importlib import import_module
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from threadpoolctl import threadpool_limits

from trading_pipelines.settings.strategy import VolatilitySettings
from trading_pipelines.signals.catalogue import (
    EWMA_HOURS,
    FEWEST_SYMBOLS,
    HAR_HOURS,
    WARM_UP_HOURS,
    training_days,
)

HARMONICS = (1, 2, 3)
FEATURES = (
    *(f"log_rv_{hours}h" for hours in HAR_HOURS),
    *(f"{wave}_{n}" for n in HARMONICS for wave in ("sin", "cos")),
    "weekend",
)
LEVEL = HAR_HOURS.index(WARM_UP_HOURS)
IS_LEVEL = np.array([name.startswith("log_rv") for name in FEATURES], dtype=float)
FLOOR_QUANTILE = 0.001
CLIP = 6.0
"""Log residuals beyond this would let one hour decide the smearing factor."""
EWMA_DECAY = 0.97
FEWEST_EWMA_HOURS = 24
COVERAGE = 0.90
ENDS = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99)
"""Of the residuals, whose quantiles are kept: the distribution of what will happen."""
SHRINKAGE_DAYS = 14
"""Of training: with as many, a symbol's own smearing factor counts as much as the pool's."""
BLOCKS = 5
HOURS_A_WEEK, SATURDAY = 7 * 24, 5 * 24  # hours from Monday 00:00 UTC
SIGNIFICANT_DIGITS = 10
"""Of the stored parameters: they are used as they are stored, and a model stays under 1 kB."""

Floats = NDArray[np.float64]


class ModelStatus(StrEnum):
    """What a forecast is worth."""

    OK = "OK"
    FALLBACK = "FALLBACK"
    """Too little history for the model: an EWMA of the realised variance."""
    UNKNOWN_HISTORY = "UNKNOWN_HISTORY"
    """Too little history for any number."""
    DEGENERATE = "DEGENERATE"
    """The price did not move: there is no variance to forecast."""


NUMBERS = {ModelStatus.OK, ModelStatus.FALLBACK}


class VolatilityModel(BaseModel):
    """Everything a forecast needs, and what it was fitted on; a forecast is a dot product."""

    model_config = ConfigDict(frozen=True)

    as_of: datetime
    horizon: int
    """Hours ahead."""
    statuses: dict[str, ModelStatus]
    means: dict[str, float] = {}
    """Each symbol's mean of log_rv_168h in the training window; of symbols with status OK."""
    coefficients: dict[str, float] = {}
    intercept: float = 0.0
    smearing: float = 1.0
    """E[exp(residual)], Duan 1983: without it a forecast of logs is 6-46 % worse by QLIKE."""
    smearings: dict[str, float] = {}
    """Each symbol's own, held to the pool's: KRW-DOGE's were 1.6 times too high by the pool's."""
    residual_quantiles: tuple[float, ...] = (0.0, 0.0)
    """At LEVELS; of models made before there were eleven, at ENDS."""
    unseen_qlike: float | None = None
    """Out of sample: each fifth of the training window by a fit on the rest of it."""
    unseen_qlike_random_walk: float | None = None
    floor: float | None
    """A variance below it counts as it: one quiet hour must not have a log of minus infinity."""
    rows: int
    last_target_end: datetime | None
    data_hash: str

    @property
    def status(self) -> ModelStatus:
        """The best status of any symbol."""
        return next(
            (s for s in ModelStatus if s in self.statuses.values()), ModelStatus.UNKNOWN_HISTORY
        )

    @property
    def has_distribution(self) -> bool:
        """Whether it tells the odds of every outcome, not of the 90 % interval alone."""
        return len(self.residual_quantiles) == len(LEVELS)

    def errors(self, symbol: str) -> Floats:
        """Return the quantiles, at LEVELS (or ENDS), of log(outcome / forecast) of the symbol."""
        quantiles: Floats = np.array(self.residual_quantiles)
        return quantiles - float(np.log(self.smearing_of(symbol)))

    def smearing_of(self, symbol: str) -> float:
        """Return the factor by which the symbol's forecast of logs is corrected."""
        return self.smearings.get(symbol, self.smearing)


def fit(
    panel: pd.DataFrame, as_of: datetime, horizon: int, settings: VolatilitySettings
) -> VolatilityModel:
    """Fit the mean hourly variance of the next `horizon` hours on what had closed at `as_of`.

    The training rows are those of the last `training_days()` whose target had closed by then
    (t + horizon <= as_of). Too little history or a constant price is a status, not an error.
    """
    days = training_days(settings, len(panel.columns))
    first = as_of - timedelta(days=days, hours=WARM_UP_HOURS)
    hours = pd.date_range(first, as_of, freq="h", inclusive="right")
    # The grid ends at the as-of: what closed later is not there to be seen.
    window = panel.reindex(hours, columns=sorted(panel.columns))
    positive = window.to_numpy()[window.to_numpy() > 0]
    floor = _rounded(np.quantile(positive, FLOOR_QUANTILE)) if positive.size else None
    rows = {} if floor is None else _rows(window, hours, horizon, floor)
    statuses = _statuses(window, rows, settings)
    training = {s: r.closed() for s, r in rows.items() if statuses[s] is ModelStatus.OK}
    model = VolatilityModel(
        as_of=as_of,
        horizon=horizon,
        statuses=statuses,
        floor=floor,
        rows=sum(len(r.times) for r in training.values()),
        last_target_end=max(
            (r.times[-1].to_pydatetime() + timedelta(hours=horizon) for r in training.values()),
            default=None,
        ),
        data_hash=hashlib.sha256(window.to_numpy().tobytes()).hexdigest()[:16],
    )
    # Loaded before the limit is set, which holds for what is loaded by then.
    import_module("sklearn.linear_model")
    with threadpool_limits(1):  # threads add up in any order: the last bits would differ
        return _regressed(model, training, settings.ridge_alpha) if training else model


def _statuses(
    window: pd.DataFrame, rows: "dict[str, _Rows]", settings: VolatilitySettings
) -> dict[str, ModelStatus]:
    fewest = settings.min_training_days * 24
    enough = {
        symbol: len(r.times)
        for symbol, r in rows.items()
        if len(r.times) >= fewest and r.has_closed() and (window[symbol] > 0).any()
    }
    if sum(enough.values()) < FEWEST_SYMBOLS * fewest:
        enough = {}

    def status(symbol: str) -> ModelStatus:
        hours = window[symbol].dropna()
        if len(hours) < FEWEST_EWMA_HOURS:
            return ModelStatus.UNKNOWN_HISTORY
        if not (hours > 0).any():
            return ModelStatus.DEGENERATE
        return ModelStatus.OK if symbol in enough else ModelStatus.FALLBACK

    return {symbol: status(symbol) for symbol in map(str, window.columns)}


class _Rows(NamedTuple):
    """One symbol's rows, an hour each: features (in the order of FEATURES), target, random walk."""

    times: pd.DatetimeIndex
    x: Floats
    y: Floats
    walk: Floats

    def where(self, kept: NDArray[np.bool_]) -> "_Rows":
        return _Rows(self.times[kept], self.x[kept], self.y[kept], self.walk[kept])

    def has_closed(self) -> bool:
        return len(self.closed().times) > 0

    def closed(self) -> "_Rows":
        """Those whose target has been seen."""
        return self.where(~np.isnan(self.y) & ~np.isnan(self.walk))


def _rows(
    window: pd.DataFrame, hours: pd.DatetimeIndex, horizon: int, floor: float
) -> dict[str, _Rows]:
    calendar = _calendar(hours, horizon)
    rows_of = {}
    for symbol in map(str, window.columns):
        hourly = window[symbol]
        walk = _log(trailing_mean(hourly, horizon), floor)
        target = _log(outcome(hourly, horizon), floor)
        x = np.column_stack([np.log(np.maximum(_means_of_windows(hourly), floor)), calendar])
        place, first = np.arange(len(hours)), int(np.argmax(hourly.notna()))
        is_warm = place >= max(WARM_UP_HOURS, first + WARM_UP_HOURS - 1)
        rows_of[symbol] = _Rows(hours, x, target, walk).where(is_warm & ~np.isnan(x).any(axis=1))
    return rows_of


def _regressed(model: VolatilityModel, training: dict[str, _Rows], alpha: float) -> VolatilityModel:
    means = _means(training)
    ridge = _Ridge.of(training, means, alpha)
    factors = {
        s: np.exp((r.y - ridge.log_mean(r.x, means[s])).clip(-CLIP, CLIP))
        for s, r in training.items()
    }
    smearing = _rounded(np.concatenate(list(factors.values())).mean())
    unseen, walk = _unseen_residuals(training, model.horizon, alpha)
    return model.model_copy(
        update={
            "means": means,
            "coefficients": dict(zip(FEATURES, map(_rounded, ridge.slopes), strict=True)),
            "intercept": _rounded(ridge.intercept),
            "smearing": smearing,
            "smearings": {s: _held_to(smearing, factor) for s, factor in factors.items()},
            "residual_quantiles": tuple(_rounded(q, 4) for q in np.quantile(unseen, LEVELS)),
            "unseen_qlike": _rounded(_qlike_of_logs(unseen - np.log(smearing))),
            "unseen_qlike_random_walk": _rounded(_qlike_of_logs(walk)),
        }
    )


class _Ridge(NamedTuple):
    """A fit on the features as they are, not standardised."""

    intercept: float
    slopes: Floats

    @classmethod
    def of(cls, training: dict[str, _Rows], means: dict[str, float], alpha: float) -> "_Ridge":
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x = np.vstack([r.x - means[s] * IS_LEVEL for s, r in training.items()])
        y = np.concatenate([r.y - means[s] for s, r in training.items()])
        pipeline = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(x, y)
        scaler, ridge = pipeline.named_steps["standardscaler"], pipeline.named_steps["ridge"]
        slopes = ridge.coef_ / scaler.scale_
        return cls(float(ridge.intercept_ - slopes @ scaler.mean_), slopes)

    def log_mean(self, x: Floats, mean: float) -> Floats:
        """Return what it expects of the log variance of a symbol with this mean."""
        # Summed along rows: a matrix product may add in another order for another height.
        expected: Floats = ((x - mean * IS_LEVEL) * self.slopes).sum(axis=1)
        return expected + self.intercept + mean


def _held_to(pooled: float, factors: Floats) -> float:
    """Return a symbol's smearing factor: the more days it has, the more its own."""
    own = np.log(factors.mean())
    days = len(factors) / 24
    share = days / (days + SHRINKAGE_DAYS)
    return _rounded(np.exp(share * own + (1 - share) * np.log(pooled)), 4)


def _means(training: dict[str, _Rows]) -> dict[str, float]:
    return {symbol: _rounded(r.x[:, LEVEL].mean()) for symbol, r in training.items()}


def _unseen_residuals(
    training: dict[str, _Rows], horizon: int, alpha: float
) -> tuple[Floats, Floats]:
    """Return the residuals of each fifth of the window by a fit on the rest, and a random walk's.

    Targets of 24 h overlap: residuals of the fit itself made 90 % intervals that held 79-87 %.
    """
    times = pd.DatetimeIndex(sorted(set().union(*(r.times for r in training.values()))))
    gap = pd.Timedelta(hours=horizon)
    residuals, walks = [], []
    for block in np.array_split(times, BLOCKS):
        first, last = block[0], block[-1]
        rest = {
            s: r.where((r.times < first - gap) | (r.times > last + gap))
            for s, r in training.items()
        }
        rest = {symbol: r for symbol, r in rest.items() if len(r.times)}
        means = _means(rest)
        ridge = _Ridge.of(rest, means, alpha)
        for symbol, mean in means.items():
            held_out = training[symbol]
            held_out = held_out.where((held_out.times >= first) & (held_out.times <= last))
            residuals.append(held_out.y - ridge.log_mean(held_out.x, mean))
            walks.append(held_out.y - held_out.walk)
    return np.concatenate(residuals), np.concatenate(walks)


def _qlike_of_logs(residuals: Floats) -> float:
    return float((np.exp(residuals) - residuals - 1).mean())


def forecast(
    models: Sequence[VolatilityModel], hourly: pd.Series, as_ofs: Sequence[datetime]
) -> pd.DataFrame:
    """Return what the models expect of one symbol: a row for each `as_of`, each by its own model.

    `hourly` are the variances of the symbol that is its name; the models are of one horizon, as old
    as their `as_of` or older. Columns: status, har and ewma (mean hourly variances of the next
    `horizon` hours), floor. NaN where the status is no number, har in a FALLBACK too.
    """
    symbol = str(hourly.name)
    before = timedelta(hours=max(EWMA_HOURS, WARM_UP_HOURS))
    hours = pd.date_range(min(as_ofs) - before, max(as_ofs), freq="h", inclusive="right")
    window = hourly.reindex(hours)
    places = hours.get_indexer(pd.DatetimeIndex(list(as_ofs)))
    means, calendar = _means_of_windows(window)[places], _calendar(hours[places], models[0].horizon)
    floors = np.array([np.nan if model.floor is None else model.floor for model in models])
    har = np.full(len(as_ofs), np.nan)
    first = 0
    for model, group in groupby(models):
        rows = slice(first, first := first + len(list(group)))
        if model.statuses.get(symbol) is ModelStatus.OK:
            slopes = np.array([model.coefficients[name] for name in FEATURES])
            levels = np.log(np.maximum(means[rows], floors[rows, None]))
            mu = _Ridge(model.intercept, slopes).log_mean(
                np.column_stack([levels, calendar[rows]]), model.means[symbol]
            )
            har[rows] = np.exp(mu) * model.smearing_of(symbol)
    weighted = np.maximum(ewma(window).to_numpy()[places], floors)
    statuses = np.array(
        [m.statuses.get(symbol, ModelStatus.UNKNOWN_HISTORY) for m in models], dtype=object
    )
    no_number = (statuses == ModelStatus.OK) & np.isnan(har)
    no_number |= (statuses == ModelStatus.FALLBACK) & np.isnan(weighted)
    statuses[no_number] = ModelStatus.UNKNOWN_HISTORY
    weighted[~np.isin(statuses, list(NUMBERS))] = np.nan
    columns = {"status": statuses, "har": har, "ewma": weighted, "floor": floors}
    return pd.DataFrame(columns, index=pd.DatetimeIndex(list(as_ofs), name="as_of"))


def ewma(hourly: pd.Series) -> pd.Series:
    """Return the exponentially weighted mean (decay .97) of the last 30 days, hour by hour."""
    windows = _windows(hourly.to_numpy(), EWMA_HOURS)
    weights = EWMA_DECAY ** np.arange(EWMA_HOURS - 1, -1, -1.0)
    present = ~np.isnan(windows)
    total = np.where(present, weights, 0.0).sum(axis=1)
    sums = np.where(present, windows * weights, 0.0).sum(axis=1)
    return pd.Series(np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0),
                     index=hourly.index)  # fmt: skip


def trailing_mean(hourly: pd.Series, hours: int) -> pd.Series:
    """Return the mean of the `hours` up to each one, the random walk's forecast of as many ahead.

    NaN where half of them or more are missing.
    """
    windows = _windows(hourly.to_numpy(), hours)
    present = ~np.isnan(windows)
    count = present.sum(axis=1)
    sums = np.where(present, windows, 0.0).sum(axis=1)
    means = np.divide(sums, count, out=np.full_like(sums, np.nan), where=2 * count > hours)
    return pd.Series(means, index=hourly.index)


def outcome(hourly: pd.Series, horizon: int) -> pd.Series:
    """Return, for each hour, the mean of the next `horizon` hours: what a forecast is judged by.

    NaN where half of them or more are missing, in an outage or still to come.
    """
    return trailing_mean(hourly, horizon).shift(-horizon)


def thresholds(
    hourly: pd.Series, horizon: int, as_ofs: Sequence[datetime], settings: VolatilitySettings
) -> pd.Series:
    """Return, as of each moment, the level above which a variance is high; NaN: not known.

    It is the `high_percentile` of the symbol's own means over `horizon` hours, sampled hourly in
    the last `threshold_days`; unknown with less than `min_threshold_days` of them.
    """
    span, fewest = settings.threshold_days * 24, settings.min_threshold_days * 24
    first = min(as_ofs) - timedelta(hours=span + horizon)
    hours = pd.date_range(first, max(as_ofs), freq="h")
    means = trailing_mean(hourly.reindex(hours), horizon)
    samples = _windows(means.to_numpy(), span)[hours.get_indexer(pd.DatetimeIndex(list(as_ofs)))]
    levels = np.full(len(as_ofs), np.nan)
    is_known = (~np.isnan(samples)).sum(axis=1) >= fewest
    if is_known.any():
        levels[is_known] = np.nanpercentile(samples[is_known], settings.high_percentile, axis=1)
    return pd.Series(levels, index=pd.DatetimeIndex(list(as_ofs)))


def _means_of_windows(hourly: pd.Series) -> Floats:
    means = np.column_stack([trailing_mean(hourly, hours) for hours in HAR_HOURS])
    # Right after an outage there is no last hour: the next longer window speaks for it.
    for n in reversed(range(len(HAR_HOURS) - 1)):
        means[:, n] = np.where(np.isnan(means[:, n]), means[:, n + 1], means[:, n])
    return means


def _calendar(hours: pd.DatetimeIndex, horizon: int) -> Floats:
    angle = 2 * np.pi * hours.hour.to_numpy() / 24
    waves = [wave(n * angle) for n in HARMONICS for wave in (np.sin, np.cos)]
    weekday = hours.day_of_week.to_numpy() * 24 + hours.hour.to_numpy()
    ahead = (weekday[:, None] + np.arange(horizon)) % HOURS_A_WEEK
    return np.column_stack([*waves, (ahead >= SATURDAY).mean(axis=1)])


def _log(means: pd.Series, floor: float) -> Floats:
    logs: Floats = np.log(np.maximum(means.to_numpy(), floor))
    return logs


def _windows(values: Floats, width: int) -> Floats:
    # Each window is summed by itself: a running sum's last bits depend on where it was started, and
    # a day would then differ between its own run and a backfill's.
    return sliding_window_view(np.concatenate([np.full(width - 1, np.nan), values]), width)


def _rounded(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    return float(f"{value:.{digits}g}")
