"""Measures the facts of `health`, each with a deadline: what cannot be asked is Unknown, with why.

What is allowed belongs in `checks`.
"""

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from datetime import date, datetime, timedelta
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row

from trading_pipelines.alerts import endpoints, failures, ledger
from trading_pipelines.alerts.kinds import KINDS
from trading_pipelines.candles import coverage, due, rate_limit
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database import housekeeping
from trading_pipelines.database.connection import (
    DatabaseError,
    database_urls,
    newest_schema,
    probe_database,
    schema_of,
    within_deadline,
)
from trading_pipelines.live import state as live_state
from trading_pipelines.monitoring import reconciliation
from trading_pipelines.monitoring.daemons import has_dagsters_tables
from trading_pipelines.monitoring.facts import (
    DAGSTERS,
    NOT_ASKED,
    AlertFacts,
    Facts,
    FailedPartition,
    Orchestration,
    Sizes,
    Unknown,
    WaitingAlerts,
)
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.errors import SettingsError
from trading_pipelines.settings.last_good import RefusedSettings, read_settings
from trading_pipelines.settings.strategy import AlertSettings, HealthSettings, StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.catalogue import SIGNALS, VOLATILITY_MODEL
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.left_failed import FAILING

T = TypeVar("T")

LABELS = """
SELECT symbols.symbol, (SELECT hour + interval '1 hour'
    FROM trading_pipelines.regime_labels AS label
    WHERE label.symbol = symbols.symbol ORDER BY hour DESC LIMIT 1)
FROM unnest(%s::text[]) AS symbols (symbol)
"""
FILLED = """
SELECT max(changed_at) FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND symbol = ANY(%s) AND day = ANY(%s)
"""
OLDER_FILLED = """
SELECT max(changed_at) FROM (
    SELECT changed_at FROM trading_pipelines.candle_coverage
    WHERE symbol = ANY(%(symbols)s) AND day < %(before)s
    UNION ALL
    SELECT changed_at FROM trading_pipelines.signal_coverage WHERE day < %(before)s
) AS older
"""
# A replay counts anew: from its first attempt or, before that, from when it may be attempted.
WAITING = """
SELECT kind, count(*) AS count, min(CASE WHEN attempts = 0 THEN next_at ELSE coalesce(
    (SELECT max(started_at) FROM trading_pipelines.alert_attempts
     WHERE delivery_id = waiting.id AND number = 1), created_at) END) AS since
FROM trading_pipelines.alert_deliveries AS waiting
WHERE state IN ('pending', 'retrying') AND kind = ANY(%s) GROUP BY kind ORDER BY kind
"""
FAILED = f"""
SELECT asset, symbol, day, failures, left_failed, error
{FAILING} AND (left_failed OR failures >= %(failures)s) ORDER BY asset, symbol, day
"""


EVERYTHING = frozenset(field.name for field in fields(Facts))
# None of these needs a connection to the market database.
ELSEWHERE = DAGSTERS | {"free_bytes", "refused_settings"}


def measure(
    environment: Environment,
    settings: StrategySettings,
    orchestration: Orchestration | Unknown,
    now: datetime,
    facts: Collection[str] = EVERYTHING,
) -> Facts:
    """Return the named facts at `now` (UTC); the others are not asked for.

    Raises nothing: what fails is Unknown, and so is everything when a probe's deadline is over.
    """

    def measured(market: _Asking, dagster: _Asking) -> Facts:
        return _facts(environment, settings, orchestration, now, market, dagster, facts)

    def ask() -> Facts:
        with _both(environment) as (market, dagster):
            return measured(market, dagster)

    silent = _Asking(None)
    if ELSEWHERE.issuperset(facts):
        return measured(silent, silent)
    try:
        return within_deadline(ask)
    except DatabaseError as error:
        silent.lost = str(error)
        return measured(silent, silent)


class _Asking:
    """One database: a question that fails is Unknown, and a lost connection is asked no more."""

    def __init__(self, connection: psycopg.Connection | None, reason: str = "") -> None:
        self._connection = connection
        self.lost = reason

    def ask(self, question: Callable[[psycopg.Connection], T]) -> T | Unknown:
        if self.lost or self._connection is None:
            return Unknown("see database")
        try:
            return question(self._connection)
        except psycopg.Error as error:
            reason = f"{type(error).__name__}: {_first_line(str(error))}"
            # Each further question of a silent server would cost the whole time-out.
            if isinstance(error, psycopg.OperationalError):
                self.lost = reason
            return Unknown(reason)


@contextmanager
def _both(environment: Environment) -> Iterator[tuple[_Asking, _Asking]]:
    urls = database_urls(environment)
    # A server that is silent costs its time-out once.
    with (
        _asking(urls.market) as market,
        nullcontext(market) if market.lost else _asking(urls.dagster) as dagster,
    ):
        yield market, dagster


@contextmanager
def _asking(url: str) -> Iterator[_Asking]:
    try:
        with probe_database(url) as connection:
            yield _Asking(connection)
            return
    except (DatabaseError, psycopg.Error) as error:
        lost = _Asking(None, " ".join(str(error).split()))
    yield lost


def _facts(
    environment: Environment,
    settings: StrategySettings,
    orchestration: Orchestration | Unknown,
    now: datetime,
    market: _Asking,
    dagster: _Asking,
    names: Collection[str],
) -> Facts:
    def of(name: str, question: Callable[[psycopg.Connection], T]) -> T | Unknown:
        return market.ask(question) if name in names else NOT_ASKED

    def of_dagster(name: str) -> Any:  # noqa: ANN401 - each its own
        answer = orchestration if name in names else NOT_ASKED
        return answer if isinstance(answer, Unknown) else getattr(answer, name)

    days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
    symbols = settings.symbols
    schema = of("unusable", schema_of)
    free = None if environment.database_url else _free(environment)
    return Facts(
        daemons=of_dagster("daemons"),
        schedules=of_dagster("schedules"),
        sensors=of_dagster("sensors"),
        held_slots=of_dagster("held_slots"),
        days=of("days", lambda c: coverage.read(c, symbols, days)),
        live=of("live", live_state.read),
        old_gaps=of(
            "old_gaps",
            lambda c: signal_coverage.gaps_before_look_back(
                c, symbols, settings.data.start_date, days
            ),
        ),
        half_made=of("half_made", lambda c: list(_half_made(c, settings, days[0]))),
        older_filled_at=of(
            "older_filled_at",
            lambda c: _moment(c, OLDER_FILLED, {"symbols": symbols, "before": days[0]}),
        ),
        filled_at=of("filled_at", lambda c: _moment(c, FILLED, [symbols, days[:-1]])),
        labels=of("labels", lambda c: dict(c.execute(LABELS, [symbols]).fetchall())),
        model=of("model", lambda c: _model(c, settings, days, now)),
        alerts=of("alerts", lambda c: _alerts(c, settings.alerts, now)),
        compared=of("compared", reconciliation.read),
        failed=of("failed", lambda c: _failed(c, symbols, settings.alerts)),
        sizes=_sizes(market, dagster, now) if "sizes" in names else NOT_ASKED,
        clock=of("clock", lambda c: rate_limit.read_clock(c, environment.upbit_base_url)),
        refused_settings=_refused(environment) if "refused_settings" in names else NOT_ASKED,
        free_bytes=free if "free_bytes" in names else NOT_ASKED,
        # Asked last: a connection may be lost on the way.
        unusable=_unusable(schema, market, dagster) if "unusable" in names else NOT_ASKED,
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _moment(
    connection: psycopg.Connection,
    query: LiteralString,
    arguments: Sequence[object] | Mapping[str, object] = (),
) -> datetime | None:
    row = connection.execute(query, arguments).fetchone()
    return row[0] if row else None


def missing_for_a_start(environment: Environment) -> list[str]:
    """Return what `db upgrade` has still to do in the two databases, or why they can't be asked.

    Raises nothing, and waits no longer than a probe's deadline.
    """

    def ask() -> list[str]:
        with _both(environment) as (market, dagster):
            problems = _unusable(market.ask(schema_of), market, dagster)
            # They are created after our schema.
            if not problems and not dagster.ask(has_dagsters_tables):
                problems.append("Dagster's storage has no tables")
            return problems

    try:
        return within_deadline(ask)
    except DatabaseError as error:
        return [str(error)]


def _unusable(schema: str | Unknown | None, market: _Asking, dagster: _Asking) -> list[str]:
    problems = []
    newest = newest_schema()
    if market.lost:
        problems.append(market.lost)
    elif isinstance(schema, Unknown) or schema is None:
        problems.append(f"there is no schema, {newest} is the newest")
    elif schema != newest:
        problems.append(f"the schema is at {schema}, {newest} is the newest")
    if dagster.lost and dagster is not market:
        problems.append(f"Dagster's storage: {dagster.lost}")
    return problems


def model_day(settings: HealthSettings, now: datetime) -> date:
    """Return the last closed UTC day whose model should be there at `now` (UTC)."""
    late = timedelta(seconds=settings.late_after_seconds)
    return (now - VOLATILITY_MODEL.settles - late).date() - DAY


def _model(
    connection: psycopg.Connection,
    settings: StrategySettings,
    days: Collection[date],
    now: datetime,
) -> SignalCoverage | None:
    day = model_day(settings.health, now)
    if day not in days:
        return None
    return signal_coverage.read(connection, VOLATILITY_MODEL, [], [day], settings)[0]


def _half_made(
    connection: psycopg.Connection, settings: StrategySettings, before: date
) -> Iterator[tuple[str, str, date]]:
    start = settings.data.start_date
    for day in coverage.half_made(connection, settings.symbols, start, before):
        yield "candles", day.symbol, day.day
    for signal in SIGNALS:
        partitions = signal_coverage.half_made(connection, signal, start, before, settings)
        for partition in partitions:
            if signals_due.is_ready(partition, signal):
                yield signal.asset, partition.symbol, partition.day


def _alerts(connection: psycopg.Connection, settings: AlertSettings, now: datetime) -> AlertFacts:
    on = [kind for kind in KINDS if settings.is_on(kind)]
    with connection.cursor(row_factory=class_row(WaitingAlerts)) as cursor:
        waiting = cursor.execute(WAITING, [on]).fetchall()
    oldest = now - DAY * settings.look_back_days
    not_entered = failures.not_entered(connection, oldest, now)
    counts = ledger.counts(connection)
    return AlertFacts(
        waiting,
        [WaitingAlerts(kind, *rows) for kind, rows in not_entered.items() if kind in on],
        {kind: states["dead"] for kind, states in counts.items() if states["dead"]},
        ledger.last_delivered(connection),
        list(endpoints.in_trouble(connection).values()),
    )


def _failed(
    connection: psycopg.Connection, symbols: Sequence[str], settings: AlertSettings
) -> list[FailedPartition]:
    arguments = {"symbols": list(symbols), "failures": settings.failures_before_alert}
    with connection.cursor(row_factory=class_row(FailedPartition)) as cursor:
        return cursor.execute(FAILED, arguments).fetchall()


def _sizes(market: _Asking, dagster: _Asking, now: datetime) -> Sizes | Unknown:
    market_bytes = market.ask(housekeeping.database_bytes)
    dagster_bytes = dagster.ask(housekeeping.database_bytes)
    if isinstance(market_bytes, Unknown):
        return market_bytes
    if isinstance(dagster_bytes, Unknown):
        return dagster_bytes
    growth = market.ask(lambda c: housekeeping.growth(c, market_bytes + dagster_bytes, now))
    if isinstance(growth, Unknown):
        return growth
    return Sizes(market_bytes, dagster_bytes, growth)


def _refused(environment: Environment) -> RefusedSettings | Unknown | None:
    try:
        return read_settings(environment).refused
    except SettingsError as error:
        return Unknown("; ".join(str(error).splitlines()))


def _free(environment: Environment) -> int:
    """Return the bytes that are free where the home is, or will be."""
    home = environment.trading_pipelines_home
    place = next(path for path in (home, *home.parents) if path.exists())
    return shutil.disk_usage(place).free
