"""What a client sees of the exchange when nothing goes wrong, and at its limit."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import ccxt
import numpy as np
import pandas as pd
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from trading_pipelines.simulators.upbit.market import Candles, GeneratedMarket, Market, Recording
from trading_pipelines.simulators.upbit.pages import UNITS, PageQuery, as_of, page
from trading_pipelines.simulators.upbit.server import ReplayExchange, seconds_since_data_came

END = datetime(2025, 9, 22, tzinfo=UTC)
FAR_MS = 4_000_000_000_000
COLUMNS = {
    "opening_price": "open",
    "high_price": "high",
    "low_price": "low",
    "trade_price": "close",
    "candle_acc_trade_volume": "volume",
}


def get(exchange: ReplayExchange, path: str = "minutes/1", **params: Any) -> requests.Response:
    params = {"market": "KRW-BTC"} | params
    return requests.get(f"{exchange.url}/v1/candles/{path}", params=params, timeout=60)


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of the API as a recording has them, oldest first."""
    table = pd.DataFrame(rows[::-1])
    times = pd.to_datetime(table["candle_date_time_utc"], utc=True)
    return table.rename(columns=COLUMNS).assign(timestamp_utc=times)


@pytest.fixture(scope="module")
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None) as running:
        yield running


def test_a_row_has_upbits_fields_and_types(
    exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    (row,) = get(exchange, to="2025-09-01T00:03:00.000Z").json()
    bitcoin = recorded[recorded["symbol"] == "KRW-BTC"].iloc[2]
    assert bitcoin["timestamp_utc"] == datetime(2025, 9, 1, 0, 2, tzinfo=UTC)
    turnover, tick = row.pop("candle_acc_trade_price"), row.pop("timestamp")
    assert row == {
        "market": "KRW-BTC",
        "candle_date_time_utc": "2025-09-01T00:02:00",
        "candle_date_time_kst": "2025-09-01T09:02:00",
        **{theirs: bitcoin[ours] for theirs, ours in COLUMNS.items()},
        "unit": 1,
    }
    assert all(isinstance(row[name], float) for name in COLUMNS)
    assert bitcoin["low"] <= turnover / bitcoin["volume"] <= bitcoin["high"]
    assert isinstance(tick, int)
    assert 0 <= tick - 1756684920000 < 60_000


def test_pages_by_exclusive_to_hold_the_whole_recording_once(
    exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    rows: list[dict[str, Any]] = []
    params: dict[str, Any] = {"market": "KRW-DOGE", "count": 200}
    while found := get(exchange, **params).json():
        rows += found
        params["to"] = found[-1]["candle_date_time_utc"]
    whole = recorded[recorded["symbol"] == "KRW-DOGE"]
    table = frame(rows)
    for name in ("timestamp_utc", *COLUMNS.values()):
        assert (table[name].to_numpy() == whole[name].to_numpy()).all()


@given(
    held=st.sets(st.integers(29_000_000, 29_000_600), min_size=1),
    size=st.integers(1, 200),
    unit=st.sampled_from(UNITS),
)
def test_pages_of_any_size_hold_everything_once(held: set[int], size: int, unit: int) -> None:
    class Sparse:
        label, first, end = "sparse", END, END
        symbols: tuple[str, ...] = ("KRW-BTC",)

        def candles(self, symbol: str, start: int, end: int) -> Candles:
            raise NotImplementedError

        def newest(self, symbol: str, before: int, count: int) -> Candles:  # noqa: ARG002
            minute = np.array([m for m in sorted(held) if m < before][-count:], np.int64)
            return Candles(minute, *(np.ones(len(minute)),) * 5)

    market: Market = Sparse()
    starts, volumes, to = list[int](), 0.0, FAR_MS
    while rows := page(market, PageQuery("KRW-BTC", unit, to, size), FAR_MS):
        assert len(rows) <= size
        for row in rows:
            start = datetime.fromisoformat(row["candle_date_time_utc"]).replace(tzinfo=UTC)
            starts.append(int(start.timestamp()) // 60)
            volumes += row["candle_acc_trade_volume"]
        to = starts[-1] * 60_000
    assert starts == sorted({minute // unit * unit for minute in held}, reverse=True)
    assert volumes == len(held)


def test_one_row_by_default_and_200_at_most(exchange: ReplayExchange) -> None:
    assert len(get(exchange).json()) == 1
    assert len(get(exchange, count=200).json()) == 200
    assert len(get(exchange, count=100_000).json()) == 200
    whole = {tuple(row.items()) for row in get(exchange, count=200).json()}
    assert len(whole) == 200


def test_a_page_reaches_back_over_quiet_minutes(
    exchange: ReplayExchange, recorded: pd.DataFrame
) -> None:
    doge = recorded.loc[recorded["symbol"] == "KRW-DOGE", "timestamp_utc"].iloc[200:]
    hole = doge[doge.diff() > pd.Timedelta(minutes=1)].iloc[0]
    rows = get(exchange, market="KRW-DOGE", count=200, to=hole.isoformat()).json()
    assert len(rows) == 200
    spanned = hole - frame(rows)["timestamp_utc"].iloc[0]
    assert spanned > pd.Timedelta(minutes=200)


def test_before_the_listing_a_page_is_empty(exchange: ReplayExchange) -> None:
    answer = get(exchange, count=200, to="2025-09-01T00:00:00Z")
    assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize(
    "to",
    [
        "2025-09-10T12:00:00Z",
        "2025-09-10T12:00:00",
        "2025-09-10 12:00:00",
        "2025-09-10T12:00:00.000Z",
        "2025-09-10T21:00:00+09:00",
        "2025-09-10T11:59:00.001Z",
    ],
)
def test_to_is_utc_unless_it_carries_an_offset(exchange: ReplayExchange, to: str) -> None:
    assert get(exchange, to=to).json()[0]["candle_date_time_utc"] == "2025-09-10T11:59:00"


@pytest.mark.parametrize("unit", UNITS)
def test_larger_candles_equal_a_resample(
    exchange: ReplayExchange, recorded: pd.DataFrame, unit: int
) -> None:
    rows, to = list[dict[str, Any]](), "2025-09-19T12:07:00"
    for _ in range(2):
        rows += get(exchange, f"minutes/{unit}", market="KRW-DOGE", count=200, to=to).json()
        to = rows[-1]["candle_date_time_utc"]
    table = frame(rows).set_index("timestamp_utc")
    doge = recorded[recorded["symbol"] == "KRW-DOGE"].set_index("timestamp_utc")
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    want = doge.resample(f"{unit}min").agg(how).dropna()
    want = want[want.index < pd.Timestamp("2025-09-19T12:07:00Z")].tail(400)
    assert len(table) == min(400, len(want)) > 0
    assert (table.index == want.index).all()
    assert (table["unit"] == unit).all()
    for name in how:
        assert np.allclose(table[name], want[name], rtol=0, atol=1e-5)


def test_the_newest_candle_forms_and_then_closes(recorded_market: Recording) -> None:
    start = datetime(2025, 9, 10, 13, 30, tzinfo=UTC)
    with ReplayExchange(
        recorded_market, rate=None, clock=start + timedelta(seconds=30)
    ) as exchange:
        forming, before = get(exchange, count=2).json()
        assert forming == get(exchange).json()[0] | {
            name: forming[name] for name in forming if "acc" in name or name == "timestamp"
        }
        exchange.set_clock(start + timedelta(seconds=60))
        closed = get(exchange, to=(start + timedelta(minutes=1)).isoformat()).json()[0]
    assert forming["candle_date_time_utc"] == "2025-09-10T13:30:00"
    assert forming["opening_price"] == closed["opening_price"]
    assert 0 < forming["candle_acc_trade_volume"] < closed["candle_acc_trade_volume"]
    assert forming["trade_price"] != closed["trade_price"]
    assert forming["timestamp"] < closed["timestamp"]
    final = recorded_market.newest("KRW-BTC", int(start.timestamp()) // 60 + 1, 2)
    assert closed["trade_price"] == final.close[1]
    assert closed["candle_acc_trade_volume"] == final.volume[1]
    assert before["trade_price"] == final.close[0]


@given(st.integers(0, 59_999), st.integers(0, 59_999), st.integers(0, 20_000))
def test_a_forming_candle_only_widens(one: int, other: int, row: int) -> None:
    market = GeneratedMarket(("KRW-DOGE",))
    final = market.newest("KRW-DOGE", 29_000_000 - row, 3)
    start = int(final.minute[-1]) * 60_000
    early, late = (as_of(final, start + elapsed) for elapsed in sorted((one, other)))
    for candles in (early, late):
        assert candles.open[-1] == final.open[-1]
        assert candles.low[-1] <= candles.close[-1] <= candles.high[-1]
        assert candles.volume[-1] < final.volume[-1]
        assert (candles.close[:-1] == final.close[:-1]).all()
    assert final.low[-1] <= late.low[-1] <= early.low[-1]
    assert early.high[-1] <= late.high[-1] <= final.high[-1]
    assert early.volume[-1] <= late.volume[-1]
    assert as_of(final, start + 60_000) is final
    last = as_of(final, start + 59_999)
    assert [column[-1] for column in last[1:5]] == [column[-1] for column in final[1:5]]


def test_nothing_from_the_future_is_shown(recorded_market: Recording) -> None:
    clock = datetime(2025, 9, 10, 13, 30, 20, tzinfo=UTC)
    with ReplayExchange(recorded_market, rate=None, clock=clock) as exchange:
        for unit in UNITS:
            row = get(exchange, f"minutes/{unit}", to="2026-01-01T00:00:00").json()[0]
            assert row["candle_date_time_utc"] <= "2025-09-10T13:30:00"
            assert row["timestamp"] <= clock.timestamp() * 1000 + 10_000
        hour = get(exchange, "minutes/60").json()[0]
        exchange.set_clock(END)
        assert get(exchange).json()[0]["candle_date_time_utc"] == "2025-09-21T23:59:00"
        final = get(exchange, "minutes/60", to="2025-09-10T14:00:00").json()[0]
    assert hour["candle_date_time_utc"] == final["candle_date_time_utc"] == "2025-09-10T13:00:00"
    assert 0 < hour["candle_acc_trade_volume"] < final["candle_acc_trade_volume"]


def test_the_clock_ticks_on_from_where_it_is_set_and_dates_the_answers(
    recorded_market: Recording,
) -> None:
    def off(exchange: ReplayExchange, expected: datetime) -> float:
        date = parsedate_to_datetime(get(exchange).headers["Date"])
        return (date - expected).total_seconds()

    shift = timedelta(days=-100)
    with ReplayExchange(recorded_market, rate=None, clock=END) as exchange:
        assert 0 <= off(exchange, END) < 60
        started = exchange.now()
        deadline = time.monotonic() + 60
        while exchange.now() < started + 0.05 and time.monotonic() < deadline:
            pass
        assert started + 0.05 <= exchange.now() < started + 60
        exchange.set_clock(shift)
        assert -1 <= off(exchange, datetime.now(tz=UTC) + shift) < 60
        exchange.set_clock(None)
        assert -1 <= off(exchange, datetime.now(tz=UTC)) < 60
    with pytest.raises(ValueError, match="no offset"):
        ReplayExchange(recorded_market, clock=END.replace(tzinfo=None))


def test_wrong_requests_are_answered_as_upbit_does(exchange: ReplayExchange) -> None:
    def error(response: requests.Response) -> tuple[int, str]:
        content = response.json()["error"]
        assert content["name"] == response.status_code
        return response.status_code, content["message"]

    assert error(get(exchange, market="KRW-NONE")) == (404, "Code not found")
    assert error(get(exchange, "minutes/2")) == (400, "specified unit is not valid.")
    for wrong in ({"to": "soon"}, {"count": "many"}, {"count": 0}, {"market": None}):
        assert error(get(exchange, **wrong))[0] == 400
    assert requests.get(f"{exchange.url}/v1/ticker", timeout=60).status_code == 404


def test_every_answer_names_its_source(
    exchange: ReplayExchange, recording: Path, tmp_path: Path
) -> None:
    for path in (
        "/v1/market/all",
        "/v1/candles/minutes/1?market=KRW-BTC",
        "/none",
        "/replay/stats",
    ):
        headers = requests.get(exchange.url + path, timeout=60).headers
        assert headers["Replay-Source"] == f"recording {recording.name}"
    file = tmp_path / "한\n글.csv"
    file.write_text("symbol,timestamp_utc,open,high,low,close,volume\nA-B,2025-09-01,1,1,1,1,1\n")
    with ReplayExchange(Recording.load(file)) as odd:
        assert get(odd, market="A-B").headers["Replay-Source"].startswith("recording \\ud55c\\n")


def test_past_the_limit_429_in_three_forms_then_418(recorded_market: Recording) -> None:
    with ReplayExchange(recorded_market) as exchange, requests.Session() as session:
        url = f"{exchange.url}/v1/candles/minutes/1?market=KRW-ETH"
        answers = [session.get(url, timeout=60) for _ in range(17)]
        stats = exchange.stats()
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 5 + [418] * 2
    left = [answer.headers["Remaining-Req"] for answer in answers]
    assert left == [f"group=candles; min=600; sec={n}" for n in [*range(9, -1, -1)] + [0] * 7]
    assert answers[10].json()["error"]["name"] == "too_many_requests"
    assert answers[11].json() == {"name": "too_many_requests"}
    assert answers[12].headers["Content-Type"].startswith("text/plain")
    assert answers[13].content == answers[10].content
    assert "error" in answers[15].json()
    assert answers[15].headers["Retry-After"] == "1"
    assert (stats.requests, stats.answered, stats.refused, stats.peak) == (17, 10, 7, 17)
    assert stats.markets == {"KRW-ETH": 17}


def test_a_second_later_the_limit_is_free_again(recorded_market: Recording) -> None:
    asked: list[float] = []
    answered: list[float] = []
    with ReplayExchange(recorded_market, rate=5.0) as exchange:
        while len(answered) < 12:
            at = time.monotonic()
            if get(exchange).status_code == 200:
                asked.append(at)
                answered.append(time.monotonic())
            else:
                exchange.stopped.wait(0.4)
        stats = exchange.stats()
    assert all(after - before >= 1 for before, after in zip(asked, answered[5:], strict=False))
    assert stats.answered == 12
    assert stats.refused > 0


def test_an_answer_leaves_after_the_latency(recorded_market: Recording) -> None:
    with (
        ReplayExchange(recorded_market, rate=None, latency=1.0) as exchange,
        ThreadPoolExecutor(8) as pool,
    ):
        began = time.monotonic()
        took = [r.elapsed.total_seconds() for r in pool.map(lambda _: get(exchange), range(8))]
        assert min(took) >= 1
        assert time.monotonic() - began < 8, "one does not wait for another's"


def test_a_stopped_exchange_answers_nobody_not_even_on_an_open_connection(
    recorded_market: Recording,
) -> None:
    with requests.Session() as session:
        with ReplayExchange(recorded_market) as exchange:
            url = f"{exchange.url}/v1/candles/minutes/1?market=KRW-ETH"
            assert session.get(url, timeout=60).status_code == 200
        with pytest.raises(requests.ConnectionError):
            session.get(url, timeout=60)


def test_ccxt_reads_markets_and_candles(exchange: ReplayExchange, recorded: pd.DataFrame) -> None:
    client = ccxt.upbit({"urls": {"api": {"public": exchange.url, "private": exchange.url}}})
    assert "DOGE/KRW" in client.load_markets()
    since = datetime(2025, 9, 10, tzinfo=UTC)
    rows = client.fetch_ohlcv("BTC/KRW", "1m", int(since.timestamp() * 1000), 200)
    times = recorded["timestamp_utc"]
    window = (times >= since) & (times < since + timedelta(minutes=200))
    want = recorded[window & (recorded["symbol"] == "KRW-BTC")]
    assert [row[1:] for row in rows] == want.iloc[:, 2:].to_numpy().tolist()
    assert [row[0] for row in rows] == [int(t.timestamp() * 1000) for t in want["timestamp_utc"]]


def test_a_generated_market_is_served_the_same_way() -> None:
    with ReplayExchange(GeneratedMarket(("KRW-BTC",)), clock=END, rate=None) as exchange:
        rows = get(exchange, count=200).json()
        assert rows[0]["candle_date_time_utc"][:16] in ("2025-09-21T23:59", "2025-09-22T00:00")
        assert len(rows) == 200
        assert get(exchange, to="2017-10-01T00:00:00").json() == []
        assert get(exchange).headers["Replay-Source"] == "generated market (seed 7)"


def test_a_standalone_exchange_is_controlled_over_http(recorded_market: Recording) -> None:
    with ReplayExchange(recorded_market, rate=None) as exchange:

        def post(what: str, content: Any) -> requests.Response:
            return requests.post(f"{exchange.url}/replay/{what}", json=content, timeout=60)

        assert post("faults", ["502:count=1", "504:count=1"]).status_code == 200
        assert [get(exchange).status_code for _ in range(3)] == [502, 504, 200]
        assert post("clock", {"at": "2025-09-10T00:00:30Z"}).status_code == 200
        assert get(exchange).json()[0]["candle_date_time_utc"] == "2025-09-10T00:00:00"
        assert post("clock", {"shift_seconds": -86400}).status_code == 200
        age = time.time() - exchange.now()
        assert age == pytest.approx(86400, abs=1)
        stats = requests.get(f"{exchange.url}/replay/stats", timeout=60).json()
        assert stats["faults"] == {"502": 1, "504": 1}
        assert (stats["requests"], stats["answered"]) == (4, 2)
        for what, content in (
            ("faults", ["nonsense"]),
            ("faults", 5),
            ("clock", {}),
            ("clock", {"at": "x"}),
            ("clock", {"at": 5}),
            ("clock", 5),
        ):
            assert "allowed" in post(what, content).json()["error"]["message"]
        assert post("nothing", {}).status_code == 404


def test_a_request_is_counted_when_it_came_however_late_a_thread_reads_it() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as connection,
    ):
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.2)  # the thread that should read it does not get to run
        waited = seconds_since_data_came(connection)
    if hasattr(socket, "TCP_INFO"):
        assert 0.15 < waited < 60
    else:
        assert waited == 0
