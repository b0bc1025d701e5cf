"""Partitions of signals: read what they are computed from, compute, replace their rows, record it.

One transaction a symbol, on one snapshot, so that what is recorded of the inputs is what was read.
A symbol that fails is recorded and leaves the others alone. The arithmetic is next door; whether a
partition is due belongs in `due`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from itertools import pairwise
from typing import Any

import pandas as pd
import psycopg
from psycopg.types.json import Jsonb

from trading_pipelines.candles.windows import DAY, HOUR, Interval, day_interval, floor_hour
from trading_pipelines.settings import StrategySettings
from trading_pipelines.signals import (
    due,
    garch,
    outcomes,
    realized,
    regime,
    score,
    tables,
    volatility,
)
from trading_pipelines.signals.due import Computed, Signal

SYNC_HISTORY = """
UPDATE public.regime_history AS history SET regime = label.label, ma50 = label.ma_fast,
    ma200 = label.ma_slow, diff_pct = label.diff_pct
FROM trading_pipelines.regime_labels AS label
WHERE label.symbol = %(symbol)s AND label.hour = ANY(%(hours)s) AND history.id = label.history_id
    AND (history.regime, history.ma50, history.ma200, history.diff_pct) IS DISTINCT FROM
        (label.label, label.ma_fast::numeric(20, 8), label.ma_slow::numeric(20, 8),
         label.diff_pct::numeric(10, 4))
"""
ADD_HISTORY = """
WITH added AS (
    INSERT INTO public.regime_history (detected_at, regime, ma50, ma200, diff_pct, coin_symbol)
    SELECT label.hour + interval '1 hour', label.label, label.ma_fast, label.ma_slow,
        label.diff_pct, label.symbol
    FROM trading_pipelines.regime_labels AS label
    WHERE label.symbol = %(symbol)s AND label.hour = ANY(%(hours)s)
        AND NOT EXISTS (SELECT FROM public.regime_history WHERE id = label.history_id)
    ORDER BY label.hour
    RETURNING id, detected_at
)
UPDATE trading_pipelines.regime_labels AS label SET history_id = added.id FROM added
WHERE label.symbol = %(symbol)s AND label.hour = added.detected_at - interval '1 hour'
"""

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Rows:
    """What a partition comes to: its rows, the times it answers for, and figures to show."""

    rows: Sequence[Row]
    times: Sequence[date]
    figures: Mapping[str, Any]
    inputs_from: date | None = None


@dataclass(frozen=True)
class Partition:
    """One partition after a run: what changed in it, and its figures; `error` when it failed."""

    symbol: str
    day: date
    changed: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class _Run:
    """What all partitions of one call share."""

    connection: psycopg.Connection
    signal: Signal
    settings: StrategySettings
    run_id: str


Compute = Callable[[_Run, str, Sequence[Computed]], dict[date, Rows]]


def compute(
    connection: psycopg.Connection,
    signal: Signal,
    symbols: Sequence[str],
    days: Sequence[date],
    settings: StrategySettings,
    run_id: str,
) -> list[Partition]:
    """Bring the partitions up to date with their inputs; return one entry each.

    `connection` is autocommit. A day whose inputs are missing fails and says which; an open day of
    an asset that waits for the close is passed over. Raises psycopg.Error without a database.
    """
    run = _Run(connection, signal, settings, run_id)
    found: list[Partition] = []
    for symbol in [due.POOLED] if signal.pooled else symbols:
        found += _attempt(run, symbol, days)
    return found


def _attempt(run: _Run, symbol: str, days: Sequence[date]) -> list[Partition]:
    # Before the attempt: inputs that change while it is at work make it due again.
    known = due.read(run.connection, run.signal, [symbol], days[:1], run.settings)[0]
    try:
        return _compute_symbol(run, symbol, days)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a day is recorded with it
        if len(days) > 1:
            return [partition for day in days for partition in _attempt(run, symbol, [day])]
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        due.record_failure(
            run.connection, known, said, run.run_id, run.settings.healing,
            # A full disk or a deadlock is the machine's trouble: it spends no try of the partition.
            is_its_own=not isinstance(error, psycopg.OperationalError),
        )  # fmt: skip
        return [Partition(symbol, days[0], error=said)]


def _compute_symbol(run: _Run, symbol: str, days: Sequence[date]) -> list[Partition]:
    signal = run.signal
    function, table = COMPUTE[signal.asset]
    with _snapshot(run.connection, f"{signal.asset} {symbol}"):
        known = due.read(run.connection, signal, [symbol], days, run.settings)
        ready = [one for one in known if due.is_ready(one, signal)]
        rows = function(run, symbol, ready) if ready else {}
        changed = tables.replace(
            run.connection,
            table,
            symbol,
            [time for found in rows.values() for time in found.times],
            [row for found in rows.values() for row in found.rows],
        )
        if signal is due.REGIME_LABELS:
            _sync_history(run.connection, symbol, rows)
        found = [_passed_over(one, signal) for one in known if one not in ready]
        for one in ready:
            mine = rows[one.day]
            n = len(changed.intersection(mine.times))
            due.record(
                run.connection, signal, one, run.settings, run.run_id,
                changed=n > 0 or one.computed_until is None, inputs_from=mine.inputs_from,
            )  # fmt: skip
            figures = {"rows": len(mine.rows), "changed": n, "as_of": one.until, **mine.figures}
            found.append(Partition(symbol, one.day, n, figures))
    return found


def _passed_over(known: Computed, signal: Signal) -> Partition:
    if known.until is None or not known.has_all_inputs:
        return Partition(known.symbol, known.day, error="nothing to compute it from: materialize "
                         "what is upstream of it first")  # fmt: skip
    assert signal.closed_days_only
    return Partition(known.symbol, known.day, figures={"rows": 0, "status": "the day is open"})


@contextmanager
def _snapshot(connection: psycopg.Connection, key: str) -> Iterator[None]:
    """Hold one snapshot, alone with this key: two runs of one partition go one after the other.

    The lock is the session's, because a transaction's snapshot is older than a lock it waits for.
    """
    connection.execute("SELECT pg_advisory_lock(hashtext(%s))", [key])
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", [key])


def _sync_history(connection: psycopg.Connection, symbol: str, rows: Mapping[date, Rows]) -> None:
    hours = [hour for found in rows.values() for hour in found.times]
    for statement in (SYNC_HISTORY, ADD_HISTORY):
        connection.execute(statement, {"symbol": symbol, "hours": hours})


def _stretch(run: _Run, known: Sequence[Computed], upstream: str) -> Interval:
    """Return what is read of an input: as far back as is declared, and nothing of afterwards."""
    untils = [one.until for one in known if one.until is not None]
    first = day_interval(min(one.day for one in known)).start
    return Interval(first - DAY * run.signal.inputs(run.settings)[upstream], max(untils))


def _closes_of(day: date) -> list[datetime]:
    return [hour + HOUR for hour in tables.hours_of(day)]


def _as_ofs(one: Computed) -> list[datetime]:
    """Return the closes of the day's hours up to where its inputs reach."""
    assert one.until is not None
    return [at for at in _closes_of(one.day) if at <= one.until]


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _regime_labels(run: _Run, symbol: str, known: Sequence[Computed]) -> dict[date, Rows]:
    closes = tables.closes(run.connection, symbol, _stretch(run, known, "candles_1h"))
    hours = [as_of - HOUR for one in known for as_of in _as_ofs(one)]
    by_day: dict[date, list[regime.Label]] = defaultdict(list)
    for label in regime.labels(closes, hours, run.settings):
        by_day[label.hour.date()].append(label)
    found = {}
    for one in known:
        labels = by_day[one.day]
        rows = [
            (symbol, label.hour, str(label.label), label.ma_fast, label.ma_slow, label.diff_pct,
             label.candles, label.empty_hours, str(label.hysteresis_label))
            for label in labels
        ]  # fmt: skip
        last = labels[-1]
        figures = {
            "label": str(last.label),
            "diff_pct": None if last.diff_pct is None else round(float(last.diff_pct), 4),
            "empty_hours": last.empty_hours,
            "flips": sum(a.label is not b.label for a, b in pairwise(labels)),
            "unknown_hours": sum(label.label is regime.Regime.UNKNOWN for label in labels),
        }
        reach = min(label.inputs_from for label in labels).date()
        found[one.day] = Rows(rows, tables.hours_of(one.day), figures, reach)
    return found


def _realized_volatility(run: _Run, symbol: str, known: Sequence[Computed]) -> dict[date, Rows]:
    stretch = _stretch(run, known, "candles_1m")
    bars = tables.bars(run.connection, symbol, stretch)
    hours = realized.realized_variance(bars, stretch.end)
    found = {}
    for one in known:
        mine = hours.reindex([at for at in _as_ofs(one) if at in hours.index])
        rows = [
            (symbol, row["index"] - HOUR, _number(row["realized_variance"]), str(row["estimator"]),
             row["zero_share"], row["minutes"])
            for row in mine.reset_index(names="index").to_dict("records")
        ]  # fmt: skip
        outages = int(mine["realized_variance"].isna().sum())
        figures: dict[str, Any] = {"outage_hours": outages}
        if len(mine) > outages:
            figures |= {
                "annualized_volatility": realized.annualized(mine["realized_variance"].mean()),
                "zero_share": float(mine["zero_share"].iloc[-1]),
                "estimator": str(mine["estimator"].iloc[-1]),
            }
        found[one.day] = Rows(rows, tables.hours_of(one.day), figures)
    return found


def _volatility_model(run: _Run, _: str, known: Sequence[Computed]) -> dict[date, Rows]:
    stretch = _stretch(run, known, "realized_volatility")
    panel = tables.variances(run.connection, run.settings.symbols, stretch)
    found = {}
    for one in known:
        fitted = [
            volatility.fit(panel, day_interval(one.day).end, horizon, run.settings.volatility)
            for horizon in run.settings.volatility.horizons
        ]
        rows: list[Row] = []
        figures: dict[str, Any] = {"status": str(fitted[0].status)}
        for model in fitted:
            stored = model.model_dump(mode="json")
            rows.append((one.day, model.horizon, str(model.status), Jsonb(stored)))
            figures |= {
                f"training_rows_{model.horizon}h": model.rows,
                f"unseen_qlike_{model.horizon}h": model.unseen_qlike,
                f"unseen_qlike_random_walk_{model.horizon}h": model.unseen_qlike_random_walk,
                f"smearing_{model.horizon}h": model.smearing,
                f"model_{model.horizon}h": stored,
            }
        found[one.day] = Rows(rows, [one.day], figures)
    return found


def _volatility_forecast(run: _Run, symbol: str, known: Sequence[Computed]) -> dict[date, Rows]:
    stretch = _stretch(run, known, "realized_volatility")
    panel = tables.variances(run.connection, [symbol], stretch)
    stored = tables.models(run.connection, known[0].day - DAY, known[-1].day)
    models = {key: volatility.Model.model_validate(model) for key, model in stored.items()}
    found = {}
    for one in known:
        rows: list[Row] = []
        figures: dict[str, Any] = {}
        for horizon in run.settings.volatility.horizons:
            for day, as_ofs in _newest_models(models, one, horizon).items():
                rows += _forecast_rows(models[day, horizon], day, panel, as_ofs, run.settings)
        if rows:
            last = dict(zip(tables.VOLATILITY_FORECAST.columns, rows[-1], strict=True))
            names = ("horizon", "status", "annualized_volatility", "is_high_volatility")
            figures = {name: last[name] for name in names}
            if last["threshold"] is not None:
                figures["annualized_threshold"] = realized.annualized(last["threshold"])
        found[one.day] = Rows(rows, _closes_of(one.day), figures)
    return found


def _newest_models(
    models: Mapping[tuple[date, int], volatility.Model], one: Computed, horizon: int
) -> dict[date, list[datetime]]:
    """Return, for each model, the hours of the day for which it is the newest fitted by then."""
    chosen: dict[date, list[datetime]] = defaultdict(list)
    for as_of in _as_ofs(one):
        for day in (one.day, one.day - DAY):
            if (day, horizon) in models and day_interval(day).end <= as_of:
                chosen[day].append(as_of)
                break
    return chosen


def _forecast_rows(
    model: volatility.Model,
    day: date,
    panel: pd.DataFrame,
    as_ofs: Sequence[datetime],
    settings: StrategySettings,
) -> list[Row]:
    symbol = str(panel.columns[0])
    known = volatility.thresholds(panel[symbol], model.horizon, as_ofs, settings.volatility)
    rows = []
    for row in volatility.forecast(model, panel, as_ofs).to_dict("records"):
        variance, threshold = _number(row["variance"]), _number(known[row["as_of"]])
        is_high = None if variance is None or threshold is None else variance > threshold
        rows.append(
            (symbol, row["as_of"], model.horizon, row["as_of"] + HOUR * model.horizon, day,
             str(row["status"]), variance, _number(row["low"]), _number(row["high"]),
             None if variance is None else realized.annualized(variance), threshold, is_high)
        )  # fmt: skip
    return rows


def _garch_baseline(run: _Run, symbol: str, known: Sequence[Computed]) -> dict[date, Rows]:
    stretch = _stretch(run, known, "candles_1h")
    closes = tables.hourly_closes(run.connection, symbol, stretch)
    returns = garch.hourly_returns(closes, stretch.end)

    @cache
    def fitted(midnight: datetime) -> garch.Garch:
        return garch.fit(returns, midnight)

    found = {}
    for one in known:
        start, end = day_interval(one.day).start, day_interval(one.day).end
        rows: list[Row] = []
        for horizon in run.settings.volatility.horizons:
            for model, as_ofs in ((fitted(start), _as_ofs(one)[:-1]), (fitted(end), [end])):
                variance = garch.forecast(model, returns, as_ofs, horizon)
                rows += [
                    (symbol, as_of, horizon, model.converged, "; ".join(model.warnings) or None,
                     _number(variance[as_of]))
                    for as_of in as_ofs
                ]  # fmt: skip
        figures = {"converged": fitted(end).converged, "fit": fitted(end).model_dump(mode="json")}
        found[one.day] = Rows(rows, _closes_of(one.day), figures)
    return found


def _volatility_score(run: _Run, symbol: str, known: Sequence[Computed]) -> dict[date, Rows]:
    stretch = _stretch(run, known, "realized_volatility")
    hourly = tables.variances(run.connection, [symbol], stretch)[symbol]
    grid = pd.date_range(stretch.start, stretch.end, freq="h", inclusive="right")
    hourly = hourly.reindex(grid)
    ended = Interval(day_interval(known[0].day).start, stretch.end)
    forecasts = tables.forecasts(run.connection, symbol, ended)
    # A forecast is scored on the day in which its horizon ended; midnight ends the day before.
    last_hour = forecasts["valid_until"] - pd.Timedelta(hours=1)
    found = {}
    for one in known:
        mine = forecasts[last_hour.dt.date == one.day]
        rows: list[Row] = []
        figures: dict[str, Any] = {}
        for horizon in sorted(set(mine["horizon"])):
            scored = score.day_score(mine[mine["horizon"] == horizon], hourly, horizon)
            rows.append((symbol, one.day, int(horizon), *scored.row()))
            names = ("qlike", "qlike_garch", "qlike_random_walk", "bias", "covered", "intervals")
            figures |= {f"{name}_{horizon}h": getattr(scored, name) for name in names}
        found[one.day] = Rows(rows, [one.day], figures)
    return found


def _reject_outcomes(run: _Run, symbol: str, known: Sequence[Computed]) -> dict[date, Rows]:
    return {one.day: _outcomes_of_day(run, symbol, one) for one in known}


def _outcomes_of_day(run: _Run, symbol: str, one: Computed) -> Rows:
    assert one.until is not None
    day, days_after = day_interval(one.day), outcomes.days_after(run.settings)
    covered = floor_hour(tables.covered_until(run.connection, symbol, one.day, days_after))
    as_of = min(one.until, covered)
    rejections = tables.rejections(run.connection, symbol, Interval(day.start, min(as_of, day.end)))
    minutes: list[outcomes.Candle] = []
    if rejections:
        # The price just after midnight is the day before's last one.
        minutes = tables.minutes(run.connection, symbol, Interval(day.start - HOUR, as_of))
    costs = run.settings.reject_outcomes
    rows: list[Row] = []
    results: list[outcomes.Outcome] = []
    for rejection in rejections:
        at = rejection.decided_at
        label = rejection.regime or tables.label_as_of(run.connection, symbol, at)
        label = label or str(regime.Regime.UNKNOWN)
        exits = outcomes.exits(run.settings, label)
        note, rules = (exits, None) if isinstance(exits, str) else (None, exits)
        outcome = outcomes.judge(rejection, minutes, as_of, rules, costs)
        family = outcomes.reason_family(rejection.reason, costs.reason_families)
        left = outcome.exit
        results.append(outcome)
        rows.append(
            (symbol, one.day, rejection.id, at, label, rejection.model, family,
             str(outcome.state), outcome.price, *outcome.later, outcome.best, outcome.worst,
             left and left.at, left and left.price, left and str(left.reason),
             outcome.result_krw, outcome.verdict, note)
        )  # fmt: skip
    won = [one.result_krw for one in results if one.result_krw is not None]
    figures = {
        "rejections": len(results),
        "completed": sum(one.state is outcomes.State.COMPLETED for one in results),
        "saved": sum(one.verdict is outcomes.Verdict.SAVED for one in results),
        "saved_krw": -int(sum(krw for krw in won if krw < 0)),
        "cost_krw": int(sum(krw for krw in won if krw > 0)),
    }
    return Rows(rows, [one.day], figures)


COMPUTE: dict[str, tuple[Compute, tables.Table]] = {
    due.REGIME_LABELS.asset: (_regime_labels, tables.REGIME_LABELS),
    due.REALIZED_VOLATILITY.asset: (_realized_volatility, tables.REALIZED_VOLATILITY),
    due.VOLATILITY_MODEL.asset: (_volatility_model, tables.VOLATILITY_MODEL),
    due.VOLATILITY_FORECAST.asset: (_volatility_forecast, tables.VOLATILITY_FORECAST),
    due.GARCH_BASELINE.asset: (_garch_baseline, tables.GARCH_BASELINE),
    due.VOLATILITY_SCORE.asset: (_volatility_score, tables.VOLATILITY_SCORE),
    due.REJECT_OUTCOMES.asset: (_reject_outcomes, tables.REJECT_OUTCOMES),
}
