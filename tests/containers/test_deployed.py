"""One installation by compose: it works, it is locked in, and it heals."""

import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.containers.conftest import (
    PLANTED,
    PROJECT,
    SERVICES,
    Installation,
    Report,
    await_none,
    docker,
)

HERE = Path(__file__).parent
MEGABYTE = 1_000_000
MOST_MEGABYTES = 900
IMPORT_ALL = """
import importlib, pkgutil, trading_pipelines
for module in pkgutil.walk_packages(trading_pipelines.__path__, "trading_pipelines."):
    if ".migrations" not in module.name:
        importlib.import_module(module.name)
"""
PLACES = """
for path in / /opt /etc /usr/local/bin; do touch "$path/planted" 2>/dev/null && echo "$path"; done
grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs):' /proc/1/status
"""


def test_the_image_is_small_and_imports_all_that_is_ours(image: str, report: Report) -> None:
    size = int(docker("image", "inspect", "--format={{.Size}}", image)) / MEGABYTE
    history = docker("history", "--format={{.Size}}\t{{.CreatedBy}}", image).splitlines()
    report.layers = f"The image has {size:.0f} MB.\n\n| layer | size |\n|---|---:|\n" + "\n".join(
        f"| {made or 'the base image'} | {layer} |"
        for layer, made in (line.split("\t") for line in history)
        if layer != "0B"
    )
    assert size <= MOST_MEGABYTES
    docker("run", "--rm", "--network=none", "--entrypoint=python", image, "-c", IMPORT_ALL)


def test_every_service_becomes_healthy(installation: Installation, report: Report) -> None:
    for service in SERVICES:
        assert installation.is_healthy(service)
        used = docker("stats", "--no-stream", "--format={{.MemUsage}}", f"{PROJECT}-{service}-1")
        memory, limit = used.split(" / ")
        seconds = installation.start_seconds[service]
        report.services.append(f"| {service} | {seconds:.0f} s | {memory} | {limit.strip()} |")
    assert installation.inspect("migrate")["State"]["ExitCode"] == 0


def test_a_backfill_ends_with_the_exchanges_rows(
    installation: Installation, report: Report
) -> None:
    with report.timed("a backfill of 18 days of three symbols", "the exchange's rows") as row:
        installation.execute("daemon", "trading-pipelines", "backfill")
        assert installation.differences() == ""
        row.found = f"{len(installation.stored()):,} rows, as the exchange has them"


@pytest.mark.parametrize("table", ["regime_labels", "volatility_model", "volatility_forecast"])
def test_the_schedules_compute_what_the_bot_reads(
    installation: Installation, report: Report, table: str
) -> None:
    count = f"SELECT count(*) FROM trading_pipelines.{table}"
    with report.timed(f"nothing: the schedules have to fill `{table}`", "rows") as row:
        await_none(lambda: "none" if installation.sql(count) == "0" else "", 400)
        row.found = f"{installation.sql(count)} rows"


def test_a_reject_of_the_bot_arrives_through_n8n(
    installation: Installation, report: Report
) -> None:
    with report.timed("a REJECT in the bot's table", "arrives through n8n, once") as row:
        row.seconds = installation.reject("refused-at-first")
    assert installation.arrived("refused-at-first") == 1
    vias = "SELECT via FROM trading_pipelines.alert_attempts WHERE outcome = 'delivered'"
    assert set(installation.sql(vias).splitlines()) == {"n8n"}


def test_health_is_good_and_the_web_ui_answers(installation: Installation, report: Report) -> None:
    with report.timed("`health`", "good"):
        installation.await_health()
    address = installation.compose("port", "webserver", "3000").strip()
    assert address.startswith("127.0.0.1:")
    page = subprocess.run(
        ["curl", "--silent", "--fail", "--noproxy", "*", f"http://{address}/assets"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "<html" in page.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_can_change_and_do_nothing_but_its_work(
    installation: Installation, service: str
) -> None:
    seen = installation.inspect(service)
    said = installation.execute(service, "sh", "-c", PLACES).splitlines()
    assert [line for line in said if line.startswith("/")] == [], "its root can be written"
    status = {line.split(":")[0]: line.split()[1] for line in said}
    assert status["Uid"] != "0"
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert seen["HostConfig"]["Memory"] > 0
    assert not any("docker.sock" in one["Source"] for one in seen["Mounts"])
    ports = [port for bound in seen["NetworkSettings"]["Ports"].values() for port in bound or []]
    assert {port["HostIp"] for port in ports} <= {"127.0.0.1"}


def test_no_secret_is_in_an_environment_a_log_or_a_process_list(
    installation: Installation, report: Report
) -> None:
    with report.timed(
        "`docker inspect`, `logs` and `top` of all six, searched for each secret", "none is there"
    ):
        for service in SERVICES:
            name = f"{PROJECT}-{service}-1"
            logs = subprocess.run(
                ["docker", "logs", name], capture_output=True, text=True, check=True
            )
            seen = json.dumps(installation.inspect(service)) + logs.stdout + logs.stderr
            seen += docker("top", name, "-eo", "pid,args")
            assert [secret for secret in PLANTED.values() if secret in seen] == [], service


def killed(installation: Installation, service: str) -> float:
    """Kill every process of the container but its init, whose end follows; return when."""
    before = time.time()
    installation.execute(service, "sh", "-c", "kill -9 -1", check=False)
    return before


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_killed_in_a_backfill_comes_back(
    installation: Installation, report: Report, service: str
) -> None:
    reason = f"refused-with-{service}"
    installation.start_repair()
    expected = "healthy by itself; a REJECT arrives once"
    with report.timed(f"all processes of {service} killed, in a backfill", expected) as row:
        at = killed(installation, service)
        installation.await_healthy(service, since=at)
        row.seconds = time.time() - at
        row.found = f"healthy; the REJECT arrived in {installation.reject(reason):.0f} s, once"
    assert installation.arrived(reason) == 1


def test_nothing_was_lost_in_the_six_backfills(installation: Installation, report: Report) -> None:
    with report.timed("after these six: nothing", "rows equal, `health` good"):
        installation.await_rows()
        installation.await_health()


def test_docker_kill_is_final_until_up(installation: Installation, report: Report) -> None:
    with report.timed("`docker kill` of all six at once, then `up`", "healthy, rows equal") as row:
        docker("kill", *(f"{PROJECT}-{service}-1" for service in SERVICES))
        assert not any(installation.inspect(one)["State"]["Running"] for one in SERVICES)
        installation.up()
        row.found = "down until `up`; then healthy, rows equal"
        assert installation.differences() == ""


def test_a_memory_limit_that_is_reached_ends_one_service_which_comes_back(
    installation: Installation, report: Report
) -> None:
    name = f"{PROJECT}-code-server-1"
    limit = installation.inspect("code-server")["HostConfig"]["Memory"]
    used = docker("exec", name, "cat", "/sys/fs/cgroup/memory/memory.usage_in_bytes", check=False)
    tight = int(used or docker("exec", name, "cat", "/sys/fs/cgroup/memory.current")) + (80 << 20)
    expected = "one service ends, and comes back"
    with report.timed("the code server's memory limited to 80 MB above its own", expected) as row:
        at = time.time()
        docker("update", f"--memory={tight}", f"--memory-swap={tight}", name)
        installation.start_repair()
        deadline = time.monotonic() + 180
        while not (ended := oom_events(at)):
            assert time.monotonic() < deadline, "the limit was not reached"
            time.sleep(1)
        docker("update", f"--memory={limit}", f"--memory-swap={limit}", name)
        installation.await_healthy(*SERVICES)
        installation.await_rows()
        row.found = f"the kernel ended {ended} processes; healthy, rows equal"
    installation.await_health()


def oom_events(since: float) -> int:
    """Return how often the kernel has ended a process for want of memory."""
    events = docker(
        "events", f"--since={since:.0f}", "--until=0s", "--filter=event=oom",
        f"--filter=label=com.docker.compose.project={PROJECT}",
    )  # fmt: skip
    return len(events.splitlines())


def test_a_full_volume_heals_as_soon_as_there_is_room(
    installation: Installation, report: Report
) -> None:
    if not installation.device:
        pytest.skip("takes root, for a volume on a small file system of its own")
    filler = "/var/lib/postgresql/filler"
    with report.timed("Postgres' volume full for 30 s, in a backfill", "rows equal") as row:
        installation.start_repair()
        said = installation.execute(
            "postgres", "sh", "-c", f"dd if=/dev/zero of={filler} bs=1M 2>&1; sync", check=False
        )
        assert "No space left" in said
        time.sleep(30)  # it is full so long: there is nothing to wait for
        problem = installation.health()
        installation.execute("postgres", "rm", filler)
        installation.await_healthy(*SERVICES)
        installation.start_repair()
        installation.await_rows()
        row.found = f"`health`: {'not good' if problem else 'good'} meanwhile; rows equal"
    installation.await_health()


def test_down_and_up_keep_everything(installation: Installation, report: Report) -> None:
    labels = installation.sql("SELECT count(*) FROM trading_pipelines.regime_labels")
    with report.timed("`down`, and `up`", "data as before"):
        installation.compose("down")
        installation.up()
        assert installation.differences() == ""
        now = installation.sql("SELECT count(*) FROM trading_pipelines.regime_labels")
        assert int(now) >= int(labels)
        installation.reject("refused-after-down")


def documented(page: str, heading: str) -> str:
    """Return the shell commands that the documentation gives under a bold heading."""
    text = (HERE.parents[1] / page).read_text()
    found = re.search(rf"\*\*{heading}\*\*.*?```sh\n(.*?)```", text, re.DOTALL)
    assert found, heading
    return re.sub(r"^ {2}", "", found[1], flags=re.MULTILINE)


def test_a_backup_is_restored_as_the_documentation_says(
    installation: Installation, report: Report, tmp_path: Path
) -> None:
    with report.timed("a backup, all volumes removed, the restore", "data as before") as row:
        before = len(installation.stored())
        run_documented(installation, "Backup", tmp_path)
        installation.down()
        run_documented(installation, "Restore", tmp_path)
        installation.await_healthy(*SERVICES)
        assert len(installation.stored()) >= before
        assert installation.differences() == ""
        row.found = f"{before:,} rows as before"
    installation.await_health()


def run_documented(installation: Installation, heading: str, folder: Path) -> None:
    """Run the documentation's commands in a folder, with the tests' compose in compose's place."""
    commands = documented("docs/deployment.md", heading).replace(
        "docker compose -f deploy/compose.yaml", shlex.join(["docker", *installation.words()])
    )
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=folder, check=True,
        env=installation.variables(),
    )  # fmt: skip


@pytest.mark.skipif("engine" not in os.environ.get("DOCKER_HOST", ""), reason="your own Docker")
@pytest.mark.parametrize("way", ["stop", "kill"])
def test_the_engine_is_restarted(installation: Installation, report: Report, way: str) -> None:
    with report.timed(f"the engine: `{way}`, and started again", "healthy, rows equal"):
        at = time.time()
        subprocess.run([HERE / "engine.sh", way], check=True)
        subprocess.run([HERE / "engine.sh", "start"], check=True, capture_output=True)
        installation.await_healthy(*SERVICES, since=at if way == "stop" else 0.0)
        assert installation.differences() == ""
    installation.await_health()
