"""A run's Job as dagster-k8s makes it of our settings, and what its launcher asks a cluster for."""

import json
import re
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import dagster_k8s.launcher
import kubernetes
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.utils import make_new_run_id
from dagster_k8s import K8sRunLauncher

from tests.deploy.conftest import Manifest, tool
from tests.deploy.test_kubernetes import (
    assert_restricted,
    assert_what_it_names_is_there,
    named,
    pods,
)
from trading_pipelines.runtime.cluster import obstacle
from trading_pipelines.runtime.processes import STORAGE, write_instance_settings
from trading_pipelines.settings.environment import Environment

VERBS = {"GET": "get", "POST": "create", "DELETE": "delete"}
POD = {
    "metadata": {"name": "run-pod"},
    "status": {
        "phase": "Failed",
        "containerStatuses": [
            {
                "name": "dagster",
                "image": "i",
                "imageID": "i",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            }
        ],
    },
    "spec": {"containers": [{"name": "dagster"}]},
}


class Cluster(ThreadingHTTPServer):
    """A cluster's API as far as the launcher asks it; keeps the Jobs and what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: list[Manifest] = []
        self.job_status: Manifest = {"active": 1, "startTime": "2026-11-28T12:00:00Z"}
        self.asked: set[tuple[str, str]] = set()
        self.pods = [POD]


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        found = re.fullmatch(
            r"/(?:api/v1|apis/batch/v1)/namespaces/trading-pipelines/([a-z]+)(/[^/]+)?(/[a-z]+)?",
            path,
        )
        assert found, path
        resource, name, below = found.groups()
        verb = "list" if self.command == "GET" and not name else VERBS[self.command]
        self.server.asked.add((resource + (below or ""), verb))
        items = self.server.pods
        if resource == "jobs":
            items = [{**job, "status": self.server.job_status} for job in self.server.jobs]
        said: Any = {"items": items if resource in {"jobs", "pods"} else []}
        if verb == "create":
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.jobs.append(said)
        elif verb == "get":
            said = "killed" if below == "/log" else {"status": {"failed": 1}}
        elif resource == "jobs" and verb == "delete":
            self.server.jobs.clear()
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def settings(manifests: list[Manifest], tmp_path: Path) -> Path:
    """The folder of the dagster.yaml that a pod writes for itself."""
    for name, text in named(manifests, "ConfigMap")["trading-pipelines-unreleased"]["data"].items():
        (tmp_path / name).write_text(text)
    write_instance_settings(
        Environment(
            trading_pipelines_home=tmp_path,
            trading_pipelines_config=tmp_path / "strategy.yaml",
            dagster_overrides=tmp_path / "run_launcher.yaml",
        )
    )
    return tmp_path / "dagster"


@pytest.fixture
def launcher(
    manifests: list[Manifest], settings: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[K8sRunLauncher]:
    """The launcher of the daemon's pod, in that pod's environment."""

    def load(**_: object) -> None:
        configuration = kubernetes.client.Configuration()
        configuration.host = f"http://127.0.0.1:{cluster.server_port}"
        kubernetes.client.Configuration.set_default(configuration)

    monkeypatch.setattr(dagster_k8s.launcher, "load_kubernetes_config", load)
    variables = named(manifests, "ConfigMap")["trading-pipelines-env-unreleased"]["data"]
    monkeypatch.setenv("RUN_IMAGE", variables["RUN_IMAGE"])
    launcher = InstanceRef.from_dir(str(settings)).run_launcher
    assert isinstance(launcher, K8sRunLauncher)
    with dg.DagsterInstance.local_temp(str(settings.parent)) as instance:
        launcher.register_instance(instance)
        yield launcher
    kubernetes.client.Configuration.set_default(None)


@pytest.fixture
def run(launcher: K8sRunLauncher) -> dg.DagsterRun:
    """A run that the launcher has launched."""
    pointer = ModuleCodePointer("trading_pipelines.definitions", "defs")
    repository = RepositoryPythonOrigin(
        executable_path=sys.executable, code_pointer=pointer, entry_point=["dagster"]
    )
    run = dg.DagsterRun(
        job_name="refresh_market_data_job",
        run_id=make_new_run_id(),
        status=dg.DagsterRunStatus.STARTED,
        job_code_origin=JobPythonOrigin("refresh_market_data_job", repository),
    )
    launcher._instance.run_storage.add_run(run)
    launcher.launch_run(LaunchRunContext(run, workspace=None))
    return run


@pytest.mark.usefixtures("run")
def test_a_runs_job_has_the_form_and_the_rights_of_every_other_pod(
    cluster: Cluster, manifests: list[Manifest], tmp_path: Path
) -> None:
    (job,) = cluster.jobs
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    tool("kubernetes-validate", "--strict", tmp_path / "job.yaml")
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600
    assert job["spec"]["backoffLimit"] == 0, "Dagster starts it again, not the cluster"
    spec = job["spec"]["template"]["spec"]
    assert_restricted(spec)
    assert_what_it_names_is_there(spec, manifests)
    assert spec["serviceAccountName"] == "run"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "run", "the policies know it by this"


@pytest.mark.usefixtures("run")
def test_a_run_is_given_what_the_code_server_is_given(
    cluster: Cluster, manifests: list[Manifest]
) -> None:
    (container,) = cluster.jobs[0]["spec"]["template"]["spec"]["containers"]
    (server,) = pods(manifests)["code-server"]["spec"]["containers"]
    for same in ("image", "envFrom", "volumeMounts", "securityContext"):
        assert container[same] == server[same]
    pod = cluster.jobs[0]["spec"]["template"]["spec"]
    assert pod["tolerations"] == pods(manifests)["code-server"]["spec"]["tolerations"]
    assert container["command"] == ["/usr/bin/env"], "not the image's entry point"
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["DAGSTER_HOME"] == "/var/lib/trading-pipelines/dagster"
    assert {"requests", "limits"} == container["resources"].keys()


def test_the_roles_allow_what_the_launcher_asks_for_and_no_more(
    launcher: K8sRunLauncher, run: dg.DagsterRun, cluster: Cluster, manifests: list[Manifest]
) -> None:
    def allowed(role: str) -> set[tuple[str, str]]:
        return {
            (resource, verb)
            for rule in named(manifests, "Role")[role]["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    assert launcher.check_run_worker_health(run).status.name == "FAILED"
    assert "OOMKilled" in str(launcher.get_run_worker_debug_info(run))
    cluster.pods = []
    launcher.get_run_worker_debug_info(run)
    cluster.pods = [POD]
    assert obstacle(run.run_id, launcher.job_namespace) is None
    before, cluster.asked = cluster.asked, set()
    assert launcher.terminate(run.run_id)  # type: ignore[no-untyped-call]
    assert allowed("terminate-runs") == cluster.asked, "the UI's"
    assert allowed("launch-runs") == before | cluster.asked, "the daemon's"


def waiting(reason: str, of: str = "containerStatuses") -> Manifest:
    state = {"waiting": {"reason": reason, "message": "no such image"}}
    container = {**POD["status"]["containerStatuses"][0], "state": state}  # type: ignore[index]
    return {**POD, "status": {"phase": "Pending", of: [container]}}


NO_ROOM = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
}
FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"}
# Kubernetes since 1.31, as long as a pod of it ends: for ever, where its node is lost.
LOST = {**FAILED, "type": "FailureTarget"}


@pytest.mark.parametrize(
    ("pod", "status", "why"),
    [
        (waiting("ImagePullBackOff"), {"active": 1}, "ImagePullBackOff: no such image"),
        (waiting("InvalidImageName", "initContainerStatuses"), {}, "InvalidImageName: no such"),
        (waiting("CreateContainerConfigError"), {"active": 1}, "CreateContainerConfigError"),
        (None, {"failed": 1, "conditions": [FAILED]}, "its Job has failed (BackoffLimitExceeded"),
        (POD, {"terminating": 1, "conditions": [LOST]}, "its Job has failed (BackoffLimitExceeded"),
        (POD, {"failed": 1, "conditions": [LOST, FAILED]}, "its Job has failed (BackoffLimit"),
        (waiting("ErrImagePull"), {"active": 1}, None),
        (waiting("ContainerCreating"), {"active": 1}, None),
        ({**POD, "status": NO_ROOM}, {"active": 1}, None),
        ({**POD, "status": {"phase": "Pending"}}, {"active": 1}, None),
        (None, {}, None),
    ],
)
def test_a_run_that_will_not_start_is_told_from_one_that_waits(
    launcher: K8sRunLauncher,
    run: dg.DagsterRun,
    cluster: Cluster,
    pod: Manifest | None,
    status: Manifest,
    why: str | None,
) -> None:
    cluster.pods, cluster.job_status = [pod] if pod else [], status
    found = obstacle(run.run_id, launcher.job_namespace)
    assert (why is None and found is None) or (why is not None and why in str(found))
    assert len(cluster.jobs) == (why is None), "it would start beside the next attempt"


def test_a_run_whose_job_is_gone_will_not_start(
    launcher: K8sRunLauncher, run: dg.DagsterRun, cluster: Cluster
) -> None:
    cluster.jobs = []
    assert obstacle(run.run_id, launcher.job_namespace) == "its Job is gone"


def test_the_launcher_is_added_and_the_rest_of_the_settings_stays(settings: Path) -> None:
    merged = yaml.safe_load((settings / "dagster.yaml").read_text())
    assert merged["run_monitoring"]["max_resume_run_attempts"] == 0
    assert merged["run_monitoring"]["free_slots_after_run_end_seconds"] == 30
    assert merged["concurrency"]["runs"]["tag_concurrency_limits"] == [
        {"key": "dagster/backfill", "limit": 3}
    ]
    assert merged["storage"] == STORAGE["storage"]
