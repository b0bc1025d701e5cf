"""Partitions of the five volatility assets: read their inputs, call the arithmetic, shape the rows.

The arithmetic belongs in `realized`, `model`, `garch` and `score`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cache
from typing import Any

import pandas as pd
from psycopg.types.json import Jsonb

from trading_pipelines.candles.windows import DAY, HOUR, Interval, day_interval
from trading_pipelines.settings.strategy import VolatilitySettings
from trading_pipelines.signals import tables
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
from trading_pipelines.signals.volatility import garch, realized, score
from trading_pipelines.signals.volatility import model as volatility_model


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
    """Return each day's forecasts, as of the close of each hour, by the newest model of then."""
    interval = input_interval(run, partitions, "realized_volatility")
    panel = tables.variances(run.connection, [symbol], interval)
    stored = tables.models(run.connection, partitions[0].day - DAY, partitions[-1].day)
    models = {
        key: volatility_model.VolatilityModel.model_validate(model) for key, model in stored.items()
    }
    rows_of = {}
    for partition in partitions:
        rows: list[SignalRow] = []
        figures: dict[str, Any] = {}
        for horizon in run.settings.volatility.horizons:
            for day, as_ofs in _newest_models(models, partition, horizon).items():
                rows += _forecast_rows(
                    models[day, horizon], day, panel, as_ofs, run.settings.volatility
                )
        if rows:
            last = dict(zip(tables.VOLATILITY_FORECAST.columns, rows[-1], strict=True))
            names = ("horizon", "status", "annualized_volatility", "is_high_volatility")
            figures = {name: last[name] for name in names}
            if last["threshold"] is not None:
                figures["annualized_threshold"] = realized.annualized(last["threshold"])
        rows_of[partition.day] = PartitionRows(rows, closes_of(partition.day), figures)
    return rows_of


def _newest_models(
    models: Mapping[tuple[date, int], volatility_model.VolatilityModel],
    partition: SignalCoverage,
    horizon: int,
) -> dict[date, list[datetime]]:
    """Return, for each model, the hours of the day for which it is the newest fitted by then."""
    chosen: dict[date, list[datetime]] = defaultdict(list)
    for as_of in closed_hours(partition):
        for day in (partition.day, partition.day - DAY):
            if (day, horizon) in models and day_interval(day).end <= as_of:
                chosen[day].append(as_of)
                break
    return chosen


def _forecast_rows(
    model: volatility_model.VolatilityModel,
    day: date,
    panel: pd.DataFrame,
    as_ofs: Sequence[datetime],
    settings: VolatilitySettings,
) -> list[SignalRow]:
    symbol = str(panel.columns[0])
    thresholds = volatility_model.thresholds(panel[symbol], model.horizon, as_ofs, settings)
    rows = []
    for row in volatility_model.forecast(model, panel, as_ofs).to_dict("records"):
        variance = number_or_none(row["variance"])
        threshold = number_or_none(thresholds[row["as_of"]])
        is_high = None if variance is None or threshold is None else variance > threshold
        rows.append(
            (symbol, row["as_of"], model.horizon, row["as_of"] + HOUR * model.horizon, day,
             str(row["status"]), variance, number_or_none(row["low"]), number_or_none(row["high"]),
             None if variance is None else realized.annualized(variance), threshold, is_high)
        )  # fmt: skip
    return rows


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
                rows += [
                    (symbol, as_of, horizon, model.converged, "; ".join(model.warnings) or None,
                     number_or_none(variance[as_of]))
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
