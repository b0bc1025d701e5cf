"""`init | up | down | serve | env`: the services of a home, and what they are run with."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trading_pipelines.cli.options import HIGHEST_PORT
from trading_pipelines.cli.render import fail, out
from trading_pipelines.cli.sessions import await_interrupt
from trading_pipelines.database.connection import (
    database_urls,
    embedded_server,
    prepare_database,
    require_storage,
)
from trading_pipelines.runtime import processes
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.sessions import prepared_database
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.last_good import start_with_settings
from trading_pipelines.settings.shipped import CONFIG, INSTANCE_SETTINGS, shipped
from trading_pipelines.settings.strategy_file import load_strategy

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(file_okay=False, help="Your folder; made where it is missing.")
    ],
) -> None:
    """Write the settings and the n8n workflows into a folder of yours, for work outside the clone.

    What is there already is kept.

    Example: trading-pipelines init . && trading-pipelines up
    """
    config = shipped(CONFIG)
    files = [*config.rglob("*.yaml"), *config.rglob("*.json"), shipped(INSTANCE_SETTINGS)]
    for file in sorted(files):
        target = (
            folder
            / CONFIG
            / (file.relative_to(config) if file.is_relative_to(config) else file.name)
        )
        action = "kept"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            action = "written"
        out.print(f"{action:<8}{escape(str(target))}", soft_wrap=True)


@app.command()
def up(
    port: Annotated[
        int,
        typer.Option(
            help="Port of the web UI, on 127.0.0.1; 0 takes a free one.", min=0, max=HIGHEST_PORT
        ),
    ] = 3000,
) -> None:
    """Run it for real: database, daemon, web UI, schedules on. Ctrl-C or `down` stops it.

    Example: trading-pipelines up --port 3001
    """
    environment = load_environment()
    load_strategy(environment.trading_pipelines_config)
    with (
        prepared_database(environment, is_owner=True) as urls,
        Supervisor(environment, urls, environment.trading_pipelines_config, port) as running,
    ):
        out.print(f"running: {running.url} (logs in {Home.of(environment).logs})")
        out.print("Ctrl-C, or `trading-pipelines down` elsewhere, stops it.")
        await_interrupt()
    out.print("stopped")


@app.command()
def down() -> None:
    """Stop what `up` started on this home, the embedded database included.

    Example: trading-pipelines down
    """
    environment = load_environment()
    stopped = Home.of(environment).stop_services()
    server = embedded_server(environment)
    if server is not None and server.stop():
        stopped = True
    out.print("stopped" if stopped else "nothing was running")


@app.command()
def serve(
    process: Annotated[processes.Process, typer.Argument(help="The process to become.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = processes.HOST,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port of the code server (default: 4000) or the web UI (3000).",
            min=1,
            max=HIGHEST_PORT,
        ),
    ] = None,
    *,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="A web UI in which nothing can be launched.")
    ] = False,
) -> None:
    """Become one of the processes, for containers: on one machine `up` runs all of them.

    DATABASE_URL names a database of yours that `trading-pipelines db upgrade` has prepared, and
    CODE_SERVER tells web UI and daemon where it is. `live` reads the exchange's stream.

    Example: trading-pipelines serve webserver --host 0.0.0.0
    """
    listens = process in {processes.Process.CODE_SERVER, processes.Process.WEBSERVER}
    if (read_only and process is not processes.Process.WEBSERVER) or (port and not listens):
        raise typer.BadParameter(
            f"{process}: --read-only goes with the webserver; daemon and live listen on no --port"
        )
    environment = load_environment()
    load_strategy(environment.trading_pipelines_config)
    if not environment.database_url:
        fail("DATABASE_URL is not set: processes that are served apart share a database of yours")
    if Home.of(environment).running_services():
        # Both read one workspace.yaml: the daemon of `up` would look for another code server.
        fail(
            "`up` runs on this home: give what is served apart a TRADING_PIPELINES_HOME of its own"
        )
    urls = database_urls(environment)
    if process is processes.Process.CODE_SERVER:
        start_with_settings(environment)
    if process is processes.Process.WEBSERVER:
        require_storage(urls.dagster)
    processes.serve(
        process,
        environment,
        urls,
        host=host,
        port=port or (3000 if process is processes.Process.WEBSERVER else 4000),
        read_only=read_only,
    )


@app.command()
def env() -> None:
    """Print the variables by which Dagster's own commands (dg, dagster) find this home.

    Starts the embedded database and leaves it running.

    Example: eval "$(.venv/bin/trading-pipelines env)" && .venv/bin/dg dev
    """
    environment = load_environment()
    home = Home.of(environment)
    processes.write_instance_settings(environment)
    if home.running_services() is None:
        # Services that were killed while they stopped have left it behind.
        environment.stop_flag.unlink(missing_ok=True)
    variables = {
        "TRADING_PIPELINES_HOME": str(home.path),
        "DAGSTER_HOME": str(home.dagster),
        "DAGSTER_POSTGRES_URL": prepare_database(environment).dagster,
    }
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
