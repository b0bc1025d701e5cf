"""Regime diagnostics against plain counting on the recorded candles."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import mean, median

import pandas as pd
import psycopg
import pytest

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.signals.conftest import Bench
from tests.signals.volatility.test_score import newey_west
from trading_pipelines.settings.strategy import RegimeDetectionSettings
from trading_pipelines.signals.catalogue import REALIZED_VOLATILITY, REGIME_LABELS
from trading_pipelines.signals.regimes.diagnostics import RegimeFigures, diagnose, read
from trading_pipelines.signals.regimes.regime import Regime

HOUR, START = timedelta(hours=1), datetime(2025, 9, 1, tzinfo=UTC)
DETECTION = RegimeDetectionSettings()
NOTHING = RegimeFigures(None, None, None, None)


def plain_runs(labels: list[str]) -> list[list[str]]:
    runs: list[list[str]] = []
    for label in labels:
        if label != "UNKNOWN":
            if runs and runs[-1][0] == label:
                runs[-1].append(label)
            else:
                runs.append([label])
    return runs


def closes_of(minutes: pd.DataFrame, symbol: str) -> dict[datetime, float]:
    """Return each hour's last close, from the minutes."""
    closes = {}
    for row in minutes[minutes["symbol"] == symbol].to_dict("records"):
        closes[row["timestamp_utc"].floor("h").to_pydatetime()] = float(row["close"])
    return closes


def forward_returns(
    labels: Mapping[datetime, str], closes: Mapping[datetime, float], regime: str
) -> list[float]:
    return [
        100 * (closes[hour + 24 * HOUR] / closes[hour] - 1)
        for hour, label in labels.items()
        if label == regime and hour in closes and hour + 24 * HOUR in closes
    ]


def stored(connection: psycopg.Connection, symbol: str) -> dict[datetime, str]:
    query = "SELECT hour, label FROM trading_pipelines.regime_labels WHERE symbol = %s ORDER BY 1"
    return dict(connection.execute(query, [symbol]).fetchall())


def test_every_figure_is_what_plain_counting_says(bench: Bench, recorded: pd.DataFrame) -> None:
    for signal in (REGIME_LABELS, REALIZED_VOLATILITY):
        bench.compute(signal, SYMBOLS, FIRST_DAY, LAST_DAY)
    found = read(bench.connection, SYMBOLS, START, DETECTION)
    assert [one.symbol for one in found] == SYMBOLS
    for one in found:
        labels, closes = stored(bench.connection, one.symbol), closes_of(recorded, one.symbol)
        runs = plain_runs(list(labels.values()))
        known = sum(map(len, runs))
        assert one.hours == 21 * 24
        assert known == one.hours - 199, "the first label needs 200 hours"
        assert one.median_run_hours == median(map(len, runs))
        assert one.flips_per_30_days == pytest.approx((len(runs) - 1) / known * 720)
        flips = [f"{a[0]}→{b[0]}" for a, b in pairwise(runs)]
        assert flips
        assert one.transitions == {flip: flips.count(flip) for flip in flips}
        assert one.empty_hours == 0
        variances: dict[str, list[float]] = {}
        for label, variance in bench.connection.execute(
            "SELECT label, realized_variance FROM trading_pipelines.regime_labels "
            "JOIN trading_pipelines.realized_volatility USING (symbol, hour) WHERE symbol = %s",
            [one.symbol],
        ):
            variances.setdefault(label, []).append(variance)
        for regime, figures in one.regimes.items():
            hours = list(labels.values()).count(regime)
            assert figures.share_pct == pytest.approx(100 * hours / 504)
            returns = forward_returns(labels, closes, regime)
            if not returns:
                assert figures == RegimeFigures(0.0, None, None, None)
                continue
            assert figures.forward_return_pct == pytest.approx(mean(returns))
            t_value = newey_west(returns, 24) if len(returns) >= 30 else None
            assert figures.forward_t_value == pytest.approx(t_value)
            yearly = 100 * (mean(variances[regime]) * 24 * 365) ** 0.5
            assert figures.annualized_volatility_pct == pytest.approx(yearly)


def test_a_return_needs_the_close_a_day_later(bench: Bench, recorded: pd.DataFrame) -> None:
    bench.compute(REGIME_LABELS, ["KRW-XRP"], FIRST_DAY, LAST_DAY)
    labels, closes = stored(bench.connection, "KRW-XRP"), closes_of(recorded, "KRW-XRP")
    since, hole = START + 20 * 24 * HOUR, START + 20 * 24 * HOUR + 30 * HOUR
    (last_day,) = read(bench.connection, ["KRW-XRP"], since, DETECTION)
    assert last_day.regimes[Regime.SIDEWAYS].share_pct == 100
    assert last_day.regimes[Regime.SIDEWAYS].forward_return_pct is None, "the future is not known"

    # An outage: hours go missing, their neighbours are no substitute.
    since, hole = START + 17 * 24 * HOUR, START + 19 * 24 * HOUR
    gone = [hole + n * HOUR for n in range(10)]
    bench.connection.execute(
        "DELETE FROM trading_pipelines.candles_1h WHERE symbol = 'KRW-XRP' AND timestamp = ANY(%s)",
        [gone],
    )
    (one,) = read(bench.connection, ["KRW-XRP"], since, DETECTION)
    left = {hour: close for hour, close in closes.items() if hour not in gone}
    later = {hour: label for hour, label in labels.items() if hour >= since}
    returns = forward_returns(later, left, "SIDEWAYS")
    assert len(returns) == 3 * 24 - 20, "10 without a first close, 10 without a last"
    assert one.regimes[Regime.SIDEWAYS].forward_return_pct == pytest.approx(mean(returns))


def test_the_distance_is_to_the_nearest_of_the_thresholds_as_they_are_set(bench: Bench) -> None:
    bench.compute(REGIME_LABELS, ["KRW-BTC"], LAST_DAY)
    ((newest,),) = bench.connection.execute(
        "SELECT diff_pct FROM trading_pipelines.regime_labels ORDER BY hour DESC LIMIT 1"
    )
    assert 0 < newest < 1, "what the candles say"
    for bull, bear, wanted in ((2, -2, 2 - newest), (5, -0.5, float(newest) + 0.5)):
        detection = RegimeDetectionSettings(bull_threshold_pct=bull, bear_threshold_pct=bear)
        (one,) = read(bench.connection, ["KRW-BTC"], START, detection)
        assert one.threshold_distance == pytest.approx(float(wanted))


def test_what_can_not_be_told_is_missing_and_not_zero(bench: Bench) -> None:
    (empty,) = read(bench.connection, ["KRW-BTC"], START, DETECTION)
    assert empty.hours == 0
    assert dict(empty.regimes) == dict.fromkeys(Regime, NOTHING)
    assert empty.transitions == {}
    unknown = (empty.flips_per_30_days, empty.hysteresis_flips_per_30_days, empty.median_run_hours,
               empty.threshold_distance, empty.empty_hours)  # fmt: skip
    assert unknown == (None,) * 5

    bench.compute(REGIME_LABELS, ["KRW-BTC"], FIRST_DAY)
    (young,) = read(bench.connection, ["KRW-BTC"], START, DETECTION)
    assert young.hours == 24
    assert young.regimes[Regime.UNKNOWN].share_pct == 100
    assert young.regimes[Regime.BULL] == RegimeFigures(0.0, None, None, None)
    assert (young.flips_per_30_days, young.median_run_hours) == (None, None)
    assert young.threshold_distance is None
    assert young.empty_hours == 0, "that is counted"


def test_an_unknown_stretch_is_no_flip_and_the_held_label_is_counted_for_itself() -> None:
    labels = ["UNKNOWN", "BULL", "UNKNOWN", "BULL", "SIDEWAYS", "BULL", "BEAR", "BEAR"]
    rows = pd.DataFrame(
        {
            "label": labels,
            "hysteresis_label": ["UNKNOWN", "BULL", "UNKNOWN", *["BULL"] * 3, "BEAR", "BEAR"],
            "empty_hours": 0,
            "diff_pct": -3.0,
            "forward_return": 0.01,
            "realized_variance": float("nan"),
        }
    )
    one = diagnose("KRW-BTC", rows, DETECTION)
    assert one.flips_per_30_days == pytest.approx(3 / 6 * 720)
    assert one.hysteresis_flips_per_30_days == pytest.approx(1 / 6 * 720)
    assert list(one.transitions) == ["BULL→SIDEWAYS", "SIDEWAYS→BULL", "BULL→BEAR"]
    assert one.median_run_hours == 1.5
    assert one.threshold_distance == 1.0
    assert one.regimes[Regime.BEAR] == RegimeFigures(25.0, 1.0, None, None)
