"""The sensor that shows the bot's tables on their assets. What is shown belongs in `bot_tables`."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
from pydantic import TypeAdapter, ValidationError

from trading_pipelines.assets.metadata import table
from trading_pipelines.bot_views import SHOWN_ROWS, Newest, Seen, unseen
from trading_pipelines.database.connection import refresh_korean_views
from trading_pipelines.resources.database import DatabaseResource

CURSOR = TypeAdapter(dict[str, Seen])


def build_bot_tables_observer() -> dg.SensorDefinition:
    """Return the sensor that observes a table of the bot's when its newest rows have changed."""

    @dg.sensor(
        name="observe_bot_tables",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Shows the newest {SHOWN_ROWS} rows of the bot's tables on their assets, in "
        "Korean time, when they have changed: at most one observation a table in five minutes. "
        "Also makes the views in Korean time follow the bot's migrations.",
    )
    def observe_bot_tables(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.SensorResult:
        now = datetime.now(UTC)
        try:
            seen = CURSOR.validate_json(context.cursor or "{}")
        except ValidationError:
            seen = {}  # lost: one more observation
        with database.connect() as connection:
            messages = refresh_korean_views(connection)
            tables = unseen(connection, seen, now)
        seen |= {name: Seen(newest.version, now) for name, newest in tables.items()}
        messages += [f"observed: {', '.join(tables)}" if tables else "nothing has changed"]
        return dg.SensorResult(
            skip_reason="; ".join(messages),
            cursor=CURSOR.dump_json(seen).decode(),
            asset_events=[_observation(name, newest) for name, newest in tables.items()],
        )

    return observe_bot_tables


def _observation(name: str, newest: Newest) -> dg.AssetObservation:
    metadata: dict[str, Any] = {"rows": newest.count, "newest_rows": table(newest.rows)}
    if newest.happened:
        metadata["newest"] = dg.MetadataValue.timestamp(newest.happened)
    return dg.AssetObservation(name, metadata=metadata)
