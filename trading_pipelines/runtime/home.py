"""The home: its paths, and the services that run on it, found by their lock and stopped.

Starting and watching them belongs in `supervisor`.
"""

import contextlib
import fcntl
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trading_pipelines.errors import OperatorError
from trading_pipelines.settings.environment import Environment


def dagster_home(environment: Environment) -> Path:
    """Return the folder that Dagster knows as DAGSTER_HOME."""
    return environment.trading_pipelines_home / "dagster"


def workspace_file(environment: Environment) -> Path:
    """Return the file by which the web UI and the daemon find the code server."""
    return dagster_home(environment) / "workspace.yaml"


# The daemon finishes the tick it is in; runs are interrupted and continue where they were.
STOP_SECONDS = 30


class ServicesError(OperatorError):
    """The services can't be started, reached or stopped; the message says what to do."""


@dataclass(frozen=True)
class RunningServices:
    """What `up.json` says of the services of a home; `url` is empty while they start."""

    pid: int
    url: str
    children: dict[str, int]


def running_services(home: Path) -> RunningServices | None:
    """Return the services that run on the home, or None."""
    lock = lock_home(home)
    if lock is not None:
        lock.close()
        return None
    try:
        return RunningServices(**json.loads((home / "up.json").read_text()))
    except FileNotFoundError:
        return RunningServices(pid=0, url="", children={})


def stop_services(home: Path) -> bool:
    """Stop the services of the home, whoever started them; return whether there were any."""
    found = running_services(home)
    if found is None:
        return False
    if not signal_process(found.pid, signal.SIGTERM):
        for pid in found.children.values():
            signal_group(pid, signal.SIGTERM)
    deadline = time.monotonic() + 2 * STOP_SECONDS
    while running_services(home) is not None:
        if time.monotonic() > deadline:
            for pid in found.children.values():
                signal_group(pid, signal.SIGKILL)
            raise ServicesError(
                f"the services of {home} did not stop in {2 * STOP_SECONDS} s and were killed; "
                f"see {home / 'logs'}"
            )
        time.sleep(0.2)
    return True


def lock_home(home: Path) -> IO[str] | None:
    """Return the lock of the home, held until it is closed; None where another holds it."""
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "up.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def signal_process(pid: int, number: signal.Signals) -> bool:
    """Send the signal; return whether there was such a process."""
    if pid == 0:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send the signal to a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
