"""What is published of the members: their mean, an interval that holds, a flag worth reading."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from trading_pipelines.signals.volatility import combined
from trading_pipelines.signals.volatility.combined import IntervalStatus, adapt, combine
from trading_pipelines.signals.volatility.model import LEVELS, ModelStatus, VolatilityModel

START = datetime(2025, 6, 1, tzinfo=UTC)
NORMAL = (-2.326, -1.645, -1.282, -0.842, -0.385, 0.0, 0.385, 0.842, 1.282, 1.645, 2.326)
assert len(NORMAL) == len(LEVELS)


def model(**values: object) -> VolatilityModel:
    """Return a model whose residuals are of a normal distribution of deviation 1."""
    fields = {
        "as_of": START, "horizon": 24, "statuses": {"KRW-BTC": ModelStatus.OK}, "floor": 1e-9,
        "rows": 1, "last_target_end": None, "data_hash": "", "residual_quantiles": NORMAL,
    }  # fmt: skip
    return VolatilityModel.model_validate(fields | values)


def members(
    status: ModelStatus = ModelStatus.OK, hours: int = 1, garch: float = 3e-5
) -> pd.DataFrame:
    return pd.DataFrame(
        {"status": status, "har": 1e-5, "garch": garch, "ewma": 5e-5, "floor": 1e-9},
        index=pd.date_range(START, periods=hours, freq="h"),
    )


def happened(hours: int, deviation: float) -> pd.Series:
    """Return outcomes around the mean of the members, with errors of this deviation."""
    errors = np.random.default_rng(3).normal(0, deviation, hours)
    return pd.Series(3e-5 * np.exp(errors), index=pd.date_range(START, periods=hours, freq="h"))


def adapted(
    realized: pd.Series,
    horizon: int = 24,
    shown: int | None = None,
    of: VolatilityModel | None = None,
) -> pd.DataFrame:
    hours = len(realized)
    # No two of the same odds: a level between them moves with every outcome.
    factors = np.linspace(1, 1.5, 17)[np.arange(hours) % 17] * np.linspace(1, 1.1, hours)
    thresholds = pd.Series(8e-5 * factors, index=realized.index)
    rows = combine(members(hours=hours), 24)
    models = [of or model()] * hours
    return adapt(rows, models, realized, thresholds, "KRW-BTC", horizon, shown or hours)


@pytest.mark.parametrize(
    ("horizon", "status", "garch", "made_of", "variance"),
    [
        (24, ModelStatus.OK, 3e-5, "har+garch+ewma", 3e-5),
        (24, ModelStatus.OK, np.nan, "har+ewma", 3e-5),
        (1, ModelStatus.OK, 3e-5, "har", 1e-5),
        (24, ModelStatus.FALLBACK, 3e-5, "ewma", 5e-5),
        (24, ModelStatus.DEGENERATE, 3e-5, None, np.nan),
    ],
)
def test_a_forecast_is_the_mean_of_what_is_there_and_says_of_what(
    horizon: int, status: ModelStatus, garch: float, made_of: str | None, variance: float
) -> None:
    (row,) = combine(members(status, garch=garch), horizon).to_dict("records")
    assert row["made_of"] == made_of
    assert row["variance"] == pytest.approx(variance, nan_ok=True)
    assert row["ewma"] == 5e-5, "a member is kept beside it, used or not"


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("horizon", [1, 24])
def test_nine_of_ten_intervals_hold_however_wrong_the_residuals_are(
    horizon: int, deviation: float
) -> None:
    realized = happened(90 * 24, deviation)
    rows = adapted(realized, horizon).iloc[30 * 24 :]
    holds = realized[rows.index].between(rows["low"], rows["high"])
    assert holds.mean() == pytest.approx(0.9, abs=0.02)
    assert rows["interval_width"].mean() == pytest.approx(deviation, rel=0.15)
    assert set(rows["interval_status"]) == {IntervalStatus.ADAPTED}


def test_a_width_has_bounds_and_says_how_many_outcomes_it_knows() -> None:
    wild = adapted(happened(60 * 24, 50.0))
    assert wild["interval_width"].max() == pytest.approx(np.exp(combined.WIDEST))
    known = 14 * 24 + 24 - 1
    assert list(wild["interval_status"].iloc[known - 1 : known + 1]) == ["SHORT", "ADAPTED"]
    assert wild["interval_width"].iloc[0] == 1
    one = adapt(
        combine(members(ModelStatus.FALLBACK), 24), [model()], happened(1, 1), happened(1, 1),
        "KRW-BTC", 24, 1,
    )  # fmt: skip
    assert list(one["interval_status"]) == ["NONE"]
    assert one[["low", "high", "interval_width", "probability_high"]].isna().all(axis=None)


@pytest.mark.parametrize("horizon", [1, 24])
def test_width_and_level_know_the_outcomes_that_had_passed_and_no_others(horizon: int) -> None:
    realized = happened(30 * 24, 1.0)
    last = realized.index[-1]
    nonsense = realized.copy()
    # As of the last hour, the outcome that has just passed is of the forecast a horizon before.
    nonsense[nonsense.index > last - timedelta(hours=horizon)] = 1.0
    shown = ["interval_width", "low", "high", "probability_high", "flag_level"]
    said = adapted(realized, horizon).loc[last, shown]
    assert adapted(nonsense, horizon).loc[last, shown].to_json() == said.to_json()
    if horizon > 1:  # A mutant that waits an hour less sees what has not passed.
        mutant = [adapted(of, horizon - 1).loc[last, shown] for of in (realized, nonsense)]
        assert mutant[0].to_json() != mutant[1].to_json()
    just_passed = last - timedelta(hours=horizon)
    held = adapted(realized, horizon).loc[just_passed]
    is_inside = held["low"] <= realized[just_passed] <= held["high"]
    nonsense[just_passed] = 1.0 if is_inside else 3e-5
    assert adapted(nonsense, horizon).loc[last, shown].to_json() != said.to_json()


def test_the_last_rows_are_the_same_however_many_are_shown() -> None:
    realized = happened(40 * 24, 1.0)
    assert adapted(realized, shown=24).to_csv() == adapted(realized).iloc[-24:].to_csv()


def test_a_flag_is_up_about_as_often_as_the_threshold_is_passed() -> None:
    rng = np.random.default_rng(4)
    hours = 120 * 24
    index = pd.date_range(START, periods=hours, freq="h")
    # Half of what moves it is foreseen.
    foreseen = rng.normal(0, 0.7, hours)
    rows = combine(members(hours=hours), 24)
    rows["variance"] = 3e-5 * np.exp(foreseen)
    realized = pd.Series(rows["variance"] * np.exp(rng.normal(0, 0.7, hours)), index=index)
    thresholds = pd.Series(3e-5 * np.exp(1.28), index=index)
    told = adapt(rows, [model()] * hours, realized, thresholds, "KRW-BTC", 24, hours - 60 * 24)
    high = (realized > thresholds)[told.index]
    flag = told["is_high_volatility"].astype(bool)
    assert flag.mean() == pytest.approx(high.mean(), rel=0.2)
    assert high[flag].mean() > 3 * high.mean()
    odds = told["probability_high"]
    for low, top in ((0.05, 0.2), (0.2, 0.4), (0.4, 0.7)):
        asked = odds.between(low, top)
        assert high[asked].mean() == pytest.approx(odds[asked].mean(), abs=0.08), "reliable"


def test_the_flag_is_more_likely_than_not_until_there_are_outcomes() -> None:
    rows = adapted(happened(24, 1.0))
    assert set(rows["flag_level"]) == {0.5}
    assert rows["probability_high"].iloc[0] == pytest.approx(1 - 0.835, abs=0.02)
    assert set(rows["is_high_volatility"]) == {False}


def test_a_model_without_a_distribution_flags_what_is_above_the_threshold() -> None:
    rows = adapted(happened(24, 1.0), of=model(residual_quantiles=(-1.645, 1.645)))
    assert rows["probability_high"].isna().all()
    assert set(rows["is_high_volatility"]) == {False}
    assert rows["high"].iloc[0] == pytest.approx(3e-5 * np.exp(1.645))
