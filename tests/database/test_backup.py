"""A backup is put to the test that counts: all is lost, restored, and every row compared."""

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner, Result

from tests.alerts.conftest import Bot
from tests.conftest import FIRST_DAY, STRATEGY, days_of, environment, store_minutes
from trading_pipelines.alerts import ledger
from trading_pipelines.candles.windows import DAY
from trading_pipelines.cli.main import app
from trading_pipelines.database import backup
from trading_pipelines.database.backup import DATABASES, back_up, restore
from trading_pipelines.database.connection import (
    SCHEMA,
    DatabaseError,
    connect,
    database_urls,
    migrate,
    newest_schema,
    prepare_database,
)
from trading_pipelines.database.embedded import EmbeddedServer, binaries
from trading_pipelines.runtime import home as runtime_home
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.registry import compute

SYMBOLS = ["KRW-BTC", "KRW-DOGE"]
DAYS = days_of(FIRST_DAY, FIRST_DAY + DAY * 11)
NOW = datetime(2025, 9, 12, tzinfo=UTC)
KEYS = ["2025-09-01|KRW-BTC", "2025-09-02|KRW-BTC"]

READER = """
CREATE ROLE "the reader" LOGIN PASSWORD 'of-the-reader';
GRANT USAGE ON SCHEMA trading_pipelines TO "the reader";
GRANT SELECT ON trading_pipelines.current_signals TO "the reader"
"""
LOSS = """
DROP SCHEMA trading_pipelines CASCADE;
DELETE FROM market_data WHERE id % 2 = 0;
UPDATE agent_decisions SET reasoning = 'changed';
DROP TABLE trading_history CASCADE
"""
ROWS = "SELECT count(*), md5(string_agg(one::text, chr(10) ORDER BY one::text)) FROM {} AS one"
SEQUENCES = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2"


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(KEYS))
def candles() -> None:
    pass


class Home:
    """A home with an embedded server, looked at from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = EmbeddedServer(path)

    def execute(self, statement: str, name: str = SCHEMA) -> list[Any]:
        with connect(self.server.url(name)) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @property
    def names(self) -> list[str]:
        return [name for (name,) in self.execute("SELECT datname FROM pg_database ORDER BY 1",
                                                 "postgres")]  # fmt: skip

    @property
    def whole(self) -> dict[str, Any]:
        """Everything of both databases: definitions with comments and grants, rows, sequences."""
        found: dict[str, Any] = {}
        for name in DATABASES:
            dump = subprocess.run(
                [binaries() / "pg_dump", "--schema-only", self.server.url(name)],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            # With a key that is new each time.
            lines = [line for line in dump.splitlines() if "restrict" not in line]
            found[name] = {"": lines, "sequences": self.execute(SEQUENCES, name)}
            for table in self.execute(backup.TABLES, name):
                relation = sql.Identifier(*table).as_string()
                found[name][relation] = self.execute(ROWS.format(relation), name)
        return found

    def instance(self) -> dg.DagsterInstance:
        """Dagster on the home's storage."""
        url = database_urls(environment(self.path)).dagster
        folder = self.path / "dagster"
        folder.mkdir(exist_ok=True)
        settings = {"storage": {"postgres": {"postgres_url": url}}}
        (folder / "dagster.yaml").write_text(json.dumps(settings))
        return dg.DagsterInstance.from_config(str(folder))

    def cli(self, *arguments: str, **more: str) -> Result:
        """Run the command line to its end."""
        variables = {"TRADING_PIPELINES_HOME": str(self.path), **more}
        return CliRunner().invoke(app, ["db", *arguments], env=variables)


def quiet(step: str) -> None:
    assert step


def made_home(stack: ExitStack) -> Home:
    path = Path(tempfile.mkdtemp(prefix="tp"))
    path.chmod(0o755)
    stack.callback(shutil.rmtree, path)
    home = Home(path)
    stack.callback(home.server.stop)
    return home


@pytest.fixture(scope="module")
def first(recorded: pd.DataFrame) -> Iterator[Home]:
    """A home with candles, every signal, the bot's rows, alerts, a role, and Dagster's events."""
    with ExitStack() as stack:
        home = made_home(stack)
        urls = prepare_database(environment(home.path))
        until = pd.Timestamp(DAYS[-1] + DAY, tz="UTC")
        wanted = recorded.symbol.isin(SYMBOLS) & (recorded.timestamp_utc < until)
        with connect(urls.market) as connection:
            store_minutes(connection, recorded[wanted])
            for one in SIGNALS:
                compute(connection, one, SYMBOLS, DAYS, STRATEGY, "run")
            bot = Bot(connection)
            for minute in range(5):
                number = bot.reject(NOW + timedelta(minutes=minute), "거래량이 부족합니다")
                ledger.enter(connection, "ai_reject", "agent_decisions", number, "ai-reject",
                             {"reason": "거래량"}, occurred_at=NOW)  # fmt: skip
            bot.trade(NOW)
            bot.violation(NOW)
            bot.cooldown(NOW, NOW)
            for statement in READER.split(";"):
                connection.execute(statement)
        with home.instance() as instance:
            for key in KEYS:
                dg.materialize([candles], instance=instance, partition_key=key)
        yield home


@pytest.fixture(scope="module")
def whole(first: Home) -> dict[str, Any]:
    return first.whole


@pytest.fixture(scope="module")
def file(first: Home, whole: dict[str, Any]) -> Path:
    """A backup of the first home as it was when all was whole."""
    assert whole
    target = first.path / "first.tar"
    back_up(first.server, target, NOW, quiet)
    return target


@pytest.fixture(scope="module")
def running() -> Iterator[Home]:
    with ExitStack() as stack:
        home = made_home(stack)
        home.server.start()
        yield home


@pytest.fixture
def second(running: Home) -> Iterator[Home]:
    """Another machine: a server with another, smaller state of both databases."""
    prepare_database(environment(running.path))
    with connect(running.server.url(SCHEMA)) as connection:
        Bot(connection).reject(NOW, "its own")
    yield running
    for name in running.names:
        if name.startswith(SCHEMA):
            running.execute(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


def changed(file: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Return a copy of a backup with other members, all sums right."""
    target = file.with_name("changed.tar")
    with tarfile.open(file) as archive:
        members = {name: backup._read(archive, name) for name in archive.getnames()}
    del members[backup.SUMS]
    change(members)
    with target.open("wb") as out:
        written = backup._Archive(out)
        for name, content in members.items():
            written.add(name, io.BytesIO(content))
        written.end()
    return target


def with_manifest(file: Path, **values: object) -> Path:
    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members[backup.MANIFEST]) | values
        members[backup.MANIFEST] = json.dumps(manifest).encode()

    return changed(file, change)


# ---- what comes back ----


def test_all_that_was_lost_or_changed_is_back_and_the_bot_goes_on(
    first: Home, whole: dict[str, Any], file: Path
) -> None:
    ids = first.execute("SELECT max(id) FROM agent_decisions")[0][0]
    for statement in LOSS.split(";"):
        first.execute(statement)
    first.execute("TRUNCATE event_logs, asset_keys, runs CASCADE", DATABASES[1])
    lost = first.whole
    assert lost != whole

    done = first.cli("restore", str(file))
    assert done.exit_code == 0, done.output
    assert "as of 2025-09-12 09:00 KST" in done.stdout
    assert first.whole == whole
    former = [name for name in first.names if "_before_restore_" in name]
    market, dagster = former
    assert first.execute("SELECT DISTINCT reasoning FROM agent_decisions", market) == [("changed",)]
    assert first.execute("SELECT count(*) FROM runs", dagster) == [(0,)]
    for name in former:
        assert f"-c 'DROP DATABASE {name}'" in done.stdout
        first.execute(f"DROP DATABASE {name}", "postgres")
    assert first.names == ["postgres", "template0", "template1", *DATABASES]

    with first.instance() as instance:
        assert instance.get_materialized_partitions(candles.key) == set(KEYS)
    with connect(first.server.url(SCHEMA)) as connection:
        assert int(Bot(connection).reject(NOW)) == ids + 1
        connection.execute("DELETE FROM agent_decisions WHERE id = %s", [ids + 1])


def test_a_new_home_gets_all_of_it_and_its_server_is_stopped_again(
    whole: dict[str, Any], file: Path
) -> None:
    with ExitStack() as stack:
        home = made_home(stack)
        done = home.cli("restore", str(file))
        assert done.exit_code == 0, done.output
        assert "DROP" not in done.stdout, "nothing was there before"
        assert not home.server.is_running()
        home.server.start()
        assert home.whole == whole
        assert home.names == ["postgres", "template0", "template1", *DATABASES]
        roles = home.execute("SELECT rolname, rolcanlogin, rolpassword FROM pg_authid "
                             "WHERE rolname !~ '^pg_' ORDER BY 1")  # fmt: skip
        assert roles == [("postgres", True, None), ("the reader", True, None)]


def test_what_is_written_meanwhile_is_in_it_whole_or_not_at_all(
    second: Home, tmp_path: Path
) -> None:
    enough, done = threading.Event(), threading.Event()

    def write() -> None:
        with psycopg.connect(second.server.url(SCHEMA)) as connection:
            while not done.is_set():
                connection.execute("CREATE TABLE IF NOT EXISTS pairs (n int)")
                connection.execute("INSERT INTO pairs SELECT generate_series(1, 1000)")
                connection.commit()
                enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert enough.wait(60)
        manifest = back_up(second.server, tmp_path / "b.tar", NOW, quiet)
    finally:
        done.set()
        writer.join()
    rows = manifest.databases[SCHEMA].rows["public.pairs"]
    restore(second.server, tmp_path / "b.tar", NOW, quiet)
    assert second.execute("SELECT count(*) FROM pairs") == [(rows,)]
    assert rows % 1000 == 0


def test_a_backup_of_an_older_schema_is_migrated(second: Home, tmp_path: Path) -> None:
    url = second.server.url(SCHEMA)
    second.execute(f"DROP DATABASE {SCHEMA} WITH (FORCE)", "postgres")
    second.execute(f"CREATE DATABASE {SCHEMA}", "postgres")
    migrate(url, "0003")
    with connect(url) as connection:
        Bot(connection).reject(NOW, "of long ago")
    assert back_up(second.server, tmp_path / "b.tar", NOW, quiet).revision == "0003"

    restore(second.server, tmp_path / "b.tar", NOW, quiet)
    version = second.execute("SELECT version_num FROM trading_pipelines.alembic_version")
    assert version == [(newest_schema(),)]
    assert second.execute("SELECT reasoning FROM agent_decisions") == [("of long ago",)]


# ---- what is refused, with nothing changed ----


def flipped(file: Path, at: float) -> Path:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 1
    target = file.with_name("flipped.tar")
    target.write_bytes(content)
    return target


def cut(file: Path) -> Path:
    target = file.with_name("cut.tar")
    target.write_bytes(file.read_bytes()[:-20_000])
    return target


def text(file: Path) -> Path:
    target = file.with_name("notes.tar")
    target.write_text("no tar at all\n" * 100)
    return target


def without_sums(file: Path) -> Path:
    target = file.with_name("without.tar")
    with tarfile.open(target, "w") as archive:
        archive.add(file, "trading_pipelines.dump")
    return target


def other_made_at(file: Path) -> Path:
    target = file.with_name("made.tar")
    target.write_bytes(file.read_bytes().replace(b'"2025-09-12T', b'"2025-09-11T'))
    return target


def broken_dump(file: Path) -> Path:
    def change(members: dict[str, bytes]) -> None:
        name = f"{DATABASES[1]}.dump"
        members[name] = members[name][: len(members[name]) // 2]

    return changed(file, change)


def other_rows(file: Path) -> Path:
    def change(members: dict[str, bytes]) -> None:
        members[backup.MANIFEST] = members[backup.MANIFEST].replace(
            b'"public.trading_history": 1', b'"public.trading_history": 2'
        )

    return changed(file, change)


def too_large(file: Path) -> Path:
    huge = {name: {"rows": {}, "size_bytes": 10**15} for name in DATABASES}
    return with_manifest(file, databases=huge)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: flipped(file, 0.5), r"damaged: trading_pipelines\.dump is not what was"),
        (other_made_at, r"damaged: manifest\.json is not what was"),
        (cut, "no backup, or is damaged"),
        (text, "no backup, or is damaged"),
        (without_sums, r"no backup, or is damaged.*SHA256SUMS"),
        (lambda file: with_manifest(file, format="2"), "format is '2'.*reads '.*backup 1'"),
        (lambda file: with_manifest(file, revision="0999"), r"schema is 0999.*update"),
        (too_large, r"MB are needed.*MB are free"),
        (broken_dump, "pg_restore: .*"),
        (other_rows, "other rows than were backed up"),
    ],
)
def test_what_cant_be_restored_whole_changes_nothing(
    second: Home, file: Path, make: Callable[[Path], Path], said: str
) -> None:
    before, names = second.whole, second.names
    with pytest.raises(DatabaseError, match=f"(?s)was not restored: .*{said}"):
        restore(second.server, make(file), NOW, quiet)
    assert second.names == names
    assert second.whole == before


def test_half_a_swap_is_none(second: Home, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, names = second.whole, second.names
    rename, calls = backup._rename, 0

    def third_fails(admin: psycopg.Connection, name: str, new: str) -> None:
        nonlocal calls
        calls += 1
        rename(admin, name, "no such: it has no fresh one" if calls == 4 else new)
        if calls == 3:
            raise psycopg.OperationalError("the server is gone")

    monkeypatch.setattr(backup, "_rename", third_fails)
    with pytest.raises(DatabaseError, match="the server is gone"):
        restore(second.server, file, NOW, quiet)
    assert second.names == names
    assert second.whole == before


def test_who_uses_the_databases_is_named_and_not_cut_off(second: Home, file: Path) -> None:
    names = second.names
    url = second.server.url(DATABASES[1])
    with psycopg.connect(url, application_name="dashboard", autocommit=True) as used:
        with pytest.raises(DatabaseError, match=r"in use by dashboard \(process \d+\)"):
            restore(second.server, file, NOW, quiet)
        assert used.execute("SELECT 1").fetchone() == (1,)

    with ExitStack() as stack:

        def come(step: str) -> None:
            """Use the databases when the restore is already at work."""
            if step.startswith(DATABASES[1]):
                stack.enter_context(psycopg.connect(url))

        with pytest.raises(DatabaseError, match="being accessed by other users"):
            restore(second.server, file, NOW, come)
    assert second.names == names


def test_a_restore_beside_another_is_refused(
    second: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "LOCK_TIMEOUT", "100ms")

    def again(step: str) -> None:
        if step.startswith(DATABASES[1]):
            with pytest.raises(DatabaseError, match="another restore is running"):
                restore(second.server, file, NOW, quiet)

    restore(second.server, file, NOW, again)


def test_nothing_is_restored_under_running_services(second: Home, file: Path) -> None:
    names = second.names
    guard = runtime_home.Home(second.path).lock()
    assert guard is not None
    with guard:
        done = second.cli("restore", str(file))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "are running: stop them with `trading-pipelines down`" in done.stderr
    assert second.names == names


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_database_of_the_operators_is_left_to_the_operators_tools(
    second: Home, file: Path, command: str
) -> None:
    url = "postgresql://me:pa55@elsewhere/market"
    done = second.cli(command, str(file), DATABASE_URL=url)
    assert done.exit_code == 1
    assert {"backup": "pg_dump", "restore": "pg_restore"}[command] in done.stderr
    assert "DATABASE_URL" in done.stderr
    assert "pa55" not in done.stderr


# ---- the file ----


def test_the_default_file_is_in_the_home_and_for_its_owner_only(second: Home) -> None:
    # What `env` prints for Dagster's own commands is no other database.
    dagster = database_urls(environment(second.path)).dagster
    done = second.cli("backup", DAGSTER_POSTGRES_URL=dagster)
    assert done.exit_code == 0, done.output
    (made,) = (second.path / "backups").iterdir()
    assert done.stdout.startswith(f"{made}: 0.")
    assert done.stdout.endswith(" s\n")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    with tarfile.open(made) as archive:
        manifest = backup.Manifest.model_validate_json(backup._read(archive, backup.MANIFEST))
    assert manifest.made_at.strftime("%Y%m%dT%H%M%SZ.tar") == made.name


def test_no_file_is_ever_overwritten(second: Home, file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    with pytest.raises(DatabaseError, match="is there already"):
        back_up(second.server, file, NOW, quiet)
    assert file.read_bytes() == content
    target = tmp_path / "b.tar"
    (tmp_path / "b.tar.partial").write_text("of another that is at work, or was killed")
    with pytest.raises(DatabaseError, match=r"File exists.*b\.tar\.partial"):
        back_up(second.server, target, NOW, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar.partial"]


def test_a_home_without_a_database_is_no_empty_backup(running: Home, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="TRADING_PIPELINES_HOME"):
        back_up(running.server, tmp_path / "b.tar", NOW, quiet)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_leaves_no_file(first: Home, file: Path, small_disk: Path) -> None:
    assert file.stat().st_size > 64_000
    with pytest.raises(DatabaseError, match="No space left"):
        back_up(first.server, small_disk / "b.tar", NOW, quiet)
    assert not list(small_disk.iterdir())


# ---- kills ----

RUN = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from trading_pipelines.database import backup
from trading_pipelines.database.embedded import EmbeddedServer

run = getattr(backup, sys.argv[1])
run(EmbeddedServer(Path(sys.argv[2])), Path(sys.argv[3]), datetime.now(UTC),
    lambda step: print(step, flush=True))
print("done", flush=True)
"""


def killed(what: str, home: Home, file: Path, steps: int, seconds: float) -> bool:
    """Kill it so long after it has told of a step; return whether it had come to its end."""
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, what, str(home.path), str(file)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        for _ in range(steps):
            assert child.stdout.readline()
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        return "done" in child.stdout.read()


def test_a_restore_that_was_killed_anywhere_is_the_old_state_or_the_new_and_can_be_done_again(
    second: Home, whole: dict[str, Any], file: Path
) -> None:
    old = second.whole
    moments = [(1, 0.0), (2, 0.0), (2, 0.3), (2, 0.8), (3, 0.0), (3, 0.1), (3, 0.2), (3, 0.4)]
    for moment in moments:
        ended = killed("restore", second, file, *moment)
        assert second.whole in ([whole] if ended else [old, whole])
        assert moment != moments[0] or not ended, "the first moment is before its end"
    restore(second.server, file, NOW, quiet)
    assert second.whole == whole
    assert not [name for name in second.names if name.endswith("being_restored")]


def test_a_backup_that_was_killed_does_not_look_like_one(
    first: Home, file: Path, tmp_path: Path
) -> None:
    assert not killed("back_up", first, tmp_path / "b.tar", 1, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar.partial"]
    assert file.exists()
