"""`status | health | signals`: how it stands, whether all is well, what is said now."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from trading_pipelines.cli.render import out, print_health, print_signals
from trading_pipelines.database.connection import connect, database_urls
from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring.checks import NEEDS, facts_needed, judge
from trading_pipelines.monitoring.facts import DAGSTERS, NOT_ASKED, Orchestration, Unknown
from trading_pipelines.monitoring.measure import measure
from trading_pipelines.monitoring.status import draw as draw_status
from trading_pipelines.monitoring.status import read as read_status
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.sessions import market_connection, prepared_database
from trading_pipelines.settings.environment import Environment, load_environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import load_strategy
from trading_pipelines.signals.published.current import read_current_signals

app = typer.Typer()


@app.command()
def status() -> None:
    """Show what is complete to when, in flight, due and why, left failed, in Korean time.

    Example: trading-pipelines status
    """
    from trading_pipelines.monitoring import dagster_instance
    from trading_pipelines.schedules.in_flight import runs_in_flight

    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    now = datetime.now(UTC)
    with prepared_database(environment) as urls, connect(urls.market) as connection:
        found = read_status(connection, settings, now)
        flying = dagster_instance.ask(urls.dagster, runs_in_flight)
    running = Home.of(environment).running_services()
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
    if unknown := sorted({*(only or [])} - NEEDS.keys()):
        raise typer.BadParameter(f"--only {', '.join(unknown)}: one of {', '.join(NEEDS)}")
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    now = datetime.now(UTC)
    names = only or NEEDS
    wanted = facts_needed(names)
    orchestration = _asked_of_dagster(environment, settings, now, wanted)
    facts = measure(environment, settings, orchestration, now, wanted)
    checks = judge(facts, settings, now, datetime.isoformat if as_json else kst, names)
    good = all(check.good for check in checks)
    if as_json:
        said = {"good": good, "checked_at": now, "checks": [asdict(check) for check in checks]}
        sys.stdout.write(f"{json.dumps(said, default=datetime.isoformat, ensure_ascii=False)}\n")
    else:
        print_health(checks, now)
    sys.exit(0 if good else 1)


def _asked_of_dagster(
    environment: Environment, settings: StrategySettings, now: datetime, wanted: set[str]
) -> Orchestration | Unknown:
    """Return what Dagster knows of what is wanted; it is not imported where that is nothing."""
    if DAGSTERS.isdisjoint(wanted):
        return NOT_ASKED
    from trading_pipelines.monitoring import dagster_instance

    url = database_urls(environment).dagster
    if wanted.isdisjoint({"schedules", "sensors"}):
        return dagster_instance.probe_dagster(url, [], [], now, wanted)
    from trading_pipelines.definitions import build_schedules, build_sensors

    automation = build_schedules(settings), build_sensors(settings)
    return dagster_instance.probe_dagster(url, *automation, now, wanted)


@app.command()
def signals() -> None:
    """Show each symbol's newest regime and volatility, as of when and until when, in Korean time.

    Example: trading-pipelines signals
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    with market_connection(environment) as connection:
        print_signals(read_current_signals(connection, settings.symbols))
