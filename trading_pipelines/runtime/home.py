"""The home: the name of each of its files, and the services that run on it, found and stopped.

Starting and watching the services belongs in `supervisor`. The stop flag is known to
`settings.environment`, because the sensors look at it; the files of the embedded server are known
to `database.embedded`.
"""

import contextlib
import fcntl
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Self

from trading_pipelines.errors import OperatorError
from trading_pipelines.settings.environment import Environment

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


@dataclass(frozen=True)
class Home:
    """A home by its path, which is absolute: what lies where, and who runs on it."""

    path: Path

    @classmethod
    def of(cls, environment: Environment) -> Self:
        """Return the home of the environment."""
        return cls(environment.trading_pipelines_home)

    @property
    def dagster(self) -> Path:
        """The folder that Dagster knows as DAGSTER_HOME."""
        return self.path / "dagster"

    @property
    def workspace(self) -> Path:
        """The file by which the web UI and the daemon find the code server."""
        return self.dagster / "workspace.yaml"

    @property
    def code_socket(self) -> Path:
        """The socket on which the code server of `up` listens."""
        return self.dagster / "code.sock"

    @property
    def logs(self) -> Path:
        """The folder of the services' logs."""
        return self.path / "logs"

    @property
    def daemon(self) -> Path:
        """The file that a daemon of its own container touches as long as it works."""
        return self.path / "daemon"

    @property
    def live(self) -> Path:
        """The file that the reader of the exchange's stream touches every few seconds."""
        return self.path / "live"

    @property
    def backfill_settings(self) -> Path:
        """The settings of services that run for one backfill alone."""
        return self.path / "backfill.yaml"

    @property
    def strategy(self) -> Path:
        """The settings of a home that has settings of its own, as a scenario's."""
        return self.path / "strategy.yaml"

    @property
    def n8n(self) -> Path:
        """The folder of the n8n that the demo starts."""
        return self.path / "n8n"

    def backup(self, now: datetime) -> Path:
        """Return the file of a backup that is made at `now` (UTC)."""
        return self.path / "backups" / f"{now:%Y%m%dT%H%M%SZ}.tar"

    def scenario(self, name: str) -> "Home":
        """Return the home of a scenario inside this one."""
        return Home(self.path / name)

    def lock(self) -> IO[str] | None:
        """Return the lock of the home, held until it is closed; None where another holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "up.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock

    @property
    def database_users(self) -> Path:
        """The file whose lock is shared by all that use the embedded server."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path / "database.lock"

    @property
    def _up(self) -> Path:
        return self.path / "up.json"

    def record_services(self, services: RunningServices) -> None:
        """Write down which services run; a reader never sees half of it."""
        temporary = self._up.with_name(f"{self._up.name}.new")
        temporary.write_text(json.dumps(asdict(services)))
        temporary.replace(self._up)

    def forget_services(self) -> None:
        """Take back what `record_services` has written."""
        self._up.unlink(missing_ok=True)

    def running_services(self) -> RunningServices | None:
        """Return the services that run on the home, or None."""
        lock = self.lock()
        if lock is not None:
            lock.close()
            return None
        try:
            return RunningServices(**json.loads(self._up.read_text()))
        except FileNotFoundError:
            return RunningServices(pid=0, url="", children={})

    def stop_services(self) -> bool:
        """Stop the services of the home, whoever started them; return whether there were any."""
        services = self.running_services()
        if services is None:
            return False
        if not _signal_process(services.pid, signal.SIGTERM):
            for pid in services.children.values():
                signal_group(pid, signal.SIGTERM)
        deadline = time.monotonic() + 2 * STOP_SECONDS
        while self.running_services() is not None:
            if time.monotonic() > deadline:
                for pid in services.children.values():
                    signal_group(pid, signal.SIGKILL)
                raise ServicesError(
                    f"the services of {self.path} did not stop in {2 * STOP_SECONDS} s and were "
                    f"killed; see {self.logs}"
                )
            time.sleep(0.2)
        return True


def _signal_process(pid: int, number: signal.Signals) -> bool:
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
