from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from trading_pipelines.candles.windows import (
    DAY,
    MINUTE,
    Interval,
    contiguous,
    day_interval,
    merge,
    windows,
)

EPOCH = datetime(2025, 9, 1, tzinfo=UTC)
minutes = st.integers(min_value=0, max_value=5000)
intervals = st.builds(
    lambda start, length: Interval(EPOCH + MINUTE * start, EPOCH + MINUTE * (start + length)),
    minutes,
    st.integers(min_value=-5, max_value=400),
)


def covered(pieces: list[Interval]) -> set[datetime]:
    return {piece.start + MINUTE * n for piece in pieces for n in range(piece.minutes)}


@given(st.lists(intervals, max_size=20))
def test_merged_intervals_cover_the_same_minutes_and_never_touch(given: list[Interval]) -> None:
    merged = merge(given)
    assert covered(merged) == covered(given)
    assert all(a.end < b.start for a, b in pairwise(merged))


@given(intervals.filter(lambda i: i.minutes > 0), st.integers(min_value=1, max_value=500))
def test_windows_cover_an_interval_exactly_once(interval: Interval, size: int) -> None:
    cut = list(windows(interval, size))
    assert sum(window.minutes for window in cut) == interval.minutes
    assert covered(cut) == covered([interval])
    assert all(window.minutes <= size for window in cut)


@given(intervals.filter(lambda i: i.minutes > 0))
def test_the_days_of_an_interval_cut_it_into_its_parts(interval: Interval) -> None:
    parts = [interval.clip(day_interval(day)) for day in interval.days()]
    assert all(part.minutes > 0 for part in parts)
    assert covered(parts) == covered([interval])


@given(st.sets(st.dates(date(2025, 1, 1), date(2025, 3, 1)), max_size=40))
def test_contiguous_stretches_hold_exactly_the_days(days: set[date]) -> None:
    stretches = list(contiguous(days))
    held = [first + DAY * n for first, last in stretches for n in range((last - first).days + 1)]
    assert sorted(days) == held
    assert all(
        b_first - a_last > timedelta(days=1) for (_, a_last), (b_first, _) in pairwise(stretches)
    )


@given(intervals, st.sampled_from(["America/New_York", "Asia/Seoul", "Asia/Kathmandu"]))
def test_moments_of_any_zone_are_of_the_same_utc_days(interval: Interval, zone: str) -> None:
    there = Interval(*(at.astimezone(ZoneInfo(zone)) for at in (interval.start, interval.end)))
    assert there == interval
    assert there.days() == interval.days()
    assert f"{there.clip(interval)}" == f"{interval}"
