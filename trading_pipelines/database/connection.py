"""Where the two databases are, connecting to them, and bringing the market database to its schema.

Starting the embedded server belongs in `embedded`, taking URLs apart in `url`, which says why
SQLAlchemy is not imported here. Queries belong to the packages that ask them.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psycopg
from psycopg import sql

from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.database.url import PostgresUrl
from trading_pipelines.errors import OperatorError
from trading_pipelines.settings.environment import Environment

T = TypeVar("T")

SCHEMA = "trading_pipelines"
REVISION_TABLE = f"{SCHEMA}.alembic_version"
VERSIONS = Path(__file__).parent / "migrations" / "versions"
# Alembic keeps its context in module globals: when four schedules upgraded in the same second in
# the threads of one code server, one or two failed with KeyError 'script'.
_ONE_UPGRADE = threading.Lock()
PROBE_SECONDS = 3
# A sensor's tick has 60 s, and asks Dagster, then the databases, then HEARTBEAT_URL (10 s).
DEADLINE_SECONDS = 20
SILENCE = {
    "connect_timeout": f"{PROBE_SECONDS}",
    # Without it a thread that asks a host which has vanished stays for a quarter of an hour.
    "tcp_user_timeout": f"{PROBE_SECONDS * 1000}",
}
# After 25 s of silence either end of a session takes the other's machine for vanished. By the
# system's defaults a process of a lost node keeps its locks for two hours.
KEEPALIVES = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
SERVER_KEEPALIVES = {name.replace("keep", "tcp_keep"): value for name, value in KEEPALIVES.items()}
PROBE = {
    "default_transaction_read_only": "on",
    "statement_timeout": f"{PROBE_SECONDS * 1000}",
}
SET_ALL = (
    "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)"
)
STORAGE_RIGHTS = """
SELECT to_regclass('public.job_ticks') IS NOT NULL, has_schema_privilege('public', 'CREATE'),
    quote_ident(current_user), quote_ident(current_database())
"""
VARIABLES = ("DATABASE_URL", "DAGSTER_POSTGRES_URL")


class DatabaseError(OperatorError):
    """The database can't be used as it is; the message says what to do."""


class UnreachableError(DatabaseError):
    """Nobody answers, or lets us in."""


@dataclass(frozen=True, repr=False)
class DatabaseUrls:
    """Where the two databases are. May hold a password: never printed, never logged."""

    market: str
    """For libpq and psycopg."""
    dagster: str
    """For SQLAlchemy, with the driver written out: a bare `postgresql://` makes every run fail."""

    def environment(self) -> dict[str, str]:
        """Return the variables by which child processes find both."""
        return dict(zip(VARIABLES, (self.market, self.dagster), strict=True))


def embedded_server(environment: Environment) -> EmbeddedServer | None:
    """Return the home's embedded server, or None where the operator's is used."""
    return None if environment.database_url else EmbeddedServer(environment.trading_pipelines_home)


def database_urls(environment: Environment) -> DatabaseUrls:
    """Return where both databases are; nothing is asked, started or created."""
    if server := embedded_server(environment):
        market = PostgresUrl.parse(server.url(SCHEMA))
    else:
        assert environment.database_url is not None
        market = PostgresUrl.parse(environment.database_url.get_secret_value())
    dagster = market.with_database(f"{market.database}_dagster")
    if environment.dagster_postgres_url:
        dagster = PostgresUrl.parse(environment.dagster_postgres_url.get_secret_value())
    return DatabaseUrls(market.render("postgresql"), dagster.render("postgresql+psycopg2"))


def prepare_database(environment: Environment) -> DatabaseUrls:
    """Start the embedded server if it is needed, create what is missing, migrate to head.

    Safe to run twice, and at once from several processes. Raises DatabaseError and
    EmbeddedServerError.
    """
    if "%" in str(VERSIONS):
        raise DatabaseError(
            f"the path {VERSIONS.parents[3]} has a '%' in it, which Dagster can't bear: move the "
            "clone (or where this is installed) to another path"
        )
    urls = database_urls(environment)
    market = PostgresUrl.parse(urls.market)
    if server := embedded_server(environment):
        server.start()
        _create_database(market.with_database("postgres"), SCHEMA)
    else:
        _require_rights(urls, is_named=environment.dagster_postgres_url is not None)
    if not environment.dagster_postgres_url:
        _create_database(market, f"{market.database}_dagster")
    upgrade_database(urls.market)
    return urls


# The bot's set-up has added its own key beside ours: one is enough, and the bot names its own.
LEAVE_KEY_TO_THE_BOT = """
DO $$ BEGIN
    IF 2 = (SELECT count(*) FROM pg_constraint WHERE conrelid = to_regclass('public.market_data')
        AND conname IN ('uq_market_data_symbol_interval_ts',
            'market_data_symbol_interval_timestamp_key'))
    THEN
        ALTER TABLE public.market_data DROP CONSTRAINT market_data_symbol_interval_timestamp_key;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'market_data belongs to another role: it keeps two keys alike';
END $$
"""


def _require_rights(urls: DatabaseUrls, *, is_named: bool) -> None:
    """Raise DatabaseError, before anything is changed, where the role may not migrate."""
    # It imports this module, and is needed before a migration alone.
    from trading_pipelines.database.adoption.schema import SchemaInspector  # noqa: PLC0415

    try:
        with connect(urls.market) as connection:
            if schema_of(connection) == newest_schema():
                return
            inspector = SchemaInspector(connection, [])
            missing = inspector.missing_rights(urls.dagster, is_named=is_named)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"this role may not look at our schema ({error}): take the one of `db upgrade`"
        ) from error
    if missing:
        raise DatabaseError(" ".join(missing))


def storage_fault(url: str) -> tuple[str, str] | None:
    """Return what the role lacks in Dagster's database, and the command for it.

    Raises DatabaseError where it can't be asked.
    """
    with probe_database(url) as connection:
        row = connection.execute(STORAGE_RIGHTS).fetchone()
    assert row is not None
    has_tables, may_create, role, database = row
    if has_tables or may_create:
        return None
    return (
        f"may not create Dagster's tables in the database {database}",
        f"GRANT CREATE ON SCHEMA public TO {role}; (in the database {database})",
    )


def require_storage(url: str) -> None:
    """Raise DatabaseError where Dagster's storage can't be used.

    Dagster's own error has three pages of traceback and no advice.
    """
    if fault := storage_fault(url):
        raise DatabaseError(f"this role {': '.join(fault)}")


def upgrade_database(market_url: str) -> None:
    """Migrate the market database to the newest schema; a second run changes nothing."""
    # Connected first, because Alembic's own errors have a page of traceback and no advice.
    with connect(market_url) as connection:
        if schema_of(connection) != newest_schema():
            migrate(market_url)
        connection.execute(LEAVE_KEY_TO_THE_BOT)
        refresh_korean_views(connection)


# Of the role, or of tables that can have no unique key, as some partitioned ones.
NOT_ADOPTABLE = (
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.WrongObjectType,
)


def migrate(market_url: str, revision: str = "head") -> None:
    """Migrate the market database to the revision by Alembic; raises DatabaseError."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "trading_pipelines:database/migrations")
    config.attributes["url"] = market_url
    try:
        with _ONE_UPGRADE:
            command.upgrade(config, revision)
    except CommandError as error:
        raise DatabaseError(
            f"the schema can't be migrated: {error}. Where a newer version of this project has "
            "been at work on the database, take that one, or restore a backup of before"
        ) from error
    except DBAPIError as error:
        if not isinstance(error.orig, NOT_ADOPTABLE):
            raise
        raise DatabaseError(
            f"the schema can't be migrated: {error.orig.diag.message_primary}; `db adopt` says "
            "which rights the role needs, and what to change in the bot's tables"
        ) from error


def refresh_korean_views(connection: psycopg.Connection) -> list[str]:
    """Bring our views up to date with the bot's tables; return a line for each that failed.

    Locks no table, and no view that is up to date.
    """
    problems = connection.execute("SELECT trading_pipelines.refresh_korean_views()")
    return [problem for (problem,) in problems]


def newest_schema() -> str:
    """Return the revision that `upgrade_database` migrates to, by the migrations' file names.

    Alembic says the same after an import of 0.6 s; tests/database/test_url.py compares them.
    """
    return max(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py"))


def schema_of(connection: psycopg.Connection) -> str | None:
    """Return the revision of the market database, None where nothing of ours is in it."""
    (table,) = connection.execute("SELECT to_regclass(%s)", [REVISION_TABLE]).fetchone() or (None,)
    if table is None:
        return None
    row = connection.execute("SELECT version_num FROM trading_pipelines.alembic_version").fetchone()
    return row[0] if row else None


def probe_url(url: str, *, is_pooled: bool = False) -> str:
    """Return a URL whose sessions are read-only and do not wait for a silent server.

    A pooler refuses the options by which they are read-only.
    """
    parsed = PostgresUrl.parse(url).with_query(SILENCE)
    if not is_pooled:
        options = (f"-c {name}={value}" for name, value in PROBE.items())
        parsed = parsed.with_query({"options": " ".join([*parsed.options(), *options])})
    return parsed.render(parsed.scheme)


def probe_database(url: str) -> AbstractContextManager[psycopg.Connection]:
    """Yield a connection as `connect` does, read-only, which does not wait for a silent server."""
    return connect(PostgresUrl.parse(url).with_query(SILENCE).render("postgresql"), PROBE)


def within_deadline(question: Callable[[], T]) -> T:
    """Return the answer; raise DatabaseError when there is none after DEADLINE_SECONDS.

    The server itself keeps the time-outs of a probe: one that is stopped never answers. The
    question then stays in its thread until the connection or the process ends.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(DEADLINE_SECONDS)
    except TimeoutError:
        raise DatabaseError(f"no answer within {DEADLINE_SECONDS} s") from None


@contextmanager
def connect(url: str, settings: Mapping[str, str] | None = None) -> Iterator[psycopg.Connection]:
    """Yield an autocommit connection in UTC; raise DatabaseError where none can be had.

    The `settings` hold as long as it does, and so do the URL's own `options` (a search_path, say).
    """
    with open_session(url, settings) as connection:
        yield connection


def open_session(url: str, settings: Mapping[str, str] | None = None) -> psycopg.Connection:
    """Return what `connect` yields; to be closed by whoever asked for it."""
    try:
        parsed = PostgresUrl.parse(url)
        target = parsed.with_query({**KEEPALIVES, **parsed.parameters}).render("postgresql")
        return _open_session(target, settings or {})
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        # A value that can't be read (a port, an sslmode) is quoted.
        reason = re.sub(r"""(value[\w :]*) (["']).*?\2""", r"\1", " ".join(str(error).split()))
        raise UnreachableError(
            f"the database can't be reached: {reason}; is the server up, "
            "and are DATABASE_URL and DAGSTER_POSTGRES_URL, where they are set, right?"
        ) from None


def _open_session(target: str, settings: Mapping[str, str]) -> psycopg.Connection:
    connection = psycopg.connect(target, autocommit=True, application_name=SCHEMA)
    try:
        # Before anything is set: in such a pool it would stay for whoever comes next.
        if is_pooled(connection) and _pools_transactions(target, connection):
            raise DatabaseError(
                "the database is asked through a pooler that changes sessions between transactions "
                "(pool_mode transaction or statement), where locks and settings are lost: let "
                "DATABASE_URL and DAGSTER_POSTGRES_URL lead to the server itself, or to a pool in "
                "session mode"
            )
        # Not by `options`, which a pooler drops or refuses: in New York's zone 160 of 960 minutes
        # were stored, and the others taken for quiet.
        settings = {"TimeZone": "UTC", **SERVER_KEEPALIVES, **settings}
        connection.execute(SET_ALL, [[*settings], [*settings.values()]])
        if connection.info.parameter_status("TimeZone") != "UTC":
            raise DatabaseError("the session's time zone can't be set to UTC")
    except BaseException:
        connection.close()
        raise
    return connection


def is_pooled(connection: psycopg.Connection) -> bool:
    """Whether a pooler stands before the server: it names another process than the server does."""
    return _backend(connection) != connection.info.backend_pid


def _backend(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


_pool_modes: dict[str, bool] = {}


def _pools_transactions(target: str, connection: psycopg.Connection) -> bool:
    """Whether one session of the server serves several connections, asked once a process."""
    if target not in _pool_modes:
        # A pool gives the session that was free last, or one after the other.
        own = {_backend(connection) for _ in range(3)}
        with psycopg.connect(target, autocommit=True) as other:
            others = within_deadline(lambda: {_backend(other) for _ in range(3)})
        _pool_modes[target] = len(own) > 1 or len(others) > 1 or own == others
    return _pool_modes[target]


def _create_database(server: PostgresUrl, name: str) -> None:
    with connect(server.render("postgresql")) as connection:
        exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if exists.fetchone():
            return
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.errors.DuplicateDatabase:
            return  # another process was first
        except psycopg.errors.UniqueViolation:
            return  # the same, seen a moment earlier in pg_database's index
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"this role may not create the database {name!r}, which Dagster's storage needs: "
                f"create it yourself (CREATE DATABASE {name} OWNER {connection.info.user}), or set "
                "DAGSTER_POSTGRES_URL to another one"
            ) from error
