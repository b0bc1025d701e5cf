"""How fast the two databases grow, table by table, at the default cadence.

Measured, on a fresh home with the real daemon, web UI and embedded Postgres: five symbols of a
generated market, a history of 20 days, and one REJECT a minute (more than a bot makes) that goes to
a stand-in for Discord. When nothing is due any more, each table's bytes (with indexes and TOAST)
and rows are taken; again at the end; the difference is scaled to a day.

What comes once an hour (labels, forecasts) is right when whole hours are measured; what comes once
a day (scores, models, reports, housekeeping itself) is not in it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

import psycopg
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from trading_pipelines.candles import coverage, due
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database.connection import DatabaseUrls, connect, prepare_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

HISTORY = timedelta(days=20)
FILLED_WITHIN_SECONDS = 1200.0
QUIET_SECONDS = 60.0
REJECT = """
INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, created_at)
VALUES ('KRW-BTC', 'benchmark', 'REJECT', %s, now())
"""
REASON = "거래량이 줄고 이동평균 아래에 있어 진입하지 않음. " * 8
TABLES = """
SELECT oid::regclass::text, pg_total_relation_size(oid) FROM pg_class
WHERE relkind = 'r' AND relnamespace NOT IN
    (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\\_%' OR nspname = 'information_schema')
"""


class Size(NamedTuple):
    """What one table takes on disk, indexes and TOAST with it, and its rows."""

    bytes: int
    rows: int


def sizes(urls: DatabaseUrls) -> dict[tuple[str, str], Size]:
    """Return the size of each table of both databases, by (database, table)."""
    by_table = {}
    for name, url in (("market", urls.market), ("dagster", urls.dagster)):
        with connect(url) as connection:
            for table, size in connection.execute(TABLES).fetchall():
                row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
                by_table[name, table] = Size(size, row[0] if row else 0)
    return by_table


def is_filled(connection: psycopg.Connection, settings: StrategySettings) -> bool:
    """Whether nothing of the history is due any more."""
    now = datetime.now(UTC)
    days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
    candles = coverage.read(connection, settings.symbols, days)
    return all(
        due.reason(day, now) in {None, due.CandleDueReason.OPEN} for day in candles
    ) and not any(
        signals_due.reason(partition, signal, settings, now)
        for signal in SIGNALS
        for partition in signal_coverage.read(connection, signal, settings.symbols, days, settings)
    )


def await_that(holds: Callable[[], bool]) -> None:
    """Wait until it has held for a minute. Raises TimeoutError."""
    deadline = time.monotonic() + FILLED_WITHIN_SECONDS
    since = time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(5)
        if not holds():
            since = time.monotonic()


def print_growth(
    before: dict[tuple[str, str], Size], after: dict[tuple[str, str], Size], seconds: float
) -> None:
    """Print each table that grew, the fastest first, and the sum of both databases."""
    table = Table(title=f"growth, measured for {seconds / 60:.0f} min", title_justify="left")
    table.add_column("database")
    table.add_column("table")
    for name in ("rows now", "MB now", "rows/day", "MB/day"):
        table.add_column(name, justify="right")
    days = seconds / DAY.total_seconds()
    empty = Size(0, 0)
    grown = {
        key: Size(
            after[key].bytes - before.get(key, empty).bytes,
            after[key].rows - before.get(key, empty).rows,
        )
        for key in after
    }
    for key, size in sorted(grown.items(), key=lambda item: -item[1].bytes):
        if any(size):
            table.add_row(
                *key,
                f"{after[key].rows:,}",
                f"{after[key].bytes / 1e6:.2f}",
                f"{size.rows / days:,.0f}",
                f"{size.bytes / 1e6 / days:.2f}",
            )
    Console(width=110).print(table)
    for name in ("market", "dagster"):
        total = sum(size.bytes for key, size in grown.items() if key[0] == name)
        print(f"{name}: {total / 1e6 / days:.1f} MB a day")


def main(
    minutes: Annotated[float, typer.Option(help="How long to measure; best whole hours.")] = 60,
) -> None:
    """Fill, measure and print."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    start_date = (datetime.now(UTC) - HISTORY).date()
    settings = StrategySettings(data=DataSettings(start_date=start_date))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        inbox = stack.enter_context(DiscordInbox())
        market = GeneratedMarket(settings.symbols)
        exchange = stack.enter_context(ReplayExchange(market, rate=None, latency=0.002))
        environment = Environment(
            trading_pipelines_home=home,
            upbit_base_url=exchange.url,
            discord_webhook_url=SecretStr(inbox.url),
        )
        stack.callback(EmbeddedServer(home).stop)
        urls = prepare_database(environment)
        config = home / "strategy.yaml"
        dump_strategy(settings, config)
        connection = stack.enter_context(connect(urls.market))
        stack.enter_context(Supervisor(environment, urls, config))
        await_that(lambda: is_filled(connection, settings))
        before, started = sizes(urls), time.monotonic()
        print(f"filled: measuring from {datetime.now(UTC):%H:%M} UTC", flush=True)
        while (passed := time.monotonic() - started) < minutes * 60:
            connection.execute(REJECT, [REASON])
            time.sleep(min(60.0, minutes * 60 - passed))
        print_growth(before, sizes(urls), time.monotonic() - started)


if __name__ == "__main__":
    typer.run(main)
