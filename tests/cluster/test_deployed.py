"""What the script leaves: a second run changes nothing, and nobody may do more than told."""

import json
import re
import socket
from typing import Any

import pytest

from tests.cluster.conftest import MOST_RUNS, NAMESPACE, OUTSIDE, Cluster
from tests.conftest import SYMBOLS

NOT_RUNS = ("--selector", "app.kubernetes.io/component!=run")
BASICS = {"selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"}
"""What every account of every cluster may ask about itself."""
RIGHTS = {
    # As docs/deployment.md says: launches, watches and ends runs.
    "daemon": {
        "jobs.batch": {"create", "list", "delete"},
        "jobs.batch/status": {"get"},
        "pods": {"list", "delete"},
        "pods/log": {"get"},
        "events": {"list"},
    },
    "webserver": {"jobs.batch": {"delete"}, "pods": {"list", "delete"}},
    "run": {},
    "default": {},
}
MACHINE = "10.201.0.254"
"""This machine on the nodes' cable (cluster.sh)."""
API, DATABASE, N8N, CODE_SERVER = "the API", "postgres:5432", "n8n:5678", "code-server:4000"
WEBSERVER, INTERNET, OTHER_PORT = "webserver:3000", "the internet:443", "the internet:80"
INSIDE, NEIGHBOUR, KUBELET = "a private address:443", "a pod beside", "a node's kubelet"
ARROWS = {
    # As docs/deployment.md's table: whom it may reach.
    "code-server": {DATABASE, N8N, INTERNET},
    # Port 443 of any address, as that of the API differs between clusters: the star of the table.
    "webserver": {CODE_SERVER, DATABASE, API, INTERNET, INSIDE},
    "daemon": {CODE_SERVER, WEBSERVER, DATABASE, API, INTERNET, INSIDE},
    "live": {DATABASE, INTERNET},
    "run": {DATABASE, INTERNET},
    "migrate": {DATABASE},
    "n8n": {INTERNET},
    "anything-else": set(),
}
TRY = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def reached(place):
    try:
        socket.create_connection(place, 4).close()
        return True
    except OSError:
        return False

socket.getaddrinfo("postgres", 5432)
places = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(places)) as pool:
    print(json.dumps(list(pool.map(lambda place: reached(tuple(place)), places))))
"""


def restricted_pod(name: str, component: str, image: str, node: str) -> dict[str, Any]:
    """A pod that sleeps, listens on 4000, and is never ready: no Service leads to it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/component": component, "of": "the-test"},
        },
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "try",
                    "image": image,
                    "command": ["python", "-m", "http.server", "4000"],
                    "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 3600},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def generations(cluster: Cluster) -> dict[tuple[str, str], Any]:
    """Return what changes with each object's contents, by kind and name."""
    kinds = "deployments,statefulsets,jobs,configmaps,secrets,services,networkpolicies,roles"
    return {
        (one["kind"], one["metadata"]["name"]): one["metadata"].get("generation", one.get("data"))
        for one in cluster.get(kinds, *NOT_RUNS)
    }


def image_of(cluster: Cluster) -> str:
    return str(cluster.pod("daemon")["spec"]["containers"][0]["image"])


def test_the_script_runs_through_and_its_runs_were_jobs_on_both_nodes_at_upbits_limit(
    deployed: Cluster,
) -> None:
    with deployed.table.row(
        "the runs of that backfill",
        f"a Job each, on both nodes, at most {MOST_RUNS} at once, no request refused",
    ) as row:
        runs = deployed.pods("run")
        nodes = {pod["spec"]["nodeName"] for pod in runs}
        assert len(nodes) == 2
        assert {pod["metadata"]["ownerReferences"][0]["kind"] for pod in runs} == {"Job"}
        times = deployed.sql(
            "SELECT start_time, coalesce(end_time, start_time + 86400) FROM runs "
            "WHERE start_time IS NOT NULL",
            "trading_pipelines_dagster",
        )
        spans = [[float(one) for one in line.split("|")] for line in times.splitlines()]
        most = max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)
        assert most <= MOST_RUNS
        stats = deployed.exchange.stats()
        assert (stats.refused, stats.rejected) == (0, 0)
        assert stats.peak <= 10
        row["found"] = (
            f"{len(runs)} Jobs on {len(nodes)} nodes, {most} at once, {stats.requests:,} requests, "
            f"{stats.peak} at most in a second, none refused"
        )
        row["seconds"] = max(end for _, end in spans) - min(begin for begin, _ in spans)
        labels = int(
            deployed.sql("SELECT count(DISTINCT symbol) FROM trading_pipelines.regime_labels")
        )
        assert labels == len(SYMBOLS)


def test_a_second_run_of_the_script_changes_nothing(deployed: Cluster) -> None:
    with deployed.table.row("the script again", "nothing changes, no pod is replaced") as row:
        before = generations(deployed)
        pods = {one["metadata"]["uid"] for one in deployed.get("pods", *NOT_RUNS)}
        said = deployed.script()
        changed = re.findall(r"^\S+ (?:configured|created)$", said, re.MULTILINE)
        assert changed == []
        assert generations(deployed) == before
        assert {one["metadata"]["uid"] for one in deployed.get("pods", *NOT_RUNS)} == pods
        row["found"] = f"{said.count(' unchanged')} objects unchanged, {len(pods)} pods the same"


def test_a_pod_that_is_not_restricted_is_refused(deployed: Cluster) -> None:
    pod = restricted_pod(
        "root", "run", image_of(deployed), deployed.pod("daemon")["spec"]["nodeName"]
    )
    with deployed.table.row("a pod that may be root", "the API server refuses it") as row:
        pod["spec"]["securityContext"] = {}
        why = deployed.refused("create", "--filename", "-", given=json.dumps(pod))
        assert 'violates PodSecurity "restricted' in why
        assert "runAsNonRoot" in why
        row["found"] = '`violates PodSecurity "restricted:latest"`'


def rights(cluster: Cluster, account: str, namespace: str) -> dict[str, set[str]]:
    """Return what the account may do in the namespace, as the API server says, by resource."""
    who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    said = cluster.run(
        "kubectl", "auth", "can-i", "--list", "--no-headers", f"--namespace={namespace}", who
    )
    found = {}
    for line in said.splitlines():
        resource, verbs = line.split()[0], line.rpartition("[")[2].rstrip("]").split()
        if not resource.startswith("[") and resource.partition(".")[0] not in BASICS:
            found[resource] = {*verbs}
    return found


def test_an_account_may_do_what_it_needs_and_nothing_more(deployed: Cluster) -> None:
    with deployed.table.row(
        "`kubectl auth can-i --list` as each account, here and in another namespace",
        "[the rights](#what-runs-there) that are told, none elsewhere",
    ) as row:
        for account, wanted in RIGHTS.items():
            assert rights(deployed, account, NAMESPACE) == wanted
            assert rights(deployed, account, "kube-system") == {}
        row["found"] = f"so, of {len(RIGHTS)} accounts"


def test_the_arrows_of_the_table_exist_across_nodes_and_no_others(deployed: Cluster) -> None:
    image = image_of(deployed)
    nodes = sorted(node["metadata"]["name"] for node in deployed.get("nodes"))
    if not deployed.is_ours:
        pytest.skip("whether a cluster of yours obeys NetworkPolicies is its network's affair")
    pods = {
        (component, node): restricted_pod(f"try-{component}-{node}", component, image, node)
        for component in ARROWS
        for node in nodes
    }
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*pods.values()]})
    with (
        deployed.table.row(
            "each arrow of [the table](#what-runs-there), tried from pods on both nodes",
            "those there are open, all others shut",
        ) as row,
        socket.create_server((OUTSIDE[0], 80)),
        socket.create_server((MACHINE, 443)),
    ):
        deployed.kubectl("apply", "--filename", "-", given=given)
        try:
            deployed.kubectl(
                "wait",
                "pods",
                "--selector",
                "of=the-test",
                "--timeout=180s",
                "--for=jsonpath={.status.phase}=Running",
            )
            beside = pods["live", nodes[-1]]["metadata"]["name"]
            neighbour = deployed.kubectl("get", "pod", beside, "--output=jsonpath={.status.podIP}")
            node_address = deployed.get("nodes")[0]["status"]["addresses"][0]["address"]
            places = {
                API: ("kubernetes.default.svc", 443), DATABASE: ("postgres", 5432),
                N8N: ("n8n", 5678), CODE_SERVER: ("code-server", 4000),
                WEBSERVER: ("webserver", 3000), INTERNET: (OUTSIDE[0], 443),
                OTHER_PORT: (OUTSIDE[0], 80), NEIGHBOUR: (neighbour, 4000),
                INSIDE: (MACHINE, 443), KUBELET: (node_address, 10250),
            }  # fmt: skip
            found: dict[tuple[str, str], set[str]] = {}
            wanted = {
                one: ARROWS[one[0]] | ({NEIGHBOUR} if pod["metadata"]["name"] == beside else set())
                for one, pod in pods.items()
            }

            def is_obeyed() -> bool:
                for one, pod in pods.items():
                    answer = deployed.kubectl(
                        "exec", pod["metadata"]["name"], "--",
                        "python", "-c", TRY, json.dumps([*places.values()]),
                    )  # fmt: skip
                    opened = zip(places, json.loads(answer), strict=True)
                    found[one] = {place for place, is_open in opened if is_open}
                assert found == wanted
                return True

            # The network learns of a pod, and of its policies, a moment after it has begun.
            deployed.until(is_obeyed, "the policies of the new pods are obeyed", 120)
            row["found"] = (
                f"{len(pods) * len(places)} tried, {sum(map(len, found.values()))} of them open, "
                "as in the table"
            )
        finally:
            deployed.kubectl("delete", "pods", "--selector", "of=the-test", "--wait=false")
