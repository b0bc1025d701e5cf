"""Importing into an n8n, and who answers in it, with a stand-in for its command line.

`tests/n8n` has the real n8n, of one version; this is of more.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.alerts.conftest import SECRET, Receiver, Reply, Request
from trading_pipelines.alerts.kinds import CHANNELS
from trading_pipelines.alerts.n8n.workflows import N8nError, import_workflows, other_workflows
from trading_pipelines.cli.main import app
from trading_pipelines.errors import OperatorError
from trading_pipelines.settings.shipped import CONFIG, WORKFLOWS, shipped

OURS = {json.loads(file.read_text())["id"]: file for file in shipped(WORKFLOWS).iterdir()}

# As n8n's: a workflow without an id gets a new one at each import, and importing deactivates.
N8N = """#!{python} -IS
import json, pathlib, secrets, sys
home, version = pathlib.Path({home!r}), {version!r}
with (home / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
flags = dict(one.removeprefix("--").partition("=")[::2] for one in sys.argv[2:])
store = home / "store.json"
workflows = json.loads(store.read_text()) if store.exists() else {{}}
states = {{"publish:workflow": True, "unpublish:workflow": False}}
if version.startswith("1."):
    states = {{"update:workflow": flags.get("active") == "true"}}
match sys.argv[1]:
    case "--version":
        print(version)
    case "import:credentials":
        pathlib.Path(flags["input"]).read_text()
    case "import:workflow":
        given = pathlib.Path(flags["input"])
        for file in given.glob("*.json") if "separate" in flags else [given]:
            one = {{"id": secrets.token_hex(8)}} | json.loads(file.read_text())
            workflows[one["id"]] = one | {{"active": False}}
    case "export:workflow":
        print("a line of the log [x]")
        print(json.dumps(list(workflows.values())))
    case command if command in states:
        workflows[flags["id"]]["active"] = states[command]
    case command:
        sys.exit(f'Error: Command "{{command}}" not found')
store.write_text(json.dumps(workflows))
"""


class StandIn:
    """What is run as n8n, and what it has been asked and holds."""

    def __init__(self, home: Path, version: str = "1.123.4") -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        self.command = home / "n8n"
        script = N8N.format(python=sys.executable, home=str(home), version=version)
        self.command.write_text(script)
        self.command.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return (self.home / "calls").read_text().splitlines()

    @property
    def workflows(self) -> dict[str, Any]:
        """By id."""
        found: dict[str, Any] = json.loads((self.home / "store.json").read_text())
        return found

    @property
    def active(self) -> set[str]:
        return {key for key, workflow in self.workflows.items() if workflow["active"]}

    def hold(self, *workflows: dict[str, Any]) -> None:
        """Have these in its database."""
        store = {workflow["id"]: workflow for workflow in workflows}
        (self.home / "store.json").write_text(json.dumps(store))


BOTS_TRADE = "Bot's trade (bot-trade)"


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """An n8n as CoinPilot has it."""
    return StandIn(tmp_path / "stand-in")


def bots(channel: str = "trade", **changes: Any) -> dict[str, Any]:
    """A workflow of CoinPilot's, as its n8n holds it; the changes are of its webhook."""
    parameters = {"httpMethod": "POST", "path": channel, "responseMode": "onReceived"}
    webhook = {
        "name": "Webhook",
        "type": "n8n-nodes-base.webhook",
        "webhookId": "5d0c",
        "parameters": parameters | changes.pop("parameters", {}),
    }
    nodes = [webhook | changes, {"name": "Discord", "type": "n8n-nodes-base.httpRequest"}]
    name = f"Bot's {channel}"
    return {"id": f"bot-{channel}", "name": name, "active": True, "nodes": nodes}


def coinpilots_settings(folder: Path) -> Path:
    """Return the strategy file of a folder whose workflows have our names and no id, or another."""
    (folder / "n8n_workflows").mkdir(parents=True)
    for file in shipped(WORKFLOWS).iterdir():
        (folder / "n8n_workflows" / file.name).write_text(
            json.dumps({"name": "Bot's", "nodes": [], "connections": {}})
        )
    weekly = {"id": "botsWeekly", "name": "Weekly", "nodes": [], "connections": {}}
    (folder / "n8n_workflows" / "weekly-exit-report-workflow.json").write_text(json.dumps(weekly))
    strategy = folder / "strategy_v3.yaml"
    shutil.copy(shipped(CONFIG) / "strategy.yaml", strategy)
    return strategy


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["n8n", *arguments], env=environment)


@pytest.mark.parametrize(
    ("version", "verb"),
    [
        ("1.123.4", "update:workflow --active=true --id={}"),
        ("2.0.0", "publish:workflow --id={}"),
        ("2.41.1", "publish:workflow --id={}"),
    ],
)
def test_each_version_of_n8n_is_asked_for_what_it_knows(
    tmp_path: Path, version: str, verb: str
) -> None:
    n8n = StandIn(tmp_path, version)
    lines = import_workflows([str(n8n.command)], shipped(WORKFLOWS), {})
    ids = [line.split("(")[1].split(")")[0] for line in lines[:-1]]
    assert n8n.active == set(ids) == set(OURS)
    assert n8n.calls[-len(OURS) :] == [verb.format(key) for key in ids]
    word = "activated" if version.startswith("1.") else "published"
    assert all(line.endswith(f"imported and {word}") for line in lines[:-1])


@pytest.mark.parametrize("version", ["1.122.9", "0.236.0", "", "command not found"])
def test_an_n8n_that_is_too_old_or_none_is_refused_before_anything_changes(
    tmp_path: Path, version: str
) -> None:
    n8n = StandIn(tmp_path, version)
    with pytest.raises(N8nError, match=r"^n8n 1\.123 or later is needed, .*: upgrade n8n$"):
        import_workflows([str(n8n.command)], shipped(WORKFLOWS), {})
    assert n8n.calls == ["--version"]


@pytest.mark.parametrize("blocked", ["true", "1", ""])
def test_an_n8n_whose_workflows_may_not_read_the_environment_is_refused(
    stand_in: StandIn, blocked: str
) -> None:
    environment = {"N8N_BLOCK_ENV_ACCESS_IN_NODE": blocked}
    with pytest.raises(N8nError, match=r"set it to false here and where n8n runs$"):
        import_workflows([str(stand_in.command)], shipped(WORKFLOWS), environment)
    assert stand_in.calls == ["--version"]
    environment["N8N_BLOCK_ENV_ACCESS_IN_NODE"] = "false"
    import_workflows([str(stand_in.command)], shipped(WORKFLOWS), environment)
    assert stand_in.active == set(OURS)


def test_beside_coinpilots_settings_ours_are_imported_and_not_the_bots(
    stand_in: StandIn, tmp_path: Path
) -> None:
    strategy = coinpilots_settings(tmp_path / "config")
    done = run("import", "--command", str(stand_in.command), TRADING_PIPELINES_CONFIG=str(strategy))
    assert (done.exit_code, done.stdout.count("imported and activated")) == (0, len(OURS))
    assert set(stand_in.workflows) == stand_in.active == set(OURS)


def test_of_a_folder_that_holds_both_only_ours_are_imported(
    stand_in: StandIn, tmp_path: Path
) -> None:
    strategy = coinpilots_settings(tmp_path / "config")
    shutil.copy(shipped(CONFIG) / "n8n_credentials.json", strategy.parent)
    own = json.loads(OURS["tradingAlerts002"].read_text()) | {"name": "edited"}
    (strategy.parent / "n8n_workflows" / "own.json").write_text(json.dumps(own))
    done = run("import", "--command", str(stand_in.command), TRADING_PIPELINES_CONFIG=str(strategy))
    imported, *missing = done.stdout.splitlines()
    assert (done.exit_code, imported) == (0, "own (tradingAlerts002) imported and activated")
    assert [line.partition(" is not in ")[0] for line in missing[:-1]] == sorted(
        f"{file.stem} ({key})" for key, file in OURS.items() if key != "tradingAlerts002"
    )
    assert {key: one["name"] for key, one in stand_in.workflows.items()} == {
        "tradingAlerts002": "edited"
    }


def test_a_folder_that_is_named_and_holds_none_of_ours_is_refused(
    stand_in: StandIn, tmp_path: Path
) -> None:
    folder = coinpilots_settings(tmp_path / "config").with_name("n8n_workflows")
    shutil.copy(shipped(CONFIG) / "n8n_credentials.json", folder.parent)
    arguments = ["import", "--command", str(stand_in.command), "--folder", str(folder)]
    refused = run(*arguments).exception
    assert isinstance(refused, OperatorError)
    assert str(refused) == f"there is no workflow with an id of ours in {folder}"
    (folder / "risk_alert.json").write_text('{"id": "tradingAlerts004"')
    assert "risk_alert.json is no JSON: " in str(run(*arguments).exception)


def test_an_import_names_whoever_is_active_on_our_webhooks(stand_in: StandIn) -> None:
    stand_in.hold(bots("trade"), bots("risk"))
    done = run("import", "--command", str(stand_in.command))
    warned = [line for line in done.stdout.splitlines() if "deactivate it" in line]
    assert sorted(line.partition(",")[0] for line in warned) == [
        "Bot's risk (bot-risk) is active on /webhook/risk too",
        "Bot's trade (bot-trade) is active on /webhook/trade too",
    ]
    stand_in.hold()
    assert "deactivate it" not in run("import", "--command", str(stand_in.command)).stdout


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, [BOTS_TRADE]),
        ({"parameters": {"path": "/trade/"}}, [BOTS_TRADE]),
        ({"parameters": {"multipleMethods": True, "httpMethod": ["PUT", "POST"]}}, [BOTS_TRADE]),
        ({"parameters": {"multipleMethods": True, "httpMethod": ["PUT"]}}, []),
        ({"parameters": {"httpMethod": "GET"}}, []),
        ({"parameters": {"path": "trades"}}, []),
        ({"parameters": {"path": None}}, []),
        ({"type": "n8n-nodes-base.formTrigger"}, []),
        ({"disabled": True}, []),
        ({"webhookId": None}, []),
    ],
)
def test_a_workflow_answers_for_ours_if_it_takes_the_posts_to_its_path(
    stand_in: StandIn, changes: dict[str, Any], names: list[str]
) -> None:
    stand_in.hold(
        bots(**changes), bots("risk") | {"active": False}, bots("risk") | {"id": "tradingAlerts004"}
    )
    found = other_workflows([str(stand_in.command)], {})
    assert found == {channel: [] for channel in CHANNELS} | {"trade": names}


def test_what_is_no_export_is_an_error() -> None:
    for said in ("nothing", "[{ no JSON"):
        with pytest.raises(N8nError, match="export:workflow --all` gives no workflows"):
            other_workflows(["echo", f"{said}\n"], {})


def answer(request: Request) -> Reply:
    """Answer as an n8n where the bot's workflow has taken the webhook `trade`."""
    if request.path == "/webhook/trade":
        return Reply(200, {"message": "Workflow was started"})
    if request.headers.get("X-Webhook-Secret") != SECRET:
        return Reply(403, "Authorization data is wrong!")
    return Reply(400, {"delivered": False, "error": "the body lacks symbol"})


def test_a_check_names_the_workflow_that_answers_in_our_place(
    n8n: Receiver, stand_in: StandIn
) -> None:
    n8n.answer = answer
    stand_in.hold(bots("trade"), bots("risk"))
    environment = {"N8N_URL": n8n.url, "N8N_WEBHOOK_SECRET": SECRET}
    done = run("check", "--command", str(stand_in.command), **environment)
    assert done.exit_code == 1
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    place = "open: answers 200 without a secret; another workflow answers in our place"
    assert found == dict.fromkeys(CHANNELS, "there, guarded and ours") | {
        "trade": f"{place}: deactivate {BOTS_TRADE} and restart n8n"
    }
    done = run("check", "--command", "no-such-n8n", **environment)
    assert place in done.stdout.splitlines()[-1 - len(CHANNELS) + 1 :][CHANNELS.index("trade")]
    assert "`no-such-n8n` can't be run" in done.stdout


def test_a_check_that_finds_ours_asks_n8n_nothing_else(n8n: Receiver, stand_in: StandIn) -> None:
    n8n.answer = lambda request: answer(
        Request("POST", "/webhook/risk", "", request.headers, request.body)
    )
    environment = {"N8N_URL": n8n.url, "N8N_WEBHOOK_SECRET": SECRET}
    assert run("check", "--command", str(stand_in.command), **environment).exit_code == 0
    assert not (stand_in.home / "calls").exists()
