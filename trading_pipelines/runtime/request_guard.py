"""The request guard: the web UI answers its own pages and tools, and no page of another site.

Dagster has no log-in and does what any GraphQL request asks. A page of another site can make a
browser send such requests: by forms, images, WebSockets, and names that were rebound to 127.0.0.1.
The guard is ASGI middleware before whatever is served. docs/security.md lists the attacks tried.
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
# A second header of that name: a browser obeys both, so Dagster's with its nonce stays.
POLICY = "frame-ancestors 'none'; form-action 'self'; base-uri 'none'; object-src 'none'"


class RequestGuard:
    """An ASGI application that passes allowed requests on to `app` and refuses the others.

    `hosts` are names beside the loopback's, without ports. It refuses another Host (400), a request
    from another site's page (403), a path with `..` (400), GraphQL by GET (405), a POST that is not
    JSON (415) and a body above BODY_BYTES (413).
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = TrustedHostMiddleware(
            _Requests(app), allowed_hosts=[*LOOPBACK, *hosts], www_redirect=False
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, one WebSocket or the server's start and end."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.append("Content-Security-Policy", POLICY)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Requests:
    """Refuses by a request's other headers and its path; its Host was judged before."""

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
    # Compared with its port, because another port of the machine serves another site's pages, and
    # without its scheme, because a proxy may take https and speak http to us.
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
    # Who accepts HTML gets Dagster's page for writing queries, and nothing is executed.
    if path == GRAPHQL and method != "POST" and "text/html" not in headers.get("accept", ""):
        raise HTTPException(405, "GraphQL is asked by POST", headers={"Allow": "POST"})
    # A form can't send this type, and a page can't send it to another site without asking first.
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
