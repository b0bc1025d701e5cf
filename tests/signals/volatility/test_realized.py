"""Realised variances, against a plain loop over recorded minutes and hours made by hand."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from trading_pipelines.signals.catalogue import ZERO_SHARE_HOURS
from trading_pipelines.signals.volatility.realized import (
    Estimator,
    annualized,
    parkinson,
    realized_variance,
)

START = datetime(2025, 9, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
TICK = math.log(101 / 100) ** 2
Minute = tuple[float, float, float, float]


def at(day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(2025, 9, day, hour, minute, tzinfo=UTC)


def zigzag(hours: int) -> dict[datetime, float]:
    """Return the price of each five-minute bar: 100 and 101 in turn, so that none is quiet."""
    return {START + MINUTE * 5 * n: 100.0 + n % 2 for n in range(hours * 12)}


def made(prices: dict[datetime, float]) -> pd.DataFrame:
    """Return bars in which only one price was traded."""
    index = pd.DatetimeIndex(list(prices))
    values = pd.Series(list(prices.values()), index=index, dtype=float)
    bars = pd.DataFrame(dict.fromkeys(["open", "high", "low", "close"], values))
    return bars.assign(minutes=1)


def bars_of(minutes: pd.DataFrame) -> pd.DataFrame:
    """Return the traded five-minute bars of one symbol's minutes."""
    resampled = minutes.set_index("timestamp_utc").resample("5min")
    bars = resampled.agg({"open": "first", "high": "max", "low": "min", "close": "last"})
    bars["minutes"] = resampled["close"].count()
    return bars[bars["minutes"] > 0]


def part(recorded: pd.DataFrame, symbol: str, start: datetime, end: datetime) -> pd.DataFrame:
    times = recorded["timestamp_utc"]
    return recorded[(recorded["symbol"] == symbol) & (times >= start) & (times < end)]


class Plain(NamedTuple):
    variance: float
    estimator: Estimator
    zero_share: float
    minutes: int


def plain(minutes: pd.DataFrame, start: datetime, end: datetime) -> dict[datetime, Plain]:
    """Return what each hour comes to, bar by bar, by its close."""
    traded: dict[datetime, Minute] = {
        pd.Timestamp(row[0]).to_pydatetime(): (row[1], row[2], row[3], row[4])
        for row in minutes[["timestamp_utc", "open", "high", "low", "close"]].itertuples(
            index=False, name=None
        )
    }
    found: dict[datetime, Plain] = {}
    last: float | None = None
    zeros: list[int | None] = []
    for n in range((end - start) // HOUR):
        hour = start + HOUR * n
        bars = [
            [
                traded[minute]
                for minute in (hour + MINUTE * (5 * bar + m) for m in range(5))
                if minute in traded
            ]
            for bar in range(12)
        ]
        rows = [row for bar in bars for row in bar]
        if not rows:
            last = None
        returns = []
        for bar in bars:
            base = last if last is not None else bar[0][0] if bar else 1.0
            close = bar[-1][3] if bar else base
            returns.append(math.log(close / base))
            last = close if bar else last
        zeros.append(sum(r == 0 for r in returns) if rows else None)
        seen = [zero for zero in zeros[-ZERO_SHARE_HOURS:] if zero is not None]
        share = sum(seen) / len(seen) / 12
        by_range = share > 0.30
        squared = math.fsum(r * r for r in returns)
        if by_range and rows:
            squared = math.log(max(r[1] for r in rows) / min(r[2] for r in rows)) ** 2
            squared /= 4 * math.log(2)
        estimator = Estimator.PARKINSON if by_range else Estimator.RETURNS
        found[hour + HOUR] = Plain(squared if rows else math.nan, estimator, share, len(rows))
    return found


@pytest.mark.parametrize(
    ("symbol", "estimator"),
    [("KRW-BTC", Estimator.RETURNS), ("KRW-DOGE", Estimator.PARKINSON)],
)
def test_recorded_hours_equal_a_plain_loop_over_their_minutes(
    recorded: pd.DataFrame, symbol: str, estimator: Estimator
) -> None:
    minutes = part(recorded, symbol, at(1), at(10))
    halt = minutes["timestamp_utc"].between(pd.Timestamp(at(4, 9, 37)), pd.Timestamp(at(4, 13, 8)))
    minutes = minutes[~halt]
    found = realized_variance(bars_of(minutes), at(10))
    wanted = plain(minutes, at(1), at(10))
    assert list(found.index) == list(wanted)
    variances = [hour.variance for hour in wanted.values()]
    np.testing.assert_allclose(found["realized_variance"], variances, rtol=1e-10)
    assert list(found["estimator"]) == [hour.estimator for hour in wanted.values()]
    np.testing.assert_allclose(
        found["zero_share"], [h.zero_share for h in wanted.values()], rtol=1e-14
    )
    assert list(found["minutes"]) == [hour.minutes for hour in wanted.values()]
    assert list(found.index[found["realized_variance"].isna()]) == [
        at(4, 11), at(4, 12), at(4, 13)
    ]  # fmt: skip
    assert set(found["estimator"].iloc[24:]) == {estimator}


def test_an_hour_begins_with_its_first_minute_and_is_known_by_its_close() -> None:
    calm = realized_variance(made(zigzag(3)), START + HOUR * 3)["realized_variance"]
    assert list(calm.index) == [at(1, 1), at(1, 2), at(1, 3)]
    assert calm.to_list() == pytest.approx([11 * TICK, 12 * TICK, 12 * TICK])
    for moment, hours in (
        (at(1, 0, 50), {at(1, 1)}),
        (at(1, 0, 55), {at(1, 1), at(1, 2)}),  # what it moves back is the next hour's
        (at(1, 1), {at(1, 2)}),
        (at(1, 1, 50), {at(1, 2)}),
    ):
        shaken = realized_variance(made(zigzag(3) | {moment: 150.0}), START + HOUR * 3)
        moved = shaken["realized_variance"] != calm
        assert set(moved.index[moved]) == hours


def test_a_quiet_bar_carries_the_close_forward_with_a_zero_return() -> None:
    prices = zigzag(2)
    assert prices[at(1, 1, 10)] == 100
    for moment in (at(1, 1, 15), at(1, 1, 20), at(1, 1, 25)):
        del prices[moment]
    hours = realized_variance(made(prices), START + HOUR * 2)
    assert hours["realized_variance"][at(1, 2)] == pytest.approx(8 * TICK)
    assert hours["minutes"][at(1, 2)] == 9
    # The first return of all, the three quiet bars, and 100 again after them.
    assert hours["zero_share"][at(1, 2)] == pytest.approx((1 + 3 + 1) / 24)


@pytest.mark.parametrize("resumed", [at(1, 17), at(1, 17, 20)])
def test_the_jump_over_an_outage_is_of_no_hour(resumed: datetime) -> None:
    prices = {
        moment: price if moment < at(1, 14) else price * 3
        for moment, price in zigzag(20).items()
        if moment < at(1, 13, 30) or moment >= resumed
    }
    bars = made(prices)
    bars.loc[resumed, "open"] = 305.0
    variance = realized_variance(bars, START + HOUR * 20)["realized_variance"]
    assert list(variance.index[variance.isna()]) == [at(1, 15), at(1, 16), at(1, 17)]
    first = math.log(prices[resumed] / 305) ** 2
    rest = ((at(1, 18) - resumed) // (MINUTE * 5) - 1) * TICK
    assert variance[at(1, 14)] == pytest.approx(6 * TICK)
    assert variance[at(1, 18)] == pytest.approx(first + rest)
    assert variance[at(1, 19)] == pytest.approx(12 * TICK)


def test_a_constant_price_has_no_variance_and_raises_nothing() -> None:
    hours = realized_variance(made(dict.fromkeys(zigzag(30), 100.0)), START + HOUR * 30)
    assert hours["realized_variance"].to_list() == [0.0] * 30
    assert set(hours["zero_share"]) == {1.0}
    assert realized_variance(made({}), START).empty


@pytest.mark.parametrize(
    ("zeros", "estimator", "variance"),
    [
        (18, Estimator.RETURNS, 12 * TICK),
        (19, Estimator.PARKINSON, TICK / (4 * math.log(2))),
    ],
)
def test_above_30_percent_of_zero_returns_the_range_of_the_hour_is_measured(
    zeros: int, estimator: Estimator, variance: float
) -> None:
    times = list(zigzag(5))
    # The first return of all is zero in any case.
    prices = [100.0 + max(0, n - zeros + 1) % 2 for n in range(60)]
    hours = realized_variance(made(dict(zip(times, prices, strict=True))), START + HOUR * 5)
    assert hours["zero_share"].iloc[-1] == pytest.approx(zeros / 60)
    assert hours["estimator"].iloc[-1] == estimator
    assert hours["realized_variance"].iloc[-1] == pytest.approx(variance)


def test_zero_returns_of_a_week_ago_are_forgotten() -> None:
    hours = ZERO_SHARE_HOURS + 25
    prices = {moment: 100.0 if moment < at(2) else price for moment, price in zigzag(hours).items()}
    shares = realized_variance(made(prices), START + HOUR * hours)["zero_share"]
    assert shares[at(2)] == 1
    assert shares[at(8)] == pytest.approx((24 * 12 + 1) / (ZERO_SHARE_HOURS * 12))
    assert shares[at(8, 12)] == pytest.approx((12 * 12 + 1) / (ZERO_SHARE_HOURS * 12))
    assert shares[at(9, 1)] == 0


def test_an_hour_never_changes_with_later_bars(recorded: pd.DataFrame) -> None:
    bars = bars_of(part(recorded, "KRW-DOGE", at(1), at(5)))
    until = at(4, 7)
    known = realized_variance(bars[bars.index < until], until)
    random = np.random.default_rng(3)
    changed = bars.copy()
    later = changed.index >= until
    prices = ["open", "high", "low", "close"]
    changed.loc[later, prices] *= random.uniform(0.5, 2, (int(later.sum()), 1))
    changed = changed[~later | (random.random(len(changed)) < 0.3)]
    whole = realized_variance(changed, at(5))
    pd.testing.assert_frame_equal(whole.loc[:until], known, check_exact=True, check_freq=False)
    assert len(whole) > len(known)


def days_alone(recorded: pd.DataFrame, symbol: str, days: Sequence[int]) -> list[pd.DataFrame]:
    """Return each day's hours, from bars that begin seven days before it."""
    reach = HOUR * ZERO_SHARE_HOURS
    return [
        realized_variance(
            bars_of(part(recorded, symbol, at(day) - reach, at(day + 1))), at(day + 1)
        ).iloc[-24:]
        for day in days
    ]


@pytest.mark.parametrize("symbol", ["KRW-BTC", "KRW-DOGE"])
def test_an_hour_is_the_same_to_the_bit_however_early_the_bars_begin(
    recorded: pd.DataFrame, symbol: str
) -> None:
    together = realized_variance(bars_of(part(recorded, symbol, at(1), at(14))), at(14))
    for alone in days_alone(recorded, symbol, [9, 11, 13]):
        pd.testing.assert_frame_equal(
            alone, together.loc[alone.index], check_exact=True, check_freq=False
        )


def test_figures_are_on_their_scales() -> None:
    assert annualized(0.01**2) == pytest.approx(0.01 * math.sqrt(24 * 365))
    of_one = parkinson(pd.Series([math.e]), pd.Series([1.0]))
    assert of_one.to_list() == pytest.approx([1 / (4 * math.log(2))])
