"""The import that runs in n8n's image before n8n does, with a stand-in for n8n."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, ROOT

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node, as n8n does")

# As n8n 2.41.1: it ends with 0 where the folder of workflows is a symbolic link, and with 1 where
# it imports over a published workflow before its first start.
N8N = """#!{python}
import json, os, sys
from pathlib import Path

command, *options = sys.argv[1:]
option = dict(text.lstrip("-").partition("=")[::2] for text in options)
state = Path("{state}")
held = json.loads(state.read_text()) if state.exists() else {{}}
with Path("{calls}").open("a") as calls:
    calls.write(command + "\\n")
fails, ignores = os.environ.get("FAIL"), os.environ.get("IGNORE")
if command == ignores:
    sys.exit(0)
if command == fails:
    sys.exit(1)
if command == "import:credentials":
    held["credentials"] = json.loads(Path(option["input"]).read_text())
elif command == "import:workflow":
    if os.path.islink(option["input"]):
        print("The argument to --input must be a directory")
        sys.exit(0)
    if any(workflow["activeVersionId"] for workflow in held.get("workflows", [])):
        sys.exit(1)
    held["workflows"] = [
        json.loads(file.read_text()) | {{"versionId": "new", "activeVersionId": None}}
        for file in Path(option["input"]).glob("*.json")
    ]
elif command in ("publish:workflow", "unpublish:workflow"):
    (workflow,) = [w for w in held.get("workflows", []) if w["id"] == option["id"]]
    workflow["activeVersionId"] = "new" if command == "publish:workflow" else None
elif command == "export:workflow":
    Path(option["output"]).write_text(json.dumps(held["workflows"]))
elif command == "export:credentials":
    Path(option["output"]).write_text(json.dumps(held["credentials"]))
state.write_text(json.dumps(held))
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The folder as a ConfigMap's volume shows it: everything in it is a symbolic link."""
    shutil.copytree(ROOT / "config", tmp_path / "data")
    folder = tmp_path / "config"
    folder.mkdir()
    for name in ("n8n_workflows", "n8n_credentials.json"):
        (folder / name).symlink_to(tmp_path / "data" / name)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    n8n = tmp_path / "bin" / "n8n"
    n8n.parent.mkdir()
    n8n.write_text(
        N8N.format(python=sys.executable, state=tmp_path / "state", calls=tmp_path / "calls")
    )
    n8n.chmod(0o755)
    return {"PATH": f"{n8n.parent}:{os.environ['PATH']}"}


def imported(config: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(DEPLOY / "n8n_import.sh"), str(config)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def test_twice_from_a_configmap_the_workflows_are_there_and_published(
    tmp_path: Path, config: Path, stand_in: dict[str, str]
) -> None:
    for _ in range(2):
        assert imported(config, stand_in).returncode == 0
    workflows = json.loads((tmp_path / "state").read_text())["workflows"]
    assert len(workflows) == len(list((config / "n8n_workflows").glob("*.json")))
    assert all(workflow["activeVersionId"] for workflow in workflows)
    # Refused over what is published: those are taken back, and imported again.
    assert (tmp_path / "calls").read_text().split().count("import:workflow") == 3


@pytest.mark.parametrize("step", ["import:credentials", "import:workflow", "publish:workflow"])
def test_a_step_that_fails_keeps_n8n_from_starting(
    config: Path, stand_in: dict[str, str], step: str
) -> None:
    assert imported(config, {**stand_in, "FAIL": step}).returncode != 0


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ("import:credentials", "does not hold the credential Webhook secret as it was given"),
        ("import:workflow", "does not hold the workflow ai_reject.json as it was given"),
        ("publish:workflow", "has not published the workflow ai_decision.json"),
    ],
)
def test_a_step_that_says_nothing_and_does_nothing_keeps_n8n_from_starting(
    config: Path, stand_in: dict[str, str], step: str, problem: str
) -> None:
    assert imported(config, stand_in).returncode == 0
    edited = config / "n8n_workflows" / "ai_reject.json"
    edited.write_text(edited.read_text().replace('"position": [', '"position": [1, '))
    credentials = config / "n8n_credentials.json"
    credentials.write_text(credentials.read_text().replace("X-Webhook-Secret", "X-Other"))
    refused = imported(config, {**stand_in, "IGNORE": step})
    assert refused.returncode != 0
    assert problem in refused.stderr
