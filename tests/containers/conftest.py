"""deploy/compose.yaml in a real container engine, with stand-ins for the exchange and Discord.

Only with RUN_CONTAINERS=1, as `make test-containers` has, which tells where the engine is. Everything
is asked from outside, by the engine's command line: what a container says of itself is no proof. The
tests of a file follow each other on one installation; it is healthy before and after each of them.
"""

import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import PRICES, SYMBOLS
from tests.integration.conftest import exact
from trading_pipelines.settings.strategy import (
    DataSettings,
    ExchangeSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy

collect_ignore_glob = [] if os.environ.get("RUN_CONTAINERS") == "1" else ["test_*.py"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROJECT = "trading-pipelines-test"
IMAGE = f"{PROJECT}:this"
OURS = ("code-server", "webserver", "daemon", "live")
SERVICES = ("postgres", *OURS, "n8n")
PLANTED = {
    "POSTGRES_PASSWORD": "planted0postgres",
    "N8N_WEBHOOK_SECRET": "planted0webhook",
    "N8N_ENCRYPTION_KEY": "planted0encryption",
    "DISCORD_WEBHOOK_URL": "http://inbox:8901/api/webhooks/1/planted0discord",
}
STORED = """COPY (SELECT symbol, timestamp AS timestamp_utc, open_price AS open, high_price AS high,
low_price AS low, close_price AS close, volume FROM market_data WHERE interval = '1m'
ORDER BY symbol, timestamp) TO STDOUT CSV HEADER"""
REJECT = """INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, created_at)
VALUES ('KRW-BTC', 'containers', 'REJECT', '{}', now())"""
# Of the recording's 21 days 18 are over, and the others come while the tests run.
HISTORY_DAYS = 18


def docker(*arguments: str, check: bool = True, **options: Any) -> str:  # noqa: ANN401
    """Run the engine's command line; return its standard output."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0 or not check, f"docker {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Row:
    """A line of the table in docs/containers.md."""

    done: str
    expected: str
    found: str
    seconds: float

    def __str__(self) -> str:
        return f"| {self.done} | {self.expected} | {self.found} | {self.seconds:.0f} |"


@dataclass
class Report:
    """What a run has measured, for docs/containers.md."""

    layers: str = ""
    services: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def timed(self, done: str, expected: str) -> Iterator[Row]:
        """Add a line if the block ends well; the block may say what it found."""
        row = Row(done, expected, "as expected", 0)
        began = time.monotonic()
        yield row
        row.seconds = row.seconds or time.monotonic() - began
        self.rows.append(row)

    def write(self, page: Path) -> None:
        text, mark, _ = page.read_text().partition("<!-- measured -->\n")
        tables = [
            self.layers,
            "| service | healthy after | memory at rest | limit |\n|---|---:|---:|---:|\n"
            + "\n".join(self.services),
            "| service | secrets in its environment |\n|---|---|\n" + "\n".join(self.secrets),
            "| what was done | expected | found | seconds |\n|---|---|---|---:|\n"
            + "\n".join(map(str, self.rows)),
        ]
        page.write_text(text + mark + "\n" + "\n\n".join(tables) + "\n")


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """What the suite has measured; written where CONTAINERS names a page."""
    found = Report()
    yield found
    if page := os.environ.get("CONTAINERS"):
        found.write(Path(page))


@dataclass
class Market:
    """The recording as if it had been made around today."""

    rows: pd.DataFrame
    first_day: date
    today: datetime


@pytest.fixture(scope="session")
def market(recorded: pd.DataFrame) -> Market:
    """Three symbols of the recording, moved by whole days."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = recorded[recorded.symbol.isin(SYMBOLS[:3])]
    first = pd.Timestamp(today) - timedelta(days=HISTORY_DAYS)
    moved = rows.timestamp_utc + (first - rows.timestamp_utc.min())
    return Market(rows.assign(timestamp_utc=moved).reset_index(drop=True), first.date(), today)


@pytest.fixture(scope="session")
def folder(market: Market) -> Iterator[Path]:
    """The settings and the exchange's recording, readable by the containers' users."""
    path = Path(tempfile.mkdtemp(prefix="tpcontainers"))
    path.chmod(0o755)
    market.rows.to_csv(path / "recording.csv", index=False)
    dump_strategy(
        StrategySettings(
            symbols=SYMBOLS[:3],
            data=DataSettings(start_date=market.first_day),
            exchange=ExchangeSettings(max_backoff_seconds=5.0),
        ),
        path / "strategy.yaml",
    )
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def image() -> str:
    """The image of this tree, by deploy/Dockerfile; its base is what base_images.sh made."""
    docker("build", "--file", "deploy/Dockerfile", "--tag", IMAGE, ".", cwd=ROOT)
    return IMAGE


@pytest.fixture(scope="session")
def device(folder: Path) -> Iterator[str | None]:
    """A small ext4 as a block device for Postgres' volume; only root can make one."""
    if os.geteuid() != 0:
        yield None
        return
    file = folder / "volume"
    with file.open("wb") as sparse:
        sparse.truncate(2 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", "root_owner=999:999", file], check=True)
    made = subprocess.run(
        ["losetup", "--find", "--show", file], capture_output=True, text=True, check=True
    ).stdout.strip()
    yield made
    subprocess.run(["losetup", "--detach", made], check=True)


@dataclass
class Installation:
    """The services of a compose.yaml, as the engine shows them."""

    folder: Path
    market: Market
    device: str | None
    file: Path = ROOT / "deploy" / "compose.yaml"
    image: str = IMAGE

    def words(self) -> list[str]:
        """Return the words that name the installation to the engine's command line."""
        files = [self.file, HERE / "override.yaml"]
        if self.device:
            files.append(HERE / "small_volume.yaml")
        named = [word for file in files for word in ("--file", f"{file}")]
        return ["compose", "--project-name", PROJECT, *named]

    def variables(self) -> dict[str, str]:
        """Return the environment of its compose: the secrets, and what override.yaml asks for."""
        return {
            **os.environ, **PLANTED, "IMAGE": self.image, "STAND_INS": IMAGE, "TESTS": f"{HERE}",
            "FOLDER": f"{self.folder}", "POSTGRES_DEVICE": self.device or "",
        }  # fmt: skip

    def compose(self, *arguments: str) -> str:
        """Run compose on the installation; return its standard output."""
        return docker(*self.words(), *arguments, env=self.variables())

    def up(self) -> None:
        """Start what does not run, as the documentation says."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", "420")

    def down(self) -> None:
        """Stop and remove everything, the data too."""
        self.compose("down", "--volumes", "--timeout", "20")

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says of the service's container."""
        (found,) = json.loads(docker("inspect", f"{PROJECT}-{service}-1"))
        return dict(found)

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in the service's container; return what it printed."""
        return docker("exec", f"{PROJECT}-{service}-1", *command, check=check)

    def sql(self, statement: str) -> str:
        """Run SQL in the market database; return the rows, a line each."""
        return self.execute(
            "postgres", "psql", "--host=/run/postgresql", "--username=trading_pipelines",
            "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", statement,
        ).strip()  # fmt: skip

    def await_healthy(self, *services: str, since: float = 0.0, seconds: float = 300) -> float:
        """Wait until the services are healthy in a start after `since`; return how long it took."""
        began = time.monotonic()
        while not all(self.is_healthy(service, since) for service in services):
            states = {service: self.inspect(service)["State"] for service in services}
            assert time.monotonic() - began < seconds, f"not healthy in {seconds} s: {states}"
            time.sleep(0.5)
        return time.monotonic() - began

    def is_healthy(self, service: str, since: float = 0.0) -> bool:
        """Say whether the container, started after `since` (Unix time), has a good probe."""
        state = self.inspect(service)["State"]
        started = pd.Timestamp(state["StartedAt"]).timestamp()
        return started > since and state["Health"]["Status"] == "healthy"

    def stored(self) -> pd.DataFrame:
        """Return the minutes that the database holds."""
        rows = pd.read_csv(io.StringIO(self.sql(STORED)))
        return rows.assign(timestamp_utc=pd.to_datetime(rows.timestamp_utc, utc=True))

    def differences(self) -> str:
        """Say how the stored minutes differ from the exchange's: nothing, if they don't.

        The days that are over have to be whole; of today what is there has to be right.
        """
        stored, rows = self.stored(), self.market.rows
        past = stored.timestamp_utc < self.market.today
        wanted = rows[rows.timestamp_utc < self.market.today]
        if len(stored[past]) != len(wanted):
            return f"{len(stored[past])} rows of {len(wanted)}"
        today = stored[~past].merge(rows, on=["symbol", "timestamp_utc"], suffixes=("", "_wanted"))
        same = exact(stored[past]) == exact(wanted) and len(today) == len(stored[~past])
        given = today[[f"{name}_wanted" for name in PRICES]].set_axis(PRICES, axis=1)
        same = same and exact(today) == exact(today[["symbol", "timestamp_utc"]].join(given))
        return "" if same else "other numbers"

    def await_rows(self, seconds: float = 400) -> None:
        """Wait until the stored minutes equal the exchange's."""
        deadline = time.monotonic() + seconds
        while problem := self.differences():
            assert time.monotonic() < deadline, problem
            time.sleep(2)

    def backfill(self) -> str:
        """Run the whole backfill to its end, in the daemon's container."""
        return self.execute("daemon", "trading-pipelines", "backfill", "--with-signals")

    def damage(self) -> None:
        """Take a minute of each hour of the past days away, and make another one wrong."""
        self.sql("DELETE FROM market_data WHERE interval = '1m' AND extract(minute FROM timestamp) = 7")
        self.sql(
            "UPDATE market_data SET close_price = 1 WHERE interval = '1m' "
            "AND extract(minute FROM timestamp) = 8"
        )

    def start_repair(self) -> None:
        """Have all days asked for again; the daemon goes on with it when we no longer look."""
        docker(
            "exec", "--detach", f"{PROJECT}-webserver-1",
            "trading-pipelines", "backfill", "--again",
        )  # fmt: skip

    def runs_at_work(self) -> int:
        """Return how many runs are in flight."""
        return int(
            self.execute(
                "postgres", "psql", "--host=/run/postgresql", "--username=trading_pipelines",
                "--dbname=trading_pipelines_dagster", "--tuples-only", "--command",
                "SELECT count(*) FROM runs WHERE status IN ('STARTING', 'STARTED')",
            )  # fmt: skip
        )

    def await_runs(self) -> None:
        """Wait until a run is at work."""
        deadline = time.monotonic() + 120
        while not self.runs_at_work():
            assert time.monotonic() < deadline, "no run has begun"
            time.sleep(0.5)

    def arrived(self, reason: str) -> int:
        """Return how many messages with this text Discord's stand-in has got."""
        return sum(reason in line for line in docker("logs", f"{PROJECT}-inbox-1").splitlines())

    def reject(self, reason: str, seconds: float = 180) -> float:
        """Refuse an entry as the bot does; return the seconds until Discord has the message."""
        self.sql(REJECT.format(reason))
        began = time.monotonic()
        while not self.arrived(reason):
            assert time.monotonic() - began < seconds, f"{reason}: no message"
            time.sleep(0.5)
        return time.monotonic() - began

    def health(self) -> str:
        """Return what `health` finds wrong: nothing, if all is well."""
        said = self.execute("daemon", "trading-pipelines", "health", "--json", check=False)
        return "" if json.loads(said)["good"] else said

    def await_health(self, seconds: float = 300) -> None:
        """Wait until `health` is good."""
        deadline = time.monotonic() + seconds
        while problem := self.health():
            assert time.monotonic() < deadline, problem
            time.sleep(3)


@pytest.fixture(scope="module")
def installation(
    image: str, folder: Path, market: Market, device: str | None
) -> Iterator[Installation]:
    """A new installation of this tree's image, healthy, with all days that are over."""
    made = Installation(folder, market, device, image=image)
    made.down()
    try:
        made.up()
        yield made
    finally:
        made.down()
