"""The replay exchange with a stream on the same port, and readers of it, each a process."""

import contextlib
import http
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
import requests
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from tests.candles.conftest import RecordedRows, Rows, _recorded_rows, recorded_rows
from tests.conftest import SYMBOLS
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.pages import PageQuery, page
from trading_pipelines.simulators.upbit.server import ReplayExchange

__all__ = ["RecordedRows", "_recorded_rows", "recorded_rows"]

PATH = "/websocket/v1"
EVERY_SECONDS = 0.1


class Exchange:
    """REST by the replay exchange, and its candle stream as Upbit documents it.

    `spoil` makes of a message what is sent in its place; `is_silent` sends none.
    """

    def __init__(self, replay: ReplayExchange) -> None:
        self.replay = replay
        self.has_stream = True
        self.is_silent = False
        self.spoil: Callable[[dict[str, Any]], list[str | bytes]] = lambda m: [json.dumps(m)]
        self.connections: list[ServerConnection] = []
        self.opened = 0
        self._server = serve(
            self._stream, "127.0.0.1", 0,
            process_request=self._answer, process_response=self._date, compression=None,
        )  # fmt: skip

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self.cut()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.replay.now(), UTC)

    def cut(self) -> None:
        """End all connections without a word."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(2)
        self.connections = []

    def _answer(self, _: ServerConnection, request: Request) -> Response | None:
        if request.path == PATH and self.has_stream:
            return None
        answer = requests.get(self.replay.url + request.path, timeout=30)
        names = ("Date", "Replay-Source", "Remaining-Req", "Content-Type")
        headers = Headers({n: answer.headers[n] for n in names if n in answer.headers})
        headers["Content-Length"] = str(len(answer.content))
        headers["Connection"] = "close"
        phrase = http.HTTPStatus(answer.status_code).phrase
        return Response(answer.status_code, phrase, headers, answer.content)

    def _date(self, _: ServerConnection, __: Request, response: Response) -> None:
        del response.headers["Date"]
        response.headers["Date"] = formatdate(self.replay.now(), usegmt=True)
        response.headers["Replay-Source"] = "a test"

    def _stream(self, connection: ServerConnection) -> None:
        self.opened += 1
        self.connections.append(connection)
        with contextlib.suppress(ConnectionClosed, OSError):
            _, wanted = json.loads(connection.recv(timeout=5))
            sent: dict[tuple[str, str], object] = {}
            while True:
                for symbol in wanted["codes"]:
                    for row in reversed(self._rows(symbol, 2 if sent else 1)):
                        key = (symbol, row["candle_date_time_utc"])
                        if sent.get(key) != row and not self.is_silent:
                            sent[key] = row
                            for text in self.spoil(self._message(row)):
                                connection.send(text)
                time.sleep(EVERY_SECONDS)

    def _rows(self, symbol: str, count: int) -> list[dict[str, Any]]:
        now_ms = int(self.replay.now() * 1000)
        return page(self.replay.market, PageQuery(symbol, 1, now_ms, count), now_ms)

    @staticmethod
    def _message(row: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in row.items() if k not in {"market", "unit"}}
        return {"type": "candle.1m", "code": row["market"], **kept, "stream_type": "REALTIME"}


@pytest.fixture
def exchange(recorded_market: Recording) -> Iterator[Exchange]:
    with ReplayExchange(recorded_market, rate=None) as replay, Exchange(replay) as exchange:
        yield exchange


class Reader:
    """A reader's process."""

    def __init__(self, home: Path, url: str, exchange: str, settings: str = "") -> None:
        home.mkdir(parents=True, exist_ok=True)
        config = home / "strategy.yaml"
        config.write_text(f"data: {{start_date: 2025-09-01}}\n{settings}")
        self.log = home / "live.log"
        self.environment = os.environ | {
            "DATABASE_URL": url,
            "DAGSTER_POSTGRES_URL": url,
            "UPBIT_BASE_URL": exchange,
            "TRADING_PIPELINES_HOME": str(home),
            "TRADING_PIPELINES_CONFIG": str(config),
        }
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trading_pipelines.runtime.live", "up"],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)

    def said(self) -> list[str]:
        return [line.partition(" UTC ")[2] for line in self.log.read_text().splitlines()]


Start = Callable[..., Reader]


@pytest.fixture
def start(exchange: Exchange, market_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a reader of the exchange on the market database."""
    readers: list[Reader] = []

    def start(name: str = "home", settings: str = "", url: str = market_url) -> Reader:
        readers.append(Reader(tmp_path / name, url, exchange.url, settings))
        return readers[-1]

    yield start
    for reader in readers:
        reader.process.kill()
        reader.process.wait()


def until(condition: Callable[[], object], what: object = "", seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)


def wanted_rows(rows: Rows, end: datetime) -> Rows:
    return {key: values for key, values in rows.items() if key[1] < end}


def edge_row(connection: psycopg.Connection) -> dict[str, Any]:
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute("SELECT * FROM trading_pipelines.live_edge").fetchone() or {}


DAY = date(2025, 9, 3)
ALL = SYMBOLS
