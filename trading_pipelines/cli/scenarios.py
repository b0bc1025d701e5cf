"""`demo | drill`: parses, hands over to `scenarios/` and prints what they say."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from trading_pipelines.candles.windows import Interval, floor_minute
from trading_pipelines.cli import render
from trading_pipelines.cli.options import HIGHEST_PORT
from trading_pipelines.cli.sessions import await_interrupt, settings_or_defaults
from trading_pipelines.settings.environment import load_environment

app = typer.Typer()


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
        int | None,
        typer.Option(help="Port of the web UI (default: a free one).", min=1, max=HIGHEST_PORT),
    ] = None,
) -> None:
    """Show the main job on real input: a native backfill of 28 days, then what came of it.

    Has a home and an embedded database of its own, made anew each time.

    Example: trading-pipelines demo --recording candles.parquet
    """
    from trading_pipelines.scenarios.demo import play_demo

    def stay() -> None:
        if sys.stdout.isatty():
            render.say("\nThe UI stays open until Ctrl-C.")
            await_interrupt()

    environment = load_environment()
    settings = settings_or_defaults(environment)
    outcome = play_demo(
        environment,
        settings,
        render,
        recording=recording,
        offline=offline,
        port=port,
        stay=stay,
    )
    render.exit_by(outcome)


@app.command()
def drill(
    hours: Annotated[int, typer.Option(help="How long everything was down.", min=1, max=72)] = 6,
) -> None:
    """Play an outage: everything was down for hours, comes back, and heals; show what and when.

    On a home and an embedded database of its own, made anew each time, with a generated market at
    Upbit's limit and a local inbox in Discord's place.

    Example: trading-pipelines drill --hours 24
    """
    from trading_pipelines.scenarios.drill import play_drill

    environment = load_environment()
    settings = settings_or_defaults(environment)
    back = floor_minute(datetime.now(UTC))
    play_drill(environment, settings, Interval(back - timedelta(hours=hours), back), render)
