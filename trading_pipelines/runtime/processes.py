"""What each process of a home is run with: its command, settings and variables.

`supervisor` runs and watches them all. The command `serve` becomes one of them, for
machines where something else watches (a container's engine, Kubernetes).
"""

import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import yaml

from trading_pipelines.database.connection import DatabaseUrls, require_storage
from trading_pipelines.errors import OperatorError
from trading_pipelines.runtime.daemon_lock import WAIT_SECONDS, refuse_where_held
from trading_pipelines.runtime.home import Home
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.errors import SettingsError
from trading_pipelines.settings.shipped import INSTANCE_SETTINGS, shipped

HOST = "127.0.0.1"
START_SECONDS = 120
LOCATION = "trading_pipelines"
_MODULE = ("-m", "trading_pipelines.definitions", "--location-name", LOCATION)
STORAGE = {
    "storage": {
        "custom": {
            "module": "trading_pipelines.monitoring.dagster_storage",
            "class": "Storage",
            "config": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}},
        }
    }
}
# Dagster's own settings that have no place in dagster.yaml.
DAGSTER_VARIABLES = {
    # All materialisations of a step in one statement: stored one by one, 9 ms each, a backfill saw
    # some days of a run, asked for what comes after them, and then for the rest (51 runs, not 14).
    "DAGSTER_EVENT_BATCH_SIZE": "100000",
    # Such a statement may end after later ones: the backfill looks at the newest events once more.
    "ASSET_BACKFILL_CURSOR_OFFSET": "10000",
    # A run's start is one call: on a busy machine it took more than Dagster's 60 s, and failed.
    "DAGSTER_GRPC_TIMEOUT_SECONDS": "300",
    "DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD": "60",
}
_SECRETS = (
    "redis_url",
    "n8n_url",
    "n8n_webhook_secret",
    "discord_webhook_url",
    "heartbeat_url",
)


class ProcessError(OperatorError):
    """One of Dagster's processes can't be run; the message says what to do."""


class Process(StrEnum):
    """Dagster's three processes and the stream's reader, by their names in logs and manifests."""

    CODE_SERVER = "code-server"
    WEBSERVER = "webserver"
    DAEMON = "daemon"
    LIVE = "live"


def variables(environment: Environment, urls: DatabaseUrls, config: Path) -> dict[str, str]:
    """Return the environment of a process of the home; secrets are passed on by nothing else."""
    return {
        **DAGSTER_VARIABLES,
        **os.environ,
        **urls.environment(),
        "DAGSTER_HOME": str(Home.of(environment).dagster),
        "TRADING_PIPELINES_HOME": str(environment.trading_pipelines_home),
        "TRADING_PIPELINES_CONFIG": str(config.absolute()),
        "UPBIT_BASE_URL": environment.upbit_base_url,
        "UPBIT_FILES_URL": environment.upbit_files_url or "",
        "UPBIT_FILES_LIST_URL": environment.upbit_files_list_url or "",
        **{
            name.upper(): value.get_secret_value() if value else ""
            for name in _SECRETS
            for value in [getattr(environment, name)]
        },
    }


def code_server_on(socket: Path) -> list[str]:
    """Return the command of a code server that reports an error in the code instead of ending."""
    return _python("dagster", "code-server", "start", "-s", grpc_path(socket), *_MODULE)


def grpc_path(socket: Path) -> str:
    """Return the path as gRPC reads it, which takes it for part of a URL."""
    return quote(str(socket))


def webserver(workspace: Path, host: str, port: int, *, read_only: bool = False) -> list[str]:
    """Return the command of the web UI."""
    options = ["-h", host, "-p", str(port), "-w", str(workspace)]
    if read_only:
        options.append("--read-only")
    return _python("trading_pipelines.runtime.webserver", *options)


def daemon(workspace: Path, *code_server: str) -> list[str]:
    """Return the command of the daemon, which ends with the code server where that is given."""
    return _python("trading_pipelines.runtime.daemon", str(workspace), *code_server)


def live(command: str) -> list[str]:
    """Return the command of the reader of the exchange's stream, which `command` starts."""
    return _python("trading_pipelines.runtime.live", command)


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def write_instance_settings(environment: Environment) -> None:
    """Write dagster.yaml to where Dagster reads it; an edit takes effect at a start.

    It is the one beside the strategy file, else the one that comes with this package, with
    DAGSTER_OVERRIDES merged over it. Where it names no storage, that is the Postgres of
    DAGSTER_POSTGRES_URL. Raises SettingsError.
    """
    settings = STORAGE | _read_yaml(environment.own_or(shipped(INSTANCE_SETTINGS)))
    if environment.dagster_overrides:
        settings = _merged(settings, _read_yaml(environment.dagster_overrides))
    folder = Home.of(environment).dagster
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INSTANCE_SETTINGS).write_text(yaml.safe_dump(settings), encoding="utf-8")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}; allowed: YAML") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: no mapping; allowed: the sections of dagster.yaml")
    return content


def write_workspace(environment: Environment, server: Mapping[str, object]) -> None:
    """Write where the code server is: its `socket`, or its `host` and `port`."""
    grpc = {**server, "location_name": LOCATION}
    text = yaml.safe_dump({"load_from": [{"grpc_server": grpc}]})
    Home.of(environment).workspace.write_text(text, encoding="utf-8")


def fail_orphaned_runs(environment: Mapping[str, str], *, all_ended: bool = False) -> None:
    """Report the runs that have lost their process as failed, so that they are started again.

    `environment` has the variables of the processes. The code server is asked for each run, unless
    `all_ended` says that none of its runs lives. No daemon may run meanwhile: it tries to start a
    failed run again once, and for that the next code server has to answer.
    """
    import dagster as dg

    from trading_pipelines.monitoring import dagster_instance

    require_storage(environment["DAGSTER_POSTGRES_URL"])
    # dagster.yaml names the storage by this variable, in our own process too.
    os.environ["DAGSTER_POSTGRES_URL"] = environment["DAGSTER_POSTGRES_URL"]
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
        # A busy code server may take long to say that a run of its lives.
        timeout = 0 if all_ended else START_SECONDS
        dagster_instance.fail_orphaned_runs(instance, timeout)


def serve(
    process: Process,
    environment: Environment,
    urls: DatabaseUrls,
    *,
    host: str,
    port: int,
    read_only: bool = False,
) -> NoReturn:
    """Become the process, in the foreground, on databases that are there and migrated.

    The daemon is started when the code server answers: one that looks earlier fails the backfills
    in flight. It ends with the code server, and whoever watches starts it again. Raises
    SettingsError, ProcessError and DatabaseError.
    """
    write_instance_settings(environment)
    name, _, number = environment.code_server.rpartition(":")
    write_workspace(environment, {"host": name, "port": int(number)})
    workspace = Home.of(environment).workspace
    own_variables = variables(environment, urls, environment.trading_pipelines_config)
    match process:
        case Process.LIVE:
            command = live("serve live")
        case Process.CODE_SERVER:
            # Listens when the code has loaded, and ends where it does not: whoever watches sees it.
            command = _python("dagster", "api", "grpc", "-h", host, "-p", str(port), *_MODULE)
        case Process.WEBSERVER:
            command = webserver(workspace, host, port, read_only=read_only)
        case Process.DAEMON:
            begun_on = _await_code_server(name, int(number))
            # Not before: the runs of another daemon are not orphaned.
            refuse_where_held(urls, WAIT_SECONDS)
            fail_orphaned_runs(own_variables)
            command = daemon(workspace, name, number, begun_on)
    os.execve(command[0], command, own_variables)  # noqa: S606


def _await_code_server(host: str, port: int) -> str:
    """Return the id of the code server: each that is started has another."""
    from trading_pipelines.monitoring.dagster_instance import CodeServer

    server_id = CodeServer(host, port).await_id(START_SECONDS)
    if server_id is None:
        raise ProcessError(
            f"the code server at {host}:{port} did not answer within {START_SECONDS} s: see its "
            "log, and CODE_SERVER"
        )
    return server_id


def _merged(settings: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `settings` with `over` over it, section by section."""
    both = {
        key: _merged(settings[key], over[key])
        for key in settings.keys() & over.keys()
        if isinstance(settings[key], dict) and isinstance(over[key], dict)
    }
    return {**settings, **over, **both}
