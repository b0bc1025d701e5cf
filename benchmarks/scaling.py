"""What grows with the number of symbols: a drill of one hour, and then five quiet minutes.

Measured, for each number of symbols, on a fresh home with the real daemon, web UI and embedded
Postgres, against a generated market at Upbit's limit: how long it takes to heal an hour of downtime
and, when nothing is due any more, how long a refresh and a tick of each schedule take, how many
events a refresh leaves, what the processes hold in memory and how long the UI's partitions page is
asked for. The partitions begin on 2024-01-01, so that there are as many as an installation has.

What is prepared before (16 days and all their signals) is timed too: plain code, one process.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import requests
import typer
from rich.console import Console
from rich.table import Table

from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.candles.windows import DAY, HOUR, Interval, floor_minute
from trading_pipelines.database.connection import connect, database_urls, prepare_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.scenarios.drill import missed_counts, prepare_drill, present_counts
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

FIRST_PARTITION = date(2024, 1, 1)
PREPARED_DAYS = 16
LOOKED_AT_DAYS = 10
HEALED_WITHIN = 3600.0
QUIET_SECONDS = 330.0
TICKS = """
SELECT tick ->> 'job_name', percentile_cont(0.5) WITHIN GROUP (
    ORDER BY (tick ->> 'end_timestamp')::float8 - (tick ->> 'timestamp')::float8)
FROM job_ticks, LATERAL (SELECT tick_body::jsonb AS tick) AS body
WHERE type = 'SCHEDULE' AND tick ->> 'end_timestamp' IS NOT NULL AND timestamp > %s
GROUP BY 1
"""
REFRESHES = """
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY end_time - start_time),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY events)
FROM runs, LATERAL (SELECT count(*) AS events FROM event_logs WHERE run_id = runs.run_id) AS counted
WHERE pipeline_name = 'refresh_market_data_job' AND status = 'SUCCESS' AND start_time > %s
"""
PARTITIONS_PAGE = """
{ assetNodeOrError(assetKey: {path: ["candles_1m"]}) { ... on AssetNode {
  partitionKeysByDimension { name partitionKeys }
  assetPartitionStatuses { ... on MultiPartitionStatuses { ranges {
    primaryDimStartKey primaryDimEndKey
    secondaryDim { ... on DefaultPartitionStatuses { materializedPartitions } } } } }
} } }
"""


@dataclass
class Figures:
    """What one number of symbols came to; seconds, MB of memory (proportional), partitions."""

    symbols: int
    partitions: int = 0
    prepared: float = 0.0
    healed: dict[str, float] = field(default_factory=dict)
    refresh: float = 0.0
    events: float = 0.0
    ticks: dict[str, float] = field(default_factory=dict)
    page: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)
    market_gb: float = 0.0


def memory(home: Path) -> dict[str, float]:
    """Return the proportional memory of each service and of what it has started, in MB."""
    running = Home(home).running_services()
    groups = running.children if running else {}
    megabytes = dict.fromkeys(groups, 0.0)
    names = {pid: name for name, pid in groups.items()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
            if group in names:
                lines = (process / "smaps_rollup").read_text().splitlines()
                kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                megabytes[names[group]] += kilobytes / 1000
        except (OSError, ValueError, StopIteration):
            continue  # it has ended meanwhile
    return megabytes


@contextmanager
def prepared(
    count: int, figures: Figures
) -> Iterator[tuple[Environment, StrategySettings, datetime]]:
    """Yield a home on which all stopped an hour before it was prepared, its settings and when."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    symbols = [f"KRW-S{n:03}" for n in range(count)]
    back = floor_minute(datetime.now(UTC))
    outage = Interval(back - HOUR, back)
    settings = StrategySettings(
        symbols=symbols,
        data=DataSettings(start_date=FIRST_PARTITION, look_back_days=LOOKED_AT_DAYS),
    )
    market = GeneratedMarket(symbols)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        stack.callback(EmbeddedServer(home).stop)
        exchange = stack.enter_context(ReplayExchange(market, latency=0.05))
        environment = Environment(trading_pipelines_home=home, upbit_base_url=exchange.url)
        urls = prepare_database(environment)
        dump_strategy(settings, home / "strategy.yaml")
        data = settings.data.model_copy(
            update={"start_date": outage.start.date() - DAY * PREPARED_DAYS}
        )
        started = time.monotonic()
        with (
            ReplayExchange(market, rate=None, clock=outage.start) as past,
            connect(urls.market) as connection,
            connect(urls.market) as line,
        ):
            client = Exchange(past.url, RequestSlots(line, past.url, 1e6), settings.exchange)
            prepare_drill(connection, client, settings.model_copy(update={"data": data}), outage)
            connection.execute("ANALYZE")
        figures.prepared = time.monotonic() - started
        figures.partitions = count * ((back.date() - FIRST_PARTITION).days + 1)
        yield environment, settings, outage.start


def measure(count: int) -> Figures:
    """Prepare, heal, wait, and return the figures. Raises TimeoutError where it does not heal."""
    figures = Figures(count)
    with prepared(count, figures) as (environment, settings, stopped):
        home = environment.trading_pipelines_home
        urls = database_urls(environment)
        outage = Interval(stopped, floor_minute(datetime.now(UTC)))
        missed = asdict(missed_counts(GeneratedMarket(settings.symbols), settings, outage))
        started = time.monotonic()
        with (
            Supervisor(environment, urls, home / "strategy.yaml") as running,
            connect(urls.market) as connection,
        ):
            for name in ("candles", "labels", "forecasts"):
                while asdict(present_counts(connection, outage))[name] < missed[name]:
                    if time.monotonic() - started > HEALED_WITHIN:
                        raise TimeoutError(name)
                    time.sleep(0.5)
                figures.healed[name] = time.monotonic() - started
            quiet_from = time.time() + 60
            peaks: dict[str, float] = {}
            until = time.monotonic() + QUIET_SECONDS + 60
            while time.monotonic() < until:
                for name, megabytes in memory(home).items():
                    peaks[name] = max(peaks.get(name, 0.0), megabytes)
                time.sleep(2)
            figures.memory = peaks
            asked = time.monotonic()
            requests.post(f"{running.url}/graphql", json={"query": PARTITIONS_PAGE}, timeout=300)
            figures.page = time.monotonic() - asked
            size = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            figures.market_gb = size[0] / 1e9 if size else 0.0
            with connect(urls.dagster) as storage:
                since = datetime.fromtimestamp(quiet_from, UTC)
                figures.ticks = dict(
                    storage.execute(TICKS, [since.replace(tzinfo=None)]).fetchall()
                )
                row = storage.execute(REFRESHES, [quiet_from]).fetchone()
                figures.refresh, figures.events = row or (0.0, 0.0)
    return figures


def main(
    symbols: Annotated[
        list[int] | None, typer.Option(help="How many; may be given again (default: 5, 50, 200).")
    ] = None,
) -> None:
    """Measure one number of symbols after the other, and print the table."""
    measured = []
    for count in symbols or [5, 50, 200]:
        measured.append(measure(count))
        print(measured[-1], flush=True)
    table = Table("", *(f"{figures.symbols} symbols" for figures in measured), title_justify="left")
    table.add_row("partitions of candles_1m", *(f"{figures.partitions:,}" for figures in measured))
    table.add_row(
        "16 days prepared by plain code, s", *(f"{figures.prepared:.0f}" for figures in measured)
    )
    for name in ("candles", "labels", "forecasts"):
        table.add_row(
            f"{name} healed after, s", *(f"{figures.healed[name]:.0f}" for figures in measured)
        )
    table.add_row(
        "a refresh every five minutes, s", *(f"{figures.refresh:.1f}" for figures in measured)
    )
    table.add_row("events it leaves", *(f"{figures.events:,.0f}" for figures in measured))
    for name in measured[0].ticks:
        table.add_row(
            f"{name} is over, s after its minute",
            *(f"{figures.ticks.get(name, 0):.2f}" for figures in measured),
        )
    for name in measured[0].memory:
        table.add_row(
            f"{name}, MB at most", *(f"{figures.memory[name]:,.0f}" for figures in measured)
        )
    table.add_row("the UI's partitions page, s", *(f"{figures.page:.2f}" for figures in measured))
    table.add_row("market database, GB", *(f"{figures.market_gb:.2f}" for figures in measured))
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
