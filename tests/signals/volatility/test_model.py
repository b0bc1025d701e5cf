"""The pooled model on panels of a known process: what it may look at, and what it is worth."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SYMBOLS
from trading_pipelines.settings.strategy import VolatilitySettings
from trading_pipelines.signals.catalogue import WARM_UP_HOURS, training_days
from trading_pipelines.signals.volatility import model as volatility_model
from trading_pipelines.signals.volatility.model import (
    ENDS,
    LEVELS,
    ModelStatus,
    VolatilityModel,
    fit,
    outcome,
    thresholds,
)

SETTINGS = VolatilitySettings(training_days=30)
AS_OF = datetime(2025, 6, 3, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NONE = (np.nan, np.nan)


def panel(
    days: float = 40,
    after: float = 4,
    symbols: int = 5,
    persistence: float = 0.9,
    shock: float = 0.5,
) -> pd.DataFrame:
    """Return variances whose logs are AR(1) around a daily season, `days` before AS_OF and on."""
    hours = pd.date_range(AS_OF - DAY * days, AS_OF + DAY * after, freq="h", inclusive="right")
    shocks = np.random.default_rng(7).normal(0, shock, (len(hours), symbols))
    logs = np.zeros_like(shocks)
    for n in range(1, len(hours)):
        logs[n] = persistence * logs[n - 1] + shocks[n]
    season = 0.4 * np.cos(2 * np.pi * hours.hour.to_numpy() / 24)
    levels = season[:, None] - 11 + 0.3 * np.arange(symbols)
    return pd.DataFrame(np.exp(logs + levels), index=hours, columns=SYMBOLS[:symbols])


def scrambled(variances: pd.DataFrame, as_of: datetime) -> pd.DataFrame:
    """Return the panel with every hour that begins at the moment or after it randomised."""
    changed = variances.copy()
    future = changed.index > as_of
    changed[future] *= np.random.default_rng(8).lognormal(0, 3, changed[future].shape)
    assert future.sum() > 24
    return changed


def forecast(
    model: VolatilityModel, variances: pd.DataFrame, as_ofs: Sequence[datetime]
) -> pd.DataFrame:
    """Return the forecasts of every symbol by one model alone, with its own 90 % interval."""
    parts = []
    for symbol in map(str, variances.columns):
        rows = volatility_model.forecast([model] * len(as_ofs), variances[symbol], as_ofs)
        variance = rows["har"].fillna(rows["ewma"].where(rows["status"] == ModelStatus.FALLBACK))
        low, high = np.interp(ENDS, LEVELS, model.errors(symbol)) if model.coefficients else NONE
        interval = {"low": variance * np.exp(low), "high": variance * np.exp(high)}
        parts.append(rows.assign(symbol=symbol, variance=variance, **interval).reset_index())
    return pd.concat(parts, ignore_index=True)


def said(variances: pd.DataFrame, horizon: int) -> str:
    """Return the model and its forecasts, as bytes would be stored."""
    model = fit(variances, AS_OF, horizon, SETTINGS)
    return model.model_dump_json() + forecast(model, variances, [AS_OF]).to_csv()


def variance_of(
    model: VolatilityModel, variances: pd.DataFrame, as_of: datetime = AS_OF
) -> pd.Series:
    return forecast(model, variances, [as_of]).set_index("symbol")["variance"]


def evaluated(horizon: int, shock: float = 0.5) -> tuple[VolatilityModel, pd.DataFrame]:
    """Return a model and its forecasts of the 60 days after it, with what happened (`realized`)."""
    variances = panel(after=60, shock=shock)
    model = fit(variances, AS_OF, horizon, SETTINGS)
    as_ofs = [AS_OF + HOUR * n for n in range(59 * 24)]
    rows = forecast(model, variances, as_ofs)
    happened = [outcome(variances[symbol], horizon).reindex(as_ofs) for symbol in variances]
    return model, rows.assign(realized=np.concatenate(happened))


@pytest.mark.parametrize("horizon", [1, 24])
def test_nothing_from_the_as_of_on_reaches_the_model_or_its_forecast(horizon: int) -> None:
    variances = panel()
    assert said(scrambled(variances, AS_OF), horizon) == said(variances, horizon)
    cut = variances.loc[:AS_OF]
    assert said(cut, horizon) == said(variances, horizon)


@pytest.mark.parametrize("horizon", [1, 24])
def test_the_perturbation_sees_hours_that_are_known_by_their_start(horizon: int) -> None:
    variances = panel()
    by_start = scrambled(variances, AS_OF).shift(-1)
    assert said(by_start, horizon) != said(variances.shift(-1), horizon)


@pytest.mark.parametrize("horizon", [1, 24])
def test_the_perturbation_sees_training_rows_whose_target_has_not_closed(
    horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coefficients(variances: pd.DataFrame) -> dict[str, float]:
        def of_all(hourly: pd.Series, horizon: int) -> pd.Series:
            return outcome(variances[hourly.name], horizon).reindex(hourly.index)

        monkeypatch.setattr(volatility_model, "outcome", of_all)
        return fit(variances, AS_OF, horizon, SETTINGS).coefficients

    variances = panel()
    assert coefficients(scrambled(variances, AS_OF)) != coefficients(variances)


@pytest.mark.parametrize("horizon", [1, 24])
def test_everything_that_had_closed_at_the_as_of_is_used(horizon: int) -> None:
    variances = panel()
    model = fit(variances, AS_OF, horizon, SETTINGS)
    assert model.last_target_end == AS_OF
    assert model.rows == 5 * (SETTINGS.training_days * 24 - horizon)
    newest = variances.copy()
    newest.loc[pd.Timestamp(AS_OF)] *= 2
    other = fit(newest, AS_OF, horizon, SETTINGS)
    assert other.coefficients != model.coefficients
    assert other.data_hash != model.data_hash
    assert (variance_of(model, newest) > variance_of(model, variances)).all()


@pytest.mark.parametrize("horizon", [1, 24])
def test_a_model_is_small_and_the_same_bytes_from_a_second_fit_and_from_its_json(
    horizon: int,
) -> None:
    variances = panel()
    model = fit(variances, AS_OF, horizon, SETTINGS)
    written = model.model_dump_json()
    assert len(written.encode()) < 1000
    longer = panel(days=40)
    longer.loc[pd.Timestamp(AS_OF - DAY * 60)] = 1.0
    longer = longer.sort_index()[longer.columns[::-1]]
    assert fit(longer, AS_OF, horizon, SETTINGS).model_dump_json() == written
    read = VolatilityModel.model_validate_json(written)
    assert read == model
    assert read.model_dump_json() == written
    as_ofs = [AS_OF, AS_OF + HOUR * 7]
    assert forecast(read, variances, as_ofs).to_csv() == forecast(model, variances, as_ofs).to_csv()


@pytest.mark.parametrize("days", [10, 40])
def test_as_ofs_in_a_range_are_forecast_as_one_at_a_time_to_the_bit(days: int) -> None:
    variances = panel(days)
    variances.iloc[-40:-30, 1] = np.nan
    model = fit(variances, AS_OF, 24, SETTINGS)
    assert model.status is (ModelStatus.OK if days == 40 else ModelStatus.FALLBACK)
    as_ofs = [AS_OF + HOUR * n for n in range(72)]
    together = forecast(model, variances, as_ofs)
    for as_of in as_ofs[::5]:
        alone = forecast(model, variances.loc[as_of - DAY * 31 : as_of], [as_of])
        assert alone.to_csv(index=False) == together[together["as_of"] == as_of].to_csv(index=False)


def test_smearing_makes_the_forecast_of_a_log_normal_unbiased() -> None:
    model, rows = evaluated(1, shock=1.0)
    assert model.smearing == pytest.approx(np.exp(0.5), rel=0.1)
    ratio = (rows["realized"] / rows["variance"]).mean()
    assert ratio == pytest.approx(1, abs=0.1)
    assert ratio * model.smearing > 1.4


@pytest.mark.parametrize("horizon", [1, 24])
def test_nine_of_ten_outcomes_are_in_the_interval(horizon: int) -> None:
    _, rows = evaluated(horizon)
    covered = rows["realized"].between(rows["low"], rows["high"])
    assert 0.85 < covered.mean() < 0.95
    below, above = rows["realized"] < rows["low"], rows["realized"] > rows["high"]
    assert below.mean() > 0.02
    assert above.mean() > 0.02


@pytest.mark.parametrize("horizon", [1, 24])
def test_the_model_beats_the_random_walk_on_hours_it_has_not_seen(horizon: int) -> None:
    model, _ = evaluated(horizon)
    assert model.unseen_qlike is not None
    assert model.unseen_qlike_random_walk is not None
    assert 0 < model.unseen_qlike < 0.9 * model.unseen_qlike_random_walk


def test_a_weekend_is_quiet_from_its_first_hour_to_its_last() -> None:
    variances = panel(persistence=0, shock=0.1, after=10)
    starts = pd.DatetimeIndex(variances.index) - HOUR
    variances[starts.day_of_week >= 5] *= np.exp(-2)
    model = fit(variances, AS_OF, 1, SETTINGS)
    saturday = datetime(2025, 6, 7, tzinfo=UTC)
    monday = saturday + DAY * 2
    as_ofs = [saturday - HOUR, saturday, monday - HOUR, monday]
    rows = forecast(model, variances, as_ofs)
    of_friday, first, last, of_monday = rows.loc[rows["symbol"] == "KRW-BTC", "variance"]
    assert first < 0.3 * of_friday
    assert last < 0.3 * of_monday


@pytest.mark.parametrize(("symbols", "days"), [(3, 21), (2, 28), (1, 49)])
def test_below_42_symbol_days_of_rows_there_is_no_model(symbols: int, days: int) -> None:
    enough = fit(panel(days, symbols=symbols), AS_OF, 24, SETTINGS)
    assert set(enough.statuses.values()) == {ModelStatus.OK}
    variances = panel(days - 1, symbols=symbols)
    model = fit(variances, AS_OF, 24, SETTINGS)
    assert set(model.statuses.values()) == {ModelStatus.FALLBACK}
    assert (model.status, model.rows, model.coefficients) == (ModelStatus.FALLBACK, 0, {})
    rows = forecast(model, variances, [AS_OF])
    assert set(rows["status"]) == {ModelStatus.FALLBACK}
    assert rows["variance"].notna().all()
    assert rows[["low", "high"]].isna().all(axis=None)


def test_a_symbol_listed_a_week_ago_falls_back_while_the_others_go_on() -> None:
    variances = panel()
    variances.loc[: AS_OF - DAY * 7, "KRW-SOL"] = np.nan
    variances.loc[: AS_OF - HOUR * 23, "KRW-DOGE"] = np.nan
    model = fit(variances, AS_OF, 1, SETTINGS)
    assert model.statuses == {
        "KRW-BTC": ModelStatus.OK,
        "KRW-ETH": ModelStatus.OK,
        "KRW-XRP": ModelStatus.OK,
        "KRW-SOL": ModelStatus.FALLBACK,
        "KRW-DOGE": ModelStatus.UNKNOWN_HISTORY,
    }
    assert model.status is ModelStatus.OK
    rows = forecast(model, variances, [AS_OF]).set_index("symbol")
    assert rows["status"].to_dict() == model.statuses
    assert list(rows.index[rows["variance"].isna()]) == ["KRW-DOGE"]
    assert fit(panel(23 / 24), AS_OF, 1, SETTINGS).status is ModelStatus.UNKNOWN_HISTORY
    assert fit(panel(1), AS_OF, 1, SETTINGS).status is ModelStatus.FALLBACK
    nothing = fit(panel().iloc[:0], AS_OF, 1, SETTINGS)
    assert (nothing.status, nothing.floor) == (ModelStatus.UNKNOWN_HISTORY, None)


def test_a_constant_price_is_degenerate_and_the_others_go_on() -> None:
    variances = panel()
    variances["KRW-XRP"] = 0.0
    model = fit(variances, AS_OF, 1, SETTINGS)
    others = fit(variances.drop(columns="KRW-XRP"), AS_OF, 1, SETTINGS)
    assert model.statuses == {**others.statuses, "KRW-XRP": ModelStatus.DEGENERATE}
    assert set(others.statuses.values()) == {ModelStatus.OK}
    assert (model.coefficients, model.floor) == (others.coefficients, others.floor)
    rows = forecast(model, variances, [AS_OF]).set_index("symbol")
    assert rows.loc["KRW-XRP", "status"] == ModelStatus.DEGENERATE
    assert rows.index[rows["variance"].isna()].to_list() == ["KRW-XRP"]
    still = variances * 0
    stopped = fit(still, AS_OF, 1, SETTINGS)
    assert set(stopped.statuses.values()) == {ModelStatus.DEGENERATE}
    assert forecast(stopped, still, [AS_OF])["variance"].isna().all()


def test_a_constant_price_brings_no_symbol_days() -> None:
    variances = panel(22, symbols=2)
    assert fit(variances, AS_OF, 24, SETTINGS).status is ModelStatus.FALLBACK
    with_constant = variances.assign(**{"KRW-USDT": 0.0})
    assert fit(with_constant, AS_OF, 24, SETTINGS).statuses["KRW-BTC"] is ModelStatus.FALLBACK


def test_the_longest_horizon_can_be_fitted_as_soon_as_the_shortest() -> None:
    model = fit(panel(21, symbols=3), AS_OF, 72, SETTINGS)
    assert model.status is ModelStatus.OK


def test_zero_hours_count_as_the_floor() -> None:
    variances = panel()
    variances.iloc[::50] = 0.0
    model = fit(variances, AS_OF, 1, SETTINGS)
    assert model.floor is not None
    positive = variances.loc[AS_OF - DAY * 37 + HOUR : AS_OF].to_numpy()
    assert model.floor == pytest.approx(np.quantile(positive[positive > 0], 0.001), rel=1e-9)
    quiet, at_floor = variances.copy(), variances.copy()
    quiet.loc[pd.Timestamp(AS_OF)] = model.floor / 1e6
    at_floor.loc[pd.Timestamp(AS_OF)] = model.floor
    np.testing.assert_allclose(variance_of(model, quiet), variance_of(model, at_floor), rtol=0.01)


@pytest.mark.parametrize("symbols", [1, 2, 5])
def test_the_fallback_is_a_plain_ewma(symbols: int) -> None:
    variances = panel(12, symbols=symbols)
    variances.iloc[60:71, 0] = np.nan
    model = fit(variances, AS_OF, 24, SETTINGS)
    as_ofs = [AS_OF, AS_OF + HOUR * 5, AS_OF + DAY]
    rows = forecast(model, variances, as_ofs)
    wanted = variances.ewm(alpha=0.03, adjust=True).mean().loc[as_ofs].to_numpy().T.ravel()
    assert set(rows["status"]) == {ModelStatus.FALLBACK}
    np.testing.assert_allclose(rows["variance"], wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("horizon", "out", "lost"),
    [
        (1, 5, 5 + 1),
        (24, 5, 0),
        # 19 windows of 24 hours have 12 of the 18 in them: as many targets, and random walks.
        (24, 18, 2 * 19),
    ],
)
def test_an_outage_drops_rows_around_it_and_poisons_no_others(
    horizon: int, out: int, lost: int
) -> None:
    variances = panel()
    variances.iloc[500 : 500 + out, 0] = np.nan
    model = fit(variances, AS_OF, horizon, SETTINGS)
    untouched = fit(panel(), AS_OF, horizon, SETTINGS)
    assert untouched.rows - model.rows == lost
    assert set(model.statuses.values()) == {ModelStatus.OK}
    ratio = variance_of(model, variances) / variance_of(untouched, panel())
    assert ratio.between(0.9, 1.1).all()


@pytest.mark.parametrize("horizon", [1, 24])
@pytest.mark.parametrize("out", [1, 7, 30, 83])
def test_there_is_a_forecast_right_after_an_outage(horizon: int, out: int) -> None:
    variances = panel()
    variances.loc[AS_OF - HOUR * (out - 1) :, "KRW-BTC"] = np.nan
    model = fit(variances, AS_OF, horizon, SETTINGS)
    rows = forecast(model, variances, [AS_OF])
    assert set(rows["status"]) == {ModelStatus.OK}
    assert rows[["variance", "low", "high"]].notna().all(axis=None)
    assert (rows["low"] < rows["variance"]).all()
    assert (rows["variance"] < rows["high"]).all()


def test_after_a_week_without_a_trade_nothing_is_said() -> None:
    variances = panel(after=10)
    variances.loc[AS_OF + HOUR :, "KRW-BTC"] = np.nan
    model = fit(variances, AS_OF, 1, SETTINGS)
    rows = forecast(model, variances, [AS_OF + HOUR * WARM_UP_HOURS]).set_index("symbol")
    assert rows.loc["KRW-BTC", "status"] == ModelStatus.UNKNOWN_HISTORY
    assert rows.loc["KRW-BTC", ["variance", "low", "high"]].isna().all()
    assert set(rows["status"].drop("KRW-BTC")) == {ModelStatus.OK}


@pytest.mark.parametrize("horizon", [1, 24])
def test_high_is_above_the_90th_percentile_of_the_last_30_days_alone(horizon: int) -> None:
    hourly = panel(50)["KRW-BTC"]
    as_ofs = [AS_OF, AS_OF + HOUR * 30]
    known = thresholds(hourly, horizon, as_ofs, SETTINGS)
    assert list(known.index) == as_ofs
    for as_of in as_ofs:
        times = [as_of - HOUR * n for n in range(720)]
        sample = [hourly.loc[at - HOUR * (horizon - 1) : at].mean() for at in times]
        assert known[as_of] == pytest.approx(np.quantile(sample, 0.9), rel=1e-12)
    earlier = hourly.copy()
    earlier.loc[: AS_OF - DAY * 30 - HOUR * (horizon - 1)] *= 1000
    later = scrambled(hourly.to_frame(), AS_OF)["KRW-BTC"]
    within = hourly.copy()
    within.loc[AS_OF - DAY * 29 :] *= 2
    for changed, same in ((earlier, True), (later, True), (within, False)):
        again = thresholds(changed, horizon, [AS_OF], SETTINGS)
        assert (again[AS_OF] == known[AS_OF]) == same


def test_under_14_days_it_is_not_known_what_is_high() -> None:
    hourly = panel(14)["KRW-BTC"]
    before, enough = thresholds(hourly, 1, [AS_OF - HOUR, AS_OF], SETTINGS)
    assert np.isnan(before)
    assert enough > 0
    hourly.iloc[100:110] = np.nan
    later = thresholds(hourly, 1, [AS_OF + HOUR * 9, AS_OF + HOUR * 10], SETTINGS)
    assert later.isna().to_list() == [True, False]


def test_a_small_pool_is_trained_on_more_days() -> None:
    assert [training_days(SETTINGS, symbols) for symbols in (1, 2, 3, 5)] == [90, 60, 30, 30]
    longer = VolatilitySettings(training_days=60)
    assert [training_days(longer, symbols) for symbols in (1, 2, 5)] == [90, 90, 60]
    variances = panel(100, symbols=1)
    assert fit(variances, AS_OF, 1, SETTINGS).rows == 90 * 24 - 1


def test_a_symbol_whose_errors_are_larger_has_a_smearing_of_its_own() -> None:
    variances = panel(days=120)
    noise = np.random.default_rng(9).normal(0, 1.5, len(variances))
    variances["KRW-DOGE"] *= np.exp(noise)
    model = fit(variances, AS_OF, 1, VolatilitySettings())
    own = model.smearing_of("KRW-DOGE")
    assert own > 1.5 * model.smearing > 1.5 * model.smearing_of("KRW-BTC")
    assert model.smearing_of("KRW-NEW") == model.smearing
    short = fit(variances, AS_OF, 1, SETTINGS.model_copy(update={"training_days": 14}))
    assert short.smearing < short.smearing_of("KRW-DOGE") < own, "held to the pool's"
