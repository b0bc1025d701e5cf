"""The bot's tables, the ledger, and a stand-in for n8n and Discord that answers as it is told."""

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.conftest import copied
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer

NOON = datetime(2025, 9, 10, 12, tzinfo=UTC)
"""A moment long ago; the clocks of tests that send begin now, as the database's own does."""

BTC, ETH = "KRW-BTC", "KRW-ETH"
SECRET = "s3cret-of-the-webhook"
TOKEN = "t0ken-of-discord"

Body = str | bytes | Mapping[str, Any] | list[Any] | None


@dataclass(frozen=True)
class Reply:
    """One answer: a mapping is sent as JSON, text as HTML, or it ends in a fault."""

    status: int = 200
    body: Body = None
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Literal["", "hang", "half", "reset"] = ""


def refusal(status: int | None, http: int = 502, **more: Any) -> Reply:
    """What our workflows answer where Discord answered `status`."""
    return Reply(http, {"delivered": False, "status": status, "retry_after": None} | more)


DELIVERED = Reply(200, {"delivered": True, "message_id": "1130"})
POSTED = Reply(200, {"id": "1131", "type": 0})
READY = Reply(200, {"status": "ok"})
NOT_READY = Reply(503, {"status": "error"})
PAGE = Reply(502, "<html><h1>502 Bad Gateway</h1></html>")
HANG, HALF, RESET = Reply(fault="hang"), Reply(fault="half"), Reply(fault="reset")


@dataclass(frozen=True)
class Request:
    """What was received."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.body.get("idempotency_key"))


def usual(request: Request) -> Reply:
    """Answer as an n8n that is well, or as a Discord that is."""
    if request.method == "GET":
        return READY
    return DELIVERED if request.path.startswith("/webhook/") else POSTED


class Receiver:
    """A real HTTP server: the next POST gets the next reply of `script`, then `answer` decides."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.script: deque[Reply] = deque()
        self.answer: Callable[[Request], Reply] = usual
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._released = threading.Event()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    @property
    def keys(self) -> list[str]:
        """The idempotency keys of the posts to n8n, one a post."""
        return [request.key for request in self.posts]

    def start(self) -> None:
        """Listen, on the same port as before."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                receiver._handle(self)

            def do_POST(self) -> None:
                receiver._handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        serve = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        serve.start()

    def stop(self) -> None:
        """Refuse every connection from now on."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def start_again(self) -> None:
        """Listen where it does not already."""
        if self._server is None:
            self.start()

    def close(self) -> None:
        """Let those that hang go, and end."""
        self._released.set()
        self.stop()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        parts = urlsplit(handler.path)
        body = json.loads(content) if content else {}
        request = Request(
            handler.command, parts.path, parts.query, dict(handler.headers.items()), body
        )
        self.requests.append(request)
        is_scripted = request.method == "POST" and self.script
        reply = self.script.popleft() if is_scripted else self.answer(request)
        if reply.fault == "hang":
            self._released.wait(60)
        elif reply.fault == "reset":
            # Closed without lingering: the client gets a RST, not an end of file.
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.rfile.close()
            handler.connection.close()
            handler.close_connection = True
        else:
            self._reply(handler, reply)

    def _reply(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        is_text = isinstance(reply.body, str | bytes)
        content = reply.body if isinstance(reply.body, str | bytes) else json.dumps(reply.body)
        if reply.body is None:
            content = b""
        content = content.encode() if isinstance(content, str) else content
        handler.send_response(reply.status)
        handler.send_header("Content-Type", "text/html" if is_text else "application/json")
        handler.send_header("Content-Length", str(len(content) + (reply.fault == "half")))
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)
        if reply.fault == "half":
            self._released.wait(60)


@pytest.fixture
def n8n() -> Iterator[Receiver]:
    """A stand-in for n8n; delivers whatever it is sent until told otherwise."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def discord() -> Iterator[Receiver]:
    """A stand-in for Discord."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Bot:
    """Writes to the bot's tables as the bot does, and reads the ledger."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def insert(self, table: str, **values: Any) -> str:
        """Insert a row and return its key as text."""
        names = ", ".join(values)
        marks = ", ".join(["%s"] * len(values))
        found = self.connection.execute(
            f"INSERT INTO public.{table} ({names}) VALUES ({marks}) RETURNING id::text",
            [Jsonb(value) if isinstance(value, dict) else value for value in values.values()],
        ).fetchone()
        assert found is not None
        return str(found[0])

    def reject(self, at: datetime | None, reason: str | None = "RSI too high", **more: Any) -> str:
        values = {
            "symbol": BTC,
            "strategy_name": "MeanReversion",
            "decision": "REJECT",
            "reasoning": reason,
            "created_at": at,
        }
        return self.insert("agent_decisions", **(values | more))

    def trade(self, at: datetime | None, **more: Any) -> str:
        values = {
            "symbol": BTC,
            "side": "BUY",
            "order_type": "MARKET",
            "price": "150000000",
            "quantity": "0.00125",
            "status": "FILLED",
            "strategy_name": "MeanReversion",
            "created_at": at,
            "executed_at": at,
        }
        return self.insert("trading_history", **(values | more))

    def violation(self, at: datetime | None, **more: Any) -> str:
        values = {"violation_type": "MAX_EXPOSURE", "description": "over 30 %", "timestamp": at}
        return self.insert("risk_audit", **(values | more))

    def cooldown(
        self,
        until: datetime | None,
        updated_at: datetime | None,
        day: str = "2025-09-10",
        *,
        losses: int = 3,
        is_halted: bool = False,
    ) -> str:
        """Write the day's row, or update it in place, as the bot does."""
        values = [day, losses, until, is_halted, updated_at]
        self.connection.execute(
            "INSERT INTO daily_risk_state (date, total_pnl, trade_count, consecutive_losses, "
            "cooldown_until, is_trading_halted, updated_at) VALUES (%s, -1, 3, %s, %s, %s, %s) "
            "ON CONFLICT (date) DO UPDATE SET cooldown_until = excluded.cooldown_until, "
            "consecutive_losses = excluded.consecutive_losses, "
            "is_trading_halted = excluded.is_trading_halted, "
            "updated_at = excluded.updated_at, trade_count = daily_risk_state.trade_count + 1",
            values,
        )
        return day

    def halt(self, is_halted: bool, updated_at: datetime | None, day: str = "2025-09-10") -> str:  # noqa: FBT001
        """Halt trading, or allow it again."""
        return self.cooldown(None, updated_at, day, is_halted=is_halted)

    def ledger(self, columns: str = "source_id, state", where: str = "true") -> list[Any]:
        """Return the ledger's rows in the order they were entered; one column alone as values."""
        rows = self.connection.execute(
            f"SELECT {columns} FROM trading_pipelines.alert_deliveries WHERE {where} ORDER BY id"
        ).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    def attempts(self, columns: str = "number, via, outcome") -> list[Any]:
        return self.connection.execute(
            f"SELECT {columns} FROM trading_pipelines.alert_attempts ORDER BY id"
        ).fetchall()


EMPTY = """
DO $$ BEGIN EXECUTE (
    SELECT format('TRUNCATE %s RESTART IDENTITY', string_agg(oid::regclass::text, ', '))
    FROM pg_class WHERE relkind = 'r' AND relname <> 'alembic_version'
      AND relnamespace IN ('public'::regnamespace, 'trading_pipelines'::regnamespace)
); END $$
"""


@pytest.fixture(scope="session")
def _url(server: EmbeddedServer, template: str) -> str:
    return copied(server, template)


@pytest.fixture
def bot_url(_url: str) -> str:
    """The URL of the bot's database, emptied; to make one takes longer than most tests."""
    with psycopg.connect(_url, autocommit=True) as connection:
        connection.execute(EMPTY)
    return _url


@pytest.fixture
def bot(bot_url: str) -> Iterator[Bot]:
    """The bot at work; whoever changes a table takes `old_bot`, or a database of their own."""
    with connect(bot_url) as connection:
        yield Bot(connection)


@pytest.fixture
def other(bot_url: str) -> Iterator[psycopg.Connection]:
    """A second process's connection to the same database."""
    with connect(bot_url) as connection:
        yield connection


@pytest.fixture
def old_bot(server: EmbeddedServer, template: str) -> Iterator[Bot]:
    """The same on a database whose tables lack the newer columns."""
    with connect(copied(server, template)) as connection:
        connection.execute(
            "ALTER TABLE agent_decisions DROP COLUMN price_at_decision, DROP COLUMN regime"
        )
        connection.execute(
            "ALTER TABLE trading_history DROP COLUMN regime, DROP COLUMN high_water_mark, "
            "DROP COLUMN exit_reason"
        )
        yield Bot(connection)
