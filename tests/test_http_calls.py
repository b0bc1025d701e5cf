"""A call ends by its deadline and reads no more than its bound; no call of ours goes round it."""

import ast
import socket
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import requests

import trading_pipelines
from tests.receivers import LATE, LONG, UNPACKED, Answer, receiver, whole
from trading_pipelines.http_calls import BoundedSession, call

SECONDS, MOST_BYTES = 0.5, 4096
ROOT = Path(trading_pipelines.__file__).parent
WORDS_OF_REQUESTS = {"Response", "RequestException", "Timeout", "ConnectTimeout", "exceptions"}
"""Types and errors: what asks nothing."""
ASKING = {"aiohttp", "ccxt", "http.client", "httpx", "pycurl", "urllib.request", "urllib3"}
MAY_ASK = {
    "http_calls.py": {"requests", "urllib3"},
    # Only for the type of an error.
    "alerts/webhooks.py": {"urllib3"},
    # By a session of http_calls, which the test below sees used.
    "candles/upbit.py": {"ccxt"},
}


def late() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "http call"}


@pytest.mark.parametrize("answer", LATE.values(), ids=LATE)
def test_a_call_ends_by_its_deadline_whatever_drips(answer: Answer) -> None:
    began = time.monotonic()
    with (
        receiver(answer) as url,
        pytest.raises(requests.ReadTimeout, match=r"no whole answer within 0\.5 s"),
    ):
        call("POST", url, seconds=SECONDS, most_bytes=MOST_BYTES, json={"a": 1})
    assert SECONDS <= time.monotonic() - began < 4 * SECONDS
    for thread in late():
        thread.join(5)
    assert late() == set(), "what was given up has ended too"


def test_redirects_have_the_deadline_of_their_call() -> None:
    moved = whole("302 Found", b"", "Location: /again")

    def later(connection: object) -> None:
        time.sleep(0.2)
        moved(connection)  # type: ignore[arg-type]

    began = time.monotonic()
    with receiver(later) as url, pytest.raises(requests.ReadTimeout):
        call("GET", url, seconds=SECONDS, most_bytes=MOST_BYTES)
    assert time.monotonic() - began < 4 * SECONDS


@pytest.mark.parametrize("answer", LONG.values(), ids=LONG)
def test_an_answer_is_read_to_its_bound_and_cut_there(answer: Answer) -> None:
    with receiver(answer) as url:
        tracemalloc.start()
        try:
            content = call("GET", url, seconds=30, most_bytes=MOST_BYTES).content
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(content) == MOST_BYTES
    assert peak < UNPACKED / 16


def test_a_connection_kept_open_ends_by_the_deadline_too() -> None:
    answers = iter([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])

    def twice(connection: object) -> None:
        connection.send(next(answers))  # type: ignore[attr-defined]
        connection.drip()  # type: ignore[attr-defined]

    with receiver(twice) as url, BoundedSession(SECONDS, MOST_BYTES) as session:
        assert session.get(url).text == "ok"
        with pytest.raises(requests.RequestException):
            session.get(url)
        assert session.answer is None
    for thread in late():
        thread.join(5)
    assert late() == set()


def test_a_name_that_is_looked_up_for_ever_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """And when it is found after all, nothing is sent: the caller may have asked again."""
    found, asked = threading.Event(), []

    def look_up(*_: object, **__: object) -> list[object]:
        found.wait(30)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    def note(connection: object) -> None:
        asked.append(connection)

    with receiver(note) as url:
        port = int(url.rpartition(":")[2])
        monkeypatch.setattr("socket.getaddrinfo", look_up)
        with pytest.raises(requests.ConnectTimeout):
            call("POST", f"http://name:{port}", seconds=SECONDS, most_bytes=MOST_BYTES, json={})
        found.set()
        for thread in late():
            thread.join(5)
        assert late() == set()
    assert asked == []


def test_no_call_of_the_package_goes_round_it() -> None:
    """Whoever asks by HTTP uses `http_calls`: what else can is not even imported."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if asking := ways_round(path.read_text()) - MAY_ASK.get(name, set()):
            found[name] = asking
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "import requests\nrequests.get('x', timeout=1)",
        "import requests as r\nr.Session()",
        "from requests import post",
        "from requests.sessions import Session",
        "from urllib.request import urlopen",
        "from urllib import request",
        "import http.client",
        "def f():\n    import httpx",
    ],
)
def test_a_way_round_is_seen(code: str) -> None:
    assert ways_round(code)


def test_types_and_errors_are_no_way_round() -> None:
    assert ways_round("import requests\nx: requests.Response\nrequests.RequestException") == set()


def ways_round(code: str) -> set[str]:
    """Return the modules by which the code could ask."""
    tree, ways, alias = ast.parse(code), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [name.name for name in node.names]
            alias |= {name.asname or name.name for name in node.names if name.name == "requests"}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [f"{node.module}.{name.name}" for name in node.names]
            if (node.module or "").partition(".")[0] == "requests":
                ways |= {"requests"} if {n.name for n in node.names} - WORDS_OF_REQUESTS else set()
        else:
            continue
        ways |= {way for way in ASKING for name in imported if f"{name}.".startswith(f"{way}.")}
        ways |= {"requests"} if any(n.startswith("requests.") for n in imported) else set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in alias
            and node.attr not in WORDS_OF_REQUESTS
        ):
            ways.add("requests")
    return ways


def test_a_call_takes_the_connection_that_was_opened_for_it() -> None:
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)

        def serve() -> None:
            connection, _ = listening.accept()
            accepted.append(connection)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with BoundedSession(SECONDS, MOST_BYTES) as session:
            session.connect(url)
            session.connect(url)
            while not accepted:
                thread.join(0.01)
            assert session.request("GET", f"{url}/path").ok
            thread.join()
            listening.settimeout(0)
            with pytest.raises(BlockingIOError):
                listening.accept()
        accepted[0].close()


def test_a_connection_that_can_not_be_opened_is_left_to_the_call_to_report() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with BoundedSession(SECONDS, MOST_BYTES) as session:
        session.connect(url)
        with pytest.raises(requests.ConnectionError):
            session.request("GET", url)
