"""The signals as Dagster runs them: real tables, an ephemeral instance."""

import base64
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import pytest

from tests.assets.conftest import Dagster, metadata
from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.signals.conftest import SETTINGS
from trading_pipelines.assets.metadata import ROW_COUNT

BTC, ETH = "KRW-BTC", "KRW-ETH"
DAYS = (LAST_DAY - timedelta(days=1), LAST_DAY)


@pytest.fixture
def dagster(recorded_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dagster]:
    monkeypatch.setenv("DATABASE_URL", recorded_url)
    with dg.instance_for_test() as instance:
        yield Dagster(instance, SETTINGS)


def test_each_partition_carries_its_own_figures_and_the_newest_are_shown(dagster: Dagster) -> None:
    result = dagster.run("update_regime_job", *DAYS, [BTC, ETH])
    assert result.success
    labels = metadata(result, "regime_labels")
    assert labels.keys() == {f"{day}|{s}" for day in DAYS for s in (BTC, ETH)}
    last = labels[f"{LAST_DAY}|{BTC}"]
    assert (last[ROW_COUNT], last["label"], last["empty_hours"]) == (24, "SIDEWAYS", 0)
    assert isinstance(last["diff_pct"], float), "a number, which Dagster charts"
    (shown,) = metadata(result, "current_signals").values()
    (first, *_) = shown["signals"].records  # type: ignore[attr-defined]
    assert first.data["symbol"] == BTC
    assert first.data["as of"] == "2025-09-22 09:00 KST"


def test_the_whole_chain_ends_in_a_score_a_picture_and_the_current_signals(
    dagster: Dagster,
) -> None:
    volatility = ("update_volatility_job", FIRST_DAY, LAST_DAY, SYMBOLS)
    assert dagster.run(*volatility, "realized_volatility").success
    fitted = dagster.run("retrain_volatility_job", FIRST_DAY, LAST_DAY, [])
    models = metadata(fitted, "volatility_model")
    assert {models[f"{LAST_DAY}"]["status"], models[f"{FIRST_DAY}"]["status"]} == {"OK", "FALLBACK"}
    assert isinstance(models[f"{LAST_DAY}"]["model_1h"], dict)
    result = dagster.run(
        *volatility, "garch_baseline", "volatility_forecast", "volatility_score",
        "current_signals", "signals_overview",
    )  # fmt: skip
    assert result.success
    forecast = metadata(result, "volatility_forecast")[f"{LAST_DAY}|{BTC}"]
    assert forecast["status"] == "OK"
    assert forecast.keys() >= {"annualized_volatility", "annualized_threshold"}
    score = metadata(result, "volatility_score")[f"{LAST_DAY}|{BTC}"]
    assert score.keys() >= {"qlike_1h", "qlike_garch_1h", "qlike_random_walk_1h", "bias_24h"}
    (check,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "not_worse_than_garch"
    ]
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert "of GARCH's in" in str(check.description)
    (overview,) = metadata(result, "signals_overview").values()
    picture = str(overview["plots"]).partition("base64,")[2].removesuffix(")")
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert {r.data["regime"] for r in overview["regimes"].records} >= {"BULL", "SIDEWAYS"}  # type: ignore[attr-defined]


def test_a_partition_without_candles_fails_alone_and_says_what_to_do(dagster: Dagster) -> None:
    after = LAST_DAY + timedelta(days=1)
    result = dagster.run("update_regime_job", LAST_DAY, after, [BTC, ETH])
    assert not result.success
    assert dagster.materialized("regime_labels") == {f"{LAST_DAY}|{BTC}", f"{LAST_DAY}|{ETH}"}
    (failure,) = [e for e in result.all_events if e.is_step_failure and "regime" in str(e.step_key)]
    assert failure.step_failure_data.user_failure_data is not None
    said = str(failure.step_failure_data.user_failure_data.description)
    assert said.startswith("2 of 4 partitions failed, the others are stored.")
    assert f"{after}|{BTC}: nothing to compute it from: materialize" in said


def test_redis_away_is_said_and_fails_nothing(
    dagster: Dagster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@127.0.0.1:1/0")
    result = dagster.run("update_regime_job", LAST_DAY, LAST_DAY, [BTC])
    assert result.success
    (shown,) = metadata(result, "current_signals").values()
    assert shown["redis_keys"] == 0
    assert "market:regime:KRW-BTC is" in str(shown["redis_not_written"]), "it is of last year"
    assert "hidden" not in str(shown)
