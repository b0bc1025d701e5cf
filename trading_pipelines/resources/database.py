"""The market database as a Dagster resource. Which database it is belongs in `database/`."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg
from pydantic import PrivateAttr

from trading_pipelines import database
from trading_pipelines.settings import load_environment


class DatabaseResource(dg.ConfigurableResource[None]):
    """Connections to the databases of the environment, prepared on first use in a process."""

    _urls: database.DatabaseUrls | None = PrivateAttr(default=None)

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """Yield an autocommit connection to the market database, in UTC.

        Raises DatabaseError or EmbeddedServerError.
        """
        with database.connect(self._prepared().market) as connection:
            yield connection

    @contextmanager
    def connect_to_dagster(self) -> Iterator[psycopg.Connection]:
        """Yield an autocommit connection to Dagster's own storage; raises as `connect` does."""
        with database.connect(self._prepared().dagster) as connection:
            yield connection

    def _prepared(self) -> database.DatabaseUrls:
        if self._urls is None:
            self._urls = database.prepare(load_environment())
        return self._urls
