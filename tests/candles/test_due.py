from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from trading_pipelines.candles.coverage import CandleCoverage, interval_to_fetch
from trading_pipelines.candles.due import CandleDueReason, DueRun, look_back, plan, reason, runs
from trading_pipelines.candles.windows import DAY, MINUTE, Interval, day_interval

SYMBOLS = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"]
NOW = datetime(2025, 9, 20, 10, 7, 30, tzinfo=UTC)
TODAY = date(2025, 9, 20)
YESTERDAY = date(2025, 9, 19)


def known(day: date = YESTERDAY, **changes: Any) -> CandleCoverage:
    whole = day_interval(day)
    complete = CandleCoverage(
        symbol="KRW-BTC",
        day=day,
        status="complete",
        fetched_until=whole.end,
        confirmed_until=whole.end,
        rows=1440,
        quiet=0,
        repaired=0,
        requests=8,
        waits=0,
        seconds=1.0,
        source="upbit",
        run_id="run",
        failures=0,
        error=None,
        retry_at=None,
        left_failed=False,
        hours_current=True,
        stored=1440,
        first=whole.start,
        last=whole.end - MINUTE,
    )
    return replace(complete, **changes)


def open_until(hour: int, minute: int, **changes: Any) -> CandleCoverage:
    until = day_interval(TODAY).start + timedelta(hours=hour, minutes=minute)
    return known(TODAY, **{"status": "partial", "fetched_until": until} | changes)


MISSING: dict[str, Any] = {
    "status": "missing",
    "fetched_until": day_interval(YESTERDAY).start,
    "confirmed_until": day_interval(YESTERDAY).start,
    "rows": 0,
    "stored": 0,
}


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (known(), None),
        (known(**MISSING), CandleDueReason.MISSING),
        (known(status="partial"), CandleDueReason.INCOMPLETE),
        (known(stored=1439), CandleDueReason.DAMAGED),
        (known(stored=1441), CandleDueReason.DAMAGED),
        (known(hours_current=False), CandleDueReason.HOURS),
        (open_until(10, 1), CandleDueReason.OPEN),
        (open_until(10, 4), CandleDueReason.OPEN),
        (open_until(10, 5), None),
        (open_until(10, 6), None),
        (open_until(10, 6, stored=1), CandleDueReason.DAMAGED),
        (open_until(0, 0, status="missing"), CandleDueReason.OPEN),
        (known(failures=1, retry_at=NOW - MINUTE), CandleDueReason.FAILED),
        (known(failures=1, retry_at=NOW + MINUTE), CandleDueReason.WAITING),
        (known(**MISSING | {"failures": 1, "retry_at": NOW + MINUTE}), CandleDueReason.WAITING),
        (known(failures=8, left_failed=True, retry_at=NOW + MINUTE), CandleDueReason.LEFT_FAILED),
        (known(failures=8, left_failed=True, retry_at=NOW - MINUTE), CandleDueReason.FAILED),
    ],
)
def test_why_a_day_is_due(day: CandleCoverage, expected: CandleDueReason | None) -> None:
    assert reason(day, NOW) is expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [(0, None), (49, None), (50, CandleDueReason.OPEN), (119, CandleDueReason.OPEN)],
)
def test_the_open_day_is_asked_for_a_minute_past_each_fifth(
    second: int, expected: CandleDueReason | None
) -> None:
    at = NOW.replace(minute=10, second=0) + timedelta(seconds=second)
    assert reason(open_until(10, 6), at) is expected


def test_at_midnight_the_day_is_completed_once_and_the_new_one_waits_for_its_first_minutes() -> (
    None
):
    midnight = day_interval(TODAY).end
    yesterday = open_until(23, 56)
    today = known(TODAY + DAY, **MISSING | {"fetched_until": midnight})
    completed = known(TODAY)
    assert reason(yesterday, midnight + MINUTE) is CandleDueReason.OPEN
    assert reason(completed, midnight + MINUTE) is None
    assert reason(yesterday, midnight + 2 * MINUTE) is CandleDueReason.INCOMPLETE
    assert reason(today, midnight + 2 * MINUTE) is None
    assert reason(today, midnight + 6 * MINUTE) is CandleDueReason.OPEN


def test_the_look_back_ends_with_the_open_day_once_it_has_a_closed_minute() -> None:
    midnight = datetime(2025, 9, 20, tzinfo=UTC)
    assert look_back(date(2024, 1, 1), 3, NOW) == [TODAY - DAY * n for n in (3, 2, 1, 0)]
    assert look_back(date(2024, 1, 1), 3, midnight)[-1] == YESTERDAY
    assert look_back(date(2024, 1, 1), 3, midnight + timedelta(seconds=80))[-1] == TODAY
    assert look_back(YESTERDAY, 30, NOW) == [YESTERDAY, TODAY]


def test_what_is_left_to_ask() -> None:
    whole, today = day_interval(YESTERDAY), day_interval(TODAY)
    closed = NOW.replace(second=0)
    noon = whole.start + timedelta(hours=12)
    ten = today.start + timedelta(hours=10)

    def ask(day: CandleCoverage, run_id: str = "another") -> Interval:
        return interval_to_fetch(day, closed, run_id)

    assert ask(known(**MISSING)) == whole
    assert ask(known()) == whole, "a complete day that is asked for again is asked for whole"
    assert ask(known(), "run").minutes == 0, "a retry of the same run does not ask again"
    assert ask(known(status="partial", confirmed_until=noon)) == Interval(noon, whole.end)
    topped_up = known(status="partial", confirmed_until=whole.start, fetched_until=whole.end)
    assert ask(topped_up) == whole, "a day topped up while it was open is asked for whole once more"
    assert ask(known(TODAY, status="partial", fetched_until=ten)) == Interval(ten, closed)


def test_the_same_days_of_neighbouring_symbols_are_one_run() -> None:
    due = {(symbol, TODAY): CandleDueReason.OPEN for symbol in SYMBOLS}
    assert runs(due, SYMBOLS) == [DueRun(tuple(SYMBOLS), TODAY, TODAY, hours_only=False)]


def test_after_a_week_of_downtime_the_open_day_goes_first_and_history_is_one_run() -> None:
    due = {(symbol, TODAY): CandleDueReason.OPEN for symbol in SYMBOLS} | {
        (symbol, TODAY - DAY * n): CandleDueReason.MISSING
        for symbol in SYMBOLS
        for n in range(1, 8)
    }
    assert runs(due, SYMBOLS) == [
        DueRun(tuple(SYMBOLS), TODAY, TODAY, hours_only=False),
        DueRun(tuple(SYMBOLS), TODAY - DAY * 7, YESTERDAY, hours_only=False),
    ]


def test_symbols_that_are_no_neighbours_and_days_with_a_gap_are_runs_of_their_own() -> None:
    due = {
        ("KRW-BTC", YESTERDAY): CandleDueReason.MISSING,
        ("KRW-ETH", YESTERDAY): CandleDueReason.INCOMPLETE,
        ("KRW-SOL", YESTERDAY): CandleDueReason.MISSING,
        ("KRW-SOL", YESTERDAY - DAY * 2): CandleDueReason.MISSING,
    }
    assert runs(due, SYMBOLS) == [
        DueRun(("KRW-BTC", "KRW-ETH"), YESTERDAY, YESTERDAY, hours_only=False),
        DueRun(("KRW-SOL",), YESTERDAY, YESTERDAY, hours_only=False),
        DueRun(("KRW-SOL",), YESTERDAY - DAY * 2, YESTERDAY - DAY * 2, hours_only=False),
    ]


def test_trouble_is_kept_apart_waits_are_left_out_and_hours_alone_are_computed_alone() -> None:
    due = {
        ("KRW-BTC", TODAY): CandleDueReason.OPEN,
        ("KRW-ETH", TODAY): CandleDueReason.FAILED,
        ("KRW-XRP", TODAY): CandleDueReason.WAITING,
        ("KRW-SOL", TODAY): CandleDueReason.LEFT_FAILED,
        ("KRW-BTC", YESTERDAY): CandleDueReason.HOURS,
        ("KRW-ETH", YESTERDAY): CandleDueReason.DAMAGED,
    }
    assert set(runs(due, SYMBOLS)) == {
        DueRun(("KRW-BTC",), TODAY, TODAY, hours_only=False),
        DueRun(("KRW-ETH",), YESTERDAY, TODAY, hours_only=False),
        DueRun(("KRW-BTC",), YESTERDAY, YESTERDAY, hours_only=True),
    }


def test_a_tick_asks_for_what_is_due_and_not_in_flight_the_open_day_before_all_else() -> None:
    days = [
        known(YESTERDAY - DAY, **MISSING),
        known(YESTERDAY, status="partial"),
        open_until(10, 1),
    ]
    everything = plan(days, set(), SYMBOLS, NOW)
    assert everything.runs == [
        DueRun(("KRW-BTC",), TODAY, TODAY, hours_only=False, is_urgent=True),
        DueRun(("KRW-BTC",), YESTERDAY - DAY, YESTERDAY, hours_only=False),
    ]
    in_flight = {("KRW-BTC", TODAY), ("KRW-BTC", YESTERDAY), ("KRW-ETH", YESTERDAY - DAY)}
    assert plan(days, in_flight, SYMBOLS, NOW).runs == [
        DueRun(("KRW-BTC",), YESTERDAY - DAY, YESTERDAY - DAY, hours_only=False)
    ]


def test_a_tick_that_asks_for_nothing_says_what_it_looked_at() -> None:
    days = [
        known(YESTERDAY - DAY * 2),
        known(YESTERDAY - DAY, failures=1, retry_at=NOW + MINUTE),
        known(YESTERDAY, failures=8, left_failed=True, retry_at=NOW + MINUTE),
        open_until(10, 1),
    ]
    nothing = plan(days, {("KRW-BTC", TODAY)}, SYMBOLS, NOW)
    assert nothing.runs == []
    assert nothing.summary == (
        "looked at 4 partitions from 2025-09-17 to 2025-09-20: "
        "3 due, 1 of them in flight, 1 waiting after a failure, 1 left failed"
    )
