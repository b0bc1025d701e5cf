"""The processes of one home: code server, web UI and daemon, started, watched and stopped together.

The embedded server is watched beside them, and the reader of the exchange's stream, which none of
them waits for. A home has one set of them: the children hold its lock
too, so that two daemons never run on one home, even after their parent was killed. What is launched
on them belongs in `backfill`, the database server itself in `database/`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

import tenacity

from trading_pipelines.database.connection import DatabaseUrls, embedded_server
from trading_pipelines.database.embedded import EmbeddedServer, EmbeddedServerError
from trading_pipelines.runtime import graphql, processes
from trading_pipelines.runtime.daemon_lock import refuse_where_held
from trading_pipelines.runtime.home import (
    STOP_SECONDS,
    Home,
    RunningServices,
    ServicesError,
    signal_group,
)
from trading_pipelines.runtime.processes import HOST, START_SECONDS
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.last_good import read_settings, start_with_settings

START_ATTEMPTS = 3
WATCH_SECONDS = 2.0
# The largest size of a log; its former content is kept up to the same size.
LOG_BYTES = 20_000_000
RESTART_SECONDS = 5.0
# From one start of a reader that ends by itself to the next.
LIVE_SECONDS = 30.0
LIVE = "live"


class LocationError(ServicesError):
    """The code server runs, but the code location does not load."""


class EndedError(ServicesError):
    """A service has ended while the supervisor waited for it."""


class Supervisor:
    """Code server, web UI and daemon as a context manager; raises ServicesError, DatabaseError."""

    def __init__(
        self, environment: Environment, urls: DatabaseUrls, config: Path, port: int | None = None
    ) -> None:
        self._environment = environment
        self._home = Home.of(environment)
        self._with_config = environment.model_copy(update={"trading_pipelines_config": config})
        self._stop_flag = environment.stop_flag
        self._server = embedded_server(environment)
        self._urls = urls
        self._port = port or _free_port()
        self.url = f"http://{HOST}:{self._port}"
        self._variables = processes.variables(environment, urls, config)
        self._commands = {
            "code-server": processes.code_server_on(self._home.code_socket),
            "webserver": processes.webserver(self._home.workspace, HOST, self._port),
            "daemon": processes.daemon(self._home.workspace),
        }
        self._reads_live = False
        self._live_at = -LIVE_SECONDS
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._lock: IO[str] | None = None
        self._ready = False

    def __enter__(self) -> Self:
        self._lock = self._home.lock()
        if self._lock is None:
            running = self._home.running_services()
            raise ServicesError(
                f"the services of {self._home.path} are running already"
                + (f" ({running.url}, process {running.pid})" if running else "")
                + ": stop them with `trading-pipelines down`, or set TRADING_PIPELINES_HOME"
            )
        try:
            # Services that were killed have left theirs behind: their address was taken for ours.
            self._record()
            if _is_taken(self._port):
                raise ServicesError(
                    f"port {self._port} is taken: choose another with --port, or stop what is there"
                )
            refuse_where_held(self._urls)
            self._stop_flag.unlink(missing_ok=True)
            start_with_settings(self._with_config)
            # A backfill's services have it off, and need no reader.
            self._reads_live = read_settings(self._with_config).settings.data.refresh
            self._write_instance()
            # A service may be killed meanwhile, or slow on a busy machine: `up` gave up at once,
            # and nobody was left to start it again.
            tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(EndedError),
                stop=tenacity.stop_after_attempt(START_ATTEMPTS),
                reraise=True,
            )(self._start_what_is_missing)
            self._start_live()
            self._watcher.start()
            self._ready = True
            self._record()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _write_instance(self) -> None:
        processes.write_instance_settings(self._environment)
        path = processes.grpc_path(self._home.code_socket)
        processes.write_workspace(self._environment, {"socket": path})
        self._home.logs.mkdir(exist_ok=True)

    def _start(self, name: str) -> None:
        if self._stopping.is_set() or self._lock is None:
            return
        if name == "code-server":
            self._home.code_socket.unlink(missing_ok=True)
        command = processes.live("up") if name == LIVE else self._commands[name]
        with (self._home.logs / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(  # noqa: S603
                command,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the parent alone, which then stops the children in order.
                start_new_session=True,
                pass_fds=[self._lock.fileno()],
            )
        self._record()

    def _record(self) -> None:
        children = {name: child.pid for name, child in self._children.items()}
        url = self.url if self._ready else ""
        self._home.record_services(RunningServices(os.getpid(), url, children))

    def _start_what_is_missing(self) -> None:
        self._stop_what_lacks_the_code_server()
        self._children = {name: c for name, c in self._children.items() if self._alive(name)}
        # With the code server all runs of the home have ended; it loads while they are reported.
        all_ended = not self._alive("code-server")
        for name in ("code-server", "webserver"):
            if not self._alive(name):
                self._start(name)
        if not self._alive("daemon"):
            processes.fail_orphaned_runs(self._variables, all_ended=all_ended)
        # A daemon that looks before the code location has loaded fails the backfills in flight. The
        # web UI may still show the former server; the socket is there when the new one listens.
        is_listening = self._home.code_socket.exists
        self._await(lambda s: _location_problem(s) if is_listening() else "no code server")
        if not self._alive("daemon"):
            self._start("daemon")
        self._await(_daemon_problem)

    def _stop_what_lacks_the_code_server(self) -> None:
        """Where the code server is dead, stop the daemon and the runs that the server has left.

        Dagster can't ask a new code server for the runs of the old one.
        """
        if not self._alive("code-server"):
            for name in {"daemon", "code-server"} & self._children.keys():
                _stop_group(self._children[name])

    def _alive(self, name: str) -> bool:
        return name in self._children and self._children[name].poll() is None

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            for log in (*self._home.logs.glob("*.log"), EmbeddedServer(self._home.path).log):
                _rotate(log)
            self._start_server()
            self._start_live()
            if all(map(self._alive, self._commands)):
                continue
            self._stop_what_lacks_the_code_server()
            if not self._stopping.wait(RESTART_SECONDS):
                # Whatever fails (not ready in time, a full disk, no database), the watcher tries
                # again until it is stopped: one that has died starts nothing any more.
                with contextlib.suppress(Exception):
                    self._start_again()

    def _start_again(self) -> None:
        try:
            self._start_what_is_missing()
        except LocationError:
            # It would go on serving the error after the cause was mended.
            _stop_group(self._children["code-server"])
            raise

    def _start_server(self) -> None:
        if self._server is not None:
            with contextlib.suppress(EmbeddedServerError, OSError):  # and tried again
                self._server.start()

    def _start_live(self) -> None:
        is_due = time.monotonic() - self._live_at >= LIVE_SECONDS
        if self._reads_live and is_due and not self._alive(LIVE):
            self._live_at = time.monotonic()
            with contextlib.suppress(OSError):  # and tried again
                self._start(LIVE)

    def _await(self, problem: Callable[[dict[str, Any]], str | None]) -> None:
        """Wait until the web UI answers and `problem` finds nothing in the answer.

        Raises at once where waiting can't help, as when a child ends meanwhile: waiting on for it,
        or for a database that was killed, took two minutes in which no alert went out.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._stopping.is_set():
            self._start_server()
            reason: str | None = "the web UI does not answer"
            with contextlib.suppress(graphql.GraphQLError, LookupError, TypeError):
                reason = problem(graphql.ask(self.url, STATE, timeout=10))
            if reason is None:
                return
            dead = [name for name in self._children if name != LIVE and not self._alive(name)]
            if dead:
                raise EndedError(
                    f"ended by itself: {', '.join(dead)}; the logs are in {self._home.logs}"
                )
            if time.monotonic() > deadline:
                raise ServicesError(f"{reason}; the logs are in {self._home.logs}")
            time.sleep(0.3)

    def _stop(self) -> None:
        self._stopping.set()
        # A sensor's tick runs for half a minute in another process; the flag ends it.
        self._stop_flag.touch()
        if self._watcher.is_alive():
            self._watcher.join()
        # The daemon first, so that nothing new is launched; then the runs' parent.
        for name in ("daemon", LIVE, "webserver", "code-server"):
            if child := self._children.pop(name, None):
                _stop_group(child)
        self._home.forget_services()
        self._stop_flag.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()


STATE = """{
  workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
    __typename ... on PythonError { message } } } } }
  instance { daemonHealth { allDaemonStatuses { required healthy } } }
}"""


def _location_problem(state: dict[str, Any]) -> str | None:
    entries = state["workspaceOrError"].get("locationEntries") or []
    for entry in entries:
        location = entry["locationOrLoadError"] or {}
        if location.get("__typename") == "PythonError":
            message: str = location["message"].strip()
            if "DagsterUserCodeUnreachableError" not in message:
                raise LocationError(f"the code location does not load: {message}")
            return message
    return None if entries and location else "the code location has not loaded"


def _daemon_problem(state: dict[str, Any]) -> str | None:
    daemons = state["instance"]["daemonHealth"]["allDaemonStatuses"]
    all_healthy = all(daemon["healthy"] for daemon in daemons if daemon["required"])
    return None if all_healthy else "the daemon is not healthy"


def _rotate(log: Path) -> None:
    """Copy a log that is too large to `<name>.1`, and empty it in place.

    Its writers append, so they go on at its beginning. On a full disk no copy is kept.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_BYTES:
            with contextlib.suppress(OSError):
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


def _stop_group(child: subprocess.Popen[bytes]) -> None:
    signal_group(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)
    # What is left of its group, such as a run that ignores SIGTERM, is killed.
    signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
