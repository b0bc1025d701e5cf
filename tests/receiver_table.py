"""The table of docs/reliability.md: what became of an alert before each receiver, and after it.

Whoever runs a row gives the way to the receiver: straight, or through a real n8n.
"""

import itertools
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.alerts.conftest import Bot, Clock
from tests.receivers import LATE, LONG, UNPACKED, Answer, Connection, receiver, whole
from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.delivery import Sender
from trading_pipelines.alerts.kinds import AI_REJECT
from trading_pipelines.alerts.webhooks import Webhooks
from trading_pipelines.settings.strategy import AlertSettings

FORUM = "Webhooks posted to forum channels must have a thread_name or thread_id"
OWN_BODY = "400 for the message's own body"
RECEIVERS: dict[str, Answer] = {
    **LATE,
    **LONG,
    "a portal's page, 200": whole("200 OK", b"<html>Log in</html>"),
    "200 without a body": whole("200 OK"),
    "a bare 204": lambda connection: connection.send(
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    ),
    "302": whole("302 Found", b"", "Location: https://elsewhere.example/"),
    "404, webhook deleted": whole("404 Not Found", {"message": "Unknown Webhook", "code": 10015}),
    "401, wrong token": whole("401 No", {"message": "Invalid Webhook Token", "code": 50027}),
    "403, no permission": whole("403 No", {"message": "Missing Permissions", "code": 50013}),
    "400, a forum": whole("400 Bad", {"message": FORUM, "code": 220001}),
    "429 for 20.5 s": whole("429 Slow", {"message": "slow", "retry_after": 20.5}),
    "429 of Cloudflare's": whole("429 Slow", b"<html>Error 1015</html>"),
    "429 for 10^14 s": whole("429 Slow", b"", "Retry-After: 100000000000000"),
    "500": whole("500 Oops", {"message": "500: Internal Server Error", "code": 0}),
    OWN_BODY: whole("400 Bad", {"message": "Invalid Form Body", "code": 50035}),
}
TICK_SECONDS = 20.0


class Discord:
    """A webhook that answers as it is told, and takes messages when it is well."""

    def __init__(self) -> None:
        self.fault: Answer | None = None
        self.posts = 0
        self.asked = threading.Event()
        self.taken: list[str] = []
        self.ids = itertools.count(1)

    def __call__(self, connection: Connection) -> None:
        self.posts += 1
        fault = self.fault
        self.asked.set()
        if fault:
            fault(connection)
            return
        embed = json.loads(connection.body)["embeds"][0]
        self.taken.append(embed["footer"]["text"])
        whole("200 OK", {"id": str(next(self.ids)), "embeds": [embed]})(connection)


@contextmanager
def discord() -> Iterator[tuple[Discord, str]]:
    """Yield a webhook and its URL."""
    webhook = Discord()
    with receiver(webhook) as url:
        yield webhook, f"{url}/api/webhooks/1/token"


@dataclass(frozen=True)
class Row:
    """What became of an alert; the state while the receiver was so, and after it was mended."""

    receiver: str
    way: str
    posts: int
    meanwhile: str
    after: str
    taken: int
    late: timedelta
    tick: float
    megabytes: float

    def __str__(self) -> str:
        cells = [self.receiver, self.way, self.posts, self.meanwhile, self.after, self.taken]
        measured = [self.late, f"{self.tick:.1f} s", f"{self.megabytes:.1f} MB"]
        return f"| {' | '.join(map(str, cells + measured))} |"


def run(bot: Bot, webhook: Discord, name: str, way: str, webhooks: Webhooks) -> Row:
    """Send one alert to the receiver, mend it, and wait by the ledger's clock until it is done."""
    clock = Clock(datetime.now(UTC) + timedelta(hours=1))
    ledger.enable(bot.connection, AI_REJECT, None, clock.now - timedelta(hours=1))
    sender = Sender(bot.connection, AI_REJECT, AlertSettings(), webhooks, clock, lambda: 1.0)
    webhook.fault, webhook.posts, webhook.taken = RECEIVERS[name], 0, []
    webhook.asked.clear()
    bot.reject(clock.now)
    began, ticks, peak = clock.now, [], 0.0

    def tick() -> str:
        nonlocal peak
        tracemalloc.start()
        started = time.monotonic()
        sender.deliver(lambda: False, watch=False)
        ticks.append(time.monotonic() - started)
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        return str(bot.ledger("state")[0])

    meanwhile = after = tick()
    # A busy n8n once posted 15 s after it was called: to a receiver that was well again. One that
    # stood still when it was called forgets the call.
    webhook.asked.wait(30)
    webhook.fault = None
    while after in {"pending", "retrying"} and clock.now - began < timedelta(hours=1):
        clock.advance(5)
        after = tick()
    taken, late = len(webhook.taken), clock.now - began
    return Row(name, way, webhook.posts, meanwhile, after, taken, late, max(ticks), peak / 1e6)


def check(row: Row) -> None:
    """Nothing is lost, said to be delivered that was not, or sent twice; ticks end, memory flat."""
    assert row.meanwhile == ("dead" if row.receiver == OWN_BODY else "retrying"), row
    assert row.after == ("dead" if row.receiver == OWN_BODY else "delivered"), row
    assert row.taken == (row.after == "delivered"), row
    assert row.tick < TICK_SECONDS, row
    assert row.megabytes * 1e6 < UNPACKED / 8, row
