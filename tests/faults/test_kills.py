"""Its processes are killed at random points of what they do, and nothing is lost."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import psycopg
import pytest

from tests.conftest import SYMBOLS
from tests.faults.conftest import HISTORY, START, Reference, Reliability, World, world_of
from trading_pipelines.candles.windows import HOUR, MINUTE, day_interval, floor_hour
from trading_pipelines.runtime.backfill import BackfillError, BackfillTarget, launch
from trading_pipelines.simulators.upbit.market import Recording

SEED, KILLS = 20261125, int(os.environ.get("FAULTS_KILLS", "50"))
BACKFILL, TICKS = "a backfill", "nothing but ticks and deliveries"
# What is to be at work when the kill comes. A run is there for a second or two: it is looked for
# often, for a minute, and the kill comes while it may still be there.
HOURLY = ["update_regime_job", "update_volatility_job"]
OFTEN = [BACKFILL, "refresh_market_data_job", *HOURLY, TICKS]
MODEL = "retrain_volatility_job"
POINTS = [*OFTEN, *OFTEN, MODEL]
IN_FLIGHT = """
SELECT coalesce((SELECT %s FROM run_tags WHERE run_tags.run_id = runs.run_id
    AND key = 'dagster/backfill'), pipeline_name) FROM runs WHERE status = 'STARTED'
"""


def in_flight(world: World) -> set[str]:
    """Return what is at work, by the name of its job."""
    with psycopg.connect(world.dagster_url) as connection:
        return {name for (name,) in connection.execute(IN_FLIGHT, [BACKFILL]).fetchall()}


def is_at_work(world: World, what: str) -> bool:
    return what in in_flight(world)


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
    if "daemon" in world.children:
        kill(world.children["daemon"])


def kill_run(world: World) -> None:
    for pid in workers(world)[:1]:
        kill(pid)


def kill_code_server(world: World) -> None:
    kill(world.children["code-server"])


def kill_code_server_with_its_runs(world: World) -> None:
    with suppress(ProcessLookupError):
        os.killpg(world.children["code-server"], signal.SIGKILL)


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
    "code server with its runs": kill_code_server_with_its_runs,
    "Postgres": kill_postgres,
    "everything": kill_everything,
}


def told(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counted.most_common())


@pytest.mark.timeout(3600)
def test_whatever_is_killed_at_whatever_point_nothing_is_lost(
    history: Path, recorded_market: Recording, reference: Reference, reliability: Reliability
) -> None:
    row = reliability.row(f"{KILLS} times SIGKILL at random points, in five days of the clock", "")
    killed: Counter[str] = Counter()
    points: Counter[str] = Counter()
    bag: list[str] = []
    with world_of(history, recorded_market, reference) as world:
        world.chance.seed(SEED)
        world.up()
        world.set_clock(START)
        for wanted in islice(cycle(POINTS), KILLS):
            world.until(world.is_up, "it is up again")
            later = world.now + MINUTE * world.chance.randint(20, 40)
            if wanted in HOURLY:
                later = floor_hour(world.now) + HOUR + 2 * MINUTE
            if wanted == MODEL:
                later = day_interval(later.date()).end + 6 * MINUTE
            world.set_clock(later)
            world.until(world.reject, "the bot has written")
            if wanted == BACKFILL:
                first = world.chance.choice(HISTORY[:-3])
                target = BackfillTarget(tuple(SYMBOLS[:2]), first, first + timedelta(days=2))
                with suppress(BackfillError):
                    launch(world.url, target, with_signals=True)
            if wanted != TICKS:
                world.comes(partial(is_at_work, world, wanted), 60, every=0.1)
            world.pause(world.chance.uniform(0, 1))
            at_work: set[str] = set()
            with suppress(psycopg.Error):
                at_work = in_flight(world)
            points.update(at_work or {TICKS})
            bag = bag or world.chance.sample(list(VICTIMS), len(VICTIMS))
            what = bag.pop()
            if what == "run" and not workers(world):
                bag.insert(0, what)
                what = bag.pop()
            VICTIMS[what](world)
            killed[what] += 1
        end = world.now
        row.seconds = world.until(lambda: world.healed(START - 2 * HOUR, end), "healed", 600)
        row.done = f"killed: {told(killed)}; at work at that moment: {told(points)}"
        world.account(row, START - 2 * HOUR, end)
