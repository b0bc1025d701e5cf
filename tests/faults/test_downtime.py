"""Everything is down for a while: what the clock missed is asked of the data, and healed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.faults.conftest import START, Reference, Reliability, World, world_of
from trading_pipelines.replay import Recording


@pytest.fixture(scope="module")
def world(history: Path, recorded_market: Recording, reference: Reference) -> Iterator[World]:
    """One installation that lives through all of it, one after the other."""
    with world_of(history, recorded_market, reference) as world:
        world.up()
        world.set_clock(START)
        world.until(lambda: world.healed(START - timedelta(hours=2), START), "the first hour")
        yield world


def at(day: int, hour: int, minute: int, second: int = 0) -> datetime:
    return datetime(2025, 9, day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("scenario", "back", "within"),
    [
        ("down from 01:15 to 07:10: by 07:12 every hour has its label", at(16, 7, 10), 120),
        ("down from 23:50 to 00:20, over midnight UTC and the daily 00:05", at(17, 0, 20), 120),
    ],
)
@pytest.mark.timeout(600)
def test_what_was_missed_is_healed(
    world: World, reliability: Reliability, scenario: str, back: datetime, within: float
) -> None:
    world.down()
    gone = world.now
    print("down", gone)
    world.reject(gone + (back - gone) / 2, count=7)
    world.set_clock(back)
    world.up(awaited=False)
    row = reliability.row(scenario, f"all processes down for {back - gone}, the bot's rows go on")
    row.seconds = world.until(lambda: world.healed(gone, back), f"{world.missing(gone, back)}")
    world.account(row, gone, back)
    print(row)
    assert row.seconds < within
