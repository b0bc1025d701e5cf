"""How fast candles come in, each way measured in this one run, on loopback.

Measured, against the replay exchange in a process of its own and a real embedded Postgres (fsync
on): rows/s as they are committed, and requests as the exchange counted them. Ours is the download
that the asset calls, in one worker process, since runs take turns, or two by history files. The
clock starts when everything is imported and connected, and stops at the last commit.

Not measured but with --latencies: Dagster (a run starts while another downloads). Never: Upbit
itself and the way to it (50 ms of latency stand for both). freqtrade is measured with its own
defaults where it is on PATH, timed by its own log, and writes Feather files instead of a database.
With the limit lifted, "HTTP" includes the exchange's own work, which shares the machine.
"""

import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any, NamedTuple

import ccxt
import psycopg
import requests
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.native import lines
from trading_pipelines.candles import coverage, store
from trading_pipelines.candles import exchange as client
from trading_pipelines.candles.download import download
from trading_pipelines.candles.history_files import HistoryFiles
from trading_pipelines.candles.page import PAGE_SIZE
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.candles.windows import DAY, MINUTE, day_interval
from trading_pipelines.database.connection import connect, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.environment import LISTING, HistoryFileUrls
from trading_pipelines.settings.strategy import DataSettings, ExchangeSettings, HealingSettings
from trading_pipelines.simulators.upbit.market import GeneratedMarket, Market, Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange, Stats

RECORDING = Path(__file__).parents[2] / "shared/data/upbit_krw5_1m_20250901_20250921.parquet"
FIRST_DAY, RECORDED_DAYS = date(2025, 9, 1), 21
SYMBOLS = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE")
FILE_WORKERS = 2
LATENCIES, SPANS = (0.02, 0.05, 0.2, 0.4), ((1, 35), (5, 7))  # seconds; symbols, days
RATE, LATENCY = 10.0, 0.05  # Upbit's requests a second; seconds until it answers
LIFTED_RATE = 400.0  # high enough never to wait
LIMIT = RATE * PAGE_SIZE  # rows a second
TARGET, FLAT = 0.95, 1.1
FILES_TARGET = 20_000  # rows a second
OLD_INSERT = """
INSERT INTO public.market_data (symbol, interval, timestamp, open_price, high_price, low_price,
    close_price, volume)
VALUES ('KRW-BTC', '1m', to_timestamp(%s / 1000.0), %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
BY_FILES = "ours, by files"
FREQTRADE_LOG = re.compile(
    r"^(\S+ \S+) - .* - (?:Download history data for|Downloaded data for .* with length (\d+))",
    re.MULTILINE,
)

# Given how many pages will come, begins to measure this process; returns what it fills in.
Probe = Callable[[int], dict[str, float]]


class Figures(NamedTuple):
    """What one way of downloading came to; `parts` is what the probe measured.

    `cpu` is in seconds, of the process that downloads: neither the exchange's nor Postgres'.
    """

    label: str
    rows: int
    seconds: float
    cpu: float
    stats: Stats
    parts: dict[str, float] = {}  # noqa: RUF012 - never written to

    @property
    def speed(self) -> float:
        """Rows a second, committed, by the wall clock."""
        return self.rows / self.seconds


@contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Yield the pipe to `target(pipe, *arguments)`, run in a process that ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.terminate()
        child.join()


def serve(pipe: Connection, days: int, rate: float | None, latency: float) -> None:
    """Be an exchange that has at least `days`, in the recording if it is there; send the URL."""
    recorded = RECORDING.exists() and days <= RECORDED_DAYS
    market: Market = Recording.load(RECORDING) if recorded else GeneratedMarket(SYMBOLS)
    clock = market.end + MINUTE if recorded else None
    replay = ReplayExchange(market, rate=rate, latency=latency, clock=clock)
    with suppress(EOFError, KeyboardInterrupt), replay as exchange:
        pipe.send(exchange.url)
        pipe.recv()


def asked(url: str) -> Stats:
    """Return what an exchange has been asked, by its own count."""
    return Stats(**requests.get(f"{url}/replay/stats", timeout=10).json())


def work(
    pipe: Connection,
    market_url: str,
    url: str,
    days: Sequence[date],
    rate: float,
    probe: Probe | None,
    by_files: bool,  # noqa: FBT001 - sent to a process
) -> None:
    """Download the days of each symbol that comes through the pipe, as a run of the asset does."""
    with (
        connect(market_url) as connection,
        connect(market_url) as line,
        suppress(EOFError, KeyboardInterrupt),
    ):
        settings = ExchangeSettings(requests_per_second=rate)
        exchange = client.Exchange(url, RequestSlots(line, url, rate), settings)
        urls, sample = HistoryFileUrls(url, f"{url}{LISTING}"), DataSettings().history_files_sample
        files = HistoryFiles(urls, settings, sample) if by_files else None
        parts = probe(len(days) if by_files else -(len(days) * 1440 // -PAGE_SIZE)) if probe else {}
        pipe.send(None)
        while True:
            symbol = pipe.recv()
            since, cpu = time.monotonic(), time.process_time()
            failed = download(
                connection, exchange, [symbol], days, "benchmark", HealingSettings(), files=files
            )
            assert not failed, failed
            pipe.send((since, time.monotonic(), time.process_time() - cpu, dict(parts)))


def parts_of_time(_: int) -> dict[str, float]:
    """Measure the seconds in each part of the download, without those of parts inside it.

    Requests go one at a time then: of parts in several threads nobody could tell which is inside.
    """
    setattr(client, "MOST_SIDE_BY_SIDE", 1)  # noqa: B010 - a constant to mypy
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(part: str, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        since, before = time.perf_counter(), sum(spent.values())
        try:
            return inner(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - since - (sum(spent.values()) - before)

    for part, owner, names in (
        ("HTTP", ccxt.Exchange, ["request"]),
        ("JSON", json, ["loads"]),
        ("validation", client, ["validate"]),
        ("waiting for a slot", RequestSlots, ["reserve"]),
        ("database", psycopg.Connection, ["execute"]),
        ("database", psycopg.Transaction, ["__enter__", "__exit__"]),
        ("database", store, ["write_candles"]),
        ("database", coverage, ["read", "record"]),
    ):
        for name in names:
            inner = getattr(owner, name)
            # A lambda, not a partial: as a class's attribute it must bind to the instance.
            setattr(owner, name, lambda *a, _p=part, _i=inner, **k: timed(_p, _i, *a, **k))
    return spent


def peak_memory(pages: int) -> dict[str, float]:
    """Measure the peak of resident memory within each tenth of the pages, in MB. Linux only."""
    peaks: dict[str, float] = {}
    count, store_page = itertools.count(1), store.write_candles

    def write(*args: Any) -> store.Written:  # noqa: ANN401
        written, number = store_page(*args), next(count)
        if number * 10 // pages > len(peaks):
            status = Path("/proc/self/status").read_text()
            peaks[f"{len(peaks) + 1}0 %"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
        return written

    setattr(store, "write_candles", write)  # noqa: B010 - mypy objects to the plain assignment
    return peaks


def ours(
    label: str,
    market_url: str,
    symbols: Sequence[str],
    days: Sequence[date],
    *,
    workers: int = 1,
    limited: bool = False,
    by_files: bool = False,
    probe: Probe | None = None,
) -> Figures:
    """Measure our download; each worker takes the next symbol when it is done with one."""
    at_exchange, rate = ((RATE, LATENCY), RATE) if limited else ((None, 0.0), LIFTED_RATE)
    with ExitStack() as stack:
        connection = stack.enter_context(connect(market_url))
        connection.execute(
            "TRUNCATE public.market_data, trading_pipelines.candle_coverage, "
            "trading_pipelines.history_files"
        )
        url = stack.enter_context(process(serve, len(days), *at_exchange)).recv()
        job = (market_url, url, days, rate, probe, by_files)
        pipes = [stack.enter_context(process(work, *job)) for _ in range(workers)]
        for pipe in pipes:
            pipe.recv()  # it is ready
        remaining = iter(symbols)
        done: list[Any] = []
        for pipe, symbol in zip(pipes, remaining, strict=False):
            pipe.send(symbol)
        while len(done) < len(symbols):
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                done.append(ready.recv())
                for symbol in itertools.islice(remaining, 1):
                    ready.send(symbol)
        stored = coverage.read(connection, symbols, days)
        assert all(day.complete and not day.holes(datetime.now(UTC)) for day in stored)
        since, until, cpu, parts = zip(*done, strict=True)
        rows, seconds = sum(day.stored for day in stored), max(until) - min(since)
        label = (
            f"{label}: {len(symbols)} x {len(days)} days, {workers} worker(s), {stored[-1].source}"
        )
        return Figures(label, rows, seconds, sum(cpu), asked(url), parts[-1])


def old_script(market_url: str, url: str, minutes: int) -> tuple[int, float, float]:
    """Do as the old script did: a commit for each row, a sleep after each request."""
    upbit = ccxt.upbit({"urls": {"api": {"public": url, "private": url}}})
    upbit.load_markets()
    at = int(day_interval(FIRST_DAY).start.timestamp() * 1000)
    end, rows, seconds, cpu = at + minutes * 60_000, 0, 0.0, time.process_time()
    with psycopg.connect(market_url) as connection:
        connection.execute("TRUNCATE public.market_data")
        connection.commit()
        since = time.monotonic()
        while at < end:
            page = upbit.fetch_ohlcv("BTC/KRW", "1m", since=at, limit=PAGE_SIZE)
            for row in page:
                connection.execute(OLD_INSERT, row)
                connection.commit()
            rows, seconds, at = rows + len(page), time.monotonic() - since, page[-1][0] + 60_000
            time.sleep(0.15)
    return rows, seconds, time.process_time() - cpu


def freqtrade(
    program: str, folder: Path, url: str, days: Sequence[date]
) -> tuple[int, float, float]:
    """Let freqtrade download the days; return rows and seconds by its log, and all its CPU."""
    pairs = ["/".join(reversed(symbol.split("-"))) for symbol in SYMBOLS]
    urls = {"urls": {"api": {"public": url, "private": url}}}
    exchange = {"name": "upbit", "pair_whitelist": pairs, "ccxt_config": urls}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"stake_currency": "KRW", "exchange": exchange}))
    command: list[str | Path] = [
        *(program, "download-data", "--config", folder / "config.json", "--userdir", folder),
        *("--timeframes", "1m", "--timerange", f"{days[0]:%Y%m%d}-{days[-1] + DAY:%Y%m%d}"),
    ]
    before = getrusage(RUSAGE_CHILDREN)
    log = subprocess.run(  # noqa: S603
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "400"}, timeout=600,
    ).stdout  # fmt: skip
    after = getrusage(RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = FREQTRADE_LOG.findall(log)
    if len(lines) < 2 * len(SYMBOLS):
        raise RuntimeError(f"freqtrade did not download all of {pairs}: {log[-2000:]}")
    first, last = (datetime.fromisoformat(lines[n][0]) for n in (0, -1))
    return sum(int(rows or 0) for _, rows in lines), (last - first).total_seconds(), cpu


def measure(
    market_url: str, home: Path, days: Sequence[date], *, year: bool, files: bool
) -> Iterator[Figures]:
    """Measure each way, ours as a backfill runs it first."""
    yield ours("ours, as a backfill", market_url, SYMBOLS, days, limited=True)
    minutes = min(2000, len(days) * 400)
    with process(serve, len(days), RATE, LATENCY) as exchange:
        url = exchange.recv()
        done = old_script(market_url, url, minutes)
        yield Figures(f"old script, 1 symbol x {minutes:,} minutes", *done, asked(url))
    if program := shutil.which("freqtrade"):
        with process(serve, len(days), RATE, LATENCY) as exchange:
            url = exchange.recv()
            yield Figures("freqtrade", *freqtrade(program, home / "ft", url, days), asked(url))
    yield ours("ours, limit lifted, one at a time", market_url, SYMBOLS, days, probe=parts_of_time)
    if year:
        span = [FIRST_DAY - DAY * n for n in range(365, 0, -1)]
        yield ours("ours, one year", market_url, SYMBOLS[:1], span, probe=peak_memory)
    if files:
        span = [FIRST_DAY - DAY * n for n in range(365, 0, -1)]
        yield ours(
            BY_FILES, market_url, SYMBOLS, span,
            workers=FILE_WORKERS, limited=True, by_files=True, probe=peak_memory,
        )  # fmt: skip


def native_backfills(home: Path) -> Table:
    """Measure whole native backfills at each latency, and freqtrade's download of one day."""
    table = Table(
        *("", "latency", "requests", "s", "requests/s", "longest gap s", "refused"),
        title="whole native backfills, from the first request to the last",
    )
    for line in lines(LATENCIES, RATE, SPANS):
        table.add_row(
            *(f"{line.symbols} x {line.days} days", f"{line.latency * 1000:.0f} ms"),
            *(str(line.requests), f"{line.seconds:.1f}", f"{line.rate:.2f}"),
            *(f"{line.longest_gap:.1f}", str(line.refused)),
        )
    program = shutil.which("freqtrade") or ""
    for latency in LATENCIES if program else ():
        with process(serve, 1, RATE, latency) as exchange:
            url = exchange.recv()
            _, seconds, _ = freqtrade(program, home / f"ft{latency}", url, [FIRST_DAY])
            stats = asked(url)
        table.add_row(
            *("freqtrade, 5 x 1 day", f"{latency * 1000:.0f} ms", str(stats.requests)),
            *(f"{seconds:.1f}", f"{stats.requests / seconds:.2f}", "", str(stats.refused)),
        )
    return table


def main(
    minutes: int = 12_000,
    *,
    quick: bool = False,
    year: bool = False,
    files: bool = False,
    latencies: bool = False,
) -> None:
    """Measure MINUTES of five symbols, in whole days; --quick: one day; --year: memory besides.

    --files: a year of five symbols from history files, beside the requests of the same run.
    --latencies: whole native backfills on the real daemon too, at 20 to 400 ms.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    days = [FIRST_DAY + DAY * n for n in range(1 if quick else math.ceil(minutes / 1440))]
    load = os.getloadavg()[0]
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with ExitStack() as stack, out.status("measuring"):
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp")))
        home.chmod(0o755)  # under root the server runs as `nobody`
        server = EmbeddedServer(home)
        stack.callback(server.stop)
        server.start()
        upgrade_database(server.url("postgres"))
        ways = list(measure(server.url("postgres"), home, days, year=year, files=files))
        if latencies:
            out.print(native_backfills(home))
    best = ways[0]
    table = Table(
        *("", "rows", "s", "rows/s", "of limit", "requests/s", "most in 1 s", "refused"),
        *("CPU ms/1,000 rows", "ours is"),
        title=f"{len(days)} UTC days ({len(days) * 1440:,} minutes) of each symbol; exchange: "
        f"{RATE:.0f} requests/s, {LATENCY * 1000:.0f} ms; {os.cpu_count()} cores, load {load:.1f}",
    )
    for way in ways:
        table.add_row(
            *(way.label, f"{way.rows:,}", f"{way.seconds:.1f}", f"{way.speed:,.0f}"),
            *(f"{way.speed / LIMIT:.1%}", f"{way.stats.requests / way.seconds:.2f}"),
            *(str(way.stats.peak), str(way.stats.refused), f"{way.cpu / way.rows * 1e6:.1f}"),
            f"{best.speed / way.speed:.2f} x",
        )
    out.print(table)
    if not shutil.which("freqtrade"):
        out.print("freqtrade: not installed (pip install it into a venv of its own, on PATH)")
    for way in ways:
        if "HTTP" in way.parts:
            parts = way.parts | {"other": way.seconds - sum(way.parts.values())}
            shares = ", ".join(f"{part} {took / way.seconds:.0%}" for part, took in parts.items())
            out.print(f"limit lifted, share of wall time: {shares}")
        elif peaks := list(way.parts.values()):
            ratio = peaks[-1] / peaks[0]
            tenths = " ".join(f"{peak:.0f}" for peak in peaks)
            verdict = "flat" if ratio < FLAT else "NOT flat"
            out.print(
                f"{way.label}, peak MB in each tenth: {tenths}; last/first {ratio:.2f}: {verdict}"
            )
    met = "met" if best.speed >= TARGET * LIMIT else "MISSED"
    out.print(f"target, at least {TARGET * LIMIT:,.0f} rows/s ({TARGET:.0%} of the limit): {met}")
    for way in ways:
        if way.label.startswith(BY_FILES):
            met = "met" if way.speed >= FILES_TARGET else "MISSED"
            out.print(
                f"from files: {way.stats.files} requests for files, {way.stats.requests} for "
                f"candles (the sample); target, {FILES_TARGET:,} rows/s: {met}"
            )
    if best.stats.refused:
        out.print(f"FAILED: the exchange refused {best.stats.refused} of our requests")
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
