"""The lock of the databases' one daemon, between processes and over the server's restarts."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import new_database
from trading_pipelines.database.connection import DatabaseUrls
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime import daemon_lock
from trading_pipelines.runtime.daemon_lock import (
    HeldElsewhereError,
    ProcessLock,
    refuse_where_held,
)

HOLD = """
import sys, threading
from trading_pipelines.database.connection import DatabaseUrls
from trading_pipelines.runtime import daemon_lock

daemon_lock.KEEP_SECONDS = 0.05
urls = DatabaseUrls(*sys.argv[1:3]).environment()
lock = daemon_lock.ProcessLock("daemon", urls, "up", "/home/" + sys.argv[3])
lock.take(float(sys.argv[4]))
print("held", flush=True)
threading.Thread(target=lock.keep, daemon=True).start()
sys.stdin.readline()
"""


@pytest.fixture
def urls(server: EmbeddedServer) -> DatabaseUrls:
    """Two databases of the test's own."""
    name = f"locked_{time.monotonic_ns()}"
    return DatabaseUrls(new_database(server, name), new_database(server, f"{name}_dagster"))


@pytest.fixture
def first(urls: DatabaseUrls) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    with holder(urls, "first", 0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def holder(urls: DatabaseUrls, home: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, urls.market, urls.dagster, home, f"{seconds}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def daemon_of(urls: DatabaseUrls, home: str) -> ProcessLock:
    return ProcessLock("daemon", urls.environment(), "up", home)


def sessions(urls: DatabaseUrls) -> list[int]:
    """Return the server's process of each session that holds the lock: one a database."""
    with psycopg.connect(urls.market, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE application_name = 'trading_pipelines' AND query LIKE '%%-- `up`%%' "
            "AND datname LIKE current_database() || '%%'"
        ).fetchall()
    return [pid for (pid,) in rows]


def end_sessions(urls: DatabaseUrls) -> None:
    """End every session of the lock, as a restart of the server does."""
    with psycopg.connect(urls.market, autocommit=True) as connection:
        for pid in sessions(urls):
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


@pytest.mark.parametrize("shared", ["market", "dagster"])
def test_a_second_is_told_where_the_first_runs(
    urls: DatabaseUrls, first: subprocess.Popen[str], server: EmbeddedServer, shared: str
) -> None:
    own = new_database(server, f"own_{time.monotonic_ns()}")
    second = DatabaseUrls(
        *(getattr(urls, name) if name == shared else own for name in ("market", "dagster"))
    )
    variable = "DATABASE_URL" if shared == "market" else "DAGSTER_POSTGRES_URL"
    host = os.uname().nodename
    with pytest.raises(HeldElsewhereError) as refused:
        refuse_where_held(second, 0)
    assert str(refused.value).startswith(
        f"another daemon works on the database of {variable}: `up` on {host} in /home/first, "
        f"process {first.pid} (connected from the same machine)"
    )
    # What was taken of the other database is given back.
    with pytest.raises(HeldElsewhereError):
        daemon_of(second, "/home/second").take(0)
    daemon_of(DatabaseUrls(own, own), "/home/third").take(0)


def test_a_successor_waits_for_the_first_to_end(
    urls: DatabaseUrls, first: subprocess.Popen[str]
) -> None:
    with holder(urls, "second", 60) as second:
        assert second.stdout is not None
        threading.Timer(0.5, first.kill).start()
        assert second.stdout.readline() == "held\n"
        assert first.wait(60) != 0
        second.kill()


def test_the_lock_is_taken_again_after_the_server_was_away(
    urls: DatabaseUrls, first: subprocess.Popen[str]
) -> None:
    for _ in range(2):
        before = set(sessions(urls))
        end_sessions(urls)
        deadline = time.monotonic() + 60
        while len(set(sessions(urls)) - before) < 2 and time.monotonic() < deadline:
            pass
        with pytest.raises(HeldElsewhereError, match="/home/first"):
            refuse_where_held(urls, 0)
    assert first.poll() is None


def test_a_daemon_that_has_lost_the_lock_to_another_ends_and_says_so(
    urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class EndedError(Exception):
        pass

    def end(status: int) -> None:
        raise EndedError(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(daemon_lock, "KEEP_SECONDS", 0.01)
    monkeypatch.setattr(daemon_lock, "WAIT_SECONDS", 0.0)
    loser, winner = daemon_of(urls, "/home/1"), daemon_of(urls, "/home/2")
    loser.take(0)
    end_sessions(urls)
    winner.take(60)
    with pytest.raises(EndedError, match="1"):
        loser.keep()
    assert "/home/2" in capsys.readouterr().err
    winner.release()
