"""The signals' tables: inputs read as frames, partitions replaced as a whole, in few statements.

Frames are indexed by the close of the hour (UTC), as the arithmetic takes them. What is in a row is
decided in each signal's folder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pandas as pd
import psycopg
from psycopg import sql
from psycopg.rows import class_row

from trading_pipelines.candles.windows import HOUR, Interval, day_interval
from trading_pipelines.signals.regimes.labels import Close
from trading_pipelines.signals.rejections.outcomes import Decision, MinutePrices

CLOSES = """
SELECT timestamp, close_price FROM trading_pipelines.candles_1h
WHERE symbol = %s AND timestamp >= %s AND timestamp < %s ORDER BY timestamp
"""
BARS = """
SELECT date_bin('5 minutes', timestamp, 'epoch'::timestamptz) AS bar,
    (array_agg(open_price ORDER BY timestamp))[1]::double precision AS open,
    max(high_price)::double precision AS high, min(low_price)::double precision AS low,
    (array_agg(close_price ORDER BY timestamp DESC))[1]::double precision AS close,
    count(*) AS minutes
FROM public.market_data
WHERE symbol = %s AND interval = '1m' AND timestamp >= %s AND timestamp < %s
GROUP BY 1 ORDER BY 1
"""
VARIANCES = """
SELECT symbol, hour, realized_variance FROM trading_pipelines.realized_volatility
WHERE symbol = ANY(%s) AND hour >= %s AND hour < %s
"""
MODELS = """
SELECT day, horizon, model FROM trading_pipelines.volatility_model WHERE day BETWEEN %s AND %s
"""
FORECASTS = """
SELECT ours.as_of, ours.horizon, ours.valid_until, ours.variance, ours.low, ours.high,
    ours.threshold, ours.is_high_volatility, ours.probability_high, ours.har, ours.ewma,
    garch.variance AS garch,
    (model.model->>'floor')::double precision AS floor
FROM trading_pipelines.volatility_forecast AS ours
LEFT JOIN trading_pipelines.garch_baseline AS garch USING (symbol, as_of, horizon)
LEFT JOIN trading_pipelines.volatility_model AS model
    ON model.day = ours.model_day AND model.horizon = ours.horizon
WHERE ours.symbol = %s AND ours.valid_until > %s AND ours.valid_until <= %s
ORDER BY ours.as_of, ours.horizon
"""
GARCH = """
SELECT as_of, horizon, variance, fit FROM trading_pipelines.garch_baseline
WHERE symbol = %s AND as_of >= %s AND as_of <= %s
"""
HOURS_UNTIL = """
SELECT max(computed_until) FROM trading_pipelines.input_versions
WHERE asset = 'candles_1h' AND symbol = %s AND day BETWEEN %s AND %s
"""
MINUTES = """
SELECT timestamp, open_price, high_price, low_price, close_price FROM public.market_data
WHERE symbol = %s AND interval = '1m' AND timestamp >= %s AND timestamp < %s ORDER BY timestamp
"""
# As far as the minutes are known without a hole from the day's start on.
COVERED_UNTIL = """
SELECT day, fetched_until FROM trading_pipelines.candle_coverage
WHERE symbol = %s AND interval = '1m' AND day >= %s ORDER BY day LIMIT %s
"""
READ_DECISIONS = """
SELECT id, decided_at, price, regime, model, reason
FROM trading_pipelines.decisions(%s, %s, %s, %s) ORDER BY id
"""


@dataclass(frozen=True)
class Table:
    """A table of ours: its key, and the columns that a partition writes beside it."""

    name: str
    key: tuple[str, ...]
    values: tuple[str, ...]
    time: str
    """The key's column that says which partition a row is of: a date, or a moment."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The order of a row's values."""
        return self.key + self.values


REGIME_LABELS = Table(
    "regime_labels",
    ("symbol", "hour"),
    ("label", "ma_fast", "ma_slow", "diff_pct", "candles", "empty_hours", "hysteresis_label"),
    time="hour",
)
REALIZED_VOLATILITY = Table(
    "realized_volatility",
    ("symbol", "hour"),
    ("realized_variance", "estimator", "zero_share", "minutes"),
    time="hour",
)
VOLATILITY_MODEL = Table("volatility_model", ("day", "horizon"), ("status", "model"), time="day")
VOLATILITY_FORECAST = Table(
    "volatility_forecast",
    ("symbol", "as_of", "horizon"),
    ("valid_until", "model_day", "status", "variance", "low", "high", "annualized_volatility",
     "threshold", "is_high_volatility", "made_of", "har", "garch", "ewma", "interval_width",
     "interval_status", "probability_high", "flag_level"),
    time="as_of",
)  # fmt: skip
GARCH_BASELINE = Table(
    "garch_baseline",
    ("symbol", "as_of", "horizon"),
    ("converged", "warnings", "variance", "fit"),
    time="as_of",
)
VOLATILITY_SCORE = Table(
    "volatility_score",
    ("symbol", "day", "horizon"),
    ("forecasts", "qlike", "qlike_garch", "qlike_random_walk", "bias", "intervals", "covered",
     "flags", "flagged", "high", "flagged_and_high"),
    time="day",
)  # fmt: skip
REJECT_OUTCOMES = Table(
    "reject_outcomes",
    ("symbol", "day", "decision_id"),
    ("decided_at", "regime", "model", "reason_family", "state", "price", "price_1h", "price_4h",
     "price_12h", "price_24h", "best_price", "worst_price", "exit_at", "exit_price", "exit_reason",
     "result_krw", "verdict", "note"),
    time="day",
)  # fmt: skip
# Saved and cost are words for what a refusal did.
CONFIRM_OUTCOMES = Table(
    "confirm_outcomes",
    REJECT_OUTCOMES.key,
    ("decided_at", "regime", "model", "reason_family", "state", "price", "price_1h", "price_4h",
     "price_12h", "price_24h", "best_price", "worst_price", "exit_at", "exit_price", "exit_reason",
     "result_krw", "note"),
    time="day",
)  # fmt: skip


def replace(
    connection: psycopg.Connection,
    table: Table,
    symbol: str,
    times: Sequence[Any],
    rows: Iterable[Sequence[Any]],
) -> set[Any]:
    """Make `rows` what the table holds of the symbol at `times`; return the times that changed.

    Rows that are as they should be are not touched. Runs in the caller's transaction. `symbol` is
    empty for a table without symbols.
    """
    parts = names(table) | {
        "set": _list("{0} = excluded.{0}", table.values),
        "stored": _list("stored.{0}", table.values),
        "new": _list("excluded.{0}", table.values),
        "same": _list("stored.{0} = staged.{0}", table.key, " AND "),
    }
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS staged")
        cursor.execute(filled("CREATE TEMP TABLE staged (LIKE {table}) ON COMMIT DROP", parts))
        with cursor.copy(filled("COPY staged ({columns}) FROM STDIN", parts)) as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(
            filled(
                "DELETE FROM {table} AS stored WHERE {symbol} stored.{time} = ANY(%(times)s) "
                "AND NOT EXISTS (SELECT FROM staged WHERE {same}) RETURNING {time}",
                parts,
            ),
            {"symbol": symbol, "times": list(times)},
        )
        changed = {time for (time,) in cursor}
        cursor.execute(
            filled(
                "INSERT INTO {table} AS stored ({columns}) SELECT {columns} FROM staged "
                "ON CONFLICT ({key}) DO UPDATE SET {set} "
                "WHERE ({stored}) IS DISTINCT FROM ({new}) RETURNING {time}",
                parts,
            )
        )
        return changed | {time for (time,) in cursor}


def rows_digest(
    connection: psycopg.Connection, table: Table, symbol: str, times: Sequence[Any]
) -> str:
    """Return a digest of what the table holds of the symbol at `times`; `symbol` as in `replace`.

    Equal rows have an equal one, in every database and whenever they were written.
    """
    query = (
        "SELECT md5(coalesce(string_agg(jsonb_build_array({columns})::text, ';' ORDER BY {key}), "
        "'')) FROM {table} AS stored WHERE {symbol} stored.{time} = ANY(%(times)s)"
    )
    arguments = {"symbol": symbol, "times": list(times)}
    row = connection.execute(filled(query, names(table)), arguments).fetchone()
    assert row is not None
    return str(row[0])


def names(table: Table) -> dict[str, sql.Composable]:
    """Return what a query on the table, called `stored`, is filled with; see `filled`."""
    return {
        "table": sql.Identifier("trading_pipelines", table.name),
        "columns": sql.SQL(", ").join(map(sql.Identifier, table.columns)),
        "key": sql.SQL(", ").join(map(sql.Identifier, table.key)),
        "time": sql.Identifier(table.time),
        "symbol": sql.SQL("stored.symbol = %(symbol)s AND" if "symbol" in table.key else ""),
    }


def filled(text: str, parts: dict[str, sql.Composable]) -> sql.Composed:
    """Return the query with its placeholders in braces filled in."""
    return sql.SQL(text).format(**parts)


def _list(template: str, columns: Sequence[str], joint: str = ", ") -> sql.Composed:
    pieces = (sql.SQL(template).format(sql.Identifier(column)) for column in columns)
    return sql.SQL(joint).join(pieces)


def frame(connection: psycopg.Connection, query: str, arguments: Sequence[object]) -> pd.DataFrame:
    """Return the query's rows under the names of its columns."""
    cursor = connection.execute(query, arguments)
    assert cursor.description is not None
    return pd.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])


def closes(connection: psycopg.Connection, symbol: str, interval: Interval) -> list[Close]:
    """Return the symbol's hourly closes in the interval, in order."""
    return [Close(*row) for row in connection.execute(CLOSES, [symbol, *_ends(interval)])]


def bars(connection: psycopg.Connection, symbol: str, interval: Interval) -> pd.DataFrame:
    """Return the symbol's traded five-minute bars, indexed by their start."""
    rows = frame(connection, BARS, [symbol, *_ends(interval)])
    rows["bar"] = pd.to_datetime(rows["bar"], utc=True)
    return rows.set_index("bar")


def hourly_closes(connection: psycopg.Connection, symbol: str, interval: Interval) -> pd.Series:
    """Return the symbol's hourly closes as floats, indexed by the close of the hour."""
    hours = closes(connection, symbol, interval)
    index = pd.DatetimeIndex([close.hour for close in hours], tz="UTC") + HOUR
    return pd.Series([float(close.price) for close in hours], index=index, dtype=float)


def variances(
    connection: psycopg.Connection, symbols: Sequence[str], interval: Interval
) -> pd.DataFrame:
    """Return hourly realised variances, a column for each of `symbols`."""
    rows = frame(connection, VARIANCES, [list(symbols), *_ends(interval)])
    rows["hour"] = pd.to_datetime(rows["hour"], utc=True) + HOUR
    panel = rows.pivot_table("realized_variance", "hour", "symbol", dropna=False, aggfunc="first")
    return panel.reindex(columns=list(symbols)).astype(float).sort_index()


def models(
    connection: psycopg.Connection, first: date, last: date
) -> dict[tuple[date, int], dict[str, Any]]:
    """Return the stored models of the days, by day and horizon."""
    return {
        (day, horizon): model for day, horizon, model in connection.execute(MODELS, [first, last])
    }


def forecasts(connection: psycopg.Connection, symbol: str, interval: Interval) -> pd.DataFrame:
    """Return the forecasts whose horizon ended in the interval, with GARCH's beside them."""
    rows = frame(connection, FORECASTS, [symbol, *_ends(interval)])
    for column in ("as_of", "valid_until"):
        rows[column] = pd.to_datetime(rows[column], utc=True)
    return rows


@dataclass(frozen=True)
class Baseline:
    """What the baseline says of a symbol, by the as-of (UTC)."""

    variances: pd.DataFrame
    """A column a horizon."""
    fits: dict[datetime, dict[str, Any]]
    """As they are stored, at midnights."""


def baseline(connection: psycopg.Connection, symbol: str, interval: Interval) -> Baseline:
    """Return the symbol's GARCH forecasts and fits as of the interval, both its ends included."""
    rows = connection.execute(GARCH, [symbol, *_ends(interval)]).fetchall()
    by_horizon: dict[int, dict[datetime, float | None]] = {}
    for as_of, horizon, variance, _ in rows:
        by_horizon.setdefault(horizon, {})[as_of] = variance
    return Baseline(
        pd.DataFrame(by_horizon, dtype=float),
        {as_of: fit for as_of, _, _, fit in rows if fit is not None},
    )


def hours_until(
    connection: psycopg.Connection, symbol: str, days: Sequence[date]
) -> datetime | None:
    """Return up to when (UTC) the symbol's hourly candles of the days are there."""
    row = connection.execute(HOURS_UNTIL, [symbol, days[0], days[-1]]).fetchone()
    assert row is not None
    until: datetime | None = row[0]
    return until


def decisions(
    connection: psycopg.Connection, decision: str, symbol: str, interval: Interval
) -> list[Decision]:
    """Return what the bot so decided of the symbol in the interval, in the order it was written."""
    with connection.cursor(row_factory=class_row(Decision)) as cursor:
        return cursor.execute(READ_DECISIONS, [decision, symbol, *_ends(interval)]).fetchall()


def minutes(connection: psycopg.Connection, symbol: str, interval: Interval) -> list[MinutePrices]:
    """Return the symbol's one-minute candles in the interval, in order."""
    return [MinutePrices(*row) for row in connection.execute(MINUTES, [symbol, *_ends(interval)])]


def covered_until(connection: psycopg.Connection, symbol: str, day: date, days: int) -> datetime:
    """Return up to when (UTC) the minutes of the day and the `days` after it have no hole."""
    until = day_interval(day).start
    for fetched_day, fetched_until in connection.execute(COVERED_UNTIL, [symbol, day, days + 1]):
        if day_interval(fetched_day).start != until:
            break
        until = fetched_until
    return until


def hours_of(day: date) -> list[datetime]:
    """Return the starts of the day's hours."""
    return [day_interval(day).start + HOUR * n for n in range(24)]


def _ends(interval: Interval) -> tuple[datetime, datetime]:
    return interval.start, interval.end
