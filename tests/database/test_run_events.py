from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg

from trading_pipelines import database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.database.run_events import purge_run_events

DAYS = dg.StaticPartitionsDefinition(["2025-09-01", "2025-09-02"])


@dg.asset(partitions_def=DAYS)
def candles() -> None:
    return None


def test_a_purge_takes_old_events_and_leaves_every_partition_green(server: EmbeddedServer) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE run_events")
    url = server.url("run_events")
    storage = {"postgres": {"postgres_url": url.replace("://", "+psycopg2://")}}
    with (
        dg.instance_for_test(overrides={"storage": storage}) as instance,
        database.connect(url) as connection,
    ):
        for day in ("2025-09-01", "2025-09-02", "2025-09-02"):
            assert dg.materialize([candles], instance=instance, partition_key=day).success

        def events() -> list[tuple[str, str | None]]:
            kind = "dagster_event_type = 'ASSET_MATERIALIZATION'"
            rows = connection.execute(
                f"SELECT asset_key, partition FROM event_logs WHERE {kind} ORDER BY partition"
            )
            return rows.fetchall()

        assert purge_run_events(connection, datetime.now(UTC) - timedelta(hours=1)) == 0
        assert len(events()) == 3
        assert purge_run_events(connection, datetime.now(UTC) + timedelta(hours=1)) > 10
        assert [partition for _, partition in events()] == ["2025-09-01", "2025-09-02"]
        green = instance.get_materialized_partitions(candles.key)
        assert green == {"2025-09-01", "2025-09-02"}
