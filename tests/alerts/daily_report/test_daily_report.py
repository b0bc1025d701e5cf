"""The daily report, by hand and against a reference that sells one unit at a time."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trading_pipelines.alerts.daily_report import text as report_text
from trading_pipelines.alerts.daily_report.figures import (
    CandleFigures,
    DailyReport,
    compute_report,
    report_window,
    shown_figures,
)
from trading_pipelines.alerts.daily_report.text import body
from trading_pipelines.korean_time import KST

DAY = date(2026, 11, 23)
START, END = datetime(2026, 11, 22, 15, tzinfo=UTC), datetime(2026, 11, 23, 15, tzinfo=UTC)
NOW = END + timedelta(minutes=5)
MICROSECOND, MINUTE, HOUR = (
    timedelta(**{unit: 1}) for unit in ("microseconds", "minutes", "hours")
)
BTC, ETH, XRP = "KRW-BTC", "KRW-ETH", "KRW-XRP"
UTC_DAYS = [date(2026, 11, 22), date(2026, 11, 23)]


def insert(connection: psycopg.Connection, table: str, **values: Any) -> None:
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(values.values()))


def order(
    connection: psycopg.Connection,
    text: str,
    at: datetime | None = START,
    fee: str | None = "0",
    *,
    status: str = "FILLED",
    created_at: datetime | None = None,
) -> None:
    """Store an order as in `BUY 2 KRW-BTC at 100`."""
    side, quantity, symbol, _, price = text.split()
    insert(
        connection,
        "trading_history",
        symbol=symbol, side=side, order_type="LIMIT", price=Decimal(price),
        quantity=Decimal(quantity), fee=None if fee is None else Decimal(fee), status=status,
        created_at=created_at, executed_at=at,
    )  # fmt: skip


def report_of(
    connection: psycopg.Connection, day: date = DAY, symbols: Sequence[str] = (BTC,)
) -> DailyReport:
    return compute_report(connection, day, symbols)


def these(*values: object) -> tuple[object, ...]:
    """Return the values, of which mypy would not compare a Decimal with an int in a tuple."""
    return values


def summary(report: DailyReport) -> str:
    text = body(report, NOW)["summary"]
    assert isinstance(text, str)
    return text


def head(report: DailyReport) -> str:
    """The summary's lines before those of the symbols."""
    return "\n".join(line for line in summary(report).splitlines() if not line.startswith("KRW-"))


def line(report: DailyReport, symbol: str = BTC) -> str:
    (found,) = [one for one in summary(report).splitlines() if one.startswith(f"{symbol}: ")]
    return found


# Trading


def test_the_oldest_buys_are_sold_first_over_days(connection: psycopg.Connection) -> None:
    order(connection, "BUY 1 KRW-BTC at 100", START - timedelta(days=7))
    order(connection, "BUY 1 KRW-BTC at 200", START - timedelta(days=2))
    order(connection, "SELL 1 KRW-BTC at 250", START - timedelta(days=1))
    order(connection, "BUY 1 KRW-BTC at 400", START + HOUR)
    order(connection, "SELL 2 KRW-BTC at 300", START + 2 * HOUR)
    before, today = report_of(connection, date(2026, 11, 22)), report_of(connection)
    assert these(before.pnl, before.trades, before.round_trips, before.wins) == (150, 1, 1, 1)
    assert these(today.pnl, today.trades, today.round_trips, today.wins) == (0, 2, 1, 0)
    assert report_of(connection, date(2026, 11, 24)).trades == 0


def test_parts_of_an_order_have_their_part_of_its_fee(connection: psycopg.Connection) -> None:
    order(connection, "BUY 4 KRW-BTC at 100", START - HOUR, fee="8")  # 102 each
    order(connection, "BUY 4 KRW-BTC at 110", START - MINUTE, fee="4")  # 111 each
    order(connection, "SELL 3 KRW-BTC at 120", START + HOUR, fee="6")  # 118 each
    order(connection, "SELL 2 KRW-BTC at 120", START + 2 * HOUR, fee="1")  # 119.5 each
    order(connection, "SELL 1 KRW-BTC at 100", END, fee="1")
    found = report_of(connection)
    assert found.trading.symbols[BTC].trips == [3 * (118 - 102), Decimal("119.5") * 2 - 102 - 111]
    assert found.pnl == 48 + 26
    assert found.fees == 7, "the fees of the day's own orders"
    assert report_of(connection, date(2026, 11, 24)).pnl == 99 - 111
    assert report_of(connection, date(2026, 11, 22)).fees == 12


def test_a_day_begins_and_ends_at_midnight_in_seoul(connection: psycopg.Connection) -> None:
    assert (report_window(DAY).start, report_window(DAY).end) == (START, END)
    for at in (START - MICROSECOND, START, END - MICROSECOND, END, END + MICROSECOND):
        order(connection, "BUY 1 KRW-BTC at 100", at)
    counts = [report_of(connection, date(2026, 11, day)).trades for day in (21, 22, 23, 24, 25)]
    assert counts == [0, 1, 2, 2, 0]


def test_a_day_without_trades_says_so_and_has_no_rate_and_no_fall(
    connection: psycopg.Connection,
) -> None:
    found = report_of(connection)
    assert these(found.pnl, found.trades, found.win_rate, found.mdd) == (0, 0, None, None)
    told = body(found, NOW)
    assert (told["win_rate"], told["mdd"]) == (None, None)
    assert (shown_figures(found)["win_rate"], shown_figures(found)["mdd"]) == (None, None)
    assert summary(found).startswith(
        "체결 없음\n청산 없음: 승률과 MDD도 없음\nAI 판단 없음\n알림 없음\n"
    )
    assert "주의" not in summary(found)


def test_buys_alone_realise_nothing(connection: psycopg.Connection) -> None:
    order(connection, "BUY 1 KRW-BTC at 100", fee="0.05")
    found = report_of(connection)
    assert these(found.pnl, found.trades, found.round_trips) == (0, 1, 0)
    assert (found.win_rate, found.mdd, found.fees) == (None, None, Decimal("0.05"))
    assert head(found).startswith("체결 1건, 실현 손익 +0 KRW, 수수료 0.05 KRW\n청산 없음")
    assert "체결 1건, 수수료 0.05 KRW | " in line(found)


def test_what_was_sold_without_a_buy_on_record_is_left_out_and_said(
    connection: psycopg.Connection,
) -> None:
    order(connection, "BUY 1 KRW-BTC at 100", START - HOUR)
    order(connection, "SELL 4 KRW-BTC at 150", START, fee="4")  # one of them was bought
    order(connection, "SELL 0.5 KRW-BTC at 150", START + MINUTE, fee="2")  # none was
    order(connection, "BUY 10 KRW-BTC at 1", START + HOUR)  # too late for either
    found = report_of(connection)
    assert found.pnl == 150 - 1 - 100
    assert found.unmatched == {BTC: Decimal("3.5")}
    assert these(found.trades, found.round_trips, found.win_rate, found.fees) == (3, 1, 100, 6)
    assert "주의: 매수 기록이 없는 매도 1종목, 손익에서 제외" in head(found)
    assert "매수 기록 없는 매도 3.5개 제외" in line(found)
    order(connection, "SELL 10 KRW-BTC at 2", END)
    assert report_of(connection, date(2026, 11, 24)).pnl == 10, "it was not used up before"


def test_a_sell_without_any_history_is_no_round_trip(connection: psycopg.Connection) -> None:
    order(connection, "SELL 20000 KRW-XRP at 150")
    found = report_of(connection)
    assert these(found.pnl, found.trades, found.round_trips) == (0, 1, 0)
    assert (found.win_rate, found.mdd) == (None, None)
    assert line(found, XRP).endswith("체결 1건, 수수료 0 KRW, 매수 기록 없는 매도 20,000개 제외")


def test_an_order_without_an_execution_time_has_that_of_its_creation(
    connection: psycopg.Connection,
) -> None:
    order(connection, "BUY 1 KRW-BTC at 100", None, created_at=START)
    order(connection, "BUY 1 KRW-BTC at 100", END, created_at=START)
    order(connection, "SELL 1 KRW-BTC at 110", None, created_at=END - MICROSECOND)
    found = report_of(connection)
    assert these(found.trades, found.pnl, found.trading.undated) == (2, 10, 0)


def test_an_order_without_any_time_is_left_out_and_said(connection: psycopg.Connection) -> None:
    order(connection, "BUY 1 KRW-BTC at 1", None)
    order(connection, "BUY 1 KRW-BTC at 1", None, status="CANCELLED")
    order(connection, "SELL 1 KRW-BTC at 100", START)
    found = report_of(connection)
    assert these(found.trades, found.pnl, found.unmatched) == (1, 0, {BTC: 1})
    assert (found.trading.undated, found.trading.unusable) == (1, 0)
    assert "주의: 시각이 없는 체결 주문 1건(전체 기간), 모두 제외" in head(found)


def test_an_unknown_fee_is_none_and_said_also_of_an_earlier_buy(
    connection: psycopg.Connection,
) -> None:
    order(connection, "BUY 2 KRW-BTC at 100", START - HOUR, fee=None)
    order(connection, "BUY 1 KRW-BTC at 100", START - MINUTE, fee=None)  # not sold today
    order(connection, "SELL 1 KRW-BTC at 110", START, fee="1")
    order(connection, "SELL 1 KRW-BTC at 110", START + HOUR, fee=None)
    order(connection, "BUY 1 KRW-BTC at 90", START + 2 * HOUR, fee="NaN")
    found = report_of(connection)
    assert these(found.pnl, found.fees, found.trading.fees_unknown) == (19, 1, 3)
    assert "주의: 수수료 기록이 없는 주문 3건, 0원으로 계산" in head(found)


@pytest.mark.parametrize("status", ["CANCELLED", "PENDING"])
def test_what_was_not_filled_was_not_traded(connection: psycopg.Connection, status: str) -> None:
    order(connection, "BUY 1 KRW-BTC at 100", START - HOUR)
    order(connection, "BUY 1 KRW-BTC at 1", START - 2 * HOUR, status=status)
    order(connection, "SELL 1 KRW-BTC at 900", START, status=status)
    order(connection, "SELL 1 KRW-BTC at 130", START + HOUR)
    found = report_of(connection)
    assert these(found.trades, found.pnl, found.unmatched) == (1, 30, {})


@pytest.mark.parametrize(
    "text",
    [
        "BUY 0 KRW-BTC at 100", "BUY -1 KRW-BTC at 100", "BUY NaN KRW-BTC at 100",
        "BUY 1 KRW-BTC at 0", "BUY 1 KRW-BTC at NaN", "bid 1 KRW-BTC at 100",
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_is_left_out_and_said(
    connection: psycopg.Connection, text: str
) -> None:
    order(connection, text, START - HOUR)
    order(connection, text, END)  # not before its day
    order(connection, "BUY 1 KRW-BTC at 90", START)
    order(connection, "SELL 1 KRW-BTC at 100", START + HOUR)
    found = report_of(connection)
    assert these(found.pnl, found.trades, found.trading.unusable) == (10, 2, 1)
    assert "구분·가격·수량이 잘못된 체결 주문 1건" in head(found)


def test_of_the_same_moment_a_buy_comes_before_a_sell(connection: psycopg.Connection) -> None:
    order(connection, "SELL 1 KRW-BTC at 110", created_at=START - HOUR)
    order(connection, "BUY 1 KRW-BTC at 100", created_at=START)
    found = report_of(connection)
    assert these(found.pnl, found.unmatched) == (10, {})


def test_of_buys_of_the_same_moment_the_one_created_first_is_sold_first(
    connection: psycopg.Connection,
) -> None:
    for price in (19, 18, 17, 16, 15, 14, 13, 12, 11):
        order(connection, f"BUY 1 KRW-BTC at {price}", created_at=START + price * MINUTE)
    order(connection, "SELL 2 KRW-BTC at 20", START + HOUR)
    assert report_of(connection).pnl == 9 + 8


def close(connection: psycopg.Connection, symbol: str, at: datetime, pnl: int) -> None:
    """Realise `pnl` at a moment of the day."""
    order(connection, f"BUY 1 {symbol} at 1000", at - timedelta(days=1))
    order(connection, f"SELL 1 {symbol} at {1000 + pnl}", at)


@pytest.mark.parametrize(
    ("trips", "mdd", "win_rate"),
    [
        ([-30], 30, 0),  # the start of the day is a peak of 0
        ([50], 0, 100),
        ([50, 0, 60], 0, 200 / 3),  # nothing won is no win
        ([100, -40, 20, -70, 200, -80, -5], 90, 300 / 7),  # 100 → 10; 210 → 125 is less
        ([-10, 30, -25, -10, 5], 35, 40),  # 20 → -15
    ],
)
def test_the_fall_from_the_peak_and_the_win_rate_are_as_by_hand(
    connection: psycopg.Connection, trips: list[int], mdd: int, win_rate: float
) -> None:
    close(connection, BTC, START - MINUTE, -500)  # another day's
    for n, pnl in enumerate(trips):
        close(connection, (BTC, ETH)[n % 2], START + n * HOUR, pnl)
    found = report_of(connection)
    assert these(found.mdd, found.pnl, found.round_trips) == (mdd, sum(trips), len(trips))
    assert found.win_rate == pytest.approx(win_rate)


def test_a_fee_makes_a_win_a_loss(connection: psycopg.Connection) -> None:
    order(connection, "BUY 1 KRW-BTC at 100", fee="0.4")
    order(connection, "SELL 1 KRW-BTC at 101", START + HOUR, fee="0.7")
    found = report_of(connection)
    assert (found.pnl, found.mdd, found.win_rate) == (Decimal("-0.1"), Decimal("0.1"), 0)


def test_symbols_that_are_not_in_the_settings_are_the_bots_money_too(
    connection: psycopg.Connection,
) -> None:
    close(connection, "KRW-PEPE", START, 7)
    close(connection, "KRW-ADA", START, 0)
    close(connection, BTC, START + HOUR, -3)
    found = report_of(connection, symbols=[ETH, BTC])
    assert found.pnl == 4
    assert line(found, "KRW-PEPE") == (
        "KRW-PEPE: 체결 1건, 손익 +7 KRW, 청산 1건 중 이익 1건, 수수료 0 KRW"
    )
    told = [one.split(":")[0] for one in summary(found).splitlines()[-4:]]
    assert told == [BTC, "KRW-ADA", "KRW-PEPE", ETH], "those of the settings first, the idle last"


def test_an_older_database_of_the_bots_is_enough(connection: psycopg.Connection) -> None:
    connection.execute(
        "ALTER TABLE trading_history DROP COLUMN regime, DROP COLUMN high_water_mark, "
        "DROP COLUMN exit_reason"
    )
    connection.execute(
        "ALTER TABLE agent_decisions DROP COLUMN price_at_decision, DROP COLUMN regime"
    )
    close(connection, BTC, START, 12)
    assert report_of(connection).pnl == 12


class Drawn(NamedTuple):
    """An order in quarters of a coin, some minutes after the one before."""

    symbol: str
    side: str
    price: int
    quarters: int
    fee: Decimal | None
    minutes: int


DRAWN = st.builds(
    Drawn,
    st.sampled_from([BTC, ETH]),
    st.sampled_from(["BUY", "SELL"]),
    st.integers(1, 20),
    st.integers(1, 12),
    st.none() | st.decimals(0, 3, places=2),
    st.integers(0, 18 * 60),
)
DAYS = [DAY + timedelta(days=n) for n in range(9)]
DATABASE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def store(connection: psycopg.Connection, drawn: Sequence[Drawn]) -> dict[date, list[Drawn]]:
    """Store the orders in place of all others; return them by KST day, buys first of a minute."""
    connection.execute("TRUNCATE trading_history CASCADE")
    timed, at = [], START
    for n, one in enumerate(drawn):
        at += timedelta(minutes=one.minutes)
        timed.append((at, one))
        text = f"{one.side} {one.quarters / 4} {one.symbol} at {one.price}"
        fee = None if one.fee is None else str(one.fee)
        # Of the same moment and side, the one created first comes first.
        order(connection, text, at, fee, created_at=START + n * MICROSECOND)
    days: dict[date, list[Drawn]] = {day: [] for day in DAYS}
    for moment, one in sorted(timed, key=lambda pair: (pair[0], pair[1].side)):
        days[moment.astimezone(KST).date()].append(one)
    return days


def all_closed(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Sell no more than is there, a minute after it was bought, and in the end what is left."""
    held: defaultdict[str, int] = defaultdict(int)
    kept = []
    for one in drawn:
        wanted = one.quarters if one.side == "BUY" else min(one.quarters, held[one.symbol])
        if wanted:
            held[one.symbol] += wanted if one.side == "BUY" else -wanted
            kept.append(one._replace(quarters=wanted, minutes=one.minutes + 1))
    rest = [Drawn(s, "SELL", 9, n, Decimal("0.07"), 1) for s, n in held.items() if n]
    return kept + rest


@DATABASE
@given(st.lists(DRAWN, max_size=10))
def test_once_all_is_sold_the_days_add_up_to_what_came_in_less_what_went_out(
    connection: psycopg.Connection, drawn: list[Drawn]
) -> None:
    drawn = all_closed(drawn)
    days = store(connection, drawn)
    money = sum(
        (
            Decimal(one.price * one.quarters) / 4 * (1 if one.side == "SELL" else -1)
            - (one.fee or 0)
            for one in drawn
        ),
        Decimal(),
    )
    reports = [report_of(connection, day) for day in days]
    assert abs(sum((one.pnl for one in reports), Decimal()) - money) < Decimal("1e-18")
    assert sum(one.fees for one in reports) == sum(one.fee or 0 for one in drawn)
    assert sum(one.trades for one in reports) == len(drawn)
    assert all(one.unmatched == {} for one in reports)


@DATABASE
@given(st.lists(DRAWN, min_size=2, max_size=10))
def test_it_is_as_if_a_quarter_of_a_coin_were_sold_at_a_time(
    connection: psycopg.Connection, drawn: list[Drawn]
) -> None:
    quarters: dict[str, list[Fraction]] = {BTC: [], ETH: []}
    for day, orders in store(connection, drawn).items():
        trips, unmatched = [], dict.fromkeys(quarters, 0)
        for one in orders:
            fee, price = Fraction(one.fee or 0) / one.quarters, Fraction(one.price, 4)
            trip = []
            for _ in range(one.quarters):
                if one.side == "BUY":
                    quarters[one.symbol].append(price + fee)
                elif quarters[one.symbol]:
                    trip.append(price - fee - quarters[one.symbol].pop(0))
                else:
                    unmatched[one.symbol] += 1
            if trip:
                trips.append(sum(trip))
        found = report_of(connection, day)
        assert float(found.pnl) == pytest.approx(float(sum(trips)), abs=1e-12)
        assert (found.round_trips, found.wins) == (len(trips), sum(trip > 0 for trip in trips))
        assert found.unmatched == {s: Decimal(n) / 4 for s, n in unmatched.items() if n}
        falls = [-sum(trips[n:m]) for n in range(len(trips)) for m in range(n, len(trips) + 1)]
        if found.mdd is None:
            assert not trips
        else:
            assert float(found.mdd) == pytest.approx(float(max(falls)), abs=1e-12)


# Signals


def label(connection: psycopg.Connection, symbol: str, hour: datetime, regime: str) -> None:
    insert(
        connection,
        "trading_pipelines.regime_labels",
        symbol=symbol, hour=hour, label=regime, candles=200, empty_hours=0, hysteresis_label=regime,
    )  # fmt: skip


def forecast(
    connection: psycopg.Connection,
    as_of: datetime,
    volatility: float | None,
    *,
    symbol: str = BTC,
    horizon: int = 24,
    status: str = "OK",
    high: bool | None = False,
) -> None:
    insert(
        connection,
        "trading_pipelines.volatility_forecast",
        symbol=symbol, as_of=as_of, horizon=horizon, valid_until=as_of + horizon * HOUR,
        model_day=as_of.date(), status=status, annualized_volatility=volatility,
        is_high_volatility=high,
    )  # fmt: skip


def test_regimes_are_hours_of_the_day_by_label_and_hours_without_one_are_said(
    connection: psycopg.Connection,
) -> None:
    for n in range(-3, 27):
        label(connection, BTC, START + n * HOUR, "BULL" if n < 0 or n >= 24 else "BEAR")
        if n < 5:
            label(connection, ETH, START + n * HOUR, "SIDEWAYS" if n < 3 else "UNKNOWN")
        label(connection, "KRW-PEPE", START + n * HOUR, "BULL")
    found = report_of(connection, symbols=[BTC, ETH, XRP])
    assert found.regimes == {BTC: {"BEAR": 24}, ETH: {"SIDEWAYS": 3, "UNKNOWN": 2}, XRP: {}}
    assert "| 레짐 BEAR 24시간 |" in line(found)
    assert "| 레짐 SIDEWAYS 3시간, UNKNOWN 2시간, 라벨 없음 19시간 |" in line(found, ETH)
    assert "| 레짐 라벨 없음 24시간 |" in line(found, XRP)


def test_the_volatility_is_the_newest_forecast_at_the_days_end_of_the_longest_horizon(
    connection: psycopg.Connection,
) -> None:
    forecast(connection, END - HOUR, 0.9)
    forecast(connection, END, 0.123, horizon=1)
    forecast(connection, END, 0.456, high=True)
    forecast(connection, END + HOUR, 0.9)
    forecast(connection, END, 0.789, symbol=ETH, status="FALLBACK", high=None)
    found = report_of(connection, symbols=[BTC, ETH, XRP])
    assert "| 변동성 연 46% (높음, OK)" in line(found)
    assert "| 변동성 연 79% (높은지 모름, FALLBACK)" in line(found, ETH)
    assert "| 변동성 예측 없음" in line(found, XRP)


def test_an_expired_forecast_is_said_to_be_one(connection: psycopg.Connection) -> None:
    forecast(connection, END - 24 * HOUR, 0.5)
    forecast(connection, END - 24 * HOUR + MINUTE, 0.5, symbol=ETH)
    found = report_of(connection, symbols=[BTC, ETH])
    assert "변동성 연 50% (높지 않음, OK, 2026-11-24 00:00 KST 만료)" in line(found)
    assert "변동성 연 50% (높지 않음, OK)" in line(found, ETH)


@pytest.mark.parametrize("volatility", [None, float("nan")])
def test_a_forecast_without_a_number_is_none_and_says_why(
    connection: psycopg.Connection, volatility: float | None
) -> None:
    forecast(connection, END - HOUR, 0.5)
    forecast(connection, END, volatility, status="DEGENERATE", high=None)
    found = report_of(connection)
    assert "변동성 값 없음 (DEGENERATE)" in line(found)
    assert "변동성 연" not in summary(found)


# Candles


def cover(
    connection: psycopg.Connection,
    day: date,
    until: datetime,
    *,
    status: str = "complete",
    rows: int = 0,
    failures: int = 0,
    symbol: str = BTC,
    interval: str = "1m",
) -> None:
    insert(
        connection,
        "trading_pipelines.candle_coverage",
        symbol=symbol, interval=interval, day=day, status=status, fetched_until=until,
        confirmed_until=until, rows=rows, failures=failures,
    )  # fmt: skip


def minutes(connection: psycopg.Connection, first: datetime, end: datetime) -> int:
    """Store a candle for each minute of the stretch."""
    inserted = connection.execute(
        "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, low_price, "
        "close_price, volume) SELECT %s, '1m', at, 1, 1, 1, 1, 1 "
        "FROM generate_series(%s, %s - interval '1 minute', interval '1 minute') AS at",
        [BTC, first, end],
    )
    return inserted.rowcount


MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)


def test_candles_are_counted_in_the_day_and_quiet_minutes_are_no_holes(
    connection: psycopg.Connection,
) -> None:
    before = minutes(connection, START - 2 * HOUR, MIDNIGHT - 10 * MINUTE)
    after = minutes(connection, MIDNIGHT, END + 2 * HOUR)
    cover(connection, UTC_DAYS[0], MIDNIGHT, rows=before)
    cover(connection, UTC_DAYS[1], END + 2 * HOUR, status="partial", rows=after)
    cover(connection, UTC_DAYS[1], MIDNIGHT, symbol=ETH, rows=0, status="failed", interval="1h")
    found = report_of(connection)
    assert found.candles == {BTC: CandleFigures(stored=1430, due=1440)}
    assert found.candles[BTC].quiet == 10
    assert "캔들 1,430/1,440분, 거래 없는 분 10, 빠진 분 0" in head(found)
    assert "캔들" not in line(found)
    assert "수집" not in line(found)


def test_minutes_that_were_never_asked_for_are_holes_whoever_has_stored_some_of_them(
    connection: psycopg.Connection,
) -> None:
    first = minutes(connection, START, START + 60 * MINUTE)
    cover(connection, UTC_DAYS[0], START + 60 * MINUTE, status="failed", rows=first, failures=2)
    minutes(connection, START + 2 * HOUR, START + 3 * HOUR)  # the bot's own
    cover(connection, UTC_DAYS[1], MIDNIGHT, status="failed", failures=1)
    found = report_of(connection, symbols=[BTC, ETH])
    assert found.candles == {
        BTC: CandleFigures(
            stored=60, due=1440, holes=480 + 900, failed=UTC_DAYS, incomplete=UTC_DAYS[:1]
        ),
        ETH: CandleFigures(stored=0, due=1440, holes=1440, incomplete=UTC_DAYS[:1]),
    }
    assert found.candles[BTC].quiet == 0
    assert "캔들 60/2,880분, 거래 없는 분 0, 빠진 분 2,820" in head(found)
    assert line(found).endswith(
        "캔들 60/1,440분, 빠진 분 1,380 | 수집 실패 2026-11-22, 2026-11-23 (UTC) "
        "| 수집 미완료 2026-11-22 (UTC)"
    )
    assert line(found, ETH).endswith("빠진 분 1,440 | 수집 미완료 2026-11-22 (UTC)")


def test_a_failure_after_the_days_minutes_were_there_is_not_the_days(
    connection: psycopg.Connection,
) -> None:
    cover(connection, UTC_DAYS[0], MIDNIGHT, failures=1)
    cover(connection, UTC_DAYS[1], END, status="failed", failures=1)
    assert report_of(connection).candles == {BTC: CandleFigures(stored=0, due=1440)}


def test_candles_that_have_come_since_make_up_for_none(connection: psycopg.Connection) -> None:
    minutes(connection, START, MIDNIGHT)
    cover(connection, UTC_DAYS[0], MIDNIGHT, rows=500)
    cover(connection, UTC_DAYS[1], END, status="partial", rows=40)
    assert report_of(connection).candles == {BTC: CandleFigures(stored=540, due=1440, gone=40)}


def test_candles_that_are_gone_are_said_and_not_quiet(connection: psycopg.Connection) -> None:
    cover(connection, UTC_DAYS[0], MIDNIGHT, rows=minutes(connection, START, MIDNIGHT))
    cover(connection, UTC_DAYS[1], END, status="partial", rows=minutes(connection, MIDNIGHT, END))
    connection.execute("DELETE FROM market_data WHERE timestamp < %s", [START + 7 * MINUTE])
    found = report_of(connection)
    assert found.candles == {BTC: CandleFigures(stored=1433, due=1440, gone=7)}
    assert found.candles[BTC].quiet == 0
    assert line(found).endswith("| 저장 후 없어진 캔들 7")
    assert shown_figures(found)["candle_holes"] == 7


# Decisions and alerts


def decide(connection: psycopg.Connection, decision: str, at: datetime | None) -> None:
    insert(
        connection,
        "agent_decisions",
        symbol=BTC, strategy_name="momentum", decision=decision, created_at=at,
    )  # fmt: skip


def test_decisions_of_the_day_are_counted(connection: psycopg.Connection) -> None:
    for at in (START - MICROSECOND, START, END - MICROSECOND, END):
        decide(connection, "REJECT", at)
    decide(connection, "SAFE", START)
    found = report_of(connection)
    assert (found.decisions, found.undated_decisions) == ({"REJECT": 2, "SAFE": 1}, 0)
    assert "AI 판단: CONFIRM 0건, REJECT 2건, SAFE 1건\n" in summary(found)
    assert (shown_figures(found)["confirms"], shown_figures(found)["rejects"]) == (0, 2)


def test_decisions_without_a_time_are_of_no_day_and_said(connection: psycopg.Connection) -> None:
    decide(connection, "REJECT", None)
    found = report_of(connection)
    assert (found.decisions, found.undated_decisions) == ({}, 1)
    assert "AI 판단: CONFIRM 0건, REJECT 0건, 시각 없음 1건(전체 기간, 제외)\n" in summary(found)


def alert(
    connection: psycopg.Connection,
    kind: str,
    state: str,
    at: datetime | None,
    *,
    source: str = "agent_decisions",
    digest_id: int | None = None,
    **values: Any,
) -> int:
    (number,) = connection.execute(
        "SELECT count(*) FROM trading_pipelines.alert_deliveries"
    ).fetchone() or (0,)
    insert(
        connection,
        "trading_pipelines.alert_deliveries",
        kind=kind, source=source, source_id=str(number), channel=kind, state=state, body="{}",
        occurred_at=at, digest_id=digest_id, **values,
    )  # fmt: skip
    (stored,) = connection.execute(
        "SELECT max(id) FROM trading_pipelines.alert_deliveries"
    ).fetchone() or (0,)
    assert isinstance(stored, int)
    return stored


def test_alerts_are_those_that_occurred_in_the_day_by_what_became_of_them(
    connection: psycopg.Connection,
) -> None:
    for at in (START - MICROSECOND, START, END - MICROSECOND, END):
        alert(connection, "ai-reject", "delivered", at, delivered_at=END + HOUR)
    alert(connection, "trade", "delivered", START)
    alert(connection, "trade", "dead", START)
    alert(connection, "risk", "dead", START)
    alert(connection, "risk", "dead", START)
    alert(connection, "trade", "pending", START)
    alert(connection, "trade", "retrying", START)
    alert(connection, "trade", "skipped", START)
    found = report_of(connection)
    assert "알림: 전달 3건, 실패 3건 (risk 2, trade 1), 대기 2건, 보내지 않음 1건\n" in summary(
        found
    )
    shown = shown_figures(found)
    assert [shown[f"alerts_{name}"] for name in ("delivered", "failed", "waiting")] == [3, 3, 2]


def test_a_digested_alert_is_delivered_once_its_digest_is(connection: psycopg.Connection) -> None:
    digest = alert(connection, "ai-reject", "retrying", START, source="digest")
    for _ in range(2):
        alert(connection, "ai-reject", "digested", START, digest_id=digest)
    assert "알림: 전달 0건, 실패 0건, 대기 2건\n" in summary(report_of(connection))
    connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = 'delivered' WHERE id = %s", [digest]
    )
    assert "알림: 전달 2건, 실패 0건\n" in summary(report_of(connection))


def test_an_alert_that_has_no_time_is_of_the_day_it_was_noted(
    connection: psycopg.Connection,
) -> None:
    alert(connection, "trade", "dead", None, created_at=START)
    alert(connection, "trade", "dead", None, created_at=END)
    assert report_of(connection).alerts == {("trade", "dead"): 1}


# The whole


def fill(connection: psycopg.Connection) -> None:
    """Store a day with something of everything."""
    order(connection, "BUY 0.5 KRW-BTC at 100000000", START - HOUR, fee="25000")
    order(connection, "SELL 0.5 KRW-BTC at 102469135.79", START + HOUR, fee="25617.28")
    order(connection, "SELL 3 KRW-ETH at 4000000", START + HOUR, fee=None)
    order(connection, "BUY 3 KRW-ETH at 4000000", None)
    for n in range(24):
        label(connection, BTC, START + n * HOUR, "BULL" if n < 20 else "SIDEWAYS")
    forecast(connection, END, 0.27)
    stored = minutes(connection, START, MIDNIGHT)
    cover(connection, UTC_DAYS[0], MIDNIGHT, rows=stored)
    cover(connection, UTC_DAYS[1], END, status="partial", rows=minutes(connection, MIDNIGHT, END))
    decide(connection, "REJECT", START)
    decide(connection, "CONFIRM", START)
    alert(connection, "ai-reject", "delivered", START)


WHOLE_SUMMARY = """\
체결 2건, 실현 손익 +1,183,950.62 KRW, 수수료 25,617.28 KRW
청산 1건, 이익 1건 (승률 100.0%), MDD 0 KRW
주의: 매수 기록이 없는 매도 1종목, 손익에서 제외
주의: 시각이 없는 체결 주문 1건(전체 기간), 모두 제외
주의: 수수료 기록이 없는 주문 1건, 0원으로 계산
AI 판단: CONFIRM 1건, REJECT 1건
알림: 전달 1건, 실패 0건
캔들 1,440/2,880분, 거래 없는 분 0, 빠진 분 1,440
KRW-BTC: 체결 1건, 손익 +1,183,950.62 KRW, 청산 1건 중 이익 1건, 수수료 25,617.28 KRW | \
레짐 BULL 20시간, SIDEWAYS 4시간 | 변동성 연 27% (높지 않음, OK)
KRW-ETH: 체결 1건, 수수료 0 KRW, 매수 기록 없는 매도 3개 제외 | 레짐 라벨 없음 24시간 | \
변동성 예측 없음 | 캔들 0/1,440분, 빠진 분 1,440 | 수집 미완료 2026-11-22 (UTC)"""


def test_the_body_is_the_contracts(connection: psycopg.Connection) -> None:
    fill(connection)
    assert body(report_of(connection, symbols=[BTC, ETH]), NOW.astimezone(KST)) == {
        "title": "일일 리포트 2026-11-23 (KST)",
        "pnl": 1183950.62,
        "trades": 2,
        "win_rate": 100.0,
        "mdd": 0.0,
        "summary": WHOLE_SUMMARY,
        "timestamp": "2026-11-23T15:05:00+00:00",
    }


def test_the_figures_are_the_reports(connection: psycopg.Connection) -> None:
    fill(connection)
    assert shown_figures(report_of(connection, symbols=[BTC, ETH])) == {
        "pnl": 1183950.62, "fees": 25617.28, "trades": 2, "round_trips": 1, "wins": 1,
        "win_rate": 100.0, "mdd": 0.0, "symbols_with_unmatched_sells": 1, "orders_undated": 1,
        "orders_unusable": 0, "orders_without_fee": 1, "confirms": 1, "rejects": 1,
        "alerts_delivered": 1, "alerts_failed": 0, "alerts_waiting": 0, "candles_stored": 1440,
        "candles_due": 2880, "candle_holes": 1440,
    }  # fmt: skip


def test_whatever_there_is_or_is_not_the_body_is_json_and_names_no_nothing(
    connection: psycopg.Connection,
) -> None:
    for step in (lambda _: None, fill):
        step(connection)
        for symbols in ([], [BTC, ETH]):
            found = report_of(connection, symbols=symbols)
            told = body(found, NOW)
            assert json.loads(json.dumps(told, allow_nan=False)) == told
            assert json.dumps(shown_figures(found), allow_nan=False)
            assert "None" not in told["summary"]
            assert "nan" not in told["summary"].lower()
            assert "\n\n" not in told["summary"]


def test_nothing_after_the_days_end_changes_anything(connection: psycopg.Connection) -> None:
    fill(connection)
    before = report_of(connection, symbols=[BTC, ETH])
    for n in range(3):
        at = END + n * HOUR
        order(connection, "BUY 1 KRW-BTC at 1", at, fee=None)
        order(connection, "SELL 1 KRW-BTC at 100000000", None, created_at=at)
        order(connection, "SELL 0 KRW-ETH at 100000000", at)
        label(connection, BTC, at, "BEAR")
        label(connection, ETH, at, "BEAR")
        forecast(connection, at + MICROSECOND, 9.9, high=True)
        forecast(connection, at + MICROSECOND, 9.9, symbol=ETH)
        decide(connection, "REJECT", at)
        alert(connection, "trade", "dead", at)
    minutes(connection, END, END + 3 * HOUR)
    connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET fetched_until = %s, rows = rows + 180 "
        "WHERE day = %s",
        [END + 3 * HOUR, UTC_DAYS[1]],
    )
    assert report_of(connection, symbols=[BTC, ETH]) == before
    connection.execute("UPDATE trading_pipelines.alert_deliveries SET delivered_at = now()")
    assert report_of(connection, symbols=[BTC, ETH]) == before


def test_a_summary_too_long_for_discord_ends_with_a_whole_line_and_says_how_many_are_missing(
    connection: psycopg.Connection,
) -> None:
    symbols = [f"KRW-COIN{n:02}" for n in range(60)]
    for n, symbol in enumerate(symbols):
        close(connection, symbol, START + n * MINUTE, n)
    text = summary(report_of(connection, symbols=symbols))
    *kept, last = text.splitlines()
    told = [one.split(":")[0] for one in kept if one.startswith("KRW-")]
    assert told == symbols[: len(told)]
    assert last == f"(이하 {60 - len(told)}줄 생략)"
    assert all(one.endswith("수집 미완료 2026-11-22 (UTC)") for one in kept if one[:4] == "KRW-")
    assert report_text.SUMMARY_LENGTH - 200 < len(text) <= report_text.SUMMARY_LENGTH
    assert "생략" not in summary(report_of(connection, date(2026, 11, 25), symbols[:5]))


@pytest.mark.parametrize(
    ("price", "shown", "number"),
    [
        ("1001234.5", "+1,234.5 KRW", 1234.5),
        ("1000100", "+100 KRW", 100.0),
        ("999999.996", "+0 KRW", 0.0),
        ("1000000", "+0 KRW", 0.0),
        ("998765.43", "-1,234.57 KRW", -1234.57),
    ],
)
def test_money_is_shown_in_won_with_thousands_and_never_as_minus_nothing(
    connection: psycopg.Connection, price: str, shown: str, number: float
) -> None:
    order(connection, "BUY 1 KRW-BTC at 1000000")
    order(connection, f"SELL 1 KRW-BTC at {price}", START + HOUR)
    found = report_of(connection)
    assert f"실현 손익 {shown}, 수수료 0 KRW\n" in summary(found)
    assert f"손익 {shown}, 청산 1건" in line(found)
    assert json.dumps(body(found, NOW)["pnl"]) == json.dumps(number)
