"""deploy/compose.yaml's services as plain processes: ordered, healthy, killed, and silent.

No container engine is needed: each service's own command runs with its own environment, in which
the hosts of compose's network are ports of the loopback. Postgres is on TCP with a password, the
n8n is the real one, and so are the health checks. What has to be secret is planted, and looked for
wherever something is written at the end.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
import requests
import yaml

from tests.conftest import FIRST_DAY, SYMBOLS
from tests.integration.conftest import await_that, exact
from trading_pipelines.alerts.n8n.check import check_workflows
from trading_pipelines.alerts.n8n.local import installed_n8n
from trading_pipelines.candles.windows import MINUTE
from trading_pipelines.database.embedded import EmbeddedServer, binaries
from trading_pipelines.settings.strategy import (
    AlertSettings,
    DataSettings,
    ExchangeSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
IMPORT = DEPLOY / "n8n_import.sh"
PLANTED = {
    "POSTGRES_PASSWORD": "planted0postgres",
    "N8N_WEBHOOK_SECRET": "planted0webhook",
    "N8N_ENCRYPTION_KEY": "planted0encryption",
    "DISCORD_WEBHOOK_URL": "planted0discord",
    "HEARTBEAT_URL": "planted0heartbeat",
    "REDIS_URL": "planted0redis",
}
DAYS = (date(2025, 9, 2), date(2025, 9, 4))
REASON = "an entry that compose's services tell of"
START_SECONDS = 180
REJECT = """
INSERT INTO public.agent_decisions (symbol, strategy_name, decision, reasoning, created_at)
VALUES ('KRW-BTC', 'compose', 'REJECT', %s, now())
"""
STORED = """
SELECT symbol, timestamp, open_price, high_price, low_price, close_price, volume
FROM market_data WHERE interval = '1m' ORDER BY symbol, timestamp
"""
SHOWN = """{ instance { info } runsOrError { ... on Runs { results {
    runConfigYaml tags { key value } assets { key { path } } } } } }"""


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """Return compose's text with `${NAME}`, `${NAME:-default}` and `${NAME:?what to do}` filled."""

    def fill(found: re.Match[str]) -> str:
        name, operator, rest = found["name"], found["operator"], found["rest"]
        value = variables.get(name, "")
        assert value or operator != ":?", f"{name}: {rest}"
        return value or (rest if operator == ":-" else "")

    filled = re.sub(r"(?<!\$)\$\{(?P<name>\w+)(?P<operator>:[-?])?(?P<rest>[^}]*)\}", fill, text)
    return filled.replace("$$", "$")


@dataclass
class Compose:
    """The services of compose.yaml, each a process of this machine."""

    folder: Path
    services: dict[str, Any]
    hosts: dict[str, str]
    """What a host and port of compose's network is here, and the folder of the secrets."""
    extra: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, service: str) -> dict[str, str]:
        """Return what the service's process finds, and nothing of this machine's beside."""
        definition = self.services[service]
        found = {}
        if "env_file" in definition:
            lines = (DEPLOY / definition["env_file"]).read_text().splitlines()
            found = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
        found |= definition.get("environment", {})
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {name: self.here(value) for name, value in found.items()} | {
            "PATH": path, "HOME": str(self.folder), **self.extra
        }  # fmt: skip

    def here(self, text: str) -> str:
        """Return the text with compose's hosts and folder of secrets as they are here."""
        for host, local in self.hosts.items():
            text = text.replace(host, local)
        return text

    def command(self, service: str) -> list[str]:
        """Return the service's command with loopback in every address's place."""
        definition = self.services[service]
        if "entrypoint" in definition:
            imported = shlex.join([str(IMPORT), str(DEPLOY.parent / "config")])
            words = [*definition["entrypoint"], *definition["command"]]
            return [self.here(word.replace("/import.sh", imported)) for word in words]
        words = ["trading-pipelines", *definition["command"]]
        if "--host" in words:
            words[words.index("--host") + 1] = "127.0.0.1"
            address = {"code-server": "code-server:4000", "webserver": "webserver:3000"}[service]
            words += ["--port", self.hosts[address].rpartition(":")[2]]
        return words

    def run(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run the service's own command, or another in its place, to its end; keep what it says."""
        done = subprocess.run(
            self.located(service, command or self.command(service)),
            env=self.environment(service), capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        with (self.folder / f"{service}.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        return done

    def located(self, service: str, command: tuple[str, ...] | list[str]) -> list[str]:
        """Return the command with its program as the service's PATH finds it."""
        program = shutil.which(command[0], path=self.environment(service)["PATH"])
        assert program, command[0]
        return [program, *command[1:]]

    def start(self, service: str) -> None:
        """Start the service."""
        with (self.folder / f"{service}.log").open("ab") as log:
            self.running[service] = subprocess.Popen(
                self.located(service, self.command(service)), env=self.environment(service),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def is_healthy(self, service: str) -> bool:
        """Ask the service's own health check."""
        kind, *test = self.services[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            test = [
                "sh",
                "-c",
                test[0].replace("/var/lib/trading-pipelines", self.extra["TRADING_PIPELINES_HOME"]),
            ]
        replaced = {"4000": self.hosts["code-server:4000"].rpartition(":")[2]}
        for host in ("webserver:3000", "n8n:5678"):
            replaced[host.partition(":")[2]] = self.hosts[host].rpartition(":")[2]
        test = [re.sub(r"\b(3000|4000|5678)\b", lambda m: replaced[m[0]], word) for word in test]
        return self.run(service, *test).returncode == 0

    def await_healthy(self, service: str) -> None:
        """Wait until the service's health check is good, as those that depend on it do."""
        deadline = time.monotonic() + START_SECONDS
        while not self.is_healthy(service):
            log = (self.folder / f"{service}.log").read_text()[-2000:]
            assert time.monotonic() < deadline, f"{service} is not healthy: {log}"

    def kill(self, service: str) -> None:
        """Kill the service as an engine does: a container's processes end together."""
        os.killpg(self.running[service].pid, signal.SIGKILL)

    def stop(self, service: str) -> None:
        """Stop the service, in the time that compose gives it."""
        process = self.running.pop(service)
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Start again what ends by itself or is killed, as `restart: always` does."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                for service, process in [*self.running.items()]:
                    if process.poll() is not None and service in self.running:
                        assert self.services[service]["restart"] == "always"
                        self.start(service)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def free_ports(count: int) -> list[str]:
    """Return addresses of the loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


@contextmanager
def postgres(address: str, password: str) -> Iterator[None]:
    """A Postgres on TCP that wants the password, with compose's role and database."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    server = EmbeddedServer(home)
    host, _, port = address.partition(":")
    server.start()
    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                f"CREATE ROLE trading_pipelines LOGIN CREATEDB PASSWORD '{password}'"
            )
            connection.execute("CREATE DATABASE trading_pipelines OWNER trading_pipelines")
        data = home / "postgres" / "data"
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"listen_addresses = '{host}'\nport = {port}\n")
        (data / "pg_hba.conf").write_text(
            "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        server.stop()
        control = ("-D", str(data), "-o", f"-c unix_socket_directories={home}/postgres/s", "-w")
        assert server._run("pg_ctl", "start", *control, "-l", f"{home}/postgres/log") == 0
        yield
    finally:
        server._run("pg_ctl", "stop", "-m", "immediate", "-D", str(home / "postgres" / "data"))
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None, clock=recorded_market.end + MINUTE) as exchange:
        yield exchange


@pytest.fixture(scope="module")
def inbox() -> Iterator[DiscordInbox]:
    with DiscordInbox() as inbox:
        yield inbox


@pytest.fixture(scope="module")
def compose(exchange: ReplayExchange, inbox: DiscordInbox) -> Iterator[Compose]:
    """The services' definitions, a Postgres that is up, and planted secrets."""
    command = installed_n8n()
    if command is None:
        pytest.skip("n8n is not installed: run deploy/install_n8n.sh, or set N8N_COMMAND")
    names = ["postgres:5432", "code-server:4000", "webserver:3000", "n8n:5678", "broker"]
    hosts = dict(zip(names, free_ports(len(names)), strict=True))
    broker = hosts.pop("broker").rpartition(":")[2]
    secrets = PLANTED | {
        "DISCORD_WEBHOOK_URL": inbox.url.replace("/token", f"/{PLANTED['DISCORD_WEBHOOK_URL']}"),
        # Nobody answers at either: what is said of it must not say the secret.
        "HEARTBEAT_URL": f"http://127.0.0.1:1/{PLANTED['HEARTBEAT_URL']}",
        "REDIS_URL": f"redis://:{PLANTED['REDIS_URL']}@127.0.0.1:1/0",
    }
    folder = Path(tempfile.mkdtemp(prefix="tpcompose"))
    (folder / "bin").mkdir()
    (folder / "bin" / "n8n").symlink_to(command)
    (node,) = (command.parent / "node_modules").glob("node-linux-*/bin/node")
    (folder / "bin" / "node").symlink_to(node)
    dump_strategy(
        StrategySettings(
            symbols=SYMBOLS[:2],
            data=DataSettings(start_date=FIRST_DAY, refresh=False),
            alerts=AlertSettings(daily_report=False),
            exchange=ExchangeSettings(requests_per_second=1000.0, attempts=2, backoff_seconds=0.01),
        ),
        folder / "strategy.yaml",
    )
    hosts["/run/secrets"] = str(folder / "secrets")
    services = yaml.safe_load(interpolated(COMPOSE.read_text(), {}))["services"]
    extra = {
        "TRADING_PIPELINES_HOME": str(folder / "home"),
        "TRADING_PIPELINES_CONFIG": str(folder / "strategy.yaml"),
        "UPBIT_BASE_URL": exchange.url,
        "N8N_HOST": "127.0.0.1",
        "N8N_LISTEN_ADDRESS": "127.0.0.1",
        "N8N_PORT": hosts["n8n:5678"].rpartition(":")[2],
        "N8N_RUNNERS_BROKER_PORT": broker,
        "N8N_USER_FOLDER": str(folder / "n8n"),
    }
    found = Compose(folder, services, hosts, extra)
    make_secrets = [DEPLOY / "make_secrets.sh", folder / "secrets"]
    subprocess.run(make_secrets, env=os.environ | secrets, check=True)
    of_database = folder / "secrets" / "DATABASE_URL"
    database = of_database.read_text()
    of_database.chmod(0o600)
    of_database.write_text(found.here(database))
    with postgres(hosts["postgres:5432"], PLANTED["POSTGRES_PASSWORD"]):
        yield found
        for service in found.running:
            with suppress(ProcessLookupError):
                found.kill(service)
    shutil.rmtree(folder)


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """Every command line that any process of this machine shows meanwhile."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_the_services_come_up_heal_a_killed_code_server_deliver_and_keep_their_secrets(
    compose: Compose, exchange: ReplayExchange, inbox: DiscordInbox, recorded: pd.DataFrame
) -> None:
    with compose.watched(), command_lines() as seen:
        for _ in range(2):  # compose runs it again at each `up`
            done = compose.run("migrate")
            assert done.returncode == 0, done.stdout + done.stderr
        for service in ("n8n", "code-server", "webserver", "daemon"):
            compose.start(service)
            compose.await_healthy(service)

        exchange.latency = 0.1
        days = ("--start", f"{DAYS[0]}", "--end", f"{DAYS[1]}")
        backfill = subprocess.Popen(
            compose.located("daemon", ["trading-pipelines", "backfill", *days]),
            env=compose.environment("daemon"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        before = exchange.stats().requests
        await_that(lambda: exchange.stats().requests - before > 5, "the backfill is under way")
        compose.kill("code-server")
        exchange.latency = 0.0
        said, _ = backfill.communicate(timeout=280)
        assert backfill.returncode == 0, said
        market = (compose.folder / "secrets" / "DATABASE_URL").read_text()
        wanted = recorded[
            recorded.symbol.isin(SYMBOLS[:2])
            & (recorded.timestamp_utc >= datetime.combine(DAYS[0], datetime.min.time(), UTC))
            & (recorded.timestamp_utc < datetime(2025, 9, 5, tzinfo=UTC))
        ]
        with psycopg.connect(market, autocommit=True) as connection:
            rows = connection.execute(STORED).fetchall()
            columns = ["symbol", "timestamp_utc", "open", "high", "low", "close", "volume"]
            assert exact(pd.DataFrame(rows, columns=columns)) == exact(
                wanted.sort_values(["symbol", "timestamp_utc"])
            )
            connection.execute(REJECT, [REASON])
        inbox.wait_for(lambda message: REASON in str(message.payload), 60)

        compose.kill("n8n")  # and it imports again, over what is published
        compose.await_healthy("n8n")
        webhooks = check_workflows(
            compose.here("http://n8n:5678"), PLANTED["N8N_WEBHOOK_SECRET"], 10
        )
        assert [one.finding for one in webhooks if not one.is_good] == []

        # And one that fails, so that an error is told and kept as well.
        exchange.set_faults([Fault.parse("html_200:market=KRW-ETH")])
        failed = compose.run(
            "daemon", "trading-pipelines", "backfill", "--symbols", "KRW-ETH",
            "--start", "2025-09-08", "--end", "2025-09-08",
        )  # fmt: skip
        assert failed.returncode == 1, failed.stdout
        url = compose.here("http://webserver:3000")
        shown = requests.post(f"{url}/graphql", json={"query": SHOWN}, timeout=60).text
        assert "refresh" in shown or "KRW-BTC" in shown
        for service in ("daemon", "webserver", "code-server", "n8n"):
            compose.stop(service)

    written = {"the UI": shown, "process lists": "\n".join(seen)}
    for path in [*compose.folder.glob("*.log"), *(compose.folder / "home").rglob("*")]:
        if path.is_file():
            written[path.name] = path.read_text(errors="replace")
    for url in (market, f"{market}_dagster"):
        dump = [str(binaries() / "pg_dump"), "--dbname", url]
        done = subprocess.run(dump, capture_output=True, text=True, check=True)
        written[url.rpartition("/")[2]] = done.stdout
    assert "trading-pipelines" in written["process lists"], "they were looked at"
    assert REASON in written["trading_pipelines"], "what was written was looked at"
    found = {
        (place, name)
        for place, text in written.items()
        for name, secret in PLANTED.items()
        if secret in text
    }
    assert found == set()
