"""`db upgrade | wait | adopt | url | backup | restore`: the database, its schema and backups."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psycopg
import typer
from rich.markup import escape
from rich.table import Table

from trading_pipelines.candles.compare import compare
from trading_pipelines.candles.differences import VALUES, Comparison
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.page import ExchangeError
from trading_pipelines.candles.rate_limit import BlockedError, RequestSlots
from trading_pipelines.candles.windows import Interval, day_interval
from trading_pipelines.cli.options import (
    FirstDayOption,
    LastDayOption,
    SymbolsOption,
    backfill_target,
)
from trading_pipelines.cli.render import fail, inert, out, print_step
from trading_pipelines.cli.sessions import embedded_or_refuse
from trading_pipelines.database.adoption.findings import Inspection, Level, Repair
from trading_pipelines.database.adoption.inspection import inspect
from trading_pipelines.database.backup import back_up, restore
from trading_pipelines.database.connection import (
    connect,
    database_urls,
    prepare_database,
    refresh_korean_views,
    require_storage,
)
from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring.measure import missing_for_a_start
from trading_pipelines.runtime.backfill import BackfillTarget
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.sessions import database_left_as_found, prepared_database
from trading_pipelines.settings.environment import Environment, load_environment
from trading_pipelines.settings.strategy import ExchangeSettings
from trading_pipelines.settings.strategy_file import load_strategy

WAIT_SECONDS = 2

app = typer.Typer(help="The database: its schema, its address, its backups.", no_args_is_help=True)


@app.command("upgrade")
def db_upgrade() -> None:
    """Create or adopt the tables, and migrate them to the newest schema; Dagster's storage too.

    Stop what runs on them before: Dagster's storage is migrated to the installed version. Where all
    is up to date, nothing changes.

    Example: trading-pipelines db upgrade
    """
    from trading_pipelines.monitoring import dagster_instance

    with prepared_database(load_environment()) as urls:
        require_storage(urls.dagster)
        dagster_instance.upgrade(urls.dagster)
        with connect(urls.market) as connection:
            if not_refreshed := refresh_korean_views(connection):
                fail("; ".join(not_refreshed))
        out.print("the databases are up to date")


@app.command("wait")
def db_wait() -> None:
    """Wait until `db upgrade` has prepared both databases, for what starts beside it.

    It starts and changes nothing.

    Example: trading-pipelines db wait
    """
    environment = load_environment()
    waits_for = None
    while problems := missing_for_a_start(environment):
        if problems != waits_for:
            out.print(f"waiting: {'; '.join(problems)}", markup=False, soft_wrap=True)
        waits_for = problems
        time.sleep(WAIT_SECONDS)
    out.print("the databases are up to date")


@app.command("adopt")
def db_adopt(
    *,
    with_exchange: Annotated[
        bool,
        typer.Option("--compare", help="Ask the exchange what a repair of days would change."),
    ] = False,
    symbols: SymbolsOption = None,
    start: FirstDayOption = None,
    end: LastDayOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, UTC.")] = False,
) -> None:
    """Say what `db upgrade` would add to a database that the bot uses, and what is wrong in it.

    Changes nothing; a role that may only read is enough. Exit status 1: something has to be mended
    first. With --compare, after `db upgrade`, it shows how the stored candles differ from the
    exchange's, before a backfill makes them equal.

    Example: trading-pipelines db adopt --compare --start 2025-09-01 --end 2025-09-21
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    if with_exchange:
        target = backfill_target(environment, symbols, start, end)
        _show_differences(environment, settings.exchange, target, as_json=as_json)
        return
    if symbols or start or end:
        raise typer.BadParameter("--symbols, --start and --end go with --compare")
    urls = database_urls(environment)
    is_named = environment.dagster_postgres_url is not None
    with connect(urls.market) as connection:
        inspection = inspect(
            connection, settings.symbols, datetime.now(UTC), urls.dagster, is_named=is_named
        )
    if as_json:
        content = {
            "can_be_adopted": inspection.can_be_adopted,
            "commands": [repair.command for repair in inspection.repairs],
            **asdict(inspection),
        }
        line = json.dumps(content, default=lambda moment: moment.isoformat(), ensure_ascii=False)
        sys.stdout.write(f"{line}\n")
    else:
        _print_inspection(inspection)
    sys.exit(0 if inspection.can_be_adopted else 1)


def _print_inspection(inspection: Inspection) -> None:
    schema = inspection.revision or "none"
    out.print(f"as {escape(inspection.role)}; our schema: {schema}", soft_wrap=True)
    stored = Table(title="candles", title_justify="left")
    for heading in ("symbol", "interval", "rows", "first", "last", "longest hole from"):
        stored.add_column(heading, justify="right" if heading == "rows" else "left")
    for candles in inspection.candles:
        name = (candles.symbol, candles.interval)
        holes = [hole for hole in inspection.holes if (hole.symbol, "1m") == name]
        longest = max(holes, key=lambda hole: hole.minutes, default=None)
        hole = f"{kst(longest.start)}, {longest.minutes:,} min" if longest else ""
        numbers = (f"{candles.rows:,}", kst(candles.first), kst(candles.last), hole)
        stored.add_row(*map(inert, (*name, *numbers)))
    out.print(stored)
    colours = {Level.MEND: "red", Level.REPAIR: "yellow", Level.NOTE: "dim"}
    table = Table(title="found", title_justify="left")
    for heading in ("", "about", "what", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=not heading)
    for finding in inspection.findings:
        words = map(inert, (finding.about, finding.what, finding.advice))
        table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", *words)
    out.print(table if inspection.findings else "nothing wrong was found")
    out.print(f"`db upgrade` adds: {', '.join(inspection.adds) or 'nothing'}", soft_wrap=True)
    for repair in inspection.repairs:
        out.print(f"afterwards: {escape(repair.command)}", soft_wrap=True)
    last = "[red]to be mended first, then asked again[/]"
    out.print("[green]can be adopted[/]" if inspection.can_be_adopted else last)


def _show_differences(
    environment: Environment,
    settings: ExchangeSettings,
    target: BackfillTarget,
    *,
    as_json: bool,
) -> None:
    interval = Interval(day_interval(target.first).start, day_interval(target.last).end)
    comparisons: list[Comparison] = []
    failed: dict[str, str] = {}
    market = database_urls(environment).market
    with connect(market) as connection, connect(market) as line:
        try:
            slots = RequestSlots(line, environment.upbit_base_url, settings.requests_per_second)
        except psycopg.ProgrammingError as error:
            fail(f"`trading-pipelines db upgrade` comes first: {error}")
        exchange = Exchange(environment.upbit_base_url, slots, settings)
        for symbol in target.symbols:
            print_step(f"{symbol}: asking the exchange for {len(target.days)} days")
            try:
                comparisons.append(compare(connection, exchange, symbol, interval))
            except (ExchangeError, BlockedError) as error:
                failed[symbol] = str(error)
    if as_json:
        content = {"compared": [asdict(comparison) for comparison in comparisons], "failed": failed}
        sys.stdout.write(f"{json.dumps(content)}\n")
    else:
        _print_differences(comparisons, target)
    if failed:
        fail("; ".join(failed.values()))


def _print_differences(comparisons: Sequence[Comparison], target: BackfillTarget) -> None:
    table = Table(
        title=f"what a repair of {target.first} to {target.last} (UTC days) would change",
        caption="values: how many differ, by how much in the median, at most",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("symbol", no_wrap=True)
    for heading in ("compared", "added", "changed", "not there", *VALUES):
        table.add_column(heading, justify="right")
    for comparison in comparisons:
        counts = (comparison.compared, comparison.added, comparison.changed, comparison.kept)
        changes = comparison.changes.values()
        table.add_row(
            comparison.symbol,
            *(f"{count:,}" for count in counts),
            *(f"{c.values:,}  {c.median:.2%}  {c.largest:.2%}" if c else "-" for c in changes),
        )
    out.print(table)
    if differing := tuple(c.symbol for c in comparisons if c.added or c.changed):
        repair = Repair(differing, target.first, target.last)
        out.print(f"to repair: {escape(repair.command)}", soft_wrap=True)


@app.command("url")
def db_url() -> None:
    """Print the database's URL for psql; leaves an embedded server running (`down` stops it).

    Example: psql "$(trading-pipelines db url)"
    """
    sys.stdout.write(f"{prepare_database(load_environment()).market}\n")


@app.command("backup")
def db_backup(
    file: Annotated[
        Path | None,
        typer.Argument(help="A new file; none is overwritten (default: in <home>/backups)."),
    ] = None,
) -> None:
    """Write both embedded databases to one file, as they are now; the services may go on.

    Example: trading-pipelines db backup /mnt/elsewhere/monday.tar
    """
    environment = load_environment()
    now, started = datetime.now(UTC), time.monotonic()
    target = file or Home.of(environment).backup(now)
    server = embedded_or_refuse(environment, "pg_dump")
    with database_left_as_found(environment):
        back_up(server, target, now, print_step)
    size = f"{target.stat().st_size / 1e6:,.1f} MB"
    passed = time.monotonic() - started
    out.print(f"{escape(str(target))}: {size} in {passed:.1f} s", soft_wrap=True)


@app.command("restore")
def db_restore(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A file of `db backup`.")
    ],
) -> None:
    """Put a backup in the place of both embedded databases, which are kept under other names.

    The home may be empty. Where it fails or is killed, nothing has changed.

    Example: trading-pipelines db restore .data/backups/20251124T030000Z.tar
    """
    environment = load_environment()
    home = Home.of(environment)
    now, started = datetime.now(UTC), time.monotonic()
    server = embedded_or_refuse(environment, "pg_restore")
    if home.running_services():
        fail(f"the services of {home.path} are running: stop them with `trading-pipelines down`")
    with database_left_as_found(environment):
        restored = restore(server, file, now, print_step)
    manifest, passed = restored.manifest, time.monotonic() - started
    out.print(f"restored {manifest.rows:,} rows as of {kst(manifest.made_at)} in {passed:.1f} s")
    out.print(
        "Candles and signals since then are fetched and computed again by `up`. The bot's rows and "
        "the alerts are the backup's: what waited then is sent, again where it had been delivered "
        "afterwards.",
        soft_wrap=True,
    )
    if restored.former:
        drops = " ".join(f"-c 'DROP DATABASE {name}'" for name in restored.former)
        out.print(
            "What was there before is kept until you drop it: "
            f'psql "$(trading-pipelines db url)" {drops}',
            soft_wrap=True,
        )
