"""What the client makes of answers that the replay exchange does not give, byte by byte."""

import contextlib
import itertools
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.candles.conftest import FAST
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.page import (
    BlockedAnswerError,
    ExchangeError,
    InvalidAnswerError,
    RetryableError,
    UnknownMarketError,
)
from trading_pipelines.candles.rate_limit import RequestSlots, read_clock
from trading_pipelines.candles.upbit import Upbit
from trading_pipelines.candles.windows import MINUTE, Interval

TO = datetime(2025, 9, 3, 12, tzinfo=UTC)
ROW = (
    b'[{"market":"KRW-BTC","candle_date_time_utc":"2025-09-03T11:59:00","opening_price":1,'
    b'"high_price":2.50,"low_price":1,"trade_price":2,"candle_acc_trade_volume":0.12345678}]'
)


def answer(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """Return an HTTP answer, of another length than it says if asked to."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*head, *headers, "Connection: close", "", ""]).encode() + body


@contextmanager
def server(*answers: bytes) -> Iterator[str]:
    """Yield the URL of a server that gives each connection the next answer, and ends it."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(listening: socket.socket, answers: Sequence[bytes]) -> None:
        for content in answers:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(content)

    thread = threading.Thread(target=serve, args=(listening, answers), daemon=True)
    thread.start()
    with listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(5)


def asked(*answers: bytes) -> object:
    """Return what the client makes of the answers to one question."""
    with server(*answers) as url:
        return Upbit(url, 5).minutes("KRW-BTC", TO)


def moved(path: str = "/elsewhere") -> bytes:
    return answer("302 Found", b"<html>moved</html>", f"Location: {path}")


def test_digits_and_headers_arrive_as_they_were_sent() -> None:
    with server(answer("200 OK", ROW, "remaining-req: group=candles; min=600; sec=9")) as url:
        client = Upbit(url, 5)
        content: Any = client.minutes("KRW-BTC", TO)
        (row,) = content
        assert row["high_price"] == Decimal("2.50")
        assert str(row["high_price"]) == "2.50"
        assert client.answer_headers["Remaining-Req"].endswith("sec=9")


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf" + ROW, ROW.decode().encode("utf-16")])
def test_a_byte_order_mark_is_no_fault(body: bytes) -> None:
    # The charset that the header claims does not matter: JSON says its own.
    content = asked(answer("200 OK", body, "Content-Type: application/json; charset=euc-kr"))
    assert isinstance(content, list)
    assert content[0]["market"] == "KRW-BTC"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"<html>maintenance</html>",
        ROW[:100],
        b"[" * 100_000,
        b"[" + b"9" * 5000 + b"]",
        ROW.replace(b"KRW-BTC", "원화".encode("euc-kr")),
        b"\x1f\x8b\x00\x00\xff",
    ],
)
def test_a_200_that_is_no_json_is_asked_for_again(body: bytes) -> None:
    with pytest.raises(RetryableError, match="HTTP 200:"):
        asked(answer("200 OK", body))


def test_no_message_holds_what_postgres_refuses() -> None:
    with pytest.raises(RetryableError, match="HTTP 502: a b"):
        asked(answer("502 Bad Gateway", b"a\x00b"))


@pytest.mark.parametrize(
    "cut",
    [
        answer("200 OK", ROW, length=len(ROW) + 1),
        answer("404 Not Found", b"{}", length=3),
        answer("418 Blocked", b"", length=1),
        answer("200 OK", b"no gzip", "Content-Encoding: gzip"),
        b"no HTTP at all\r\n\r\n",
        b"",
    ],
)
def test_an_answer_that_breaks_off_is_none(cut: bytes) -> None:
    with pytest.raises(RetryableError, match="no answer: "):
        asked(cut)


def test_a_redirect_is_followed() -> None:
    assert isinstance(asked(moved(), answer("200 OK", ROW)), list)
    with pytest.raises(UnknownMarketError, match="HTTP 404"):
        asked(moved(), answer("404 Not Found", b'{"error": {"name": 404}}'))


def test_a_redirect_is_no_answer_where_nobody_answers_at_its_end() -> None:
    for end in (b"", answer("200 OK", ROW, length=len(ROW) + 1)):
        with pytest.raises(RetryableError, match="no answer: "):
            asked(moved(), end)
    with pytest.raises(RetryableError, match="no answer: "):
        asked(*[moved()] * 31)


def test_a_redirect_to_nowhere_is_refused() -> None:
    with pytest.raises(ExchangeError, match="HTTP 302: ") as refused:
        asked(answer("302 Found", b"moved"))
    assert not isinstance(refused.value, RetryableError)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 90", 90),
        ("Retry-After: 0", 0),
        ("retry-after: 90", 90),
        ("Retry-After: Wed, 03 Sep 2025 12:00:00 GMT", None),
        ("Retry-After: -1", None),
        ("Retry-After: 1.5", None),
        ("Retry-After: \xb2", None),
        ("Retry-After: 99999999999999999999", None),
        ("Retry-After: 100000000000000", None),
        ("Retry-After: 9999999", None),
        ("Retry-After: ", None),
        ("X: y", None),
    ],
)
def test_a_block_lasts_as_long_as_it_says_where_that_is_a_number(
    header: str, seconds: int | None
) -> None:
    sent = answer("418 Blocked").replace(b"Connection", f"{header}\r\nConnection".encode("latin-1"))
    with pytest.raises(BlockedAnswerError) as blocked:
        asked(sent)
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert blocked.value.retry_after == expected


def test_an_earlier_answer_is_not_taken_for_the_next() -> None:
    with server(answer("200 OK", ROW, "Remaining-Req: sec=9"), b"") as url:
        client = Upbit(url, 5)
        client.minutes("KRW-BTC", TO)
        with pytest.raises(RetryableError, match="no answer: "):
            client.minutes("KRW-BTC", TO)
        assert client.answer_headers == {}


def test_no_proxy_and_no_password_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert isinstance(asked(answer("200 OK", ROW)), list)


@pytest.mark.parametrize(
    "header",
    [
        "Date: today",
        "Date: Wed, 03 Sep 2025 12:00:00 -0000",
        "Date: Wed, 99 Sep 2025 12:00:00 GMT",
        "Date: ",
        "Date: Thu, 01 Jan 1970 00:00:00 GMT",
        "Date: Fri, 31 Dec 9999 23:59:59 GMT",
        "Date: Mon, 01 Jan 0001 00:00:00 +2359",
        "Date: Wed, 03 Sep 2025 12:00:00 GMT\r\nDate: today",
        f"Remaining-Req: sec={'9' * 5000}",
        "Remaining-Req: sec=\xb2",
        "Remaining-Req: sec",
        "Remaining-Req: =;;=",
    ],
)
def test_a_header_that_can_not_be_read_costs_no_page(
    connection: psycopg.Connection, header: str
) -> None:
    sent = answer("200 OK", ROW).replace(b"Connection", f"{header}\r\nConnection".encode("latin-1"))
    with server(sent) as url:
        slots = RequestSlots(connection, url, FAST.requests_per_second)
        exchange = Exchange(url, slots, FAST, now=lambda: TO + MINUTE)
        page = exchange.page("KRW-BTC", Interval(TO - MINUTE, TO))
    assert [candle.start for candle in page.candles] == [TO - MINUTE]


NO_TIME = ["", "today", "Wed, 03 Sep 2025 12:00:00 -0000", "Thu, 01 Jan 1970 00:00:00 GMT"]


@pytest.mark.parametrize("date", NO_TIME)
def test_without_a_clock_of_the_exchange_ours_is_used_with_twice_the_margin_and_it_is_said(
    connection: psycopg.Connection, date: str
) -> None:
    window = Interval(TO - MINUTE, TO)
    pages = []
    for seconds in (9, 10):
        now = TO + timedelta(seconds=seconds)
        with server(*[answer("200 OK", ROW, f"Date: {date}")] * 2) as url:
            slots = RequestSlots(connection, url, 500)
            exchange = Exchange(url, slots, FAST, now=itertools.repeat(now).__next__)
            pages.append(exchange.page("KRW-BTC", window))
            clock = read_clock(connection, url)
    assert [len(page.candles) for page in pages] == [0, 1]
    assert clock.ahead is None
    assert f"{date!r} is no time" in str(clock.problem)


def test_a_clock_once_believed_is_kept_where_a_later_answer_has_none(
    connection: psycopg.Connection,
) -> None:
    dates = ["Wed, 03 Sep 2025 12:20:00 GMT", "nonsense"]
    with server(*[answer("200 OK", ROW, f"Date: {date}") for date in dates]) as url:
        exchange = Exchange(url, RequestSlots(connection, url, 500), FAST, now=lambda: TO)
        exchange.page("KRW-BTC", Interval(TO - MINUTE, TO))
        assert read_clock(connection, url).ahead == timedelta(minutes=20)
        exchange.page("KRW-BTC", Interval(TO - MINUTE, TO))
        assert read_clock(connection, url).problem is not None
        assert exchange.closed_until() == TO + timedelta(minutes=19)


@pytest.mark.parametrize(
    "body",
    [
        b'{"message":"no Route matched with those values"}',
        b'{"message":"Not Found"}',
        b'{"timestamp":"2025-09-03T12:00:00Z","status":404,"error":"Not Found","path":"/v1"}',
        b'{"error":{"name":404,"message":"no such path"}}',
        b'{"error":{"name":"not_found"}}',
        b'{"error":null}',
        b"{}",
        b"[]",
        b"null",
        b"404",
        b"<html>404 page not found</html>",
        b"",
    ],
)
def test_a_404_that_is_not_the_exchanges_says_nothing_of_a_market(body: bytes) -> None:
    with pytest.raises(RetryableError, match="HTTP 404:"):
        asked(answer("404 Not Found", body))


def test_only_the_exchanges_own_answer_says_that_a_market_is_not_there() -> None:
    with pytest.raises(UnknownMarketError, match="Code not found"):
        asked(answer("404 Not Found", b'{"error":{"name":404,"message":"Code not found"}}'))


def refusing() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_request_that_failed_names_its_cause() -> None:
    with pytest.raises(RetryableError, match=r"no answer: .*connection refused"):
        Upbit(refusing(), 5).minutes("KRW-BTC", TO)
    with pytest.raises(RetryableError, match=r"no answer: .*name not resolved"):
        Upbit("http://no-such-name.invalid", 5).minutes("KRW-BTC", TO)


def test_a_certificate_that_is_refused_is_named(
    tmp_path: Path,
) -> None:
    files = [tmp_path / "key.pem", tmp_path / "certificate.pem"]
    names = ["-subj", "/CN=127.0.0.1", "-keyout", str(files[0]), "-out", str(files[1])]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with contextlib.suppress(OSError), connection:
            context.wrap_socket(connection, server_side=True)

    threading.Thread(target=serve, daemon=True).start()
    with listening, pytest.raises(RetryableError, match=r"no answer: .*certificate refused"):
        Upbit(f"https://127.0.0.1:{listening.getsockname()[1]}", 5).minutes("KRW-BTC", TO)


def test_connections_are_opened_as_many_as_will_be_used_without_a_request(
    connection: psycopg.Connection,
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        listening.settimeout(30)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        slots = RequestSlots(connection, url, 10)
        slots.note_latency(0.4)
        exchange = Exchange(url, slots, FAST)
        for _ in range(2):
            exchange.connect()
        opened = [listening.accept()[0] for _ in range(6)]
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()
        for one in opened:
            with one:
                one.setblocking(False)
                with pytest.raises(BlockingIOError):
                    one.recv(1)


def test_a_json_object_is_no_page(connection: psycopg.Connection) -> None:
    settings = FAST.model_copy(update={"attempts": 1})
    with server(answer("200 OK", b'{"error": {"name": 500}}')) as url:
        exchange = Exchange(url, RequestSlots(connection, url, 500), settings, now=lambda: TO)
        with pytest.raises(InvalidAnswerError, match="no list of candles"):
            exchange.page("KRW-BTC", Interval(TO - MINUTE, TO))
