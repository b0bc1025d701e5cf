"""The import that runs in n8n's image before n8n does, with a stand-in for n8n."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, ROOT

CONFIG = ROOT / "config"


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment whose n8n notes what it is asked, and whose node knows ids by sed."""
    if shutil.which("node") is None:
        node = tmp_path / "node"
        node.write_text('#!/bin/sh\nsed -n \'s/^  "id": "\\(.*\\)",/\\1/p\' "$3"\n')
        node.chmod(0o755)
    n8n = tmp_path / "n8n"
    n8n.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n[ "$1" != "$FAIL" ]\n')
    n8n.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAIL": ""}


def imported(environment: dict[str, str]) -> int:
    command = f"/bin/sh {DEPLOY / 'n8n_import.sh'} {CONFIG}"
    return subprocess.run(command.split(), env=environment, check=False).returncode


CREDENTIAL = f"import:credentials --input={CONFIG}/n8n_credentials.json"
IMPORT = f"import:workflow --separate --input={CONFIG}/n8n_workflows"


def each(command: str) -> list[str]:
    return [f"{command}:workflow --id=tradingAlerts00{number}" for number in (5, 1, 3, 4, 2)]


def test_the_credential_comes_first_then_the_workflows_and_each_is_published(
    tmp_path: Path, stand_in: dict[str, str]
) -> None:
    assert imported(stand_in) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [CREDENTIAL, IMPORT, *each("publish")]


def test_where_the_import_is_refused_ours_are_taken_back_first(
    tmp_path: Path, stand_in: dict[str, str]
) -> None:
    assert imported({**stand_in, "FAIL": "import:workflow"}) != 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [CREDENTIAL, IMPORT, *each("unpublish"), IMPORT]


@pytest.mark.parametrize("step", ["import:credentials", "import:workflow", "publish:workflow"])
def test_a_step_that_fails_keeps_n8n_from_starting(stand_in: dict[str, str], step: str) -> None:
    assert imported({**stand_in, "FAIL": step}) != 0
