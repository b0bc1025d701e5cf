"""Which models can be told apart: against plain sums, on generated losses, and as of a moment."""

import math
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from statistics import mean

import numpy as np
import pandas as pd
import psycopg
import pytest

from tests.signals.conftest import Bench
from tests.signals.volatility.test_score import loss, newey_west
from trading_pipelines.signals.catalogue import (
    GARCH_BASELINE,
    REALIZED_VOLATILITY,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
)
from trading_pipelines.signals.volatility import comparison
from trading_pipelines.signals.volatility.comparison import (
    FEWEST_HOURS,
    MODELS,
    Comparison,
    ModelScore,
    Told,
    Verdict,
    compare,
    critical_t,
    headlines,
    judged,
    model_scores,
    reliability,
    shown,
)
from trading_pipelines.signals.volatility.score import ALL

MIDNIGHT = datetime(2025, 6, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
AS_OF = MIDNIGHT + 90 * 24 * HOUR
SEVEN = ("variance", "har", "garch", "ewma", "floor", "threshold", "probability_high")


def generated(
    hours: int, horizon: int = 1, seed: int = 1, **errors: float | None
) -> tuple[pd.DataFrame, pd.Series]:
    """Return forecasts of so many hours and the hourly variances; a model is off by its error.

    Named by columns of the table; None: not stored. As of MIDNIGHT and every hour after it.
    """
    random = np.random.default_rng(seed)
    index = pd.date_range(MIDNIGHT - 24 * HOUR, periods=hours + horizon + 24, freq="h")
    hourly = pd.Series(np.exp(random.normal(-11, 0.8, len(index))), index)
    as_ofs = index[24 : 24 + hours]
    rows = pd.DataFrame({"as_of": as_ofs, "valid_until": as_ofs + horizon * HOUR})
    expected = math.exp(-11 + 0.8**2 / 2)
    for name in SEVEN[:4]:
        error = errors.get(name, 0.1)
        rows[name] = (
            None if error is None else expected * np.exp(random.normal(0, error, hours) - error**2)
        )
    rows["floor"], rows["threshold"], rows["probability_high"] = 1e-8, 2 * expected, None
    return rows, hourly


def scores_of(
    rows: pd.DataFrame, hourly: pd.Series, horizon: int = 1, as_of: datetime = AS_OF
) -> dict[str, ModelScore]:
    losses = judged(rows, hourly, horizon, as_of)
    return {s.model: s for s in model_scores(losses, "KRW-BTC", horizon, as_of)}


@pytest.mark.parametrize("horizon", [1, 24])
def test_losses_and_t_values_are_those_of_a_plain_sum(horizon: int) -> None:
    rows, hourly = generated(800, horizon, garch=0.9, ewma=0.4, har=0.2)
    rows.loc[3:40, "ewma"] = None
    rows.loc[100, "garch"] = None
    hourly.iloc[500:540] = np.nan  # an outage
    found = scores_of(rows, hourly, horizon)

    variances = dict(zip(hourly.index, hourly.tolist(), strict=True))

    def mean_of(first: datetime, hours: int) -> float | None:
        seen = [variances.get(first + n * HOUR, math.nan) for n in range(hours)]
        known = [value for value in seen if not math.isnan(value)]
        return math.fsum(known) / len(known) if 2 * len(known) > hours else None

    off: dict[str, list[tuple[float, float]]] = {name: [] for name in MODELS}
    for row in rows.to_dict("records"):
        happened = mean_of(row["as_of"] + HOUR, horizon)
        if happened is None:
            continue
        walk = mean_of(row["as_of"] - (horizon - 1) * HOUR, horizon)
        given = {
            "ours": row["variance"], "har": row["har"], "garch": row["garch"],
            "ewma": row["ewma"], "random_walk": walk,
        }  # fmt: skip
        for name, variance in given.items():
            if variance is not None and not math.isnan(variance):
                off[name].append((loss(happened, given["ours"]), loss(happened, variance)))
    for name, pairs in off.items():
        score = found[name]
        assert score.forecasts == len(pairs)
        assert score.qlike == pytest.approx(mean(its for _, its in pairs), rel=1e-12)
        assert score.qlike_ours == pytest.approx(mean(ours for ours, _ in pairs), rel=1e-12)
        if name != "ours":
            wanted = newey_west([ours - its for ours, its in pairs], horizon + 24)
            assert score.t_value == pytest.approx(wanted, rel=1e-9)
    assert found["garch"].forecasts == found["ours"].forecasts - 1
    assert found["garch"].ratio_to_garch == 1


def test_a_better_model_is_told_from_a_worse_one_and_not_from_its_equal() -> None:
    found = scores_of(*generated(2000, variance=0.1, har=0.1, garch=1.0, ewma=None))
    assert found["garch"].verdict is Verdict.BETTER
    assert found["garch"].t_value is not None
    assert found["garch"].t_value < -2
    assert found["har"].verdict is Verdict.NOT_TOLD
    assert {name: s.told for name, s in found.items()} == {
        "ours": Told.IN, "har": Told.IN, "ewma": Told.NOT_THERE, "garch": Told.OUT,
        "random_walk": Told.OUT,
    }  # fmt: skip
    turned = scores_of(*generated(2000, variance=1.0, garch=0.1))
    assert turned["garch"].verdict is Verdict.WORSE
    assert turned["ours"].told is Told.OUT


@pytest.mark.parametrize(("horizon", "most"), [(1, 0.12), (24, 0.15)])
def test_equals_are_seldom_told_apart(horizon: int, most: float) -> None:
    told = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        off = np.convolve(random.standard_t(4, 720 + horizon - 1), np.ones(horizon) / horizon)
        ours = off[horizon - 1 : 719 + horizon]
        index = pd.date_range(MIDNIGHT, periods=720, freq="h")
        losses = pd.DataFrame(np.nan, index, list(MODELS)).assign(ours=5 + ours, garch=5.0)
        (score,) = [s for s in model_scores(losses, "x", horizon, AS_OF) if s.model == "garch"]
        told.append(score.verdict is not Verdict.NOT_TOLD)
    assert mean(told) <= most


def test_the_critical_value_grows_with_the_overlap_and_is_two_without() -> None:
    assert critical_t(1_000_000, 25) == pytest.approx(1.96, abs=0.001)
    assert critical_t(720, 48) == pytest.approx(2.16, abs=0.01)


def test_what_is_not_there_or_too_little_is_a_verdict_without_a_number() -> None:
    rows, hourly = generated(FEWEST_HOURS, har=None)
    rows.loc[:4, "ewma"] = None
    found = scores_of(rows, hourly)
    assert (found["har"].verdict, found["har"].told) == (Verdict.NOT_THERE, Told.NOT_THERE)
    assert (found["har"].forecasts, found["har"].qlike, found["har"].ratio_to_garch) == (
        0,
        None,
        None,
    )
    assert (found["ewma"].verdict, found["ewma"].told) == (Verdict.TOO_FEW, Told.TOO_FEW)
    assert found["ewma"].ours_over_it is not None, "a mean of what there is"
    assert found["garch"].told in {Told.IN, Told.OUT}
    for score in found.values():
        assert (score.t_value is None) == (score.verdict not in {
            Verdict.BETTER, Verdict.WORSE, Verdict.NOT_TOLD})  # fmt: skip
        assert (score.set_p_value is None) == (score.told not in {Told.IN, Told.OUT})
    short = scores_of(rows[:-1], hourly)
    assert {s.verdict for s in short.values()} == {Verdict.TOO_FEW, Verdict.NOT_THERE}
    assert {s.told for s in short.values()} == {Told.TOO_FEW, Told.NOT_THERE}


def test_a_forecast_that_is_its_only_member_is_the_same_and_shares_its_place() -> None:
    rows, hourly = generated(1000, variance=0.1, garch=1.0)
    rows["har"] = rows["variance"] * (1 + 1e-15)
    found = scores_of(rows, hourly)
    assert (found["har"].verdict, found["har"].t_value) == (Verdict.SAME, None)
    assert found["har"].told is found["ours"].told is Told.IN
    assert found["har"].set_p_value == found["ours"].set_p_value
    alone = rows.assign(garch=rows["variance"], ewma=rows["variance"])
    walk = judged(alone, hourly, 1, AS_OF).drop(columns="random_walk").assign(random_walk=np.nan)
    same = {s.model: s.told for s in model_scores(walk, "x", 1, AS_OF)}
    assert set(same.values()) == {Told.IN, Told.NOT_THERE}


def test_what_cannot_be_computed_is_failed_and_no_number() -> None:
    index = pd.date_range(MIDNIGHT, periods=800, freq="h")
    constant = {name: float(n) for n, name in enumerate(MODELS, start=1)}
    losses = pd.DataFrame(constant, index)
    found = {s.model: s for s in model_scores(losses, "x", 1, AS_OF)}
    assert {found[name].verdict for name in MODELS if name != "ours"} == {Verdict.FAILED}
    assert {s.told for s in found.values()} == {Told.FAILED}
    assert {(s.t_value, s.set_p_value) for s in found.values()} == {(None, None)}


def test_a_variance_of_zero_is_no_loss_and_does_not_stop_the_others() -> None:
    rows, hourly = generated(800)
    rows.loc[5, "garch"] = 0.0
    found = scores_of(rows, hourly)
    assert found["garch"].forecasts == 799
    assert found["har"].forecasts == 800


def test_the_same_is_found_again_to_the_bit() -> None:
    rows, hourly = generated(900)
    assert [asdict(s) for s in scores_of(rows, hourly).values()] == [
        asdict(s) for s in scores_of(rows, hourly).values()
    ]


def test_what_closed_later_changes_nothing() -> None:
    rows, hourly = generated(1200, horizon=24)
    as_of = MIDNIGHT + 800 * HOUR
    later = hourly.index > as_of
    nonsense, ended = hourly.copy(), rows["valid_until"] <= as_of
    nonsense[later] = np.random.default_rng(9).lognormal(3, 2, later.sum())
    other = rows.copy()
    other.loc[~ended, ["variance", "har", "garch", "ewma"]] = 7.0
    before = judged(rows, hourly, 24, as_of)
    assert len(before) == ended.sum() == 777
    pd.testing.assert_frame_equal(judged(other, nonsense, 24, as_of), before, check_exact=True)
    assert not judged(other, nonsense, 24, as_of + HOUR).equals(
        judged(rows, hourly, 24, as_of + HOUR)
    )


def test_all_symbols_together_are_the_mean_of_an_hour_and_no_more_hours() -> None:
    of_symbols = {}
    for seed, symbol in enumerate(("A", "B", "C")):
        rows, hourly = generated(FEWEST_HOURS - 1, seed=seed)
        of_symbols[symbol, 1] = judged(rows, hourly, 1, AS_OF)
    compared = compare(of_symbols, AS_OF)
    assert [s.symbol for s in compared.scores[:: len(MODELS)]] == [ALL, "A", "B", "C"]
    together = compared.scores[0]
    assert together.forecasts == 3 * (FEWEST_HOURS - 1)
    assert together.told is Told.TOO_FEW, "three symbols are not three times the days"
    assert compare({("A", 1): of_symbols["A", 1]}, AS_OF).scores[0].symbol == "A"


def test_probabilities_are_judged_by_what_followed_them() -> None:
    rows = pd.DataFrame(
        {
            "probability_high": [0.0, 0.04, 0.05, 0.09, 0.7, 1.0, 0.9, np.nan, 0.9],
            "is_high": [0, 1, 0, 0, 1, 1, 0, 1, np.nan],
        }
    )
    found = [tuple(asdict(each).values()) for each in reliability(rows, 24)]
    assert found == [
        (24, 0.0, 0.05, 2, pytest.approx(0.02), 0.5),
        (24, 0.05, 0.1, 2, pytest.approx(0.07), 0.0),
        (24, 0.7, 1.0, 3, pytest.approx(2.6 / 3), pytest.approx(2 / 3)),
    ]
    assert reliability(rows.iloc[:0], 24) == []


def test_a_person_reads_who_is_better_and_who_cannot_be_told_apart() -> None:
    rows, hourly = generated(2000, variance=0.1, har=None, garch=1.0, ewma=0.1)
    compared = compare({("KRW-BTC", 1): judged(rows, hourly, 1, AS_OF)}, AS_OF)
    (said,) = headlines(compared)
    assert said.startswith("1 h ahead: our loss is 0.")
    assert "of GARCH's, it is better than GARCH(1,1) (t -" in said
    assert "it cannot be told apart from EWMA (t" in said
    assert "there are no forecasts of model of all symbols" in said
    assert said.endswith("the best may be ours or EWMA")
    (row,) = shown(compared)
    assert row["t, model of all symbols"] == "not there"
    assert str(row["t, GARCH(1,1)"]).endswith(": ours is better")
    assert headlines(Comparison(AS_OF, [], [])) == []


def test_the_table_holds_the_newest_comparison_alone(connection: psycopg.Connection) -> None:
    rows, hourly = generated(900, har=None)
    of_symbols = {(s, 1): judged(rows, hourly, 1, AS_OF) for s in ("KRW-BTC", "KRW-ETH")}
    comparison.store(connection, compare(of_symbols, AS_OF))
    kept = compare({("KRW-BTC", 1): of_symbols["KRW-BTC", 1]}, AS_OF)
    for _ in range(2):
        comparison.store(connection, kept)
    stored = connection.execute(
        "SELECT symbol, model, verdict, told, qlike, as_of_kst::text "
        "FROM trading_pipelines.volatility_comparison_kst"
    ).fetchall()
    assert stored == [
        (s.symbol, s.model, str(s.verdict), str(s.told), s.qlike, "2025-09-01 09:00:00")
        for s in kept.scores
    ]


def test_candles_after_the_moment_change_no_figure_of_the_tables(bench: Bench) -> None:
    symbols, first, last = ["KRW-BTC", "KRW-ETH"], date(2025, 9, 10), date(2025, 9, 16)
    as_of = datetime(2025, 9, 14, tzinfo=UTC)

    def found() -> str:
        bench.compute(REALIZED_VOLATILITY, symbols, date(2025, 9, 1), last)
        for signal in (GARCH_BASELINE, VOLATILITY_MODEL, VOLATILITY_FORECAST):
            bench.compute(signal, [""] if signal.pooled else symbols, first, last)
        return repr(comparison.read(bench.connection, symbols, as_of))

    before = found()
    counts = {
        s.model: s.forecasts for s in comparison.read(bench.connection, symbols, as_of).scores
    }
    assert min(counts["random_walk"], counts["garch"]) > 24
    later = comparison.read(bench.connection, symbols, as_of + 24 * HOUR)
    for table, column in (("public.market_data", "timestamp"),
                          ("trading_pipelines.candles_1h", "timestamp")):  # fmt: skip
        bench.connection.execute(
            f"UPDATE {table} SET open_price = p, high_price = p * 1.5, low_price = p / 2, "
            f"close_price = p FROM (SELECT ctid AS row, 100 + 900 * random() AS p FROM {table} "
            f"WHERE {column} >= %s) AS nonsense WHERE {table}.ctid = nonsense.row",
            [as_of],
        )
    assert found() == before
    assert repr(comparison.read(bench.connection, symbols, as_of + 24 * HOUR)) != repr(later)
