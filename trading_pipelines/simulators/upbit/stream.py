"""The candle stream: when a minute is shown and how, and one client's connection to it.

A minute is shown at most once a second, only after a trade, and nothing says that it has closed:
its last message, with the recorded candle, may come after the next minute has begun. HTTP, limits
and the clock belong to `server`; which message a fault hits belongs to `faults`.
"""

import json
import select
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from random import Random
from threading import Event
from typing import Any, NamedTuple, Protocol

from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.market import Market
from trading_pipelines.simulators.upbit.pages import MINUTE_MS, as_of, last_tick, rows

PATH = "/websocket/v1"
TYPE = "candle.1m"
IDLE_SECONDS = 120.0
_SECOND_MS = 1000
# From a trade to its message: a part of a second of each market's own, up to half of one.
_FIRST_DELAY_MS, _DELAYS_MS = 50, 400
# How soon a connection notices that the exchange has stopped or its clock was set.
_LOOK_SECONDS = 0.1
_RECEIVE_BYTES = 1 << 16
# At the start of a minute its first trades may be to come, and the last of the one before.
_RECENT_MINUTES = 3
_POLICY, _RESTART, _IDLE = 1008, 1012, 1001
_STRANGER = "KRW-STRANGER"

MessageJson = dict[str, Any]


class Update(NamedTuple):
    """At `send_ms` the minute of a market is shown as it stood at `shown_ms` (ms since 1970)."""

    send_ms: int
    symbol: str
    minute: int
    shown_ms: int


def updates(symbol: str, minute: int) -> list[Update]:
    """When a minute with a trade is shown, in order; the last time whole."""
    phase = _FIRST_DELAY_MS + zlib.crc32(symbol.encode()) % _DELAYS_MS
    chance = Random(f"{symbol} {minute}")  # noqa: S311
    start, last = minute * MINUTE_MS, int(last_tick(minute))
    slot = start + -((start + phase - last) // _SECOND_MS) * _SECOND_MS
    busy = chance.random()
    traded = [at for at in range(start + _SECOND_MS, slot, _SECOND_MS) if chance.random() < busy]
    shown = [Update(at + phase, symbol, minute, at) for at in traded]
    return [*shown, Update(slot + phase, symbol, minute, start + MINUTE_MS)]


class RequestError(Exception):
    """A request that the stream answers with an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.answer: MessageJson = {"error": {"name": name, "message": message}}


@dataclass(frozen=True)
class Subscription:
    """What a client wants of a market."""

    has_snapshot: bool
    has_realtime: bool


def subscriptions(text: str | bytes) -> dict[str, Subscription]:
    """Read a client's request, by market; raises RequestError."""
    try:
        parts = json.loads(text)
    except ValueError as error:
        raise RequestError("WRONG_FORMAT", "the request is no JSON") from error
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError("WRONG_FORMAT", "the request is no list of objects")
    if not parts or not parts[0].get("ticket"):
        raise RequestError("NO_TICKET", "the request does not begin with a ticket")
    if parts[-1].get("format", "DEFAULT") != "DEFAULT":
        raise RequestError("WRONG_FORMAT", "the only format is DEFAULT")
    types = [part for part in parts[1:] if part.keys() != {"format"}]
    if not types or not all("type" in part for part in types):
        raise RequestError("NO_TYPE", "the request has no type")
    return {code: asked for part in types for code, asked in _subscribed(part)}


def _subscribed(part: MessageJson) -> Iterator[tuple[str, Subscription]]:
    if part["type"] != TYPE:
        raise RequestError("INVALID_PARAM", f"the only type here is {TYPE}")
    codes = part.get("codes")
    if not codes:
        raise RequestError("NO_CODES", "the request has no codes")
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise RequestError("INVALID_PARAM", "codes is a list of markets")
    only_snapshot, only_realtime = (
        part.get(name, False) for name in ("is_only_snapshot", "is_only_realtime")
    )
    flags = (only_snapshot, only_realtime)
    if flags == (True, True) or not all(isinstance(flag, bool) for flag in flags):
        raise RequestError("INVALID_PARAM", "at most one of is_only_snapshot, is_only_realtime")
    for code in codes:
        yield code, Subscription(not only_realtime, not only_snapshot)


class Exchange(Protocol):
    """What a connection needs of its exchange."""

    market: Market
    stopped: Event
    speed: float
    clock_settings: int

    def now(self) -> float:
        """The exchange's time, in seconds since 1970 UTC."""

    def admits_message(self, client: str) -> bool:
        """Whether the limit lets a client's message through."""

    def strike_minute(self, symbol: str, minute: int) -> Fault | None:
        """The fault of a minute, for all connections."""

    def strike_message(self, symbol: str, minute: int) -> Fault | None:
        """The fault of a message, which is counted."""


_GARBAGE: tuple[Callable[[MessageJson], bytes], ...] = (
    lambda _: b"<html><body>Bad Gateway</body></html>",
    lambda message: _packed(message)[:200],
    lambda message: _packed(message | {"trade_price": "dear", "candle_acc_trade_volume": []}),
    lambda message: _packed({"type": TYPE, "code": message["code"]}),
    lambda message: _packed(message | {"low_price": -1.0}),
    lambda message: _packed(message | {"candle_acc_trade_volume": float("nan")}),
    lambda message: _packed(message | {"candle_date_time_utc": "yesterday"}),
    lambda message: _packed(message | {"timestamp": 10**30}),
    lambda message: _packed([message]),
    lambda _: b"\xff\xfe\x00",
    lambda _: b"[" * 5000,
    lambda _: b"",
)


class CutError(Exception):
    """The connection is to be reset, as a fault demands it."""


class Connection:
    """One client's connection after its handshake, served by one thread until either leaves."""

    def __init__(
        self, exchange: Exchange, client: str, connection: socket.socket, protocol: ServerProtocol
    ) -> None:
        self._exchange = exchange
        self._client = client
        self._socket = connection
        self._protocol = protocol
        self._wanted: dict[str, Subscription] = {}
        self._pending: list[Update] = []
        self._loaded = self._now_ms() // MINUTE_MS
        self._first: dict[str, Update] = {}
        self._is_silent = False
        self._garbage = cycle(_GARBAGE)

    def serve(self) -> None:
        """Serve until the end; raises CutError, and ConnectionError where the client has left."""
        settings = self._exchange.clock_settings
        heard = time.monotonic()
        while not self._exchange.stopped.is_set():
            wait = self._send_due()
            if select.select([self._socket], [], [], wait)[0]:
                heard = time.monotonic()
                if not self._receive():
                    break
            elif time.monotonic() - heard > IDLE_SECONDS:
                self._close(_IDLE, "nothing was received")
                break
            if settings != self._exchange.clock_settings:
                self._close(_RESTART, "the exchange's clock was set")
                break

    def _receive(self) -> bool:
        """Take what has come; return False at the end of the connection."""
        data = self._socket.recv(_RECEIVE_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in {Opcode.TEXT, Opcode.BINARY}:
                if not self._exchange.admits_message(self._client):
                    self._close(_POLICY, "too many messages")
                    return False
                self._answer(bytes(event.data))
        self._flush()
        return bool(data) and self._protocol.state is State.OPEN

    def _answer(self, text: bytes) -> None:
        if text == b"PING":
            self._send({"status": "UP"})
            return
        try:
            self._wanted = subscriptions(text)
        except RequestError as error:
            self._send(error.answer)
            return
        for code in self._wanted.keys() - set(self._exchange.market.symbols):
            del self._wanted[code]
        self._pending, self._first = [], {}
        now_ms = self._now_ms()
        self._loaded = now_ms // MINUTE_MS
        realtime = self._realtime()
        for symbol, subscription in self._wanted.items():
            shown = self._updates(symbol, self._loaded + 1 - _RECENT_MINUTES, self._loaded + 1)
            if symbol in realtime:
                self._pending += [update for update in shown if update.send_ms > now_ms]
            if subscription.has_snapshot:
                self._show_snapshot(symbol, now_ms, shown)
        self._pending.sort()

    def _show_snapshot(self, symbol: str, now_ms: int, recent: list[Update]) -> None:
        past = [update for update in recent if update.send_ms <= now_ms]
        if not past:
            newest = self._exchange.market.newest(symbol, now_ms // MINUTE_MS - 1, 1).minute
            past = [u for minute in newest.tolist() for u in self._updates(symbol, minute)]
        if past:
            self._show(max(past, key=lambda update: update[2:]), "SNAPSHOT")

    def _realtime(self) -> list[str]:
        return [s for s, subscription in self._wanted.items() if subscription.has_realtime]

    def _updates(self, symbol: str, start: int, end: int | None = None) -> list[Update]:
        """Return the updates of the minutes [start, end), or of one, as their faults have them."""
        end = start + 1 if end is None else end
        sent: list[Update] = []
        for minute in self._exchange.market.candles(symbol, start, end).minute.tolist():
            shown = updates(symbol, minute)
            fault = self._exchange.strike_minute(symbol, minute)
            if fault and fault.kind == "stream_missing":
                continue
            if fault and fault.kind == "stream_late":
                late = (minute + 1) * MINUTE_MS + round(fault.seconds * 1000)
                shown[-1] = shown[-1]._replace(send_ms=late)
            sent += shown
        return sent

    def _send_due(self) -> float:
        """Send what is due, and return the seconds (of ours) until more may be."""
        now_ms = self._now_ms()
        while self._loaded < now_ms // MINUTE_MS:
            self._loaded += 1
            for symbol in self._realtime():
                self._pending += self._updates(symbol, self._loaded)
            self._pending.sort()
        due = [update for update in self._pending if update.send_ms <= now_ms]
        del self._pending[: len(due)]
        for update in due:
            self._show(update, "REALTIME")
        next_ms = min([update.send_ms for update in self._pending[:1]], default=now_ms + MINUTE_MS)
        return min(max(next_ms - self._now_ms(), 0) / 1000 / self._exchange.speed, _LOOK_SECONDS)

    def _show(self, update: Update, stream_type: str) -> None:
        """Send a candle's message, or what a fault makes of it."""
        if self._is_silent:
            return
        first = self._first.setdefault(update.symbol, update)
        fault = self._exchange.strike_message(update.symbol, update.minute)
        match kind := fault.kind if fault else "":
            case "stream_cut":
                raise CutError
            case "stream_dead":
                # Until the client leaves, or is cut off at the exchange's end.
                while self._socket.recv(_RECEIVE_BYTES):
                    pass
                raise ConnectionResetError("the client has left")
            case "stream_silent":
                self._is_silent = True
            case _:
                message = self._message(update, stream_type)
                for data in self._faulty(kind, message, first):
                    self._send_bytes(data)

    def _faulty(self, kind: str, message: MessageJson, first: Update) -> list[bytes]:
        """Return what a fault sends in a message's place; the message where there is none."""
        match kind:
            case "stream_error":
                return [_packed({"error": {"name": "INTERNAL_ERROR", "message": "sorry"}})]
            case "stream_garbage":
                return [next(self._garbage)(message)]
            case "stream_other_market":
                others = (s for s in self._exchange.market.symbols if s not in self._wanted)
                return [_packed(message | {"code": next(others, _STRANGER)})]
            case "stream_double":
                return [_packed(message)] * 2
            case "stream_old":
                return [_packed(message), _packed(self._message(first, "SNAPSHOT"))]
        return [_packed(message)]

    def _message(self, update: Update, stream_type: str) -> MessageJson:
        minute, symbol = update.minute, update.symbol
        candles = self._exchange.market.candles(symbol, minute, minute + 1)
        (row,) = rows(symbol, 1, as_of(candles, update.shown_ms), update.shown_ms)
        del row["market"], row["unit"]
        fault = self._exchange.strike_minute(symbol, minute)
        is_whole = update.shown_ms == (minute + 1) * MINUTE_MS
        if is_whole and fault and fault.kind == "stream_forming_wrong":
            volume = row["candle_acc_trade_volume"]
            row["candle_acc_trade_volume"] = round(volume / 2, 8) or 2 * volume
            row["trade_price"] = row["opening_price"]
        return {"type": TYPE, "code": symbol, **row, "stream_type": stream_type}

    def _send(self, content: MessageJson) -> None:
        self._send_bytes(_packed(content))

    def _send_bytes(self, data: bytes) -> None:
        self._protocol.send_binary(data)
        self._flush()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)

    def _close(self, code: int, reason: str) -> None:
        """Close, and wait a moment for the client to do so too."""
        self._protocol.send_close(code, reason)
        self._flush()
        self._socket.settimeout(1.0)
        with suppress(OSError):
            self._socket.recv(_RECEIVE_BYTES)

    def _now_ms(self) -> int:
        return int(self._exchange.now() * 1000)


def _packed(content: object) -> bytes:
    return json.dumps(content).encode()
