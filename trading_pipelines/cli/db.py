"""`db upgrade | adopt | url | backup | restore`: the database, its schema and its copies."""

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

from trading_pipelines.candles.compare import VALUES, Comparison, compare
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
from trading_pipelines.database.adoption import findings, inspection
from trading_pipelines.database.backup import back_up, restore
from trading_pipelines.database.connection import (
    connect,
    database_urls,
    prepare_database,
    refresh_korean_views,
)
from trading_pipelines.korean_time import kst
from trading_pipelines.runtime.backfill import BackfillTarget
from trading_pipelines.runtime.home import running_services
from trading_pipelines.runtime.sessions import database_left_as_found, prepared_database
from trading_pipelines.settings.environment import Environment, load_environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import load_strategy

app = typer.Typer(help="The database: its schema and where it is.", no_args_is_help=True)


@app.command("upgrade")
def db_upgrade() -> None:
    """Create or adopt the tables, and migrate to the newest schema. Twice is as good as once.

    Dagster's own storage too, to the version that is installed: stop what runs on it before.
    """
    from trading_pipelines.monitoring import dagster_instance

    with prepared_database(load_environment()) as urls:
        dagster_instance.upgrade(urls.dagster)
        with connect(urls.market) as connection:
            if kept := refresh_korean_views(connection):
                fail("; ".join(kept))
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

    Changes nothing; a role that may only read will do. Exit status 1: something has to be mended
    first. With --compare, after `db upgrade`: how the stored candles differ from the exchange's,
    before a backfill makes them equal.

    Example: trading-pipelines db adopt --compare --start 2025-09-01 --end 2025-09-21
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    if with_exchange:
        target = backfill_target(environment, symbols, start, end)
        _show_differences(environment, settings, target, as_json=as_json)
        return
    if symbols or start or end:
        raise typer.BadParameter("--symbols, --start and --end are of --compare")
    urls = database_urls(environment)
    is_named = environment.dagster_postgres_url is not None
    with connect(urls.market) as connection:
        found = inspection.inspect(
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


def _print_inspection(found: findings.Inspection) -> None:
    out.print(f"as {escape(found.role)}; our schema: {found.revision or 'none'}", soft_wrap=True)
    stored = Table(title="candles", title_justify="left")
    for heading in ("symbol", "interval", "rows", "first", "last", "longest hole from"):
        stored.add_column(heading, justify="right" if heading == "rows" else "left")
    for one in found.candles:
        holes = [hole for hole in found.holes if (hole.symbol, "1m") == (one.symbol, one.interval)]
        longest = max(holes, key=lambda hole: hole.minutes, default=None)
        hole = f"{kst(longest.start)}, {longest.minutes:,} min" if longest else ""
        numbers = (f"{one.rows:,}", kst(one.first), kst(one.last), hole)
        stored.add_row(*map(inert, (one.symbol, one.interval, *numbers)))
    out.print(stored)
    colours = {
        findings.Level.MEND: "red",
        findings.Level.REPAIR: "yellow",
        findings.Level.NOTE: "dim",
    }
    table = Table(title="found", title_justify="left")
    for heading in ("", "about", "what", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=not heading)
    for finding in found.findings:
        words = map(inert, (finding.about, finding.what, finding.advice))
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
    target: BackfillTarget,
    *,
    as_json: bool,
) -> None:
    stretch = Interval(day_interval(target.first).start, day_interval(target.last).end)
    found: list[Comparison] = []
    failed: dict[str, str] = {}
    with connect(database_urls(environment).market) as connection:
        try:
            slots = RequestSlots(
                connection, environment.upbit_base_url, settings.exchange.requests_per_second
            )
        except psycopg.ProgrammingError as error:
            fail(f"`trading-pipelines db upgrade` comes first: {error}")
        exchange = Exchange(environment.upbit_base_url, slots, settings.exchange)
        for symbol in target.symbols:
            print_step(f"{symbol}: asking the exchange for {len(target.days)} days")
            try:
                found.append(compare(connection, exchange, symbol, stretch))
            except (ExchangeError, BlockedError) as error:
                failed[symbol] = str(error)
    if as_json:
        said = {"compared": [asdict(one) for one in found], "failed": failed}
        sys.stdout.write(f"{json.dumps(said)}\n")
    else:
        _print_differences(found, target)
    if failed:
        fail("; ".join(failed.values()))


def _print_differences(found: Sequence[Comparison], target: BackfillTarget) -> None:
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
        repair = findings.Repair(differing, target.first, target.last)
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
        Path | None, typer.Argument(help="Made, never overwritten (default: in <home>/backups).")
    ] = None,
) -> None:
    """Write both embedded databases to one file, as they are now, whatever runs meanwhile.

    Example: trading-pipelines db backup /mnt/elsewhere/monday.tar
    """
    environment = load_environment()
    now, started = datetime.now(UTC), time.monotonic()
    target = file or environment.trading_pipelines_home / "backups" / f"{now:%Y%m%dT%H%M%SZ}.tar"
    server = embedded_or_refuse(environment, "pg_dump")
    with database_left_as_found(environment):
        back_up(server, target, now, print_step)
    out.print(f"{escape(str(target))}: {target.stat().st_size / 1e6:,.1f} MB in "
              f"{time.monotonic() - started:.1f} s", soft_wrap=True)  # fmt: skip


@app.command("restore")
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
    server = embedded_or_refuse(environment, "pg_restore")
    if running_services(home):
        fail(f"the services of {home} are running: stop them with `trading-pipelines down`")
    with database_left_as_found(environment):
        done = restore(server, file, now, print_step)
    out.print(f"restored {done.manifest.rows:,} rows as of {kst(done.manifest.made_at)} in "
              f"{time.monotonic() - started:.1f} s")  # fmt: skip
    out.print("Candles and signals since then are fetched and computed again by `up`. The bot's "
              "rows and the alerts are the backup's: what waited then is sent, again where it had "
              "been delivered afterwards.", soft_wrap=True)  # fmt: skip
    if done.former:
        drops = " ".join(f"-c 'DROP DATABASE {name}'" for name in done.former)
        out.print("What was there before is kept until you drop it: "
                  f'psql "$(trading-pipelines db url)" {drops}', soft_wrap=True)  # fmt: skip
