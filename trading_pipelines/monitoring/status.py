"""One screen: what is complete to when, in flight, due and why, left failed, and of the alerts.

Asked of the tables, drawn for a person in Korean time; days are UTC days, as partitions are. What
is allowed and what is not belongs in `health`; which runs are in flight is Dagster's knowledge and
comes in as an argument.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import psycopg
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from trading_pipelines.alerts import failures, ledger
from trading_pipelines.candles import coverage, due
from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.windows import contiguous, floor_hour, named
from trading_pipelines.korean_time import KST, kst
from trading_pipelines.monitoring.facts import RunInFlight
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.left_failed import LeftFailed, left_failed, shown_intervals
from trading_pipelines.signals.published.current import CurrentSignal, read_current_signals

# With five symbols the screen is then 40 lines at most.
SHOWN_LINES = 10
OLDER_THAN_LOOK_BACK = (
    "older than the look-back, mended only by `trading-pipelines backfill --with-signals`"
)
NEWEST_MODEL = "SELECT max(day) FROM trading_pipelines.volatility_model"


@dataclass(frozen=True)
class SymbolStatus:
    """How far one symbol is (UTC); None where there is nothing."""

    symbol: str
    candles_until: datetime | None
    """From the look-back's first day on without a hole."""
    holes: int
    """Minutes of the look-back's closed days."""
    hours_until: datetime | None
    label_as_of: datetime | None
    forecast_as_of: datetime | None


@dataclass(frozen=True)
class DuePartition:
    """A partition that is not what it should be, and why; without a symbol where it is pooled."""

    asset: str
    symbol: str
    day: date
    why: str


@dataclass(frozen=True)
class InstallationStatus:
    """What one screen says."""

    symbols: Sequence[SymbolStatus]
    model_day: date | None
    due: Sequence[DuePartition]
    left_failed: Sequence[LeftFailed]
    waiting: int
    dead: int
    delivered_at: datetime | None


def read(
    connection: psycopg.Connection, settings: StrategySettings, now: datetime
) -> InstallationStatus:
    """Return how it stands at `now` (UTC), within the look-back."""
    days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
    known = coverage.read(connection, settings.symbols, days)
    counts = ledger.counts(connection).values()
    (model_day,) = connection.execute(NEWEST_MODEL).fetchone() or (None,)
    return InstallationStatus(
        symbols=_symbols(connection, settings.symbols, known, now),
        model_day=model_day,
        due=[
            *_due_candles(known, now),
            *(
                DuePartition("candles_1m", symbol, day, OLDER_THAN_LOOK_BACK)
                for symbol, day in signal_coverage.gaps_before_look_back(
                    connection, settings.symbols, settings.data.start_date, days[0]
                )
            ),
            *_due_signals(connection, settings, days, now),
        ],
        left_failed=left_failed(connection, settings.symbols),
        waiting=sum(of_kind[state] for of_kind in counts for state in failures.WAITING),
        dead=sum(of_kind[ledger.DeliveryState.DEAD] for of_kind in counts),
        delivered_at=ledger.last_delivered(connection),
    )


def _symbols(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    known: Sequence[CandleCoverage],
    now: datetime,
) -> list[SymbolStatus]:
    signals = {one.symbol: one for one in read_current_signals(connection, symbols)}
    found = []
    for symbol in symbols:
        mine = [day for day in known if day.symbol == symbol]
        signal = signals.get(symbol, CurrentSignal(symbol))
        found.append(
            SymbolStatus(
                symbol,
                candles_until=_until(mine, lambda day: day.stored >= day.rows),
                holes=sum(day.holes(now) for day in mine),
                hours_until=_until(mine, lambda day: day.hours_current, floor_hour),
                label_as_of=signal.regime_as_of,
                forecast_as_of=signal.volatility_as_of,
            )
        )
    return found


def _until(
    days: Sequence[CandleCoverage],
    is_sound: Callable[[CandleCoverage], bool],
    floor: Callable[[datetime], datetime] = lambda moment: moment,
) -> datetime | None:
    """Return to where the days are unbroken from the first on."""
    until = None
    for day in days:
        if not is_sound(day) or day.status == "missing":
            break
        until = floor(day.fetched_until)
        if not day.complete:
            break
    return until


def _due_candles(known: Sequence[CandleCoverage], now: datetime) -> Iterator[DuePartition]:
    hidden = {None, due.CandleDueReason.OPEN, due.CandleDueReason.LEFT_FAILED}
    for day in known:
        if (why := due.reason(day, now)) not in hidden:
            yield DuePartition("candles_1m", day.symbol, day.day, _why(day, str(why)))


def _due_signals(
    connection: psycopg.Connection, settings: StrategySettings, days: Sequence[date], now: datetime
) -> Iterator[DuePartition]:
    hidden = {None, signals_due.SignalDueReason.LEFT_FAILED}
    for signal in SIGNALS:
        for one in signal_coverage.read(connection, signal, settings.symbols, days, settings):
            if (why := signals_due.reason(one, signal, settings, now)) not in hidden:
                yield DuePartition(signal.asset, one.symbol, one.day, _why(one, str(why)))


def _why(known: CandleCoverage | SignalCoverage, reason: str) -> str:
    return f"{reason}: {known.error}, again after {kst(known.retry_at)}" if known.error else reason


def draw(
    status: InstallationStatus, services: str, in_flight: Sequence[RunInFlight] | str, now: datetime
) -> Iterator[RenderableType]:
    """Yield the parts of the screen; `in_flight` may say why it is not known."""
    yield f"services: {services}"
    yield _table(status, now)
    model = f"of {status.model_day} (UTC day)" if status.model_day else "none yet"
    yield f"volatility model: {model}"
    if isinstance(in_flight, str):
        yield f"in flight: not known, {escape(in_flight)}"
    else:
        yield from _lines("in flight", [_run(run) for run in in_flight])
    yield from _lines("due", lines_by_interval(status.due, len(status.symbols)))
    yield from _lines("[red]left failed[/]", [_left_failed(one) for one in status.left_failed])
    yield (
        f"alerts: {status.waiting} waiting, {status.dead} dead, last delivered "
        f"{kst(status.delivered_at)}"
    )


def _table(status: InstallationStatus, now: datetime) -> Table:
    table = Table(title=f"now {kst(now)}; all times in KST", title_justify="left")
    table.add_column("symbol", no_wrap=True)
    for heading in ("candles complete to", "holes", "hours complete to", "label as of",
                    "forecast as of"):  # fmt: skip
        table.add_column(heading, justify="right")
    for one in status.symbols:
        table.add_row(
            one.symbol,
            _short(one.candles_until),
            f"{one.holes:,}",
            *map(_short, (one.hours_until, one.label_as_of, one.forecast_as_of)),
        )
    return table


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


def _left_failed(one: LeftFailed) -> str:
    name = " ".join(filter(None, (one.asset, one.symbol)))
    return f"{name} {shown_intervals(one.days)}: {one.error}; again by: {one.retried_by}"


def lines_by_interval(partitions: Iterable[DuePartition], all_symbols: int = 0) -> list[str]:
    """Return a line for all symbols that have an unbroken stretch of days and a reason in common.

    `all_symbols` is how many there are, when they need not be named.
    """
    days: dict[tuple[str, str, str], list[date]] = {}
    for one in partitions:
        days.setdefault((one.asset, one.why, one.symbol), []).append(one.day)
    symbols: dict[tuple[str, str, date, date], list[str]] = {}
    for (asset, why, symbol), mine in days.items():
        for first, last in contiguous(mine):
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
