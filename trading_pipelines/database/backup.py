"""A backup of the embedded server's two databases in one file, and its restore.

The file is a plain tar: the roles (without passwords), a `pg_dump` of each database, a manifest and
SHA256SUMS, which covers all of them. A restore builds fresh databases beside the present ones and
swaps them in one transaction, so that a kill at any moment leaves the old state or the new one.
Writing and reading stand together, as both are the file's format.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, LiteralString

import psycopg
from psycopg import sql
from pydantic import AwareDatetime, BaseModel, ConfigDict

from trading_pipelines.database.connection import (
    SCHEMA,
    DatabaseError,
    connect,
    newest_schema,
    upgrade_database,
)
from trading_pipelines.database.embedded import EmbeddedServer, binaries

DATABASES = (SCHEMA, f"{SCHEMA}_dagster")
FORMAT = "trading-pipelines backup 1"
ROLES, MANIFEST, SUMS = "roles.sql", "manifest.json", "SHA256SUMS"
# Any number that nobody else locks: of two restores at once each would drop what the other builds.
RESTORE_LOCK = 7_301_203
LOCK_TIMEOUT = "10s"
# What the write-ahead log takes beside the data: max_wal_size.
WAL_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20

TABLES = """
SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind = 'r' AND nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY 1, 2
"""
SESSIONS = """
SELECT string_agg(format('%%s (process %%s)', coalesce(nullif(application_name, ''), 'no name'),
    pid), ', ')
FROM pg_stat_activity WHERE datname = ANY(%s) AND backend_type = 'client backend'
"""


class Content(BaseModel):
    """What a database holds: rows by table, and what it took on disk."""

    model_config = ConfigDict(frozen=True)

    rows: dict[str, int]
    size_bytes: int


class Manifest(BaseModel):
    """What a backup is: `made_at` in UTC, the schema's revision, and the content by database."""

    model_config = ConfigDict(frozen=True)

    format: str
    made_at: AwareDatetime
    revision: str
    postgres: str
    databases: dict[str, Content]

    @property
    def rows(self) -> int:
        """The rows of all tables of both databases."""
        return sum(sum(content.rows.values()) for content in self.databases.values())


@dataclass(frozen=True)
class Restored:
    """What was restored, and the names under which the databases before it are kept."""

    manifest: Manifest
    former: list[str]


def back_up(
    server: EmbeddedServer, target: Path, now: datetime, say: Callable[[str], None]
) -> Manifest:
    """Write both databases, as they are at this moment, to `target`, which must not exist.

    Starts the server if it is needed; whatever uses it goes on. `say` is called with each step. An
    incomplete file has the suffix `.partial`. Raises DatabaseError and EmbeddedServerError.
    """
    if target.exists():
        raise DatabaseError(f"{target} is there already: choose another name")
    partial = target.with_name(f"{target.name}.partial")
    server.start()
    with _database_errors(f"no backup was made to {target}"), contextlib.ExitStack() as stack:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only its owner may read it, from the first byte on; a second backup to it is refused.
        created = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        stack.callback(partial.unlink, missing_ok=True)
        with os.fdopen(created, "wb") as file:
            manifest = _write(_Archive(file), server, now, say)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
        folder = os.open(target.parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        os.fsync(folder)
    return manifest


def restore(
    server: EmbeddedServer, file: Path, now: datetime, say: Callable[[str], None]
) -> Restored:
    """Put both databases of a backup in the place of the present ones, migrated to head.

    The present ones are kept under other names; the server may be empty, and is started if it is
    needed. Nothing is changed until all is complete, and the next restore clears what a killed one
    has left. Raises DatabaseError and EmbeddedServerError.
    """
    with _database_errors(f"{file} was not restored"), _opened(file, say) as (archive, manifest):
        server.start()
        with connect(server.url("postgres")) as admin:
            _require_alone(admin)
            _drop_fresh(admin)
            _require_room(admin, manifest)
            try:
                _create_roles(server, admin, archive)
                for name in DATABASES:
                    content = manifest.databases[name]
                    say(f"{name}: {sum(content.rows.values()):,} rows")
                    _fill(server, admin, archive, name, content)
                upgrade_database(server.url(_fresh(SCHEMA)))
                return Restored(manifest, _swap(admin, now))
            except BaseException:
                with contextlib.suppress(psycopg.Error):  # of a server that is gone
                    _drop_fresh(admin)
                raise


class _Archive:
    """A tar whose members are streamed: a header is filled in when its member's size is known."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sums = ""

    def add(self, name: str, source: IO[bytes]) -> None:
        start = self._file.tell()
        self._file.write(bytes(tarfile.BLOCKSIZE))
        digest = hashlib.sha256()
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            self._file.write(chunk)
        header = tarfile.TarInfo(name)
        header.size = self._file.tell() - start - tarfile.BLOCKSIZE
        header.mode = 0o600
        self._file.write(bytes(-header.size % tarfile.BLOCKSIZE))
        self._file.seek(start)
        self._file.write(header.tobuf(tarfile.GNU_FORMAT))
        self._file.seek(0, os.SEEK_END)
        self.sums += f"{digest.hexdigest()}  {name}\n"

    def end(self) -> None:
        self.add(SUMS, io.BytesIO(self.sums.encode()))
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))


def _write(
    archive: _Archive, server: EmbeddedServer, now: datetime, say: Callable[[str], None]
) -> Manifest:
    with connect(server.url("postgres")) as admin:
        query = "SELECT count(*) FROM pg_database WHERE datname = ANY(%s)"
        databases = _value(admin, query, [list(DATABASES)])
    if databases < len(DATABASES):
        raise DatabaseError("there is no database yet: is TRADING_PIPELINES_HOME right?")
    contents = {}
    with contextlib.ExitStack() as stack:
        # Both snapshots are taken before the first dump: a partition that is complete in the one
        # database should be green in the other.
        snapshots = {name: stack.enter_context(_snapshot(server.url(name))) for name in DATABASES}
        market = snapshots[SCHEMA][0]
        revision = _value(market, "SELECT version_num FROM trading_pipelines.alembic_version")
        options = ("--roles-only", "--no-role-passwords", "--no-comments")
        at_server = ("-d", server.url("postgres"))
        with _program("pg_dumpall", *options, *at_server, stdout=subprocess.PIPE) as roles:
            archive.add(ROLES, roles)
        for name, (connection, snapshot) in snapshots.items():
            contents[name] = Content(
                rows=_rows(connection),
                size_bytes=_value(connection, "SELECT pg_database_size(current_database())"),
            )
            say(f"{name}: {sum(contents[name].rows.values()):,} rows")
            options = ("-Fc", f"--snapshot={snapshot}", server.url(name))
            with _program("pg_dump", *options, stdout=subprocess.PIPE) as dump:
                archive.add(f"{name}.dump", dump)
        manifest = Manifest(
            format=FORMAT,
            made_at=now,
            revision=revision,
            postgres=_value(market, "SHOW server_version"),
            databases=contents,
        )
    archive.add(MANIFEST, io.BytesIO(manifest.model_dump_json(indent=2).encode()))
    archive.end()
    return manifest


@contextlib.contextmanager
def _snapshot(url: str) -> Iterator[tuple[psycopg.Connection, str]]:
    """Yield a connection that sees one snapshot, and the name by which pg_dump sees the same."""
    with connect(url) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection, _value(connection, "SELECT pg_export_snapshot()")


@contextlib.contextmanager
def _opened(file: Path, say: Callable[[str], None]) -> Iterator[tuple[tarfile.TarFile, Manifest]]:
    """Yield a backup that is undamaged and that this version can restore."""
    say(f"checking {file}")
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(tarfile.open(file, "r:"))
            sums = dict(line.split()[::-1] for line in _read(archive, SUMS).decode().splitlines())
            for name in {*archive.getnames(), *sums} - {SUMS}:
                with _member(archive, name) as member:
                    if hashlib.file_digest(member, "sha256").hexdigest() != sums[name]:
                        raise DatabaseError(f"it is damaged: {name} is not what was written")
            content = json.loads(_read(archive, MANIFEST))
            if content["format"] != FORMAT:
                raise DatabaseError(
                    f"its format is {content['format']!r}, this version reads {FORMAT!r}: "
                    "take the version that wrote it"
                )
            manifest = Manifest(**content)
        except (tarfile.TarError, LookupError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise DatabaseError(f"it is no backup, or is damaged: {reason}") from error
        if manifest.revision > str(newest_schema()):
            raise DatabaseError(
                f"its schema is {manifest.revision}, this version knows them up to "
                f"{newest_schema()}: update trading-pipelines first"
            )
        yield archive, manifest


def _member(archive: tarfile.TarFile, name: str) -> io.BufferedReader:
    member = archive.extractfile(name)
    if not isinstance(member, io.BufferedReader):
        raise LookupError(f"{name} is no file")  # noqa: TRY004 - nor is the file
    return member


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    with _member(archive, name) as member:
        return member.read()


def _require_alone(admin: psycopg.Connection) -> None:
    admin.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    try:
        admin.execute("SELECT pg_advisory_lock(%s)", [RESTORE_LOCK])
    except psycopg.errors.LockNotAvailable:
        raise DatabaseError("another restore is running on this home") from None
    if others := _value(admin, SESSIONS, [list(DATABASES)]):
        raise DatabaseError(f"the databases are in use by {others}: stop that first")


def _require_room(admin: psycopg.Connection, manifest: Manifest) -> None:
    data = sum(content.size_bytes for content in manifest.databases.values())
    needed = data + min(data, WAL_BYTES)
    free = shutil.disk_usage(_value(admin, "SHOW data_directory")).free
    if free < needed:
        raise DatabaseError(
            f"{needed / 1e6:,.0f} MB are needed beside the present databases, which are kept; "
            f"{free / 1e6:,.0f} MB are free"
        )


def _create_roles(
    server: EmbeddedServer, admin: psycopg.Connection, archive: tarfile.TarFile
) -> None:
    """Create the roles that are missing; those that are there stay as they are."""
    roles = admin.execute("SELECT quote_ident(rolname) FROM pg_roles").fetchall()
    done = [f"{verb} ROLE {name}" for (name,) in roles for verb in ("CREATE", "ALTER")]
    skipped = tuple(f"{start}{end}".encode() for start in done for end in (" ", ";"))
    lines = _read(archive, ROLES).splitlines(keepends=True)
    options = ("-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", server.url("postgres"))
    with _program("psql", *options, stdin=subprocess.PIPE) as psql:
        psql.writelines(line for line in lines if not line.startswith(skipped))


def _fill(
    server: EmbeddedServer,
    admin: psycopg.Connection,
    archive: tarfile.TarFile,
    name: str,
    content: Content,
) -> None:
    """Make the fresh database and restore into it; raise unless each table has all of its rows."""
    create = "CREATE DATABASE {} TEMPLATE template0"
    admin.execute(sql.SQL(create).format(sql.Identifier(_fresh(name))))
    url = server.url(_fresh(name))
    with (
        _member(archive, f"{name}.dump") as dump,
        _program("pg_restore", "--exit-on-error", "-d", url, stdin=subprocess.PIPE) as pg_restore,
    ):
        shutil.copyfileobj(dump, pg_restore, CHUNK_BYTES)
    with connect(url) as connection:
        if _rows(connection) != content.rows:
            raise DatabaseError(f"{name} has other rows than were backed up")
        connection.execute("ANALYZE")


def _swap(admin: psycopg.Connection, now: datetime) -> list[str]:
    """Give the fresh databases their names, all or none; return the new names of those before."""
    former = []
    try:
        with admin.transaction():
            for name in DATABASES:
                if _value(admin, "SELECT count(*) FROM pg_database WHERE datname = %s", [name]):
                    former.append(f"{name}_before_restore_{now:%Y%m%d_%H%M%S}")
                    _rename(admin, name, former[-1])
                _rename(admin, _fresh(name), name)
    except psycopg.errors.ObjectInUse as error:
        raise DatabaseError(f"{error}: stop what uses it first") from error
    return former


def _rename(admin: psycopg.Connection, name: str, new: str) -> None:
    names = map(sql.Identifier, (name, new))
    admin.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*names))


def _drop_fresh(admin: psycopg.Connection) -> None:
    """Drop what is not in use yet; of a killed restore, pg_restore may still be at work."""
    for name in DATABASES:
        drop = "DROP DATABASE IF EXISTS {} WITH (FORCE)"
        admin.execute(sql.SQL(drop).format(sql.Identifier(_fresh(name))))


def _fresh(name: str) -> str:
    return f"{name}_being_restored"


def _rows(connection: psycopg.Connection) -> dict[str, int]:
    count = sql.SQL("SELECT count(*) FROM {}")
    return {
        ".".join(table): _value(connection, count.format(sql.Identifier(*table)))
        for table in connection.execute(TABLES).fetchall()
    }


def _value(
    connection: psycopg.Connection,
    query: LiteralString | sql.Composed,
    values: list[Any] | None = None,
) -> Any:  # noqa: ANN401 - the caller knows
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row[0]


@contextlib.contextmanager
def _program(
    name: str,
    *arguments: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> Iterator[IO[bytes]]:
    """Yield the pipe to or from a program of the server's Postgres.

    Raises DatabaseError with the program's message where it fails. It ends when the pipe is closed.
    """
    command = [str(binaries() / name), *arguments]
    with tempfile.TemporaryFile() as errors:
        # A program that has failed reads no more: its message explains more than our broken pipe.
        with (
            contextlib.suppress(BrokenPipeError),
            subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=errors) as process,  # noqa: S603
        ):
            pipe = process.stdin or process.stdout
            assert pipe is not None
            yield pipe
        if process.returncode:
            errors.seek(0)
            message = errors.read().decode(errors="replace").strip()[-1500:]
            raise DatabaseError(f"{name}: {message}")


@contextlib.contextmanager
def _database_errors(failure: str) -> Iterator[None]:
    """Turn an error of the system or of the server into a DatabaseError."""
    try:
        yield
    except (DatabaseError, OSError, psycopg.Error, tarfile.TarError) as error:
        raise DatabaseError(f"{failure}: {error}") from error
