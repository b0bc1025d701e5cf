"""How good the volatility forecasts are, walked forward over recordings, against what they must be.

Measured, with the project's own functions and default settings: models refitted at each 00:00 UTC,
forecasts as of every hour, 1 and 24 hours ahead, on what had closed by then. The loss is QLIKE
(Patton 2011), lower is better; all rows of a table answer the same questions: what is published,
its members, their means, and rivals. Intervals and flags are found from the 60 days before, of the
forecasts of this run. Scored are forecasts
whose status is OK; realised variances, EWMA and random walk are floored by the model's floor. The
Diebold-Mariano t is of the mean loss difference over the symbols as of each hour, with Newey-West
errors; below -2 ours is better. Files of candles longer than five minutes have no realised
variance: Parkinson's range stands for it, as feature and as what happened.

Not measured: the database and Dagster (benchmarks/signals.py has the first), and live data. The
days of a recording are shared by two processes, so seconds are those of a core that has company.
"""

import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from trading_pipelines.candles.windows import HOUR
from trading_pipelines.settings.strategy import VolatilitySettings
from trading_pipelines.signals.catalogue import (
    ADAPTED_DAYS,
    FEWEST_SYMBOLS,
    GARCH_TRAINING_DAYS,
    WARM_UP_HOURS,
)
from trading_pipelines.signals.volatility import combined, garch, realized, score
from trading_pipelines.signals.volatility import model as volatility_model
from trading_pipelines.signals.volatility.model import ModelStatus

DATA = Path(__file__).parents[2] / "shared/data"
RECORDINGS = [
    DATA / "upbit_krw5_1m_20250901_20250921.parquet",
    DATA / "binance_btcusdt_1m_20250801_20251031.parquet",
    DATA / "upbit_krw5_1h_20220101_20250630.parquet",
]
SINCE = {RECORDINGS[2]: datetime(2024, 10, 1)}  # noqa: DTZ001 - as typer gives it
SETTINGS = VolatilitySettings()
PROCESSES, DAYS_A_TASK = 2, 20
BEFORE = timedelta(days=SETTINGS.threshold_days + 2)  # as far as thresholds and EWMA look back
AFTER = timedelta(days=2)  # the outcomes of a day's last forecasts
GARCH = {"garch": GARCH_TRAINING_DAYS, "garch_30": 30}
RIVALS = {
    "variance": "ours",
    "har": "regression",
    "mean": "mean of the three",
    "geometric": "geometric mean of the three",
    "garch": "GARCH(1,1)",
    "garch_30": "GARCH(1,1), 30 days",
    "ewma": "EWMA",
    "walk": "random walk",
}
KEY = ["symbol", "as_of", "horizon"]
FEWEST_FORECASTS = 1000
"""Of a symbol, for its coverage to be held to a figure."""
# By kind of recording: horizon, figure, at least, at most.
ALWAYS = [
    (horizon, name, least, most)
    for horizon in SETTINGS.horizons
    for name, least, most in (
        ("ratio to GARCH(1,1)", 0.0, 0.78),
        ("worst symbol's ratio to GARCH(1,1)", 0.0, 1.0),
        ("lowest coverage of a symbol", 0.88, 0.92),
        ("highest coverage of a symbol", 0.88, 0.92),
    )
] + [
    (24, "flag recall", 0.4, math.inf),
    (24, "flag precision / base rate", 2.0, math.inf),
]
FIGURES = {
    "minutes of several symbols": [(1, "ratio to random walk", 0.0, 0.70)],
    "minutes of one or two symbols": [],
    "hours": [(24, "flag fires", 0.05, 0.15)],
}


class Recording(NamedTuple):
    """A file's hours, indexed by their close, a column a symbol."""

    name: str
    kind: str
    variances: pd.DataFrame
    closes: pd.DataFrame
    by_range: pd.Series
    """Each symbol's share of hours whose variance is measured by their range."""

    def days(self, since: datetime | None) -> list[datetime]:
        """Return the midnights (UTC) as of which models are fitted."""
        first = self.variances.index[0].ceil("D")
        first = max(first, since.replace(tzinfo=UTC)) if since else first
        days = pd.date_range(first, self.variances.index[-1], freq="D", inclusive="left")
        return [day.to_pydatetime() for day in days]


class Evaluated(NamedTuple):
    """Some days of a recording: a row a forecast, and the seconds spent on fits."""

    rows: pd.DataFrame
    ours_seconds: float
    garch_seconds: float
    garch_fits: int
    models: dict[tuple[datetime, int], volatility_model.VolatilityModel]


def load(path: Path) -> Recording:
    """Read candles of any length that divides five minutes or an hour."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    if "symbol" not in frame:
        frame["symbol"] = path.stem
    frame["timestamp_utc"] = pd.to_datetime(frame["timestamp_utc"], utc=True)
    frame = frame.sort_values("timestamp_utc").drop_duplicates(["symbol", "timestamp_utc"])
    candle = frame.groupby("symbol")["timestamp_utc"].diff().mode()[0]
    has_bars = realized.BAR % candle == pd.Timedelta(0)
    until = (frame["timestamp_utc"].max() + candle).floor("h")
    frame = frame[frame["timestamp_utc"] < until].set_index("timestamp_utc")
    variances, closes, by_range = {}, {}, {}
    for symbol, candles in frame.groupby("symbol"):
        hours = _bars(candles, HOUR)
        hours.index += HOUR
        closes[symbol] = hours["close"]
        if has_bars:
            measured = realized.realized_variance(_bars(candles, realized.BAR), until)
            variances[symbol] = measured["realized_variance"]
            by_range[symbol] = (measured["estimator"] == realized.Estimator.PARKINSON).mean()
        else:
            variances[symbol] = realized.parkinson(hours["high"], hours["low"])
            by_range[symbol] = 1.0
    several = len(variances) >= FEWEST_SYMBOLS
    minutes = f"minutes of {'several' if several else 'one or two'} symbols"
    panel = pd.DataFrame(variances).asfreq("h")
    kind = minutes if has_bars else "hours"
    return Recording(path.name, kind, panel, pd.DataFrame(closes), pd.Series(by_range))


def _bars(candles: pd.DataFrame, width: timedelta) -> pd.DataFrame:
    return candles.groupby(pd.DatetimeIndex(candles.index).floor(width)).agg(
        open=("open", "first"),
        high=("high", "max"),
        low=("low", "min"),
        close=("close", "last"),
        minutes=("close", "size"),
    )


def evaluate(recording: Recording, days: Sequence[datetime]) -> Evaluated:
    """Forecast as of every hour of the days; what happened beside it."""
    variances = recording.variances.loc[: days[-1] + AFTER]
    closes = recording.closes.loc[: variances.index[-1]]
    returns = {
        symbol: garch.hourly_returns(closes[symbol].dropna(), variances.index[-1].to_pydatetime())
        for symbol in closes
    }
    ours, theirs, ours_seconds, garch_seconds, fits, by_day = [], [], 0.0, 0.0, 0, {}
    for day in days:
        as_ofs = [
            as_of
            for as_of in (day + timedelta(hours=n) for n in range(24))
            if as_of <= variances.index[-1]
        ]
        started = time.perf_counter()
        models = [volatility_model.fit(variances, day, h, SETTINGS) for h in SETTINGS.horizons]
        ours_seconds += time.perf_counter() - started
        for model in models:
            by_day[day, model.horizon] = model
            for symbol in map(str, variances):
                rows = volatility_model.forecast([model] * len(as_ofs), variances[symbol], as_ofs)
                ours.append(rows.reset_index().assign(symbol=symbol, horizon=model.horizon))
        started = time.perf_counter()
        for symbol in [s for s, status in models[0].statuses.items() if status is ModelStatus.OK]:
            past = returns[symbol].loc[: as_ofs[-1]]
            fitted = {
                name: garch.fit(past[past.index > day - timedelta(days=length)], day)
                for name, length in GARCH.items()
            }
            fits += len(fitted)
            for horizon in SETTINGS.horizons:
                ahead = {n: garch.forecast(m, past, as_ofs, horizon) for n, m in fitted.items()}
                theirs.append(pd.DataFrame(ahead).assign(symbol=symbol, horizon=horizon))
        garch_seconds += time.perf_counter() - started
    near, forecasts = variances.loc[days[0] - BEFORE :], pd.concat(ours)
    rows = pd.concat(
        [
            _with_truth(
                forecasts[(forecasts["symbol"] == symbol) & (forecasts["horizon"] == horizon)],
                near[symbol],
                horizon,
            )
            for symbol in near
            for horizon in SETTINGS.horizons
        ]
    )
    if theirs:
        rows = rows.merge(pd.concat(theirs).rename_axis("as_of").reset_index(), "left", KEY)
    return Evaluated(rows, ours_seconds, garch_seconds, fits, by_day)


def published(parts: Sequence[Evaluated]) -> tuple[pd.DataFrame, float]:
    """Return all rows with what is published of them, and the seconds it took."""
    models = {key: model for part in parts for key, model in part.models.items()}
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    if "garch" not in rows:
        rows[list(GARCH)] = np.nan
    started, adapted = time.perf_counter(), []
    for horizon in SETTINGS.horizons:
        for symbol in rows["symbol"].unique():
            is_asked = (rows["symbol"] == symbol) & (rows["horizon"] == horizon)
            hourly = rows[is_asked].set_index("as_of").asfreq("h")
            combination = combined.combine(hourly, horizon)
            for day in pd.date_range(hourly.index[0], hourly.index[-1], freq="D"):
                near = combination.loc[
                    day - timedelta(days=ADAPTED_DAYS) : day + timedelta(hours=23)
                ]
                days = pd.DatetimeIndex(near.index).floor("D").to_pydatetime()
                adapted.append(
                    combined.adapt(
                        near,
                        [models.get((of_day, horizon)) for of_day in days],
                        near["realized"],
                        near["threshold"],
                        symbol,
                        horizon,
                        shown=len(near.loc[day:]),
                    )
                )
    seconds = time.perf_counter() - started
    rows = pd.concat(adapted).reset_index().dropna(subset="symbol")
    three = rows[list(combined.MEMBERS)]
    means = {
        "mean": three.mean(axis=1),
        "geometric": three.prod(axis=1, skipna=False) ** (1 / 3),
    }
    return rows.assign(**means), seconds


def _with_truth(rows: pd.DataFrame, hourly: pd.Series, horizon: int) -> pd.DataFrame:
    as_ofs, floor = list(rows["as_of"]), rows["floor"].to_numpy()
    truth = {
        "realized": volatility_model.outcome(hourly, horizon),
        "walk": volatility_model.trailing_mean(hourly, horizon),
    }
    floored = {n: np.maximum(v.reindex(as_ofs).to_numpy(), floor) for n, v in truth.items()}
    thresholds = volatility_model.thresholds(hourly, horizon, as_ofs, SETTINGS)
    return rows.assign(**floored, threshold=thresholds.to_numpy())


def figures(
    rows: pd.DataFrame, horizon: int
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Return the tables of losses and of the symbols, and every other figure."""
    losses = pd.DataFrame({n: score.qlike(rows["realized"], rows[n]) for n in RIVALS})
    means, by_symbol = losses.mean(), losses.groupby(rows["symbol"]).mean()
    to_garch = by_symbol.div(by_symbol["garch"], axis=0)
    worse = losses.rsub(losses["variance"], axis=0).groupby(rows["as_of"]).mean()
    table = pd.DataFrame(
        {
            "QLIKE": means,
            "to GARCH": means / means["garch"],
            "worst": to_garch.max(),
            "ratio": means["variance"] / means,
            "t": [score.hac_t_value(worse[name], horizon + 24) for name in RIVALS],
        }
    )
    inside = rows["realized"].between(rows["low"], rows["high"])
    flagged = rows.dropna(subset=["threshold", "is_high_volatility"])
    fires, high = (
        flagged["is_high_volatility"].astype(bool),
        flagged["realized"] > flagged["threshold"],
    )
    each = pd.DataFrame(
        {
            "to GARCH": to_garch["variance"],
            **{f"{name} to GARCH": to_garch[name] for name in combined.MEMBERS if name != "garch"},
            "forecasts": inside.groupby(rows["symbol"]).size(),
            "coverage": inside.groupby(rows["symbol"]).mean(),
            "fires": fires.groupby(flagged["symbol"]).mean(),
            "precision": high[fires].groupby(flagged["symbol"]).mean(),
            "recall": fires[high].groupby(flagged["symbol"]).mean(),
            "base": high.groupby(flagged["symbol"]).mean(),
        }
    )
    long_enough = each.loc[each["forecasts"] >= FEWEST_FORECASTS, "coverage"]
    other = {f"ratio to {label}": table["ratio"][name] for name, label in RIVALS.items()}
    other |= {
        "worst symbol's ratio to GARCH(1,1)": each["to GARCH"].max(),
        "lowest coverage of a symbol": long_enough.min(),
        "highest coverage of a symbol": long_enough.max(),
        "flag recall": fires[high].mean(),
        "coverage": inside.mean(),
        "bias": rows["realized"].mean() / rows["variance"].mean(),
        "flag fires": fires.mean(),
        "flag precision": high[fires].mean(),
        "base rate": high.mean(),
        "flag precision / base rate": high[fires].mean() / high.mean(),
    }
    return table, each, other


def report(out: Console, recording: Recording, days: int, parts: Sequence[Evaluated]) -> None:
    """Print a recording's tables, and which figures it reached."""
    rows, adapting = published(parts)
    symbols = recording.variances.columns
    ranged = recording.by_range[recording.by_range > 0]
    shares = ", ".join(f"{symbol} {share:.0%}" for symbol, share in ranged.items())
    measured = "five-minute returns" + (f", by range in part: {shares}" if shares else "")
    if recording.kind == "hours":
        measured = "no minutes: Parkinson's range of each hour instead of realised variance"
    out.print(f"\n[bold]{recording.name}[/]: {len(symbols)} symbol(s), {days} days; {measured}")
    counts = rows["status"].value_counts()
    statuses = ", ".join(f"{status} {count:,}" for status, count in counts.items())
    out.print(f"forecasts by status, of {len(rows):,}: {statuses}; scored are those that are OK")
    ok = rows[rows["status"] == ModelStatus.OK]
    if ok.empty or ok["realized"].isna().all():
        training = SETTINGS.min_training_days * math.ceil(FEWEST_SYMBOLS / len(symbols))
        out.print(
            f"Nothing to evaluate: a model needs {training} days of training after "
            f"{WARM_UP_HOURS // 24} of warm-up, and then days to be judged by. No figure checked."
        )
        return
    missing = {n: ok[n].isna().sum() for n in ("realized", "walk", "garch", "garch_30")}
    counted = ", ".join(f"{name} {count:,}" for name, count in missing.items() if count)
    out.print(f"not scored for want of: {counted or 'nothing'}")
    ok = ok.dropna(subset=["realized", *RIVALS])
    by_horizon = {}
    for horizon in SETTINGS.horizons:
        scored = ok[ok["horizon"] == horizon]
        table, by_symbol, other = figures(scored, horizon)
        by_horizon[horizon] = other
        out.print(_table(table, f"{horizon} h ahead, {len(scored):,} forecasts"))
        out.print(by_symbol.round(3).to_string())
        out.print(
            "90 % interval holds {coverage:.1%}; mean realised / mean forecast {bias:.3f}; flag "
            "fires {flag fires:.1%}, precision {flag precision:.3f}, recall {flag recall:.3f}, "
            "base rate {base rate:.3f}, "
            "precision/base {flag precision / base rate:.2f}".format(**other)
        )
    fits = max(1, sum(part.garch_fits for part in parts))
    out.print(
        f"fitting ours: {sum(part.ours_seconds for part in parts) / days:.3f} s a day for both "
        f"horizons; GARCH: {sum(part.garch_seconds for part in parts) / fits:.3f} s a symbol, day "
        f"and window; intervals and flags: {adapting / days:.3f} s a day"
    )
    for horizon, name, least, most in ALWAYS + FIGURES[recording.kind]:
        value = by_horizon[horizon][name]
        verdict = "reached" if least <= value <= most else "NOT reached"
        target = f"<= {most:g}" if not least else f"{least:g} to {most:g}"
        target = f">= {least:g}" if most == math.inf else target
        out.print(f"{verdict}: {horizon} h {name} {value:.3f}, wanted {target}")


def _table(losses: pd.DataFrame, title: str) -> Table:
    table = Table(
        "", "QLIKE", "to GARCH(1,1)", "worst symbol", "ours / that", "Diebold-Mariano t",
        title=title,
    )  # fmt: skip
    for name, label in RIVALS.items():
        loss, to_garch, worst, ratio, t = losses.loc[name]
        rest = ("", "") if name == "variance" else (f"{ratio:.3f}", f"{t:.2f}")
        table.add_row(label, f"{loss:.4f}", f"{to_garch:.3f}", f"{worst:.3f}", *rest)
    return table


def main(
    recording: Annotated[list[Path] | None, typer.Option()] = None,
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"])] = None,
) -> None:
    """Evaluate each RECORDING (parquet or CSV; those of ../shared/data) from SINCE on (UTC)."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes that are started below
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    load_before, started = os.getloadavg()[0], time.perf_counter()
    if missing := [str(path) for path in recording or RECORDINGS if not path.exists()]:
        sys.exit(f"no such recording: {', '.join(missing)}")
    with out.status("measuring"):
        recordings = {path: load(path) for path in recording or RECORDINGS}
        days = {path: loaded.days(since or SINCE.get(path)) for path, loaded in recordings.items()}
        if empty := [str(path) for path, of in days.items() if not of]:
            sys.exit(f"no day to evaluate: {', '.join(empty)}")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
            started_tasks = {
                path: [
                    pool.submit(evaluate, loaded, days[path][n : n + DAYS_A_TASK])
                    for n in range(0, len(days[path]), DAYS_A_TASK)
                ]
                for path, loaded in recordings.items()
            }
            parts = {path: [task.result() for task in of] for path, of in started_tasks.items()}
    for path, loaded in recordings.items():
        report(out, loaded, len(days[path]), parts[path])
    seconds = time.perf_counter() - started
    out.print(f"\n{seconds:.0f} s with {PROCESSES} processes; load before {load_before:.1f}")


if __name__ == "__main__":
    typer.run(main)
