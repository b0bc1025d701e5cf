from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.assets.graph.asset_graph import AssetNode
from syrupy.assertion import SnapshotAssertion

from trading_pipelines.assets.about import COLUMN_SCHEMA, RUNBOOK, TABLE_NAME
from trading_pipelines.definitions import build_definitions, defs
from trading_pipelines.settings.errors import SettingsError
from trading_pipelines.settings.shipped import INSTANCE_SETTINGS, shipped
from trading_pipelines.settings.strategy import DataSettings, StrategySettings


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
                "table": node.metadata.get(TABLE_NAME),
                "runbook": node.metadata.get(RUNBOOK),
            }
            for key in sorted(graph.get_all_asset_keys())
            if (node := graph.get(key))
        },
        "checks": {
            key.to_user_string(): "blocking" if graph.get_check_spec(key).blocking else "warning"
            for key in sorted(graph.asset_check_keys)
        },
        "jobs": sorted(job.name for job in definitions.resolve_all_job_defs()),
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


def test_every_job_has_a_limit_shorter_than_that_of_what_is_launched_by_hand() -> None:
    instance = yaml.safe_load(shipped(INSTANCE_SETTINGS).read_text(encoding="utf-8"))
    by_hand = instance["run_monitoring"]["max_runtime_seconds"]
    limits = {
        job.name: float(job.tags["dagster/max_runtime"])
        for job in build_definitions(StrategySettings()).resolve_all_job_defs()
        # Without a job of its own: by hand, or a backfill.
        if not job.name.startswith("__")
    }
    assert len(limits) == 10
    assert all(0 < limit < by_hand for limit in limits.values()), limits


GRAPH = build_definitions(StrategySettings()).resolve_asset_graph()
ROOT = Path(__file__).parents[1]
CODE = "dagster/code_references"


@pytest.fixture(params=sorted(GRAPH.get_all_asset_keys()), ids=lambda key: key.to_user_string())
def asset(request: pytest.FixtureRequest) -> AssetNode:
    key: dg.AssetKey = request.param
    return GRAPH.get(key)


def test_an_asset_says_what_it_is_in_the_same_parts(asset: AssetNode) -> None:
    what, *parts = str(asset.description).split("\n- **")
    assert what.strip().endswith(".")
    assert [part.partition("**: ")[0] for part in parts] == [
        "One row", "Unit", "Refreshed", "Backfill",
    ]  # fmt: skip
    assert not [part for part in parts if part.endswith((": .", "..")) or "\n" in part]
    assert asset.owners
    assert asset.group_name != "default"


def test_the_kinds_of_an_asset_follow_from_what_it_is(asset: AssetNode) -> None:
    no_table = "no table of its own" in str(asset.description)
    assert (TABLE_NAME in asset.metadata) is not no_table
    assert bool(asset.kinds & {"python", "sql"}) is asset.is_materializable
    if not no_table:
        assert "postgres" in asset.kinds


def test_an_asset_with_a_table_of_ours_shows_its_columns(asset: AssetNode) -> None:
    is_ours = ".trading_pipelines." in str(asset.metadata.get(TABLE_NAME))
    assert (COLUMN_SCHEMA in asset.metadata) is is_ours


def test_a_column_says_its_type_its_comment_and_whether_it_may_be_empty() -> None:
    schema = GRAPH.get(dg.AssetKey("candles_1h")).metadata[COLUMN_SCHEMA]
    start, minutes = (
        next(column for column in schema.columns if column.name == name)
        for name in ("timestamp", "minutes")
    )
    assert start.type == "timestamp with time zone"
    assert start.description == "start of the hour"
    assert minutes.description == "minutes of the hour in which something was traded"
    assert not minutes.constraints.nullable


def test_the_runbook_of_an_asset_is_there(asset: AssetNode) -> None:
    page, _, section = str(asset.metadata[RUNBOOK]).partition(": ")
    assert f"## {section}\n" in (ROOT / page).read_text(encoding="utf-8")


def test_an_asset_that_is_materialised_can_be_launched_by_a_job_with_a_name(
    asset: AssetNode,
) -> None:
    jobs = build_definitions(StrategySettings()).resolve_all_job_defs()
    named = [
        job.name
        for job in jobs
        if not job.name.startswith("__")
        and asset.key in job.asset_layer.selected_asset_keys
        and job.partitions_def == asset.partitions_def
    ]
    assert bool(named) is asset.is_materializable


def test_whatever_has_a_name_says_what_it_does() -> None:
    definitions = build_definitions(StrategySettings())
    named = [
        *(job for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")),
        *(definitions.schedules or []),
        *(definitions.sensors or []),
        *(GRAPH.get_check_spec(key) for key in GRAPH.asset_check_keys),
    ]
    assert [one.name for one in named if not one.description] == []


def test_descriptions_of_sensors_and_schedules_hold_no_signs_that_the_ui_shows_raw() -> None:
    definitions = build_definitions(StrategySettings())
    named = [*(definitions.schedules or []), *(definitions.sensors or [])]
    assert [one.name for one in named if "`" in (one.description or "")] == []


def test_an_asset_names_its_database_and_links_its_runbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text("{}")
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(config))
    monkeypatch.setenv("DATABASE_URL", "postgresql://bot:s3cret@db:5432/coinpilot?sslmode=require")
    monkeypatch.setenv("DOCS_URL", "https://example.com/docs/")
    metadata = defs().resolve_asset_graph().get(dg.AssetKey("candles_1m")).metadata
    assert metadata[TABLE_NAME] == "coinpilot.public.market_data"
    assert metadata[RUNBOOK] == dg.MetadataValue.url(
        "https://example.com/docs/operations.md#something-is-red"
    )


@pytest.mark.parametrize(
    ("docs_url", "root"),
    [
        ("https://github.com/you/tp/blob/v1.0/docs", "https://github.com/you/tp/tree/v1.0/"),
        ("https://git.example.com/a/b/tp/-/blob/main/docs",
         "https://git.example.com/a/b/tp/-/tree/main/"),
    ],
)  # fmt: skip
def test_an_asset_links_to_the_line_that_computes_it(docs_url: str, root: str) -> None:
    graph = build_definitions(StrategySettings(), docs_url=docs_url).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        if not node.is_materializable:
            assert CODE not in node.metadata
            continue
        (reference,) = node.metadata[CODE].code_references
        path, _, line = reference.url.removeprefix(root).partition("#L")
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1 :]
        assert lines[0].strip().startswith("@dg.")
        assert key.to_user_string() in "\n".join(lines[:40]) or "signal.asset" in lines[1]


@pytest.mark.parametrize(
    "docs_url",
    [None, "https://example.com/docs", "https://git.example.com/tp/src/branch/main/docs"],
)
def test_no_line_is_shown_where_no_repository_is_known(docs_url: str | None) -> None:
    graph = build_definitions(StrategySettings(), docs_url=docs_url).resolve_asset_graph()
    assert not [node.key for node in graph.asset_nodes if CODE in node.metadata]


@pytest.mark.parametrize("refresh", [True, False])
def test_the_open_ends_have_an_age_where_something_refreshes_them(*, refresh: bool) -> None:
    settings = StrategySettings(data=DataSettings(refresh=refresh))
    graph = build_definitions(settings).resolve_asset_graph()
    aged = {node.key.to_user_string() for node in graph.asset_nodes if node.freshness_policy}
    open_ends = {"candles_1m", "candles_1h", "regime_labels", "volatility_forecast"}
    assert aged == (open_ends if refresh else set())


def test_wrong_settings_stop_the_start_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text("data:\n  start_dat: 2024-01-01\n")
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(config))
    with pytest.raises(SettingsError, match=r"strategy.yaml:2: data.start_dat: unknown key"):
        defs()
