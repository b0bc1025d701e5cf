from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion

from trading_pipelines.definitions import build_definitions, defs
from trading_pipelines.settings import SettingsError, StrategySettings


def described(definitions: dg.Definitions) -> dict[str, Any]:
    graph = definitions.resolve_asset_graph()
    return {
        "assets": {
            key.to_user_string(): {
                "deps": sorted(dep.to_user_string() for dep in node.parent_keys),
                "group": node.group_name,
                "kinds": sorted(node.kinds),
                "owners": list(node.owners),
                "tags": {k: v for k, v in node.tags.items() if not k.startswith("dagster/")},
                "partitions": str(node.partitions_def),
                "backfill": str(node.backfill_policy),
                "pools": sorted(node.pools or []),
                "described": bool(node.description),
            }
            for key in sorted(graph.get_all_asset_keys())
            if (node := graph.get(key))
        },
        "checks": {
            key.to_user_string(): "blocking" if graph.get_check_spec(key).blocking else "warning"
            for key in sorted(graph.asset_check_keys)
        },
        "schedules": {
            schedule.name: (str(schedule.cron_schedule), schedule.default_status.value)
            for schedule in definitions.schedules or []
            if isinstance(schedule, dg.ScheduleDefinition)
        },
        "sensors": {
            sensor.name: (sensor.minimum_interval_seconds, sensor.default_status.value)
            for sensor in definitions.sensors or []
        },
    }


def test_a_change_of_the_graph_is_seen_as_a_diff(snapshot: SnapshotAssertion) -> None:
    assert described(build_definitions(StrategySettings())) == snapshot


def test_wrong_settings_stop_the_start_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text("data:\n  start_dat: 2024-01-01\n")
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(config))
    with pytest.raises(SettingsError, match=r"strategy.yaml:2: data.start_dat: unknown key"):
        defs()
