"""Its processes are killed at random points of what they do, and nothing is lost."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tests.conftest import SYMBOLS
from tests.faults.conftest import HISTORY, START, Reference, Reliability, World, world_of
from trading_pipelines import backfill
from trading_pipelines.candles.windows import HOUR, MINUTE
from trading_pipelines.replay import Recording

SEED, KILLS = 20261125, int(os.environ.get("FAULTS_KILLS", "50"))
IN_FLIGHT = """
SELECT coalesce((SELECT value FROM run_tags WHERE run_tags.run_id = runs.run_id
    AND key = 'dagster/backfill'), pipeline_name) FROM runs WHERE status = 'STARTED'
"""


def in_flight(world: World) -> set[str]:
    """Return what kinds of runs are at work, by the name of their job."""
    with psycopg.connect(world.dagster_url) as connection:
        names = {name for (name,) in connection.execute(IN_FLIGHT).fetchall()}
    return {name if name.endswith("_job") else "backfill" for name in names}


def workers(world: World) -> list[int]:
    """Return the processes of runs: children of the code server's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"spawn_main" in (process / "cmdline").read_bytes():
                pid = int(process.name)
                found += [pid] if os.getpgid(pid) == world.children["code-server"] else []
    return found


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_daemon(world: World) -> None:
    kill(world.children["daemon"])


def kill_run(world: World) -> None:
    for pid in workers(world)[:1]:
        kill(pid)


def kill_code_server(world: World) -> None:
    kill(world.children["code-server"])


def kill_postgres(world: World) -> None:
    kill(int((world.home / "postgres/data/postmaster.pid").read_text().split()[0]))


def kill_everything(world: World) -> None:
    kill(world.process.pid)
    world.process.wait()
    for pid in world.children.values():
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    with suppress(FileNotFoundError):
        kill_postgres(world)
    world.up(awaited=False)


VICTIMS: dict[str, Callable[[World], None]] = {
    "daemon": kill_daemon,
    "run": kill_run,
    "code server": kill_code_server,
    "Postgres": kill_postgres,
    "everything": kill_everything,
}


@pytest.mark.timeout(3600)
def test_whatever_is_killed_at_whatever_point_nothing_is_lost(
    history: Path, recorded_market: Recording, reference: Reference, reliability: Reliability
) -> None:
    row = reliability.row(f"{KILLS} times SIGKILL at random points, the clock an hour on each", "")
    killed: Counter[str] = Counter()
    points: Counter[str] = Counter()
    bag: list[str] = []
    with world_of(history, recorded_market, reference) as world:
        world.chance.seed(SEED)
        world.up()
        world.set_clock(START)
        for number in range(KILLS):
            world.until(world.is_up, "it is up again")
            world.set_clock(world.now + MINUTE * world.chance.randint(30, 60))
            world.until(lambda: world.reject() is None, "the bot has written")
            if number % 10 == 5:
                first = world.chance.choice(HISTORY[:-3])
                with suppress(backfill.BackfillError):
                    target = backfill.Target(tuple(SYMBOLS[:2]), first, first + timedelta(days=2))
                    backfill.launch(world.url, target, with_signals=True)
            world.pause(world.chance.uniform(0.5, 15))
            with suppress(psycopg.Error):
                points.update(in_flight(world) or {"nothing but ticks and deliveries"})
            bag = bag or world.chance.sample(list(VICTIMS), len(VICTIMS))
            what = bag.pop()
            if what == "run" and not workers(world):
                bag.insert(0, what)
                what = bag.pop()
            VICTIMS[what](world)
            killed[what] += 1
            print(number, what, world.now, dict(points), flush=True)
        end = world.now
        row.seconds = world.until(lambda: world.healed(START - 2 * HOUR, end), "healed", 600)
        row.done = f"killed: {dict(killed)}; at work at that moment: {dict(points)}"
        world.account(row, START - 2 * HOUR, end)
