"""Partitions of signals: read what they are computed from, compute, replace their rows, record it.

One transaction a symbol, on one snapshot, so that what is recorded of the inputs is what was read.
A symbol that fails is recorded and leaves the others alone. The arithmetic is next door; whether a
partition is due belongs in `due`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import psycopg

from trading_pipelines.candles.windows import DAY, HOUR, Interval, day_interval
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due, tables
from trading_pipelines.signals.catalogue import POOLED, Signal
from trading_pipelines.signals.coverage import SignalCoverage

SignalRow = tuple[Any, ...]


@dataclass(frozen=True)
class PartitionRows:
    """What a partition comes to: its rows, the times it answers for, and figures to show."""

    rows: Sequence[SignalRow]
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


ComputeFunction = Callable[["ComputeRun", str, Sequence[SignalCoverage]], dict[date, PartitionRows]]
AfterReplacing = Callable[[psycopg.Connection, str, Mapping[date, PartitionRows]], None]


@dataclass(frozen=True)
class Computation:
    """How a signal's partitions are computed, and the table that holds their rows."""

    function: ComputeFunction
    table: tables.Table
    after: AfterReplacing | None = None
    """What else has to follow the rows, in the same transaction."""


@dataclass(frozen=True)
class ComputeRun:
    """What all partitions of one call share."""

    connection: psycopg.Connection
    signal: Signal
    computation: Computation
    settings: StrategySettings
    run_id: str


def compute_partitions(
    connection: psycopg.Connection,
    signal: Signal,
    computation: Computation,
    symbols: Sequence[str],
    days: Sequence[date],
    settings: StrategySettings,
    run_id: str,
) -> list[Partition]:
    """Bring the partitions up to date with their inputs; return one entry each.

    `connection` is autocommit. A day whose inputs are missing fails and says which; an open day of
    an asset that waits for the close is passed over. Raises psycopg.Error without a database.
    """
    run = ComputeRun(connection, signal, computation, settings, run_id)
    found: list[Partition] = []
    for symbol in [POOLED] if signal.pooled else symbols:
        found += _attempt(run, symbol, days)
    return found


def _attempt(run: ComputeRun, symbol: str, days: Sequence[date]) -> list[Partition]:
    # Before the attempt: inputs that change while it is at work make it due again.
    known = signal_coverage.read(run.connection, run.signal, [symbol], days[:1], run.settings)[0]
    try:
        return _compute_symbol(run, symbol, days)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a day is recorded with it
        if len(days) > 1:
            return [partition for day in days for partition in _attempt(run, symbol, [day])]
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        signal_coverage.record_failure(
            run.connection, known, said, run.run_id, run.settings.healing,
            # A full disk or a deadlock is the machine's trouble: it spends no try of the partition.
            is_its_own=not isinstance(error, psycopg.OperationalError),
        )  # fmt: skip
        return [Partition(symbol, days[0], error=said)]


def _compute_symbol(run: ComputeRun, symbol: str, days: Sequence[date]) -> list[Partition]:
    signal = run.signal
    computation = run.computation
    with _snapshot(run.connection, f"{signal.asset} {symbol}"):
        known = signal_coverage.read(run.connection, signal, [symbol], days, run.settings)
        ready = [one for one in known if due.is_ready(one, signal)]
        rows = computation.function(run, symbol, ready) if ready else {}
        changed = tables.replace(
            run.connection,
            computation.table,
            symbol,
            [time for found in rows.values() for time in found.times],
            [row for found in rows.values() for row in found.rows],
        )
        if computation.after is not None:
            computation.after(run.connection, symbol, rows)
        found = [_passed_over(one, signal) for one in known if one not in ready]
        for one in ready:
            mine = rows[one.day]
            n = len(changed.intersection(mine.times))
            signal_coverage.record(
                run.connection, signal, one, run.settings, run.run_id,
                changed=n > 0 or one.computed_until is None, inputs_from=mine.inputs_from,
            )  # fmt: skip
            figures = {"rows": len(mine.rows), "changed": n, "as_of": one.until, **mine.figures}
            found.append(Partition(symbol, one.day, n, figures))
    return found


def _passed_over(known: SignalCoverage, signal: Signal) -> Partition:
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


def input_interval(run: ComputeRun, known: Sequence[SignalCoverage], upstream: str) -> Interval:
    """Return what is read of an input: as far back as is declared, and nothing of afterwards."""
    untils = [one.until for one in known if one.until is not None]
    first = day_interval(min(one.day for one in known)).start
    return Interval(first - DAY * run.signal.inputs(run.settings)[upstream], max(untils))


def closes_of(day: date) -> list[datetime]:
    """Return the closes (UTC) of the day's 24 hours."""
    return [hour + HOUR for hour in tables.hours_of(day)]


def closed_hours(one: SignalCoverage) -> list[datetime]:
    """Return the closes of the day's hours up to where its inputs reach."""
    assert one.until is not None
    return [at for at in closes_of(one.day) if at <= one.until]


def number_or_none(value: float | None) -> float | None:
    """Return the number as Postgres takes it; None for NaN."""
    return None if value is None or math.isnan(value) else float(value)
