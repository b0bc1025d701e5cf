"""What it costs to look: CPU and memory of each command, of the code server, of a run of candles.

Each command is a process of its own on a small installation whose services run meanwhile, beside
a bare interpreter that imports psycopg. With --before, a clone of another version that has been set
up (`make .venv/.ready` there) is measured in turn with this one, each on an installation of its
own. Prints medians; of use on a quiet machine only.

    make bench BENCH=looking ARGS="--before ../trading-pipelines-of-before"
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

CLONE = Path(__file__).parents[1]
COMMANDS = [
    "--help",
    "db url",
    "signals",
    "trades",
    "decisions",
    "risk",
    "rejections",
    "alerts list",
    "status",
    "health",
    "health --only daemons",
    "health --only disk",
]
BARE = "an interpreter with psycopg"
SYMBOLS = ["KRW-BTC", "KRW-ETH"]
SETTINGS = """
symbols: [{symbols}]
data: {{start_date: {start}, refresh: false}}
"""
REST_SECONDS = 20


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of each process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_text().replace("\0", " ")
            found[int(folder.name)] = (int(stat.rpartition(")")[2].split()[1]), command)
    return found


def memory(pid: int, field: str) -> float:
    """Return VmRSS or VmHWM of the process in MB; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(rf"{field}:\s+(\d+)", status)
    return int(match[1]) / 1024 if match else 0.0


class Version:
    """A clone with its virtual environment, at work on a home of its own."""

    def __init__(self, clone: Path, home: Path, exchange_url: str) -> None:
        self.bin = clone / ".venv" / "bin"
        self.home = home
        config = home / "strategy.yaml"
        home.mkdir()
        config.write_text(SETTINGS.format(symbols=", ".join(SYMBOLS), start="2026-01-01"))
        self.variables = {
            **os.environ,
            "TRADING_PIPELINES_HOME": str(home / "home"),
            "TRADING_PIPELINES_CONFIG": str(config),
            "UPBIT_BASE_URL": exchange_url,
        }

    def start(self, text: str, output: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start one command in a folder where no other clone's package lies."""
        command = [str(self.bin / "trading-pipelines"), *text.split()]
        if text == BARE:
            command = [str(self.bin / "python"), "-c", "import psycopg"]
        return subprocess.Popen(  # noqa: S603
            command, env=self.variables, cwd=self.home, stdout=output, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def cost(self, text: str) -> tuple[float, float]:
        """Return the seconds of CPU and the peak of memory (MB) of one command."""
        with self.start(text) as process:
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Yield the process id of `up` as soon as it says that it runs."""
        with self.start("up --port 0", subprocess.PIPE) as up:
            assert up.stdout is not None
            if "running" not in up.stdout.readline():
                raise SystemExit("the services did not start")
            try:
                yield up.pid
            finally:
                up.terminate()


@contextlib.contextmanager
def exchange(folder: Path) -> Iterator[str]:
    """Yield the URL of a replay exchange in a process of its own.

    In ours it would make us large, and Linux counts the memory of whoever starts a process as a
    peak of that process.
    """
    command = [str(CLONE / ".venv/bin/trading-pipelines"), "replay", "--port", "0", "--rate", "0"]
    with subprocess.Popen(  # noqa: S603
        command, cwd=folder, stdout=subprocess.PIPE, text=True
    ) as replay:
        assert replay.stdout is not None
        yield replay.stdout.readline().strip().rpartition("=")[2]
        replay.terminate()


def code_servers(up: int) -> list[int]:
    """Return the processes of the code server below `up`."""
    known = processes()
    below = {up}
    while more := {pid for pid, (parent, _) in known.items() if parent in below} - below:
        below |= more
    return [pid for pid in below if "grpc" in known[pid][1] or "code-server" in known[pid][1]]


def peak_of_a_run(version: Version, up: int, days: tuple[str, str]) -> float:
    """Backfill some days, and return the peak of memory (MB) of a run's process."""
    at_rest = set(code_servers(up))
    first, last = days
    peak = 0.0
    with version.start(f"backfill --start {first} --end {last}") as backfill:
        while backfill.poll() is None:
            runs = [
                pid for pid, (parent, _) in processes().items()
                if parent in at_rest and pid not in at_rest
            ]  # fmt: skip
            peak = max([peak, *(memory(pid, "VmHWM") for pid in runs)])
            time.sleep(0.02)
    return peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a clone of another version, set up")
    parser.add_argument("--runs", type=int, default=5, help="of each command (default 5)")
    options = parser.parse_args()
    clones = {"before": options.before.absolute()} if options.before else {}
    clones["now"] = CLONE
    table = Table(title=f"the cost of looking, median of {options.runs} runs")
    table.add_column("what")
    for name in clones:
        table.add_column(f"CPU s {name}", justify="right")
        table.add_column(f"MB {name}", justify="right")
    with (
        tempfile.TemporaryDirectory(prefix="tp") as folder,
        exchange(Path(folder)) as exchange_url,
        contextlib.ExitStack() as stack,
    ):
        Path(folder).chmod(0o755)
        versions = {
            name: Version(clone, Path(folder) / name, exchange_url)
            for name, clone in clones.items()
        }
        ups = {name: stack.enter_context(version.running()) for name, version in versions.items()}
        for command in [BARE, *COMMANDS]:
            costs = {name: [version.cost(command)] for name, version in versions.items()}
            for _ in range(options.runs):
                for name, version in versions.items():
                    costs[name].append(version.cost(command))
            cells = [
                f"{statistics.median(values):.{digits}f}"
                for name in versions
                # The first is the warm-up.
                for values, digits in zip(zip(*costs[name][1:], strict=True), (2, 0), strict=True)
            ]
            table.add_row(command, *cells)
        time.sleep(REST_SECONDS)
        rest = [[memory(pid, "VmRSS") for pid in code_servers(up)] for up in ups.values()]
        largest = [("", f"{max(sizes):.0f}") for sizes in rest]
        table.add_row("the code server at rest", *(cell for pair in largest for cell in pair))
        both = [("", f"{sum(sizes):.0f}") for sizes in rest]
        table.add_row("with its proxy (`up`)", *(cell for pair in both for cell in pair))
        days = ("2026-01-01", "2026-01-04")
        peaks = [("", f"{peak_of_a_run(v, ups[name], days):.0f}") for name, v in versions.items()]
        table.add_row("a run of candles, peak", *(cell for pair in peaks for cell in pair))
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
