"""The screen of `status`: how far data is complete, what is in flight, due or left failed; alerts.

`read` asks the tables, `draw` writes for a person in Korean time; days are UTC days, as partitions
are. What is allowed belongs in `checks`. What Dagster knows (the runs in flight, the services)
comes in as an argument.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import psycopg
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from trading_pipelines.alerts import endpoints, failures, ledger
from trading_pipelines.alerts.endpoints import Endpoint
from trading_pipelines.candles import coverage, due, failed_checks, rate_limit
from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.failed_checks import FailedCheck
from trading_pipelines.candles.windows import DAY, contiguous, floor_hour, named
from trading_pipelines.korean_time import KST, kst
from trading_pipelines.live import state as live_state
from trading_pipelines.live.state import LiveEdge, ReaderState
from trading_pipelines.monitoring import reconciliation
from trading_pipelines.monitoring.facts import Daemon, RunInFlight, Unknown
from trading_pipelines.monitoring.reconciliation import Reconciliation
from trading_pipelines.monitoring.settings_change import SettingsChange, settings_change
from trading_pipelines.settings.last_good import RefusedSettings
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.catalogue import SIGNALS, Signal
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.left_failed import (
    LEFT_FAILED,
    LeftFailed,
    left_failed,
    shown_intervals,
)
from trading_pipelines.signals.provenance import MadeOtherwise, made_otherwise
from trading_pipelines.signals.published.current import CurrentSignal, read_current_signals

# With five symbols the screen is then 40 lines at most.
SHOWN_LINES = 10
OLDER_THAN_LOOK_BACK = (
    "older than the look-back, mended only by `trading-pipelines backfill --with-signals`"
)
# Dagster writes one each 30 s, and calls its daemon healthy for half an hour after the last one.
HEARTBEATS_STOPPED_AFTER = timedelta(minutes=2)
NEWEST_MODEL = "SELECT max(day) FROM trading_pipelines.volatility_model"


@dataclass(frozen=True)
class SymbolStatus:
    """How far one symbol's data reaches (UTC); None where there is none."""

    symbol: str
    candles_until: datetime | None
    """Without a hole from the look-back's first day on."""
    holes: int
    """Minutes of the look-back's closed days."""
    hours_until: datetime | None
    label_as_of: datetime | None
    forecast_as_of: datetime | None


@dataclass(frozen=True)
class DuePartition:
    """A partition that is due, and why; without a symbol where it is pooled."""

    asset: str
    symbol: str
    day: date
    why: str


@dataclass(frozen=True)
class InstallationStatus:
    """What the screen shows of the tables."""

    symbols: Sequence[SymbolStatus]
    model_day: date | None
    due: Sequence[DuePartition]
    left_failed: Sequence[LeftFailed]
    red: Sequence[FailedCheck]
    """Partitions that stand red in a check; those left failed are above."""
    compared: Sequence[Reconciliation]
    """When Dagster's events were last compared with the tables, and what differed."""
    waiting: int
    dead: int
    delivered_at: datetime | None
    made_otherwise: Sequence[MadeOtherwise] = ()
    change: SettingsChange | None = None
    """How the settings file differs from the settings in use."""
    endpoints: Sequence[Endpoint] = ()
    """Where alerts are posted, those in trouble."""
    reader: ReaderState | None = None
    """How the reader of the exchange's stream did last."""
    live_edge: LiveEdge | None = None


def read(
    connection: psycopg.Connection, settings: StrategySettings, exchange: str, now: datetime
) -> InstallationStatus:
    """Return the state at `now` (UTC) of the look-back's days; `exchange` is its URL."""
    start = settings.data.start_date
    days = due.look_back(start, settings.data.look_back_days, now)
    partitions = coverage.read(connection, settings.symbols, days)
    half_made = coverage.half_made(connection, settings.symbols, start, days[0])
    older = list(_due_older_signals(connection, settings, days[0], now))
    begun = {(day.symbol, day.day) for day in half_made}
    begun |= {(partition.symbol, partition.day) for partition in older}
    counts = ledger.counts(connection).values()
    (model_day,) = connection.execute(NEWEST_MODEL).fetchone() or (None,)
    return InstallationStatus(
        symbols=_symbols(connection, settings.symbols, partitions, now),
        model_day=model_day,
        change=settings_change(connection, settings, now),
        due=[
            *_due_candles((*partitions, *half_made), now),
            *(
                DuePartition("candles_1m", symbol, day, OLDER_THAN_LOOK_BACK)
                for symbol, day in signal_coverage.gaps_before_look_back(
                    connection, settings.symbols, start, days
                )
                if (symbol, day) not in begun
            ),
            *_due_signals(connection, settings, days, now),
            *older,
        ],
        left_failed=left_failed(connection, settings.symbols),
        red=[
            row
            for row in failed_checks.standing(
                connection, settings.symbols, settings.data.start_date
            )
            if row.check_name != LEFT_FAILED
        ],
        compared=reconciliation.read(connection),
        waiting=sum(of_kind[state] for of_kind in counts for state in failures.WAITING),
        dead=sum(of_kind[ledger.DeliveryState.DEAD] for of_kind in counts),
        delivered_at=ledger.last_delivered(connection),
        made_otherwise=made_otherwise(connection, settings),
        endpoints=list(endpoints.in_trouble(connection).values()),
        reader=live_state.read(connection),
        live_edge=live_state.live_edge(
            partitions, now, rate_limit.read_clock(connection, exchange).ahead
        ),
    )


def _symbols(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    partitions: Sequence[CandleCoverage],
    now: datetime,
) -> list[SymbolStatus]:
    signals = {signal.symbol: signal for signal in read_current_signals(connection, symbols)}
    statuses = []
    for symbol in symbols:
        days = [partition for partition in partitions if partition.symbol == symbol]
        signal = signals.get(symbol, CurrentSignal(symbol))
        statuses.append(
            SymbolStatus(
                symbol,
                candles_until=_until(days, lambda day: day.stored >= day.rows),
                holes=sum(day.holes(now) for day in days),
                hours_until=_until(days, lambda day: day.hours_current, floor_hour),
                label_as_of=signal.regime_as_of,
                forecast_as_of=signal.volatility_as_of,
            )
        )
    return statuses


def _until(
    days: Sequence[CandleCoverage],
    is_sound: Callable[[CandleCoverage], bool],
    floor: Callable[[datetime], datetime] = lambda moment: moment,
) -> datetime | None:
    """Return until when the days are unbroken, from the first on."""
    until = None
    for day in days:
        if not is_sound(day) or day.status == "missing":
            break
        until = floor(day.fetched_until)
        if not day.complete:
            break
    return until


def _due_candles(partitions: Sequence[CandleCoverage], now: datetime) -> Iterator[DuePartition]:
    hidden = {None, due.CandleDueReason.OPEN, due.CandleDueReason.LEFT_FAILED}
    for partition in partitions:
        if (why := due.reason(partition, now)) not in hidden:
            why_text = _why(partition, str(why))
            yield DuePartition("candles_1m", partition.symbol, partition.day, why_text)


def _due_signals(
    connection: psycopg.Connection, settings: StrategySettings, days: Sequence[date], now: datetime
) -> Iterator[DuePartition]:
    for signal in SIGNALS:
        partitions = signal_coverage.read(connection, signal, settings.symbols, days, settings)
        yield from _due(partitions, signal, settings, now)


def _due_older_signals(
    connection: psycopg.Connection, settings: StrategySettings, before: date, now: datetime
) -> Iterator[DuePartition]:
    start = settings.data.start_date
    for signal in SIGNALS:
        partitions = signal_coverage.half_made(connection, signal, start, before, settings)
        yield from _due(partitions, signal, settings, now)


def _due(
    partitions: Iterable[SignalCoverage], signal: Signal, settings: StrategySettings, now: datetime
) -> Iterator[DuePartition]:
    hidden = {None, signals_due.SignalDueReason.LEFT_FAILED}
    for partition in partitions:
        if (why := signals_due.reason(partition, signal, settings, now)) not in hidden:
            why_text = _why(partition, str(why))
            yield DuePartition(signal.asset, partition.symbol, partition.day, why_text)


def _why(partition: CandleCoverage | SignalCoverage, reason: str) -> str:
    if not partition.error:
        return reason
    return f"{reason}: {partition.error}, again after {kst(partition.retry_at)}"


def services_apart(daemons: Sequence[Daemon] | Unknown, now: datetime) -> str:
    """Return whether services run elsewhere than on this home, by the daemon's heartbeats.

    Processes that are served apart (`serve`, containers) share a database and nothing else.
    """
    if isinstance(daemons, Unknown):
        return f"not running on this home; elsewhere not known: {daemons.reason}"
    newest = max((d.last_heartbeat for d in daemons if d.last_heartbeat), default=None)
    if newest is None:
        return "not running (no daemon has ever run)"
    if newest < now - HEARTBEATS_STOPPED_AFTER:
        return f"not running (the daemon's last heartbeat: {kst(newest)})"
    return f"served apart (daemon healthy as of {kst(newest)})"


def draw(
    status: InstallationStatus,
    services: str,
    in_flight: Sequence[RunInFlight] | str,
    now: datetime,
    refused: RefusedSettings | None = None,
) -> Iterator[RenderableType]:
    """Yield the parts of the screen; `in_flight` may say why it is not known."""
    yield f"services: {services}"
    if refused:
        yield f"[red]settings[/]: the last good ones are in use, as of {kst(refused.since)}"
        yield from _lines("[red]settings[/]", refused.problem.splitlines())
    if status.change:
        yield from _lines("settings", status.change.lines())
    yield _table(status, now)
    yield from _live(status)
    model = f"of {status.model_day} (UTC day)" if status.model_day else "none yet"
    yield f"volatility model: {model}"
    if isinstance(in_flight, str):
        yield f"in flight: not known, {escape(in_flight)}"
    else:
        yield from _lines("in flight", [_run(run) for run in in_flight])
    yield from _lines("due", lines_by_interval(status.due, len(status.symbols)))
    yield from _lines("[red]left failed[/]", list(map(_left_failed, status.left_failed)))
    if status.red:
        yield from _lines("[red]red check[/]", lines_by_interval(map(_red, status.red)))
    yield from _events(status.compared, now)
    yield from _made_otherwise(status.made_otherwise)
    yield (
        f"alerts: {status.waiting} waiting, {status.dead} dead, last delivered "
        f"{kst(status.delivered_at)}"
    )
    for endpoint in status.endpoints:
        yield f"[red]alerts wait[/]: {escape(endpoints.described(endpoint, kst))}"


def _table(status: InstallationStatus, now: datetime) -> Table:
    table = Table(title=f"now {kst(now)}; all times in KST", title_justify="left")
    table.add_column("symbol", no_wrap=True)
    headings = (
        "candles complete to",
        "holes",
        "hours complete to",
        "label as of",
        "forecast as of",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for symbol in status.symbols:
        table.add_row(
            symbol.symbol,
            _short(symbol.candles_until),
            f"{symbol.holes:,}",
            *map(_short, (symbol.hours_until, symbol.label_as_of, symbol.forecast_as_of)),
        )
    return table


def _live(status: InstallationStatus) -> Iterator[str]:
    """Yield how old the newest minute is and what the stream brought; nothing without a reader."""
    reader, edge = status.reader, status.live_edge
    if reader is None or edge is None:
        return
    connected = (
        f"connected since {kst(reader.connected_since)}, anew {reader.reconnects} times"
        if reader.connected_since
        else f"not connected: {escape(reader.problem or 'no reader works')}"
    )
    yield (
        f"live: the newest minute ended {edge.age.total_seconds():,.0f} s ago; {connected} (as of "
        f"{kst(reader.updated_at)})"
    )
    yield (
        f"live: of this UTC day {edge.streamed:,} minutes by the stream, {edge.late:,} rewritten "
        f"late, {edge.corrected:,} corrected by requests"
    )


def _short(moment: datetime | None) -> str:
    return f"{moment.astimezone(KST):%m-%d %H:%M}" if moment else "-"


def _lines(heading: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:SHOWN_LINES]:
        yield f"{heading}: {escape(line)}"
    if len(lines) > SHOWN_LINES:
        yield f"{heading}: and {len(lines) - SHOWN_LINES} more"
    if not lines:
        yield f"{heading}: nothing"


def _run(run: RunInFlight) -> str:
    where = (" to ".join(run.symbols), " to ".join(map(str, run.days)))
    return f"{' '.join(filter(None, (run.job, *where)))}, {run.state} since {kst(run.since)}"


def _red(row: FailedCheck) -> DuePartition:
    return DuePartition(row.asset, row.symbol, row.day, f"{row.check_name}: {row.finding}")


def _events(compared: Sequence[Reconciliation], now: datetime) -> Iterator[str]:
    """Yield whether Dagster's events say what the tables hold, and what differed within a day."""
    if not compared:
        yield "Dagster's events: not compared with the tables yet"
        return
    as_of = min(row.compared_at for row in compared)
    differ = [row for row in compared if row.left_over]
    state = f"differ from the tables in {len(differ)} assets" if differ else "agree with the tables"
    yield f"Dagster's events: {state} as of {kst(as_of)}"
    for row in compared:
        if row.differed_at and row.differed_at > now - DAY:
            yield f"Dagster's events: {escape(row.difference or '')} ({kst(row.differed_at)})"


def _left_failed(partitions: LeftFailed) -> str:
    name = " ".join(filter(None, (partitions.asset, partitions.symbol)))
    days = shown_intervals(partitions.days)
    return f"{name} {days}: {partitions.error}; again by: {partitions.retried_by}"


def _made_otherwise(assets: Sequence[MadeOtherwise]) -> Iterator[str]:
    """Yield a line for each asset with partitions by other settings or code, one for the unknown.

    Nothing where all is by the settings and the code of now.
    """
    lines = []
    for asset in assets:
        if asset.by_other_settings:
            settings = f"other settings ({'; '.join(asset.changed)})"
            lines.append(f"{asset.asset} {_share(asset.by_other_settings, asset)}: {settings}")
        if asset.by_other_code:
            lines.append(f"{asset.asset} {_share(asset.by_other_code, asset)}: other code")
    if lines:
        yield from _lines("made otherwise", lines)
    if unknown := [f"{a.asset} {_share(a.not_known, a)}" for a in assets if a.not_known]:
        yield f"made before provenance was kept: {'; '.join(unknown)}"


def _share(number: int, asset: MadeOtherwise) -> str:
    return f"{number:,} of {asset.partitions:,}"


def lines_by_interval(partitions: Iterable[DuePartition], all_symbols: int = 0) -> list[str]:
    """Return a line for each unbroken interval of days: the symbols that are due for one reason.

    As many symbols as `all_symbols` are not named one by one.
    """
    days: dict[tuple[str, str, str], list[date]] = {}
    for partition in partitions:
        name = (partition.asset, partition.why, partition.symbol)
        days.setdefault(name, []).append(partition.day)
    symbols: dict[tuple[str, str, date, date], list[str]] = {}
    for (asset, why, symbol), its_days in days.items():
        for first, last in contiguous(its_days):
            symbols.setdefault((asset, why, first, last), []).append(symbol)
    return [
        " ".join(
            filter(
                None,
                (
                    asset,
                    "all symbols" if 1 < len(names) == all_symbols else ", ".join(names),
                    named(first, last),
                ),
            )
        )
        + f": {why}"
        for (asset, why, first, last), names in symbols.items()
    ]
