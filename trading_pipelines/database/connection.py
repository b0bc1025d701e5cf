"""Where the two databases are, connecting to them, and bringing the market database to its schema.

Starting the embedded server belongs in `embedded`, taking URLs apart in `url`, which says why
SQLAlchemy is not imported here. Queries belong to the packages that ask them.
"""

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
PROBE = {
    "default_transaction_read_only": "on",
    "statement_timeout": f"{PROBE_SECONDS * 1000}",
}
VARIABLES = ("DATABASE_URL", "DAGSTER_POSTGRES_URL")


class DatabaseError(OperatorError):
    """The database can't be used as it is; the message says what to do."""


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
    dagster = market.with_database(f"{market.database}_dagster").render("postgresql+psycopg2")
    if environment.dagster_postgres_url:
        dagster = environment.dagster_postgres_url.get_secret_value()
    return DatabaseUrls(market.render("postgresql"), dagster)


def prepare_database(environment: Environment) -> DatabaseUrls:
    """Start the embedded server if it is needed, create what is missing, migrate to head.

    Safe to run twice, and at once from several processes. Raises DatabaseError and
    EmbeddedServerError.
    """
    urls = database_urls(environment)
    market = PostgresUrl.parse(urls.market)
    if server := embedded_server(environment):
        server.start()
        _create_database(market.with_database("postgres"), SCHEMA)
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


def upgrade_database(market_url: str) -> None:
    """Migrate the market database to the newest schema; a second run changes nothing."""
    # Connected first, because Alembic's own errors have a page of traceback and no advice.
    with connect(market_url) as connection:
        if schema_of(connection) != newest_schema():
            migrate(market_url)
        connection.execute(LEAVE_KEY_TO_THE_BOT)
        refresh_korean_views(connection)


def migrate(market_url: str, revision: str = "head") -> None:
    """Migrate the market database to the revision by Alembic; raises DatabaseError."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

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


def probe_url(url: str) -> str:
    """Return a URL whose sessions are read-only and do not wait for a silent server."""
    parsed = PostgresUrl.parse(url)
    query = {
        "connect_timeout": f"{PROBE_SECONDS}",
        # Without it a thread that asks a host which has vanished stays for a quarter of an hour.
        "tcp_user_timeout": f"{PROBE_SECONDS * 1000}",
        "options": _options(parsed, PROBE),
    }
    return parsed.with_query(query).render(parsed.scheme)


def probe_database(url: str) -> AbstractContextManager[psycopg.Connection]:
    """Yield a connection as `connect` does, by the `probe_url`."""
    return connect(probe_url(url))


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
def connect(url: str) -> Iterator[psycopg.Connection]:
    """Yield an autocommit connection in UTC; raise DatabaseError when there is no server.

    The URL's own `options` (a search_path, say) hold.
    """
    parsed = PostgresUrl.parse(url)
    try:
        connection = psycopg.connect(
            parsed.render("postgresql"),
            autocommit=True,
            options=_options(parsed, {"timezone": "UTC"}),
            application_name=SCHEMA,
        )
    except psycopg.OperationalError as error:
        raise DatabaseError(
            f"the database can't be reached: {' '.join(str(error).split())}; is the server up, "
            "and are DATABASE_URL and DAGSTER_POSTGRES_URL, where they are set, right?"
        ) from None
    with connection:
        yield connection


def _options(url: PostgresUrl, more: Mapping[str, str]) -> str:
    return " ".join([*url.options(), *(f"-c {name}={value}" for name, value in more.items())])


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
                f"create it yourself (CREATE DATABASE {name}), or set DAGSTER_POSTGRES_URL to "
                "another one (postgresql+psycopg2://…)"
            ) from error
