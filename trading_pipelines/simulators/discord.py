"""A stand-in for a Discord webhook on loopback: takes messages as Discord does, or fails on demand.

Here belongs how Discord answers, and how it shows a message. What is in a message belongs to who
posts it; nothing else of the project is imported, so that a test compares with Discord and not with
ourselves.
"""

import json
import math
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from threading import Condition, Event, Thread
from typing import Any, Literal, Self, get_args
from urllib.parse import parse_qsl, urlsplit

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from trading_pipelines.simulators.loopback import LoopbackServer, reset

FaultKind = Literal[
    "204", "400", "401", "403", "404", "429", "500", "forum", "hang", "reset", "lost answer"
]
"""204 and `lost answer` take the message: the one answers without it, the other not at all.

`forum` wants a thread, which the webhook's URL may name.
"""

HOLD_SECONDS = 60.0  # longer than any client waits
WINDOW_SECONDS, WINDOW_REQUESTS = 2.0, 5
LIMITS = {"title": 256, "description": 4096}
FIELD_LIMITS = {"name": 256, "value": 1024}
MOST_CONTENT, MOST_EMBEDS, MOST_FIELDS, MOST_FOOTER, MOST_IN_ALL = 2000, 10, 25, 2048, 6000

_WEBHOOK = re.compile(r"/api(/v\d+)?/webhooks/\d+/[\w-]+")


@dataclass(frozen=True)
class Message:
    """A message that was taken: with the id that Discord gave it, and the URL's query."""

    at: datetime
    id: str
    payload: dict[str, Any]
    query: dict[str, str]


@dataclass
class _Fault:
    kinds: tuple[FaultKind, ...]
    every: int
    one_in: int
    remaining: int | None
    retry_after: float
    random: random.Random
    seen: int = 0

    def strike(self) -> FaultKind | None:
        """Return how the request at hand has to fail, None where it has not."""
        self.seen += 1
        chosen = self.random.randrange(self.one_in) == 0
        if not self.kinds or self.remaining == 0 or self.seen % self.every or not chosen:
            return None
        if self.remaining is not None:
            self.remaining -= 1
        return self.random.choice(self.kinds)


class DiscordInbox:
    """A webhook of Discord's while its `with` block lasts, on loopback; `port` 0 takes a free one.

    `limited`: enforce Discord's rate limit, 5 requests in 2 s, with 429.
    """

    def __init__(self, *, limited: bool = False, port: int = 0, host: str = "127.0.0.1") -> None:
        self.limited = limited
        self.stopped = Event()
        self._address = (host, port)
        self._changed = Condition()
        self._messages: list[Message] = []
        self._requests = 0
        self._arrivals: deque[float] = deque()
        self.heal()

    def __enter__(self) -> Self:
        """Listen; raises PortError when the port is taken."""
        self._server = _Server(self._address, self)
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening, and end the requests that hang."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The webhook's URL, as Discord's settings show it: without a query."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/api/webhooks/1/token"

    @property
    def messages(self) -> list[Message]:
        """The messages that were taken, in their order."""
        with self._changed:
            return list(self._messages)

    @property
    def requests(self) -> int:
        """How many posts to a webhook there were, failed and refused ones included."""
        with self._changed:
            return self._requests

    def clear(self) -> None:
        """Forget all messages and requests, and fail no more."""
        with self._changed:
            self._messages.clear()
            self._arrivals.clear()
            self._requests = 0
        self.heal()

    def fail(
        self,
        *kinds: FaultKind,
        every: int = 1,
        one_in: int = 1,
        times: int | None = None,
        retry_after: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Fail from now on: every n-th request, one in m of those by chance, `times` in all.

        Of several kinds one is chosen by chance, which `seed` makes the same each time. Raises
        ValueError for a kind that is none.
        """
        if unknown := set(kinds) - set(get_args(FaultKind)):
            raise ValueError(f"{unknown} is no fault; allowed: {get_args(FaultKind)}")
        chance = random.Random(seed)  # noqa: S311
        with self._changed:
            self._fault = _Fault(kinds, every, one_in, times, retry_after, chance)

    def heal(self) -> None:
        """Fail no more."""
        self.fail()

    def wait_for(self, predicate: Callable[[Message], bool], timeout: float) -> Message:
        """Return the first message that meets the predicate; raises TimeoutError without one."""

        def first() -> Message | None:
            return next(filter(predicate, self._messages), None)

        with self._changed:
            message = self._changed.wait_for(first, timeout)
        if message is None:
            raise TimeoutError(f"no such message within {timeout:g} s")
        return message

    def answer(self, path: str, body: bytes) -> tuple[int | FaultKind, dict[str, Any] | None]:
        """Return the status and the body of the answer, or the fault of the connection.

        The message is taken where Discord would take it.
        """
        url = urlsplit(path)
        if not _WEBHOOK.fullmatch(url.path):
            return 404, {"message": "404: Not Found", "code": 0}
        query = dict(parse_qsl(url.query))
        with self._changed:
            self._requests += 1
            fault = self._fault.strike()
            wait = self._fault.retry_after if fault == "429" else self._over_the_limit()
            if wait:
                refused = {"message": "You are being rate limited.", "global": False}
                return 429, {**refused, "retry_after": round(wait, 3)}
            payload = _parsed(body)
            has_thread = "thread_id" in query or "thread_name" in (payload or {})
            if fault in _CANNED and not (fault == "forum" and has_thread):
                return _CANNED[fault]
            if problem := refusal(payload):
                return 400, problem
            message_id = str(1_300_000_000_000_000_000 + len(self._messages))
            self._messages.append(Message(datetime.now(UTC), message_id, payload, query))
            self._changed.notify_all()
        if fault == "lost answer":
            return fault, None
        has_body = query.get("wait") == "true" and fault != "204"
        return (200, {"id": message_id, "type": 0, **payload}) if has_body else (204, None)

    def _over_the_limit(self) -> float:
        now = time.monotonic()
        while self._arrivals and self._arrivals[0] <= now - WINDOW_SECONDS:
            self._arrivals.popleft()
        if self.limited and len(self._arrivals) >= WINDOW_REQUESTS:
            return self._arrivals[0] + WINDOW_SECONDS - now
        self._arrivals.append(now)
        return 0.0


_CANNED: dict[FaultKind | None, tuple[int | FaultKind, dict[str, Any] | None]] = {
    "hang": ("hang", None),
    "reset": ("reset", None),
    "400": (400, {"message": "Invalid Form Body", "code": 50035, "errors": {}}),
    "401": (401, {"message": "Invalid Webhook Token", "code": 50027}),
    "403": (403, {"message": "Missing Permissions", "code": 50013}),
    "forum": (
        400,
        {
            "message": "Webhooks posted to forum channels must have a thread_name or thread_id",
            "code": 220001,
        },
    ),
    "404": (404, {"message": "Unknown Webhook", "code": 10015}),
    "500": (500, {"message": "500: Internal Server Error", "code": 0}),
}


def refusal(payload: Any) -> dict[str, Any] | None:  # noqa: ANN401
    """Return the body with which Discord answers 400, or None where it takes the message."""
    if not isinstance(payload, dict):
        return {"message": "The request body contains invalid JSON.", "code": 50109}
    errors: dict[str, Any] = {}
    for path, code, message in _errors(payload):
        place = errors
        for step in path:
            place = place.setdefault(str(step), {})
        place.setdefault("_errors", []).append({"code": code, "message": message})
    if errors:
        return {"message": "Invalid Form Body", "code": 50035, "errors": errors}
    if not str(payload.get("content") or "").strip() and not any(
        map(_visible, payload.get("embeds") or [])
    ):
        return {"message": "Cannot send an empty message", "code": 50006}
    return None


def show_message(payload: dict[str, Any]) -> Group:
    """Return a message much as Discord would show it: a panel an embed, in the embed's colour."""
    content = payload.get("content")
    return Group(*([Text(content)] if content else []), *map(_panel, payload.get("embeds") or []))


_Error = tuple[tuple[str | int, ...], str, str]


def _errors(payload: dict[str, Any]) -> Iterator[_Error]:
    yield from _too_long(("content",), payload.get("content"), MOST_CONTENT)
    embeds = payload.get("embeds") or []
    if len(embeds) > MOST_EMBEDS:
        yield ("embeds",), "BASE_TYPE_BAD_LENGTH", f"Must be {MOST_EMBEDS} or fewer in length."
    total = 0
    for n, embed in enumerate(embeds):
        place = ("embeds", n)
        fields, footer = embed.get("fields") or [], embed.get("footer")
        for name, most in LIMITS.items():
            yield from _too_long((*place, name), embed.get(name), most)
        if footer is not None:
            text = (*place, "footer", "text")
            yield from _needed(text, footer.get("text"), MOST_FOOTER)
        if len(fields) > MOST_FIELDS:
            message = f"Must be {MOST_FIELDS} or fewer in length."
            yield (*place, "fields"), "BASE_TYPE_BAD_LENGTH", message
        for m, field in enumerate(fields):
            for name, most in FIELD_LIMITS.items():
                yield from _needed((*place, "fields", m, name), field.get(name), most)
        texts = [*(embed.get(name) for name in LIMITS), (footer or {}).get("text")]
        texts += [field.get(name) for field in fields for name in FIELD_LIMITS]
        total += sum(map(_length, texts))
    if total > MOST_IN_ALL:
        message = f"Embed size exceeds maximum size of {MOST_IN_ALL}"
        yield ("embeds",), "MAX_EMBED_SIZE_EXCEEDED", message


def _needed(path: tuple[str | int, ...], text: object, most: int) -> Iterator[_Error]:
    if text is None or not str(text).strip():
        yield path, "BASE_TYPE_REQUIRED", "This field is required"
    yield from _too_long(path, text, most)


def _too_long(path: tuple[str | int, ...], text: object, most: int) -> Iterator[_Error]:
    if _length(text) > most:
        yield path, "BASE_TYPE_MAX_LENGTH", f"Must be {most} or fewer in length."


def _length(text: object) -> int:
    # In UTF-16 units: the strictest way to count, whichever way Discord does.
    return 0 if text is None else len(str(text).encode("utf-16-le", "surrogatepass")) // 2


def _visible(embed: dict[str, Any]) -> bool:
    return any(str(embed.get(name) or "").strip() for name in LIMITS) or bool(embed.get("fields"))


def _panel(embed: dict[str, Any]) -> Panel:
    colour = f"#{embed.get('color') or 0x4F545C:06x}"
    parts: list[RenderableType] = []
    if description := embed.get("description"):
        parts.append(Text(description))
    inline: list[Text] = []
    for field in [*(embed.get("fields") or []), {}]:
        text = Text.assemble((field.get("name", ""), "bold"), "\n", field.get("value", ""))
        if field.get("inline"):
            inline.append(text)
            continue
        if inline:
            parts.append(Columns(inline, padding=(0, 3)))
            inline = []
        if field:
            parts.append(text)
    footer = Text((embed.get("footer") or {}).get("text", ""), style="dim")
    return Panel(
        Group(*parts),
        title=Text(embed.get("title") or "", style=f"bold {colour}"),
        subtitle=footer or None,
        title_align="left",
        subtitle_align="left",
        border_style=colour,
    )


def _parsed(body: bytes) -> Any:  # noqa: ANN401
    try:
        return json.loads(body)
    except ValueError:
        return None


class _Server(LoopbackServer):
    def __init__(self, address: tuple[str, int], inbox: DiscordInbox) -> None:
        self.inbox = inbox
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "discord-inbox"

    def log_message(self, *_: object) -> None:
        """Stay quiet: `messages` says what came."""

    def do_POST(self) -> None:
        inbox = self.server.inbox
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, content = inbox.answer(self.path, body)
        if isinstance(status, str):
            if status == "hang":
                inbox.stopped.wait(HOLD_SECONDS)
            reset(self)
        self.send_response(status)
        if content is not None:
            data = json.dumps(content).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if "retry_after" in content:
                self.send_header("Retry-After", str(math.ceil(content["retry_after"])))
        self.end_headers()
        if content is not None:
            self.wfile.write(data)
