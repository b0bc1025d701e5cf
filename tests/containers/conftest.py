"""deploy/compose.yaml in a real container engine, with stand-ins for the exchange and Discord.

Only with RUN_CONTAINERS=1, as `make test-containers` has, which tells where the engine is.
Everything is asked from outside, by the engine's command line. The tests of a file follow each
other on one installation, which is healthy before and after each of them.
"""

import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
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
BACKFILLS = "SELECT count(*) FROM bulk_actions"
AT_WORK = "SELECT count(*) FROM runs WHERE status IN ('STARTING', 'STARTED')"
# Of the recording's 21 days 18 are over, and the others come while the tests run.
HISTORY_DAYS = 18


def docker(*arguments: str, check: bool = True, **options: Any) -> str:
    """Run the engine's command line; return its standard output."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0 or not check, f"docker {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def await_none(problem: Callable[[], str], seconds: float) -> None:
    """Wait until a look finds no problem; the last one stands in the failure."""
    deadline = time.monotonic() + seconds
    while found := problem():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s: {found}"
        time.sleep(2)


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

    bases: list[str] = field(default_factory=list)
    layers: str = ""
    services: list[str] = field(default_factory=list)
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
            "\n".join(f"- {line}" for line in self.bases),
            self.layers,
            "| service | healthy after | memory at rest | limit |\n|---|---:|---:|---:|\n"
            + "\n".join(self.services),
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
    """The settings, the secrets and the exchange's recording, readable by the containers' users."""
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
    make_secrets = [ROOT / "deploy" / "make_secrets.sh", path / "secrets"]
    subprocess.run(make_secrets, env=os.environ | PLANTED, check=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def image(report: Report) -> str:
    """The image of this tree, by deploy/Dockerfile; its base and the others by base_images.sh."""
    done = subprocess.run([HERE / "base_images.sh"], check=True, capture_output=True, text=True)
    report.bases = [line for line in done.stdout.splitlines() if " MB" in line]
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
    start_seconds: dict[str, float] = field(default_factory=dict)
    """From the start of each container at the first `up` until it was healthy."""

    def words(self) -> list[str]:
        """Return the words that name the installation to the engine's command line."""
        files = [self.file, HERE / "override.yaml"]
        if self.device:
            files.append(HERE / "small_volume.yaml")
        named = [word for file in files for word in ("--file", f"{file}")]
        return ["compose", "--project-name", PROJECT, *named]

    def variables(self) -> dict[str, str]:
        """Return the environment of its compose: what override.yaml asks for, and the secrets.

        Those are for the versions that had them there.
        """
        return {
            **os.environ, **PLANTED, "IMAGE": self.image, "STAND_INS": IMAGE, "TESTS": f"{HERE}",
            "FOLDER": f"{self.folder}", "POSTGRES_DEVICE": self.device or "",
        }  # fmt: skip

    def compose(self, *arguments: str) -> str:
        """Run compose on the installation; return its standard output."""
        return docker(*self.words(), *arguments, env=self.variables())

    def up(self) -> dict[str, float]:
        """Start what does not run, as documented; return the seconds of each to be healthy."""
        filters = (
            f"label=com.docker.compose.project={PROJECT}", "event=start", "event=health_status"
        )  # fmt: skip
        words = ["docker", "events", "--format={{json .}}", *(f"--filter={one}" for one in filters)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as events:
            try:
                self.compose("up", "--detach", "--wait", "--wait-timeout", "420")
            finally:
                events.terminate()
            times: dict[str, dict[str, float]] = {"start": {}, "health_status: healthy": {}}
            for event in map(json.loads, events.stdout or ()):
                service = event["Actor"]["Attributes"]["com.docker.compose.service"]
                times.get(event["Action"], {})[service] = event["timeNano"] / 1e9
        started, healthy = times.values()
        return {service: at - started[service] for service, at in healthy.items()}

    def down(self) -> None:
        """Stop and remove everything, the data too; of the device Docker removes only the name."""
        self.compose("down", "--volumes", "--timeout", "20")
        if self.device:
            empty = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "root_owner=999:999", self.device]
            subprocess.run(empty, check=True)

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says of the service's container."""
        (found,) = json.loads(docker("inspect", f"{PROJECT}-{service}-1"))
        return dict(found)

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in the service's container; return what it printed."""
        return docker("exec", f"{PROJECT}-{service}-1", *command, check=check)

    def sql(self, statement: str, database: str = "trading_pipelines") -> str:
        """Run SQL in a database; return the rows, a line each."""
        user = ("--host=/run/postgresql", "--username=trading_pipelines", f"--dbname={database}")
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command")
        return self.execute("postgres", "psql", *user, *options, statement).strip()

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
        await_none(self.differences, seconds)

    def start_repair(self) -> None:
        """Damage minutes of two days, have them asked for again, and wait until a run is at work.

        The daemon goes on with it when nobody looks.
        """
        first = self.market.today.date() - timedelta(days=2)
        damaged = (
            f"interval = '1m' AND timestamp >= '{first}' AND timestamp < '{self.market.today}' "
            "AND extract(minute FROM timestamp)"
        )
        self.sql(f"DELETE FROM market_data WHERE {damaged} = 7")
        self.sql(f"UPDATE market_data SET close_price = 1 WHERE {damaged} = 8")
        again = ("trading-pipelines", "backfill", "--again", f"--start={first}")
        before = self.sql(BACKFILLS, "trading_pipelines_dagster")
        docker("exec", "--detach", f"{PROJECT}-webserver-1", *again)
        await_none(
            lambda: "no backfill" * (self.sql(BACKFILLS, "trading_pipelines_dagster") == before),
            120,
        )
        self.await_runs()

    def await_runs(self) -> None:
        """Wait until a run is at work."""
        await_none(lambda: "no run" * (self.sql(AT_WORK, "trading_pipelines_dagster") == "0"), 120)

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
        await_none(self.health, seconds)


@pytest.fixture(scope="module")
def installation(
    image: str, folder: Path, market: Market, device: str | None
) -> Iterator[Installation]:
    """A new installation of this tree's image, healthy, with all days that are over."""
    made = Installation(folder, market, device, image=image)
    made.down()
    try:
        made.start_seconds = made.up()
        yield made
    finally:
        made.down()
