"""The command line: `trading-pipelines demo | up | backfill | status | health | alerts | …`.

Reads the environment, calls the packages that do the work and draws what they say. Exit status: 0
done, 1 failed (with the partitions named), 2 wrong usage. Nothing here is imported elsewhere.
"""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import psycopg
import regex
import requests
import typer
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trading_pipelines import backfill as backfills
from trading_pipelines import bot_tables, database, instance, n8n, processes, services
from trading_pipelines import drill as drills
from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import CHANNELS, KINDS, sample_bodies
from trading_pipelines.alerts.webhooks import DISCORD, N8N, Outcome, Webhooks
from trading_pipelines.candles import coverage
from trading_pipelines.candles.compare import VALUES, Comparison, compare
from trading_pipelines.candles.exchange import Exchange, ExchangeFailure
from trading_pipelines.candles.rate_limit import Blocked, RequestSlots
from trading_pipelines.candles.windows import DAY, MINUTE, Interval, day_interval, floor_minute
from trading_pipelines.database import adopt
from trading_pipelines.database.backup import back_up, restore
from trading_pipelines.database.embedded import EmbeddedServer, EmbeddedServerError
from trading_pipelines.definitions import build_schedules, build_sensors
from trading_pipelines.health import Check, Unknown, judge, measure
from trading_pipelines.inbox import DiscordInbox, show
from trading_pipelines.korean_time import kst
from trading_pipelines.replay import (
    BadRecording,
    Fault,
    GeneratedMarket,
    Recording,
    ReplayExchange,
)
from trading_pipelines.schedules import runs_in_flight
from trading_pipelines.settings import (
    AlertSettings,
    DataSettings,
    Environment,
    SettingsError,
    StrategySettings,
    dump_strategy,
    load_environment,
    load_strategy,
)
from trading_pipelines.signals import publish
from trading_pipelines.signals.publish import CurrentSignal
from trading_pipelines.status import Due, in_stretches
from trading_pipelines.status import draw as draw_status
from trading_pipelines.status import read as read_status

DEMO_DAYS = 28
DRILL_DAYS = 16
DRILL_SECONDS = 600.0
UPBIT_ANSWERS_WITHIN = 3.0
PLAIN_PROGRESS_SECONDS = 5.0
WAITING = "Dagster takes it up within 30 s"
ALERT_SECONDS = 60.0
REJECT = """
INSERT INTO agent_decisions
    (symbol, strategy_name, decision, reasoning, confidence, model_used, created_at)
VALUES (%s, 'demo', 'REJECT', %s, 71, 'demo', %s)
"""
SIGNALS_FOLLOW = "labels, models and forecasts follow"

app = typer.Typer(
    help=(
        "Market data and alerts of an Upbit trading bot.\n\n"
        "Environment: DATABASE_URL (default: an embedded Postgres), UPBIT_BASE_URL, "
        "N8N_URL and N8N_WEBHOOK_SECRET, DISCORD_WEBHOOK_URL, HEARTBEAT_URL (asked while health is "
        "good), DOCS_URL (where docs/ can be read: the UI links to it), TRADING_PIPELINES_HOME "
        "(default .data), TRADING_PIPELINES_CONFIG (default config/strategy.yaml)."
    ),
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db_app = typer.Typer(help="The database: its schema and where it is.", no_args_is_help=True)
app.add_typer(db_app, name="db")
alerts_app = typer.Typer(help="Alerts: what became of them, again, a test.", no_args_is_help=True)
app.add_typer(alerts_app, name="alerts")
n8n_app = typer.Typer(help="The workflows in the operator's n8n.", no_args_is_help=True)
app.add_typer(n8n_app, name="n8n")
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
        processes.ProcessError,
        backfills.BackfillError,
        n8n.N8nError,
    ) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(reason: str) -> NoReturn:
    err.print(f"[red]failed[/]: {escape(reason)}", soft_wrap=True)
    sys.exit(1)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Made where it is missing.")],
) -> None:
    """Write the settings and the n8n workflows into a folder of yours, for work outside the clone.

    What is there already is kept.

    Example: trading-pipelines init . && trading-pipelines up
    """
    shipped = instance.INSTANCE_SETTINGS.parent
    for file in sorted(path for path in shipped.rglob("*") if path.suffix in {".yaml", ".json"}):
        target = folder / "config" / file.relative_to(shipped)
        said = "kept"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            said = "written"
        out.print(f"{said:<8}{escape(str(target))}", soft_wrap=True)


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
def serve(
    process: Annotated[processes.Process, typer.Argument()],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = processes.HOST,
    port: Annotated[
        int | None, typer.Option(help="Of the code server (4000) or the web UI (3000).")
    ] = None,
    *,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="A web UI in which nothing can be launched.")
    ] = False,
) -> None:
    """Become one of Dagster's processes, for containers: on one machine `up` runs all three.

    The database is yours (DATABASE_URL), and `trading-pipelines db upgrade` has prepared it. Where
    the code server is, is said to the other two by CODE_SERVER.

    Example: trading-pipelines serve webserver --host 0.0.0.0
    """
    listens = process is not processes.Process.DAEMON
    if (read_only and process is not processes.Process.WEBSERVER) or (port and not listens):
        raise typer.BadParameter(f"{process}: --read-only is of the webserver, and the daemon "
                                 "listens on no --port")  # fmt: skip
    environment = load_environment()
    load_strategy(environment.trading_pipelines_config)
    if not environment.database_url:
        _fail("DATABASE_URL is not set: processes that are served apart share a database of yours")
    if services.running(environment.trading_pipelines_home):
        # Its daemon would look for its code server where the file says that ours is.
        _fail(
            "`up` runs on this home: give what is served apart a TRADING_PIPELINES_HOME of its own"
        )
    processes.serve(
        process,
        environment,
        database.urls(environment),
        host=host,
        port=port or (3000 if process is processes.Process.WEBSERVER else 4000),
        read_only=read_only,
    )


_Symbols = Annotated[
    str | None, typer.Option(help="Markets, separated by commas (default: the settings').")
]
_FirstDay = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="First UTC day (default: data.start_date)."),
]
_LastDay = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="Last UTC day, inclusive (default: yesterday)."),
]


@app.command()
def backfill(
    symbols: _Symbols = None,
    start: _FirstDay = None,
    end: _LastDay = None,
    *,
    with_signals: Annotated[
        bool,
        typer.Option(
            "--with-signals",
            help="Compute labels, models, forecasts too: for days that no schedule looks at.",
        ),
    ] = False,
) -> None:
    """Fetch days of candles by Dagster's native partition backfill, and follow it to its end.

    Uses the running instance of this home or of WEBSERVER_URL, or starts what it needs for its
    duration.

    Example: trading-pipelines backfill --symbols KRW-BTC --start 2025-09-22 --end 2025-09-25
    """
    environment = load_environment()
    target = _target(environment, symbols, start, end)
    home = environment.trading_pipelines_home
    with contextlib.ExitStack() as stack:
        urls = stack.enter_context(_database(environment))
        running = services.running(home)
        if environment.webserver_url:
            url = environment.webserver_url
        elif running is None:
            config = home / "backfill.yaml"
            settings = StrategySettings(symbols=list(target.symbols))
            if with_signals:
                # The model is fitted on all symbols, by the operator's own settings.
                settings = load_strategy(environment.trading_pipelines_config)
            _write_settings(settings, min(settings.data.start_date, target.first), config)
            url = stack.enter_context(services.Services(environment, urls, config)).url
        elif running.url:
            url = running.url
        else:
            _fail(f"the services of {home} are still starting: try again in a moment")
        outcome = _run_backfill(urls, url, target, with_signals=with_signals)
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
    _make_anew(home)
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
        since = datetime.combine(target.first, datetime.min.time(), UTC)
        alerts = settings.alerts.model_copy(
            update={"since": since, "ai_reject": True, "daily_report": False}
        )
        _write_settings(settings.model_copy(update={"alerts": alerts}), target.first, config)
        inbox = stack.enter_context(DiscordInbox())
        webhooks = _demo_webhooks(stack, home, inbox)
        environment = _apart(environment, home, base_url, webhooks)
        urls = stack.enter_context(_database(environment))
        running = stack.enter_context(services.Services(environment, urls, config, port))
        outcome = _run_backfill(urls, running.url, target, source, with_signals=True)
        _show_summary(outcome, f"{target.first} to {target.last} (UTC days), from {source}")
        with database.connect(urls.market) as connection:
            _print_signals(publish.current_signals(connection, settings.symbols))
            decided_at = datetime.combine(target.last + DAY, datetime.min.time(), UTC)
            _show_reject(connection, inbox, target.symbols[0], decided_at)
        out.print(f"partitions  {running.url}/assets/candles_1m?view=partitions")
        out.print(f"pictures    {running.url}/assets/signals_overview?view=overview")
        out.print(f"backfill    {running.url}/runs/b/{outcome.backfill_id}")
        if sys.stdout.isatty():
            out.print("\nThe UI stays open until Ctrl-C.")
            _await_interrupt()
    _exit_by(outcome)


@app.command()
def drill(
    hours: Annotated[int, typer.Option(help="How long everything was down.", min=1, max=72)] = 6,
) -> None:
    """Play an outage: everything was down for hours, comes back, and heals; show what and when.

    On a home and an embedded database of its own, made anew each time, with a generated market at
    Upbit's limit and a local inbox in Discord's place.

    Example: trading-pipelines drill --hours 24
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    home = environment.trading_pipelines_home / "drill"
    _make_anew(home)
    back = floor_minute(datetime.now(UTC))
    outage = Interval(back - timedelta(hours=hours), back)
    settings = settings.model_copy(
        update={
            "data": settings.data.model_copy(
                update={"start_date": outage.start.date() - DAY * DRILL_DAYS, "refresh": True}
            ),
            "alerts": AlertSettings(since=outage.start, digest_over=1000),
        }
    )
    with contextlib.ExitStack() as stack:
        market = GeneratedMarket(settings.symbols)
        inbox = stack.enter_context(DiscordInbox(limited=True))
        exchange = stack.enter_context(ReplayExchange(market, latency=0.05))
        environment = _apart(environment, home, exchange.url, _inbox_alone(inbox))
        dump_strategy(settings, home / "strategy.yaml")
        urls = stack.enter_context(_database(environment))
        out.print(f"preparing {DRILL_DAYS} days as they were at {kst(outage.start)}, when all "
                  "stopped")  # fmt: skip
        with (
            ReplayExchange(market, rate=None, clock=outage.start) as past,
            database.connect(urls.market) as connection,
        ):
            slots = RequestSlots(connection, past.url, 1000.0)
            client = Exchange(past.url, slots, settings.exchange)
            drills.prepare(connection, client, settings, outage)
        due_in = drills.missed(market, settings, outage)
        out.print(f"back at {kst(outage.end)}, {hours} hours later: starting the services")
        started = time.monotonic()
        stack.enter_context(services.Services(environment, urls, home / "strategy.yaml"))
        with database.connect(urls.market) as connection:
            healed = _await_healed(connection, outage, due_in, started)
        _print_healed(due_in, healed)
        for message in inbox.messages[:1]:
            out.print(show(message.payload))
    if len(healed) < len(asdict(due_in)):
        _fail(f"not all was there after {DRILL_SECONDS:.0f} s: see the logs in {home / 'logs'}")


def _apart(
    environment: Environment, home: Path, base_url: str, webhooks: dict[str, SecretStr | None]
) -> Environment:
    """Return the environment of a home of a command's own, away from all that is the operator's."""
    return environment.model_copy(
        update={
            "database_url": None,
            "dagster_postgres_url": None,
            "redis_url": None,  # the bot must not trade on a replayed market
            "heartbeat_url": None,  # nor be called well because a demonstration is
            "upbit_base_url": base_url,
            "trading_pipelines_home": home,
            **webhooks,
        }
    )


def _inbox_alone(inbox: DiscordInbox) -> dict[str, SecretStr | None]:
    return {
        "n8n_url": None,
        "n8n_webhook_secret": None,
        "discord_webhook_url": SecretStr(inbox.url),
    }


def _make_anew(home: Path) -> None:
    """Empty a home of a command's own; refuse where it is in use."""
    if services.running(home):
        _fail(f"{home} is in use: stop what runs there with Ctrl-C, or with "
              f"TRADING_PIPELINES_HOME={home} trading-pipelines down")  # fmt: skip
    EmbeddedServer(home).stop()
    shutil.rmtree(home, ignore_errors=True)


def _await_healed(
    connection: psycopg.Connection, outage: Interval, due_in: drills.Count, started: float
) -> dict[str, float]:
    """Return after how many seconds each of what was missed was there; not all after a while."""
    healed: dict[str, float] = {}
    wanted = asdict(due_in)
    while len(healed) < len(wanted) and time.monotonic() - started < DRILL_SECONDS:
        passed = time.monotonic() - started
        for name, number in asdict(drills.there(connection, outage)).items():
            if number >= wanted[name] and name not in healed:
                healed[name] = passed
                out.print(f"{passed:5.0f} s  {name}: {number:,}")
        time.sleep(0.5)
    return healed


def _print_healed(due_in: drills.Count, healed: dict[str, float]) -> None:
    table = Table(title="what the outage cost", title_justify="left")
    for heading in ("", "missed", "lost", "there again after"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, number in asdict(due_in).items():
        after = healed.get(name)
        table.add_row(name, f"{number:,}", "0" if after is not None else "?",
                      "[red]not yet[/]" if after is None else f"{after:.0f} s")  # fmt: skip
    out.print(table)


@app.command()
def status() -> None:
    """Show what is complete to when, in flight, due and why, left failed, in Korean time.

    Example: trading-pipelines status
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    now = datetime.now(UTC)
    with _database(environment) as urls, database.connect(urls.market) as connection:
        found = read_status(connection, settings, now)
        flying = instance.ask(urls.dagster, runs_in_flight)
    running = services.running(environment.trading_pipelines_home)
    where = running.url or "starting" if running else "not running"
    known = flying.reason if isinstance(flying, Unknown) else flying
    for part in draw_status(found, where, known, now):
        out.print(part, soft_wrap=isinstance(part, str))


@app.command()
def health(
    only: Annotated[
        list[str] | None, typer.Option(help="Judge this check alone; may be given again.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, UTC.")] = False,
) -> None:
    """Say whether all is well, what is not, and what mends it; exit status 1 where anything is not.

    Starts and changes nothing. What can't be known is not good.

    Example: trading-pipelines health --json
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    now = datetime.now(UTC)
    orchestration = instance.probe(
        database.urls(environment).dagster, build_schedules(settings), build_sensors(settings), now
    )
    facts = measure(environment, settings, orchestration, now)
    checks = judge(facts, settings, now, datetime.isoformat if as_json else kst)
    if unknown := sorted({*(only or [])} - {check.name for check in checks}):
        names = ", ".join(check.name for check in checks)
        raise typer.BadParameter(f"--only {', '.join(unknown)}: one of {names}")
    checks = [check for check in checks if not only or check.name in only]
    good = all(check.good for check in checks)
    if as_json:
        said = {"good": good, "checked_at": now, "checks": [asdict(check) for check in checks]}
        sys.stdout.write(f"{json.dumps(said, default=datetime.isoformat, ensure_ascii=False)}\n")
    else:
        _print_health(checks, now)
    sys.exit(0 if good else 1)


@app.command()
def signals() -> None:
    """Show each symbol's newest regime and volatility, as of when and until when, in Korean time.

    Example: trading-pipelines signals
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    with _connection(environment) as connection:
        _print_signals(publish.current_signals(connection, settings.symbols))


_Since = Annotated[str, typer.Option(help="How far back: 30m, 24h, 7d.")]
_Symbol = Annotated[str | None, typer.Option(help="Only of this market, such as KRW-BTC.")]
_Limit = Annotated[int, typer.Option(help="At most so many, the newest.", min=1)]
_AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, UTC.")]


@app.command()
def trades(
    since: _Since = "7d", symbol: _Symbol = None, limit: _Limit = 50, *, as_json: _AsJson = False
) -> None:
    """Show the bot's orders, the newest first, in Korean time.

    Example: trading-pipelines trades --since 3d --symbol KRW-BTC
    """
    _show_bot_rows(
        "trades", bot_tables.TRADES, bot_tables.shown_trade, since, symbol, limit, as_json=as_json
    )


@app.command()
def decisions(
    since: _Since = "7d", symbol: _Symbol = None, limit: _Limit = 50, *, as_json: _AsJson = False
) -> None:
    """Show what the bot's AI decided and why, the newest first, in Korean time.

    Example: trading-pipelines decisions --since 24h --symbol KRW-BTC
    """
    _show_bot_rows(
        "decisions",
        bot_tables.DECISIONS,
        bot_tables.shown_decision,
        since,
        symbol,
        limit,
        as_json=as_json,
    )


@app.command()
def risk(
    since: _Since = "7d", symbol: _Symbol = None, limit: _Limit = 50, *, as_json: _AsJson = False
) -> None:
    """Show the bot's risk violations, cooldowns and halts, the newest first, in Korean time.

    A symbol is known of violations by an order alone.

    Example: trading-pipelines risk --since 30d
    """
    _show_bot_rows(
        "risk events", bot_tables.RISK, bot_tables.shown_risk, since, symbol, limit, as_json=as_json
    )


@app.command()
def rejections(
    since: _Since = "7d", symbol: _Symbol = None, limit: _Limit = 50, *, as_json: _AsJson = False
) -> None:
    """Show what became of the entries that the AI refused, the newest first, in Korean time.

    Example: trading-pipelines rejections --since 7d --symbol KRW-BTC
    """
    _show_bot_rows(
        "rejections",
        bot_tables.REJECTIONS,
        bot_tables.shown_rejection,
        since,
        symbol,
        limit,
        as_json=as_json,
    )


def _show_bot_rows(
    what: str,
    view: bot_tables.View,
    shown: Callable[[bot_tables.Row], dict[str, str]],
    since: str,
    symbol: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    if symbol is not None:
        with _usage_error():
            StrategySettings(symbols=[symbol])
    start = datetime.now(UTC) - _span(since)
    with _connection(load_environment()) as connection:
        found = bot_tables.read(connection, view, since=start, symbol=symbol, limit=limit)
    if as_json:
        sys.stdout.writelines(f"{bot_tables.json_line(row)}\n" for row in found)
        return
    if not found:
        out.print(f"no {what}{f' of {symbol}' if symbol else ''} in {since}")
        return
    table = Table(title=f"{what}, now {kst(datetime.now(UTC))}", title_justify="left")
    rows = list(map(shown, found))
    for heading in rows[0]:
        is_number = heading in {"price (KRW)", "quantity", "fee (KRW)"}
        table.add_column(
            heading,
            justify="right" if is_number else "left",
            no_wrap=is_number or heading in {"symbol", "level"},
            overflow="fold",
            # In 80 columns a date is whole, and a reason no tower.
            max_width={"happened": 10, "decision": 14}.get(heading) if out.width < 120 else None,
        )
    for row in rows:
        table.add_row(*map(_inert, row.values()))
    out.print(table)


def _inert(text: str) -> Text:
    """Return a text of the bot's that does nothing to a terminal: a model wrote parts of it."""
    # Also what turns the direction of writing around.
    return Text(regex.sub(r"[\p{Cc}\u2028-\u202e\u2066-\u2069]+", " ", text))


@alerts_app.command("list")
def alerts_list(
    state: Annotated[
        list[ledger.State] | None, typer.Option(help="Only these; may be given again.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only this of {', '.join(KINDS)}.")] = None,
    since: _Since = "7d",
    limit: _Limit = 50,
    *,
    as_json: _AsJson = False,
) -> None:
    """Show alerts with their state, age, attempts and last error, in Korean time.

    Example: trading-pipelines alerts list --state dead --since 24h
    """
    if kind and kind not in KINDS:
        raise typer.BadParameter(f"{kind}: one of {', '.join(KINDS)}")
    now = datetime.now(UTC)
    with _connection(load_environment()) as connection:
        found = ledger.listed(
            connection, since=now - _span(since), states=state, kind=kind, limit=limit
        )
    if as_json:
        for one in found:
            sys.stdout.write(f"{json.dumps(asdict(one), default=str, ensure_ascii=False)}\n")
        return
    table = Table(title=f"alerts, now {kst(now)}", title_justify="left")
    for heading in ("id", "kind", "what", "happened", "state", "age", "tries"):
        table.add_column(heading, no_wrap=heading in {"id", "state"}, overflow="fold")
    table.add_column("next try, message or last error", overflow="fold")
    for one in found:
        said = " ".join(filter(None, (_next_try(one), one.message_id or one.last_error, _via(one))))
        table.add_row(
            str(one.id),
            one.kind,
            escape(str(one.body.get("symbol") or one.body.get("type") or one.source_id)),
            kst(one.occurred_at),
            one.state,
            _age(now - one.created_at),
            str(one.attempts),
            escape(said),
        )
    out.print(table if found else f"no alerts in {since}")


@alerts_app.command("show")
def alerts_show(number: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Show one alert: what is posted, and each try with its time, answer and latency.

    Example: trading-pipelines alerts show 17
    """
    with _connection(load_environment()) as connection:
        found = ledger.listed(connection, ids=[number])
        tries = ledger.attempts(connection, number)
    if not found:
        _fail(f"there is no alert {number}; `trading-pipelines alerts list` shows what there is")
    (one,) = found
    out.print(f"{one.kind} {one.id}: {one.source} {one.source_id} -> {one.channel}, {one.state}")
    out.print_json(data=one.body, ensure_ascii=False)
    for tried in tries:
        seconds = "" if tried.seconds is None else f"{tried.seconds:.2f} s, "
        answer = escape(tried.answer or "no answer on record")
        out.print(f"{tried.number}. {kst(tried.started_at)} via {tried.via}: {seconds}{answer}")


@alerts_app.command("replay")
def alerts_replay(
    numbers: Annotated[list[int] | None, typer.Argument(metavar="[ID]...")] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    since: Annotated[str, typer.Option(help="With --dead, how far back: 24h, 7d.")] = "7d",
) -> None:
    """Send alerts again: those given, whatever became of them, or all dead ones.

    The sensors of a running `up` send them, each as a new message; a kind that is off stays silent.

    Example: trading-pipelines alerts replay --dead --since 24h
    """
    if bool(numbers) == dead:
        raise typer.BadParameter("either IDs, or --dead")
    with _connection(load_environment()) as connection:
        wanted = numbers or [
            one.id
            for one in ledger.listed(
                connection, since=datetime.now(UTC) - _span(since), states=[ledger.State.DEAD]
            )
        ]
        again = ledger.replay(connection, wanted)
    if missing := sorted(set(wanted) - set(again)):
        _fail(f"{len(again)} will be sent again, but not {', '.join(map(str, missing))}: "
              "there is no such alert, or nothing was ever made of it to send")  # fmt: skip
    out.print(f"{len(again)} will be sent again")


@alerts_app.command("test")
def alerts_test() -> None:
    """Send one of each kind, marked as a test, and show what n8n or Discord answers.

    Example: trading-pipelines alerts test
    """
    posting = _webhooks()
    via = N8N if posting.n8n_url else DISCORD
    failed = 0
    for channel, body in sample_bodies(datetime.now(UTC)).items():
        answer = posting.post(via, channel, body)
        is_good = answer.outcome is Outcome.DELIVERED
        failed += not is_good
        colour = "green" if is_good else "red"
        said = answer.message_id or "" if is_good else answer.text
        out.print(f"{channel:<13}[{colour}]{answer.outcome}[/] {escape(said)} "
                  f"({answer.seconds:.2f} s, via {via})", soft_wrap=True)  # fmt: skip
    if failed:
        _fail(f"{failed} of {len(CHANNELS)} were not delivered")


@n8n_app.command("import")
def n8n_import(
    command: Annotated[
        str, typer.Option(help="How n8n's own command line is run on its machine.")
    ] = "n8n",
    folder: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Where the workflows are (default: n8n_workflows beside the settings).",
        ),
    ] = None,
) -> None:
    """Import the four workflows and their credential, and publish them. Twice is as good as once.

    n8n itself needs N8N_WEBHOOK_SECRET and DISCORD_WEBHOOK_URL in its environment. Where it runs in
    a container, the folder has to be mounted there at the same path.

    Example: trading-pipelines n8n import --command "npx n8n"
    """
    found = folder or load_environment().own_or(n8n.WORKFLOWS)
    for line in n8n.import_workflows(shlex.split(command), found, os.environ):
        out.print(escape(line))


@n8n_app.command("check")
def n8n_check() -> None:
    """Ask n8n at N8N_URL whether each workflow is there and guarded. Sends nothing to Discord.

    Example: trading-pipelines n8n check
    """
    posting = _webhooks()
    if not posting.n8n_url:
        _fail("N8N_URL is not set")
    checked = n8n.check(posting.n8n_url, posting.secret or "", posting.timeout)
    for one in checked:
        out.print(f"{one.channel:<13}[{'green' if one.is_good else 'red'}]{escape(one.said)}[/]")
    if wrong := [one for one in checked if not one.is_good]:
        _fail(f"{len(wrong)} of {len(checked)} workflows can't be used")


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
def inbox(
    port: Annotated[int, typer.Option(help="Port, on 127.0.0.1.")] = 8901,
) -> None:
    """Stand in for Discord on loopback, and print what arrives as Discord would show it.

    Example: DISCORD_WEBHOOK_URL=http://127.0.0.1:8901/api/webhooks/1/token trading-pipelines up,
    beside trading-pipelines inbox
    """
    with DiscordInbox(limited=True, port=port) as discord:
        out.print(f"DISCORD_WEBHOOK_URL={discord.url}")
        threading.Thread(target=_print_messages, args=[discord], daemon=True).start()
        _await_interrupt()


def _print_messages(discord: DiscordInbox) -> None:
    shown = 0
    while True:
        for message in discord.messages[shown:]:
            out.print(show(message.payload))
            shown += 1
        time.sleep(0.2)


@app.command()
def env() -> None:
    """Print the variables by which Dagster's own commands (dg, dagster) find this home.

    Starts the embedded database and leaves it running.

    Example: eval "$(.venv/bin/trading-pipelines env)" && .venv/bin/dg dev
    """
    environment = load_environment()
    home = environment.trading_pipelines_home
    processes.write_instance_settings(environment)
    if services.running(home) is None:
        environment.stop_flag.unlink(
            missing_ok=True
        )  # of services that were killed as they stopped
    variables = {
        "TRADING_PIPELINES_HOME": str(home),
        "DAGSTER_HOME": str(processes.dagster_home(environment)),
        "DAGSTER_POSTGRES_URL": database.prepare(environment).dagster,
    }
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Create or adopt the tables, and migrate to the newest schema. Twice is as good as once.

    Dagster's own storage too, to the version that is installed: stop what runs on it before.
    """
    with _database(load_environment()) as urls:
        instance.upgrade(urls.dagster)
        with database.connect(urls.market) as connection:
            if kept := database.refresh_korean_views(connection):
                _fail("; ".join(kept))
        out.print("the databases are up to date")


@db_app.command("adopt")
def db_adopt(
    *,
    with_exchange: Annotated[
        bool,
        typer.Option("--compare", help="Ask the exchange what a repair of days would change."),
    ] = False,
    symbols: _Symbols = None,
    start: _FirstDay = None,
    end: _LastDay = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, UTC.")] = False,
) -> None:
    """Say what `db upgrade` would add to a database that the bot uses, and what is wrong in it.

    Changes nothing; a role that may only read will do. Exit status 1: something has to be mended
    first. With --compare, after `db upgrade`: how the stored candles differ from the exchange's,
    before a backfill makes them equal.

    Example: trading-pipelines db adopt --compare --start 2025-09-01 --end 2025-09-21
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    if with_exchange:
        target = _target(environment, symbols, start, end)
        _show_differences(environment, settings, target, as_json=as_json)
        return
    if symbols or start or end:
        raise typer.BadParameter("--symbols, --start and --end are of --compare")
    urls = database.urls(environment)
    is_named = environment.dagster_postgres_url is not None
    with database.connect(urls.market) as connection:
        found = adopt.inspect(
            connection, settings.symbols, datetime.now(UTC), urls.dagster, is_named=is_named
        )
    if as_json:
        commands = [one.command for one in found.repairs]
        said = {"can_be_adopted": found.can_be_adopted, "commands": commands, **asdict(found)}
        line = json.dumps(said, default=lambda moment: moment.isoformat(), ensure_ascii=False)
        sys.stdout.write(f"{line}\n")
    else:
        _print_inspection(found)
    sys.exit(0 if found.can_be_adopted else 1)


def _print_inspection(found: adopt.Inspection) -> None:
    out.print(f"as {escape(found.role)}; our schema: {found.revision or 'none'}", soft_wrap=True)
    stored = Table(title="candles", title_justify="left")
    for heading in ("symbol", "interval", "rows", "first", "last", "longest hole from"):
        stored.add_column(heading, justify="right" if heading == "rows" else "left")
    for one in found.candles:
        holes = [hole for hole in found.holes if (hole.symbol, "1m") == (one.symbol, one.interval)]
        longest = max(holes, key=lambda hole: hole.minutes, default=None)
        hole = f"{kst(longest.start)}, {longest.minutes:,} min" if longest else ""
        numbers = (f"{one.rows:,}", kst(one.first), kst(one.last), hole)
        stored.add_row(*map(_inert, (one.symbol, one.interval, *numbers)))
    out.print(stored)
    colours = {adopt.Level.MEND: "red", adopt.Level.REPAIR: "yellow", adopt.Level.NOTE: "dim"}
    table = Table(title="found", title_justify="left")
    for heading in ("", "about", "what", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=not heading)
    for finding in found.findings:
        words = map(_inert, (finding.about, finding.what, finding.advice))
        table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", *words)
    out.print(table if found.findings else "nothing wrong was found")
    out.print(f"`db upgrade` adds: {', '.join(found.adds) or 'nothing'}", soft_wrap=True)
    for repair in found.repairs:
        out.print(f"afterwards: {escape(repair.command)}", soft_wrap=True)
    last = "[red]to be mended first, then asked again[/]"
    out.print("[green]can be adopted[/]" if found.can_be_adopted else last)


def _show_differences(
    environment: Environment,
    settings: StrategySettings,
    target: backfills.Target,
    *,
    as_json: bool,
) -> None:
    stretch = Interval(day_interval(target.first).start, day_interval(target.last).end)
    found: list[Comparison] = []
    failed: dict[str, str] = {}
    with database.connect(database.urls(environment).market) as connection:
        try:
            slots = RequestSlots(
                connection, environment.upbit_base_url, settings.exchange.requests_per_second
            )
        except psycopg.ProgrammingError as error:
            _fail(f"`trading-pipelines db upgrade` comes first: {error}")
        exchange = Exchange(environment.upbit_base_url, slots, settings.exchange)
        for symbol in target.symbols:
            _say(f"{symbol}: asking the exchange for {len(target.days)} days")
            try:
                found.append(compare(connection, exchange, symbol, stretch))
            except (ExchangeFailure, Blocked) as error:
                failed[symbol] = str(error)
    if as_json:
        said = {"compared": [asdict(one) for one in found], "failed": failed}
        sys.stdout.write(f"{json.dumps(said)}\n")
    else:
        _print_differences(found, target)
    if failed:
        _fail("; ".join(failed.values()))


def _print_differences(found: Sequence[Comparison], target: backfills.Target) -> None:
    table = Table(
        title=f"what a repair of {target.first} to {target.last} (UTC days) would change",
        caption="values: how many differ, by how much in the median, at most",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("symbol", no_wrap=True)
    for heading in ("compared", "added", "changed", "not there", *VALUES):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(
            one.symbol, *(f"{n:,}" for n in (one.compared, one.added, one.changed, one.kept)),
            *(f"{c.values:,}  {c.median:.2%}  {c.largest:.2%}" if c else "-"
              for c in one.changes.values()),
        )  # fmt: skip
    out.print(table)
    if differing := tuple(one.symbol for one in found if one.added or one.changed):
        repair = adopt.Repair(differing, target.first, target.last)
        out.print(f"to repair: {escape(repair.command)}", soft_wrap=True)


@db_app.command("url")
def db_url() -> None:
    """Print the database's URL for psql; leaves an embedded server running (`down` stops it).

    Example: psql "$(trading-pipelines db url)"
    """
    sys.stdout.write(f"{database.prepare(load_environment()).market}\n")


@db_app.command("backup")
def db_backup(
    file: Annotated[
        Path | None, typer.Argument(help="Made, never overwritten (default: in <home>/backups).")
    ] = None,
) -> None:
    """Write both embedded databases to one file, as they are now, whatever runs meanwhile.

    Example: trading-pipelines db backup /mnt/elsewhere/monday.tar
    """
    environment = load_environment()
    now, started = datetime.now(UTC), time.monotonic()
    target = file or environment.trading_pipelines_home / "backups" / f"{now:%Y%m%dT%H%M%SZ}.tar"
    server = _embedded(environment, "pg_dump")
    with _left_as_found(environment):
        back_up(server, target, now, _say)
    out.print(f"{escape(str(target))}: {target.stat().st_size / 1e6:,.1f} MB in "
              f"{time.monotonic() - started:.1f} s", soft_wrap=True)  # fmt: skip


@db_app.command("restore")
def db_restore(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Of `db backup`.")],
) -> None:
    """Put a backup in the place of both embedded databases, which are kept under other names.

    Also on an empty home. Where it fails or is killed, nothing has changed.

    Example: trading-pipelines db restore .data/backups/20251124T030000Z.tar
    """
    environment = load_environment()
    home = environment.trading_pipelines_home
    now, started = datetime.now(UTC), time.monotonic()
    server = _embedded(environment, "pg_restore")
    if services.running(home):
        _fail(f"the services of {home} are running: stop them with `trading-pipelines down`")
    with _left_as_found(environment):
        done = restore(server, file, now, _say)
    out.print(f"restored {done.manifest.rows:,} rows as of {kst(done.manifest.made_at)} in "
              f"{time.monotonic() - started:.1f} s")  # fmt: skip
    out.print("Candles and signals since then are fetched and computed again by `up`. The bot's "
              "rows and the alerts are the backup's: what waited then is sent, again where it had "
              "been delivered afterwards.", soft_wrap=True)  # fmt: skip
    if done.former:
        drops = " ".join(f"-c 'DROP DATABASE {name}'" for name in done.former)
        out.print("What was there before is kept until you drop it: "
                  f'psql "$(trading-pipelines db url)" {drops}', soft_wrap=True)  # fmt: skip


def _embedded(environment: Environment, program: str) -> EmbeddedServer:
    """Return the embedded server; refuse where a database is elsewhere."""
    home = environment.trading_pipelines_home
    here = environment.model_copy(update={"database_url": None, "dagster_postgres_url": None})
    if database.urls(environment) != database.urls(here):
        _fail(f"a database of yours is used ({' or '.join(database.VARIABLES)} is set): take your "
              f"server's {program}, for both databases")  # fmt: skip
    return EmbeddedServer(home)


def _say(step: str) -> None:
    err.print(escape(step), soft_wrap=True)


def _webhooks() -> Webhooks:
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    found = Webhooks.of(environment, settings.alerts)
    if found is None:
        _fail("set N8N_URL and N8N_WEBHOOK_SECRET, or DISCORD_WEBHOOK_URL")
    return found


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if not found:
        raise typer.BadParameter(f"{text}: a number and m, h or d, such as 24h")
    unit = {"m": "minutes", "h": "hours", "d": "days"}[found[2]]
    return timedelta(**{unit: int(found[1])})


def _age(age: timedelta) -> str:
    """Return a span to its largest unit: 45 s, 12 min, 3 h, 5 d."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age.total_seconds() >= 2 * seconds:
            return f"{age.total_seconds() / seconds:.0f} {unit}"
    return f"{age.total_seconds():.0f} s"


def _next_try(one: ledger.Delivery) -> str:
    is_waiting = one.state in {ledger.State.PENDING, ledger.State.RETRYING}
    return f"from {kst(one.next_at)}" if is_waiting else ""


def _via(one: ledger.Delivery) -> str:
    return "(to Discord directly)" if one.via == DISCORD else ""


@contextlib.contextmanager
def _database(
    environment: Environment, *, is_owner: bool = False
) -> Iterator[database.DatabaseUrls]:
    """Prepare the database and leave it as it was found; its owner stops it in any case."""
    with _left_as_found(environment, is_owner=is_owner):
        yield database.prepare(environment)


@contextlib.contextmanager
def _left_as_found(environment: Environment, *, is_owner: bool = False) -> Iterator[None]:
    server = database.embedded_server(environment)
    was_running = server is None or server.is_running()
    try:
        yield
    finally:
        in_use = services.running(environment.trading_pipelines_home) is not None
        if server is not None and not in_use and (is_owner or not was_running):
            server.stop()


@contextlib.contextmanager
def _connection(environment: Environment) -> Iterator[psycopg.Connection]:
    with _database(environment) as urls, database.connect(urls.market) as connection:
        yield connection


def _target(
    environment: Environment, symbols: str | None, start: datetime | None, end: datetime | None
) -> backfills.Target:
    """Return what was asked for; the settings are read for what was left out alone."""
    today = datetime.now(UTC).date()
    settings = StrategySettings()
    if symbols is None or start is None:
        settings = load_strategy(environment.trading_pipelines_config)
    names = settings.symbols
    if symbols is not None:
        names = [name.strip() for name in symbols.split(",") if name.strip()]
    first = start.date() if start else settings.data.start_date
    last = end.date() if end else today - DAY
    with _usage_error():
        StrategySettings(symbols=names, data=DataSettings(start_date=first))
    if first > last:
        raise typer.BadParameter(f"--start {first} is after --end {last}")
    if last > today:
        raise typer.BadParameter(f"--end {last} is in the future; today is {today} in UTC")
    return backfills.Target(tuple(names), first, last)


@contextlib.contextmanager
def _usage_error() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise typer.BadParameter("; ".join(problems)) from error


def _write_settings(settings: StrategySettings, start_date: date, config: Path) -> None:
    """Write settings for one backfill: partitions from its first day on, no schedule beside it."""
    data = settings.data.model_copy(update={"start_date": start_date, "refresh": False})
    dump_strategy(settings.model_copy(update={"data": data}), config)


def _demo_webhooks(
    stack: contextlib.ExitStack, home: Path, inbox: DiscordInbox
) -> dict[str, SecretStr | None]:
    """Start the real n8n where it is installed; else alerts go to the inbox directly."""
    if n8n.installed() is None:
        out.print("[yellow]n8n is not installed (`make n8n`): alerts go to Discord directly[/]")
        return _inbox_alone(inbox)
    secret = secrets.token_urlsafe()
    out.print("starting n8n, with a local inbox in Discord's place")
    local = stack.enter_context(n8n.LocalN8n(home / "n8n", secret=secret, discord_url=inbox.url))
    return {
        **_inbox_alone(inbox),
        "n8n_url": SecretStr(local.url),
        "n8n_webhook_secret": SecretStr(secret),
    }


def _show_reject(
    connection: psycopg.Connection, inbox: DiscordInbox, symbol: str, decided_at: datetime
) -> None:
    """Reject a trade as the bot would, and show what arrives."""
    now = datetime.now(UTC)
    if now - decided_at > DAY:
        decided_at = now  # a recording of long ago: an alert is about now
    reason = "RSI는 낮지만 거래량이 받쳐주지 않아 진입을 보류합니다. (demo)"
    connection.execute(REJECT, [symbol, reason, decided_at])
    started = time.monotonic()
    try:
        message = inbox.wait_for(lambda m: reason in str(m.payload), ALERT_SECONDS)
    except TimeoutError:
        _fail(f"no alert arrived within {ALERT_SECONDS:.0f} s: see the sensor ai_reject_alerts")
    out.print(f"a REJECT of the bot, {time.monotonic() - started:.1f} s later in Discord's place:")
    out.print(show(message.payload))


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
    for line in in_stretches(Due("", day.symbol, day.day, said) for day, said in outcome.failed):
        out.print(f"[red]failed[/] {escape(line)}", soft_wrap=True)
    for run in outcome.failed_runs:
        out.print(f"[red]failed[/] run {run}", soft_wrap=True)


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


def _print_health(checks: Sequence[Check], now: datetime) -> None:
    table = Table(title=f"health, now {kst(now)}", title_justify="left")
    for heading in ("check", "state", "found", "allowed", "what to do"):
        table.add_column(heading, no_wrap=heading in {"check", "state"}, overflow="fold")
    states = {True: "[green]good[/]", False: "[red]bad[/]", None: "[yellow]not known[/]"}
    for check in checks:
        # Where nothing is known, mending the database comes first.
        advice = check.advice if check.good is False else ""
        words = map(escape, (check.found, check.allowed, advice))
        table.add_row(check.name, states[check.good], *words)
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
