"""What a tick of `reconcile_partitions` costs with 1,000 and 100,000 partitions of an asset.

Dagster's events and the coverage are written straight into both databases: 200 days of five symbols
and nine years of 30, of each partition one attempt and one materialization. A tick compares nine
assets; two of them are measured. On an idle machine: `make bench BENCH=partitions`.
"""

import os
import resource
import shutil
import tempfile
import time
from datetime import date
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from tests.monitoring.test_dagster_instance import opened
from trading_pipelines.database.connection import connect, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.monitoring import reconciliation
from trading_pipelines.settings.strategy import DataSettings, StrategySettings

START = date(2017, 10, 1)
SIZES = {"1,000": (5, 200), "100,000": (30, 3334)}
COVERAGE = """
INSERT INTO trading_pipelines.candle_coverage
    (symbol, interval, day, status, fetched_until, confirmed_until, rows)
SELECT symbol, interval, %(start)s::date + n, 'complete', (%(start)s::date + n + 1)::timestamptz,
    (%(start)s::date + n + 1)::timestamptz, 1440
FROM unnest(%(symbols)s::text[]) AS symbol, unnest(ARRAY['1m', '1h']) AS interval,
    generate_series(0, %(days)s - 1) AS n
"""
EVENTS = """
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, asset_key, partition)
SELECT '', repeat('x', 1500), type, now(), '["' || asset || '"]',
    %(start)s::date + n || '|' || symbol
FROM unnest(ARRAY['candles_1m', 'candles_1h']) AS asset, unnest(%(symbols)s::text[]) AS symbol,
    generate_series(0, %(days)s - 1) AS n,
    unnest(ARRAY['ASSET_MATERIALIZATION_PLANNED', 'ASSET_MATERIALIZATION']) AS type
ORDER BY n, symbol, asset, type DESC
"""


def cpu(*connections: psycopg.Connection) -> float:
    """Return the seconds of CPU of this process and of the connections' backends, so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    seconds = own.ru_utime + own.ru_stime
    for connection in connections:
        stat = Path(f"/proc/{connection.info.backend_pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


def main() -> None:
    """Measure and print."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    server = EmbeddedServer(home)
    server.start()
    shown = Table(title="one comparison of candles_1m and candles_1h")
    for column in ("partitions", "state", "seconds", "seconds of CPU"):
        shown.add_column(column, justify="right")
    try:
        for size, (symbols, days) in SIZES.items():
            _measure(server, size, symbols, days, shown)
    finally:
        server.stop()
        shutil.rmtree(home)
    Console().print(shown)


def _measure(server: EmbeddedServer, size: str, symbols: int, days: int, shown: Table) -> None:
    names = [f"KRW-{n:03}" for n in range(symbols)]
    settings = StrategySettings(symbols=names, data=DataSettings(start_date=START))
    urls = []
    for name in ("market", "dagster"):
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}_{symbols}"')
        urls.append(server.url(f"{name}_{symbols}"))
    upgrade_database(urls[0])
    with opened(urls[1].replace("postgresql:", "postgresql+psycopg2:")):
        pass
    arguments = {"symbols": names, "start": START, "days": days}
    with connect(urls[0]) as market, connect(urls[1]) as dagster:
        market.execute(COVERAGE, arguments)
        dagster.execute(EVENTS, arguments)
        for connection in (market, dagster):
            connection.execute("VACUUM ANALYZE")
        for state in ("both agree", "100 events missing"):
            if state != "both agree":
                dagster.execute(
                    "DELETE FROM event_logs WHERE asset_key = '[\"candles_1m\"]' AND partition IN "
                    "(SELECT DISTINCT partition FROM event_logs ORDER BY 1 LIMIT 100)"
                )
            before, began = cpu(market, dagster), time.perf_counter()
            found = [
                reconciliation.compare(market, dagster, asset, settings, [])
                for asset in ("candles_1m", "candles_1h")
            ]
            seconds = time.perf_counter() - began
            assert [len(one.not_recorded) for one in found] == [
                0 if state == "both agree" else 100, 0
            ]  # fmt: skip
            spent = cpu(market, dagster) - before
            shown.add_row(size, state, f"{seconds:.2f}", f"{spent:.2f}")


if __name__ == "__main__":
    main()
