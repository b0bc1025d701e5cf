"""Partitions of the five volatility assets: read their inputs, call the arithmetic, shape the rows.

The arithmetic belongs in `realized`, `model`, `garch` and `score`.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cache
from typing import Any

import pandas as pd
from psycopg.types.json import Jsonb

from trading_pipelines.candles.windows import DAY, HOUR, Interval, day_interval
from trading_pipelines.signals import tables
from trading_pipelines.signals.catalogue import ADAPTED_DAYS
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.engine import (
    ComputeRun,
    PartitionRows,
    SignalRow,
    closed_hours,
    closes_of,
    input_interval,
    number_or_none,
)
from trading_pipelines.signals.volatility import combined, garch, realized, score
from trading_pipelines.signals.volatility import model as volatility_model
from trading_pipelines.signals.volatility.model import VolatilityModel

NOT_THERE = pd.Series(dtype=float, index=pd.DatetimeIndex([], tz="UTC"))


def compute_realized_volatility(
    run: ComputeRun, symbol: str, partitions: Sequence[SignalCoverage]
) -> dict[date, PartitionRows]:
    """Return each day's hours with their realised variance."""
    interval = input_interval(run, partitions, "candles_1m")
    bars = tables.bars(run.connection, symbol, interval)
    hours = realized.realized_variance(bars, interval.end)
    rows_of = {}
    for partition in partitions:
        of_day = hours.reindex([at for at in closed_hours(partition) if at in hours.index])
        rows = [
            (symbol, row["index"] - HOUR, number_or_none(row["realized_variance"]),
             str(row["estimator"]), row["zero_share"], row["minutes"])
            for row in of_day.reset_index(names="index").to_dict("records")
        ]  # fmt: skip
        outages = int(of_day["realized_variance"].isna().sum())
        figures: dict[str, Any] = {"outage_hours": outages}
        if len(of_day) > outages:
            figures |= {
                "annualized_volatility": realized.annualized(of_day["realized_variance"].mean()),
                "zero_share": float(of_day["zero_share"].iloc[-1]),
                "estimator": str(of_day["estimator"].iloc[-1]),
            }
        rows_of[partition.day] = PartitionRows(rows, tables.hours_of(partition.day), figures)
    return rows_of


def compute_volatility_model(
    run: ComputeRun, _: str, partitions: Sequence[SignalCoverage]
) -> dict[date, PartitionRows]:
    """Return each day's models, one a horizon, fitted as of its end."""
    interval = input_interval(run, partitions, "realized_volatility")
    panel = tables.variances(run.connection, run.settings.symbols, interval)
    rows_of = {}
    for partition in partitions:
        fitted = [
            volatility_model.fit(
                panel, day_interval(partition.day).end, horizon, run.settings.volatility
            )
            for horizon in run.settings.volatility.horizons
        ]
        rows: list[SignalRow] = []
        figures: dict[str, Any] = {"status": str(fitted[0].status)}
        for model in fitted:
            stored = model.model_dump(mode="json")
            rows.append((partition.day, model.horizon, str(model.status), Jsonb(stored)))
            figures |= {
                f"training_rows_{model.horizon}h": model.rows,
                f"unseen_qlike_{model.horizon}h": model.unseen_qlike,
                f"unseen_qlike_random_walk_{model.horizon}h": model.unseen_qlike_random_walk,
                f"smearing_{model.horizon}h": model.smearing,
                f"model_{model.horizon}h": stored,
            }
        rows_of[partition.day] = PartitionRows(rows, [partition.day], figures)
    return rows_of


def compute_volatility_forecast(
    run: ComputeRun, symbol: str, partitions: Sequence[SignalCoverage]
) -> dict[date, PartitionRows]:
    """Return each day's forecasts, as of the close of each hour, by the newest model of then.

    Those of the `ADAPTED_DAYS` before it are computed again, from the stored models and baseline:
    by what became of them intervals and flags are found.
    """
    interval = input_interval(run, partitions, "realized_volatility")
    hourly = tables.variances(run.connection, [symbol], interval)[symbol]
    grid = pd.date_range(interval.start, interval.end, freq="h", inclusive="right")
    hourly = hourly.reindex(grid)
    first = partitions[0].day - DAY * ADAPTED_DAYS
    stored = tables.models(run.connection, first - DAY, partitions[-1].day)
    models = {key: VolatilityModel.model_validate(model) for key, model in stored.items()}
    since = day_interval(first).start
    baseline = tables.baseline(run.connection, symbol, Interval(since, interval.end))
    fits = {at: garch.GarchFit.model_validate(fit) for at, fit in baseline.fits.items()}
    returns = {p.day: _returns_since_the_fit(run, symbol, p) for p in partitions}
    as_ofs = [at for at in grid.to_pydatetime() if at > since]
    rows_of: dict[date, list[SignalRow]] = {partition.day: [] for partition in partitions}
    for horizon in run.settings.volatility.horizons:
        newest = {at: chosen for at in as_ofs if (chosen := _newest_model(models, at, horizon))}
        if not newest:
            continue
        members = volatility_model.forecast([m for _, m in newest.values()], hourly, list(newest))
        members["garch"] = baseline.variances.get(horizon, NOT_THERE).reindex(members.index)
        thresholds = volatility_model.thresholds(hourly, horizon, as_ofs, run.settings.volatility)
        happened = volatility_model.outcome(hourly, horizon)
        for partition in partitions:
            own = closed_hours(partition)
            if not own:
                continue  # nothing of the day has closed yet
            rows = members.reindex(pd.date_range(own[0] - DAY * ADAPTED_DAYS, own[-1], freq="h"))
            # What the baseline says when the day has closed.
            carried = garch.carried(fits, returns[partition.day], own, horizon)
            rows["garch"] = rows["garch"].fillna(carried)
            of_hours = [newest.get(at.to_pydatetime()) for at in rows.index]
            adapted = combined.adapt(
                combined.combine(rows, horizon),
                [None if chosen is None else chosen[1] for chosen in of_hours],
                happened,
                thresholds,
                symbol,
                horizon,
                shown=len(own),
            )
            rows_of[partition.day] += [
                _forecast_row(symbol, at, horizon, newest[at][0], row)
                for at, (_, row) in zip(own, adapted.iterrows(), strict=True)
                if at in newest
            ]
    return {
        day: PartitionRows(rows, closes_of(day), _forecast_figures(rows))
        for day, rows in rows_of.items()
    }


def _newest_model(
    models: Mapping[tuple[date, int], VolatilityModel],
    as_of: datetime,
    horizon: int,
) -> tuple[date, VolatilityModel] | None:
    """Return the day and the model that is the newest fitted by then, of that day or before."""
    day = (as_of - HOUR).date()
    return next(
        (
            (of_day, models[of_day, horizon])
            for of_day in (day, day - DAY)
            if (of_day, horizon) in models and day_interval(of_day).end <= as_of
        ),
        None,
    )


def _returns_since_the_fit(run: ComputeRun, symbol: str, partition: SignalCoverage) -> pd.Series:
    """Return the hourly returns since the midnight before the day, as far as candles are there."""
    assert partition.until is not None
    days = [partition.day - DAY, partition.day]
    start = day_interval(days[0]).start
    # An hour that is not there yet would be one without a trade.
    until = min(tables.hours_until(run.connection, symbol, days) or start, partition.until)
    closes = tables.hourly_closes(run.connection, symbol, Interval(start, until))
    return garch.hourly_returns(closes, until)


def _forecast_row(
    symbol: str, as_of: datetime, horizon: int, model_day: date, row: pd.Series
) -> SignalRow:
    variance = number_or_none(row["variance"])
    return (
        symbol, as_of, horizon, as_of + HOUR * horizon, model_day, str(row["status"]), variance,
        number_or_none(row["low"]), number_or_none(row["high"]),
        None if variance is None else realized.annualized(variance),
        number_or_none(row["threshold"]), row["is_high_volatility"], row["made_of"],
        *(number_or_none(row[name]) for name in (*combined.MEMBERS, "interval_width")),
        str(row["interval_status"]),
        *(number_or_none(row[name]) for name in ("probability_high", "flag_level")),
    )  # fmt: skip


def _forecast_figures(rows: Sequence[SignalRow]) -> dict[str, Any]:
    if not rows:
        return {}
    last = dict(zip(tables.VOLATILITY_FORECAST.columns, rows[-1], strict=True))
    names = ("horizon", "status", "annualized_volatility", "is_high_volatility", "made_of",
             "probability_high", "interval_status")  # fmt: skip
    figures = {name: last[name] for name in names}
    if last["threshold"] is not None:
        figures["annualized_threshold"] = realized.annualized(last["threshold"])
    return figures


def compute_garch_baseline(
    run: ComputeRun, symbol: str, partitions: Sequence[SignalCoverage]
) -> dict[date, PartitionRows]:
    """Return each day's GARCH forecasts: fitted at its midnight, as of the close of each hour."""
    interval = input_interval(run, partitions, "candles_1h")
    closes = tables.hourly_closes(run.connection, symbol, interval)
    returns = garch.hourly_returns(closes, interval.end)

    @cache
    def fitted(midnight: datetime) -> garch.GarchFit:
        return garch.fit(returns, midnight)

    rows_of = {}
    for partition in partitions:
        start, end = day_interval(partition.day).start, day_interval(partition.day).end
        rows: list[SignalRow] = []
        for horizon in run.settings.volatility.horizons:
            for model, as_ofs in (
                (fitted(start), closed_hours(partition)[:-1]),
                (fitted(end), [end]),
            ):
                variance = garch.forecast(model, returns, as_ofs, horizon)
                stored = Jsonb(model.model_dump(mode="json"))
                rows += [
                    (symbol, as_of, horizon, model.converged, "; ".join(model.warnings) or None,
                     number_or_none(variance[as_of]), stored if as_of == end else None)
                    for as_of in as_ofs
                ]  # fmt: skip
        figures = {"converged": fitted(end).converged, "fit": fitted(end).model_dump(mode="json")}
        rows_of[partition.day] = PartitionRows(rows, closes_of(partition.day), figures)
    return rows_of


def compute_volatility_score(
    run: ComputeRun, symbol: str, partitions: Sequence[SignalCoverage]
) -> dict[date, PartitionRows]:
    """Return each day's loss of the forecasts whose horizon ended in it, beside the baselines'."""
    interval = input_interval(run, partitions, "realized_volatility")
    hourly = tables.variances(run.connection, [symbol], interval)[symbol]
    grid = pd.date_range(interval.start, interval.end, freq="h", inclusive="right")
    hourly = hourly.reindex(grid)
    ended = Interval(day_interval(partitions[0].day).start, interval.end)
    forecasts = tables.forecasts(run.connection, symbol, ended)
    # A forecast is scored on the day in which its horizon ended; midnight ends the day before.
    last_hour = forecasts["valid_until"] - pd.Timedelta(hours=1)
    rows_of = {}
    for partition in partitions:
        of_day = forecasts[last_hour.dt.date == partition.day]
        rows: list[SignalRow] = []
        figures: dict[str, Any] = {}
        for horizon in sorted(set(of_day["horizon"])):
            scored = score.day_score(of_day[of_day["horizon"] == horizon], hourly, horizon)
            rows.append((symbol, partition.day, int(horizon), *scored.row()))
            names = ("qlike", "qlike_garch", "qlike_random_walk", "bias", "covered", "intervals")
            figures |= {f"{name}_{horizon}h": getattr(scored, name) for name in names}
        rows_of[partition.day] = PartitionRows(rows, [partition.day], figures)
    return rows_of
