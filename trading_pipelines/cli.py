"""The command line: `trading-pipelines demo | up | down | backfill | status | signals | …`.

Reads the environment, calls the packages that do the work and draws what they say. Exit status: 0
done, 1 failed (with the partitions named), 2 wrong usage. Nothing here is imported elsewhere.
"""

import contextlib
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import psycopg
import requests
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from trading_pipelines import backfill as backfills
from trading_pipelines import database, services
from trading_pipelines.candles import coverage, due
from trading_pipelines.candles.windows import DAY, MINUTE, contiguous
from trading_pipelines.database.embedded import EmbeddedServer, EmbeddedServerError
from trading_pipelines.korean_time import kst
from trading_pipelines.replay import (
    BadRecording,
    Fault,
    GeneratedMarket,
    Recording,
    ReplayExchange,
)
from trading_pipelines.settings import (
    DataSettings,
    Environment,
    SettingsError,
    StrategySettings,
    dump_strategy,
    load_environment,
    load_strategy,
)
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals import publish
from trading_pipelines.signals.due import Computed
from trading_pipelines.signals.publish import CurrentSignal

DEMO_DAYS = 28
UPBIT_ANSWERS_WITHIN = 3.0
PLAIN_PROGRESS_SECONDS = 5.0
WAITING = "Dagster takes it up within 30 s"
SIGNALS_FOLLOW = "labels, models and forecasts follow"

app = typer.Typer(
    help=(
        "Market data and alerts of an Upbit trading bot.\n\n"
        "Environment: DATABASE_URL (default: an embedded Postgres), UPBIT_BASE_URL, "
        "TRADING_PIPELINES_HOME (default .data), TRADING_PIPELINES_CONFIG (default "
        "config/strategy.yaml)."
    ),
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db_app = typer.Typer(help="The database: its schema and where it is.", no_args_is_help=True)
app.add_typer(db_app, name="db")
# Elsewhere than at a terminal (a log, a pipe) a table is as wide as it needs.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(highlight=False, stderr=True)


def main() -> None:
    """Run the command line; expected failures are one message and exit status 1."""
    # What a command has started is stopped on its way out, not left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A shell starts what it puts in the background with SIGINT ignored. Dagster's processes inherit
    # that and take SIGTERM for the same: stopping them then took 30 s and a SIGKILL.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except (
        SettingsError,
        BadRecording,
        database.DatabaseError,
        EmbeddedServerError,
        services.ServicesError,
        backfills.BackfillError,
    ) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(reason: str) -> NoReturn:
    err.print(f"[red]failed[/]: {escape(reason)}", soft_wrap=True)
    sys.exit(1)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the web UI, on 127.0.0.1.")] = 3000,
) -> None:
    """Run it for real: database, daemon, web UI, schedules on. Ctrl-C or `down` stops it.

    Example: trading-pipelines up --port 3001
    """
    environment = load_environment()
    load_strategy(environment.trading_pipelines_config)
    with (
        _database(environment, is_owner=True) as urls,
        services.Services(environment, urls, environment.trading_pipelines_config, port) as running,
    ):
        out.print(f"running: {running.url} (logs in {environment.trading_pipelines_home / 'logs'})")
        out.print("Ctrl-C, or `trading-pipelines down` elsewhere, stops it.")
        _await_interrupt()
    out.print("stopped")


@app.command()
def down() -> None:
    """Stop what `up` started on this home, the embedded database included."""
    environment = load_environment()
    stopped = services.stop(environment.trading_pipelines_home)
    server = database.embedded_server(environment)
    if server is not None and server.stop():
        stopped = True
    out.print("stopped" if stopped else "nothing was running")


@app.command()
def backfill(
    symbols: Annotated[str, typer.Option(help="Markets, separated by commas.")],
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First UTC day.")],
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Last UTC day, inclusive.")],
) -> None:
    """Fetch days of candles by Dagster's native partition backfill, and follow it to its end.

    Uses the running instance of this home, or starts what it needs for its duration.

    Example: trading-pipelines backfill --symbols KRW-BTC --start 2025-09-22 --end 2025-09-25
    """
    target = _target(symbols, start.date(), end.date())
    environment = load_environment()
    home = environment.trading_pipelines_home
    with contextlib.ExitStack() as stack:
        urls = stack.enter_context(_database(environment))
        running = services.running(home)
        if running is None:
            config = home / "backfill.yaml"
            settings = StrategySettings(symbols=list(target.symbols))
            _write_settings(settings, min(settings.data.start_date, target.first), config)
            url = stack.enter_context(services.Services(environment, urls, config)).url
        elif running.url:
            url = running.url
        else:
            _fail(f"the services of {home} are still starting: try again in a moment")
        outcome = _run_backfill(urls, url, target)
    _show_summary(outcome, f"{target.first} to {target.last} (UTC days)")
    _exit_by(outcome)


@app.command()
def demo(
    recording: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Parquet or CSV to replay where Upbit is silent."
        ),
    ] = None,
    *,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask Upbit, replay at once.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Port of the web UI (default: a free one).")
    ] = None,
) -> None:
    """Show the main job on real input: a native backfill of 28 days, then what came of it.

    Has a home and an embedded database of its own, made anew each time.

    Example: trading-pipelines demo --recording candles.parquet
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    home = environment.trading_pipelines_home / "demo"
    if services.running(home):
        _fail(f"the demo runs already on {home}: stop it there with Ctrl-C, or with "
              f"TRADING_PIPELINES_HOME={home} trading-pipelines down")  # fmt: skip
    EmbeddedServer(home).stop()
    shutil.rmtree(home, ignore_errors=True)
    today = datetime.now(UTC).date()
    with contextlib.ExitStack() as stack:
        days = (today - DAY * DEMO_DAYS, today - DAY)
        base_url, source = environment.upbit_base_url, "Upbit"
        if offline or not _answers(base_url, settings.symbols[0]):
            said = "asked not to" if offline else f"no answer within {UPBIT_ANSWERS_WITHIN:.0f} s"
            market: Recording | GeneratedMarket = (
                Recording.load(recording) if recording else GeneratedMarket(settings.symbols)
            )
            clock = None
            if isinstance(market, Recording):
                clock = market.end + MINUTE
                last = (market.end - DAY).date()
                days = (max(market.first.date(), last - DAY * (DEMO_DAYS - 1)), last)
            exchange = stack.enter_context(ReplayExchange(market, latency=0.05, clock=clock))
            base_url, source = exchange.url, market.label
            settings = settings.model_copy(
                update={"symbols": [s for s in settings.symbols if s in market.symbols]}
            )
            out.print(f"[yellow]Upbit is not used ({said}): replaying a {source}[/]")
        target = backfills.Target(tuple(settings.symbols), *days)
        config = home / "strategy.yaml"
        _write_settings(settings, target.first, config)
        environment = environment.model_copy(
            update={
                "database_url": None,
                "dagster_postgres_url": None,
                "redis_url": None,  # the bot must not trade on a replayed market
                "upbit_base_url": base_url,
                "trading_pipelines_home": home,
            }
        )
        urls = stack.enter_context(_database(environment))
        running = stack.enter_context(services.Services(environment, urls, config, port))
        outcome = _run_backfill(urls, running.url, target, source, with_signals=True)
        _show_summary(outcome, f"{target.first} to {target.last} (UTC days), from {source}")
        with database.connect(urls.market) as connection:
            _print_signals(publish.current_signals(connection, settings.symbols))
        out.print(f"partitions  {running.url}/assets/candles_1m?view=partitions")
        out.print(f"pictures    {running.url}/assets/signals_overview?view=overview")
        out.print(f"backfill    {running.url}/runs/b/{outcome.backfill_id}")
        if sys.stdout.isatty():
            out.print("\nThe UI stays open until Ctrl-C.")
            _await_interrupt()
    _exit_by(outcome)


@app.command()
def status() -> None:
    """Show to when candles and signals are complete, what is due and why, in Korean time.

    Example: trading-pipelines status
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    now = datetime.now(UTC)
    days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
    with _connection(environment) as connection:
        known = coverage.read(connection, settings.symbols, days)
        computed = {
            asked: signals_due.read(connection, asked, settings.symbols, days, settings)
            for asked in signals_due.SIGNALS
        }
    running = services.running(environment.trading_pipelines_home)
    out.print(f"services: {running.url or 'starting' if running else 'not running'}")
    _print_summary(known, f"{days[0]} to {days[-1]} (UTC days), now {kst(now)}", now)
    reasons = ((day, due.reason(day, now)) for day in known)
    _print_days(
        "due",
        ((day, _why(day, why)) for day, why in reasons if why not in {None, due.Reason.OPEN}),
    )
    for asked, partitions in computed.items():
        stale = ((one, signals_due.reason(one, asked, settings, now)) for one in partitions)
        _print_days(f"due {asked.asset}", ((one, _why(one, why)) for one, why in stale if why))


@app.command()
def signals() -> None:
    """Show each symbol's newest regime and volatility, as of when and until when, in Korean time.

    Example: trading-pipelines signals
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    with _connection(environment) as connection:
        _print_signals(publish.current_signals(connection, settings.symbols))


@app.command()
def replay(
    recording: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Parquet or CSV of candles.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generated market.")] = 7,
    port: Annotated[int, typer.Option(help="Port, on 127.0.0.1.")] = 8900,
    rate: Annotated[float, typer.Option(help="Requests a second; 0 lifts the limit.")] = 10.0,
    latency: Annotated[float, typer.Option(help="Seconds before an answer leaves.")] = 0.05,
    clock: Annotated[
        datetime | None,
        typer.Option(help="The exchange's time at its start (UTC); the end of a recording."),
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="Its clock is this many seconds ahead.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="A fault to inject, such as truncated_json:every=7,count=3."),
    ] = None,
) -> None:
    """Serve Upbit's candle API over a recording or a generated market, on loopback.

    Example: UPBIT_BASE_URL=http://127.0.0.1:8900 trading-pipelines up, beside
    trading-pipelines replay --fault 429_text:every=50
    """
    try:
        faults = [Fault.parse(text) for text in fault or []]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    market = (
        Recording.load(recording)
        if recording
        else GeneratedMarket(
            load_strategy(load_environment().trading_pipelines_config).symbols, seed
        )
    )
    at: datetime | timedelta | None = timedelta(seconds=shift) if shift is not None else None
    if clock is not None:
        at = clock.replace(tzinfo=UTC)
    elif at is None and isinstance(market, Recording):
        at = market.end + MINUTE
    with ReplayExchange(
        market, rate=rate or None, latency=latency, clock=at, faults=faults, port=port
    ) as exchange:
        out.print(f"{market.label} at {exchange.url}; UPBIT_BASE_URL={exchange.url}")
        _await_interrupt()


@app.command()
def env() -> None:
    """Print the variables by which Dagster's own commands (dg, dagster) find this home.

    Starts the embedded database and leaves it running.

    Example: eval "$(trading-pipelines env)" && dg dev
    """
    environment = load_environment()
    home = environment.trading_pipelines_home
    services.write_instance_settings(home / "dagster")
    variables = {
        "TRADING_PIPELINES_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "DAGSTER_POSTGRES_URL": database.prepare(environment).dagster,
    }
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Create or adopt the tables, and migrate to the newest schema. Twice is as good as once."""
    with _database(load_environment()):
        out.print("the database is up to date")


@db_app.command("url")
def db_url() -> None:
    """Print the database's URL for psql; leaves an embedded server running (`down` stops it).

    Example: psql "$(trading-pipelines db url)"
    """
    sys.stdout.write(f"{database.prepare(load_environment()).market}\n")


@contextlib.contextmanager
def _database(
    environment: Environment, *, is_owner: bool = False
) -> Iterator[database.DatabaseUrls]:
    """Prepare the database and leave it as it was found; its owner stops it in any case."""
    server = database.embedded_server(environment)
    was_running = server is None or server.is_running()
    try:
        yield database.prepare(environment)
    finally:
        in_use = services.running(environment.trading_pipelines_home) is not None
        if server is not None and not in_use and (is_owner or not was_running):
            server.stop()


@contextlib.contextmanager
def _connection(environment: Environment) -> Iterator[psycopg.Connection]:
    with _database(environment) as urls, database.connect(urls.market) as connection:
        yield connection


def _target(symbols: str, first: date, last: date) -> backfills.Target:
    names = [name.strip() for name in symbols.split(",") if name.strip()]
    try:
        StrategySettings(symbols=names, data=DataSettings(start_date=first))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise typer.BadParameter("; ".join(problems)) from error
    if first > last:
        raise typer.BadParameter(f"--start {first} is after --end {last}")
    if last > (today := datetime.now(UTC).date()):
        raise typer.BadParameter(f"--end {last} is in the future; today is {today} in UTC")
    return backfills.Target(tuple(names), first, last)


def _write_settings(settings: StrategySettings, start_date: date, config: Path) -> None:
    """Write settings for one backfill: partitions from its first day on, no schedule beside it."""
    data = settings.data.model_copy(update={"start_date": start_date, "refresh": False})
    dump_strategy(settings.model_copy(update={"data": data}), config)


def _answers(base_url: str, symbol: str) -> bool:
    try:
        answer = requests.get(
            f"{base_url}/v1/candles/minutes/1",
            params={"market": symbol, "count": "1"},
            timeout=UPBIT_ANSWERS_WITHIN,
        )
        return answer.ok and answer.json()[0]["market"] == symbol
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return False


def _run_backfill(
    urls: database.DatabaseUrls,
    url: str,
    target: backfills.Target,
    source: str | None = None,
    *,
    with_signals: bool = False,
) -> backfills.Outcome:
    backfill_id = backfills.launch(url, target, source, with_signals=with_signals)
    out.print(f"backfill {backfill_id} of {len(target.symbols)} symbols x {len(target.days)} days: "
              f"{url}/runs/b/{backfill_id}")  # fmt: skip
    after = SIGNALS_FOLLOW if with_signals else ""
    with database.connect(urls.market) as connection, _drawing(after) as show:
        return backfills.follow(connection, url, backfill_id, target, show)


@contextlib.contextmanager
def _drawing(after: str) -> Iterator[Callable[[backfills.Progress], None]]:
    """Yield what draws progress: a bar at a terminal, a plain line every few seconds elsewhere.

    `after` is what is waited for when the candles are there.
    """
    started = time.monotonic()
    if out.is_terminal:
        with Progress(
            TextColumn("{task.fields[rows]:,} rows  {task.fields[requests]:,} requests"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=out,
        ) as bar:
            task = bar.add_task(WAITING, rows=0, requests=0)
            yield lambda p: bar.update(
                task,
                total=p.total,
                completed=p.done,
                rows=p.rows,
                requests=p.requests,
                description=(after if p.done == p.total else "") if p.done else WAITING,
            )
        return
    shown = -PLAIN_PROGRESS_SECONDS
    first_done: float | None = None

    def line(progress: backfills.Progress) -> None:
        nonlocal shown, first_done
        passed = time.monotonic() - started
        if progress.done and first_done is None:
            first_done = passed
        if passed - shown < PLAIN_PROGRESS_SECONDS:
            return
        shown = passed
        left = WAITING
        if first_done is not None:
            seconds = (passed - first_done) * (progress.total / progress.done - 1)
            left = f"{seconds:.0f} s left" if seconds or not after else after
        out.print(
            f"{passed:5.0f} s  {progress.rows:>9,} rows  {progress.requests:>6,} requests  "
            f"{progress.done / progress.total:6.1%}  {left}"
        )

    yield line


def _show_summary(outcome: backfills.Outcome, title: str) -> None:
    _print_summary(outcome.known, title, datetime.now(UTC))
    _print_days("[red]failed[/]", outcome.failed)
    for run in outcome.failed_runs:
        out.print(f"[red]failed[/] run {run}", soft_wrap=True)


def _why(known: coverage.Coverage | Computed, reason: object) -> str:
    failed = f": {known.error}, again after {kst(known.retry_at)}" if known.error else ""
    return f"{reason}{failed}"


def _print_days(heading: str, days: Iterable[tuple[coverage.Coverage | Computed, str]]) -> None:
    """Print days and what is said of them, unbroken stretches of one symbol in one line."""
    by_saying: dict[tuple[str, str], list[date]] = {}
    for day, saying in days:
        by_saying.setdefault((day.symbol, saying), []).append(day.day)
    for (symbol, saying), stretch in by_saying.items():
        for first, last in contiguous(stretch):
            until = f" to {last}" if last > first else ""
            where = " ".join(filter(None, (heading, symbol, f"{first}{until}")))
            out.print(f"{where}: {escape(saying)}", soft_wrap=True)


def _print_summary(known: Sequence[coverage.Coverage], title: str, now: datetime) -> None:
    lines = coverage.summarise(known, now)
    sources = ", ".join(dict.fromkeys(line.source for line in lines if line.source))
    table = Table(
        title=title,
        title_justify="left",
        caption=f"source: {escape(sources)}" if sources else None,
        caption_justify="left",
    )
    table.add_column("symbol", no_wrap=True)
    for name in ("days", "candles", "quiet minutes", "holes", "requests"):
        table.add_column(name, justify="right")
    for name in ("first", "last"):
        table.add_column(name)
    for line in lines:
        table.add_row(
            line.symbol,
            f"{line.complete_days} of {line.days}",
            f"{line.candles:,}",
            f"{line.quiet:,}",
            f"{line.holes:,}",
            f"{line.requests:,}",
            kst(line.first),
            kst(line.last),
        )
    out.print(table)


def _print_signals(found: Sequence[CurrentSignal]) -> None:
    table = Table(title="current signals", title_justify="left")
    rows = [one.shown() for one in found]
    for heading in rows[0] if rows else []:
        # In 80 columns a time is folded, a symbol never.
        table.add_column(heading, no_wrap=heading in {"symbol", "regime"}, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    out.print(table if found else "no signals yet")


def _exit_by(outcome: backfills.Outcome) -> None:
    if outcome.failed:
        _fail(f"{len(outcome.failed)} of {len(outcome.known)} partitions")
    if not outcome.succeeded:
        _fail(f"see the runs of backfill {outcome.backfill_id} in the UI")


def _await_interrupt() -> None:
    """Wait for Ctrl-C or SIGTERM; both end the command cleanly."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(3600):
        pass


if __name__ == "__main__":
    main()
