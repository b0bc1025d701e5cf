"""One thing of a running cluster broken after another, each in the middle of a backfill of its own.

The end of `Cluster.backfill` holds for all of them: rows as the exchange has them, each alert there
once, `health` good.
"""

import subprocess
import time
from functools import partial
from typing import Any

import pytest

from tests.cluster.conftest import HERE, Cluster, run_of

BY_FORCE = ("--grace-period=0", "--force", "--wait=false")
GIVEN_BACK_SECONDS = 120
NOTHING_LOST = "nothing is lost"


def is_ready(cluster: Cluster, component: str, but: str) -> bool:
    """Return whether the component has a pod that is ready and is another."""
    pod = cluster.pod(component)
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    return pod["metadata"]["uid"] != but and conditions.get("Ready") == "True"


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        ("daemon", NOTHING_LOST),
        ("code-server", NOTHING_LOST),
        ("n8n", NOTHING_LOST),
        # Dagster's own writes wait for a second or two, and the run that meets that fails.
        ("postgres", f"{NOTHING_LOST}, runs that fail of it are made up for by the next ticks"),
    ],
)
def test_a_pod_that_is_killed_comes_back_and_nothing_is_lost(
    deployed: Cluster, component: str, expected: str
) -> None:
    with (
        deployed.table.row(
            f"the pod of {component} deleted by force in the middle of a backfill", expected
        ) as row,
        deployed.backfill(may_fail=component == "postgres"),
    ):
        killed = deployed.pod(component)["metadata"]
        deployed.kubectl("delete", "pod", killed["name"], *BY_FORCE)
        waited = deployed.until(
            lambda: is_ready(deployed, component, killed["uid"]), f"{component} is back", 900
        )
        row["found"] = f"so; another pod is ready after {waited:.0f} s"


def test_a_runs_pod_that_is_killed_at_work_is_followed_by_another_run(deployed: Cluster) -> None:
    with (
        deployed.table.row(
            "a run's pod deleted by force at work", f"another run goes on; {NOTHING_LOST}"
        ) as row,
        deployed.backfill(),
    ):
        killed = deployed.run_pods()[0]
        deployed.kubectl("delete", "pod", killed["metadata"]["name"], *BY_FORCE)
        run = run_of(killed)
        waited = deployed.until(lambda: run in deployed.runs("FAILURE"), "the run is given up")
        row["found"] = f"so; its place is free after {waited:.0f} s"


def test_a_run_whose_pod_is_killed_while_it_starts_gives_its_place_back(deployed: Cluster) -> None:
    with (
        deployed.table.row(
            "a run's pod deleted by force while it was STARTING",
            f"its place is free within {GIVEN_BACK_SECONDS} s; {NOTHING_LOST}",
        ) as row,
        deployed.backfill(days=6),
    ):
        starting: list[dict[str, Any]] = []

        def another_starts() -> bool:
            starting[:] = deployed.run_pods("STARTING")
            return bool(starting)

        deployed.until(another_starts, "another run starts")
        killed = starting[0]
        deployed.kubectl("delete", "pod", killed["metadata"]["name"], *BY_FORCE)
        run = run_of(killed)
        waited = deployed.until(
            lambda: run in deployed.runs("FAILURE", "SUCCESS"), "the run is given up"
        )
        assert waited <= GIVEN_BACK_SECONDS
        row["found"] = f"so; after {waited:.0f} s"


def test_a_node_is_drained_in_the_middle_of_a_backfill(deployed: Cluster) -> None:
    volumes = deployed.pod("postgres")["spec"]["nodeName"]
    other = next(
        node["metadata"]["name"]
        for node in deployed.get("nodes")
        if node["metadata"]["name"] != volumes
    )
    with (
        deployed.table.row("`kubectl drain` of a node with runs on it", NOTHING_LOST) as row,
        deployed.backfill(),
    ):
        deployed.until(
            lambda: [p for p in deployed.run_pods() if p["spec"]["nodeName"] == other],
            "a run is at work there",
        )
        options = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=300s"]
        began = time.monotonic()
        said = deployed.kubectl("drain", other, *options)
        row["found"] = (
            f"so; {said.count(' evicted')} pods evicted in {time.monotonic() - began:.0f} s"
        )
    deployed.kubectl("uncordon", other)


def test_a_lost_node_takes_nothing_with_it(deployed: Cluster) -> None:
    if not deployed.is_ours:
        pytest.skip("a node of a cluster of yours is not killed")
    components = ("code-server", "webserver", "daemon", "live")
    deployed.kubectl("cordon", "node1")
    chosen = f"app.kubernetes.io/component in ({', '.join(components)})"
    deployed.kubectl("delete", "pods", "--selector", chosen)
    for component in components:
        deployed.until(partial(is_ready, deployed, component, ""), f"{component} is there", 300)
    deployed.kubectl("uncordon", "node1")
    with (
        deployed.table.row(
            "a node lost, with all of ours but n8n on it, and runs, as if its power had gone",
            f"its runs' places are free within {GIVEN_BACK_SECONDS} s; {NOTHING_LOST}",
        ) as row,
        deployed.backfill(days=6),
    ):

        def there() -> list[str]:
            return [
                run_of(pod) for pod in deployed.run_pods() if pod["spec"]["nodeName"] == "node2"
            ]

        deployed.until(there, "a run is at work there")
        lost = there()
        subprocess.run([HERE / "cluster.sh", "lose", "2"], check=True)
        waited = deployed.until(
            lambda: not {*lost} & {*deployed.runs("STARTED", "STARTING")}, "they are given up"
        )
        row["found"] = f"so; {len(lost)} places free after {waited:.0f} s"
        began = time.monotonic()
        for component in components:
            deployed.until(partial(is_ready, deployed, component, ""), f"{component} is back", 900)
        row["found"] += f", all pods ready on the other node {time.monotonic() - began:.0f} s later"
        subprocess.run([HERE / "cluster.sh", "node", "2"], check=True)
        assert waited <= GIVEN_BACK_SECONDS
