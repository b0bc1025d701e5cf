"""The candle stream of the replay exchange, as a real client of WebSockets sees it."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
import requests
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from trading_pipelines.korean_time import KST
from trading_pipelines.simulators.upbit import stream
from trading_pipelines.simulators.upbit.faults import STREAM_KINDS, BadFaultError, Fault
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

BTC, ETH = "KRW-BTC", "KRW-ETH"
# 58 s into a minute, so that its end and the next minute's begin are near.
START = datetime(2025, 9, 3, 12, 0, 58, tzinfo=UTC)
SPEED = 60.0
AWAIT_SECONDS = 20.0
COLUMNS = {
    "opening_price": "open",
    "high_price": "high",
    "low_price": "low",
    "trade_price": "close",
    "candle_acc_trade_volume": "volume",
}

Message = dict[str, Any]


@contextmanager
def replayed(
    market: Recording, *faults: str, speed: float = SPEED, rate: float | None = None
) -> Iterator[ReplayExchange]:
    parsed = [Fault.parse(text) for text in faults]
    with ReplayExchange(market, rate=rate, clock=START, speed=speed, faults=parsed) as running:
        yield running


@contextmanager
def client(exchange: ReplayExchange, *codes: str, **flags: object) -> Iterator[ClientConnection]:
    url = f"{exchange.url.replace('http', 'ws')}/websocket/v1"
    with connect(url, compression=None, ping_interval=None, close_timeout=1) as connection:
        if codes:
            wanted = {"type": "candle.1m", "codes": codes, **flags}
            ask(connection, [{"ticket": "test"}, wanted])
        yield connection


def ask(connection: ClientConnection, request: object) -> None:
    connection.send(json.dumps(request))


def received(connection: ClientConnection) -> Message:
    data = connection.recv(timeout=AWAIT_SECONDS)
    assert isinstance(data, bytes), "binary, as by default"
    message: Message = json.loads(data)
    return message


def until(connection: ClientConnection, holds: Callable[[Message], bool]) -> list[Message]:
    messages: list[Message] = []
    while not (messages and holds(messages[-1])):
        messages.append(received(connection))
    return messages


def shows(minute: str) -> Callable[[Message], bool]:
    """Whether a message shows this minute of noon or a later one."""
    return lambda message: bool(message["candle_date_time_utc"] >= f"2025-09-03T12:{minute}")


def recorded_row(recorded: pd.DataFrame, message: Message) -> dict[str, float]:
    at = pd.Timestamp(message["candle_date_time_utc"], tz="UTC")
    is_it = (recorded.symbol == message["code"]) & (recorded.timestamp_utc == at)
    (row,) = recorded[is_it].to_dict("records")
    return {theirs: row[ours] for theirs, ours in COLUMNS.items()}


def values(message: Message) -> dict[str, float]:
    return {name: message[name] for name in COLUMNS}


def seconds_of(message: Message) -> datetime:
    return datetime.fromtimestamp(message["timestamp"] / 1000, UTC)


def test_a_minute_grows_to_what_was_recorded_and_the_first_message_is_a_snapshot(
    recorded_market: Recording, recorded: pd.DataFrame
) -> None:
    with replayed(recorded_market) as exchange, client(exchange, BTC, ETH) as connection:
        messages = until(connection, shows("06"))
        stats = exchange.stats()
    assert (stats.streams, stats.messages >= len(messages)) == (1, True)
    assert [m["stream_type"] for m in messages] == ["SNAPSHOT"] * 2 + ["REALTIME"] * (
        len(messages) - 2
    )
    assert [m["code"] for m in messages[:2]] == [BTC, ETH]
    assert all(m["type"] == "candle.1m" for m in messages)
    minutes = defaultdict(list)
    for message in messages:
        at = datetime.fromisoformat(message["candle_date_time_utc"]).replace(tzinfo=UTC)
        assert timedelta() <= seconds_of(message) - at < timedelta(minutes=1)
        assert message["candle_date_time_kst"][:16] == f"{at.astimezone(KST):%Y-%m-%dT%H:%M}"
        minutes[message["code"], at.minute].append(message)
    for symbol in (BTC, ETH):
        assert {minute for code, minute in minutes if code == symbol} >= {1, 2, 3, 4, 5}
        for minute in range(1, 5):
            shown = minutes[symbol, minute]
            assert values(shown[-1]) == recorded_row(recorded, shown[-1]), "to the last digit"
            for before, after in pairwise(shown):
                assert before["opening_price"] == after["opening_price"]
                assert before["high_price"] <= after["high_price"]
                assert before["low_price"] >= after["low_price"]
                assert before["candle_acc_trade_volume"] <= after["candle_acc_trade_volume"]
                assert before["timestamp"] < after["timestamp"]


def test_a_market_is_shown_once_a_second_and_the_last_trade_may_come_in_the_next_minute(
    recorded_market: Recording,
) -> None:
    begin = int(START.timestamp()) // 60
    late = 0
    for symbol in recorded_market.symbols:
        sent: list[int] = []
        for minute in range(begin, begin + 200):
            shown = stream.updates(symbol, minute)
            sent += [update.send_ms for update in shown]
            after_end = shown[-1].send_ms - (minute + 1) * 60_000
            late += after_end >= 0
            assert after_end < 500
            assert shown[-1].shown_ms == (minute + 1) * 60_000
            assert all(0 <= u.send_ms - u.shown_ms < 500 for u in shown[:-1])
        assert min(b - a for a, b in pairwise(sent)) >= 1000
    assert 20 < late < 500


def test_the_snapshot_is_of_the_minute_before_while_nothing_was_traded(
    recorded_market: Recording, recorded: pd.DataFrame
) -> None:
    with replayed(recorded_market, speed=1) as exchange:
        exchange.set_clock(START.replace(minute=5, second=0, microsecond=600_000))
        with client(exchange, BTC) as connection:
            snapshot = received(connection)
        assert snapshot["candle_date_time_utc"] == "2025-09-03T12:04:00"
        assert values(snapshot) == recorded_row(recorded, snapshot)
        exchange.set_clock(recorded_market.end + timedelta(days=3))
        with client(exchange, BTC, is_only_snapshot=True) as connection:
            oldest = received(connection)
        last = recorded[recorded.symbol == BTC].timestamp_utc.max()
        assert oldest["candle_date_time_utc"] == f"{last:%Y-%m-%dT%H:%M:%S}"


def test_only_snapshots_or_only_what_is_new(recorded_market: Recording) -> None:
    with replayed(recorded_market) as exchange:
        with client(exchange, BTC, is_only_realtime=True) as connection:
            assert {m["stream_type"] for m in until(connection, shows("02"))} == {"REALTIME"}
        with client(exchange, BTC, is_only_snapshot=True) as connection:
            assert received(connection)["stream_type"] == "SNAPSHOT"
            with pytest.raises(TimeoutError):
                connection.recv(timeout=1.5)  # a minute and a half of the exchange's


def test_a_request_replaces_the_one_before_and_unknown_markets_are_silent(
    recorded_market: Recording,
) -> None:
    with replayed(recorded_market) as exchange, client(exchange, ETH) as connection:
        received(connection)
        wanted = {"type": "candle.1m", "codes": [BTC, "KRW-NONE"]}
        ask(connection, [{"ticket": "again"}, wanted, {"format": "DEFAULT"}])
        messages = until(connection, lambda m: bool(m["code"] == BTC))
        assert messages[-1]["stream_type"] == "SNAPSHOT"
        assert {m["code"] for m in until(connection, shows("04"))} == {BTC}


CANDLES = {"type": "candle.1m", "codes": [BTC]}


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"ticket": "x"}, "WRONG_FORMAT"),
        ([{"ticket": "x"}, "candle.1m"], "WRONG_FORMAT"),
        ([{"ticket": "x"}, CANDLES, {"format": "PRETTY"}], "WRONG_FORMAT"),
        ([], "NO_TICKET"),
        ([CANDLES], "NO_TICKET"),
        ([{"ticket": ""}, CANDLES], "NO_TICKET"),
        ([{"ticket": "x"}], "NO_TYPE"),
        ([{"ticket": "x"}, {"format": "DEFAULT"}], "NO_TYPE"),
        ([{"ticket": "x"}, {"codes": [BTC]}], "NO_TYPE"),
        ([{"ticket": "x"}, {"type": "candle.1m"}], "NO_CODES"),
        ([{"ticket": "x"}, {"type": "candle.1m", "codes": []}], "NO_CODES"),
        ([{"ticket": "x"}, {"type": "candle.1m", "codes": BTC}], "INVALID_PARAM"),
        ([{"ticket": "x"}, {"type": "candle.2m", "codes": [BTC]}], "INVALID_PARAM"),
        ([{"ticket": "x"}, CANDLES | {"is_only_realtime": "yes"}], "INVALID_PARAM"),
        (
            [{"ticket": "x"}, CANDLES | {"is_only_realtime": True, "is_only_snapshot": True}],
            "INVALID_PARAM",
        ),
    ],
)
def test_a_wrong_request_is_answered_by_its_error(
    recorded_market: Recording, request_: object, name: str
) -> None:
    with replayed(recorded_market, speed=1) as exchange, client(exchange) as connection:
        ask(connection, request_)
        error = received(connection)["error"]
        assert (error["name"], bool(error["message"])) == (name, True)
        ask(connection, [{"ticket": "x"}, CANDLES])
        assert received(connection)["code"] == BTC, "the connection goes on"


def test_text_that_is_no_json_has_the_wrong_format(recorded_market: Recording) -> None:
    with replayed(recorded_market) as exchange, client(exchange) as connection:
        connection.send("[{")
        assert received(connection)["error"]["name"] == "WRONG_FORMAT"


def test_pings_are_answered(recorded_market: Recording) -> None:
    with replayed(recorded_market) as exchange, client(exchange) as connection:
        connection.send("PING")
        assert received(connection) == {"status": "UP"}
        assert connection.ping().wait(AWAIT_SECONDS)


def test_a_client_that_says_nothing_is_closed_and_a_ping_keeps_it(
    recorded_market: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "IDLE_SECONDS", 0.6)
    with replayed(recorded_market) as exchange, client(exchange, BTC) as connection:
        began = time.monotonic()
        while time.monotonic() - began < 1.2:
            assert connection.ping().wait(AWAIT_SECONDS)
            received(connection)
        with pytest.raises(ConnectionClosed) as closed:
            until(connection, lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


def test_too_many_connections_are_refused_and_too_many_messages_are_closed(
    recorded_market: Recording,
) -> None:
    with replayed(recorded_market, rate=10) as exchange:
        for _ in range(5):
            with client(exchange):
                pass
        with pytest.raises(InvalidStatus) as refused, client(exchange):
            pass
        assert refused.value.response.status_code == 429
        assert exchange.stats().streams == 6
    with replayed(recorded_market, rate=10) as exchange, client(exchange) as connection:
        for _ in range(6):
            connection.send("PING")
        assert [received(connection) for _ in range(5)] == [{"status": "UP"}] * 5
        with pytest.raises(ConnectionClosedError) as closed:
            received(connection)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_date_and_pages_follow_the_same_fast_clock(recorded_market: Recording) -> None:
    with replayed(recorded_market) as exchange, client(exchange, BTC) as connection:
        assert connection.response is not None
        begin = parsedate_to_datetime(connection.response.headers["Date"])
        assert timedelta() <= begin - START < timedelta(minutes=5)
        assert connection.response.headers["Replay-Source"] == recorded_market.label
        shown = until(connection, shows("10"))[-1]
        page = requests.get(
            f"{exchange.url}/v1/candles/minutes/1", params={"market": BTC}, timeout=60
        )
        assert page.json()[0]["candle_date_time_utc"] >= shown["candle_date_time_utc"]
        assert parsedate_to_datetime(page.headers["Date"]) >= seconds_of(shown) - timedelta(
            seconds=1
        )


def test_a_clock_that_is_set_ends_the_streams(recorded_market: Recording) -> None:
    with replayed(recorded_market, speed=1) as exchange, client(exchange, BTC) as connection:
        received(connection)
        exchange.set_clock(START + timedelta(hours=3))
        with pytest.raises(ConnectionClosedError) as closed:
            until(connection, lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


def test_a_plain_request_is_told_to_upgrade(recorded_market: Recording) -> None:
    with replayed(recorded_market) as exchange:
        assert requests.get(f"{exchange.url}/websocket/v1", timeout=60).status_code == 426


def test_fifty_markets_are_shown_at_once(recorded_market: Recording) -> None:
    candles = recorded_market.by_symbol[BTC]
    many = {f"KRW-A{n}": candles for n in range(50)}
    market = Recording("fifty", tuple(many), recorded_market.first, recorded_market.end, many)
    with replayed(market, speed=20) as exchange, client(exchange, *many) as connection:
        messages = until(connection, shows("03"))
        behind = exchange.now() - seconds_of(messages[-1]).timestamp()
    assert {m["code"] for m in messages} == set(many)
    assert behind < 20, "of the exchange's seconds"


# What each fault does.


def refused(exchange: ReplayExchange) -> int:
    with pytest.raises(InvalidStatus) as caught, client(exchange):
        pass
    return caught.value.response.status_code


@pytest.mark.parametrize("status", [404, 429, 503])
def test_a_refused_handshake(recorded_market: Recording, status: int) -> None:
    kind = {404: "stream_refused_404", 429: "stream_refused_429", 503: "stream_refused_503"}[status]
    with replayed(recorded_market, f"{kind}:count=2") as exchange:
        assert [refused(exchange), refused(exchange)] == [status] * 2
        with client(exchange, BTC) as connection:
            assert received(connection)["code"] == BTC
        assert exchange.stats().faults == {kind: 2}


def test_a_cut(recorded_market: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    with replayed(recorded_market, "stream_cut:every=3,count=1") as exchange:
        with client(exchange, BTC) as connection, pytest.raises(ConnectionClosedError):
            until(connection, lambda _: False)
        with client(exchange, BTC) as connection:
            assert received(connection)["stream_type"] == "SNAPSHOT"
        assert exchange.stats().faults == {"stream_cut": 1}
    assert not capsys.readouterr().err


def test_a_silent_stream_answers_pings_and_a_dead_one_does_not(recorded_market: Recording) -> None:
    for kind, answers in (("stream_silent", True), ("stream_dead", False)):
        with (
            replayed(recorded_market, f"{kind}:every=2,count=1") as exchange,
            client(exchange, BTC) as connection,
        ):
            received(connection)
            while not exchange.stats().faults:
                time.sleep(0.01)
            assert connection.ping().wait(1) == answers
            with pytest.raises(TimeoutError):
                connection.recv(timeout=1.5)


def test_a_double_and_an_old_snapshot(recorded_market: Recording) -> None:
    with (
        replayed(recorded_market, "stream_double:every=3,count=1") as exchange,
        client(exchange, BTC) as connection,
    ):
        messages = [received(connection) for _ in range(5)]
        assert messages[2] == messages[3]
        assert len({m["timestamp"] for m in messages}) == 4
    with (
        replayed(recorded_market, "stream_old:every=6,count=1") as exchange,
        client(exchange, BTC) as connection,
    ):
        messages = [received(connection) for _ in range(8)]
        assert messages[6] == messages[0]
        assert messages[5]["timestamp"] < messages[7]["timestamp"]


def test_a_late_minute(recorded_market: Recording, recorded: pd.DataFrame) -> None:
    fault = "stream_late:seconds=90,between=2025-09-03T12:02/2025-09-03T12:03"
    with replayed(recorded_market, fault) as exchange, client(exchange, BTC) as connection:
        messages = until(connection, shows("05"))
        assert exchange.stats().faults == {"stream_late": 1}
    of_two = [n for n, m in enumerate(messages) if "12:02:" in m["candle_date_time_utc"]]
    assert of_two[-1] - of_two[-2] > 1, "others were shown meanwhile"
    assert seconds_of(messages[of_two[-1] + 1]) > datetime(2025, 9, 3, 12, 4, 29, tzinfo=UTC)
    whole = recorded_row(recorded, messages[of_two[0]])
    assert [values(messages[n]) == whole for n in of_two] == [*[False] * (len(of_two) - 1), True]


def test_garbage(recorded_market: Recording) -> None:
    shapes = set[str]()
    with (
        replayed(recorded_market, "stream_garbage:count=12") as exchange,
        client(exchange, BTC) as connection,
    ):
        for _ in range(12):
            data = connection.recv(timeout=AWAIT_SECONDS)
            assert isinstance(data, bytes)
            try:
                shapes.add(type(json.loads(data)).__name__)
            except (ValueError, RecursionError) as error:
                shapes.add(type(error).__name__)
        assert received(connection)["code"] == BTC
    assert shapes >= {"dict", "list", "JSONDecodeError", "UnicodeDecodeError"}


def test_another_market_and_an_error(recorded_market: Recording) -> None:
    others = set(recorded_market.symbols) - {BTC}
    with (
        replayed(recorded_market, "stream_other_market:every=2,count=1") as exchange,
        client(exchange, BTC) as connection,
    ):
        codes = [received(connection)["code"] for _ in range(3)]
        assert (codes[0], codes[1] in others, codes[2]) == (BTC, True, BTC)
    with (
        replayed(recorded_market, "stream_other_market") as exchange,
        client(exchange, *recorded_market.symbols) as connection,
    ):
        assert received(connection)["code"] not in recorded_market.symbols
    with (
        replayed(recorded_market, "stream_error:every=2,count=1") as exchange,
        client(exchange, BTC) as connection,
    ):
        assert ["error" in received(connection) for _ in range(3)] == [False, True, False]


def test_a_minute_that_is_wrong_for_good_and_one_that_never_comes(
    recorded_market: Recording, recorded: pd.DataFrame
) -> None:
    faults = (
        "stream_forming_wrong:between=2025-09-03T12:02/2025-09-03T12:03",
        "stream_missing:between=2025-09-03T12:03/2025-09-03T12:04",
    )
    with replayed(recorded_market, *faults) as exchange, client(exchange, BTC) as connection:
        messages = until(connection, shows("05"))
        with client(exchange, BTC, is_only_snapshot=True) as second:
            received(second)
        counted = exchange.stats().faults
    assert counted == {"stream_forming_wrong": 1, "stream_missing": 1}
    last = {m["candle_date_time_utc"][14:16]: m for m in messages}
    assert "03" not in last
    assert values(last["02"]) != recorded_row(recorded, last["02"])
    assert values(last["04"]) == recorded_row(recorded, last["04"])


def test_every_kind_is_tested_here() -> None:
    source = open(__file__, encoding="utf-8").read()  # noqa: PTH123, SIM115
    assert [kind for kind in STREAM_KINDS if f'"{kind}' not in source] == []


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("stream_cut:seconds=3", "allowed with stream_late"),
        ("stream_late:seconds=0", "above 0"),
        ("stream_late:seconds=nan", "above 0"),
        ("stream_late:seconds=soon", "seconds above 0"),
        ("stream_cut:at=2025-09-03T10:00", "at: allowed with"),
        ("stream_refused_429:market=KRW-BTC", "a handshake has none"),
    ],
)
def test_an_error_in_the_text_says_what_is_allowed(text: str, allowed: str) -> None:
    with pytest.raises(BadFaultError, match=allowed):
        Fault.parse(text)
