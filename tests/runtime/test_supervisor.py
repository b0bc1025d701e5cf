"""What the supervisor does beside starting and stopping, which tests/integration shows."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from trading_pipelines.database.connection import DatabaseUrls
from trading_pipelines.runtime import supervisor
from trading_pipelines.runtime.home import Home, RunningServices, ServicesError
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.settings.environment import Environment


def await_that(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, f"not in 120 s: {what}"
        time.sleep(0.01)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The logs of a home that is watched, and on which no service is to be started."""
    monkeypatch.setattr(supervisor, "LOG_BYTES", 100)
    monkeypatch.setattr(supervisor, "WATCH_SECONDS", 0.01)
    environment = Environment(
        trading_pipelines_home=tmp_path, database_url=SecretStr("postgresql://h/market")
    )
    watched = Supervisor(environment, DatabaseUrls("market", "dagster"), tmp_path / "strategy.yaml")
    watched._commands = {}
    for folder in ("logs", "postgres"):
        (tmp_path / folder).mkdir()
    watched._watcher.start()
    yield tmp_path / "logs"
    watched._stopping.set()
    watched._watcher.join()


def test_a_log_that_has_grown_begins_anew_and_its_writer_goes_on_in_it(logs: Path) -> None:
    log, before = logs / "daemon.log", logs / "daemon.log.1"
    before.write_text("of last month")
    with (
        log.open("ab") as file,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, bufsize=0) as writer,
    ):
        assert writer.stdin is not None
        writer.stdin.write(b"x" * 101)
        await_that(lambda: log.stat().st_size == 0 and before.stat().st_size == 101, "rotation")
        assert before.read_text() == "x" * 101
        writer.stdin.write(b"next")
        writer.stdin.close()
        writer.wait()
    assert log.read_bytes() == b"next", "no hole of the old length before it"


def test_the_embedded_servers_log_is_kept_small_as_well(logs: Path) -> None:
    log = logs.parent / "postgres" / "log"
    log.write_text("x" * 101)
    await_that(lambda: log.stat().st_size == 0, "rotation")
    assert log.with_name("log.1").read_text() == "x" * 101


def test_a_log_of_the_allowed_size_is_left_alone(logs: Path) -> None:
    (logs / "daemon.log").write_text("x" * 100)
    (logs / "webserver.log").write_text("x" * 101)
    await_that(lambda: (logs / "webserver.log").stat().st_size == 0, "rotation")
    assert [log.name for log in sorted(logs.iterdir())] == [
        "daemon.log", "webserver.log", "webserver.log.1"
    ]  # fmt: skip


def test_on_a_full_disk_a_log_is_emptied_without_a_copy_and_the_watch_goes_on(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(shutil, "copyfile", no_room)
    for _ in range(2):
        (logs / "daemon.log").write_text("x" * 101)
        await_that(lambda: (logs / "daemon.log").stat().st_size == 0, "truncation")
    assert not (logs / "daemon.log.1").exists()


def test_while_services_start_the_address_of_those_that_were_killed_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = Environment(
        trading_pipelines_home=tmp_path, database_url=SecretStr("postgresql://h/market")
    )
    home = Home.of(environment)
    home.record_services(RunningServices(1, "http://127.0.0.1:1", {"daemon": 1}))
    seen = []

    def refuse(_: DatabaseUrls) -> None:
        seen.append(home.running_services())
        raise ServicesError("held elsewhere")

    monkeypatch.setattr(supervisor, "refuse_where_held", refuse)
    with pytest.raises(ServicesError), Supervisor(
        environment, DatabaseUrls("market", "dagster"), tmp_path / "strategy.yaml"
    ):  # fmt: skip
        pass
    assert seen == [RunningServices(os.getpid(), "", {})]
