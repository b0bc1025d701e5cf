"""A healthy installation, left alone: `health` has nothing to say, and nothing is lost."""

import os
import time
from pathlib import Path

import pytest

from tests.faults.conftest import START, Reference, Reliability, World, world_of
from trading_pipelines.candles.windows import HOUR
from trading_pipelines.simulators.upbit.market import Recording

MINUTES = int(os.environ.get("FAULTS_MINUTES", "3"))


def is_healthy(world: World) -> bool:
    return world.run("health").returncode == 0


@pytest.mark.timeout(900 + 60 * MINUTES)
def test_health_is_quiet_for_as_long_as_all_is_well(
    history: Path, recorded_market: Recording, reference: Reference, reliability: Reliability
) -> None:
    with world_of(history, recorded_market, reference) as world:
        world.up()
        world.set_clock(START)
        world.until(lambda: is_healthy(world), "it is healthy a while after its start")
        end, looks = time.monotonic() + 60 * MINUTES, 0
        while time.monotonic() < end:
            world.reject()
            looked = world.run("health")
            assert looked.returncode == 0, f"{world.now}: {looked.stdout}"
            looks += 1
        until = world.now
        row = reliability.row(
            f"nothing happens for {MINUTES} minutes", f"`health` asked {looks} times: quiet"
        )
        row.seconds = world.until(lambda: world.healed(START - HOUR, until), "all is there", 420)
        world.account(row, START - HOUR, until)
