"""The embedded server of a home, used by several commands at once."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trading_pipelines.database.connection import connect, prepare_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.sessions import database_left_as_found, prepared_database
from trading_pipelines.settings.environment import Environment


@pytest.fixture
def environment() -> Iterator[Environment]:
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    folder.chmod(0o755)  # under root the server runs as `nobody`
    yield Environment(
        trading_pipelines_home=folder,
        trading_pipelines_config=folder / "strategy.yaml",
        database_url=None,
        dagster_postgres_url=None,
    )
    EmbeddedServer(folder).stop()
    shutil.rmtree(folder)


def is_running(environment: Environment) -> bool:
    return EmbeddedServer(environment.trading_pipelines_home).is_running()


@pytest.mark.parametrize("first_to_leave", ["who started it", "who found it running"])
def test_of_two_commands_at_once_the_last_to_leave_stops_the_server(
    environment: Environment, first_to_leave: str
) -> None:
    with ExitStack() as who_started_it, ExitStack() as who_found_it:
        who_started_it.enter_context(prepared_database(environment))
        urls = who_found_it.enter_context(prepared_database(environment))
        leaving, staying = who_started_it, who_found_it
        if first_to_leave == "who found it running":
            leaving, staying = staying, leaving
        leaving.close()
        with connect(urls.market) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        staying.close()
        assert not is_running(environment)


def test_a_server_that_was_running_is_left_running(environment: Environment) -> None:
    prepare_database(environment)
    with prepared_database(environment), database_left_as_found(environment):
        pass
    assert is_running(environment)


def test_what_an_owner_has_used_is_stopped_even_if_it_was_running(
    environment: Environment,
) -> None:
    prepare_database(environment)
    with prepared_database(environment, is_owner=True):
        pass
    assert not is_running(environment)
