"""Every fault as it looks on the wire, and which requests it strikes."""

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from trading_pipelines.simulators.upbit.faults import KINDS, BadFaultError, Fault, FaultSchedule
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

DAY = datetime(2025, 9, 3, tzinfo=UTC)
PAGE: dict[str, Any] = {"market": "KRW-BTC", "count": 5, "to": "2025-09-03T12:00:00Z"}


@pytest.fixture(scope="module")
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None) as running:
        yield running


def get(exchange: ReplayExchange, **params: Any) -> requests.Response:
    url = f"{exchange.url}/v1/candles/minutes/1"
    return requests.get(url, params=PAGE | params, timeout=60)


def struck(exchange: ReplayExchange, kind: str, **params: Any) -> requests.Response:
    exchange.set_faults([Fault(kind, count=1)])
    return get(exchange, **params)


def raw(exchange: ReplayExchange, kind: str) -> bytes:
    """All bytes that the server sends until it ends the connection."""
    exchange.set_faults([Fault(kind)])
    host, port = exchange.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        request = "GET /v1/candles/minutes/1?market=KRW-BTC&count=5 HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(request.encode())
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


@pytest.mark.parametrize(
    ("kind", "status", "content_type", "inside"),
    [
        ("429_error_key", 429, "application/json", '"error"'),
        ("429_plain_key", 429, "application/json", '{"name": "too_many_requests"}'),
        ("429_text", 429, "text/plain", "Too many"),
        ("418_error_key", 418, "application/json", '"error"'),
        ("418_plain_key", 418, "application/json", '{"name":'),
        ("500_json", 500, "application/json", '"error"'),
        ("500_html", 500, "text/html", "<html>"),
        ("502", 502, "text/html", "<html>"),
        ("503_html", 503, "text/html", "<html>"),
        ("504", 504, "text/html", "<html>"),
        ("html_200", 200, "text/html", "maintenance"),
        ("json_object", 200, "application/json", '{"status"'),
        ("404_json", 404, "application/json", "no Route"),
        ("404_html", 404, "text/html", "<html>"),
        ("404_empty", 404, "application/json", ""),
    ],
)
def test_wrong_answers(
    exchange: ReplayExchange, kind: str, status: int, content_type: str, inside: str
) -> None:
    answer = struck(exchange, kind)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith(content_type)
    assert inside in answer.text
    assert ('"error"' in answer.text) == (inside == '"error"')
    assert "Retry-After" not in answer.headers
    assert "Remaining-Req" in answer.headers
    assert get(exchange).status_code == 200


def test_retry_after_is_sent_when_asked_for(exchange: ReplayExchange) -> None:
    exchange.set_faults([Fault.parse("418_plain_key:retry_after=7,count=1")])
    assert get(exchange).headers["Retry-After"] == "7"


def test_spoiled_pages(exchange: ReplayExchange) -> None:
    exchange.set_faults([])
    sound = get(exchange).json()
    times = [row["candle_date_time_utc"] for row in sound]

    holes = struck(exchange, "null_fields").json()
    assert [row["candle_date_time_utc"] for row in holes] == times
    assert [None in row.values() for row in holes] == [False, False, True, False, False]

    for kind in ("impossible_row", "huge_volume", "undated_row"):
        odd = struck(exchange, kind).json()
        assert [row == good for row, good in zip(odd, sound, strict=True)].count(False) == 1
    assert struck(exchange, "doubled_row").json() == [*sound[:3], *sound[2:4]]
    exchange.set_faults([Fault.parse(f"impossible_row:at={times[3]}")])
    assert [row == good for row, good in zip(get(exchange).json(), sound, strict=True)] == [
        *[True] * 3,
        False,
        True,
    ]

    shuffled = struck(exchange, "out_of_order").json()
    assert shuffled != sound
    assert sorted(shuffled, key=lambda row: row["timestamp"], reverse=True) == sound

    stale = struck(exchange, "stale_page").json()
    assert stale == get(exchange, to=times[-1]).json()
    assert not set(times) & {row["candle_date_time_utc"] for row in stale}

    assert struck(exchange, "empty_page").json() == []

    other = struck(exchange, "wrong_market").json()
    assert other[0]["market"] == "KRW-DOGE"
    assert other == get(exchange, market="KRW-DOGE").json()
    assert get(exchange).json() == sound


def test_a_copy_that_is_behind_lacks_the_newest_minutes_or_has_them_as_they_were(
    recorded_market: Recording,
) -> None:
    noon = datetime(2025, 9, 3, 12, tzinfo=UTC)
    with ReplayExchange(recorded_market, rate=None, clock=noon) as exchange:
        sound = get(exchange).json()
        behind = [row for row in sound if row["candle_date_time_utc"] < "2025-09-03T11:57"]
        assert len(behind) < len(sound)
        assert struck(exchange, "lagging_copy").json()[: len(behind)] == behind
        opens = [row | {"trade_price": row["opening_price"]} for row in sound]
        unrevised = struck(exchange, "unrevised_copy").json()
        assert unrevised == opens[: -len(behind)] + behind


def test_truncated_json_is_a_whole_answer_with_half_a_body(exchange: ReplayExchange) -> None:
    exchange.set_faults([])
    sound = get(exchange).content
    answer = struck(exchange, "truncated_json")
    assert answer.status_code == 200
    assert int(answer.headers["Content-Length"]) == len(answer.content) == len(sound) // 2
    assert sound.startswith(answer.content)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        answer.json()


def test_short_body_ends_before_its_length(exchange: ReplayExchange) -> None:
    head, _, body = raw(exchange, "short_body").partition(b"\r\n\r\n")
    (promised,) = (int(line[16:]) for line in head.split(b"\r\n") if b"Content-Length" in line)
    assert head.startswith(b"HTTP/1.1 200")
    assert 0 < len(body) < promised
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        struck(exchange, "short_body")


def test_reset_comes_before_any_byte(
    exchange: ReplayExchange, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConnectionResetError):
        raw(exchange, "reset")
    for _ in range(10):
        with pytest.raises(requests.ConnectionError, match="reset"):
            struck(exchange, "reset")
    assert not capsys.readouterr().err


def test_timeout_holds_the_answer_until_the_exchange_stops(recorded_market: Recording) -> None:
    with ReplayExchange(recorded_market, faults=[Fault("timeout", count=1)]) as exchange:
        url = f"{exchange.url}/v1/candles/minutes/1"
        with pytest.raises(requests.ReadTimeout):
            requests.get(url, params=PAGE, timeout=(60, 0.2))
        while not exchange.stats().faults:
            time.sleep(0.001)
        assert requests.get(url, params=PAGE, timeout=60).status_code == 200
        exchange.set_faults([Fault("timeout")])
        host, port = exchange.url.removeprefix("http://").split(":")
        held = socket.create_connection((host, int(port)), timeout=60)
        held.sendall(b"GET /v1/candles/minutes/1?market=KRW-BTC HTTP/1.1\r\n\r\n")
        while exchange.stats().faults["timeout"] < 2:
            time.sleep(0.001)
        began = time.monotonic()
    assert held.recv(100) == b""
    assert time.monotonic() - began < 30
    held.close()


def test_every_kind_is_tested_here() -> None:
    source = open(__file__, encoding="utf-8").read()  # noqa: PTH123, SIM115
    assert [kind for kind in KINDS if f'"{kind}"' not in source] == []


def hits(text: str, requested: list[tuple[str, datetime]]) -> list[int]:
    schedule = FaultSchedule([Fault.parse(text)])
    return [
        index
        for index, (symbol, to) in enumerate(requested, 1)
        if schedule.strike(symbol, int(to.timestamp() * 1000))
    ]


def test_which_requests_are_struck() -> None:
    bitcoin = [("KRW-BTC", DAY)] * 20
    assert hits("502", bitcoin) == list(range(1, 21))
    assert hits("502:every=7", bitcoin) == [7, 14]
    assert hits("502:every=3,count=2", bitcoin) == [3, 6]
    both = [("KRW-BTC", DAY), ("KRW-DOGE", DAY)] * 3
    assert hits("502:every=2,market=KRW-DOGE", both) == [4]
    pages = [("KRW-BTC", DAY + timedelta(minutes=n)) for n in (0, 1, 1440, 1441)]
    assert hits("502:between=2025-09-03/2025-09-04T00:00Z", pages) == [2, 3]
    assert hits("502:between=2025-09-03T09:00+09:00/2025-09-04", pages) == [2, 3]


def test_a_probability_strikes_the_same_requests_in_every_run() -> None:
    many = [("KRW-BTC", DAY)] * 2000
    struck_once = hits("reset:probability=0.1", many)
    assert 140 < len(struck_once) < 260
    assert struck_once == hits("reset:probability=0.1", many)
    assert struck_once != hits("reset:probability=0.1,market=KRW-BTC", many)


def test_faults_are_tried_in_order() -> None:
    schedule = FaultSchedule([Fault("502", every=2), Fault("504", every=2)])
    kinds = [fault.kind if fault else "" for fault in (schedule.strike("A", 0) for _ in range(6))]
    assert kinds == ["", "502", "504", "502", "", "502"]


def test_a_fault_is_read_from_text() -> None:
    text = "truncated_json:every=7, count=3,market=KRW-DOGE,between=2025-09-03/2025-09-04T06:00"
    last = datetime(2025, 9, 4, 6, tzinfo=UTC)
    want = Fault("truncated_json", every=7, count=3, market="KRW-DOGE", between=(DAY, last))
    assert Fault.parse(text) == want


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("502s", "429_error_key, .*timeout"),
        ("", "429_error_key"),
        ("502:often", "every, probability, count, market, between, retry_after"),
        ("502:every=x", "a whole number from 1"),
        ("502:every=0", "a whole number from 1"),
        ("502:count=-1", "a whole number from 1"),
        ("502:probability=0", "above 0, up to 1"),
        ("502:probability=nan", "above 0, up to 1"),
        ("502:between=2025-09-03", "two times such as"),
        ("502:between=2025-09-04/2025-09-03", "not before"),
        ("reset:retry_after=3", "a kind that is an error"),
        ("502:retry_after=-3", "from 0"),
    ],
)
def test_an_error_in_the_text_says_what_is_allowed(text: str, allowed: str) -> None:
    with pytest.raises(BadFaultError, match=allowed):
        Fault.parse(text)


@given(st.text())
def test_no_text_fails_otherwise(text: str) -> None:
    try:
        Fault.parse(text)
    except BadFaultError:
        return
