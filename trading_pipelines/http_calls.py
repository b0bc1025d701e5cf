"""The one way in which the project asks another by HTTP: each call ends, and no answer is too long.

Here belongs how a call is bounded, in time and in bytes. What is asked, and what an answer means,
belongs to the modules that ask. `tests/test_http_calls.py` finds a call that goes round this.
"""

import socket
import threading
import time
from contextlib import suppress
from os import dup
from typing import Any

import requests
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

CONNECT_SECONDS = 3.0
KILOBYTE, MEGABYTE = 1 << 10, 1 << 20
READ_AT_ONCE = 16 * KILOBYTE

_this_thread = threading.local()


def call(
    method: str,
    url: str,
    *,
    seconds: float,
    most_bytes: int,
    **options: Any,  # noqa: ANN401
) -> requests.Response:
    """Ask once, by a connection of its own; the options are those of `requests.request`.

    Returns and raises as `BoundedSession.request` does.
    """
    with BoundedSession(seconds, most_bytes) as session:
        return session.request(method, url, **options)


def certificates(url: str) -> str:
    """Return the file or folder of the certificates by which a call to `url` believes its peer."""
    with requests.Session() as session:
        place = session.merge_environment_settings(url, {}, None, None, None)["verify"]
    return place if isinstance(place, str) else DEFAULT_CA_BUNDLE_PATH


class BoundedSession(requests.Session):
    """A session of `requests` for one caller at a time.

    A call takes at most `seconds` from its start to the end of its answer: the name looked up, the
    connection, its redirects and a body or headers that drip included. A body is read up to
    `most_bytes`, of a compressed one what it unpacks to, and cut there.
    """

    def __init__(self, seconds: float, most_bytes: int) -> None:
        super().__init__()
        self.answer: requests.Response | None = None
        """To the last call; None where that has failed."""
        self._seconds = seconds
        adapter = _BoundedAdapter(most_bytes)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    # The time is the session's own: a `timeout` of the caller's counts each read anew.
    def request(self, *arguments: Any, **options: Any) -> requests.Response:  # noqa: ANN401
        """Return the whole answer, read; raises requests.RequestException.

        That is ConnectTimeout where nobody was reached in time, and ReadTimeout where somebody was:
        the request may have been acted on.
        """
        self.answer = None
        deadline = time.monotonic() + self._seconds
        options["timeout"] = (min(CONNECT_SECONDS, self._seconds), self._seconds)
        running = _Running()

        def ask() -> None:
            _this_thread.running = running
            try:
                running.answer = super(BoundedSession, self).request(*arguments, **options)
            # Whoever waits raises it.
            except BaseException as error:  # noqa: BLE001
                running.error = error

        # In a thread of its own: nothing ends a look-up of a name before it has come to an end.
        thread = threading.Thread(target=ask, name="http call", daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            kind = requests.ReadTimeout if running.abandon() else requests.ConnectTimeout
            late = f"no whole answer within {self._seconds:g} s"
            raise kind(late) from TimeoutError(late)
        running.forget()
        if running.error:
            raise running.error
        self.answer = running.answer
        assert self.answer is not None
        return self.answer


class _Running:
    """A call at hand, its sockets, and what came of it."""

    def __init__(self) -> None:
        self.answer: requests.Response | None = None
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._is_abandoned = False

    def uses(self, sock: socket.socket) -> None:
        """Note a socket; raises TimeoutError when nobody waits for the call any more."""
        with self._lock:
            if self._is_abandoned:
                sock.close()
                raise TimeoutError("the call was given up")
            # A second handle: TLS takes the first one over.
            self._sockets.append(socket.socket(fileno=dup(sock.fileno())))

    def abandon(self) -> bool:
        """End what is on its way, so that the thread ends; return whether anybody was reached."""
        with self._lock:
            self._is_abandoned = True
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        return self.forget()

    def forget(self) -> bool:
        """Close the second handles; return whether there were any."""
        with self._lock:
            for sock in self._sockets:
                sock.close()
            return bool(self._sockets)


class _Noted(HTTPConnection):
    """A connection that notes its socket for the call at hand."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _this_thread.running.uses(sock)
        return sock

    def request(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        if self.sock:  # of an earlier call, kept open
            _this_thread.running.uses(self.sock)
        super().request(*arguments, **options)


class _NotedTLS(_Noted, HTTPSConnection):
    """The same over TLS."""


class _BoundedAdapter(HTTPAdapter):
    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes

    def get_connection_with_tls_context(
        self,
        *arguments: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*arguments, **options)
        assert isinstance(pool, HTTPConnectionPool)
        pool.ConnectionCls = _NotedTLS if isinstance(pool, HTTPSConnectionPool) else _Noted
        return pool

    def send(
        self,
        request: requests.PreparedRequest,
        *_: object,
        **options: Any,  # noqa: ANN401
    ) -> requests.Response:
        answer = super().send(request, **(options | {"stream": True}))
        content = bytearray()
        for chunk in answer.iter_content(READ_AT_ONCE):
            content += chunk
            if len(content) >= self._most_bytes:
                answer.raw.close()
                break
        # As `Response.content` does when it has read everything.
        answer._content = bytes(content[: self._most_bytes])  # noqa: SLF001
        answer._content_consumed = True  # type: ignore[attr-defined]  # noqa: SLF001
        return answer
