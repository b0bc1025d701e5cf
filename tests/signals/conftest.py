"""Signals computed on the recorded three weeks, as a run would compute them."""

from collections.abc import Iterator, Sequence
from datetime import date

import psycopg
import pytest

from tests.conftest import STRATEGY, copied, days_of
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import Signal
from trading_pipelines.signals.engine import ComputedPartition
from trading_pipelines.signals.registry import compute

SETTINGS = STRATEGY


class Bench:
    """Computes signals on one database, as a run would."""

    def __init__(self, connection: psycopg.Connection, settings: StrategySettings) -> None:
        self.connection = connection
        self.settings = settings

    def compute(
        self, signal: Signal, symbols: Sequence[str], first: date, last: date | None = None
    ) -> list[ComputedPartition]:
        days = days_of(first, last or first)
        return compute(self.connection, signal, symbols, days, self.settings, "run")

    def rows(self, table: str, where: str = "true") -> list[tuple[str]]:
        """Return the rows as Postgres writes them: equal means equal to the bit.

        But for the numbers that regime_history has given to its rows.
        """
        cursor = self.connection.execute(
            f"SELECT (to_jsonb(stored) - 'history_id')::text "
            f"FROM trading_pipelines.{table} AS stored WHERE {where} ORDER BY 1"
        )
        return cursor.fetchall()


@pytest.fixture
def computed(server: EmbeddedServer, computed_template: str) -> Iterator[Bench]:
    """The recording, and every signal of it."""
    with connect(copied(server, computed_template)) as connection:
        yield Bench(connection, SETTINGS)


@pytest.fixture
def bench(recorded_url: str) -> Iterator[Bench]:
    """The recording, and nothing computed from it yet."""
    with connect(recorded_url) as connection:
        yield Bench(connection, SETTINGS)
