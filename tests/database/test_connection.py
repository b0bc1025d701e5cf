"""Connections: their time zone, what they say of a server, and poolers (pgbouncer) before it."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from trading_pipelines.database import connection as connections
from trading_pipelines.database.connection import (
    SCHEMA,
    DatabaseError,
    connect,
    probe_database,
    upgrade_database,
)
from trading_pipelines.database.url import PostgresUrl
from trading_pipelines.monitoring import dagster_instance

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
CONFIGURATION = """
[databases]
* = host={server} user=postgres
[pgbouncer]
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = {mode}
logfile = {folder}/log
{more}
"""


def in_new_york(url: str) -> None:
    with connect(url) as connection:
        database = connection.info.dbname
        connection.execute(f"ALTER DATABASE {database} SET timezone = 'America/New_York'")


@pytest.fixture
def pooled(market_url: str) -> Iterator[Callable[..., str]]:
    """What starts a pooler in a mode and returns the market's URL through it, in New York."""
    in_new_york(market_url)
    if PROGRAM is None:
        pytest.fail("pgbouncer is not installed: apt-get install pgbouncer")
    direct = PostgresUrl.parse(market_url)
    with ExitStack() as stack:

        def start(mode: str, more: str = "") -> str:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp")))
            folder.chmod(0o777)
            configuration = folder / "pgbouncer.ini"
            configuration.write_text(
                CONFIGURATION.format(
                    server=direct.parameters["host"], folder=folder, mode=mode, more=more
                )
            )
            user = {"user": pwd.getpwnam("nobody").pw_uid} if os.geteuid() == 0 else {}
            process = subprocess.Popen([str(PROGRAM), "-q", str(configuration)], **user)  # type: ignore[call-overload]
            stack.callback(process.wait, 60)
            stack.callback(process.kill)
            deadline = time.monotonic() + 60
            while not list(folder.glob(".s.PGSQL.*")):
                assert process.poll() is None, "pgbouncer runs"
                assert time.monotonic() < deadline, "pgbouncer listens"
                time.sleep(0.02)
            changed = direct.with_query({"host": str(folder), "port": "6432"})
            return changed.render("postgresql")

        yield start


@pytest.mark.parametrize("settings", [{}, connections.PROBE])
def test_a_session_is_in_utc_whatever_the_databases_zone(
    market_url: str, settings: dict[str, str]
) -> None:
    in_new_york(market_url)
    with connect(market_url, settings) as connection:
        found = connection.execute("SELECT current_setting('TimeZone'), '2025-09-01'::timestamptz")
        zone, moment = found.fetchone() or ("", None)
    assert (zone, str(moment)) == ("UTC", "2025-09-01 00:00:00+00:00")


def test_both_ends_of_a_session_notice_that_the_others_machine_has_vanished(
    empty_url: str,
) -> None:
    with connect(f"{empty_url}&tcp_user_timeout=3000") as session:
        # A socket of Unix has no such values: what can be asked is whether they were set.
        asked = session.execute(
            "SELECT name FROM pg_settings WHERE source = 'session' AND name LIKE 'tcp_%'"
        ).fetchall()
        ours = session.info.get_parameters()
    assert len(asked) == 4
    assert ours["keepalives_idle"] == "10"
    assert ours["tcp_user_timeout"] == "3000", "the URL's own goes before"


def test_a_pool_in_session_mode_serves_in_utc_with_locks_and_probes(
    pooled: Callable[..., str],
) -> None:
    url = pooled("session")
    upgrade_database(url)
    with connect(url) as first, connect(url) as second:
        assert [c.execute("SHOW timezone").fetchone() for c in (first, second)] == [("UTC",)] * 2
        lock = "SELECT pg_try_advisory_lock(1)"
        assert [c.execute(lock).fetchone() for c in (first, second)] == [(True,), (False,)]
        for _ in range(7):  # as a prepared statement from the sixth on
            assert first.execute("SELECT %s::int", [1]).fetchone() == (1,)
    with probe_database(url) as careful, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        careful.execute(f"CREATE TABLE {SCHEMA}.x (id int)")
    with connect(url) as after:
        assert after.execute("SHOW transaction_read_only").fetchone() == ("off",)
    storage = PostgresUrl.parse(url).render("postgresql+psycopg2")
    dagster_instance.upgrade(storage)
    assert dagster_instance.ask(storage, lambda instance: instance.get_runs()) == []


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("transaction", ""),
        ("transaction", "ignore_startup_parameters = options"),
        ("transaction", "server_round_robin = 1\nmin_pool_size = 3"),
        ("statement", ""),
    ],
)
def test_a_pool_that_changes_sessions_is_refused_in_one_line_and_left_as_it_was(
    pooled: Callable[..., str], mode: str, more: str
) -> None:
    url = pooled(mode, more)
    for ask in (connect, probe_database):
        refused = pytest.raises(DatabaseError, match=r"^the database is asked through a pooler .*$")
        with refused, ask(url):
            pass
    with psycopg.connect(url, autocommit=True) as other:
        assert other.execute("SHOW default_transaction_read_only").fetchone() == ("off",)


@pytest.mark.parametrize("more", ["sslmode=s3cret", "port=s3cret", "connect_timeout=s3cret"])
def test_a_value_that_libpq_cannot_read_is_not_repeated(more: str) -> None:
    with pytest.raises(DatabaseError) as caught, connect(f"postgresql://127.0.0.1/x?{more}"):
        pass
    assert "can't be reached" in str(caught.value)
    assert more.partition("=")[0] in str(caught.value)
    assert "s3cret" not in str(caught.value)
