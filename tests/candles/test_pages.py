"""The window arithmetic against an exchange with any pattern of quiet minutes and halts."""

from collections.abc import Generator, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading_pipelines.candles.download import pages
from trading_pipelines.candles.page import (
    PAGE_SIZE,
    Candle,
    InvalidAnswerError,
    OddRowsError,
    Page,
    RequestStats,
    validate,
)
from trading_pipelines.candles.windows import MINUTE, Interval

START = datetime(2025, 9, 1, tzinfo=UTC)
SYMBOL = "KRW-DOGE"
LENGTH = 1500


def row(minute: int, **changes: object) -> dict[str, object]:
    """Return Upbit's row of a minute, as the client parses it."""
    return {
        "market": SYMBOL,
        "candle_date_time_utc": f"{START + MINUTE * minute:%Y-%m-%dT%H:%M:%S}",
        "opening_price": Decimal("300.0"),
        "high_price": Decimal("302.0"),
        "low_price": Decimal("299.0"),
        "trade_price": Decimal("301.0"),
        "candle_acc_trade_volume": Decimal(abs(minute)) / 4,
    } | changes


class Upbit:
    """Upbit's paging rule: the newest `count` candles before an exclusive end, newest first."""

    def __init__(self, traded: set[int], count: int, open_from: int = LENGTH) -> None:
        self.traded = sorted(traded)
        self.count = count
        self.open_from = open_from

    def closed_until(self) -> datetime:
        return START + MINUTE * self.open_from

    def first_day(self, symbol: str, until: datetime, spent: RequestStats) -> datetime:  # noqa: ARG002
        raise AssertionError("there is always something before")

    def pages(self, symbol: str, windows: Iterable[Interval]) -> Generator[Page, None, None]:
        return (self.page(symbol, window) for window in windows)

    def page(self, symbol: str, window: Interval) -> Page:
        end = (window.end - START) // MINUTE
        newest = [minute for minute in self.traded if minute < end][-self.count :]
        candles = validate([row(minute) for minute in reversed(newest)], symbol, window)
        until = self.closed_until()
        return Page([c for c in candles if c.start < until], until)


@st.composite
def traded_minutes(draw: st.DrawFn) -> set[int]:
    quiet = draw(st.sets(st.integers(0, LENGTH - 1), max_size=200))
    halts = draw(st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, 900)), max_size=3))
    halted = {minute for start, length in halts for minute in range(start, start + length)}
    return set(range(LENGTH)) - quiet - halted


def fetched(exchange: Upbit, piece: Interval, size: int) -> list[Candle]:
    return [c for _, page in pages(exchange, SYMBOL, piece, size) for c in page.candles]


@given(traded_minutes(), st.integers(1, PAGE_SIZE), st.integers(0, LENGTH), st.integers(0, LENGTH))
def test_any_quiet_minutes_halts_and_page_sizes_give_each_candle_exactly_once(
    traded: set[int], size: int, start: int, end: int
) -> None:
    piece = Interval(START + MINUTE * start, START + MINUTE * end)
    candles = fetched(Upbit(traded, size), piece, size)
    assert [(c.start - START) // MINUTE for c in candles] == [
        minute for minute in sorted(traded) if start <= minute < end
    ]


@given(traded_minutes(), st.integers(0, LENGTH))
def test_minutes_that_may_still_change_are_left_for_later(traded: set[int], open_from: int) -> None:
    exchange = Upbit(traded, PAGE_SIZE, open_from)
    piece = Interval(START, START + MINUTE * LENGTH)
    stretches = [stretch for stretch, _ in pages(exchange, SYMBOL, piece)]
    assert sum(stretch.minutes for stretch in stretches) == open_from
    assert len(fetched(exchange, piece, PAGE_SIZE)) == len({m for m in traded if m < open_from})


WINDOW = Interval(START, START + MINUTE * 3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no list"),
        ("<html>maintenance</html>", "no list"),
        ({"error": {"name": 500}}, "no list"),
        ([None], "no object"),
        ([row(0, opening_price=None)], "missing or broken"),
        ([row(0, trade_price=float("nan"))], "missing or broken"),
        ([row(0, trade_price="300")], "missing or broken"),
        ([row(0, trade_price=True)], "missing or broken"),
        ([{k: v for k, v in row(0).items() if k != "low_price"}], "missing or broken"),
        ([row(0, candle_date_time_utc="2025-09-01 00:00:00")], "missing or broken"),
        ([row(0, candle_date_time_utc=None)], "missing or broken"),
        ([row(0, candle_date_time_utc="2025-09-01T00:00:30")], "on the minute"),
        ([row(0, market="KRW-BTC")], "market 'KRW-BTC'"),
        ([row(0, high_price=Decimal("300.5"))], "contradict"),
        ([row(0, low_price=Decimal("300.5"))], "contradict"),
        ([row(0, low_price=0)], "contradict"),
        ([row(0, high_price=10**12)], "contradict"),
        ([row(0, candle_acc_trade_volume=-1)], "volume"),
        ([row(0), row(1)], "out of order"),
        ([row(1), row(1, trade_price=Decimal(300))], "doubled"),
        ([row(1), row(1, market=None)], "doubled"),
        ([row(2), None, row(0)], "no object"),
        ([row(2), row(-9), row(0)], "out of order"),
        ([row(2), row(9), row(0)], "out of order"),
        ([row(0, market=None)], "without a market"),
        ([row(0, candle_acc_trade_volume=10**12)], "volume"),
        ([row(0, candle_acc_trade_volume=Decimal("999999999999.999999999"))], "volume"),
        ([row(0, candle_acc_trade_volume=Decimal("1e999999"))], "volume"),
        ([row(0, low_price=Decimal("1e-9"))], "don't fit"),
        ([row(3)], "at or after the end"),
        ([row(n) for n in range(300, 99, -1)], "201 rows"),
    ],
)
def test_an_answer_with_anything_wrong_is_not_believed_at_all(answer: object, reason: str) -> None:
    with pytest.raises(InvalidAnswerError, match=reason):
        validate(answer, SYMBOL, WINDOW)


def test_what_lies_before_the_window_is_not_judged() -> None:
    before = [row(-5, high_price=1), {}, None, row(-6), row(-6), row(-3)]
    assert validate([row(0), *before], SYMBOL, WINDOW) == validate([row(0)], SYMBOL, WINDOW)
    assert validate([row(-5, high_price=1)], SYMBOL, WINDOW) == []


def test_the_same_row_twice_is_one() -> None:
    twice = [row(2), row(2), row(1), row(0), row(1)]
    assert [c.start for c in validate(twice, SYMBOL, WINDOW)] == [
        START + MINUTE * n for n in (0, 1, 2)
    ]


def test_a_few_odd_rows_leave_the_others_and_are_told_with_their_minutes() -> None:
    window = Interval(START, START + MINUTE * 20)
    answer = [row(n) for n in reversed(range(20))]
    answer[4:6] = [{"market": SYMBOL}, row(14, low_price=0)]
    with pytest.raises(OddRowsError, match="and 1 more") as odd:
        validate(answer, SYMBOL, window)
    assert [row.start for row in odd.value.rows] == [START + MINUTE * n for n in (15, 14)]
    assert [candle.start for candle in odd.value.candles] == [
        START + MINUTE * n for n in range(20) if n not in (14, 15)
    ]


@pytest.mark.parametrize("rows", [[None] * 30, [row(n, low_price=0) for n in range(29, 18, -1)]])
def test_many_odd_rows_are_an_odd_page(rows: list[object]) -> None:
    with pytest.raises(InvalidAnswerError) as odd:
        validate(rows, SYMBOL, Interval(START, START + MINUTE * 30))
    assert not isinstance(odd.value, OddRowsError)


def test_rows_from_before_the_window_are_dropped_and_digits_kept() -> None:
    (candle,) = validate(
        [row(1, candle_acc_trade_volume=Decimal("98765432.12345678")), row(-5)], SYMBOL, WINDOW
    )
    assert candle.start == START + timedelta(minutes=1)
    assert str(candle.volume) == "98765432.12345678"
