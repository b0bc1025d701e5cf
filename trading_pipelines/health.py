"""Whether all is well: what is measured in the databases, and how everything measured is judged.

Measuring changes nothing and starts nothing; judging is a function of what was measured, of the
settings and of a moment. What Dagster knows of itself is measured in `instance`, and only its shape
is here. What can't be measured is not known, and not known is never good.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row

from trading_pipelines import database
from trading_pipelines.alerts import failures, ledger
from trading_pipelines.alerts.kinds import KINDS
from trading_pipelines.candles import coverage, due
from trading_pipelines.candles.coverage import Coverage
from trading_pipelines.candles.due import REFRESHED_EVERY
from trading_pipelines.candles.windows import (
    DAY,
    HOUR,
    contiguous,
    day_interval,
    floor_hour,
    named,
)
from trading_pipelines.database import housekeeping
from trading_pipelines.settings import Environment, StrategySettings
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.due import VOLATILITY_MODEL, Computed

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")

GIGABYTE = 10**9
SHOWN = 5


@dataclass(frozen=True)
class Unknown:
    """Stands where a value would that could not be measured."""

    reason: str


@dataclass(frozen=True)
class Daemon:
    """One of Dagster's required daemons; `healthy` by Dagster's own tolerance. UTC."""

    name: str
    healthy: bool
    last_heartbeat: datetime | None


@dataclass(frozen=True)
class Ticker:
    """A schedule or a sensor that should be on."""

    name: str
    is_on: bool
    next_tick: datetime | None
    """When the tick after the last one is, or was, to come (UTC); None: no daemon has seen it."""
    error: str | None
    """What its last ticks failed with, where all of them did."""


@dataclass(frozen=True)
class Held:
    """A place that a run holds although no process works for it."""

    run_id: str
    what: str
    quiet_since: datetime | None
    """The run's end, or the last that was heard of it (UTC); None: there is no such run."""


@dataclass(frozen=True)
class Orchestration:
    """What Dagster knows of itself."""

    daemons: Sequence[Daemon]
    schedules: Sequence[Ticker]
    sensors: Sequence[Ticker]
    held: Sequence[Held]


@dataclass(frozen=True)
class FailedPartition:
    """A partition whose last tries all failed; without a symbol where it is pooled."""

    asset: str
    symbol: str
    day: date
    failures: int
    left_failed: bool
    error: str | None


@dataclass(frozen=True)
class Waiting:
    """The alerts of a kind that wait; since when (UTC) the oldest could have been delivered."""

    kind: str
    count: int
    since: datetime


@dataclass(frozen=True)
class Alerts:
    """What waits, what was given up of each kind, and when the newest was delivered (UTC)."""

    waiting: Sequence[Waiting]
    not_entered: Sequence[Waiting]
    """Rows of the bot's that nobody has looked at, as where there is nowhere to send to."""
    dead: Mapping[str, int]
    delivered: datetime | None


@dataclass(frozen=True)
class Sizes:
    """Bytes of both databases now; their growth a day, None before there are two measurements."""

    market: int
    dagster: int
    growth: float | None


@dataclass(frozen=True)
class Facts:
    """Everything that is judged."""

    unusable: Sequence[str]
    """What is wrong with the databases themselves."""
    orchestration: Orchestration | Unknown
    days: Sequence[Coverage] | Unknown
    """The candles' coverage of the look-back."""
    forgotten: Sequence[tuple[str, date]] | Unknown
    """(symbol, day)s older than the look-back that lack candles or labels."""
    filled_at: datetime | Unknown | None
    """When candles of a closed day of the look-back last came (UTC)."""
    labels: Mapping[str, datetime | None] | Unknown
    """The newest label's as-of of each symbol."""
    model: Computed | Unknown | None
    """The partition of the last day whose model is due; None: that day is not collected."""
    alerts: Alerts | Unknown
    failed: Sequence[FailedPartition] | Unknown
    sizes: Sizes | Unknown
    free_bytes: int | None
    """Where the home is; None where the database is not there."""


@dataclass(frozen=True)
class Check:
    """One line of the answer; `good` is None where it can't be known."""

    name: str
    good: bool | None
    found: str
    allowed: str
    advice: str


REVISION = "SELECT version_num FROM trading_pipelines.alembic_version"
LABELS = """
SELECT wanted.symbol, (SELECT hour + interval '1 hour' FROM trading_pipelines.regime_labels AS label
    WHERE label.symbol = wanted.symbol ORDER BY hour DESC LIMIT 1)
FROM unnest(%s::text[]) AS wanted (symbol)
"""
FILLED = """
SELECT max(changed_at) FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND symbol = ANY(%s) AND day = ANY(%s)
"""
# A replay starts anew, from the first try or, before it, from the moment it may be tried.
WAITING = """
SELECT kind, count(*) AS count, min(CASE WHEN attempts = 0 THEN next_at ELSE coalesce(
    (SELECT max(started_at) FROM trading_pipelines.alert_attempts
     WHERE delivery_id = waiting.id AND number = 1), created_at) END) AS since
FROM trading_pipelines.alert_deliveries AS waiting
WHERE state IN ('pending', 'retrying') AND kind = ANY(%s) GROUP BY kind ORDER BY kind
"""
FAILED = f"""
SELECT asset, symbol, day, failures, left_failed, error
{failures.FAILING} AND (left_failed OR failures >= %(failures)s) ORDER BY asset, symbol, day
"""


def measure(
    environment: Environment,
    settings: StrategySettings,
    orchestration: Orchestration | Unknown,
    now: datetime,
) -> Facts:
    """Return everything that is judged, at `now` (UTC). Raises nothing: what fails is Unknown.

    Waits no longer than a probe's deadline, after which nothing is known.
    """

    def facts(market: _Asking, dagster: _Asking) -> Facts:
        return _facts(environment, settings, orchestration, now, market, dagster)

    def ask() -> Facts:
        urls = database.urls(environment)
        # A server that is silent costs its time-out once.
        with (
            _asking(urls.market) as market,
            nullcontext(market) if market.lost else _asking(urls.dagster) as dagster,
        ):
            return facts(market, dagster)

    try:
        return database.within_deadline(ask)
    except database.DatabaseError as error:
        silent = _Asking(None, str(error))
        return facts(silent, silent)


class _Asking:
    """One database; what can't be asked is Unknown, and a connection that is lost is not tried."""

    def __init__(self, connection: psycopg.Connection | None, reason: str = "") -> None:
        self._connection = connection
        self.lost = reason

    def ask(self, question: Callable[[psycopg.Connection], T]) -> T | Unknown:
        if self.lost or self._connection is None:
            return Unknown("see database")
        try:
            return question(self._connection)
        except psycopg.Error as error:
            said = f"{type(error).__name__}: {_first_line(str(error))}"
            # Of a server that is silent each question would cost the whole time-out.
            if isinstance(error, psycopg.OperationalError):
                self.lost = said
            return Unknown(said)


@contextmanager
def _asking(url: str) -> Iterator[_Asking]:
    try:
        with database.probe(url) as connection:
            yield _Asking(connection)
            return
    except (database.DatabaseError, psycopg.Error) as error:
        lost = _Asking(None, " ".join(str(error).split()))
    yield lost


def _facts(
    environment: Environment,
    settings: StrategySettings,
    orchestration: Orchestration | Unknown,
    now: datetime,
    market: _Asking,
    dagster: _Asking,
) -> Facts:
    days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
    symbols = settings.symbols
    revision = market.ask(lambda c: c.execute(REVISION).fetchone())
    return Facts(
        orchestration=orchestration,
        days=market.ask(lambda c: coverage.read(c, symbols, days)),
        forgotten=market.ask(
            lambda c: signals_due.forgotten(c, symbols, settings.data.start_date, days[0])
        ),
        filled_at=market.ask(lambda c: _moment(c, FILLED, [symbols, days[:-1]])),
        labels=market.ask(lambda c: dict(c.execute(LABELS, [symbols]).fetchall())),
        model=market.ask(lambda c: _model(c, settings, days, now)),
        alerts=market.ask(lambda c: _alerts(c, settings, now)),
        failed=market.ask(lambda c: _failed(c, settings)),
        sizes=_sizes(market, dagster, now),
        free_bytes=None if environment.database_url else _free(environment),
        # The last: a connection may be lost on the way.
        unusable=_unusable(revision, market, dagster),
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _moment(
    connection: psycopg.Connection, query: LiteralString, arguments: Sequence[object] = ()
) -> datetime | None:
    row = connection.execute(query, arguments).fetchone()
    return row[0] if row else None


def _unusable(
    revision: tuple[str] | Unknown | None, market: _Asking, dagster: _Asking
) -> list[str]:
    problems = []
    newest = database.newest_schema()
    if market.lost:
        problems.append(market.lost)
    elif isinstance(revision, Unknown) or revision is None:
        problems.append(f"there is no schema, {newest} is the newest")
    elif revision[0] != newest:
        problems.append(f"the schema is at {revision[0]}, {newest} is the newest")
    if dagster.lost and dagster is not market:
        problems.append(f"Dagster's storage: {dagster.lost}")
    return problems


def _model_day(settings: StrategySettings, now: datetime) -> date:
    """Return the last closed day whose model had its time to be fitted."""
    late = timedelta(seconds=settings.health.late_after_seconds)
    return (now - VOLATILITY_MODEL.settles - late).date() - DAY


def _model(
    connection: psycopg.Connection,
    settings: StrategySettings,
    days: Collection[date],
    now: datetime,
) -> Computed | None:
    day = _model_day(settings, now)
    if day not in days:
        return None
    return signals_due.read(connection, VOLATILITY_MODEL, [], [day], settings)[0]


def _alerts(connection: psycopg.Connection, settings: StrategySettings, now: datetime) -> Alerts:
    on = [kind for kind in KINDS if getattr(settings.alerts, kind)]
    with connection.cursor(row_factory=class_row(Waiting)) as cursor:
        waiting = cursor.execute(WAITING, [on]).fetchall()
    oldest = now - DAY * settings.alerts.look_back_days
    not_entered = failures.not_entered(connection, oldest, now)
    counts = ledger.counts(connection)
    return Alerts(
        waiting,
        [Waiting(kind, *found) for kind, found in not_entered.items() if kind in on],
        {kind: states["dead"] for kind, states in counts.items() if states["dead"]},
        ledger.last_delivered(connection),
    )


def _failed(connection: psycopg.Connection, settings: StrategySettings) -> list[FailedPartition]:
    wanted = {
        "symbols": list(settings.symbols),
        "failures": settings.alerts.failures_before_alert,
    }
    with connection.cursor(row_factory=class_row(FailedPartition)) as cursor:
        cursor.execute(FAILED, wanted)
        return cursor.fetchall()


def _sizes(market: _Asking, dagster: _Asking, now: datetime) -> Sizes | Unknown:
    sizes = _both(*(one.ask(housekeeping.database_bytes) for one in (market, dagster)))
    if isinstance(sizes, Unknown):
        return sizes
    ours, its = sizes
    growth = market.ask(lambda c: housekeeping.growth(c, ours + its, now))
    return growth if isinstance(growth, Unknown) else Sizes(ours, its, growth)


def _both(one: A | Unknown, other: B | Unknown) -> tuple[A, B] | Unknown:
    if isinstance(one, Unknown):
        return one
    return other if isinstance(other, Unknown) else (one, other)


def _free(environment: Environment) -> int:
    """Return the bytes that are free where the home is, or will be."""
    home = environment.trading_pipelines_home
    place = next(path for path in (home, *home.parents) if path.exists())
    return shutil.disk_usage(place).free


Show = Callable[[datetime], str]
Finding = tuple[Sequence[str], str]
"""What is wrong, and what is said where nothing is."""
_History = tuple[
    tuple[Sequence[Coverage], Sequence[FailedPartition]],
    tuple[Sequence[tuple[str, date]], datetime | None],
]
"""The facts' days and failed; their forgotten and filled_at."""


def judge(facts: Facts, settings: StrategySettings, now: datetime, show: Show) -> list[Check]:
    """Return what is good at `now` (UTC), what is not, and what mends it; `show` writes moments."""
    return list(_Judge(facts, settings, now, show).checks())


@dataclass(frozen=True)
class _Judge:
    facts: Facts
    settings: StrategySettings
    now: datetime
    show: Show

    def checks(self) -> Iterator[Check]:
        facts, limits = self.facts, self.settings.health
        minutes = f"{limits.late_after_seconds / 60:g} min"
        fresh = f"{(self._late + REFRESHED_EVERY).total_seconds() / 60:g} min"
        dagster = facts.orchestration
        yield _check(
            "database", facts.unusable, lambda problems: (problems, "answers, newest schema"),
            "both answer, newest schema",
            "`trading-pipelines up` starts the embedded server; one of your own is started by you, "
            "and `trading-pipelines db upgrade` brings its schema up to date",
        )  # fmt: skip
        yield _check(
            "daemons", dagster, self._daemons, "a heartbeat of each within Dagster's half hour",
            "`trading-pipelines up`; why it ended is in daemon.log of the home's logs",
        )  # fmt: skip
        yield _check(
            "schedules", dagster, lambda known: self._tickers(known.schedules),
            f"on, at most {minutes} late", self._switch("Schedules"),
        )  # fmt: skip
        yield _check(
            "sensors", dagster, lambda known: self._tickers(known.sensors),
            f"on, at most {minutes} late", self._switch("Sensors"),
        )  # fmt: skip
        yield _check(
            "candles", facts.days, self._candles, f"{fresh} old",
            "`trading-pipelines status` says what is due and why",
        )  # fmt: skip
        yield _check(
            "labels", facts.labels, self._labels, f"each hour within {fresh}",
            "`trading-pipelines status` says what is due and why; then the runs of "
            "update_regime_job in the UI",
        )  # fmt: skip
        yield _check(
            "models", facts.model, self._model, f"of each closed day, {minutes} after 00:05 UTC",
            "`trading-pipelines status` says what is due and why; then the runs of "
            "retrain_volatility_job in the UI",
        )  # fmt: skip
        yield _check(
            "alerts", facts.alerts, self._waiting, f"none waits longer than {minutes}",
            "`trading-pipelines alerts list --state retrying --state pending`, then "
            "`trading-pipelines n8n check`; not entered: set N8N_URL or DISCORD_WEBHOOK_URL, and "
            "see the kind's sensor in the UI (Automation, Sensors)",
        )  # fmt: skip
        yield _check(
            "dead_alerts", facts.alerts,
            lambda alerts: ([f"{kind} {n}" for kind, n in alerts.dead.items()], "none"),
            "none",
            "`trading-pipelines alerts list --state dead` says why, `trading-pipelines alerts "
            "replay --dead` sends them again",
        )  # fmt: skip
        yield _check(
            "holes",
            _both(_both(facts.days, facts.failed), _both(facts.forgotten, facts.filled_at)),
            self._holes,
            f"none in closed days, {fresh} after they closed",
            "`trading-pipelines status` names the days; what the schedules do not mend, and what "
            "is older than the look-back, `trading-pipelines backfill --with-signals` does",
        )  # fmt: skip
        yield _check(
            "failed_partitions", facts.failed, self._failed,
            f"fewer than {self.settings.alerts.failures_before_alert} failures in a row",
            "`trading-pipelines status` says why; candles: `trading-pipelines backfill`, signals: "
            "materialise the partition in the UI",
        )  # fmt: skip
        yield _check(
            "slots", dagster, lambda known: self._slots(known.held),
            f"no run without a process for {minutes}",
            "terminate the run in the UI (Runs, Force terminate), or start again: "
            "`trading-pipelines down`, then `trading-pipelines up`",
        )  # fmt: skip
        yield _check(
            "database_size", facts.sizes, self._size, f"{limits.max_database_gb:g} GB",
            "fewer days in the settings' section housekeeping, or a higher health.max_database_gb",
        )  # fmt: skip
        yield _check(
            "disk", facts, self._disk, f"{limits.min_free_disk_gb:g} GB free",
            "make room where the home is, or move it: TRADING_PIPELINES_HOME",
        )  # fmt: skip

    @property
    def _late(self) -> timedelta:
        return timedelta(seconds=self.settings.health.late_after_seconds)

    @property
    def _stale(self) -> datetime:
        """Until when candles have to reach: there is a refresh every five minutes."""
        return self.now - self._late - REFRESHED_EVERY

    def _switch(self, tab: str) -> str:
        return (
            f"off: switch it on in the UI (Automation, {tab}); no ticks: code-server.log and "
            "daemon.log of the home's logs, then `trading-pipelines down` and `up`"
        )

    def _daemons(self, known: Orchestration) -> Finding:
        bad = [
            f"{one.name}: {self._moment(one.last_heartbeat, 'last heartbeat')}"
            for one in known.daemons
            if not one.healthy
        ]
        return bad, f"{len(known.daemons)} healthy"

    def _tickers(self, known: Sequence[Ticker]) -> Finding:
        bad = []
        for one in known:
            if not one.is_on:
                bad.append(f"{one.name}: off")
            elif one.next_tick is None:
                bad.append(f"{one.name}: no daemon has seen it")
            elif one.next_tick < self.now - self._late:
                bad.append(f"{one.name}: no tick since {self.show(one.next_tick)}")
            elif one.error:
                bad.append(f"{one.name}: fails: {one.error}")
        return bad, f"{len(known)} on"

    def _candles(self, days: Sequence[Coverage]) -> Finding:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        until = dict.fromkeys(self.settings.symbols, datetime.min.replace(tzinfo=self.now.tzinfo))
        for day in days:
            if day.fetched_until > day_interval(day.day).start:
                until[day.symbol] = max(until[day.symbol], day.fetched_until)
        bad = [
            f"{symbol}: " + (f"to {self.show(end)}" if end.year > 1 else "none in the look-back")
            for symbol, end in until.items()
            if end < self._stale
        ]
        return bad, f"to {self.show(min(until.values()))}"

    def _labels(self, labels: Mapping[str, datetime | None]) -> Finding:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        skipped = self.settings.regime_detection.check_interval_hours - 1
        wanted = floor_hour(self._stale) - HOUR * skipped
        bad = [
            f"{symbol}: {self._moment(as_of, 'as of')}"
            for symbol, as_of in labels.items()
            if as_of is None or as_of < wanted
        ]
        return bad, self._moment(min(filter(None, labels.values()), default=None), "as of")

    def _model(self, model: Computed | None) -> Finding:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        if model is None:
            return [], f"{_model_day(self.settings, self.now)} is not collected"
        if model.computed_until is not None:
            return [], f"of {model.day}"
        why = signals_due.reason(model, VOLATILITY_MODEL, self.settings, self.now)
        return [f"none of {model.day}: {why or 'its inputs are missing'}"], ""

    def _waiting(self, alerts: Alerts) -> Finding:
        bad = [
            f"{one.kind}: {one.count} {state}, since {self.show(one.since)}"
            for state, ones in (("waiting", alerts.waiting), ("not entered", alerts.not_entered))
            for one in ones
            if one.since < self.now - self._late
        ]
        count = sum(one.count for one in alerts.waiting)
        return bad, f"{count} waiting, {self._moment(alerts.delivered, 'newest delivered')}"

    def _holes(self, known: _History) -> Finding:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        (days, failed), (forgotten, filled_at) = known
        told = {(one.symbol, one.day) for one in failed if "candles" in one.asset}
        is_filling = filled_at is not None and filled_at > self.now - self._late
        filling = 0
        bad: dict[str, list[Coverage]] = {}
        for day in days:
            closed_long = day_interval(day.day).end < self._stale
            if not day.holes(self.now) or (day.symbol, day.day) in told or not closed_long:
                continue
            if is_filling and not day.damaged:
                filling += day.holes(self.now)
            else:
                bad.setdefault(day.symbol, []).append(day)
        lines = [
            f"{symbol}: {sum(d.holes(self.now) for d in held):,} ({_days(d.day for d in held)})"
            for symbol, held in bad.items()
        ]
        old: dict[str, list[date]] = {}
        for symbol, one in forgotten:
            old.setdefault(symbol, []).append(one)
        lines += [f"{symbol}: {_days(of)}, older than the look-back" for symbol, of in old.items()]
        return lines, f"filling: {filling:,} left" if filling else "none"

    def _failed(self, failed: Sequence[FailedPartition]) -> Finding:
        groups: dict[str, list[date]] = {}
        for one in failed:
            state = "left failed" if one.left_failed else "failing"
            name = " ".join(filter(None, (state, one.asset, one.symbol)))
            groups.setdefault(name, []).append(one.day)
        return [f"{name}: {_days(days)}" for name, days in groups.items()], "none"

    def _slots(self, held: Sequence[Held]) -> Finding:
        bad = [
            f"run {one.run_id[:8]}: {one.what}, {self._moment(one.quiet_since, 'quiet since')}"
            for one in held
            if one.quiet_since is None or one.quiet_since < self.now - self._late
        ]
        return bad, "none held by a dead run"

    def _size(self, sizes: Sizes) -> Finding:
        total = (sizes.market + sizes.dagster) / GIGABYTE
        growth = "not known yet" if sizes.growth is None else f"{sizes.growth / GIGABYTE:.3f} GB"
        found = f"{total:.2f} GB, growth a day: {growth}"
        return [found] if total > self.settings.health.max_database_gb else [], found

    def _disk(self, facts: Facts) -> Finding:
        if facts.free_bytes is None:
            return [], "the database is on a server of your own"
        free = facts.free_bytes / GIGABYTE
        found = f"{free:.1f} GB free"
        return [found] if free < self.settings.health.min_free_disk_gb else [], found

    def _moment(self, moment: datetime | None, words: str) -> str:
        return f"{words} {self.show(moment)}" if moment else f"{words}: never"


NOT_REFRESHED = "not expected: data.refresh is false"


def _days(days: Iterable[date]) -> str:
    return ", ".join(named(first, last) for first, last in contiguous(days))


def _check(
    name: str, fact: T | Unknown, find: Callable[[T], Finding], allowed: str, advice: str
) -> Check:
    if isinstance(fact, Unknown):
        return Check(name, None, f"not known: {fact.reason}", allowed, advice)
    wrong, well = find(fact)
    more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    found = "; ".join([*wrong[:SHOWN], *more]) or well
    return Check(name, not wrong, found, allowed, advice)
