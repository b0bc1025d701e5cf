"""The manifests against each other: what one names, another has, and nobody may do more."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.conftest import DEPLOY, ROOT, SECRETS, Manifest, tool

WORKLOADS = {"Deployment", "StatefulSet", "Job"}
COMPONENT = "app.kubernetes.io/component"
MIGRATION = "migrate-unreleased"
DAGSTER = ("code-server", "webserver", "daemon", "live", "run", "migrate")
ARROWS = {
    ("webserver", "code-server", 4000),
    ("daemon", "code-server", 4000),
    ("daemon", "webserver", 3000),
    ("code-server", "n8n", 5678),
}
INTERNET = {(source, 443) for source in ("code-server", "live", "run", "n8n")}
API = {(source, port) for source in ("webserver", "daemon") for port in (443, 6443, 8443)}


def of(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] in kinds]


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in of(manifests, kind)}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The template of each workload's pod, by its component."""
    templates = [one["spec"]["template"] for one in of(manifests, *WORKLOADS)]
    return {one["metadata"]["labels"][COMPONENT]: one for one in templates}


def containers(spec: Mapping[str, Any]) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def assert_restricted(spec: Mapping[str, Any]) -> None:
    """Hold the pod to the security standard "restricted", and to a read-only root file system."""
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in containers(spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]
        assert not any("hostPort" in port for port in container.get("ports", []))
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "name"}
    assert all(volume.keys() <= allowed for volume in spec.get("volumes", []))


def assert_what_it_names_is_there(spec: Mapping[str, Any], manifests: list[Manifest]) -> None:
    maps = named(manifests, "ConfigMap")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    used = {mount["name"] for one in containers(spec) for mount in one.get("volumeMounts", [])}
    claimed = {
        claim["metadata"]["name"]
        for one in of(manifests, "StatefulSet")
        if one["spec"]["template"]["spec"] is spec
        for claim in one["spec"]["volumeClaimTemplates"]
    }
    assert used == volumes.keys() | claimed
    for volume in volumes.values():
        if found := volume.get("configMap"):
            keys = {item["key"] for item in found.get("items", [])}
            assert keys <= maps[found["name"]]["data"].keys()
        if found := volume.get("persistentVolumeClaim"):
            assert found["claimName"] in named(manifests, "PersistentVolumeClaim")
    for container in containers(spec):
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in maps
            else:
                assert source["secretRef"]["name"] in SECRETS
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                key = variable["valueFrom"]["secretKeyRef"]
                assert key["key"] in SECRETS[key["name"]]


def test_every_object_has_the_form_that_kubernetes_demands(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(manifests))
    tool("kubernetes-validate", "--strict", tmp_path / "all.yaml")


def test_all_is_in_one_namespace_that_admits_restricted_pods_alone(
    manifests: list[Manifest],
) -> None:
    (namespace,) = of(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = {one["metadata"]["namespace"] for one in manifests if one is not namespace}
    assert inside == {namespace["metadata"]["name"]}


def test_every_pod_is_restricted_and_asks_for_its_memory(manifests: list[Manifest]) -> None:
    found = pods(manifests)
    assert found.keys() >= {"code-server", "webserver", "daemon", "migrate", "n8n"}
    for template in found.values():
        assert_restricted(template["spec"])
        assert template["spec"]["enableServiceLinks"] is False
        for container in containers(template["spec"]):
            assert {"cpu", "memory"} == container["resources"]["requests"].keys()
            assert container["resources"]["limits"].keys() == {"memory"}
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


def test_what_a_pod_names_is_there(manifests: list[Manifest]) -> None:
    for template in pods(manifests).values():
        assert_what_it_names_is_there(template["spec"], manifests)


def test_a_workload_selects_its_own_pods(manifests: list[Manifest]) -> None:
    for one in of(manifests, "Deployment", "StatefulSet"):
        wanted = one["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= one["spec"]["template"]["metadata"]["labels"].items()
        assert wanted[COMPONENT] == one["metadata"]["name"]


def test_a_service_leads_to_a_port_of_one_workload(manifests: list[Manifest]) -> None:
    services = of(manifests, "Service")
    assert services
    for service in services:
        selector = service["spec"]["selector"].items()
        (spec,) = (
            template["spec"]
            for template in pods(manifests).values()
            if selector <= template["metadata"]["labels"].items()
        )
        ports = {
            port["name"]: port["containerPort"]
            for one in spec["containers"]
            for port in one["ports"]
        }
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_probes_ask_a_port_of_their_container(manifests: list[Manifest]) -> None:
    for component, template in pods(manifests).items():
        for container in template["spec"]["containers"]:
            probes = [value for key, value in container.items() if key.endswith("Probe")]
            assert len(probes) == (
                0 if component == "migrate" else 2 if component in {"daemon", "live"} else 3
            )
            ports = container.get("ports", [])
            for probe in probes:
                if "httpGet" in probe:
                    assert probe["httpGet"]["port"] in {port["name"] for port in ports}
                elif "grpc" in probe:
                    assert probe["grpc"]["port"] in {port["containerPort"] for port in ports}
                    assert probe["grpc"]["service"] == "DagsterApi"
                else:
                    assert probe["exec"]["command"]


def test_a_probe_waits_as_long_as_a_busy_node_needs(manifests: list[Manifest]) -> None:
    """After three of a second, the default, Postgres was out of its Service."""
    for component, template in pods(manifests).items():
        for container in template["spec"]["containers"]:
            for kind, probe in container.items():
                if kind.endswith("Probe"):
                    assert probe["timeoutSeconds"] >= 5, (component, kind)


def test_a_lost_node_is_waited_for_only_by_what_holds_a_volume(manifests: list[Manifest]) -> None:
    for component, template in pods(manifests).items():
        bounds = {
            toleration["key"]: toleration["tolerationSeconds"]
            for toleration in template["spec"].get("tolerations", [])
        }
        lost = {f"node.kubernetes.io/{state}": 20 for state in ("not-ready", "unreachable")}
        assert bounds == ({} if component in {"postgres", "n8n"} else lost), component


def test_what_holds_a_volume_is_alone_on_it_and_keeps_its_name(manifests: list[Manifest]) -> None:
    (claim,) = of(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    for stateful in of(manifests, "StatefulSet"):
        service = named(manifests, "Service")[stateful["spec"]["serviceName"]]
        assert service["spec"]["publishNotReadyAddresses"] is True


def test_the_namespace_is_the_same_alone_and_with_the_rest(manifests: list[Manifest]) -> None:
    """The script applies it first by itself."""
    (namespace,) = of(manifests, "Namespace")
    assert yaml.safe_load((DEPLOY / "kubernetes/base/namespace.yaml").read_text()) == namespace


def test_the_web_server_is_probed_by_a_name_that_it_answers_to(manifests: list[Manifest]) -> None:
    (container,) = pods(manifests)["webserver"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["httpHeaders"] == [
            {"name": "Host", "value": "localhost"}
        ]


def test_there_is_one_of_each_and_never_two_at_once(manifests: list[Manifest]) -> None:
    for one in of(manifests, "Deployment"):
        assert one["spec"]["replicas"] == 1
        assert one["spec"]["strategy"] == {"type": "Recreate"}


def test_nothing_of_ours_starts_before_the_migration(manifests: list[Manifest]) -> None:
    found = pods(manifests)
    for component in ("code-server", "webserver", "daemon", "live"):
        (waiting,) = found[component]["spec"]["initContainers"]
        assert waiting["args"] == ["db", "wait"]
        deadline = named(manifests, "Deployment")[component]["spec"]["progressDeadlineSeconds"]
        assert deadline > named(manifests, "Job")[MIGRATION]["spec"]["activeDeadlineSeconds"]
    assert found["migrate"]["spec"]["containers"][0]["args"] == ["db", "upgrade"]


def test_only_who_asks_the_cluster_has_a_token(manifests: list[Manifest]) -> None:
    accounts, roles = named(manifests, "ServiceAccount"), named(manifests, "Role")
    with_token = {
        component: template["spec"]["serviceAccountName"]
        for component, template in pods(manifests).items()
        if template["spec"].get("automountServiceAccountToken", True)
    }
    assert with_token == {"daemon": "daemon", "webserver": "webserver"}
    assert accounts["run"]["automountServiceAccountToken"] is False
    bound = {}
    for binding in of(manifests, "RoleBinding"):
        (subject,) = binding["subjects"]
        assert subject["namespace"] == "trading-pipelines"
        assert subject["name"] in accounts
        bound[subject["name"]] = roles.pop(binding["roleRef"]["name"])
    assert bound.keys() == {"daemon", "webserver"}
    assert not roles
    assert not of(manifests, "ClusterRole", "ClusterRoleBinding")
    rules = [rule for role in bound.values() for rule in role["rules"]]
    assert not any("*" in value for rule in rules for value in rule.values())
    assert not any("secrets" in rule["resources"] for rule in rules)


def selected(selector: Mapping[str, Any], components: set[str]) -> set[str]:
    """The components that a pod selector by our label means."""
    names = components
    if labels := selector.get("matchLabels"):
        assert labels.keys() == {COMPONENT}
        names = names & {labels[COMPONENT]}
    for expression in selector.get("matchExpressions", []):
        assert (expression["key"], expression["operator"]) == (COMPONENT, "In")
        assert set(expression["values"]) <= components, "a pod that there is"
        names = names & set(expression["values"])
    return names


def rules(manifests: list[Manifest], way: str, end: str) -> Iterator[tuple[str, Any, int]]:
    """Each (component, peer, port) that the policies allow in one way; None is any peer."""
    components = {*pods(manifests), "run"}
    for policy in of(manifests, "NetworkPolicy"):
        spec = policy["spec"]
        if policy["metadata"]["name"] in {"default-deny", "dns"}:
            continue
        assert (way.title() in spec["policyTypes"]) == (way in spec)
        for component in selected(spec["podSelector"], components):
            for rule in spec.get(way, []):
                for port in rule["ports"]:
                    assert port["protocol"] == "TCP"
                    for peer in rule.get(end, [None]):
                        yield component, peer, port["port"]


def arrows(manifests: list[Manifest], way: str, end: str) -> set[tuple[str, str, int]]:
    components = {*pods(manifests), "run"}
    return {
        (component, other, port) if way == "egress" else (other, component, port)
        for component, peer, port in rules(manifests, way, end)
        if peer and "podSelector" in peer
        for other in selected(peer["podSelector"], components)
    }


def test_all_is_denied_but_names_and_the_arrows_that_exist(manifests: list[Manifest]) -> None:
    policies = named(manifests, "NetworkPolicy")
    denied = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies["default-deny"]["spec"] == denied
    assert {port["port"] for port in policies["dns"]["spec"]["egress"][0]["ports"]} == {53}
    expected = set(ARROWS)
    if "postgres" in pods(manifests):
        expected |= {(component, "postgres", 5432) for component in DAGSTER}
    assert arrows(manifests, "egress", "to") == expected
    assert arrows(manifests, "ingress", "from") == expected


def test_who_reaches_the_outside_is_named(manifests: list[Manifest]) -> None:
    found = {
        (component, port, json.dumps(peer and peer["ipBlock"].get("except")))
        for component, peer, port in rules(manifests, "egress", "to")
        if peer is None or "ipBlock" in peer
    }
    private = json.dumps(
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"]
    )
    expected = {(*one, private) for one in INTERNET} | {(*one, "null") for one in API}
    if "postgres" not in pods(manifests):
        expected |= {(component, 5432, "null") for component in DAGSTER} | {("run", 6379, "null")}
    assert found == expected
    assert not any(peer is None for _, peer, _ in rules(manifests, "ingress", "from"))


def test_services_are_called_by_the_names_and_ports_they_have(manifests: list[Manifest]) -> None:
    settings = named(manifests, "ConfigMap")["trading-pipelines-env-unreleased"]["data"]
    services = {
        f"{name}:{one['spec']['ports'][0]['port']}"
        for name, one in named(manifests, "Service").items()
    }
    called = {settings[key].split("//")[-1] for key in ("CODE_SERVER", "WEBSERVER_URL", "N8N_URL")}
    assert called <= services
    assert settings["WEBSERVER_URL"] == f"http://{settings['ALLOWED_HOSTS']}:3000"


def test_n8n_is_given_every_workflow_where_its_import_looks(manifests: list[Manifest]) -> None:
    found = named(manifests, "ConfigMap")["n8n-unreleased"]["data"]
    volumes = {one["name"]: one for one in pods(manifests)["n8n"]["spec"]["volumes"]}
    items = {one["path"]: found[one["key"]] for one in volumes["config"]["configMap"]["items"]}
    config = ROOT / "config"
    files = [*(config / "n8n_workflows").glob("*.json"), config / "n8n_credentials.json"]
    assert items == {
        **{str(file.relative_to(config)): file.read_text() for file in files},
        "n8n_import.sh": (DEPLOY / "n8n_import.sh").read_text(),
    }


def test_the_version_stands_where_a_version_is_meant_and_nowhere_else(
    manifests: list[Manifest],
) -> None:
    """What is deployed is `unreleased` with the version in its place."""
    words = set(re.findall(r"[a-z0-9:-]*unreleased", yaml.safe_dump_all(manifests)))
    assert words == {
        "trading-pipelines:unreleased",
        "migrate-unreleased",
        "n8n-unreleased",
        "n8n-env-unreleased",
        "trading-pipelines-unreleased",
        "trading-pipelines-env-unreleased",
    }


def test_yaml_is_clean() -> None:
    rules = "{extends: relaxed, rules: {line-length: disable}}"
    tool("yamllint", "--strict", "-d", rules, DEPLOY, ROOT / "config")
