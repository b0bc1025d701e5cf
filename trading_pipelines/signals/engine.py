"""Computing partitions of signals: read the inputs, compute, replace the rows, record the coverage.

One transaction a symbol, on one snapshot, so that the inputs on record are those that were read. A
symbol that fails is recorded and leaves the others alone. The arithmetic belongs in the signals'
folders, whether a partition is due in `due`.
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
    """A partition's rows as they should be, the times they replace, and figures to show."""

    rows: Sequence[SignalRow]
    times: Sequence[date]
    figures: Mapping[str, Any]
    inputs_from: date | None = None
    """The first UTC day that they depend on, where that is not the declared one."""


ComputeFunction = Callable[["ComputeRun", str, Sequence[SignalCoverage]], dict[date, PartitionRows]]
AfterReplacing = Callable[[psycopg.Connection, str, Mapping[date, PartitionRows]], str | None]


@dataclass(frozen=True)
class Computation:
    """How a signal's partitions are computed, and the table that holds their rows."""

    function: ComputeFunction
    table: tables.Table
    after: AfterReplacing | None = None
    """Called in the same transaction once the rows are replaced; returns a warning."""


@dataclass(frozen=True)
class ComputeRun:
    """What all partitions of one call share."""

    connection: psycopg.Connection
    signal: Signal
    computation: Computation
    settings: StrategySettings
    run_id: str


@dataclass(frozen=True)
class ComputedPartition:
    """One partition after a run: what changed in it, and its figures; `error` when it failed."""

    symbol: str
    day: date
    changed: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    warning: str | None = None
    """Of a partition that is complete all the same."""
    rows_digest: str | None = None
    """Of its rows; None where it was not computed."""


def compute_partitions(
    connection: psycopg.Connection,
    signal: Signal,
    computation: Computation,
    symbols: Sequence[str],
    days: Sequence[date],
    settings: StrategySettings,
    run_id: str,
) -> list[ComputedPartition]:
    """Bring the partitions up to date with their inputs; return one entry each.

    `connection` is autocommit. A day whose inputs are missing fails and says which; an open day of
    an asset that waits for the close is passed over. Raises psycopg.Error without a database.
    """
    run = ComputeRun(connection, signal, computation, settings, run_id)
    signal_coverage.keep_settings(connection, signal, settings)
    partitions: list[ComputedPartition] = []
    for symbol in [POOLED] if signal.pooled else symbols:
        partitions += _attempt(run, symbol, days)
    return partitions


def _attempt(run: ComputeRun, symbol: str, days: Sequence[date]) -> list[ComputedPartition]:
    # Before the attempt: inputs that change while it is at work make it due again.
    coverage = signal_coverage.read(run.connection, run.signal, [symbol], days[:1], run.settings)[0]
    try:
        return _compute_symbol(run, symbol, days)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a day is recorded with it
        if len(days) > 1:
            return [partition for day in days for partition in _attempt(run, symbol, [day])]
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        signal_coverage.record_failure(
            run.connection, coverage, message, run.run_id, run.settings.healing,
            # A full disk or a deadlock is the machine's failure: it spends none of its attempts.
            is_its_own=not isinstance(error, psycopg.OperationalError),
        )  # fmt: skip
        return [ComputedPartition(symbol, days[0], error=message)]


def _compute_symbol(run: ComputeRun, symbol: str, days: Sequence[date]) -> list[ComputedPartition]:
    signal = run.signal
    computation = run.computation
    with _snapshot(run.connection, f"{signal.asset} {symbol}"):
        coverages = signal_coverage.read(run.connection, signal, [symbol], days, run.settings)
        ready = [coverage for coverage in coverages if due.is_ready(coverage, signal)]
        rows_of = computation.function(run, symbol, ready) if ready else {}
        changed = tables.replace(
            run.connection,
            computation.table,
            symbol,
            [time for content in rows_of.values() for time in content.times],
            [row for content in rows_of.values() for row in content.rows],
        )
        warning = None
        if computation.after is not None:
            warning = computation.after(run.connection, symbol, rows_of)
        partitions = [
            _passed_over(coverage, signal) for coverage in coverages if coverage not in ready
        ]
        for coverage in ready:
            content = rows_of[coverage.day]
            n = len(changed.intersection(content.times))
            rows_digest = tables.rows_digest(
                run.connection, computation.table, symbol, content.times
            )
            signal_coverage.record(
                run.connection,
                signal,
                coverage,
                run.settings,
                run.run_id,
                rows_digest=rows_digest,
                changed=n > 0 or coverage.computed_until is None,
                inputs_from=content.inputs_from,
            )
            figures = {"rows": len(content.rows), "changed": n, "as_of": coverage.until}
            partitions.append(
                ComputedPartition(
                    symbol,
                    coverage.day,
                    n,
                    {**figures, **content.figures},
                    warning=warning,
                    rows_digest=rows_digest,
                )
            )
    return partitions


def _passed_over(coverage: SignalCoverage, signal: Signal) -> ComputedPartition:
    symbol, day = coverage.symbol, coverage.day
    if coverage.until is None or not coverage.has_all_inputs:
        reason = "nothing to compute it from: materialize what is upstream of it first"
        return ComputedPartition(symbol, day, error=reason)
    assert signal.closed_days_only
    return ComputedPartition(symbol, day, figures={"rows": 0, "status": "the day is open"})


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


def input_interval(
    run: ComputeRun, partitions: Sequence[SignalCoverage], upstream: str
) -> Interval:
    """Return what is read of an input: from as far back as declared to where the inputs reach."""
    untils = [partition.until for partition in partitions if partition.until is not None]
    first = day_interval(min(partition.day for partition in partitions)).start
    return Interval(first - DAY * run.signal.inputs(run.settings)[upstream], max(untils))


def closes_of(day: date) -> list[datetime]:
    """Return the closes (UTC) of the day's 24 hours."""
    return [hour + HOUR for hour in tables.hours_of(day)]


def closed_hours(partition: SignalCoverage) -> list[datetime]:
    """Return the closes (UTC) of the day's hours up to where its inputs reach."""
    assert partition.until is not None
    return [at for at in closes_of(partition.day) if at <= partition.until]


def number_or_none(value: float | None) -> float | None:
    """Return the number as Postgres takes it; None for NaN."""
    return None if value is None or math.isnan(value) else float(value)
