"""The exchange on the wire: HTTP on loopback, its clock, and statistics of what was asked and sent.

Here belongs what needs a connection, a clock or a lock. Which candles a page holds belongs to
`pages`, when to refuse to `limits`, what an error or a fault looks like to `faults`, and what a
stream sends to `stream`.
"""

import json
import math
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import cycle
from threading import Event, Lock, Thread
from typing import Any, Self, cast, get_args
from urllib.parse import parse_qsl, urlsplit

from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from trading_pipelines.simulators.loopback import LoopbackServer, reset
from trading_pipelines.simulators.upbit import faults as faulty
from trading_pipelines.simulators.upbit import stream
from trading_pipelines.simulators.upbit.faults import (
    CannedAnswer,
    Fault,
    FileContent,
    error_answer,
    json_answer,
    parse_time,
)
from trading_pipelines.simulators.upbit.files import HistoryFiles, checksum
from trading_pipelines.simulators.upbit.limits import RateLimit, RateLimitDecision
from trading_pipelines.simulators.upbit.market import EPOCH, Market
from trading_pipelines.simulators.upbit.pages import DAY, MAX_COUNT, UNITS, PageQuery, page

_HOLD_SECONDS = 60.0  # how long a `timeout` fault holds its answer: longer than any client waits
_STREAM_RATE, _STREAM_MINUTE_RATE = 5.0, 100 / 60
_MILLISECOND = timedelta(milliseconds=1)
_DRIP_SECONDS = 0.1  # from one byte to the next of an answer that drips
_LISTING, _FILES = "/api/v1/market-data/listing", "/candle/"
_ZIP = "application/zip"
_LAST_DATA_RECEIVED = 52  # offset in Linux's tcp_info of the milliseconds since then


@dataclass(frozen=True)
class Stats:
    """The candle requests since the start.

    `answered`: with a sound page; `refused`: by the limit or a block; `rejected`: requests for what
    does not exist (4xx). `peak` is the most requests in any rolling second, refused ones included.
    `markets` counts requests by market, `faults` the faults sent by kind. `files`: requests for
    history files, their checksums and listings, which no limit counts. `streams`: connections to
    the candle stream, refused ones included; `messages`: candles that were to be sent there.
    """

    requests: int = 0
    answered: int = 0
    refused: int = 0
    rejected: int = 0
    peak: int = 0
    markets: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    files: int = 0
    streams: int = 0
    messages: int = 0


class _ApiError(Exception):
    """A request that Upbit answers with an error of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.answer = error_answer(status, status, message)


class ReplayExchange:
    """Upbit's quotation API over a market, on loopback, while its `with` block lasts.

    `rate`: requests a second and client, None for no limit. `latency`: seconds from a request to
    its answer. `clock`: the exchange's time as an aware datetime from which it ticks on, or as a
    shift of the real time. `speed`: seconds of that clock in a real one. `port` 0 takes a free one.

    The candle stream (WebSocket, `/websocket/v1`) lets a client's address connect five times a
    second, and refuses a handshake as it refuses a request; it takes five messages a second and
    100 a minute, and closes the connection at one more (1008, as Upbit's way is not known). No
    `rate`, no limit. It closes after 120 real seconds in which nothing was received (1001), and
    when the clock is set (1012).
    """

    def __init__(
        self,
        market: Market,
        *,
        rate: float | None = 10.0,
        latency: float = 0.0,
        clock: datetime | timedelta | None = None,
        speed: float = 1.0,
        faults: Iterable[Fault] = (),
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        """Raises ValueError for a rate or speed that is not positive, a clock without an offset."""
        if not 0 < speed < math.inf:
            raise ValueError(f"speed {speed}; give a positive number")
        self.market = market
        self.latency = latency
        self._address = (host, port)
        self._history = HistoryFiles(market)
        self._limit = RateLimit(rate)
        self._connections = RateLimit(_STREAM_RATE if rate else None)
        self._messages = [
            RateLimit(_STREAM_RATE if rate else None),
            RateLimit(_STREAM_MINUTE_RATE if rate else None, 60),
        ]
        self.speed = speed
        self.clock_settings = 0
        self._refusals = cycle(faulty.TOO_MANY_REQUESTS.values())
        self._lock = Lock()
        self._counts: Counter[str] = Counter()
        self._markets: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._arrivals: deque[float] = deque()
        self.stopped = Event()
        self.set_clock(clock)
        self.set_faults(faults)

    def __enter__(self) -> Self:
        """Listen; raises PortError when the port is taken."""
        self._server = _Server(self._address, self)
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening and cut the connections that are open."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_connections()

    @property
    def url(self) -> str:
        """Where it listens, without `/v1`."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def serve_forever(self) -> None:
        """Wait until the exchange is stopped or Ctrl-C is pressed."""
        try:
            self.stopped.wait()
        except KeyboardInterrupt:
            return

    def set_clock(self, clock: datetime | timedelta | None) -> None:
        """Set the exchange's time, from which it ticks on, or shift it from the real time.

        Streams are closed: they can't send what was traded between the two times.
        """
        since = time.time()
        if isinstance(clock, datetime):
            if clock.tzinfo is None:
                raise ValueError(f"clock {clock} has no offset; give an aware datetime, in UTC")
            at = (clock - EPOCH).total_seconds()
        else:
            at = since + (clock or timedelta()).total_seconds()
        # One assignment: others read the clock meanwhile.
        self._clock = (since, at)
        self.clock_settings += 1

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Replace the faults; what they count starts anew, what the statistics hold stays."""
        schedule = faulty.FaultSchedule(faults)
        with self._lock:
            self._faults = schedule

    def stats(self) -> Stats:
        """The requests since the start."""
        with self._lock:
            return Stats(**self._counts, markets=dict(self._markets), faults=dict(self._sent))

    def now(self) -> float:
        """The exchange's time, in seconds since 1970 UTC."""
        since, at = self._clock
        return at + (time.time() - since) * self.speed

    def markets(self) -> CannedAnswer:
        """Upbit's list of markets; the names are the codes of the base assets."""
        names = [(symbol, symbol.partition("-")[2]) for symbol in self.market.symbols]
        keys = ("market", "korean_name", "english_name")
        rows = [dict(zip(keys, (symbol, name, name), strict=True)) for symbol, name in names]
        return json_answer(200, rows)

    def candles(
        self, client: str, unit: str, params: dict[str, str], arrived: float
    ) -> tuple[CannedAnswer, str]:
        """The answer to a candle request from a client's address, and its fault's kind or "".

        It has `arrived` in monotonic seconds.
        """
        with self._lock:
            decision = self._admit(client, params.get("market", ""), arrived)
        headers = [("Remaining-Req", f"group=candles; min=600; sec={decision.remaining}")]
        if decision.retry_after:
            headers.append(("Retry-After", str(decision.retry_after)))
        kind = ""
        try:
            if decision.status == 418:
                answer = faulty.CANNED["418_error_key"]
            elif decision.status == 429:
                answer = next(self._refusals)
            else:
                answer, kind = self._page(self._query(unit, params))
        except _ApiError as rejected:
            answer = rejected.answer
            with self._lock:
                self._counts["rejected"] += 1
        return answer._replace(headers=(*headers, *answer.headers)), kind

    def listing(self, prefix: str) -> tuple[CannedAnswer, str]:
        """The list of the history files whose key begins with `prefix`, and its fault or ""."""
        symbol = prefix.removeprefix("candle/").partition("/")[0]
        now = self._moment()
        files = self._history.listing(prefix, now)
        with self._lock:
            fault = self._strike_files(self._faults.strike_listing(symbol))
            for row in list(files):
                file = self._history.file(row["key"], now)
                hit = file and self._faults.strike_file(file.key, file.symbol, file.end)
                if hit and hit.kind == "file_unlisted":
                    files.remove(row)
                elif hit and hit.kind == "file_replaced":
                    row["lastModified"] = f"{now:%Y-%m-%dT%H:%M:%S}.000Z"
        answer = faulty.canned_file(fault) or json_answer(200, files)
        return answer, fault.kind if fault else ""

    def history_file(self, key: str) -> tuple[CannedAnswer, str]:
        """A history file, or what stands in the file of its checksum, and its fault or ""."""
        name = key.removesuffix(".checksum")
        file = self._history.file(name, self._moment())
        if file is None:
            return faulty.CANNED["404_html"], ""
        with self._lock:
            fault = self._strike_files(self._faults.strike_file(name, file.symbol, file.end))
        kind = fault.kind if fault else ""
        if answer := faulty.canned_file(fault):
            return answer, kind
        content = cast("FileContent", kind) if kind in get_args(FileContent) else None
        body = self._history.zip(file, content)
        if key == name:
            return CannedAnswer(200, body, _ZIP), kind
        if kind in {"file_no_checksum", "file_unlisted"}:
            return faulty.CANNED["404_html"], kind
        wrong = body[:-1] if kind == "file_wrong_checksum" else body
        text = checksum(wrong, name.rpartition("/")[2])
        # The checksum of a file that drips or has no end comes as it should.
        return CannedAnswer(200, text, "text/plain"), ""

    def handshake(self, client: str) -> int:
        """The status of a handshake of the stream: 101, or that of a refusal or a fault."""
        with self._lock:
            self._counts["streams"] += 1
            decision = self._connections.admit(client, time.monotonic())
            fault = self._faults.strike_handshake() if decision.status == 200 else None
            if fault:
                self._sent[fault.kind] += 1
                return faulty.STREAM_REFUSALS[fault.kind]
        return 101 if decision.status == 200 else decision.status

    def admits_message(self, client: str) -> bool:
        """See `stream.Exchange`."""
        with self._lock:
            now = time.monotonic()
            return all(limit.admit(client, now).status == 200 for limit in self._messages)

    def strike_minute(self, symbol: str, minute: int) -> Fault | None:
        """See `stream.Exchange`."""
        with self._lock:
            fault, is_new = self._faults.strike_minute(symbol, minute)
            if fault and is_new:
                self._sent[fault.kind] += 1
        return fault

    def strike_message(self, symbol: str, minute: int) -> Fault | None:
        """See `stream.Exchange`."""
        with self._lock:
            self._counts["messages"] += 1
            fault = self._faults.strike_message(symbol, minute)
            if fault:
                self._sent[fault.kind] += 1
        return fault

    def _strike_files(self, fault: Fault | None) -> Fault | None:
        self._counts["files"] += 1
        if fault:
            self._sent[fault.kind] += 1
        return fault

    def _admit(self, client: str, symbol: str, arrived: float) -> RateLimitDecision:
        # A rolling second needs arrivals in their order; threads get here in any.
        now = max(arrived, self._arrivals[-1]) if self._arrivals else arrived
        self._arrivals.append(now)
        while self._arrivals[0] <= now - 1:
            self._arrivals.popleft()
        self._counts["peak"] = max(self._counts["peak"], len(self._arrivals))
        self._counts["requests"] += 1
        self._markets[symbol] += 1
        decision = self._limit.admit(client, now)
        self._counts["refused"] += decision.status != 200
        return decision

    def _query(self, unit: str, params: dict[str, str]) -> PageQuery:
        if unit not in map(str, (*UNITS, DAY)):
            raise _ApiError(400, "specified unit is not valid.")
        if "market" not in params:
            raise _ApiError(400, "Missing request parameter error. Check the required parameters!")
        now_ms = self._now_ms()
        try:
            count = int(params.get("count", 1))
            to = params.get("to")
            to_ms = (parse_time(to) - EPOCH) // _MILLISECOND if to else now_ms
        except ValueError as error:
            raise _ApiError(400, "Type mismatch error. Check the parameters type!") from error
        if count < 1:
            raise _ApiError(400, "count is not valid.")
        if params["market"] not in self.market.symbols:
            raise _ApiError(404, "Code not found")
        return PageQuery(params["market"], int(unit), min(to_ms, now_ms), min(count, MAX_COUNT))

    def _page(self, query: PageQuery) -> tuple[CannedAnswer, str]:
        with self._lock:
            fault = self._faults.strike(query.symbol, query.to_ms)
            if fault:
                self._sent[fault.kind] += 1
            else:
                self._counts["answered"] += 1
        if fault and fault.kind in faulty.CANNED:
            return faulty.canned(fault), fault.kind
        kind = fault.kind if fault else ""
        now_ms = self._now_ms()
        other = next((symbol for symbol in self.market.symbols if symbol != query.symbol), None)
        rows = faulty.faulty_page(
            fault, query, other, lambda q: page(self.market, q, now_ms), now_ms
        )
        answer = json_answer(200, rows)
        if kind == "truncated_json":
            answer = answer._replace(body=answer.body[: len(answer.body) // 2])
        return answer, kind

    def _now_ms(self) -> int:
        return int(self.now() * 1000)

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)


class _Server(LoopbackServer):
    def __init__(self, address: tuple[str, int], exchange: ReplayExchange) -> None:
        self.exchange = exchange
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        self._open.add(request)
        return request, address

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        """End what keep-alive holds open: a stopped exchange must not go on answering."""
        for request in tuple(self._open):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


def seconds_since_data_came(connection: socket.socket) -> float:
    """Return how long ago the kernel took in the newest bytes; 0 where it does not tell (Linux's).

    While a page is computed, no other thread may read for a tenth of a second: an exchange that
    counted a request then would find eleven in one second where ten had come.
    """
    if not hasattr(socket, "TCP_INFO"):
        return 0.0
    answer = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED + 4)
    (milliseconds,) = struct.unpack_from("I", answer, _LAST_DATA_RECEIVED)
    return float(milliseconds) / 1000


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "replay-exchange"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one segment

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Date is what the exchange's own clock says."""
        return formatdate(timestamp or self.server.exchange.now(), usegmt=True)

    def log_message(self, *_: object) -> None:
        """Stay quiet: `stats` says what was asked."""

    def do_GET(self) -> None:
        exchange = self.server.exchange
        read_at = time.monotonic()
        url = urlsplit(self.path)
        kind = ""
        if url.path == "/replay/stats":
            self._send(json_answer(200, asdict(exchange.stats())))
            return
        if url.path == stream.PATH:
            self._serve_stream()
            return
        if url.path == "/v1/market/all":
            answer = exchange.markets()
        elif url.path.startswith("/v1/candles/minutes/") or url.path == "/v1/candles/days":
            unit = url.path.removeprefix("/v1/candles/minutes/").replace(
                "/v1/candles/days", f"{DAY}"
            )
            params = dict(parse_qsl(url.query))
            arrived = read_at - seconds_since_data_came(self.connection)
            answer, kind = exchange.candles(self.client_address[0], unit, params, arrived)
        elif url.path == _LISTING:
            answer, kind = exchange.listing(dict(parse_qsl(url.query)).get("prefix", ""))
        elif url.path.startswith(_FILES):
            answer, kind = exchange.history_file(url.path.removeprefix("/"))
        else:
            answer = error_answer(404, 404, "no such path")
        exchange.stopped.wait(read_at + exchange.latency - time.monotonic())
        if kind == "timeout":
            exchange.stopped.wait(_HOLD_SECONDS)
            self.close_connection = True
        elif kind == "reset":
            reset(self)
        elif kind in {faulty.DRIP, faulty.ENDLESS, "listing_endless"}:
            self._send_on(answer, drips=kind == faulty.DRIP)
        else:
            self._send(answer, whole=kind != "short_body")

    def _serve_stream(self) -> None:
        """Answer the handshake of a stream, and serve it until either side leaves."""
        exchange, client = self.server.exchange, self.client_address[0]
        self.close_connection = True
        protocol = ServerProtocol()
        # As it came: the protocol reads its request itself.
        lines = (f"{name}: {value}\r\n" for name, value in self.headers.items())
        text = "".join([f"{self.requestline}\r\n", *lines, "\r\n"])
        protocol.receive_data(text.encode("latin-1"))
        (request,) = protocol.events_received()
        assert isinstance(request, Request)
        status = exchange.handshake(client)
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            response = protocol.accept(request)
        else:
            response = protocol.reject(status, f"{HTTPStatus(status).phrase}\n")
        del response.headers["Date"]
        response.headers["Date"] = self.date_time_string()
        response.headers["Replay-Source"] = self._source()
        protocol.send_response(response)
        exchange.stopped.wait(exchange.latency)
        self.connection.sendall(b"".join(protocol.data_to_send()))
        if protocol.state is State.OPEN:
            try:
                stream.Connection(exchange, client, self.connection, protocol).serve()
            except stream.CutError:
                reset(self)

    def _send_on(self, answer: CannedAnswer, *, drips: bool) -> None:
        """Send the answer byte by byte, or again and again, until the client or we leave."""
        self.close_connection = True
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.end_headers()
        pieces = iter(answer.body[n : n + 1] for n in range(len(answer.body)))
        for piece in pieces if drips else cycle([answer.body]):
            self.wfile.write(piece)
            self.wfile.flush()
            if self.server.exchange.stopped.wait(_DRIP_SECONDS if drips else 0):
                return

    def do_POST(self) -> None:
        exchange = self.server.exchange
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            content = json.loads(body)
            if self.path == "/replay/faults":
                exchange.set_faults([Fault.parse(text) for text in content])
            elif self.path == "/replay/clock" and "at" in content:
                exchange.set_clock(parse_time(content["at"]))
            elif self.path == "/replay/clock":
                exchange.set_clock(timedelta(seconds=content["shift_seconds"]))
            else:
                self._send(error_answer(404, 404, "no such path"))
                return
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            allowed = 'a list of faults, or {"at": time} or {"shift_seconds": number} for the clock'
            self._send(error_answer(400, 400, f"{error}; allowed: {allowed}"))
            return
        self._send(json_answer(200, {"now": self.date_time_string()}))

    def _source(self) -> str:
        # A label holds a file's name; `ascii` keeps whatever is in it inside one header.
        return ascii(self.server.exchange.market.label)[1:-1]

    def _send(self, answer: CannedAnswer, *, whole: bool = True) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Replay-Source", self._source())
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body if whole else answer.body[: len(answer.body) // 2])
        self.close_connection |= not whole
