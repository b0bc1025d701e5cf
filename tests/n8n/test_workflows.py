"""The five workflows in a real n8n: what reaches Discord, and what the caller is told of it."""

import json
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.write_n8n_workflows import write
from tests.alerts.test_discord import BODIES, NASTY, NEEDED, SHOWN, texts_of
from tests.integration.conftest import await_that
from tests.n8n.conftest import SECRET
from trading_pipelines.alerts.discord import discord_message
from trading_pipelines.alerts.n8n import local
from trading_pipelines.alerts.n8n.check import check_workflows
from trading_pipelines.alerts.n8n.local import LocalN8n
from trading_pipelines.alerts.n8n.workflows import (
    RESTART,
    N8nError,
    import_workflows,
    other_workflows,
)
from trading_pipelines.settings.shipped import shipped
from trading_pipelines.simulators.discord import DiscordInbox, FaultKind

WORKFLOWS = shipped("config/n8n_workflows")
FILES = {
    "ai-reject": "ai_reject",
    "ai-decision": "ai_decision",
    "trade": "trade_notification",
    "daily-report": "daily_report",
    "risk": "risk_alert",
}


def post(
    n8n: LocalN8n, channel: str, body: Any, secret: str | None = SECRET
) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON that n8n answers with."""
    headers = {} if secret is None else {"X-Webhook-Secret": secret}
    url = f"{n8n.url}/webhook/{channel}"
    response = requests.post(url, json=body, headers=headers, timeout=20)
    try:
        said = response.json()
    except ValueError:
        said = {}
    return response.status_code, said if isinstance(said, dict) else {}


def workflow(channel: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((WORKFLOWS / f"{FILES[channel]}.json").read_text())
    return found


def test_the_committed_workflows_are_those_that_are_written(tmp_path: Path) -> None:
    write(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in WORKFLOWS.iterdir()}, "make docs"
    assert sorted(written) == sorted(f"{name}.json" for name in FILES.values())
    ids = {workflow(channel)["id"] for channel in FILES}
    assert ids == {f"tradingAlerts00{number}" for number in range(1, 6)}, "n8n knows them by these"


@pytest.mark.parametrize("channel", FILES)
def test_a_workflow_tries_once_and_keeps_nothing_of_what_went_well(channel: str) -> None:
    found = workflow(channel)
    assert found["settings"]["saveDataSuccessExecution"] == "none"
    assert not [node for node in found["nodes"] if "retryOnFail" in node or "maxTries" in node]
    assert SECRET not in json.dumps(found)


@pytest.mark.parametrize("channel", FILES)
def test_each_kind_arrives_with_its_fields(
    n8n: LocalN8n, inbox: DiscordInbox, channel: str
) -> None:
    status, said = post(n8n, channel, BODIES[channel])
    (message,) = inbox.messages
    assert (status, said) == (200, {"delivered": True, "message_id": message.id})
    assert message.payload == {"embeds": [SHOWN[channel]], "allowed_mentions": {"parse": []}}
    assert message.query == {"thread_id": "7", "wait": "true"}


@pytest.mark.parametrize("what", NASTY)
def test_n8n_posts_what_python_posts(n8n: LocalN8n, inbox: DiscordInbox, what: str) -> None:
    channel, body = NASTY[what]
    assert post(n8n, channel, body)[0] == 200
    (message,) = inbox.messages
    assert message.payload == discord_message(channel, body)
    words = " ".join(texts_of(message.payload))
    assert not [word for word in ("undefined", "null", "[object", SECRET) if word in words]


@pytest.mark.parametrize(
    ("fault", "status", "retry_after", "error"),
    [
        ("400", 400, None, "Discord answered 400: Invalid Form Body"),
        ("404", 404, None, "Discord answered 404: Unknown Webhook"),
        ("429", 429, 1.25, "Discord answered 429: You are being rate limited."),
        ("500", 500, None, "Discord answered 500: 500: Internal Server Error"),
        ("hang", None, None, "no answer from Discord (ECONNABORTED)"),
        ("reset", None, None, "no answer from Discord (ECONNRESET)"),
        ("lost answer", None, None, "no answer from Discord (ECONNRESET)"),
    ],
)
def test_what_discord_did_not_take_is_not_delivered_and_n8n_says_why_after_one_try(
    n8n: LocalN8n,
    inbox: DiscordInbox,
    fault: FaultKind,
    status: int | None,
    retry_after: float | None,
    error: str,
) -> None:
    inbox.fail(fault, times=1, retry_after=1.25)
    assert post(n8n, "risk", BODIES["risk"]) == (
        502,
        {"delivered": False, "status": status, "retry_after": retry_after, "error": error},
    )
    assert inbox.requests == 1
    assert len(inbox.messages) == (fault == "lost answer")


def test_an_answer_without_a_message_is_no_delivery(n8n: LocalN8n, inbox: DiscordInbox) -> None:
    inbox.fail("204")
    error = "Discord answered 204: no message with its id"
    refused = {"delivered": False, "status": 204, "retry_after": None, "error": error}
    assert post(n8n, "trade", BODIES["trade"]) == (502, refused)


@pytest.mark.parametrize("channel", FILES)
@pytest.mark.parametrize("secret", [None, "", "wrong", "undefined", f"{SECRET} "[:-2]])
def test_without_the_secret_nothing_reaches_discord(
    n8n: LocalN8n, inbox: DiscordInbox, channel: str, secret: str | None
) -> None:
    assert post(n8n, channel, BODIES[channel], secret)[0] == 403
    assert inbox.requests == 0


@pytest.mark.parametrize("channel", FILES)
def test_a_body_that_lacks_a_field_is_refused_by_its_name(
    n8n: LocalN8n, inbox: DiscordInbox, channel: str
) -> None:
    for name in NEEDED[channel]:
        body = {key: value for key, value in BODIES[channel].items() if key != name}
        error = f"the body lacks {name}"
        assert post(n8n, channel, body) == (400, {"delivered": False, "error": error})
    everything = f"the body lacks {', '.join(NEEDED[channel])}"
    without: list[Any] = [{}, [], [BODIES[channel]]]
    for empty in without:
        assert post(n8n, channel, empty) == (400, {"delivered": False, "error": everything})
    assert inbox.requests == 0


def test_a_body_that_is_no_json_reaches_nobody(n8n: LocalN8n, inbox: DiscordInbox) -> None:
    headers = {"X-Webhook-Secret": SECRET, "Content-Type": "application/json"}
    url = f"{n8n.url}/webhook/risk"
    assert requests.post(url, data='{"type": ', headers=headers, timeout=20).status_code == 422
    assert requests.post(url, data="type=x", headers=headers, timeout=20).status_code == 422
    assert inbox.requests == 0


def test_alerts_at_once_all_arrive_once(n8n: LocalN8n, inbox: DiscordInbox) -> None:
    bodies = [{**BODIES["risk"], "type": f"alert {n}"} for n in range(12)]
    threads = [threading.Thread(target=post, args=(n8n, "risk", body)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    titles = sorted(message.payload["embeds"][0]["title"] for message in inbox.messages)
    assert titles == sorted(f"[CRITICAL] alert {n}" for n in range(12))


@contextmanager
def answering(*answers: tuple[int, str]) -> Iterator[str]:
    """Run something that is not our n8n: its answer without a secret, then the one with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, text = answers["X-Webhook-Secret" in self.headers]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def verdict(url: str, secret: str = SECRET) -> str:
    """Return what the check says of all five alike."""
    checked = check_workflows(url, secret, 5)
    assert [one.channel for one in checked] == [
        "ai-reject", "ai-decision", "trade", "risk", "daily-report"
    ]  # fmt: skip
    (words,) = {one.finding for one in checked}
    assert {one.is_good for one in checked} == {words == "there, guarded and ours"}
    return words


def test_a_check_of_a_sound_n8n_finds_nothing_and_posts_nothing(
    n8n: LocalN8n, inbox: DiscordInbox
) -> None:
    assert verdict(n8n.url) == "there, guarded and ours"
    assert verdict(f"{n8n.url}/") == "there, guarded and ours"
    assert inbox.requests == 0


def test_a_check_with_another_secret_says_that_it_differs(n8n: LocalN8n) -> None:
    assert verdict(n8n.url, "other") == "refuses our secret (403): n8n's N8N_WEBHOOK_SECRET differs"


OURS = json.dumps({"delivered": False, "error": "the body lacks symbol"})


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([(404, "{}"), (404, "{}")], "not there (404)"),
        ([(200, "n8n is starting up. Please wait")] * 2, "n8n is starting up"),
        ([(200, "ok")] * 2, "open: answers 200"),
        ([(400, OURS)] * 2, "open: answers 400"),
        ([(500, "No authentication data defined on node!")] * 2, "n8n has no N8N_WEBHOOK_SECRET"),
        ([(302, "")] * 2, "answers 302 without a secret, not 403: is this n8n?"),
        ([(502, "Bad Gateway")] * 2, "answers 502 without a secret, not 403: is this n8n?"),
        ([(403, ""), (401, "")], "refuses our secret (401)"),
        ([(403, ""), (200, "ok")], "answers 200 to an empty body: this is not our workflow"),
        ([(403, ""), (400, '{"delivered": true}')], "answers 400 to an empty body"),
        ([(401, ""), (400, OURS)], "there, guarded and ours"),
    ],
)
def test_a_check_tells_each_trouble_apart(answers: list[tuple[int, str]], words: str) -> None:
    with answering(*answers) as url:
        assert words in verdict(url)


def test_a_check_of_what_is_not_there_says_so_without_the_url() -> None:
    with answering((200, "")) as url:
        pass
    assert verdict(url) == "n8n can't be reached (ConnectionError)"
    assert verdict(f"{url}/x", "é…") == "n8n can't be reached (ConnectionError)"


def run(n8n: LocalN8n, *arguments: str) -> str:
    """Return what n8n's own command says."""
    command = [str(n8n.command), *arguments]
    return subprocess.check_output(command, env=n8n.environment, text=True)


@contextmanager
def restarted(n8n: LocalN8n, **environment: str) -> Iterator[None]:
    """Run n8n otherwise than it should be: with another environment, or what its database holds."""

    def not_ready() -> str | None:
        try:
            ready = requests.get(f"{n8n.url}/healthz/readiness", timeout=5).ok
            listens = requests.post(f"{n8n.url}/webhook/risk", timeout=5).status_code in {403, 500}
        except requests.RequestException:
            return "not yet"
        return None if ready and listens else "not yet"

    n8n.stop()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setitem(n8n.environment, name, value)
        patch.setattr(n8n, "_not_ready", not_ready)
        n8n.start()
        try:
            yield
        finally:
            n8n.stop()


def test_imported_twice_there_are_the_same_five_and_a_restart_serves_them(
    n8n: LocalN8n, inbox: DiscordInbox
) -> None:
    five = {f"{workflow(channel)['id']}|{FILES[channel]}" for channel in FILES}
    assert set(run(n8n, "list:workflow").split()) == five
    lines = import_workflows([str(n8n.command)], WORKFLOWS, n8n.environment)
    assert [line.split()[0] for line in lines[:5]] == sorted(FILES.values())
    assert lines[5:] == [RESTART]
    assert sorted(run(n8n, "list:workflow").split()) == sorted(five)
    n8n.stop()
    assert verdict(n8n.url) == "n8n can't be reached (ConnectionError)"
    n8n.start()
    assert verdict(n8n.url) == "there, guarded and ours"
    assert post(n8n, "trade", BODIES["trade"])[0] == 200
    assert len(inbox.messages) == 1


def test_a_workflow_that_is_not_published_is_the_one_that_is_not_there(n8n: LocalN8n) -> None:
    key = f"--id={workflow('trade')['id']}"
    run(n8n, "unpublish:workflow", key)
    try:
        with restarted(n8n):
            wrong = [one for one in check_workflows(n8n.url, SECRET, 5) if not one.is_good]
    finally:
        run(n8n, "publish:workflow", key)
    assert [one.channel for one in wrong] == ["trade"]
    assert "import and publish" in wrong[0].finding


def database_of(n8n: LocalN8n) -> Path:
    return n8n.folder / ".n8n" / "database.sqlite"


def forget_paths(n8n: LocalN8n, workflow_id: str) -> None:
    """Let another workflow have the paths of one that is published no longer."""
    with closing(sqlite3.connect(database_of(n8n), timeout=60)) as database, database:
        database.execute('DELETE FROM webhook_entity WHERE "workflowId" = ?', [workflow_id])


def test_a_workflow_of_the_bots_in_the_place_of_ours_is_found(
    n8n: LocalN8n, tmp_path: Path
) -> None:
    ours, bots = workflow("trade")["id"], {"id": "botsTrade0000001", "name": "Trade"}
    parameters = {"httpMethod": "POST", "path": "trade", "responseMode": "onReceived"}
    webhook = workflow("trade")["nodes"][0] | {"parameters": parameters, "webhookId": "bots"}
    del webhook["credentials"]
    file = tmp_path / "trade.json"
    file.write_text(json.dumps(bots | {"nodes": [webhook], "connections": {}}))
    run(n8n, "import:workflow", f"--input={file}")
    run(n8n, "publish:workflow", f"--id={bots['id']}")
    run(n8n, "unpublish:workflow", f"--id={ours}")
    # An n8n that does not stop in time, on a busy machine, leaves the path to ours.
    forget_paths(n8n, ours)
    try:
        found = other_workflows([str(n8n.command)], n8n.environment)
        with restarted(n8n):
            # `restarted` waits for another of the workflows, and this one is started after it.
            await_that(lambda: post(n8n, "trade", {}, None)[0] == 200, "the bot's answers")
            wrong = [one for one in check_workflows(n8n.url, SECRET, 5) if not one.is_good]
    finally:
        run(n8n, "publish:workflow", f"--id={ours}")
        # n8n keeps the path of a workflow that is gone, and ours never gets it again.
        forget_paths(n8n, bots["id"])
        with closing(sqlite3.connect(database_of(n8n))) as database, database:
            database.execute("DELETE FROM workflow_entity WHERE id = ?", [bots["id"]])
    assert [names for names in found.values() if names] == [["Trade (botsTrade0000001)"]]
    assert [(one.channel, one.finding) for one in wrong] == [
        ("trade", "open: answers 200 without a secret; another workflow answers in our place")
    ]


def test_an_n8n_without_the_secret_lets_nobody_in_and_the_check_says_why(
    n8n: LocalN8n, inbox: DiscordInbox
) -> None:
    with restarted(n8n, N8N_WEBHOOK_SECRET=""):
        assert "n8n has no N8N_WEBHOOK_SECRET" in verdict(n8n.url, "")
        for secret in (None, "", "undefined"):
            assert post(n8n, "risk", BODIES["risk"], secret)[0] == 500
    assert inbox.requests == 0


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("discord/t0ken", "n8n's DISCORD_WEBHOOK_URL is no URL"),
        ("http://[t0ken", "no answer from Discord (ERR_INVALID_URL)"),
    ],
)
def test_n8n_without_a_usable_url_says_so_and_not_the_url(
    n8n: LocalN8n, url: str, error: str
) -> None:
    with restarted(n8n, DISCORD_WEBHOOK_URL=url):
        status, said = post(n8n, "risk", BODIES["risk"])
    assert (status, said["status"], said["error"]) == (502, None, error)


def test_a_killed_n8n_is_away_and_started_again_it_serves(
    n8n: LocalN8n, inbox: DiscordInbox
) -> None:
    n8n.kill()
    n8n.kill()
    assert verdict(n8n.url) == "n8n can't be reached (ConnectionError)"
    n8n.start()
    n8n.start()
    assert post(n8n, "ai-reject", BODIES["ai-reject"])[0] == 200
    assert len(inbox.messages) == 1


def test_an_n8n_that_does_not_get_ready_is_ended_and_its_log_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "n8n"
    script.write_text('#!/bin/sh\necho 2.41.1\ntest "$1" != start || exit 3\n')
    script.chmod(0o755)
    ended = LocalN8n(tmp_path / "a", secret="x", discord_url="http://x", command=script)
    with pytest.raises(N8nError, match=r"it ended by itself; see .*a/n8n\.log"), ended:
        pass
    script.write_text('#!/bin/sh\necho 2.41.1\ntest "$1" != start || exec sleep 60\n')
    monkeypatch.setattr(local, "START_SECONDS", 0.5)
    deaf = LocalN8n(tmp_path / "b", secret="x", discord_url="http://x", command=script)
    with pytest.raises(N8nError, match=r"it is not ready; see .*b/n8n\.log"), deaf:
        pass


def test_an_import_into_an_n8n_that_has_never_run_may_be_repeated(
    n8n: LocalN8n, tmp_path: Path
) -> None:
    fresh = LocalN8n(tmp_path, secret=SECRET, discord_url="http://127.0.0.1:1/")
    for _ in range(2):
        lines = import_workflows([str(n8n.command)], WORKFLOWS, fresh.environment)
        assert lines[-1] == RESTART


def test_what_n8n_says_of_a_failed_import_holds_no_secret() -> None:
    command = ["sh", "-c", 'echo "first"; echo "no: $DISCORD_WEBHOOK_URL $DB_PASSWORD" >&2; exit 1']
    environment = {"DISCORD_WEBHOOK_URL": "https://discord/t0ken", "DB_PASSWORD": "pa55"}
    with pytest.raises(N8nError) as raised:
        import_workflows(command, WORKFLOWS, environment)
    assert "no: <DISCORD_WEBHOOK_URL> <DB_PASSWORD>; is it n8n" in str(raised.value)


def test_an_import_without_an_n8n_says_how_to_name_one() -> None:
    with pytest.raises(N8nError, match=r"`no-such-n8n` can't be run .* with --command"):
        import_workflows(["no-such-n8n"], WORKFLOWS, {})


def test_an_import_of_a_folder_without_workflows_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "workflows"
    folder.mkdir()
    with pytest.raises(N8nError, match=r"needs n8n's workflows \(\*\.json\)"):
        import_workflows(["true"], folder, {})
    (tmp_path / "n8n_credentials.json").write_text("[]")
    (folder / "a.json").write_text("[]")
    with pytest.raises(N8nError, match="is no workflow with an id"):
        import_workflows(["true"], folder, {})


def test_an_n8n_that_is_not_installed_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N8N_COMMAND", str(tmp_path / "n8n"))
    with (
        pytest.raises(N8nError, match="n8n is not installed: run"),
        LocalN8n(tmp_path, secret="x", discord_url="http://x"),
    ):
        pass
