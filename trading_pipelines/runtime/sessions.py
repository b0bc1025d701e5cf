"""Opening the database of a home, and leaving its embedded server as it was found.

Several commands may be at it at once: the last one to leave stops it, where the first found none.

Starting the services on it belongs in `supervisor`.
"""

import contextlib
import fcntl
from collections.abc import Iterator

import psycopg

from trading_pipelines.database.connection import (
    DatabaseUrls,
    connect,
    embedded_server,
    prepare_database,
)
from trading_pipelines.runtime.home import Home
from trading_pipelines.settings.environment import Environment

# In the file of those who use the server: whoever leaves last stops it.
STOP = b"stop\n"


@contextlib.contextmanager
def prepared_database(
    environment: Environment, *, is_owner: bool = False
) -> Iterator[DatabaseUrls]:
    """Prepare the database and leave it as it was found; its owner leaves it stopped."""
    with database_left_as_found(environment, is_owner=is_owner):
        yield prepare_database(environment)


@contextlib.contextmanager
def database_left_as_found(environment: Environment, *, is_owner: bool = False) -> Iterator[None]:
    """Stop the embedded server at the end where it was not running; not while others use it."""
    server = embedded_server(environment)
    if server is None:
        yield
        return
    home = Home.of(environment)
    with home.database_users.open("a+b") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        was_running = server.is_running()
        try:
            yield
        finally:
            if is_owner or not was_running:
                users.write(STOP)
                users.flush()
            # Gives up its own share first: of two that leave at once the second gets it.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                users.seek(0)
                if users.read() and home.running_services() is None:
                    server.stop()
                    users.truncate(0)


@contextlib.contextmanager
def market_connection(environment: Environment) -> Iterator[psycopg.Connection]:
    """Yield an autocommit connection to the market database."""
    with prepared_database(environment) as urls, connect(urls.market) as connection:
        yield connection
