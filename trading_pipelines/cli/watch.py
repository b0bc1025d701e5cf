"""`status | health | signals | flags`: the state, whether all is well, what the bot reads."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from trading_pipelines.cli.render import out, print_flags, print_health, print_signals
from trading_pipelines.database.connection import connect, database_urls
from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring.checks import NEEDS, facts_needed, judge
from trading_pipelines.monitoring.daemons import ask_for_daemons
from trading_pipelines.monitoring.facts import DAGSTERS, NOT_ASKED, Orchestration, Unknown
from trading_pipelines.monitoring.measure import measure
from trading_pipelines.monitoring.status import draw as draw_status
from trading_pipelines.monitoring.status import read as read_status
from trading_pipelines.monitoring.status import services_apart
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.sessions import market_connection, prepared_database
from trading_pipelines.settings.environment import Environment, load_environment
from trading_pipelines.settings.last_good import read_settings
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import load_strategy
from trading_pipelines.signals.published.current import read_current_signals
from trading_pipelines.signals.published.flags import read_flag_shares

app = typer.Typer()


@app.command()
def status() -> None:
    """Show what is complete to when, in flight, due and why, left failed, in Korean time.

    Example: trading-pipelines status
    """
    from trading_pipelines.monitoring import dagster_instance
    from trading_pipelines.schedules.in_flight import runs_in_flight

    environment = load_environment()
    in_use = read_settings(environment)
    settings = in_use.settings
    now = datetime.now(UTC)
    with prepared_database(environment) as urls, connect(urls.market) as connection:
        installation = read_status(connection, settings, environment.upbit_base_url, now)
        in_flight = dagster_instance.ask(urls.dagster, runs_in_flight)
        services = _services(environment, settings, now)
    runs = in_flight.reason if isinstance(in_flight, Unknown) else in_flight
    for part in draw_status(installation, services, runs, now, in_use.refused):
        out.print(part, soft_wrap=isinstance(part, str))


def _services(environment: Environment, settings: StrategySettings, now: datetime) -> str:
    running = Home.of(environment).running_services()
    if running:
        return running.url or "starting"
    if environment.database_url is None:
        return "not running"
    answer = _ask_dagster(environment, settings, now, {"daemons"})
    return services_apart(answer if isinstance(answer, Unknown) else answer.daemons, now)


@app.command()
def health(
    only: Annotated[
        list[str] | None, typer.Option(help="Judge this check alone; may be given again.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, UTC.")] = False,
) -> None:
    """Say whether all is well, what is not, and what mends it; exit status 1 where anything is not.

    It starts and changes nothing. A check whose facts can't be known is not good.

    Example: trading-pipelines health --json
    """
    if unknown := sorted({*(only or [])} - NEEDS.keys()):
        raise typer.BadParameter(f"--only {', '.join(unknown)}: one of {', '.join(NEEDS)}")
    environment = load_environment()
    settings = read_settings(environment).settings
    now = datetime.now(UTC)
    names = only or NEEDS
    needed = facts_needed(names)
    orchestration = _ask_dagster(environment, settings, now, needed)
    facts = measure(environment, settings, orchestration, now, needed)
    checks = judge(facts, settings, now, datetime.isoformat if as_json else kst, names)
    good = all(check.good for check in checks)
    if as_json:
        content = {"good": good, "checked_at": now, "checks": [asdict(check) for check in checks]}
        line = json.dumps(content, default=datetime.isoformat, ensure_ascii=False)
        sys.stdout.write(f"{line}\n")
    else:
        print_health(checks, now)
    sys.exit(0 if good else 1)


def _ask_dagster(
    environment: Environment, settings: StrategySettings, now: datetime, facts: set[str]
) -> Orchestration | Unknown:
    """Return the facts that Dagster knows; where none of them is Dagster's, it is not imported."""
    asked = DAGSTERS & facts
    if not asked:
        return NOT_ASKED
    url = database_urls(environment).dagster
    if asked == {"daemons"}:
        return ask_for_daemons(url, now)
    from trading_pipelines.monitoring import dagster_instance

    if facts.isdisjoint({"schedules", "sensors"}):
        return dagster_instance.probe_dagster(url, [], [], now, facts)
    from trading_pipelines.definitions import build_schedules, build_sensors

    automation = build_schedules(settings), build_sensors(settings)
    return dagster_instance.probe_dagster(url, *automation, now, facts)


@app.command()
def signals() -> None:
    """Show each symbol's newest regime and volatility, as of when and until when, in Korean time.

    Example: trading-pipelines signals
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    with market_connection(environment) as connection:
        horizon = settings.volatility.published_horizon
        print_signals(read_current_signals(connection, settings.symbols, horizon))


@app.command()
def flags() -> None:
    """Show how much of the last 30 days each horizon's flag `is_high_volatility` was up.

    The bot refuses every entry while the flag in Redis is up. It is the first symbol's, of
    `volatility.published_horizon` or the longest horizon: look here before you change that.

    Example: trading-pipelines flags
    """
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    horizons, symbol = settings.volatility.horizons, settings.symbols[0]
    published = settings.volatility.published_horizon or max(horizons)
    with market_connection(environment) as connection:
        shares = read_flag_shares(connection, symbol, horizons, datetime.now(UTC))
    print_flags(symbol, shares, published)
