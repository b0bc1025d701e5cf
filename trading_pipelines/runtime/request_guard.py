"""What the web UI answers to: its own pages, tools, and nobody else's pages.

Dagster has no log-in and does what any GraphQL request asks. So does a browser: a foreign page can
make it send forms, images, WebSockets and names that were rebound to 127.0.0.1. As ASGI middleware
these doors stand before whatever is served. docs/security.md has what was tried.
"""

from collections.abc import Iterable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
BODY_BYTES = 8_000_000
"""The longest body: the UI names each partition, 5.5 MB for 200 symbols over three years."""

GRAPHQL = "/graphql"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The UI copies to the clipboard, and needs none of these.
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), usb=()",
}
# A header of its own: a browser obeys each, so Dagster's with its nonce stays as it is.
POLICY = "frame-ancestors 'none'; form-action 'self'; base-uri 'none'; object-src 'none'"


class RequestGuard:
    """An ASGI application that lets to another only what comes from where it may.

    `hosts` are names beside the loopback's, without ports. Refused are: another Host (400), the
    request of a foreign page (403), a path with `..` (400), GraphQL by GET (405), a POST that is
    not JSON (415) and a body above BODY_BYTES (413).
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = TrustedHostMiddleware(
            _Requests(app), allowed_hosts=[*LOOPBACK, *hosts], www_redirect=False
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, one WebSocket or the server's start and end."""

        async def send_closed(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.append("Content-Security-Policy", POLICY)
            await send(message)

        await self._app(scope, receive, send_closed)


class _Requests:
    """Refuses by what a request says of itself; its Host has been judged already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            _judge(scope, Headers(scope=scope))
        except HTTPException as refusal:
            response = PlainTextResponse(
                refusal.detail, refusal.status_code, headers=refusal.headers
            )
            await response(scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)


def _judge(scope: Scope, headers: Headers) -> None:
    origin = headers.get("origin")
    # With its port, as another port of the same machine is another's page; without its scheme,
    # which is https before a proxy that speaks http to us.
    if origin is not None and origin.partition("://")[2].lower() != headers["host"].lower():
        raise HTTPException(403, "this origin may not ask here")
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not (
        _follows_a_link(scope, headers)
    ):
        raise HTTPException(403, "another site's page may link here, and no more")
    if ".." in scope["path"].split("/"):
        raise HTTPException(400, "no such path")
    if scope["type"] == "http":
        _judge_method(scope["method"], scope["path"], headers)


def _follows_a_link(scope: Scope, headers: Headers) -> bool:
    return (
        scope.get("method") == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _judge_method(method: str, path: str, headers: Headers) -> None:
    # To whoever takes HTML Dagster gives a page to write queries on, and executes nothing.
    if path == GRAPHQL and method != "POST" and "text/html" not in headers.get("accept", ""):
        raise HTTPException(405, "GraphQL is asked by POST", headers={"Allow": "POST"})
    # A form can't send this type, and no page a foreign one without asking first.
    if method == "POST" and _media_type(headers) != "application/json":
        raise HTTPException(415, "POST application/json")
    if int(headers.get("content-length", 0)) > BODY_BYTES:
        raise _too_long()


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _limited(receive: Receive) -> Receive:
    read = 0

    async def receive_limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > BODY_BYTES:
            raise _too_long()
        return message

    return receive_limited


def _too_long() -> HTTPException:
    # What is still on its way is not read.
    return HTTPException(413, f"more than {BODY_BYTES} bytes", headers={"Connection": "close"})
