"""Receivers that drip, flood, block or lie, as public reports tell of Discord, n8n and proxies.

Each answers with raw bytes, so that nothing a well-behaved server would refuse to send is missing.
"""

import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

PAUSE = 0.05
"""Seconds between two bytes that drip: less than any time-out of a single read."""
UNPACKED = 64 << 20
"""Bytes that a bomb unpacks to."""

Answer = Callable[["Connection"], None]


class Connection:
    """A connection of one caller, that is sent what follows."""

    def __init__(self, sock: socket.socket, released: threading.Event, body: bytes) -> None:
        self.send = sock.sendall
        self.released = released
        self.body = body

    def drip(self, piece: bytes = b"a") -> None:
        """Send a piece now and then, for as long as the caller likes."""
        while not self.released.wait(PAUSE):
            self.send(piece)


def head(status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]).encode()


def whole(status: str, body: object = b"", *headers: str) -> Answer:
    """An answer that comes at once; what is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    lines = [f"Content-Type: {kind}", f"Content-Length: {len(content)}", *headers]
    return lambda connection: connection.send(head(status, *lines) + content)


def drips_headers(connection: Connection) -> None:
    connection.send(head()[:-2] + b"X-Slow: ")
    connection.drip()


def drips_status(connection: Connection) -> None:
    connection.drip(b"HTTP/1.1 100 Continue\r\n\r\n")


def drips_body(connection: Connection) -> None:
    connection.send(head("200 OK", "Content-Type: application/json") + b'{"id": "')
    connection.drip()


def drips_chunks(connection: Connection) -> None:
    connection.send(head("200 OK", "Transfer-Encoding: chunked"))
    connection.drip(b"1\r\na\r\n")


def floods(connection: Connection) -> None:
    connection.send(head())
    while not connection.released.is_set():
        connection.send(b" " * 65536)


def silent(connection: Connection) -> None:
    connection.released.wait(60)


def bomb(encoding: str, body: bytes) -> Answer:
    return whole("200 OK", body, f"Content-Encoding: {encoding}")


_ZEROS = bytes(UNPACKED)
_GZIPPED = gzip.compress(_ZEROS, 1)

LATE: dict[str, Answer] = {
    "drips its headers": drips_headers,
    "drips answers to come": drips_status,
    "drips its body": drips_body,
    "drips chunks": drips_chunks,
    "says nothing": silent,
}
"""These never come to an end."""

LONG: dict[str, Answer] = {
    "floods": floods,
    "a gzip bomb": bomb("gzip", _GZIPPED),
    "a deflate bomb": bomb("deflate", zlib.compress(_ZEROS, 1)),
    "a bomb in a bomb": bomb("gzip, gzip", gzip.compress(_GZIPPED)),
}
"""Of these there is more than anybody wants to hold."""


@contextmanager
def receiver(answer: Answer) -> Iterator[str]:
    """Yield the URL of a receiver that answers every connection so."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    released = threading.Event()

    def serve(sock: socket.socket) -> None:
        with closing(sock), suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += sock.recv(65536)
            before, _, body = request.partition(b"\r\n\r\n")
            for line in before.lower().splitlines():
                if line.startswith(b"content-length:"):
                    missing = int(line.partition(b":")[2]) - len(body)
                    while missing > 0 and (piece := sock.recv(missing)):
                        body += piece
                        missing -= len(piece)
            answer(Connection(sock, released, body))

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listening.accept()
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        released.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
