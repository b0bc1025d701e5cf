"""What the runs of a native backfill cost: how many there are, and how long the line stands idle.

Measured, on a fresh home with the real `up` against the replay exchange in this process: from the
launch of a backfill the seconds until the first request, the last one, the first and last candle,
the last forecast and the end; the seconds between the first and the last request in which nothing
was asked for (gaps longer than a second); the runs, how many of them failed, and the seconds of
CPU of all processes. `--slow` makes Postgres wait at each materialisation that Dagster stores:
however long they take, the number of runs has to stay.
"""

import os
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cuts import SYMBOLS, installed
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database.connection import connect
from trading_pipelines.runtime.backfill import BackfillTarget, follow, launch
from trading_pipelines.settings.strategy import DataSettings, ExchangeSettings, StrategySettings
from trading_pipelines.simulators.upbit.limits import RateLimitDecision
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

IDLE_SECONDS = 1.0  # between two requests; at Upbit's limit one comes each 0.1 s
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(%s); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON event_logs FOR EACH ROW
    WHEN (NEW.dagster_event_type = 'ASSET_MATERIALIZATION') EXECUTE FUNCTION slow();
"""
RUNS = """
SELECT run_body::jsonb -> 'asset_selection' -> '__frozenset__', status, start_time, end_time,
    create_timestamp, partition
FROM runs ORDER BY id
"""


class TimedExchange(ReplayExchange):
    """An exchange that remembers when it was asked, in monotonic seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Takes what a ReplayExchange takes."""
        super().__init__(*arguments, **options)
        self.asked_at: list[float] = []

    def _admit(self, client: str, symbol: str, arrived: float) -> RateLimitDecision:
        self.asked_at.append(arrived)
        return super()._admit(client, symbol, arrived)


def used_cpu() -> float:
    """Return the seconds of CPU of this whole machine so far."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    user, nice, system = map(int, fields[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def measure(
    days: int,
    symbols: int,
    rate: float | None,
    latency: float,
    slow: float,
    *,
    signals: bool,
    files: bool,
) -> tuple[dict[str, float], list[tuple[Any, ...]]]:
    """Return the figures of one backfill, and its runs."""
    today = datetime.now(UTC).date()
    target = BackfillTarget(SYMBOLS[:symbols], today - DAY * days, today - DAY)
    settings = StrategySettings(
        symbols=list(SYMBOLS[:symbols]),
        data=DataSettings(start_date=target.first, refresh=False, history_files=files),
        exchange=ExchangeSettings(requests_per_second=rate or 1000.0),
    )
    with ExitStack() as stack:
        market = GeneratedMarket(SYMBOLS)
        exchange = stack.enter_context(TimedExchange(market, rate=rate, latency=latency))
        installation = stack.enter_context(installed(exchange.url, settings))
        dagster = installation.urls.dagster.replace("+psycopg2", "")
        connection = stack.enter_context(connect(installation.urls.market))
        storage = stack.enter_context(psycopg.connect(dagster, autocommit=True))
        if slow:
            storage.execute(SLOW % slow)
        began, cpu = time.monotonic(), used_cpu()
        begun_at = datetime.now(UTC)
        backfill_id = launch(installation.url, target, with_signals=signals)
        outcome = follow(connection, installation.url, backfill_id, target, lambda _: None)
        ended = time.monotonic()
        seen = {name: (at - begun_at).total_seconds() for name, at in outcome.moments.items()}
        asked = exchange.asked_at
        gaps = [b - a for a, b in pairwise(asked) if b - a > IDLE_SECONDS]
        runs = storage.execute(RUNS).fetchall()
        (forecast,) = connection.execute(
            "SELECT extract(epoch FROM clock_timestamp() - max(computed_at)) "
            "FROM trading_pipelines.signal_coverage WHERE asset = 'volatility_forecast'"
        ).fetchone() or (None,)
    states = Counter(status for _, status, *_ in runs)
    return {
        "requests": len(asked),
        "refused": exchange.stats().refused,
        **seen,
        "first request": asked[0] - began,
        "last request": asked[-1] - began,
        **({"last forecast": ended - began - float(forecast)} if forecast is not None else {}),
        "end": ended - began,
        "idle": sum(gaps),
        "longest gap": max(gaps, default=0.0),
        "a second": len(asked) / max(asked[-1] - asked[0], 0.001),
        "files": exchange.stats().files,
        "runs": len(runs),
        "failed runs": states["FAILURE"],
        "CPU": used_cpu() - cpu,
    }, runs


def main(
    days: int = 6,
    symbols: int = len(SYMBOLS),
    rate: float = 10.0,
    latency: float = 0.05,
    slow: float = 0.0,
    times: int = 1,
    *,
    signals: bool = True,
    files: bool = False,
    show_runs: bool = False,
) -> None:
    """Measure and print; --files: closed days come from history files."""
    console = Console(width=200)
    table = Table(
        title=f"{symbols} symbols x {days} days, signals: {signals}, files: {files}, slow: {slow} s"
    )
    for _ in range(times):
        figures, runs = measure(
            days, symbols, rate or None, latency, slow, signals=signals, files=files
        )
        if not table.columns:
            for column in figures:
                table.add_column(column, justify="right")
        table.add_row(*(f"{number:.1f}".removesuffix(".0") for number in figures.values()))
        if show_runs:
            made = [run[4].replace(tzinfo=UTC).timestamp() for run in runs]
            for (assets, status, start, end, *_), at in zip(runs, made, strict=True):
                moments = "  ".join(f"{(t or at) - made[0]:6.1f}" for t in (at, start, end))
                selected = " ".join(asset["path"][0] for asset in assets or [])
                console.print(f"{moments}  {status}  {selected}", markup=False)
    console.print(f"load {os.getloadavg()[0]:.1f}", table)


if __name__ == "__main__":
    typer.run(main)
