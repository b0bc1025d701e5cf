"""Regime labels, against plain slices of the last 200 closes in exact fractions."""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random

import pandas as pd
import pytest

from tests.conftest import RECORDINGS, generated
from trading_pipelines.candles.windows import DAY, HOUR
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.signals.catalogue import window_days
from trading_pipelines.signals.regimes.labels import Close, Label, label_hours
from trading_pipelines.signals.regimes.regime import Regime

HOURLY = RECORDINGS / "upbit_krw5_1h_20220101_20250630.parquet"
SETTINGS = StrategySettings()
START = datetime(2025, 3, 1, tzinfo=UTC)
# The exchange is down in it for hours: recorded, on 2023-12-03, 2023-12-31 and 2024-03-31;
# generated, on 2024-01-06, 2024-01-16, 2024-03-05 and 2024-03-09.
FIRST, LAST = datetime(2023, 12, 1, tzinfo=UTC), datetime(2024, 4, 2, tzinfo=UTC)


@pytest.fixture(scope="module", params=["KRW-BTC", "KRW-DOGE"])
def closes(request: pytest.FixtureRequest) -> list[Close]:
    """Recorded closes, or generated ones, from a month before FIRST to LAST."""
    start = FIRST - DAY * 30
    if HOURLY.exists():
        rows = pd.read_parquet(HOURLY)
    else:
        rows = generated(start.date(), (LAST - DAY).date())
        rows = rows.assign(timestamp_utc=rows.timestamp_utc.dt.floor("h"))
        rows = rows.groupby(["symbol", "timestamp_utc"], as_index=False).last()
    rows = rows[(rows.symbol == request.param) & rows.timestamp_utc.between(start, LAST, "left")]
    rows = rows.sort_values("timestamp_utc")
    return [
        Close(pd.Timestamp(at).to_pydatetime(), Decimal(str(price)))
        for at, price in zip(rows["timestamp_utc"], rows["close"], strict=True)
    ]


def hours_between(start: datetime, end: datetime) -> list[datetime]:
    return [start + HOUR * n for n in range((end - start) // HOUR)]


def made(prices: Sequence[Decimal | int | str]) -> list[Close]:
    """Return closes of the hours from START on."""
    return [Close(START + HOUR * n, Decimal(price)) for n, price in enumerate(prices)]


def as_of_last(closes: Sequence[Close], settings: StrategySettings = SETTINGS) -> Label:
    (label,) = label_hours(closes, [closes[-1].hour], settings)
    return label


def difference(closes: Sequence[Close], hour: datetime) -> Fraction:
    """Return the exact difference in percent over the last 200 closes up to the hour."""
    window = [close.price for close in closes if close.hour <= hour][-200:]
    fast, slow = Fraction(sum(window[-50:])) / 50, Fraction(sum(window)) / 200
    return (fast - slow) / slow * 100


def regime_of(diff: Fraction) -> Regime:
    if diff > 2:
        return Regime.BULL
    return Regime.BEAR if diff < -2 else Regime.SIDEWAYS


def test_labels_are_those_of_the_last_200_closes_in_exact_fractions(closes: list[Close]) -> None:
    hours = hours_between(FIRST, LAST)
    recorded = [close.hour for close in closes]
    found = label_hours(closes, hours, SETTINGS)
    assert [label.hour for label in found] == hours
    for label in found:
        window = closes[: bisect_right(recorded, label.hour)][-200:]
        diff = difference(window, label.hour)
        assert label.ma_fast is not None
        assert label.ma_slow is not None
        assert label.diff_pct is not None
        assert Fraction(label.ma_fast) == Fraction(sum(c.price for c in window[-50:])) / 50
        assert Fraction(label.ma_slow) == Fraction(sum(c.price for c in window)) / 200
        assert abs(Fraction(label.diff_pct) - diff) < Fraction(1, 10**40)
        assert label.label is regime_of(diff)
        span = hours_between(window[0].hour, label.hour + HOUR)
        assert label.empty_hours == len(set(span) - set(recorded))
        assert label.candles == 200
    assert {label.label for label in found} == {Regime.BULL, Regime.SIDEWAYS, Regime.BEAR}
    assert len(set(hours) - set(recorded)) >= 10, "the exchange was down in it"
    assert max(label.empty_hours for label in found) >= 4


# 150 closes at the first price and 50 at the second are +2 % and -2 % of their mean, exactly.
@pytest.mark.parametrize(
    ("before", "after", "tick", "beyond"),
    [(745, 765, "0.00000001", Regime.BULL), (755, 735, "-0.00000001", Regime.BEAR)],
)
def test_exactly_at_a_threshold_is_sideways_and_one_tick_beyond_is_not(
    before: int, after: int, tick: str, beyond: Regime
) -> None:
    prices = [Decimal(before)] * 150 + [Decimal(after)] * 50
    at = as_of_last(made(prices))
    assert at.diff_pct == (2 if beyond is Regime.BULL else -2)
    assert (at.label, at.hysteresis_label) == (Regime.SIDEWAYS, Regime.SIDEWAYS)
    prices[-1] += Decimal(tick)
    past = as_of_last(made(prices))
    assert (past.label, past.hysteresis_label) == (beyond, beyond)


@pytest.mark.parametrize("least", [200, 300])
def test_the_first_label_needs_exactly_as_many_complete_hours_as_are_set(least: int) -> None:
    settings = StrategySettings(data=DataSettings(min_hourly_candles_for_regime=least))
    closes = made([100] * least)
    short, enough = label_hours(closes, [closes[-2].hour, closes[-1].hour], settings)
    assert (short.label, short.hysteresis_label) == (Regime.UNKNOWN, Regime.UNKNOWN)
    assert (short.ma_fast, short.ma_slow, short.diff_pct) == (None, None, None)
    assert short.candles == least - 1
    assert (enough.label, enough.candles) == (Regime.SIDEWAYS, least)
    assert enough.diff_pct == 0
    (nothing,) = label_hours([], [START], SETTINGS)
    assert (nothing.label, nothing.candles, nothing.empty_hours) == (Regime.UNKNOWN, 0, 0)


def test_hours_without_a_candle_are_dropped_and_counted() -> None:
    full = made([100 + n % 7 for n in range(203)])
    missing = {full[50].hour, full[51].hour, full[150].hour}
    holed = [close for close in full if close.hour not in missing]
    dense = made([close.price for close in holed])
    with_holes, without = as_of_last(holed), as_of_last(dense)
    assert (with_holes.empty_hours, without.empty_hours) == (3, 0)
    assert with_holes.ma_slow == without.ma_slow
    assert with_holes.ma_fast == without.ma_fast
    (later,) = label_hours(holed, [full[-1].hour + HOUR * 2], SETTINGS)
    assert (later.label, later.candles, later.empty_hours) == (Regime.SIDEWAYS, 200, 5)


def test_a_market_whose_every_other_hour_is_empty_has_labels() -> None:
    closes = made([100] * (24 * (window_days(SETTINGS) + 1)))
    every_other = [close for close in closes if close.hour.hour % 2]
    label = as_of_last(every_other)
    assert (label.label, label.candles, label.empty_hours) == (Regime.SIDEWAYS, 200, 199)
    (long_after,) = label_hours(every_other, [closes[-1].hour + DAY * 30], SETTINGS)
    assert (long_after.label, long_after.candles) == (Regime.UNKNOWN, 0)


def test_what_comes_after_an_hour_does_not_change_its_label(closes: list[Close]) -> None:
    random = Random(1)
    hours = hours_between(FIRST, FIRST + DAY * 40)
    for now in hours[500::97]:
        asked = hours[: hours.index(now) + 1]
        known = [close for close in closes if close.hour <= now]
        future = [
            Close(close.hour, close.price * random.randint(1, 300) / 100)
            for close in closes[len(known) :]
            if random.random() < 0.9
        ]
        assert repr(label_hours(known + future, asked, SETTINGS)) == repr(
            label_hours(known, asked, SETTINGS)
        )


def test_a_label_is_the_same_to_the_bit_alone_in_a_range_and_from_a_longer_history(
    closes: list[Close],
) -> None:
    hours = hours_between(FIRST, LAST)
    in_a_range = dict(zip(hours, label_hours(closes, hours, SETTINGS), strict=True))
    for day in range(0, (LAST - FIRST).days, 4):
        midnight = FIRST + DAY * day
        reach = midnight - DAY * window_days(SETTINGS)
        needed = [close for close in closes if close.hour >= reach]
        for hour in (midnight, midnight + HOUR * 23):
            (alone,) = label_hours(needed, [hour], SETTINGS)
            assert repr(alone) == repr(in_a_range[hour])


def test_a_short_history_is_unknown_even_if_much_older_candles_are_given() -> None:
    recent = made([100] * 199)
    long_ago = [Close(close.hour - DAY * 60, close.price) for close in made([100] * 300)]
    alone, with_older = as_of_last(recent), as_of_last(long_ago + recent)
    assert alone.label is Regime.UNKNOWN
    assert repr(alone) == repr(with_older)


def test_hysteresis_is_a_trend_entered_at_2_and_left_at_one_and_a_half_percent(
    closes: list[Close],
) -> None:
    held, states = Regime.SIDEWAYS, {}
    for end in range(200, len(closes) + 1):
        diff = difference(closes[end - 200 : end], closes[end - 1].hour)
        stays = diff * 2 > 3 if held is Regime.BULL else diff * 2 < -3
        if regime_of(diff) is not Regime.SIDEWAYS or not stays:
            held = regime_of(diff)
        states[closes[end - 1].hour] = held
    hours = [close.hour for close in closes if close.hour >= FIRST]
    found = label_hours(closes, hours, SETTINGS)
    assert [label.hysteresis_label for label in found] == [states[hour] for hour in hours]
    flips = sum(a.label is not b.label for a, b in pairwise(found))
    fewer = sum(a.hysteresis_label is not b.hysteresis_label for a, b in pairwise(found))
    assert 0 < fewer < flips


def shifted_to(closes: Sequence[Close], at: int, diff: int) -> list[Close]:
    """Change the close `at` so that the window that begins with it has this difference."""
    window = [close.price for close in closes[at : at + 200]]
    wanted = 4 * sum(window[-50:], Decimal(0)) / (1 + Decimal(diff) / 100)
    changed = Close(closes[at].hour, closes[at].price + wanted - sum(window, Decimal(0)))
    return [*closes[:at], changed, *closes[at + 1 :]]


def test_inputs_from_is_the_first_close_that_can_change_the_label(closes: list[Close]) -> None:
    random = Random(2)
    hours = [close.hour for close in closes if close.hour >= FIRST]
    found = label_hours(closes, hours, SETTINGS)
    is_held = [n for n, label in enumerate(found) if label.label is not label.hysteresis_label]
    reaches = set()
    for n in [*is_held[::20], *range(0, len(found), 400)]:
        label = found[n]
        recent = [c for c in closes if label.hour - DAY * 19 < c.hour <= label.hour]
        at = [close.hour for close in recent].index(label.inputs_from)
        before = [Close(c.hour, c.price * random.randint(1, 999)) for c in recent[:at]]
        assert repr(as_of_last(before + recent[at:])) == repr(label)
        assert repr(as_of_last(recent[at:])) == repr(label)
        changed = [as_of_last(shifted_to(recent, at, diff)) for diff in (-5, 0, 5)]
        assert any(
            (other.label, other.ma_slow, other.hysteresis_label)
            != (label.label, label.ma_slow, label.hysteresis_label)
            for other in changed
        )
        reaches.add(len(recent) - at)
    assert min(reaches) == 200
    assert max(reaches) > 200, "a held trend looks back to where it was entered"


def test_without_a_label_everything_that_was_looked_for_is_an_input() -> None:
    label = as_of_last(made([100] * 30))
    assert label.inputs_from == datetime(2025, 3, 2, tzinfo=UTC) - timedelta(days=18)
