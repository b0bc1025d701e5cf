"""What was tried on the doors of the real web server, and what must go on behind them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from socket import create_connection
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from dagster_graphql.schema import create_schema
from pydantic import SecretStr
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from trading_pipelines.database.connection import database_urls
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.request_guard import BODY_BYTES, HEADERS
from trading_pipelines.runtime.supervisor import _free_port
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.shipped import INSTANCE_SETTINGS, shipped

NAME = "dagster.example.com"
STARTS_WITHIN = 240
CODE = """
import dagster as dg
@dg.asset
def thing() -> None: ...
defs = dg.Definitions(assets=[thing], jobs=[dg.define_asset_job("make_thing", [thing])])
"""
LAUNCH = """mutation { launchRun(executionParams: {runConfigData: "{}", selector: {
    repositoryLocationName: "here", repositoryName: "__repository__", pipelineName: "make_thing"
}}) { __typename ... on LaunchRunSuccess { run { runId } } } }"""
RUNS = "{ runsOrError { ... on Runs { count } } }"
EVENTS = """subscription Events($run: ID!) { pipelineRunLogs(runId: $run) { __typename
    ... on PipelineRunLogsSubscriptionSuccess { messages { __typename } } } }"""
JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"query": LAUNCH})
BY_URL = "/graphql?query=" + "".join(f"%{byte:02x}" for byte in LAUNCH.encode())
IMAGE: dict[str, str | None] = {"Accept": "image/avif,image/webp,*/*;q=0.8"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: HTTPMessage
    text: str


@dataclass(frozen=True)
class Web:
    """A running web server; PORT in a header stands for its port."""

    port: int

    def connect(self, method: str, path: str, headers: Mapping[str, str | None]) -> HTTPConnection:
        """Send a request's head. The Host is right unless another is given; None sends none."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": "127.0.0.1:PORT", **headers}.items():
            if value is not None:
                connection.putheader(name, value.replace("PORT", str(self.port)))
        return connection

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str | None] | None = None,
        body: str = "",
    ) -> Answer:
        """Send a request and return its answer."""
        length = {"Content-Length": str(len(body))} if body else {}
        connection = self.connect(method, path, {**length, **(headers or {})})
        connection.endheaders(body.encode() or None)
        return answer_of(connection)

    def graphql(self, query: str) -> Any:
        """Ask as the UI does and return the data."""
        answer = self.ask("POST", "/graphql", JSON, json.dumps({"query": query}))
        assert answer.status == 200, answer.text
        return json.loads(answer.text)["data"]

    def runs(self) -> int:
        """Return how many runs there are."""
        return int(self.graphql(RUNS)["runsOrError"]["count"])

    def launch(self) -> str:
        """Launch a run and return its id; it is queued, as nothing takes it from the queue."""
        return str(self.graphql(LAUNCH)["launchRun"]["run"]["runId"])

    def socket(
        self, origin: str | None = "http://127.0.0.1:PORT", host: str | None = None
    ) -> AbstractContextManager[ClientConnection]:
        """Open a WebSocket as the UI does."""
        return connect(
            f"ws://{host or '127.0.0.1'}:{self.port}/graphql",
            sock=create_connection(("127.0.0.1", self.port)),
            origin=Origin(origin.replace("PORT", str(self.port))) if origin else None,
            subprotocols=[Subprotocol("graphql-ws")],
        )

    def over_a_socket(self, query: str, **variables: str) -> Any:
        """Start an operation over a WebSocket and return the first message that it brings."""
        with self.socket() as socket:
            payload = {"query": query, "variables": variables}
            socket.send(json.dumps({"type": "connection_init"}))
            socket.send(json.dumps({"type": "start", "id": "1", "payload": payload}))
            while (message := json.loads(socket.recv(30)))["type"] == "connection_ack":
                pass
            return message


def answer_of(connection: HTTPConnection) -> Answer:
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    return Answer(response.status, response.headers, text)


@dataclass(frozen=True)
class Site:
    """A fresh instance with a code server, on which web servers are started."""

    home: Path
    variables: dict[str, str]

    @contextmanager
    def process(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a module until the end of the block."""
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=self.variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.terminate()
                # A code server of Dagster's did not end by that once, for a quarter of an hour.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()

    @contextmanager
    def web(self, *options: str) -> Iterator[tuple[Web, subprocess.Popen[str]]]:
        """Start a web server and wait until it has loaded the code."""
        web = Web(_free_port())
        place = ("-h", "127.0.0.1", "-p", str(web.port), "-w", str(self.home / "workspace.yaml"))
        with self.process("trading_pipelines.runtime.webserver", *place, *options) as process:
            deadline = time.monotonic() + STARTS_WITHIN
            while True:
                try:
                    web.graphql("{ assetNodes { id } }")["assetNodes"][0]
                except (OSError, LookupError):
                    assert time.monotonic() < deadline
                    assert process.poll() is None, process.communicate()[0]
                    time.sleep(0.2)
                else:
                    break
            yield web, process


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("dagster")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE doors_dagster")
    environment = Environment(
        trading_pipelines_home=home, database_url=SecretStr(server.url("doors"))
    )
    # The project's own keeps no logs: a traversal would find nothing to traverse.
    logs = {
        "module": "dagster._core.storage.local_compute_log_manager",
        "class": "LocalComputeLogManager",
        "config": {"base_dir": str(home / "logs")},
    }
    settings = {**yaml.safe_load(shipped(INSTANCE_SETTINGS).read_text()), "compute_logs": logs}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    (home / "code.py").write_text(CODE)
    code = {"socket": str(home / "code.sock"), "location_name": "here"}
    (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": code}]}))
    site = Site(
        home,
        {
            **os.environ,
            **database_urls(environment).environment(),
            "DAGSTER_HOME": str(home),
            "ALLOWED_HOSTS": NAME,
        },
    )
    # Two processes that make the same SQLite storage at once break it (two heads of Alembic's).
    dg.DagsterInstance.from_config(str(home)).dispose()
    serve = ("api", "grpc", "-s", code["socket"], "-f", str(home / "code.py"))
    with site.process("dagster", *serve, "--location-name", "here"):
        yield site


@pytest.fixture(scope="module")
def web(site: Site) -> Iterator[Web]:
    with site.web() as (web, _):
        yield web


@pytest.fixture(scope="module")
def viewed(site: Site) -> Iterator[Web]:
    with site.web("--read-only") as (web, _):
        yield web


Try = tuple[int, str, str, dict[str, str | None], str]
TRIES: dict[str, Try] = {
    "a GET": (405, "GET", BY_URL, {}, ""),
    "an image": (405, "GET", BY_URL, IMAGE, ""),
    "a HEAD": (405, "HEAD", BY_URL, {}, ""),
    "a preflight": (405, "OPTIONS", "/graphql", {"Access-Control-Request-Method": "POST"}, ""),
    "a POST that has all in its URL": (415, "POST", BY_URL, {}, ""),
    "a form": (415, "POST", BY_URL, {"Content-Type": "application/x-www-form-urlencoded"}, "a=b"),
    "a form with files": (415, "POST", BY_URL, {"Content-Type": "multipart/form-data"}, "--"),
    "text": (415, "POST", "/graphql", {"Content-Type": "text/plain"}, BODY),
    "text that says JSON": (
        415, "POST", "/graphql", {"Content-Type": "text/plain; application/json"}, BODY
    ),
    "GraphQL": (415, "POST", "/graphql", {"Content-Type": "application/graphql"}, LAUNCH),
    "a foreign origin": (403, "POST", "/graphql", {**JSON, "Origin": "https://evil.example"}, BODY),
    "no origin": (403, "POST", "/graphql", {**JSON, "Origin": "null"}, BODY),
    "a neighbour": (403, "POST", "/graphql", {**JSON, "Origin": "http://127.0.0.1:1"}, BODY),
    "a longer name": (
        403, "POST", "/graphql", {**JSON, "Origin": "http://127.0.0.1:PORT.evil.example"}, BODY
    ),
    "an allowed name's page on loopback": (
        403, "POST", "/graphql", {**JSON, "Origin": f"http://{NAME}"}, BODY
    ),
    "another site": (403, "POST", "/graphql", {**JSON, "Sec-Fetch-Site": "cross-site"}, BODY),
    "another port": (403, "POST", "/graphql", {**JSON, "Sec-Fetch-Site": "same-site"}, BODY),
    "a form that opens a page": (403, "POST", BY_URL, {**JSON, **LINK}, BODY),
    "a frame": (403, "GET", "/", {**LINK, "Sec-Fetch-Dest": "iframe"}, ""),
    "a script": (403, "GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, ""),
    "a foreign host": (400, "POST", "/graphql", {**JSON, "Host": "evil.example"}, BODY),
    "a rebound name": (
        400, "POST", "/graphql",
        {**JSON, "Host": "evil.example:PORT", "Origin": "http://evil.example:PORT",
         "Sec-Fetch-Site": "same-origin"}, BODY,
    ),
    "a name below localhost": (
        400, "POST", "/graphql", {**JSON, "Host": "localhost.evil.example"}, BODY
    ),
    "no host": (400, "POST", "/graphql", {**JSON, "Host": None}, BODY),
    "a report of a materialization": (
        415, "POST", "/report_asset_materialization/thing?data_version=1", {}, ""
    ),
    "a report of a check": (
        415, "POST", "/report_asset_check/thing?check_name=x&passed=true", {}, ""
    ),
    "a foreign report": (
        403, "POST", "/report_asset_materialization/thing",
        {**JSON, "Origin": "https://evil.example"}, "{}",
    ),
    "the log of another folder": (400, "GET", "/logs/..%2fdagster/yaml", {}, ""),
    "the same by dots": (400, "GET", "/logs/%2e%2e/dagster/yaml", {}, ""),
    "a static file of another folder": (400, "GET", "/vendor/..%2f..%2f..%2fversion.py", {}, ""),
    "a run of another folder": (400, "GET", "/download_debug/../dagster.yaml", {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", TRIES)
def test_what_comes_from_elsewhere_is_refused_and_does_nothing(web: Web, name: str) -> None:
    status, method, path, headers, body = TRIES[name]
    before = web.runs()
    answer = web.ask(method, path, headers, body)
    assert (answer.status, web.runs()) == (status, before)
    assert "postgres" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/logs/..%252fdagster/yaml",
        "/notebook?repoLocName=here&path=../dagster.yaml",
        "//dagster.yaml",
    ],
)
def test_no_other_path_leads_out_of_its_folder(web: Web, path: str) -> None:
    assert "postgres" not in web.ask("GET", path).text


@pytest.mark.parametrize("host", ["localhost:PORT", "127.0.0.1", "[::1]:PORT", NAME, f"{NAME}:1"])
def test_loopback_names_and_those_that_are_allowed_are_served_at_any_port(
    web: Web, host: str
) -> None:
    headers = {"Host": host, "Origin": f"https://{host}", "Sec-Fetch-Site": "same-origin"}
    answer = web.ask("POST", "/graphql", {**JSON, **headers}, json.dumps({"query": RUNS}))
    assert answer.status == 200


def test_the_pages_are_served_and_may_be_linked_to(web: Web) -> None:
    page = web.ask("GET", "/assets", {**LINK, "Sec-Fetch-Dest": "document", "Accept": "text/html"})
    assert page.status == 200
    script = page.text.partition('src="/_next/')[2].partition('"')[0]
    assert web.ask("GET", f"/_next/{script}").headers["Content-Type"].endswith("javascript")
    assert "GraphiQL" in web.ask("GET", "/graphql", {"Accept": "text/html"}).text


def test_dagsters_own_policy_of_scripts_stays_beside_ours(web: Web) -> None:
    page = web.ask("GET", "/")
    scripts, doors = page.headers.get_all("Content-Security-Policy") or []
    nonce = scripts.partition("'nonce-")[2].partition("'")[0]
    assert f'nonce="{nonce}"' in page.text
    assert "frame-ancestors 'none'" in doors


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        (200, "GET", "/", {}),
        (200, "GET", "/favicon.svg", {}),
        (200, "GET", "/graphql", {"Accept": "text/html"}),
        (404, "GET", "/vendor/none", {}),
        (400, "GET", "/", {"Host": "evil.example"}),
        (403, "GET", "/", {"Origin": "https://evil.example"}),
        (405, "OPTIONS", "/graphql", {"Origin": "http://127.0.0.1:PORT"}),
        (415, "POST", "/graphql", {}),
    ],
)
def test_every_answer_has_the_headers_that_close_a_browsers_doors(
    web: Web, status: int, method: str, path: str, headers: dict[str, str | None]
) -> None:
    answer = web.ask(method, path, headers)
    assert answer.status == status
    assert {name: answer.headers.get_all(name) for name in HEADERS} == {
        name: [value] for name, value in HEADERS.items()
    }
    assert "frame-ancestors 'none'" in str(answer.headers.get_all("Content-Security-Policy"))
    foreign = ("access-control", "server", "set-cookie")
    assert not [name for name in answer.headers if name.lower().startswith(foreign)]


def test_a_body_that_says_it_is_too_long_is_not_waited_for(web: Web) -> None:
    connection = web.connect("POST", "/graphql", {**JSON, "Content-Length": f"{BODY_BYTES + 1}"})
    connection.endheaders()
    assert answer_of(connection).status == 413


def test_a_body_in_chunks_is_read_no_further_than_it_may_be_long(web: Web) -> None:
    connection = web.connect("POST", "/graphql", {**JSON, "Transfer-Encoding": "chunked"})
    connection.endheaders()
    chunk = b"x" * 100_000
    for _ in range(BODY_BYTES // len(chunk) + 1):
        connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    answer = answer_of(connection)  # to a body that has not ended
    assert (answer.status, answer.headers["Connection"]) == (413, "close")


def test_the_longest_backfill_of_the_ui_passes(web: Web) -> None:
    days = [f"{date(2023, 1, 1) + timedelta(days=n)}" for n in range(3 * 366)]
    partitions = [f"{day}|KRW-PEPE{n:03}" for day in days for n in range(200)]
    parameters = {"assetSelection": [{"path": ["thing"]}], "partitionNames": partitions}
    query = """mutation Launch($parameters: LaunchBackfillParams!) {
        launchPartitionBackfill(backfillParams: $parameters) { __typename } }"""
    body = json.dumps({"query": query, "variables": {"parameters": parameters}})
    answer = web.ask("POST", "/graphql", JSON, body)
    assert "launchPartitionBackfill" in answer.text


@pytest.mark.parametrize(
    ("status", "origin", "host"),
    [
        (403, "https://evil.example", None),
        (403, "null", None),
        (403, "http://127.0.0.1:1", None),
        (400, "http://evil.example:PORT", "evil.example"),
    ],
)
def test_a_websocket_from_elsewhere_is_not_opened(
    web: Web, status: int, origin: str, host: str | None
) -> None:
    with pytest.raises(InvalidStatus) as refused, web.socket(origin, host):
        pass
    assert refused.value.response.status_code == status
    assert refused.value.response.headers["X-Frame-Options"] == "DENY"


def test_a_websocket_of_the_ui_tells_of_a_run_and_one_without_origin_is_a_tools(web: Web) -> None:
    message = web.over_a_socket(EVENTS, run=web.launch())
    events = message["payload"]["data"]["pipelineRunLogs"]["messages"]
    assert "RunEnqueuedEvent" in [event["__typename"] for event in events]
    with web.socket(origin=None) as socket:
        assert socket.ping().wait(30)


def test_no_mutation_goes_over_a_websocket(web: Web) -> None:
    before = web.runs()
    assert web.over_a_socket(LAUNCH)["type"] == "error"
    assert web.runs() == before


def test_viewers_see_runs_and_their_events(web: Web, viewed: Web) -> None:
    message = viewed.over_a_socket(EVENTS, run=web.launch())
    assert message["payload"]["data"]["pipelineRunLogs"]["messages"]
    assert viewed.runs() == web.runs()


@pytest.mark.parametrize("mutation", create_schema().graphql_schema.mutation_type.fields)
def test_viewers_have_no_mutation(viewed: Web, mutation: str) -> None:
    answer = viewed.ask(
        "POST", "/graphql", JSON, json.dumps({"query": f"mutation {{ {mutation} }}"})
    )
    assert "this web server is read-only" in answer.text
    assert json.loads(answer.text)["data"] is None


def test_a_mutation_that_hides_behind_a_query_is_refused_to_viewers(viewed: Web) -> None:
    body = {"query": f"query Q {RUNS} {LAUNCH.replace('mutation', 'mutation M')}"}
    before = viewed.runs()
    for name in ("Q", "M"):
        answer = viewed.ask("POST", "/graphql", JSON, json.dumps({**body, "operationName": name}))
        assert "this web server is read-only" in answer.text
    assert viewed.runs() == before


@pytest.mark.parametrize("kind", ["materialization", "observation", "check"])
def test_viewers_report_nothing_of_an_asset(web: Web, viewed: Web, kind: str) -> None:
    path, body = f"/report_asset_{kind}/thing", '{"check_name": "x", "passed": true}'
    assert viewed.ask("POST", path, JSON, body).status == 401
    assert web.ask("POST", path, JSON, body).status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to_and_has_said_no_secret(
    site: Site, number: signal.Signals
) -> None:
    with site.web() as (web, process), web.socket():
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert site.variables["DAGSTER_POSTGRES_URL"] not in said
