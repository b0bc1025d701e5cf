"""The lock by which one daemon works on the databases: who takes it, keeps it, and who has it.

It is the daemon's, in `up` and in `serve` alike: in an update its successor waits for it, and code
servers and web UIs, of which two may run for a moment, need none. The reader of the exchange's
stream has one of its own, in the market database. A home has a lock of its own,
which is known to `home`.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping

import psycopg

from trading_pipelines.database.connection import (
    SILENCE,
    DatabaseError,
    DatabaseUrls,
    open_session,
)
from trading_pipelines.database.url import PostgresUrl
from trading_pipelines.runtime.home import ServicesError

# The daemon before may be stopping, or on a machine that has vanished.
WAIT_SECONDS = 60.0
# After its end until the server has noticed.
STOP_SECONDS = 5.0
KEEP_SECONDS = 5.0
TAKE = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
HOLDER = """
SELECT split_part(query, '-- ', 2), coalesce(host(client_addr), 'the same machine')
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32 | objid::bigint) = hashtextextended(%s, 0)
"""


class HeldElsewhereError(ServicesError):
    """Another such process works on a database; the message says where."""


class ProcessLock:
    """The lock of one `process` in its databases; used by one thread at a time.

    `urls`: those by their variables.
    """

    def __init__(self, process: str, urls: Mapping[str, str], command: str, home: str) -> None:
        self._process = process
        self._urls = urls
        name = f"`{command}` on {socket.gethostname()} in {home}, process {os.getpid()}"
        # The last query of a session can be read by others of its role: it names us.
        self._named = f"SELECT 1 -- {' '.join(name.split())}".encode(errors="replace")
        self._sessions: list[psycopg.Connection] = []

    def take(self, seconds: float) -> None:
        """Take it within the time; raises HeldElsewhereError and DatabaseError."""
        deadline = time.monotonic() + seconds
        while True:
            self.release()
            try:
                for variable in self._urls:
                    self._take_in(variable)
            except HeldElsewhereError:
                self.release()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def _take_in(self, variable: str) -> None:
        url = PostgresUrl.parse(self._urls[variable]).with_query(SILENCE)
        session = open_session(url.render("postgresql"), {"idle_session_timeout": "0"})
        self._sessions.append(session)
        key = [f"trading_pipelines.{self._process}.{variable}"]
        if session.execute(TAKE, key).fetchone() != (True,):
            name, address = session.execute(HOLDER, key).fetchone() or ("", "")
            raise HeldElsewhereError(
                f"another {self._process} works on the database of {variable}: "
                f"{name or 'of another role'} (connected from {address or 'elsewhere'}); stop it "
                "there with `trading-pipelines down`, use its web UI (WEBSERVER_URL), or take "
                "another database"
            )
        session.execute(self._named)

    def keep(self) -> None:
        """Keep it as long as the process lives, which ends where another has got it."""
        while True:
            time.sleep(KEEP_SECONDS)
            try:
                for session in self._sessions:
                    session.execute(self._named)
                continue
            except psycopg.Error:
                pass  # the server was started again, say
            try:
                self.take(WAIT_SECONDS)
            except HeldElsewhereError as error:
                sys.stderr.write(f"{error}: so ends this {self._process}\n")
                os._exit(1)
            except (DatabaseError, psycopg.Error):
                continue  # the server is away, and asked again

    def release(self) -> None:
        """Give it back."""
        while self._sessions:
            self._sessions.pop().close()


def refuse_where_held(urls: DatabaseUrls, seconds: float = STOP_SECONDS) -> None:
    """Raise HeldElsewhereError where another daemon works on a database for so long."""
    lock = ProcessLock("daemon", urls.environment(), "a start", "")
    lock.take(seconds)
    lock.release()
