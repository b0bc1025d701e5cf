"""compose.yaml: its form, what it opens, what it is given."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, ROOT, tool

FILE = DEPLOY / "compose.yaml"
ONE_SHOTS = {"migrate"}
SECRETS = {"POSTGRES_PASSWORD", "N8N_WEBHOOK_SECRET", "N8N_ENCRYPTION_KEY", "DISCORD_WEBHOOK_URL"}
MAY_BE_EMPTY = {"HEARTBEAT_URL", "NO_PROXY", "REDIS_URL", "REDIS_PASSWORD"}


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


def test_a_secret_comes_from_outside_and_its_absence_stops_the_start() -> None:
    used = re.findall(r"(?<!\$)\$\{(\w+)(:\?|:-)?([^}]*)\}", FILE.read_text())
    wanted = {name for name, how, _ in used if how == ":?"}
    assert wanted == SECRETS
    assert {name for name, how, said in used if how == ":-" and not said} == MAY_BE_EMPTY
    assert not any(said for _, how, said in used if how == ":-"), "a default"
    assert {name for name, *_ in used} == SECRETS | MAY_BE_EMPTY
    told = re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE)
    assert dict(told) == dict.fromkeys(SECRETS | MAY_BE_EMPTY, "")


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
