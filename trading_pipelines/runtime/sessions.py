"""Opening the database of a home, and leaving its embedded server as it was found.

Starting the services on it belongs in `supervisor`.
"""

import contextlib
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


@contextlib.contextmanager
def prepared_database(
    environment: Environment, *, is_owner: bool = False
) -> Iterator[DatabaseUrls]:
    """Prepare the database and leave it as it was found; its owner stops it in any case."""
    with database_left_as_found(environment, is_owner=is_owner):
        yield prepare_database(environment)


@contextlib.contextmanager
def database_left_as_found(environment: Environment, *, is_owner: bool = False) -> Iterator[None]:
    """Stop the embedded server at the end where it was not running; not while services use it."""
    server = embedded_server(environment)
    was_running = server is None or server.is_running()
    try:
        yield
    finally:
        in_use = Home.of(environment).running_services() is not None
        if server is not None and not in_use and (is_owner or not was_running):
            server.stop()


@contextlib.contextmanager
def market_connection(environment: Environment) -> Iterator[psycopg.Connection]:
    """Yield an autocommit connection to the market database."""
    with prepared_database(environment) as urls, connect(urls.market) as connection:
        yield connection
