"""`up` with a new image over the one before it, whose schema is older, while a backfill runs."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.containers.conftest import (
    PROJECT,
    ROOT,
    SERVICES,
    Installation,
    Market,
    Report,
    docker,
)

VERSIONS = "trading_pipelines/database/migrations/versions"
VERSION = "SELECT version_num FROM trading_pipelines.alembic_version"


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def before(
    image: str, folder: Path, market: Market, device: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation of the last commit without the newest migration: its image, its compose."""
    newest = git("log", "-1", "--diff-filter=A", "--format=%h", "--", VERSIONS).decode().strip()
    tree = tmp_path_factory.mktemp("before")
    tree.chmod(0o755)
    try:
        archive = git("archive", f"{newest}^")
    except subprocess.CalledProcessError:
        pytest.skip("a shallow clone does not have the commit before the newest migration")
    subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
    old = f"{PROJECT}:before"
    docker("build", "--file", "deploy/Dockerfile", "--tag", old, ".", cwd=tree)
    made = Installation(folder, market, device, file=tree / "deploy" / "compose.yaml", image=old)
    made.down()
    try:
        made.up()
        yield made
    finally:
        made.down()


def test_an_upgrade_in_a_backfill_loses_nothing(
    before: Installation, image: str, report: Report
) -> None:
    now = replace(before, file=ROOT / "deploy" / "compose.yaml", image=image)
    old = before.sql(VERSION)
    docker("exec", "--detach", f"{PROJECT}-webserver-1", "trading-pipelines", "backfill")
    before.await_runs()
    with report.timed("`up` with a new image, in a backfill", "migrated, rows equal") as row:
        now.up()
        new = now.sql(VERSION)
        now.await_rows()
        row.found = f"schema {old} became {new}, rows equal"
    assert new > old
    assert all(now.inspect(one)["Config"]["Image"] == image for one in ("daemon", "code-server"))
    now.await_healthy(*SERVICES)
    now.await_health()
