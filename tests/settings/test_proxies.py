"""What goes to a proxy and what does not, as each client of ours decides it, over real sockets."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.candles.test_upbit import TO
from trading_pipelines.alerts.n8n.check import check_workflows
from trading_pipelines.alerts.webhooks import DISCORD, N8N, Webhooks
from trading_pipelines.candles.page import ExchangeError
from trading_pipelines.candles.upbit import Upbit
from trading_pipelines.runtime import graphql
from trading_pipelines.scenarios import demo
from trading_pipelines.sensors import heartbeat
from trading_pipelines.settings.environment import load_environment, spare_from_proxies

SPARED = "localhost,127.0.0.1,127.0.0.0/8,::1,127.0.0.1"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "NO_GRPC_PROXY", "ALL_PROXY")


class Listener(ThreadingHTTPServer):
    """Answers everything with {} and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Listener)
        self.server.asked.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def do_CONNECT(self) -> None:
        assert isinstance(self.server, Listener)
        self.server.asked.append(f"CONNECT {self.path}")
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A server on loopback that is no proxy."""
    yield from listening()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """The proxy of the environment, by which nothing is spared."""
    for name in PROXIES:
        for spelling in (name, name.lower()):
            # Set first, so that what we set is taken back.
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)
    for server in listening():
        for name in ("HTTP_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
        yield server


def listening() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask_all(base: str) -> None:
    """Let each client ask what is at the address."""
    load_environment()
    with suppress(ExchangeError):
        Upbit(base, 5).minutes("KRW-BTC", TO)
    demo._answers(base, "KRW-BTC")
    webhooks = Webhooks(f"{base}/n8n", "secret", f"{base}/discord", 5)
    webhooks.is_n8n_ready()
    for via in (N8N, DISCORD):
        webhooks.post(via, "ai-reject", {"idempotency_key": "1"})
    check_workflows(f"{base}/n8n", "secret", 5)
    heartbeat._beat(f"{base}/beat")
    with suppress(graphql.GraphQLError, LookupError):
        graphql.ask(base, "{x}", timeout=5)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.7"])
def test_what_is_on_this_machine_is_never_asked_by_a_proxy(
    proxy: Listener, listener: Listener, host: str
) -> None:
    if host == "127.0.0.7":
        listener.asked.append("not bound there")
    ask_all(f"http://{host}:{listener.port}")
    assert proxy.asked == []
    assert listener.asked


def test_what_is_elsewhere_is_asked_by_the_proxy(proxy: Listener) -> None:
    ask_all("http://elsewhere.invalid")
    ask_all("https://elsewhere.invalid")
    plain = {path.partition("?")[0] for path in proxy.asked if path.startswith("http")}
    assert {
        "http://elsewhere.invalid/v1/candles/minutes/1",
        "http://elsewhere.invalid/n8n/webhook/ai-reject",
        "http://elsewhere.invalid/n8n/healthz/readiness",
        "http://elsewhere.invalid/discord",
        "http://elsewhere.invalid/beat",
    } <= plain
    assert "CONNECT elsewhere.invalid:443" in proxy.asked


def test_what_the_operator_spares_is_spared_too(
    proxy: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "elsewhere.invalid, other.invalid")
    ask_all("http://elsewhere.invalid")
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("said", "spared"),
    [
        (None, SPARED.removesuffix(",127.0.0.1")),
        ("a, b", f"a,b,{SPARED.removesuffix(',127.0.0.1')}"),
        ("*", None),
    ],
)
@pytest.mark.usefixtures("proxy")
def test_what_is_spared_is_said_in_both_spellings_once(
    monkeypatch: pytest.MonkeyPatch, said: str | None, spared: str | None
) -> None:

    if said:
        monkeypatch.setenv("NO_PROXY", said)
    for _ in range(2):
        load_environment()
    assert os.environ.get("no_proxy") == spared
    assert os.environ.get("NO_PROXY") == spared or said == "*"


@pytest.mark.usefixtures("proxy")
def test_the_code_server_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setenv("CODE_SERVER", "code-server:4000")
    load_environment()
    assert os.environ["no_proxy"].endswith(",code-server")
    spare_from_proxies()
    assert os.environ["no_proxy"].endswith(",code-server")


@pytest.mark.usefixtures("proxy")
def test_the_exchange_is_believed_by_the_certificates_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/own/ca.pem")
    session = Upbit("https://api.upbit.com", 5)._client.session
    settings = session.merge_environment_settings("https://api.upbit.com", {}, None, True, None)
    assert settings["verify"] == "/etc/own/ca.pem"
