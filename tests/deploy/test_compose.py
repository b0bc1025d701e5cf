"""compose.yaml: its form, what it opens, what it is given."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, ROOT, tool

FILE = DEPLOY / "compose.yaml"
ONE_SHOTS = {"migrate"}
OF_OURS = {"DATABASE_URL"}
OF_ALERTING = OF_OURS | {"N8N_WEBHOOK_SECRET", "DISCORD_WEBHOOK_URL", "HEARTBEAT_URL", "REDIS_URL"}
SECRETS = {
    "postgres": {"POSTGRES_PASSWORD"},
    "migrate": OF_OURS,
    "code-server": OF_ALERTING,
    "webserver": OF_OURS,
    "daemon": OF_ALERTING,
    "live": OF_OURS,
    "n8n": {"N8N_ENCRYPTION_KEY", "N8N_WEBHOOK_SECRET", "DISCORD_WEBHOOK_URL"},
    "redis": {"REDIS_PASSWORD"},
}
PLANTED = {
    "DISCORD_WEBHOOK_URL": "https://discord.example/api/webhooks/1/planted",
    "N8N_ENCRYPTION_KEY": "planted-key",
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    else:
        yield str(value)


def test_it_has_the_form_that_compose_demands() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE)


def test_a_service_has_the_secrets_it_needs_and_each_is_a_file(services: dict[str, Any]) -> None:
    assert {name: {*one.get("secrets", ())} for name, one in services.items()} == SECRETS
    files = {name: one["file"] for name, one in yaml.safe_load(FILE.read_text())["secrets"].items()}
    assert files == {name: f"./secrets/{name}" for name in set().union(*SECRETS.values())}
    # Nothing else comes from outside, so that no secret can be in an environment.
    assert re.findall(r"(?<!\$)\$\{(\w+)", FILE.read_text()) == ["NO_PROXY"]
    for name, one in services.items():
        named = {
            value for key, value in one.get("environment", {}).items() if key.endswith("_FILE")
        }
        assert named <= {f"/run/secrets/{secret}" for secret in SECRETS[name]}


def test_the_example_names_what_may_be_given_and_holds_nothing() -> None:
    told = re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE)
    given = set().union(*SECRETS.values()) - OF_OURS | {"NO_PROXY"}
    assert dict(told) == dict.fromkeys(given, "")


def make_secrets(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a clone of its own, which has the folder's .env."""
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        [folder / "make_secrets.sh"], env=path | given, capture_output=True, text=True, check=False
    )


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    shutil.copy(DEPLOY / "make_secrets.sh", tmp_path)
    return tmp_path


def written(deploy: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (deploy / "secrets").iterdir()}


def test_secrets_are_files_that_the_containers_users_read_and_nobody_else(deploy: Path) -> None:
    (deploy / ".env").write_text("DISCORD_WEBHOOK_URL=\nREDIS_PASSWORD=of-redis\n")
    done = make_secrets(deploy, **PLANTED)
    assert done.returncode == 0, done.stderr
    found = written(deploy)
    assert found.keys() == set().union(*SECRETS.values())
    assert PLANTED.items() <= found.items()
    assert found["REDIS_PASSWORD"] == "of-redis"
    assert found["HEARTBEAT_URL"] == ""
    assert len({found["POSTGRES_PASSWORD"], found["N8N_WEBHOOK_SECRET"]}) == 2
    assert min(map(len, (found["POSTGRES_PASSWORD"], found["N8N_WEBHOOK_SECRET"]))) == 48
    assert f":{found['POSTGRES_PASSWORD']}@postgres:5432/" in found["DATABASE_URL"]
    assert oct((deploy / "secrets").stat().st_mode)[-3:] == "700"
    assert {oct(path.stat().st_mode)[-3:] for path in (deploy / "secrets").iterdir()} == {"444"}
    assert not any(value in done.stdout for value in found.values() if value)


def test_passwords_stay_and_what_is_given_wins(deploy: Path) -> None:
    make_secrets(deploy, **PLANTED, HEARTBEAT_URL="https://hc.example/1")
    before = written(deploy)
    (deploy / ".env").write_text("DISCORD_WEBHOOK_URL=https://discord.example/2\n")
    assert make_secrets(deploy).returncode == 0
    changed = {"DISCORD_WEBHOOK_URL": "https://discord.example/2", "HEARTBEAT_URL": ""}
    assert written(deploy) == before | changed


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "DISCORD_WEBHOOK_URL is not set"),
        (PLANTED | {"POSTGRES_PASSWORD": "s3cret/@"}, "POSTGRES_PASSWORD: letters, digits"),
    ],
)
def test_a_wrong_secret_is_named_not_shown_and_nothing_is_written(
    deploy: Path, given: dict[str, str], problem: str
) -> None:
    done = make_secrets(deploy, **given)
    assert done.returncode == 1
    assert done.stderr.startswith(problem)
    assert "s3cret" not in done.stderr + done.stdout
    assert written(deploy) == {}


def test_no_secret_stands_in_a_command(services: dict[str, Any]) -> None:
    for one in services.values():
        commands = [one.get(key) for key in ("command", "entrypoint", "healthcheck")]
        assert not any(re.search(r"(?<!\$)\$\{", text) for text in texts(commands))


def test_ports_are_open_to_this_machine_alone(services: dict[str, Any]) -> None:
    ports = {port for one in services.values() for port in one.get("ports", [])}
    assert {port.rpartition(":")[2] for port in ports} == {"3000", "5432", "6379"}
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any("network_mode" in one for one in services.values())


def test_every_service_is_locked_in(services: dict[str, Any]) -> None:
    for name, one in services.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert one["init"] is True
        assert one["mem_limit"]
        assert one["logging"]["options"].keys() == {"max-size", "max-file"}
        assert not {"privileged", "cap_add", "pid", "devices"} & one.keys()
        assert not any("docker.sock" in text for text in texts(one))


def test_what_runs_on_has_a_health_check_and_is_started_again(services: dict[str, Any]) -> None:
    for name, one in services.items():
        assert ("healthcheck" in one) == (name not in ONE_SHOTS), name
        assert one["restart"] == ("no" if name in ONE_SHOTS else "always")


def test_the_start_has_its_order(services: dict[str, Any]) -> None:
    ordered = {
        name: {other: how["condition"] for other, how in one["depends_on"].items()}
        for name, one in services.items()
        if "depends_on" in one
    }
    assert ordered == {
        "migrate": {"postgres": "service_healthy"},
        "code-server": {"migrate": "service_completed_successfully"},
        "webserver": {"code-server": "service_healthy"},
        "daemon": {"code-server": "service_healthy"},
        "live": {"migrate": "service_completed_successfully"},
    }


def test_what_is_kept_is_in_a_volume(services: dict[str, Any]) -> None:
    declared = yaml.safe_load(FILE.read_text())["volumes"]
    mounted = {
        name: {text.split(":")[0] for text in one.get("volumes", [])} & declared.keys()
        for name, one in services.items()
    }
    kept = {name: found for name, found in mounted.items() if found}
    assert kept == {"postgres": {"postgres"}, "n8n": {"n8n"}}
    folders = {
        text.split(":")[0]
        for one in services.values()
        for text in one.get("volumes", [])
        if text.startswith(".")
    }
    assert all((DEPLOY / folder).exists() for folder in folders), "docker would make a folder of it"


def test_redis_is_no_part_of_it_unless_it_is_asked_for(services: dict[str, Any]) -> None:
    assert {name for name, one in services.items() if "profiles" in one} == {"redis"}


def test_images_are_the_same_as_in_kubernetes(services: dict[str, Any]) -> None:
    manifests = "".join(path.read_text() for path in (DEPLOY / "kubernetes").rglob("*.yaml"))
    images = {one["image"] for one in services.values()} - {"trading-pipelines:local"}
    assert all(re.search(r":\d+\.\d+", image) for image in images)
    theirs = set(re.findall(r"image: (docker\.io/\S+)", manifests))
    assert theirs == {image for image in images if "/redis:" not in image}
    assert (ROOT / "deploy" / "install_n8n.sh").read_text().count("n8n=2.41.1 ") == 1
    assert "docker.io/n8nio/n8n:2.41.1" in images
