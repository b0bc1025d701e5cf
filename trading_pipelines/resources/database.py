"""The market database as a Dagster resource. Which database it is belongs in `database/`."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg
import tenacity
from pydantic import PrivateAttr

from trading_pipelines.database.connection import UnreachableError, connect, prepare_database
from trading_pipelines.settings.environment import load_environment

# A server that was killed is back in seconds; one that is moved or updated, in minutes.
BACK_WITHIN_SECONDS = 600
ASK_SECONDS = 1
# Of one step: a server that goes away time and again is somebody's to look at.
MOST_RETRIES = 10


class DatabaseResource(dg.ConfigurableResource[None]):
    """Connections to the databases of the environment, prepared on first use in a process."""

    _in_run: bool = PrivateAttr(default=False)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Note whether a run's step is to use it, or a tick."""
        self._in_run = context.run is not None

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """Yield an autocommit connection to the market database, in UTC.

        Raises DatabaseError or EmbeddedServerError. Where a run loses it, the step waits for it and
        is tried again: a failed step would fail the run for good, and a backfill with it.
        """
        connection = None
        try:
            with connect(_prepared(load_environment()).market) as connection:
                yield connection
        except (psycopg.OperationalError, UnreachableError) as error:
            is_lost = connection is None or connection.broken
            if not (self._in_run and is_lost):
                raise
            _await_databases()
            raise dg.RetryRequested(max_retries=MOST_RETRIES) from error

    @contextmanager
    def connect_to_dagster(self) -> Iterator[psycopg.Connection]:
        """Yield an autocommit connection to Dagster's own storage; raises as `connect` does."""
        with connect(_prepared(load_environment()).dagster) as connection:
            yield connection


# Dagster makes the resource anew for each tick, of which there are many a minute.
_prepared = functools.cache(prepare_database)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type((psycopg.OperationalError, UnreachableError)),
    stop=tenacity.stop_after_delay(BACK_WITHIN_SECONDS),
    wait=tenacity.wait_fixed(ASK_SECONDS),
    reraise=True,
)
def _await_databases() -> None:
    """Wait until both answer: Dagster's too, or the step could not say that it is tried again."""
    urls = _prepared(load_environment())
    with connect(urls.market), connect(urls.dagster):
        pass
