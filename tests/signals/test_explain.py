"""A moment called to account: what was computed, from what and by what, and the same anew."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import RECORDED_DAYS, SYMBOLS, copied
from tests.signals.conftest import SETTINGS, Bench
from tests.signals.rejections.test_outcomes import SETTINGS as WITH_EXITS
from tests.signals.rejections.test_outcomes import reject
from trading_pipelines.candles.resample import resample
from trading_pipelines.cli.main import app
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.signals.catalogue import (
    CONFIRM_OUTCOMES,
    REALIZED_VOLATILITY,
    REJECT_OUTCOMES,
    SIGNALS,
    Signal,
)
from trading_pipelines.signals.explain import UNEXPLAINED, ExplainedValue, ExplainError, explain
from trading_pipelines.signals.registry import compute

BTC = "KRW-BTC"
AT = datetime(2025, 9, 19, 0, tzinfo=UTC)
DAY = date(2025, 9, 18)
NOW = datetime(2025, 9, 22, 0, 30, tzinfo=UTC)
ASSETS = [
    "regime_labels",
    "realized_volatility",
    "volatility_model",
    "volatility_forecast",
    "garch_baseline",
]


def values(
    bench: Bench, at: datetime = AT, settings: StrategySettings = SETTINGS
) -> dict[str, ExplainedValue]:
    explanation = explain(bench.connection, BTC, at, settings, NOW)
    return {value.asset: value for value in explanation.values}


def test_each_value_says_what_it_is_from_and_is_the_same_to_the_bit_anew(computed: Bench) -> None:
    tables = [signal.asset for signal in SIGNALS]
    before = {table: computed.rows(table) for table in tables}
    explained = values(computed, AT + timedelta(minutes=17))
    assert list(explained) == ASSETS
    assert {asset: value.equal for asset, value in explained.items()} == dict.fromkeys(ASSETS, True)
    assert [text for value in explained.values() for text in value.changed_since] == []
    label = explained["regime_labels"]
    assert label.rows[0]["hour"] == "2025-09-18T23:00:00+00:00", "of the last closed hour"
    assert label.settings is not None
    assert label.settings["regime_detection.ma_fast_period"] == 50
    assert (label.code_version, label.here.run_id) == ("1", "run")
    (hours,) = label.inputs
    assert (hours.asset, hours.last_day, hours.rows > 200) == ("candles_1h", DAY, True)
    # As of midnight it is the model of the day that has just ended, of all symbols.
    model = explained["volatility_model"]
    assert {row["day"] for row in model.rows} == {f"{DAY}"}
    assert {candles.symbol for candles in model.candles} == set(SYMBOLS)
    assert [row["horizon"] for row in explained["volatility_forecast"].rows] == [1, 24]
    assert {table: computed.rows(table) for table in tables} == before, "nothing is written"


def test_what_differs_is_told_with_why(computed: Bench) -> None:
    detection = SETTINGS.regime_detection.model_copy(
        update={"bull_threshold_pct": 0.001, "bear_threshold_pct": 0.0}
    )
    other = SETTINGS.model_copy(update={"regime_detection": detection})
    explained = values(computed, settings=other)
    label = explained["regime_labels"]
    assert label.equal is False
    assert {difference.column for difference in label.differences} >= {"label"}
    assert label.changed_since == [
        "setting regime_detection.bear_threshold_pct -2.0, now 0.0",
        "setting regime_detection.bull_threshold_pct 2.0, now 0.001",
    ]
    assert {a: v.equal for a, v in explained.items() if a != "regime_labels"} == dict.fromkeys(
        ASSETS[1:], True
    ), "no other asset depends on it"


def test_a_changed_candle_is_named_with_what_hangs_on_it(computed: Bench) -> None:
    computed.connection.execute(
        "UPDATE market_data SET close_price = close_price * 1.2, high_price = high_price * 1.2 "
        "WHERE symbol = 'KRW-BTC' AND timestamp = '2025-09-18 22:59Z'"
    )
    computed.connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET changed_at = clock_timestamp() "
        "WHERE symbol = 'KRW-BTC' AND interval = '1m' AND day = %s",
        [DAY],
    )
    resample(computed.connection, [BTC], [DAY], "heal")
    explained = values(computed)
    assert explained["regime_labels"].equal is False
    assert explained["regime_labels"].changed_since == [f"inputs: candles_1h KRW-BTC {DAY}"]
    assert explained["realized_volatility"].changed_since == [f"inputs: candles_1m KRW-BTC {DAY}"]
    # The forecast is still what its variances give, but they are not what they would be now.
    forecast = explained["volatility_forecast"]
    assert forecast.equal is True
    words = "what realized_volatility is computed from: 1 of"
    assert any(words in text for text in forecast.changed_since)


def test_rows_that_were_edited_and_code_that_was_changed_are_told_apart(
    computed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed.connection.execute(
        "UPDATE trading_pipelines.regime_labels SET diff_pct = diff_pct + 0.00000001 "
        "WHERE symbol = 'KRW-BTC' AND hour = '2025-09-18 23:00Z'"
    )
    label = values(computed)["regime_labels"]
    assert [difference.column for difference in label.differences] == ["diff_pct"]
    assert label.changed_since == ["its own rows, by something else than a run of the asset"]

    monkeypatch.setattr("trading_pipelines.signals.volatility.realized.LARGEST_ZERO_SHARE", -1)
    assert values(computed)["realized_volatility"].changed_since == [UNEXPLAINED]
    newer = replace(REALIZED_VOLATILITY, code_version="2")
    monkeypatch.setattr("trading_pipelines.signals.explain.REALIZED_VOLATILITY", newer)
    assert values(computed)["realized_volatility"].changed_since == ["code version 1, now 2"]


def test_what_was_made_before_provenance_was_kept_says_so(computed: Bench) -> None:
    computed.connection.execute(
        "UPDATE trading_pipelines.signal_coverage SET settings_digest = NULL, code_version = NULL, "
        "rows_digest = NULL, computed_at = NULL, computed_by = NULL"
    )
    label = values(computed)["regime_labels"]
    assert (label.equal, label.settings, label.code_version) == (True, None, None)
    assert "before provenance was kept" in label.changed_since[0]


@pytest.mark.parametrize("signal", [REJECT_OUTCOMES, CONFIRM_OUTCOMES], ids=lambda s: s.asset)
def test_a_decision_of_the_hour_is_explained_with_its_outcome(
    computed: Bench, signal: Signal
) -> None:
    bench, decision = Bench(computed.connection, WITH_EXITS), str(signal.decision)
    reject(bench, BTC, AT + timedelta(minutes=17, seconds=5), decision=decision)
    reject(bench, BTC, AT + timedelta(hours=1), decision=decision)
    bench.compute(signal, [BTC], AT.date())
    outcome = values(bench, AT + timedelta(minutes=18), WITH_EXITS)[signal.asset]
    (row,) = outcome.rows
    assert row["decided_at"] == "2025-09-19T00:17:05+00:00"
    assert outcome.equal is True
    assert [rows.asset for rows in outcome.inputs] == [
        "candles_1m", "regime_labels", "agent_decisions"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("symbol", "at", "words"),
    [
        ("KRW-NONE", AT, "nothing is stored of KRW-NONE; collected are KRW-BTC, KRW-ETH"),
        (BTC, datetime(2025, 9, 22, 1, 5, tzinfo=UTC),
         "the hour that closes at 2025-09-22 10:00 KST is still open; of KRW-BTC there is"),
        (BTC, datetime(2027, 1, 1, tzinfo=UTC), "2027-01-01 09:00 KST is to come"),
        (BTC, datetime(2020, 1, 1, tzinfo=UTC),
         "not computed; of KRW-BTC there is 2025-09-01 10:00 KST to 2025-09-22 09:00 KST"),
    ],
)  # fmt: skip
def test_where_there_is_nothing_it_says_what_there_is(
    computed: Bench, symbol: str, at: datetime, words: str
) -> None:
    with pytest.raises(ExplainError) as caught:
        explain(computed.connection, symbol, at, SETTINGS, NOW)
    assert words in str(caught.value)


@pytest.fixture
def two_homes(
    server: EmbeddedServer, recorded_template: str, computed_template: str, tmp_path: Path
) -> list[tuple[str, Path]]:
    """Two databases of the same recording, computed at other times, by other runs, otherwise."""
    urls = [copied(server, computed_template), copied(server, recorded_template)]
    with connect(urls[1]) as connection:
        for signal in SIGNALS:
            for days in (RECORDED_DAYS[12:], RECORDED_DAYS[:12], RECORDED_DAYS):
                compute(connection, signal, SYMBOLS, days, SETTINGS, f"other {signal.asset}")
    config = tmp_path / "strategy.yaml"
    dump_strategy(SETTINGS, config)
    return [(url, config) for url in urls]


def test_two_homes_with_the_same_recording_give_the_same_bytes(
    two_homes: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for url, config in two_homes:
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(config))
        told.append([
            CliRunner().invoke(app, ["explain", BTC, "2025-09-19T09:00", *options]).stdout
            for options in (["--json"], ["--json", "--runs"])
        ])  # fmt: skip
    (first, first_here), (second, second_here) = told
    assert first == second
    assert first_here != second_here
    assert {value["here"]["run_id"] for value in json.loads(second_here)["values"]} == {
        f"other {asset}" for asset in ASSETS
    }
    account = json.loads(first)
    assert account["as_of"] == "2025-09-19T00:00:00+00:00"
    assert [flag["horizon"] for flag in account["flags"]] == [1, 24]
    assert [value["equal"] for value in account["values"]] == [True] * 5


def test_the_command_tells_a_person_and_takes_a_moment_of_any_zone(
    two_homes: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, config = two_homes[0]
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(config))
    texts = {
        CliRunner().invoke(app, ["explain", BTC, moment]).stdout
        for moment in ("2025-09-19T09:17", "2025-09-19 09:17 KST", "2025-09-19T00:17Z",
                       "2025-09-19 00:17 UTC", "2025-09-18T20:17-04:00")
    }  # fmt: skip
    (text,) = texts
    assert "KRW-BTC as of 2025-09-19 09:00 KST" in text
    assert "flag, 24 h: horizon 24, is_high_volatility" in text
    assert text.count("computed again now: equal to the bit") == 5
    assert "run run, computed" in text
    wrong = CliRunner().invoke(app, ["explain", BTC, "yesterday"])
    assert wrong.exit_code == 2
    assert "a moment such as 2026-11-24T09:00 (KST)" in " ".join(wrong.stderr.split())
