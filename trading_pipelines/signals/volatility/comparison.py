"""Which forecasts can be told apart: ours, its members, GARCH, EWMA and the random walk.

Each symbol, and all of them together, over the 90 days before a moment; of what closed after it,
nothing is looked at. Pure functions of a symbol's forecasts and hourly variances, then the rows as
they are read and stored. What one day's forecasts were worth belongs in `score`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import psycopg

from trading_pipelines.candles.windows import Interval
from trading_pipelines.signals import tables
from trading_pipelines.signals.volatility.model import outcome, trailing_mean
from trading_pipelines.signals.volatility.score import ALL, hac_t_value, qlike

SPAN = timedelta(days=90)
FEWEST_HOURS = 30 * 24
"""With a statement on the errors of a mean; over fewer, 24 h forecasts are only a few outcomes."""
LEVEL, REPETITIONS, SEED = 0.10, 500, 20
OURS, GARCH = "ours", "garch"
MODELS = {
    OURS: "ours",
    "har": "model of all symbols",
    GARCH: "GARCH(1,1)",
    "ewma": "EWMA",
    "random_walk": "random walk",
}
EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


class Verdict(StrEnum):
    """What is known of two models' losses; the first four with enough forecasts of both."""

    BETTER = "ours is better"
    WORSE = "ours is worse"
    NOT_TOLD = "cannot be told apart"
    SAME = "the same forecasts"
    FAILED = "failed"
    """No number came out of it, or none that is finite."""
    TOO_FEW = "too few forecasts"
    NOT_THERE = "not there"
    """No forecast of the model is stored, as of members before they were kept."""


class Told(StrEnum):
    """Whether a model is in the confidence set, which has the best one in 90 % of all cases."""

    IN = "may be the best"
    OUT = "is not the best"
    FAILED = "failed"
    TOO_FEW = "too few forecasts"
    NOT_THERE = "not there"


SAID = {
    Verdict.BETTER: "it is better than",
    Verdict.WORSE: "it is worse than",
    Verdict.NOT_TOLD: "it cannot be told apart from",
    Verdict.SAME: "it is the same as",
    Verdict.TOO_FEW: "there are too few forecasts yet beside",
    Verdict.FAILED: "no test came out beside",
    Verdict.NOT_THERE: "there are no forecasts of",
}


@dataclass(frozen=True)
class ModelScore:
    """A model of a symbol (or `all`) and horizon beside ours; the fields as in the table.

    Losses are means of QLIKE over the forecasts that both made. What is not known is None, and the
    verdict, or `told`, says why.
    """

    symbol: str
    horizon: int
    model: str
    as_of: datetime
    forecasts: int
    qlike: float | None
    qlike_ours: float | None
    ratio_to_garch: float | None
    """Its own loss over GARCH's, of the forecasts that those two made."""
    t_value: float | None
    """Diebold-Mariano, ours less it: below zero ours is better."""
    verdict: Verdict
    set_forecasts: int
    set_p_value: float | None
    told: Told

    @property
    def ours_over_it(self) -> float | None:
        """Our loss over this model's: below 1 ours is better."""
        return _ratio(self.qlike_ours, self.qlike)


@dataclass(frozen=True)
class Bin:
    """Forecasts that gave a probability in [low, high), the last of them up to 1 itself."""

    horizon: int
    low: float
    high: float
    forecasts: int
    mean_probability: float
    share_high: float
    """Of them, those after which the realised variance was above the threshold."""


@dataclass(frozen=True)
class Comparison:
    """What the 90 days before `as_of` (UTC) show."""

    as_of: datetime
    scores: Sequence[ModelScore]
    reliability: Sequence[Bin]


def judged(
    forecasts: pd.DataFrame, hourly: pd.Series, horizon: int, as_of: datetime
) -> pd.DataFrame:
    """Return the losses of one symbol's forecasts, a row an hour (index `as_of`, UTC).

    Columns: each of MODELS with its QLIKE, `probability_high`, and `is_high` (1.0 or 0.0); NaN
    where there is no such forecast, or no outcome by `as_of`. `forecasts` as `tables.forecasts` has
    them, of one horizon (hours); `hourly` the realised variances by the close of the hour.
    """
    rows = forecasts[forecasts["valid_until"] <= as_of].set_index("as_of")
    if rows.empty:
        return pd.DataFrame(columns=[*MODELS, "probability_high", "is_high"], dtype=float)
    # The grid ends at the moment: what closed later is not there to be seen.
    first = rows.index.min() - timedelta(hours=horizon)
    seen = hourly.reindex(pd.date_range(first, as_of, freq="h"))
    floor = rows["floor"].astype(float)
    realized = outcome(seen, horizon).reindex(rows.index).clip(lower=floor)
    variances = {
        OURS: rows["variance"],
        "har": rows["har"],
        GARCH: rows["garch"],
        "ewma": rows["ewma"].astype(float).clip(lower=floor),
        "random_walk": trailing_mean(seen, horizon).reindex(rows.index).clip(lower=floor),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = {name: qlike(realized, v.astype(float)) for name, v in variances.items()}
    threshold = rows["threshold"].astype(float)
    is_high = (realized > threshold).astype(float).where(realized.notna() & threshold.notna())
    rest = {"probability_high": rows["probability_high"].astype(float), "is_high": is_high}
    return pd.DataFrame(losses | rest).replace([np.inf, -np.inf], np.nan)


def model_scores(
    losses: pd.DataFrame, symbol: str, horizon: int, as_of: datetime
) -> list[ModelScore]:
    """Return a score for each of MODELS; of several rows of an hour, tests take the mean.

    `losses` as `judged` returns them, of one symbol or of several, one below the other.
    """
    p_values, set_forecasts = confidence_set(losses, horizon)
    scores = []
    for name in MODELS:
        both = losses.loc[:, [OURS, name]].dropna()
        ours, its = both.iloc[:, 0], both.iloc[:, 1]
        t_value, verdict = _diebold_mariano(losses, name, horizon)
        told = p_values[name]
        with_garch = losses.loc[:, [name, GARCH]].dropna()
        scores.append(
            ModelScore(
                symbol=symbol,
                horizon=horizon,
                model=name,
                as_of=as_of,
                forecasts=len(both),
                qlike=_mean(its),
                qlike_ours=_mean(ours),
                ratio_to_garch=_ratio(_mean(with_garch.iloc[:, 0]), _mean(with_garch.iloc[:, 1])),
                t_value=t_value,
                verdict=verdict,
                set_forecasts=set_forecasts,
                set_p_value=None if isinstance(told, Told) else told,
                told=told if isinstance(told, Told) else Told.IN if told > LEVEL else Told.OUT,
            )
        )
    return scores


def critical_t(hours: int, lags: int) -> float:
    """Return the t-value beyond which a mean of `hours` differs from zero at 5 %.

    Kiefer and Vogelsang (2005), Bartlett's kernel: at 24 h and 30 days, ±1.96 found a difference
    between equals in 11 of 100 generated cases, this does in 7.
    """
    share = (lags + 1) / hours
    return 1.96 + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3


def _diebold_mariano(losses: pd.DataFrame, name: str, horizon: int) -> tuple[float | None, Verdict]:
    both = _by_hour(losses[[OURS, name]] if name != OURS else losses[[OURS]])
    if both.empty:
        return None, Verdict.NOT_THERE
    if len(both) < FEWEST_HOURS:
        return None, Verdict.TOO_FEW
    if name == OURS or _equal(both[OURS], both[name]):
        return None, Verdict.SAME
    lags = _lags(horizon)
    t_value = hac_t_value(both[OURS] - both[name], lags)
    if not np.isfinite(t_value):
        return None, Verdict.FAILED
    if abs(t_value) <= critical_t(len(both), lags):
        return t_value, Verdict.NOT_TOLD
    return t_value, Verdict.BETTER if t_value < 0 else Verdict.WORSE


def confidence_set(losses: pd.DataFrame, horizon: int) -> tuple[dict[str, float | Told], int]:
    """Return each model's p-value in the model confidence set, and of how many forecasts it is.

    Hansen, Lunde and Nason (2011): models with a p-value above LEVEL can't be told from the best.
    Compared are those with enough forecasts, on the ones that all of them made. The resampling is
    seeded, and keeps together as many hours as a forecast's outcome shares with the next ones'.
    """
    counts = {name: len(_by_hour(losses[[name]])) for name in MODELS}
    told: dict[str, float | Told] = {
        name: Told.TOO_FEW if count else Told.NOT_THERE for name, count in counts.items()
    }
    there = [name for name, count in counts.items() if count >= FEWEST_HOURS]
    complete = losses[there].dropna() if there else losses.iloc[:0]
    by_hour = _by_hour(complete)
    if len(there) < 2 or len(by_hour) < FEWEST_HOURS:
        return {**told, **dict.fromkeys(there, Told.TOO_FEW)}, len(complete)
    # Of two equal ones the difference has no variance to divide by.
    stands_for: dict[str, str] = {}
    for name in there:
        kept = dict.fromkeys(stands_for.values())
        same = (other for other in kept if _equal(by_hour[other], by_hour[name]))
        stands_for[name] = next(same, name)
    kept = dict.fromkeys(stands_for.values())
    p_values = (
        {next(iter(kept)): 1.0} if len(kept) == 1 else _p_values(by_hour[list(kept)], horizon)
    )
    told |= {name: p_values.get(other, Told.FAILED) for name, other in stands_for.items()}
    return told, len(complete)


def _p_values(losses: pd.DataFrame, horizon: int) -> dict[str, float]:
    """Return the finite ones."""
    from arch.bootstrap import MCS

    compared = MCS(losses, LEVEL, reps=REPETITIONS, block_size=_lags(horizon), seed=SEED)
    try:
        with np.errstate(divide="raise", invalid="raise"):
            compared.compute()
    except (ArithmeticError, IndexError, ValueError):
        return {}
    p_values = compared.pvalues["Pvalue"].astype(float)
    return {str(name): float(p) for name, p in p_values.items() if np.isfinite(p)}


def reliability(judged_: pd.DataFrame, horizon: int) -> list[Bin]:
    """Return what followed each range of probabilities, ranges without a forecast left out."""
    with_odds = judged_[["probability_high", "is_high"]].dropna()
    place = np.digitize(with_odds["probability_high"], EDGES[1:-1])
    return [
        Bin(
            horizon=horizon,
            low=EDGES[n],
            high=EDGES[n + 1],
            forecasts=len(of_bin),
            mean_probability=float(of_bin["probability_high"].mean()),
            share_high=float(of_bin["is_high"].mean()),
        )
        for n in range(len(EDGES) - 1)
        if len(of_bin := with_odds[place == n])
    ]


def compare(of_symbols: Mapping[tuple[str, int], pd.DataFrame], as_of: datetime) -> Comparison:
    """Compare what `judged` returned by symbol and horizon: all together first, then each."""
    horizons = sorted({horizon for _, horizon in of_symbols})
    scores, bins = [], []
    for horizon in horizons:
        by_symbol = {symbol: rows for (symbol, h), rows in of_symbols.items() if h == horizon}
        together = pd.concat(list(by_symbol.values()))
        if len(by_symbol) > 1:
            scores += model_scores(together, ALL, horizon, as_of)
        for symbol, rows in by_symbol.items():
            scores += model_scores(rows, symbol, horizon, as_of)
        bins += reliability(together, horizon)
    return Comparison(as_of, scores, bins)


def read(connection: psycopg.Connection, symbols: Sequence[str], as_of: datetime) -> Comparison:
    """Compare the forecasts of the symbols that are stored and whose horizon ended in the span."""
    span = Interval(as_of - SPAN, as_of)
    of_symbols = {}
    for symbol in symbols:
        forecasts = tables.forecasts(connection, symbol, span)
        if forecasts.empty:
            continue
        # The random walk looks back from the first of them as far as they look ahead.
        before = 2 * timedelta(hours=int(forecasts["horizon"].max()))
        past = Interval(span.start - before, as_of)
        hourly = tables.variances(connection, [symbol], past)[symbol]
        for horizon, rows in forecasts.groupby("horizon"):
            of_symbols[symbol, int(str(horizon))] = judged(rows, hourly, int(str(horizon)), as_of)
    return compare(of_symbols, as_of)


def store(connection: psycopg.Connection, comparison: Comparison) -> None:
    """Make the comparison what the table holds, in one transaction."""
    columns = ", ".join(ModelScore.__dataclass_fields__)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE trading_pipelines.volatility_comparison IN EXCLUSIVE MODE")
        cursor.execute("DELETE FROM trading_pipelines.volatility_comparison")
        copied = f"COPY trading_pipelines.volatility_comparison ({columns}) FROM STDIN"
        with cursor.copy(copied) as copy:
            for score in comparison.scores:
                copy.write_row(tuple(asdict(score).values()))


def headlines(comparison: Comparison) -> list[str]:
    """Say for each horizon what all symbols together show (or the one that there is)."""
    scores_of: dict[int, dict[str, ModelScore]] = {}
    for score in comparison.scores:  # the first of a horizon are of all symbols
        scores_of.setdefault(score.horizon, {}).setdefault(score.model, score)
    return [_headline(horizon, scores) for horizon, scores in scores_of.items()]


def _headline(horizon: int, scores: Mapping[str, ModelScore]) -> str:
    if (ratio := scores[OURS].ratio_to_garch) is None:
        return f"{horizon} h ahead: nothing to compare yet"
    parts = [f"{horizon} h ahead: our loss is {ratio:.2f} of GARCH's"]
    for verdict, words in SAID.items():
        names = [
            MODELS[score.model] + (f" (t {score.t_value:.1f})" if score.t_value is not None else "")
            for score in scores.values()
            if score.verdict is verdict and score.model != OURS
        ]
        if names:
            parts.append(f"{words} {', '.join(names)}")
    best = [MODELS[score.model] for score in scores.values() if score.told is Told.IN]
    if best:
        parts.append(f"the best may be {' or '.join(best)}")
    return ", ".join(parts)


def shown(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row a symbol and horizon for a table that a person reads."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for score in comparison.scores:
        key = score.symbol, score.horizon
        row = rows.setdefault(key, {"symbol": score.symbol, "hours ahead": score.horizon})
        if score.model == OURS:
            row["forecasts"] = score.forecasts
            row["may be the best"] = []
        else:
            row[f"ours / {MODELS[score.model]}"] = score.ours_over_it
            row[f"t, {MODELS[score.model]}"] = score.verdict if score.t_value is None else (
                f"{score.t_value:.1f}: {score.verdict}"
            )  # fmt: skip
        if score.told is Told.IN:
            row["may be the best"].append(MODELS[score.model])
    return [{**row, "may be the best": ", ".join(row["may be the best"]) or "not known"}
            for row in rows.values()]  # fmt: skip


def _lags(horizon: int) -> int:
    """Outcomes of `horizon` hours overlap, and a day is much like the one before."""
    return horizon + 24


def _by_hour(losses: pd.DataFrame) -> pd.DataFrame:
    """Return the means over symbols as of each hour, of the rows that have every column."""
    return losses.dropna().groupby(level=0).mean()


_equal = partial(np.allclose, rtol=1e-9, atol=0)


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(loss: float | None, other: float | None) -> float | None:
    return None if loss is None or not other else loss / other
