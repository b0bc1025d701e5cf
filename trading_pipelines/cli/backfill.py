"""`backfill`: a native partition backfill, launched and followed to its end."""

import contextlib
from typing import Annotated

import typer

from trading_pipelines.cli import render
from trading_pipelines.cli.options import (
    FirstDayOption,
    LastDayOption,
    SymbolsOption,
    backfill_target,
)
from trading_pipelines.cli.render import exit_by, fail, show_summary
from trading_pipelines.runtime.backfill import run_backfill, write_backfill_settings
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.sessions import prepared_database
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import load_strategy

app = typer.Typer()


@app.command()
def backfill(
    symbols: SymbolsOption = None,
    start: FirstDayOption = None,
    end: LastDayOption = None,
    *,
    with_signals: Annotated[
        bool,
        typer.Option(
            "--with-signals",
            help="Compute labels, models, forecasts too: for days that no schedule looks at.",
        ),
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Ask for complete days too, and repair rows that differ."),
    ] = False,
) -> None:
    """Fetch days of candles by Dagster's native partition backfill, and follow it to its end.

    Uses the running instance of this home or of WEBSERVER_URL, or starts what it needs for its
    duration.

    Example: trading-pipelines backfill --symbols KRW-BTC --start 2025-09-22 --end 2025-09-25
    """
    environment = load_environment()
    target = backfill_target(environment, symbols, start, end)
    home = Home.of(environment)
    with contextlib.ExitStack() as stack:
        urls = stack.enter_context(prepared_database(environment))
        running = home.running_services()
        if environment.webserver_url:
            url = environment.webserver_url
        elif running is None:
            config = home.backfill_settings
            settings = StrategySettings(symbols=list(target.symbols))
            if with_signals:
                # The model is fitted on all symbols, by the operator's own settings.
                settings = load_strategy(environment.trading_pipelines_config)
            write_backfill_settings(settings, min(settings.data.start_date, target.first), config)
            url = stack.enter_context(Supervisor(environment, urls, config)).url
        elif running.url:
            url = running.url
        else:
            fail(f"the services of {home.path} are still starting: try again in a moment")
        outcome = run_backfill(urls, url, target, render, with_signals=with_signals, again=again)
    show_summary(outcome, f"{target.first} to {target.last} (UTC days)")
    exit_by(outcome)
