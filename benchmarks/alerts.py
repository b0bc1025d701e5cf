"""How long an alert takes: from the commit of a decision to Discord, through the real n8n.

Measured, on a fresh home with the real daemon and embedded Postgres, with a stand-in for Discord:
seconds from the commit of a REJECT to the moment the stand-in has it, decisions at moments of
chance; the same while Discord refuses one call in five, and with 100,000 old decisions in the
table; beside them what the same decisions would
take if a tick looked once and left, every 5 s, as Dagster's loop alone does; then a burst of 1,000
in one transaction; queries a minute with nothing to do; and how long the daemon takes to stop in
the middle of a tick. Needs n8n (`make n8n`).

Not measured: Discord itself and the way there.
"""

import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, LiteralString, NamedTuple

import psycopg
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.delivery import Sender
from trading_pipelines.alerts.kinds import AI_REJECT, KINDS
from trading_pipelines.alerts.n8n.local import LocalN8n
from trading_pipelines.alerts.webhooks import Webhooks
from trading_pipelines.database.connection import connect, prepare_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import AlertSettings, DataSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.discord import DiscordInbox, Message

SECRET = "a-secret-of-the-benchmark"  # noqa: S105
OLD, BURST = 100_000, 1_000
LOOP_SECONDS = 5.0
AWAIT_SECONDS = 180.0
MEDIAN_TARGET, P95_TARGET, LONGEST_TARGET = 0.5, 3.0, 20.0
REJECT = """
INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, created_at)
SELECT 'KRW-BTC', 'benchmark', 'REJECT', %s, %s FROM generate_series(1, %s)
"""
# Autocommit: each query is a transaction.
QUERIES = """
SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()
"""
DIGESTED = "SELECT count(*) FROM trading_pipelines.alert_deliveries WHERE state = 'digested'"
WAITING = """
SELECT (SELECT count(*) FROM agent_decisions WHERE reasoning = 'burst')
    - (SELECT count(*) FROM trading_pipelines.alert_deliveries
       WHERE body ->> 'reason' = 'burst' AND state IN ('digested', 'delivered'))
    + (SELECT count(*) FROM trading_pipelines.alert_deliveries
       WHERE source = 'digest' AND state <> 'delivered')
"""


class Latencies(NamedTuple):
    """Seconds from commit to Discord, of decisions made in one way."""

    label: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """The one that 95 in 100 are not above."""
        return statistics.quantiles(self.seconds, n=20)[-1]


def decide(connection: psycopg.Connection, reason: str, at: datetime, count: int = 1) -> float:
    """Commit rejections; return when they were."""
    connection.execute(REJECT, [reason, at, count])
    return time.time()


def tells(reason: str, message: Message) -> bool:
    """Say whether it is the alert of the decision with this reason."""
    return any(field["value"] == reason for field in message.payload["embeds"][0]["fields"])


def latencies(
    label: str, connection: psycopg.Connection, inbox: DiscordInbox, count: int
) -> Latencies:
    """Measure single decisions at moments of chance, one after the other."""
    chance = random.Random(count)  # noqa: S311
    seconds = []
    for number in range(count):
        time.sleep(chance.uniform(0.5, 4))
        reason = f"{label} {number}"
        committed = decide(connection, reason, datetime.now(UTC))
        message = inbox.wait_for(partial(tells, reason), AWAIT_SECONDS)
        seconds.append(message.at.timestamp() - committed)
    return Latencies(label, seconds)


@contextmanager
def looking_every_5_s(url: str, posting: Webhooks, settings: AlertSettings) -> Iterator[None]:
    """Deliver as ticks that look once and leave would: what Dagster's loop alone does."""
    over = Event()

    def loop() -> None:
        with connect(url) as connection:
            sender = Sender(connection, AI_REJECT, settings, posting)
            while not over.wait(LOOP_SECONDS):
                sender.deliver(over.is_set, watch=False)

    with connect(url) as connection:
        ledger.enable(connection, AI_REJECT, None, datetime.now(UTC))
    thread = Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def count_of(connection: psycopg.Connection, query: LiteralString) -> int:
    """Return the one number of the query."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def kinds_on(connection: psycopg.Connection) -> int:
    """Return how many kinds of alerts have had their first tick."""
    return count_of(connection, "SELECT count(*) FROM trading_pipelines.alert_kinds")


def await_that(holds: Callable[[], bool]) -> float:
    """Wait until it holds; return the seconds that took. Raises TimeoutError."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > AWAIT_SECONDS:
            raise TimeoutError
        time.sleep(0.05)
    return time.monotonic() - started


def print_table(measured: Sequence[Latencies]) -> None:
    """Print the latencies, and how many times faster than the loop alone."""
    table = Table(title="seconds from commit to Discord", title_justify="left")
    table.add_column("")
    for name in ("decisions", "median", "95th percentile", "longest", "loop's median / ours"):
        table.add_column(name, justify="right")
    for row in measured:
        table.add_row(
            row.label,
            f"{len(row.seconds)}",
            f"{row.median:.2f}",
            f"{row.p95:.2f}",
            f"{max(row.seconds):.2f}",
            f"{measured[0].median / row.median:.1f}",
        )
    Console(width=120).print(table)


def main(count: Annotated[int, typer.Option(help="Decisions in each measurement.")] = 60) -> None:
    """Measure, print, and fail where a target is missed."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    settings = AlertSettings(messages_per_minute=150)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        inbox = stack.enter_context(DiscordInbox())
        folder = home / "n8n"
        local = stack.enter_context(LocalN8n(folder, secret=SECRET, discord_url=inbox.url))
        environment = Environment(
            trading_pipelines_home=home,
            n8n_url=SecretStr(local.url),
            n8n_webhook_secret=SecretStr(SECRET),
        )
        stack.callback(EmbeddedServer(home).stop)
        urls = prepare_database(environment)
        config = home / "strategy.yaml"
        dump_strategy(StrategySettings(data=DataSettings(refresh=False), alerts=settings), config)
        connection = stack.enter_context(connect(urls.market))
        posting = Webhooks(local.url, SECRET, None, settings.timeout_seconds)
        with looking_every_5_s(urls.market, posting, settings):
            measured = [latencies("a look every 5 s", connection, inbox, count // 2)]
        with Supervisor(environment, urls, config):
            await_that(lambda: kinds_on(connection) == len(KINDS))
            measured.append(latencies("ours", connection, inbox, count))
            inbox.fail("500", one_in=5)
            measured.append(latencies("ours, one call in five failing", connection, inbox, count))
            inbox.heal()
            decide(connection, "old", datetime.now(UTC) - timedelta(days=1), OLD)
            connection.execute("ANALYZE agent_decisions")
            measured.append(latencies("ours, 100,000 old decisions", connection, inbox, count))
            queries = count_of(connection, QUERIES)
            time.sleep(60)
            queries = count_of(connection, QUERIES) - queries
            before = len(inbox.messages)
            decide(connection, "burst", datetime.now(UTC), BURST)
            burst = await_that(lambda: count_of(connection, WAITING) == 0)
            digested, sent = count_of(connection, DIGESTED), len(inbox.messages) - before
            stopping = time.monotonic()
        stopping = time.monotonic() - stopping
    print_table(measured)
    print(f"a burst of {BURST:,}: {digested} in {sent} messages within {burst:.1f} s")
    print(f"queries a minute with nothing to do: {queries}")
    print(f"all services stopped, in the middle of ticks, within {stopping:.1f} s")
    if missed := [
        row.label
        for row in measured[1:]
        if row.median > MEDIAN_TARGET or row.p95 > P95_TARGET or max(row.seconds) > LONGEST_TARGET
    ]:
        sys.exit(
            f"missed (median {MEDIAN_TARGET} s, 95th percentile {P95_TARGET} s, longest "
            f"{LONGEST_TARGET} s): {missed}"
        )


if __name__ == "__main__":
    typer.run(main)
