"""What it stands on fails: the database, the disk, the exchange, the clock. Then it is there again.

One installation lives through all of it; where a failure has set back-offs, the clock is set on.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.faults.conftest import START, Reference, Reliability, Row, World, world_of
from trading_pipelines.candles.windows import HOUR, MINUTE
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.simulators.upbit.faults import KINDS, Fault
from trading_pipelines.simulators.upbit.market import Recording

pytestmark = pytest.mark.timeout(900)

# Longer than any back-off of a partition.
BACK_OFF = timedelta(minutes=31)
AWAY = ["reset"]
BANNED = ["418_error_key"]
GARBAGE = ["html_200", "json_object", "null_fields", "wrong_market", "truncated_json"]


@pytest.fixture(scope="module")
def world(history: Path, recorded_market: Recording, reference: Reference) -> Iterator[World]:
    """An installation on a small disk of its own, where one can be had."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    is_small = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", home], check=False, capture_output=True
    ).returncode == 0  # fmt: skip
    try:
        with world_of(history, recorded_market, reference, home) as world:
            world.has_small_disk = is_small
            world.up()
            world.set_clock(START)
            world.until(lambda: world.healed(START - 2 * HOUR, START), "the first hour")
            yield world
    finally:
        if is_small:
            subprocess.run(["umount", home], check=True)
            home.rmdir()


def heal(world: World, row: Row, since: datetime, within: float = 300) -> None:
    until = world.now
    row.seconds = world.until(lambda: world.healed(since, until), "healed", within)
    world.account(row, since, until)


@contextmanager
def locked(server: EmbeddedServer) -> Iterator[None]:
    """Stop the server and keep everybody from starting it."""
    with server._lock():
        server._run("pg_ctl", "stop", "-m", "immediate", "-w", "-D", server._data)
        yield


def test_postgres_is_away_for_a_minute(world: World, reliability: Reliability) -> None:
    since = world.now
    row = reliability.row("Postgres is away for a minute", "stopped, and kept from being started")
    world.reject()
    with locked(EmbeddedServer(world.home)):
        world.set_clock(since + HOUR)
        world.pause(60)
    world.until(world.reject, "the bot has written")
    heal(world, row, since)


def test_the_disk_is_full_for_a_while(world: World, reliability: Reliability) -> None:
    if not world.has_small_disk:
        pytest.skip("no small disk can be mounted here")
    since = world.now
    row = reliability.row("the disk is full, for the database and the logs", "")
    ballast = world.home / "ballast"
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], check=False)
        assert os.statvfs(world.home).f_bavail == 0
        world.set_clock(since + HOUR)
        world.pause(45)
    finally:
        ballast.unlink()
    row.done = "every byte taken for 45 s while the clock went on for an hour"
    world.until(world.reject, "the bot has written")
    heal(world, row, since)


@pytest.mark.parametrize(
    ("scenario", "kinds", "hours"),
    [
        ("the exchange is away for five hours", AWAY, 5),
        ("the exchange answers garbage for three hours", GARBAGE, 3),
        ("the exchange bans us with 418 for two hours", BANNED, 2),
    ],
)
def test_the_exchange_fails(
    world: World, reliability: Reliability, scenario: str, kinds: Sequence[str], hours: int
) -> None:
    since = world.now
    row = reliability.row(scenario, f"each request answered with one of {', '.join(kinds)}")
    assert set(kinds) <= set(KINDS)
    world.exchange.set_faults(
        [Fault(kind, every=n + 1) for n, kind in reversed(list(enumerate(kinds)))]
    )
    for _ in range(hours):
        world.set_clock(world.now + HOUR)
        world.reject()
        world.pause(12)
    assert "candles" in world.missing(since, world.now), "it was felt"
    world.exchange.set_faults([])
    world.set_clock(world.now + BACK_OFF)
    heal(world, row, since)


def test_the_clock_steps_forth_and_back(world: World, reliability: Reliability) -> None:
    since = world.now
    row = reliability.row(
        "the machine's clock goes 20 minutes wrong, and back", "the exchange's clock stays right"
    )
    for minutes in (20, -20, -15, 15):
        world.set_clock(world.now + MINUTE * minutes, exchange=False)
        world.reject()
        world.pause(20)
    world.set_clock(world.now + HOUR)
    world.reject()
    heal(world, row, since)
