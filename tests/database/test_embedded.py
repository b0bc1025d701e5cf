"""The embedded server as processes meet it, and what `prepare` makes of an environment."""

import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from tests.conftest import environment
from trading_pipelines.database import embedded
from trading_pipelines.database.connection import (
    DatabaseError,
    connect,
    prepare_database,
    require_storage,
)
from trading_pipelines.database.embedded import EmbeddedServer, EmbeddedServerError, binaries
from trading_pipelines.monitoring import dagster_instance
from trading_pipelines.settings.environment import Environment

_numbers = itertools.count()


@pytest.fixture
def own_home() -> Iterator[Path]:
    """A home of the test's own, in which no server has ever run."""
    path = Path(tempfile.mkdtemp(prefix="tp"))
    path.chmod(0o755)
    yield path
    EmbeddedServer(path).stop()
    shutil.rmtree(path)


def postmaster(home: Path) -> int:
    return int((home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def test_a_server_starts_once_stops_once_and_keeps_its_rows(own_home: Path) -> None:
    server = EmbeddedServer(own_home)
    assert not server.is_running()
    assert not server.stop()
    assert server.start()
    assert server.is_running()
    assert not server.start()
    assert not EmbeddedServer(own_home).start()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        durable = connection.execute("SHOW fsync").fetchone()
        assert durable == ("on",)

    assert EmbeddedServer(own_home).stop()
    assert not server.is_running()
    assert not server.stop()
    with (
        pytest.raises(DatabaseError, match="can't be reached"),
        connect(server.url("postgres")),
    ):
        pass
    assert server.start()
    with psycopg.connect(server.url("postgres")) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


PREPARE = """
import os, sys
from pathlib import Path
from trading_pipelines.database.connection import connect, prepare_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.environment import Environment

print("ready", flush=True)
sys.stdin.readline()
print(EmbeddedServer(Path(sys.argv[1])).start())
urls = prepare_database(Environment(trading_pipelines_home=sys.argv[1]))
with connect(urls.market) as connection:
    print(connection.execute("SELECT pg_postmaster_start_time()").fetchone())
    print(connection.execute("SELECT count(*) FROM trading_pipelines.candle_coverage").fetchone())
"""


def test_eight_starters_at_once_make_one_server_with_one_of_each_database(own_home: Path) -> None:
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PREPARE, str(own_home)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(8)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * 8, said
    answers = [out.splitlines() for out, _ in said]
    assert sorted(first for first, *_ in answers) == ["False"] * 7 + ["True"]
    assert len({start for _, start, _ in answers}) == 1
    with psycopg.connect(EmbeddedServer(own_home).url("postgres")) as connection:
        names = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert {"trading_pipelines", "trading_pipelines_dagster"} <= names


STARTING = """
import sys
from pathlib import Path
from trading_pipelines.database.embedded import EmbeddedServer

EmbeddedServer(Path(sys.argv[1])).start()
"""


def test_a_first_start_that_was_killed_half_way_is_started_over(own_home: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", STARTING, own_home], start_new_session=True)
    begun = own_home / "postgres" / "data.new" / "PG_VERSION"
    while not begun.exists():
        assert child.poll() is None, "it was killed too late"
        time.sleep(0.001)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    server = EmbeddedServer(own_home)
    assert server.start()
    with psycopg.connect(server.url("postgres")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_rows_acknowledged_before_the_server_was_killed_are_there_after_the_next_start(
    own_home: Path,
) -> None:
    server = EmbeddedServer(own_home)
    server.start()
    enough, acknowledged = threading.Event(), []

    def write() -> None:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE TABLE numbers (n int)")
            for n in itertools.count():
                try:
                    connection.execute("INSERT INTO numbers VALUES (%s)", [n])
                except psycopg.OperationalError:
                    return
                acknowledged.append(n)
                if n == 200:
                    enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert enough.wait(60)
    killed = postmaster(own_home)
    os.kill(killed, signal.SIGKILL)
    assert server.start()
    writer.join()
    assert postmaster(own_home) != killed
    with psycopg.connect(server.url("postgres")) as connection:
        stored = {n for (n,) in connection.execute("SELECT n FROM numbers")}
    assert stored >= set(acknowledged)
    assert len(acknowledged) > 200


@pytest.mark.parametrize("name", ["x" * 100, "ü" * 50], ids=["letters", "two bytes a letter"])
def test_a_home_that_is_too_deep_for_a_socket_is_refused_with_what_to_do(
    own_home: Path, name: str
) -> None:
    with pytest.raises(EmbeddedServerError, match=r"too long.*TRADING_PIPELINES_HOME"):
        EmbeddedServer(own_home / name).start()
    assert list(own_home.iterdir()) == []


def test_the_longest_home_that_is_allowed_works(own_home: Path) -> None:
    room = 107 - len("/.s.PGSQL.5432") - len(os.fsencode(own_home)) - len("/") - len("/postgres/s")
    home = own_home / ("x" * room)
    server = EmbeddedServer(home)
    try:
        assert server.start()
        with psycopg.connect(server.url("postgres")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(EmbeddedServerError, match="too long"):
            EmbeddedServer(own_home / ("x" * (room + 1))).start()
    finally:
        server.stop()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_nothing_listens_on_tcp_and_only_its_user_may_enter(
    server: EmbeddedServer, home: Path
) -> None:
    with psycopg.connect(server.url("postgres")) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    inodes = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    }
    files = Path(f"/proc/{postmaster(home)}/fd").iterdir()
    links = [str(path.readlink()) for path in files]
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}
    assert sockets, "it listens on its Unix socket"
    assert not sockets & inodes
    assert stat.S_IMODE((home / "postgres").stat().st_mode) == 0o700


# ---- prepare ----

PASSWORD = "p@ss/w%rd:5#"


@pytest.fixture
def operators_url(server: EmbeddedServer) -> str:
    """The URL of an empty database on a server that the operator runs, with a password."""
    name = f"operators_{next(_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url(name).replace("postgres@", f"postgres:{quote(PASSWORD, safe='')}@")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_with_an_operators_server_both_databases_are_there_and_the_driver_is_explicit(
    operators_url: str, own_home: Path, scheme: str
) -> None:
    url = operators_url.replace("postgresql", scheme, 1)
    given = Environment(database_url=SecretStr(url), trading_pipelines_home=own_home)
    urls = prepare_database(given)
    assert prepare_database(given) == urls
    market, dagster = make_url(urls.market), make_url(urls.dagster)
    assert market.drivername == "postgresql", "libpq knows no driver"
    assert dagster.drivername == "postgresql+psycopg2"
    assert dagster.database == f"{market.database}_dagster"
    assert market.password == dagster.password == PASSWORD
    assert urls.environment() == {
        "DATABASE_URL": urls.market,
        "DAGSTER_POSTGRES_URL": urls.dagster,
    }
    with connect(urls.market) as connection:
        assert connection.execute("SELECT to_regclass('trading_pipelines.candle_coverage')")
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
    with connect(urls.dagster.replace("+psycopg2", "")) as connection:
        assert connection.info.dbname == dagster.database
    assert not (own_home / "postgres").exists(), "no embedded server beside the operator's"
    for shown in (repr(urls), str(urls), f"{urls}", repr(given), str([urls])):
        assert PASSWORD not in shown
        assert quote(PASSWORD, safe="") not in shown


def test_a_database_of_dagsters_own_choice_is_taken_as_it_is(
    operators_url: str, own_home: Path, server: EmbeddedServer
) -> None:
    elsewhere = "postgresql+psycopg2://dagster@elsewhere/dagster"
    urls = prepare_database(
        Environment(
            database_url=SecretStr(operators_url),
            dagster_postgres_url=SecretStr(elsewhere),
            trading_pipelines_home=own_home,
        )
    )
    assert urls.dagster == elsewhere
    with psycopg.connect(server.url("postgres")) as connection:
        names = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert f"{make_url(operators_url).database}_dagster" not in names


@pytest.mark.parametrize("dagster", [None, "postgresql+psycopg2://dagster@elsewhere/dagster"])
def test_a_server_that_is_not_there_is_said_to_be_so_without_the_password(
    own_home: Path, dagster: str | None
) -> None:
    url = f"postgresql://postgres:{quote(PASSWORD, safe='')}@/market?host={own_home}"
    given = Environment(
        database_url=SecretStr(url),
        dagster_postgres_url=SecretStr(dagster) if dagster else None,
        trading_pipelines_home=own_home,
    )
    with pytest.raises(DatabaseError, match=r"(?s)can't be reached.*DATABASE_URL") as error:
        prepare_database(given)
    assert PASSWORD not in str(error.value)
    assert quote(PASSWORD, safe="") not in str(error.value)


def test_a_role_that_may_not_create_a_database_is_told_what_to_do(
    server: EmbeddedServer, own_home: Path
) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE modest LOGIN")
        connection.execute("CREATE DATABASE modest OWNER modest")
    url = server.url("modest").replace("postgres@", "modest@")
    given = Environment(database_url=SecretStr(url), trading_pipelines_home=own_home)
    advice = (
        r'^role modest .*CREATE DATABASE "modest_dagster" OWNER modest; .*DAGSTER_POSTGRES_URL$'
    )
    with pytest.raises(DatabaseError, match=advice):
        prepare_database(given)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE modest_dagster OWNER modest")
    assert make_url(prepare_database(given).dagster).username == "modest"


def test_a_role_that_may_create_nothing_is_told_each_grant_before_anything_is_changed(
    server: EmbeddedServer, own_home: Path
) -> None:
    # As `CREATE DATABASE …` without OWNER leaves it since Postgres 15.
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE freshman LOGIN")
        admin.execute("CREATE DATABASE freshmen")
        admin.execute("CREATE DATABASE freshmen_dagster")
    url = server.url("freshmen").replace("postgres@", "freshman@")
    given = Environment(database_url=SecretStr(url), trading_pipelines_home=own_home)
    grants = [
        ("freshmen", "GRANT CREATE ON DATABASE freshmen TO freshman;"),
        ("freshmen", "GRANT CREATE ON SCHEMA public TO freshman;"),
        ("freshmen_dagster", "GRANT CREATE ON SCHEMA public TO freshman;"),
    ]
    while grants:
        with pytest.raises(DatabaseError) as refused:
            prepare_database(given)
        line = str(refused.value)
        assert line.isprintable()
        assert line.count("GRANT ") == len(grants)
        with psycopg.connect(server.url("freshmen")) as admin:
            made = admin.execute("SELECT to_regnamespace('trading_pipelines')").fetchone()
            assert made == (None,)
        database, grant = grants.pop(0)
        assert grant in line
        with psycopg.connect(server.url(database), autocommit=True) as admin:
            admin.execute(grant)
    require_storage(prepare_database(given).dagster)


def test_a_storage_in_which_the_role_may_create_nothing_is_one_line(
    server: EmbeddedServer,
) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE guest LOGIN")
        admin.execute('CREATE DATABASE "the storage"')
    url = server.url("the%20storage").replace("postgres@", "guest@")
    with pytest.raises(DatabaseError) as refused:
        require_storage(url)
    assert str(refused.value) == (
        'this role may not create Dagster\'s tables in the database "the storage": GRANT CREATE ON '
        'SCHEMA public TO guest; (in the database "the storage")'
    )


def test_without_a_url_the_embedded_server_of_the_home_is_used(home: Path) -> None:
    urls = prepare_database(environment(home))
    assert make_url(urls.market).query["host"] == str(home / "postgres" / "s")
    assert make_url(urls.dagster).drivername == "postgresql+psycopg2"
    with connect(urls.market) as connection:
        assert connection.info.dbname == "trading_pipelines"


ANY_SIGN = '바탕 화면 + 50% %41 it\'s "q" $HOME `&;#?@=\\:'


def test_a_home_of_any_signs_is_prepared_and_found_by_every_client(own_home: Path) -> None:
    home = own_home / ANY_SIGN
    home.mkdir()
    server = EmbeddedServer(home)
    try:
        urls = prepare_database(environment(home))
        with connect(urls.market) as connection:
            assert connection.info.dbname == "trading_pipelines"
        dagster_instance.upgrade(urls.dagster)
        for client in (urls.market, server.url("postgres")):
            asked = [
                str(binaries() / "psql"),
                "-X",
                "-A",
                "-t",
                "-c",
                "SELECT 'answers'",
                "-d",
                client,
            ]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            assert done.stdout == "answers\n", done.stderr
    finally:
        assert server.stop()


@pytest.mark.parametrize(
    ("name", "shown"), [("a,b", "','"), ("a\nb", r"'\n'"), ("a\udcffb", r"'\udcff'")]
)
def test_a_home_of_a_sign_that_postgres_cannot_bear_is_refused_and_the_sign_named(
    own_home: Path, name: str, shown: str
) -> None:
    home = own_home / name
    home.mkdir()
    with pytest.raises(EmbeddedServerError, match=r"set TRADING_PIPELINES_HOME") as refused:
        EmbeddedServer(home).start()
    assert f"has a {shown} in it" in str(refused.value)
    assert str(refused.value).isprintable()
    assert list(home.iterdir()) == []


def test_programs_below_a_sign_that_their_shell_cannot_bear_are_refused(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "binaries", lambda: Path("/home/$x/bin"))
    with pytest.raises(EmbeddedServerError, match=r"has a '\$' in it.*move the clone"):
        EmbeddedServer(own_home).start()
