"""The one way in which the project asks another by HTTP: each call ends, and no answer is too long.

Here belongs how a call is bounded, in time and in bytes. What is asked, and what an answer means,
belongs to the modules that ask. `tests/test_http_calls.py` finds a call that goes round this.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from os import dup
from typing import Any, TypeVar

import requests
import urllib3.exceptions
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

CONNECT_SECONDS = 3.0
KILOBYTE, MEGABYTE = 1 << 10, 1 << 20
READ_AT_ONCE = 16 * KILOBYTE

T = TypeVar("T")

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
        self.on_sent: Callable[[float], object] = lambda _: None
        """Called when a request leaves, with the moment in monotonic seconds, in another thread."""
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
        options["timeout"] = (min(CONNECT_SECONDS, self._seconds), self._seconds)
        ask = super().request
        self.answer = self._bounded(lambda: ask(*arguments, **options))
        return self.answer

    def connect(self, url: str) -> None:
        """Open the connection of the next call to `url`, unless one is open; for a call on time.

        What fails is left to the call to report, as is the way through a proxy.
        """
        adapter = self.get_adapter(url)
        assert isinstance(adapter, _BoundedAdapter)
        request = self.prepare_request(requests.Request("GET", url))
        settings = self.merge_environment_settings(url, {}, None, None, None)
        with suppress(OSError, urllib3.exceptions.HTTPError):
            self._bounded(lambda: adapter.connect(request, settings))

    def _bounded(self, do: Callable[[], T]) -> T:
        """Return what `do` returns within the session's time; raises as it does and as `request`.

        It is done in a thread of its own: nothing ends a look-up of a name before it is done.
        """
        deadline = time.monotonic() + self._seconds
        running = _Running(self.on_sent)
        done: list[T] = []

        def run() -> None:
            _this_thread.running = running
            try:
                done.append(do())
            # Whoever waits raises it.
            except BaseException as error:  # noqa: BLE001
                running.error = error

        thread = threading.Thread(target=run, name="http call", daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            kind = requests.ReadTimeout if running.abandon() else requests.ConnectTimeout
            late = f"no whole answer within {self._seconds:g} s"
            raise kind(late) from TimeoutError(late)
        running.forget()
        if running.error:
            raise running.error
        return done[0]


class _Running:
    """A call at hand, its sockets, and its error."""

    def __init__(self, on_sent: Callable[[float], object]) -> None:
        self.error: BaseException | None = None
        self.on_sent = on_sent
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
        # Not before: on a busy machine a thread may stand still in between.
        _this_thread.running.on_sent(time.monotonic())


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

    def connect(self, request: requests.PreparedRequest, settings: Mapping[str, Any]) -> None:
        """Leave an open connection where the next request looks for one."""
        options = {name: settings[name] for name in ("verify", "proxies", "cert")}
        pool = self.get_connection_with_tls_context(request, **options)
        if pool.proxy is None:
            connection = pool._get_conn()  # noqa: SLF001 - only a whole request opens one otherwise
            if connection.is_closed:
                connection.timeout = CONNECT_SECONDS
                connection.connect()
            pool._put_conn(connection)  # noqa: SLF001

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
