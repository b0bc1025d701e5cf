"""The manifests on a real cluster: put there by the script, and then broken, one thing at a time.

Only with RUN_KUBERNETES=1, as `make test-kubernetes` has. KUBECONFIG and its current context name a
cluster of yours; without it `cluster.sh` starts one of two nodes, whose exchange and Discord are
this process's, on addresses that the pods take for the internet's. Its clock is the real one, so
the market is a generated one, which goes on for ever.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import PRICES, SEED, SYMBOLS, generated
from tests.integration.conftest import FAILURES, UNANSWERED, exact, rejections_in
from trading_pipelines.settings.strategy import (
    AlertSettings,
    DataSettings,
    HealingSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

collect_ignore_glob = [] if os.environ.get("RUN_KUBERNETES") == "1" else ["test_*.py"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trading-pipelines"
OURS = CACHE / "cluster"
NAMESPACE = "trading-pipelines"
OUTSIDE = ("203.0.113.10", "203.0.113.11")
"""The exchange's and Discord's addresses: cluster.sh puts them on this machine."""
IMAGES = {"docker.io/library/postgres:18.1-trixie", "docker.io/n8nio/n8n:2.41.1"}
MOST_RUNS = 4
USUAL_SECONDS, SLOW_SECONDS = 0.02, 1.0
"""The exchange's latency: a run is at work long enough to be killed."""
HISTORY = 16
"""Days that the script's backfill fetches; a volatility model takes 14."""
MINUTES = """
COPY (SELECT symbol, timestamp AT TIME ZONE 'UTC', open_price, high_price, low_price, close_price,
    volume FROM market_data WHERE interval = '1m' AND timestamp >= '{}Z' AND timestamp < '{}Z'
    ORDER BY symbol, timestamp) TO STDOUT CSV
"""
REJECT = """
INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, created_at)
VALUES ('KRW-BTC', 'cluster', 'REJECT', '이유', now()) RETURNING id
"""
PAGE = """| what was done | expected | found | seconds |
|---|---|---|---:|
"""


@dataclass
class Table:
    """The rows of the table in docs/deployment.md; RELIABILITY=docs/deployment.md writes them."""

    lines: list[str] = field(default_factory=list)

    @contextmanager
    def row(self, done: str, expected: str) -> Iterator[dict[str, Any]]:
        """Add a line where the block ends well: it says what was found, and may say seconds."""
        began = time.monotonic()
        found: dict[str, Any] = {}
        yield found
        found.setdefault("seconds", time.monotonic() - began)
        line = f"| {done} | {expected} | {found['found']} | {found['seconds']:.0f} |"
        sys.stdout.write(f"{line}\n")
        self.lines.append(line)

    def write(self, page: Path) -> None:
        """Put the lines into the page's table, in the place of those that say the same was done."""
        before, head, rest = page.read_text().partition(PAGE)
        end = re.search(r"^(?!\|)", rest, re.MULTILINE)
        assert end, f"no table in {page}"
        known = [*rest[: end.start()].splitlines(), *self.lines]
        lines = {line.split(" | ")[0]: line for line in known}
        page.write_text(before + head + "\n".join(lines.values()) + "\n" + rest[end.start() :])


def run_of(pod: dict[str, Any]) -> str:
    """Return the id of the run that the pod is of."""
    return str(pod["metadata"]["labels"]["dagster/run-id"])


@dataclass
class Cluster:
    """A cluster, a clone from which its script is run, and what is outside: exchange, Discord."""

    clone: Path
    variables: dict[str, str]
    exchange: ReplayExchange
    inbox: DiscordInbox
    table: Table
    is_ours: bool
    rejected: list[str] = field(default_factory=list)
    backfilled: list[tuple[date, date]] = field(default_factory=list)

    def run(self, *command: str, given: str = "", seconds: float = 900) -> str:
        """Run a command to its end; return what it printed. Fails where the command does."""
        done = subprocess.run(
            command, env=self.variables, cwd=self.clone, input=given, capture_output=True,
            text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """Ask the cluster, in the namespace."""
        return self.run("kubectl", "--namespace", NAMESPACE, *arguments, given=given)

    def refused(self, *arguments: str, given: str = "") -> str:
        """Ask the cluster for what it must refuse; return why it does."""
        with pytest.raises(AssertionError) as refusal:
            self.kubectl(*arguments, given=given)
        return str(refusal.value)

    def get(self, kind: str, *selection: str) -> list[dict[str, Any]]:
        """Return objects of a kind."""
        found = self.kubectl("get", kind, "--output", "json", *selection)
        return json.loads(found)["items"]  # type: ignore[no-any-return]

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Return the pods of a component."""
        return self.get("pods", "--selector", f"app.kubernetes.io/component={component}")

    def pod(self, component: str) -> dict[str, Any]:
        """Return the component's pod, which is not on its way out."""
        (found,) = [
            pod for pod in self.pods(component) if "deletionTimestamp" not in pod["metadata"]
        ]
        return found

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs ours in the daemon's pod."""
        where = ["--namespace", NAMESPACE, "exec", "deployment/daemon", "--container", "daemon"]
        return ["kubectl", *where, "--", "trading-pipelines", *arguments]

    def script(self, *arguments: str) -> str:
        """Run deploy_to_minikube.sh to its end."""
        script = str(self.clone / "deploy" / "deploy_to_minikube.sh")
        return self.run(script, *arguments, seconds=3600)

    def sql(self, query: str, database: str = "trading_pipelines") -> str:
        """Ask a database in Postgres' own pod; the columns of the answer are separated by `|`."""
        psql = [
            "psql",
            "-h",
            "/run/postgresql",
            "-U",
            "trading_pipelines",
            "-d",
            database,
            "-Atqc",
            query,
        ]
        return self.kubectl("exec", "postgres-0", "--container", "postgres", "--", *psql).strip()

    def until(self, holds: Callable[[], object], what: str, seconds: float = 600) -> float:
        """Wait for it; return the seconds it took. What cannot be asked yet does not hold yet."""
        began = time.monotonic()
        trouble = ""
        while time.monotonic() - began < seconds:
            try:
                if holds():
                    return time.monotonic() - began
            except (AssertionError, ValueError) as error:
                trouble = str(error)
            time.sleep(1)
        pods = self.kubectl("get", "pods", "--output", "wide")
        raise AssertionError(f"not in {seconds:.0f} s: {what}\n{trouble}\n{pods}")

    def is_well(self) -> bool:
        """Return whether `health` is good; fails with what it says where it is not."""
        return bool(self.run(*self.command("health")))

    def runs(self, *statuses: str) -> list[str]:
        """Return the runs that have one of the statuses."""
        wanted = ", ".join(f"'{one}'" for one in statuses)
        query = f"SELECT run_id FROM runs WHERE status IN ({wanted})"
        return self.sql(query, "trading_pipelines_dagster").split()

    def run_pods(self, status: str = "STARTED") -> list[dict[str, Any]]:
        """Return the pods of backfills' runs that have this status in Dagster's eyes."""
        at_work = self.sql(
            f"SELECT r.run_id FROM runs r JOIN run_tags t USING (run_id) "
            f"WHERE r.status = '{status}' AND t.key = 'dagster/backfill'",
            "trading_pipelines_dagster",
        ).split()
        return [
            pod for pod in self.pods("run")
            if run_of(pod) in at_work
            and pod["status"]["phase"] in ("Pending", "Running")
        ]  # fmt: skip

    def reject(self) -> None:
        """Refuse a trade as the bot does."""
        self.rejected.append(f"agent_decisions:{self.sql(REJECT)}:ai-reject")

    def arrived(self) -> Counter[str]:
        """Return how often each rejection has arrived in Discord, by its idempotency key."""
        return rejections_in(self.inbox)

    @cached_property
    def today(self) -> date:
        """The UTC day on which the tests began."""
        return datetime.now(UTC).date()

    def fresh_days(self, count: int) -> tuple[date, date]:
        """Return so many days that nobody has asked for yet, before all of those that were."""
        last = min(first for first, _ in self.backfilled) - timedelta(days=1)
        self.backfilled.append((last - timedelta(days=count - 1), last))
        return self.backfilled[-1]

    def differences(self, first: date, last: date) -> int:
        """Return how many minutes are not stored as the exchange has them, or not there at all."""
        rows = self.sql(MINUTES.format(first, last + timedelta(days=1)))
        names = ["symbol", "timestamp_utc", *PRICES]
        stored = pd.read_csv(StringIO(rows), names=names, dtype=str)
        stored["timestamp_utc"] = pd.to_datetime(stored["timestamp_utc"], utc=True)
        wanted = generated(first, last).sort_values(["symbol", "timestamp_utc"])
        assert len(wanted) > 1000
        return len({repr(row) for row in exact(stored)} ^ {repr(row) for row in exact(wanted)})

    def doubles(self) -> int:
        """Return how many alerts came twice though the first post had been answered."""
        tries = dict(
            line.split("|") for line in self.sql(UNANSWERED.strip()).splitlines() if "|" in line
        )
        return sum(
            max(0, number - 1 - int(tries.get(key, 0))) for key, number in self.arrived().items()
        )

    @contextmanager
    def backfill(self, days: int = 3, *, may_fail: bool = False) -> Iterator[None]:
        """A backfill of fresh days, of which runs are at work in the block; it ends completely.

        At its end every row is the exchange's, each rejection has arrived once, and `health` is
        good. Whoever follows the backfill may be killed with its pod: Dagster's own book counts.
        `may_fail`: runs of it may fail, and what they left is fetched by the next ticks.
        """
        self.exchange.latency = SLOW_SECONDS
        first, last = self.fresh_days(days)
        known = "SELECT count(*) FROM bulk_actions"
        before = self.sql(known, "trading_pipelines_dagster")
        with subprocess.Popen(
            self.command("backfill", "--start", f"{first}", "--end", f"{last}"),
            env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as follower:  # fmt: skip
            self.until(
                lambda: self.sql(known, "trading_pipelines_dagster") != before,
                "the backfill is in Dagster's book", 180,
            )  # fmt: skip
            self.until(self.run_pods, "a run is at work", 300)
            yield
            self.exchange.latency = USUAL_SECONDS
            self.reject()
            self.until(
                lambda: not self.sql(
                    "SELECT key FROM bulk_actions WHERE status IN ('REQUESTED', 'COMPLETING')",
                    "trading_pipelines_dagster",
                ),
                "the backfill ends", 1200,
            )  # fmt: skip
            follower.kill()
        ends = self.sql(
            "SELECT status FROM bulk_actions ORDER BY timestamp DESC LIMIT 1",
            "trading_pipelines_dagster",
        )
        assert may_fail or ends == "COMPLETED_SUCCESS", (
            f"{ends}: every run of it ends well\n{self.sql(FAILURES, 'trading_pipelines_dagster')}"
        )
        if may_fail:
            self.until(
                lambda: self.differences(first, last) == 0, "the ticks fetch what is missing"
            )
        assert self.differences(first, last) == 0
        self.until(lambda: self.arrived().keys() >= {*self.rejected}, "each alert arrives")
        assert self.doubles() == 0
        self.until(self.is_well, "health is good", 900)


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    if page := os.environ.get("RELIABILITY"):
        table.write(Path(page))


@contextmanager
def our_cluster() -> Iterator[dict[str, str]]:
    """Two nodes of our own, with the images that no registry gives us; the variables to use it."""
    script = str(HERE / "cluster.sh")
    subprocess.run([str(HERE / "build.sh"), str(OURS)], check=True)
    subprocess.run([script, "down"], check=True)
    subprocess.run([script, "up"], check=True)
    for image in sorted(IMAGES):
        inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
        version = subprocess.check_output(inspect, text=True)
        loaded = OURS / "node1" / f"loaded-{image.replace('/', '-')}"
        if not loaded.exists() or loaded.read_text() != version:
            # Node 1 has the volumes, and so the pods that want these images.
            with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
                subprocess.run([script, "load", "1"], stdin=saved.stdout, check=True)
            loaded.write_text(version)
    yield {
        "KUBECONFIG": str(OURS / "pki" / "admin.conf"),
        "PATH": f"{OURS / 'bin'}:{HERE / 'bin'}:{os.environ['PATH']}",
    }
    if not os.environ.get("KEEP"):
        subprocess.run([script, "down"], check=True)


@contextmanager
def their_cluster() -> Iterator[dict[str, str]]:
    """The variables to use the cluster of KUBECONFIG; LOAD_IMAGE says that it is not minikube's."""
    beside = f"{HERE / 'bin'}:" if "LOAD_IMAGE" in os.environ else ""
    yield {"PATH": f"{beside}{os.environ['PATH']}"}


def prepared(clone: Path, exchange: str) -> None:
    """Make the clone's settings those of a test: fewer days, no daily report, another exchange."""
    today = datetime.now(UTC).date()
    dump_strategy(
        StrategySettings(
            data=DataSettings(start_date=today - timedelta(days=90), look_back_days=2),
            alerts=AlertSettings(daily_report=False, retry_waits=[5.0] * 100),
            healing=HealingSettings(backoff_seconds=30.0),
        ),
        clone / "config" / "strategy.yaml",
    )
    base = clone / "deploy" / "kubernetes" / "base" / "kustomization.yaml"
    text = base.read_text()
    assert "      - CODE_SERVER=" in text
    base.write_text(
        text.replace(
            "      - CODE_SERVER=", f"      - UPBIT_BASE_URL={exchange}\n      - CODE_SERVER="
        )
    )


def commit(clone: Path, message: str) -> None:
    """Commit all of it: the image's version is named by the commit."""
    git = ["git", "-C", str(clone), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", message], check=True)


@contextmanager
def stand_ins(address: str | None) -> Iterator[tuple[ReplayExchange, DiscordInbox]]:
    """The exchange, at Upbit's limit, and Discord: at `address`, or where our own cluster is."""
    market = GeneratedMarket(SYMBOLS, SEED)
    port = 0 if address else 443
    hosts = (address, address) if address else OUTSIDE
    if not address:
        # They stand for machines of their own, and the cluster's processes weigh four times as
        # much: an exchange that takes requests in late counts eleven in a second.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    with (
        ReplayExchange(
            market, rate=10.0, latency=USUAL_SECONDS, host=hosts[0], port=port
        ) as exchange,
        DiscordInbox(host=hosts[1], port=port) as inbox,
    ):
        if not address:
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # this thread's alone: theirs have begun
        yield exchange, inbox


@pytest.fixture(scope="session")
def cluster(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with nothing of ours on it yet."""
    clone = tmp_path_factory.mktemp("cluster") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    is_ours = "KUBECONFIG" not in os.environ
    address = os.environ.get("STAND_INS_ADDRESS")
    assert is_ours or address, "STAND_INS_ADDRESS: at which your cluster's pods reach this machine"
    with (
        our_cluster() if is_ours else their_cluster() as variables,
        stand_ins(None if is_ours else address) as (exchange, inbox),
    ):
        prepared(clone, exchange.url)
        commit(clone, "the settings of a test")
        given = {**os.environ, **variables, "DISCORD_WEBHOOK_URL": inbox.url}
        context = ["kubectl", "config", "current-context"]
        given["MINIKUBE_PROFILE"] = subprocess.check_output(context, env=given, text=True).strip()
        found = Cluster(clone, given, exchange, inbox, table, is_ours)
        if not is_ours:
            allow_stand_ins(found)
        yield found


def allow_stand_ins(cluster: Cluster) -> None:
    """Open the way to the stand-ins, which have no address of the internet's there."""
    cluster.run("kubectl", "apply", "--filename", "deploy/kubernetes/base/namespace.yaml")
    places = [
        url.removeprefix("http://").partition("/")[0].split(":")
        for url in (cluster.exchange.url, cluster.inbox.url)
    ]
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "stand-ins"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Egress"],
            "egress": [
                {"to": [{"ipBlock": {"cidr": f"{host}/32"}}], "ports": [{"port": int(port)}]}
                for host, port in places
            ],
        },
    }
    cluster.kubectl("apply", "--filename", "-", given=json.dumps(policy))


@pytest.fixture(scope="session")
def deployed(cluster: Cluster) -> Cluster:
    """The cluster after the script has run through, with the backfill that it offers."""
    first, last = cluster.today - timedelta(days=HISTORY), cluster.today - timedelta(days=1)
    cluster.backfilled.append((first, last))
    with cluster.table.row(
        f"`deploy_to_minikube.sh --backfill` of {HISTORY} days on an empty cluster",
        "all of it runs, `health` is good, candles and signals are there",
    ) as row:
        said = cluster.script("--backfill", "--start", f"{first}", "--end", f"{last}")
        assert "It runs." in said
        assert cluster.differences(first, last) == 0
        waited = cluster.until(cluster.is_well, "health is good", 900)
        row["found"] = f"so; `health` good {waited:.0f} s after the script"
    return cluster
