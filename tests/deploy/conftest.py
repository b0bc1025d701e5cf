"""The manifests as a cluster would be given them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent

Manifest = dict[str, Any]
SECRETS = {
    "trading-pipelines": {
        "DATABASE_URL",
        "DAGSTER_POSTGRES_URL",
        "N8N_WEBHOOK_SECRET",
        "DISCORD_WEBHOOK_URL",
        "HEARTBEAT_URL",
    },
    "n8n": {"N8N_ENCRYPTION_KEY", "N8N_WEBHOOK_SECRET", "DISCORD_WEBHOOK_URL"},
    "postgres": {"POSTGRES_PASSWORD"},
}
"""What deploy_to_minikube.sh puts into each; docs/deployment.md tells production the same."""


def tool(name: str, *arguments: str | Path) -> str:
    """Run a tool of the virtual environment; return what it said, which stands in a failure too."""
    done = subprocess.run(
        [BIN / name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(overlay: str) -> str:
    return tool(
        "kubectl",
        "kustomize",
        "--load-restrictor",
        "LoadRestrictionsNone",
        DEPLOY / "kubernetes" / "overlays" / overlay,
    )


@pytest.fixture(scope="session", params=["minikube", "production"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """All objects of an overlay."""
    return list(yaml.safe_load_all(rendered(request.param)))
