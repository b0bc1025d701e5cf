"""A foreign page in the operator's browser, which changes nothing, beside the UI, which works."""

import json
import re
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests

from tests.browser.conftest import OPENS_WITHIN, Operator

# The installation's start is part of the first.
pytestmark = pytest.mark.timeout(900)

LIMIT = 'mutation { setConcurrencyLimit(concurrencyKey: "KEY", limit: 1) }'
LIMITS = "{ instance { concurrencyLimits { concurrencyKey } } }"
# A form of this type sends `name=value`: with the rest of the JSON in its value it is a query.
PAGE = """<!doctype html><title>waiting</title>
<iframe name="sink"></iframe><iframe id="framed" src="UI/"></iframe>
<form id="text" method="post" target="sink" enctype="text/plain" action="UI/graphql"></form>
<form id="url" method="post" target="sink" action=""></form>
<script>
const limit = key => LIMIT.replace('KEY', key)
const query = key => '/graphql?query=' + encodeURIComponent(limit(key))
const json = key => JSON.stringify({query: limit(key)})
const told = promise => promise.then(answer => answer.type + ' ' + answer.status, () => 'refused')
const ask = (path, type, body, mode) => told(fetch('UI' + path,
    {method: 'POST', mode, credentials: 'include', body, headers: type && {'Content-Type': type}}))
const image = new Promise(done => {
    const element = new Image()
    element.onload = element.onerror = done
    element.src = 'UI' + query('an image')
})
const socket = new Promise(done => {
    const socket = new WebSocket('UI/graphql'.replace('http', 'ws'), 'graphql-ws')
    socket.onopen = () => done('opened')
    socket.onerror = () => done('refused')
})
const submitted = async () => {
    const sink = document.querySelector('[name=sink]')
    const loaded = () => new Promise(done => { sink.onload = done })
    const field = document.createElement('input')
    field.name = json('a form of text').slice(0, -1) + ',"x":"'
    field.value = '"}'
    document.forms.text.append(field)
    let next = loaded()
    document.forms.text.submit()
    await next
    next = loaded()
    document.forms.url.action = 'UI' + query('a form')
    document.forms.url.submit()
    await next
}
Promise.all([
    socket, image, submitted(),
    told(fetch('UI' + query('a GET'), {mode: 'no-cors'})),
    ask('/graphql', 'text/plain', json('text'), 'no-cors'),
    ask('/graphql', 'text/plain; application/json', json('text that says JSON'), 'no-cors'),
    ask('/graphql', 'application/json', json('JSON'), 'cors'),
    ask(query('a bare POST'), undefined, undefined, 'no-cors'),
    ask('/report_asset_materialization/evil', undefined, undefined, 'no-cors'),
]).then(found => { window.found = found; document.title = 'done' })
</script>"""


@pytest.fixture
def foreign(operator: Operator, tmp_path: Path) -> Iterator[str]:
    """A page of another server on this machine that tries what a page can."""
    page = PAGE.replace("LIMIT", json.dumps(LIMIT)).replace("UI", operator.installation.url)
    (tmp_path / "index.html").write_text(page)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def ask(operator: Operator, query: str) -> Any:
    answer = requests.post(
        f"{operator.installation.url}/graphql", json={"query": query}, timeout=60
    )
    return answer.json()["data"]


def test_a_foreign_page_changes_nothing(operator: Operator, foreign: str) -> None:
    operator.page.goto(foreign)
    operator.page.wait_for_function("document.title === 'done'")
    assert operator.page.evaluate("window.found[0]") == "refused"
    framed = operator.page.frames[2]
    assert "Dagster" not in framed.content()
    limits = ask(operator, LIMITS)["instance"]["concurrencyLimits"]
    assert {limit["concurrencyKey"] for limit in limits} <= {"upbit"}
    known = ask(
        operator,
        "{ assetRecordsOrError { ... on AssetRecordConnection { assets { key { path } } } } }",
    )
    assert ["evil"] not in [one["key"]["path"] for one in known["assetRecordsOrError"]["assets"]]


def test_a_rebound_name_is_shown_no_page(operator: Operator) -> None:
    browser = operator.page.context.browser.browser_type.launch(
        executable_path="/usr/bin/chromium",
        args=["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
    )
    page = browser.new_page()
    rebound = operator.installation.url.replace("127.0.0.1", "evil.example")
    assert page.goto(rebound).status == 400
    known = page.evaluate(
        "fetch('/graphql', {method: 'POST', body: '{\"query\": \"{ version }\"}',"
        " headers: {'Content-Type': 'application/json'}}).then(answer => answer.status)"
    )
    assert known == 400
    browser.close()


def test_the_ui_itself_launches_a_run_and_is_told_of_it_as_it_goes(operator: Operator) -> None:
    received: list[str] = []

    # Playwright takes no method of a list.
    def hear(frame: str | bytes) -> None:
        received.append(str(frame))

    operator.page.on("websocket", lambda socket: socket.on("framereceived", hear))
    operator.open("/assets/signals_overview", "Materialize")
    with operator.page.expect_response(re.compile("op=LaunchPipelineExecution")) as launched:
        operator.page.get_by_role("button", name="Materialize").first.click()
        # Asked only as long as what is upstream has not been materialized.
        confirm = operator.page.get_by_role("button", name="Confirm")
        confirm.or_(operator.page.get_by_text("Launched run")).first.wait_for()
        if confirm.is_visible():
            confirm.click()
    run = launched.value.json()["data"]["launchPipelineExecution"]["run"]["id"]
    operator.page.goto(f"{operator.installation.url}/runs/{run}")
    deadline = time.monotonic() + OPENS_WITHIN
    while not any("RunSuccessEvent" in frame for frame in received):
        assert time.monotonic() < deadline, operator.page.inner_text("body")
        operator.page.wait_for_timeout(200)  # which is when it hears
    assert operator.sees("Success")
