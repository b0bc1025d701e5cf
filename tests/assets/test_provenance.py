"""What Dagster knows of how a partition was made, and what it calls stale, and why."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from tests.assets.conftest import Dagster
from tests.conftest import LAST_DAY
from tests.signals.conftest import SETTINGS
from trading_pipelines.definitions import build_definitions
from trading_pipelines.settings.strategy import RegimeDetectionSettings, StrategySettings
from trading_pipelines.signals.catalogue import REALIZED_VOLATILITY, REGIME_LABELS, SIGNALS, Signal

BTC, ETH = "KRW-BTC", "KRW-ETH"
DAYS = (LAST_DAY - timedelta(days=1), LAST_DAY)
KEYS = [f"{day}|{symbol}" for day in DAYS for symbol in (BTC, ETH)]
VOLATILITY = ("realized_volatility", "garch_baseline")


@pytest.fixture
def dagster(recorded_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dagster]:
    monkeypatch.setenv("DATABASE_URL", recorded_url)
    with dg.instance_for_test() as instance:
        yield Dagster(instance, SETTINGS)


def tags(dagster: Dagster, asset: str) -> dict[str, dict[str, str]]:
    """Return the tags of each partition's newest materialisation."""
    newest: dict[str, dict[str, str]] = {}
    events = dagster.instance.fetch_materializations(dg.AssetKey(asset), limit=1000, ascending=True)
    for record in events.records:
        event = record.event_log_entry.asset_materialization
        assert event is not None
        newest[str(event.partition)] = dict(event.tags or {})
    return newest


def stale(
    dagster: Dagster, settings: StrategySettings, signal: Signal, *keys: str
) -> dict[str, set[str]]:
    """Return why the UI calls each partition stale; those that it does not are left out."""
    graph = build_definitions(settings).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(
        dagster.instance, graph, LoadingContextForTest(dagster.instance)
    )
    causes = {
        key: {
            f"{cause.asset_key.to_user_string()} {cause.reason}"
            for cause in resolver.get_stale_root_causes(dg.AssetKey(signal.asset), key)
        }
        for key in keys or KEYS
    }
    return {key: reasons for key, reasons in causes.items() if reasons}


def test_each_partition_of_a_range_has_its_own_data_version_which_equal_rows_keep(
    dagster: Dagster,
) -> None:
    assert dagster.run("update_regime_job", *DAYS, [BTC, ETH], "regime_labels").success
    before = tags(dagster, "regime_labels")
    assert before.keys() == set(KEYS)
    assert len({each["dagster/data_version"] for each in before.values()}) == len(KEYS)
    assert {each["dagster/code_version"] for each in before.values()} == {
        f"1+{REGIME_LABELS.settings_digest(SETTINGS)}"
    }
    assert {key: each["dagster/partition/symbol"] for key, each in before.items()} == {
        key: key.partition("|")[2] for key in KEYS
    }
    # Another range, and one partition alone.
    for first in DAYS:
        assert dagster.run("update_regime_job", first, LAST_DAY, [BTC], "regime_labels").success
    after = tags(dagster, "regime_labels")
    assert {key: each["dagster/data_version"] for key, each in after.items()} == {
        key: each["dagster/data_version"] for key, each in before.items()
    }


def test_a_changed_threshold_makes_the_labels_stale_for_that_and_nothing_else(
    dagster: Dagster,
) -> None:
    assert dagster.run("update_regime_job", *DAYS, [BTC, ETH], "regime_labels").success
    assert dagster.run("update_volatility_job", *DAYS, [BTC, ETH], "realized_volatility").success
    assert stale(dagster, SETTINGS, REGIME_LABELS) == {}
    detection = RegimeDetectionSettings(bull_threshold_pct=3.0)
    changed = SETTINGS.model_copy(update={"regime_detection": detection})
    assert stale(dagster, changed, REGIME_LABELS) == {
        key: {"regime_labels has a new code version"} for key in KEYS
    }
    assert stale(dagster, changed, REALIZED_VOLATILITY) == {}
    graph, as_it_was = (
        build_definitions(settings).resolve_asset_graph() for settings in (changed, SETTINGS)
    )
    keys = [dg.AssetKey(signal.asset) for signal in SIGNALS]
    assert [
        key.to_user_string()
        for key in keys
        if graph.get(key).code_version != as_it_was.get(key).code_version
    ] == ["regime_labels"]


def test_what_comes_after_is_stale_where_rows_have_changed_and_only_there(
    dagster: Dagster, recorded_url: str
) -> None:
    outcomes = next(signal for signal in SIGNALS if signal.asset == "reject_outcomes")
    labels = ("update_regime_job", *DAYS, [BTC, ETH], "regime_labels")
    assert dagster.run(*labels).success
    assert dagster.run("update_reject_outcomes_job", *DAYS, [BTC, ETH]).success
    assert dagster.run(*labels).success
    assert stale(dagster, SETTINGS, outcomes) == {}, "the same labels once more"
    with psycopg.connect(recorded_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE trading_pipelines.candles_1h SET close_price = close_price * 1.1 "
            "WHERE symbol = 'KRW-ETH' AND timestamp = %s::date + interval '23 hours'",
            [LAST_DAY],
        )
    assert dagster.run(*labels).success
    assert stale(dagster, SETTINGS, outcomes) == {
        f"{LAST_DAY}|{ETH}": {"regime_labels has a new data version"}
    }


def test_beside_a_failed_partition_the_others_have_their_data_version(dagster: Dagster) -> None:
    after = LAST_DAY + timedelta(days=1)
    assert not dagster.run("update_regime_job", LAST_DAY, after, [BTC], "regime_labels").success
    (only,) = tags(dagster, "regime_labels").values()
    assert only["dagster/data_version_is_user_provided"] == "true"
