"""Dagster's storage in Postgres, in which all that a run plans to make is stored in one statement.

Everything else is Dagster's own. Which Postgres it is belongs in `runtime.processes`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import dagster as dg
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage


class EventLog(PostgresEventLogStorage):
    """Stores the partitions that a run plans to make as Dagster stores those that it has made.

    Dagster stores each by itself, over connections of its own: 12 ms each, in which its daemon
    starts no other run. A run of a year of two assets was 9 s on its way into the queue.
    """

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Store the events, the planned materializations among them in one statement."""
        planned: list[dg.EventLogEntry] = []
        others: list[dg.EventLogEntry] = []
        for event in events:
            of_kind = event.get_dagster_event().is_asset_materialization_planned
            (planned if of_kind else others).append(event)
        if planned:
            insert = self.prepare_insert_event_batch(planned)
            with self._connect() as connection:
                ids = connection.scalars(insert.returning(insert.table.c.id)).all()
            newest = {
                event.get_dagster_event().asset_key: (event, event_id)
                for event, event_id in zip(planned, ids, strict=True)
            }
            with self.index_transaction() as connection:
                for event, event_id in newest.values():
                    self._store_asset_event(connection, event, event_id)
        super().store_event_batch(others)


class Storage(DagsterPostgresStorage):
    """Dagster's runs, schedules and events in the Postgres of `postgres_url`."""

    def __init__(self, postgres_url: str, inst_data: Any = None) -> None:  # noqa: ANN401
        """Creates the tables where there are none."""
        super().__init__(postgres_url, inst_data=inst_data)
        self._event_log_storage = EventLog(postgres_url, should_autocreate_tables=False)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What dagster.yaml says of it."""
        return {"postgres_url": dg.StringSource}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Self:  # noqa: ANN401
        """Return the storage that dagster.yaml describes."""
        return cls(config_value["postgres_url"], inst_data)
