"""The market database as a Dagster resource. Which database it is belongs in `database/`."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg

from trading_pipelines.database.connection import connect, prepare_database
from trading_pipelines.settings.environment import load_environment


class DatabaseResource(dg.ConfigurableResource[None]):
    """Connections to the databases of the environment, prepared on first use in a process."""

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """Yield an autocommit connection to the market database, in UTC.

        Raises DatabaseError or EmbeddedServerError.
        """
        with connect(_prepared(load_environment()).market) as connection:
            yield connection

    @contextmanager
    def connect_to_dagster(self) -> Iterator[psycopg.Connection]:
        """Yield an autocommit connection to Dagster's own storage; raises as `connect` does."""
        with connect(_prepared(load_environment()).dagster) as connection:
            yield connection


# Dagster makes the resource anew for each tick, of which there are many a minute.
_prepared = functools.cache(prepare_database)
