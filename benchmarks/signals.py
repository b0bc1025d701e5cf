"""How fast signals are computed, on a real embedded Postgres, beside what a plain script would do.

Measured: seconds of `compute()`, which reads the inputs, computes, replaces the rows that changed
and records it, in one transaction a symbol (fsync on). First, a year of regime labels of five
symbols; then everything of a 30-day volatility backfill of five symbols, each day by a model of 30
days before it. Beside them plain Python that says the same: regimes by slices of the last 200
closes, realised variance by a loop over the minutes, both alone and read and written like the old
bot did, a row and a commit at a time. That they agree is asserted. And what a schedule's tick asks.

Not measured: Dagster, downloads, imports, and how good the forecasts are (benchmarks/volatility.py
has the last). The hours are recorded where the recording is there, the minutes generated.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psycopg
import typer
from rich.console import Console
from rich.table import Table

from trading_pipelines.candles.resample import resample
from trading_pipelines.candles.windows import DAY, MINUTE, Interval, day_interval
from trading_pipelines.database.connection import connect, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import StrategySettings, VolatilitySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import tables
from trading_pipelines.signals.catalogue import (
    GARCH_BASELINE,
    GARCH_TRAINING_DAYS,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    VOLATILITY_SCORE,
    Signal,
    window_days,
)
from trading_pipelines.signals.regimes.labels import Close, label_hours
from trading_pipelines.signals.registry import compute
from trading_pipelines.signals.volatility import realized
from trading_pipelines.simulators.upbit.market import EPOCH, GeneratedMarket

RECORDING = Path(__file__).parents[2] / "shared/data/upbit_krw5_1h_20220101_20250630.parquet"
SETTINGS = StrategySettings(volatility=VolatilitySettings(training_days=30))
SYMBOLS = SETTINGS.symbols
YEAR = [date(2024, 7, 1) + DAY * n for n in range(365)]
BACKFILL = [date(2025, 12, 1) + DAY * n for n in range(30)]
TRAINED_ON = VOLATILITY_MODEL.inputs(SETTINGS)["realized_volatility"] + 1  # days
MEASURED = [BACKFILL[0] - DAY * n for n in range(TRAINED_ON, 0, -1)] + BACKFILL
LOOP = "plain loop over minutes"
LOOP_WRITTEN = f"{LOOP}, a row and a commit at a time"
COMMITTED_ROWS = 1500
TARGET = 60.0
PRICES = ["open", "high", "low", "close", "volume"]
COPY_HOURS = """
COPY trading_pipelines.candles_1h (symbol, timestamp, open_price, high_price, low_price,
    close_price, volume, minutes) FROM STDIN (FORMAT csv)
"""
COPY_MINUTES = """
COPY public.market_data (symbol, timestamp, open_price, high_price, low_price, close_price,
    volume, interval) FROM STDIN (FORMAT csv)
"""
COVER = """
INSERT INTO trading_pipelines.candle_coverage
    (symbol, interval, day, status, fetched_until, confirmed_until)
SELECT symbol, %s, day, 'complete', until, until
FROM unnest(%s::text[]) AS symbol, unnest(%s::date[]) AS day,
    LATERAL (SELECT (day + 1)::timestamp AT TIME ZONE 'UTC' AS until)
ON CONFLICT DO NOTHING
"""
MINUTES = """
SELECT timestamp, open_price, close_price FROM public.market_data
WHERE symbol = %s AND interval = '1m' AND timestamp >= %s AND timestamp < %s ORDER BY timestamp
"""
LABELS = "SELECT hour, label FROM trading_pipelines.regime_labels WHERE symbol = %s"
VARIANCES = """
SELECT hour, realized_variance FROM trading_pipelines.realized_volatility
WHERE symbol = %s AND estimator = '5m_returns' AND realized_variance IS NOT NULL
"""
OLD_LABEL = """
INSERT INTO scratch_labels (detected_at, regime, ma50, ma200, diff_pct, coin_symbol)
VALUES (%s, %s, %s, %s, %s, %s)
"""
OLD_VARIANCE = "INSERT INTO scratch_variances VALUES (%s, %s)"
SCRATCH = """
CREATE TABLE scratch_labels (LIKE public.regime_history INCLUDING ALL);
CREATE TABLE scratch_variances (hour timestamptz PRIMARY KEY, variance double precision)
"""
PlainLabel = tuple[datetime, str, Decimal | None, Decimal | None, Decimal | None, str]


class Figures(NamedTuple):
    """What one way of computing came to; `plain` is what it is compared with."""

    label: str
    rows: int
    seconds: float
    plain: str = ""

    @property
    def speed(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


def timed(label: str, function: Callable[[], int], plain: str = "") -> Figures:
    """Measure a function that returns how many rows it came to."""
    started = time.perf_counter()
    rows = function()
    return Figures(label, rows, time.perf_counter() - started, plain)


def computed(connection: psycopg.Connection, signal: Signal, days: Sequence[date]) -> int:
    """Compute the partitions of all symbols as a run would; return their rows."""
    partitions = compute(connection, signal, SYMBOLS, days, SETTINGS, "benchmark")
    assert not (failed := [partition for partition in partitions if partition.error]), failed[0]
    return sum(partition.figures["rows"] for partition in partitions)


def store(connection: psycopg.Connection, copy_sql: str, candles: pd.DataFrame) -> None:
    """Write candles as they are."""
    with connection.cursor().copy(copy_sql) as copy:
        copy.write(candles.to_csv(index=False, header=False))


def cover(connection: psycopg.Connection, interval: str, days: Sequence[date]) -> None:
    """Record the days as downloaded."""
    connection.execute(COVER, [interval, SYMBOLS, list(days)])


def generated(market: GeneratedMarket, symbol: str, days: Sequence[date]) -> pd.DataFrame:
    """Return a symbol's generated minutes of the days."""
    first, end = day_interval(days[0]).start, day_interval(days[-1]).end
    candles = market.candles(symbol, *((at - EPOCH) // MINUTE for at in (first, end)))
    times = pd.to_datetime(candles.minute * 60, unit="s", utc=True)
    prices = {name: getattr(candles, name) for name in PRICES}
    return pd.DataFrame({"symbol": symbol, "timestamp_utc": times} | prices)


def hours_of_a_year(days: Sequence[date]) -> pd.DataFrame:
    """Return hourly candles of the days: the recording's, or a random walk's."""
    first, end = day_interval(days[0]).start, day_interval(days[-1]).end
    if RECORDING.exists():
        hours = pd.read_parquet(RECORDING)
        return hours[(hours["timestamp_utc"] >= first) & (hours["timestamp_utc"] < end)]
    times = pd.date_range(first, end, freq="h", inclusive="left")
    random = np.random.default_rng(7)
    walks = {s: 1000 * np.exp(np.cumsum(random.normal(0, 0.006, len(times)))) for s in SYMBOLS}
    walk = pd.DataFrame(walks, index=times).round(2).rename_axis("timestamp_utc")
    hours = walk.melt(var_name="symbol", value_name="close", ignore_index=False).reset_index()
    return hours.assign(open=hours["close"], high=hours["close"], low=hours["close"], volume=1.0)


def plain_labels(symbol: str, closes: Sequence[Close]) -> list[PlainLabel]:
    """Label each close as a plain script does: by a slice of the closes up to it."""
    labels: list[PlainLabel] = []
    for n, close in enumerate(closes):
        window = [earlier.price for earlier in closes[max(0, n - 199) : n + 1]]
        if len(window) < 200:
            labels.append((close.hour, "UNKNOWN", None, None, None, symbol))
            continue
        fast, slow = sum(window[-50:]) / Decimal(50), sum(window) / Decimal(200)
        diff = (fast - slow) / slow * 100
        label = "BULL" if diff > 2 else "BEAR" if diff < -2 else "SIDEWAYS"
        labels.append((close.hour, label, fast, slow, diff, symbol))
    return labels


def plain_variances(
    minutes: Sequence[tuple[datetime, Decimal, Decimal]], hours: Sequence[datetime]
) -> dict[datetime, float]:
    """Return the realised variance of each hour as a plain script does: minute by minute."""
    candles = {at: (float(opened), float(close)) for at, opened, close in minutes}
    last, variances = None, {}
    for hour in hours:
        times = [hour + MINUTE * n for n in range(60)]
        if not (traded := [at for at in times if at in candles]):
            last = None  # an outage: the step over it is no hour's
            continue
        last = candles[traded[0]][0] if last is None else last
        total = 0.0
        for n in range(0, 60, 5):
            price = last
            for at in times[n : n + 5]:
                price = candles[at][1] if at in candles else price
            total += math.log(price / last) ** 2
            last = price
        variances[hour] = total
    return variances


def regimes(connection: psycopg.Connection) -> list[Figures]:
    """Measure a year of labels, ours and plain."""
    reach = [YEAR[0] - DAY * n for n in range(window_days(SETTINGS), 0, -1)]
    hours = hours_of_a_year([*reach, *YEAR])
    store(connection, COPY_HOURS, hours[["symbol", "timestamp_utc", *PRICES]].assign(minutes=60))
    cover(connection, "1h", [*reach, *YEAR])
    interval = Interval(day_interval(reach[0]).start, day_interval(YEAR[-1]).end)
    closes = {symbol: tables.closes(connection, symbol, interval) for symbol in SYMBOLS}
    labelled_hours = [hour for day in YEAR for hour in tables.hours_of(day)]
    plain: dict[str, list[PlainLabel]] = {}

    def arithmetic() -> int:
        return sum(len(label_hours(closes[s], labelled_hours, SETTINGS)) for s in SYMBOLS)

    def slices() -> int:
        plain.update({symbol: plain_labels(symbol, closes[symbol]) for symbol in SYMBOLS})
        return sum(map(len, plain.values()))

    def row_by_row() -> int:
        read = tables.closes(connection, SYMBOLS[0], interval)[:COMMITTED_ROWS]
        for row in plain_labels(SYMBOLS[0], read):
            connection.execute(OLD_LABEL, row)  # its own commit: the connection is autocommit
        return len(read)

    title, committed = "regime labels, a year", "plain labels, a row and a commit at a time"
    ways = [
        timed(f"{title}: compute()", partial(computed, connection, REGIME_LABELS, YEAR),
              committed),
        timed(committed, row_by_row),
        timed(f"{title}: arithmetic alone", arithmetic, "plain slices of 200 closes"),
        timed("plain slices of 200 closes", slices),
    ]  # fmt: skip
    for symbol in SYMBOLS:
        ours: dict[datetime, str] = dict(connection.execute(LABELS, [symbol]).fetchall())
        theirs = {hour: label for hour, label, *_ in plain[symbol] if hour in ours}
        assert theirs == {hour: ours[hour] for hour in theirs}, symbol
    return ways


def store_minutes(connection: psycopg.Connection) -> None:
    """Store what GARCH's first fit needs and all after it, and its hours."""
    market = GeneratedMarket(SYMBOLS)
    days = [BACKFILL[0] - DAY * n for n in range(GARCH_TRAINING_DAYS + 1, 0, -1)] + BACKFILL
    for symbol in SYMBOLS:
        candles = generated(market, symbol, days)
        store(connection, COPY_MINUTES, candles.assign(interval="1m"))
    cover(connection, "1m", days)
    resample(connection, SYMBOLS, days, "benchmark")
    connection.execute("ANALYZE")


def backfill(connection: psycopg.Connection) -> list[Figures]:
    """Measure a 30-day backfill of everything about volatility."""
    return [
        timed(f"{signal.asset}, {len(days)} days: compute()",
              partial(computed, connection, signal, days),
              LOOP_WRITTEN if signal is REALIZED_VOLATILITY else "")
        for signal, days in (
            (REALIZED_VOLATILITY, MEASURED),
            (VOLATILITY_MODEL, [BACKFILL[0] - DAY, *BACKFILL]),
            (GARCH_BASELINE, BACKFILL),
            (VOLATILITY_FORECAST, BACKFILL),
            (VOLATILITY_SCORE, BACKFILL),
            # What a day costs, and an hour: the open day is forecast anew with each.
            (VOLATILITY_MODEL, BACKFILL[-1:]),
            (GARCH_BASELINE, BACKFILL[-1:]),
            (VOLATILITY_FORECAST, BACKFILL[-1:]),
        )
    ]  # fmt: skip


def variances(connection: psycopg.Connection) -> list[Figures]:
    """Measure the arithmetic of realised variance alone, and the plain way."""
    interval = Interval(day_interval(MEASURED[0]).start, day_interval(MEASURED[-1]).end)
    hours = [hour for day in MEASURED for hour in tables.hours_of(day)]
    bars = {symbol: tables.bars(connection, symbol, interval) for symbol in SYMBOLS}
    plain: dict[str, dict[datetime, float]] = {}

    def minutes(symbol: str) -> list[Any]:
        return connection.execute(MINUTES, [symbol, interval.start, interval.end]).fetchall()

    def arithmetic() -> int:
        return sum(len(realized.realized_variance(bars[s], interval.end)) for s in SYMBOLS)

    def loop() -> int:
        plain.update({symbol: plain_variances(read[symbol], hours) for symbol in SYMBOLS})
        return sum(map(len, plain.values()))

    def row_by_row() -> int:
        rows = plain_variances(minutes(SYMBOLS[0]), hours)
        for row in rows.items():
            connection.execute(OLD_VARIANCE, row)
        return len(rows)

    read = {symbol: minutes(symbol) for symbol in SYMBOLS}
    ways = [
        timed(LOOP_WRITTEN, row_by_row),
        timed("realised variance: arithmetic alone", arithmetic, LOOP),
        timed(LOOP, loop),
    ]
    for symbol in SYMBOLS:
        for hour, variance in connection.execute(VARIANCES, [symbol]).fetchall():
            assert math.isclose(variance, plain[symbol][hour], rel_tol=1e-9), (symbol, hour)
    return ways


def questions(connection: psycopg.Connection) -> list[Figures]:
    """Measure what a tick asks of each signal: 30 days of each symbol, with years before them."""
    for interval in ("1m", "1h"):
        cover(connection, interval, [BACKFILL[-1] - DAY * n for n in range(4 * 365)])
    connection.execute("ANALYZE")

    def asked(signal: Signal) -> int:
        return len(signal_coverage.read(connection, signal, SYMBOLS, BACKFILL, SETTINGS))

    return [
        timed(signal.asset, partial(asked, signal))
        for signal in (
            REGIME_LABELS,
            REALIZED_VOLATILITY,
            VOLATILITY_MODEL,
            VOLATILITY_FORECAST,
            GARCH_BASELINE,
            VOLATILITY_SCORE,
        )
    ]


def main() -> None:
    """Measure, and print rows, seconds and ratios."""
    load = os.getloadavg()[0]
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with ExitStack() as stack, out.status("measuring"):
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp")))
        home.chmod(0o755)  # under root the server runs as `nobody`
        server = EmbeddedServer(home)
        stack.callback(server.stop)
        server.start()
        upgrade_database(server.url("postgres"))
        connection = stack.enter_context(connect(server.url("postgres")))
        connection.execute(SCRATCH)
        labels = regimes(connection)
        store_minutes(connection)
        ours = backfill(connection)
        ways = [*labels, *ours, *variances(connection)]
        questions_asked = questions(connection)
    by_name = {way.label: way for way in ways}
    table = Table(
        *("", "rows", "s", "rows/s", "to the plain way"),
        title=f"{len(SYMBOLS)} symbols; {os.cpu_count()} cores, load before {load:.1f}",
    )
    for way in ways:
        ratio = f"{way.speed / by_name[way.plain].speed:.1f} x" if way.plain else ""
        table.add_row(way.label, f"{way.rows:,}", f"{way.seconds:.2f}", f"{way.speed:,.0f}", ratio)
    out.print(table)
    milliseconds = ", ".join(
        f"{question.label} {question.seconds * 1000:.0f}" for question in questions_asked
    )
    out.print(
        f"a tick's question, {len(BACKFILL)} days of each symbol where four years of candles are "
        f"covered, ms: {milliseconds}"
    )
    total = sum(way.seconds for way in ours)
    met = "met" if total < TARGET else "MISSED"
    out.print(f"target, a 30-day volatility backfill under {TARGET:.0f} s: {total:.1f} s, {met}")


if __name__ == "__main__":
    typer.run(main)
