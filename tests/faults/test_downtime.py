"""Everything is down for a while: what the clock missed is asked of the data, and healed."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import SYMBOLS
from tests.faults.conftest import START, Reference, Reliability, World, world_of
from trading_pipelines.candles.windows import MINUTE, day_interval
from trading_pipelines.simulators.upbit.market import Recording

pytestmark = pytest.mark.timeout(900)


@contextmanager
def running(history: Path, market: Recording, reference: Reference) -> Iterator[World]:
    """Yield an installation that runs and is up to date."""
    with world_of(history, market, reference) as world:
        world.up()
        world.set_clock(START)
        world.until(lambda: world.healed(START - timedelta(hours=2), START), "the first hour")
        yield world


@pytest.fixture(scope="module")
def world(history: Path, recorded_market: Recording, reference: Reference) -> Iterator[World]:
    """One installation that lives through it, one downtime after the other."""
    with running(history, recorded_market, reference) as world:
        yield world


def at(day: int, hour: int, minute: int, second: int = 0) -> datetime:
    return datetime(2025, 9, day, hour, minute, second, tzinfo=UTC)


def hours(span: timedelta) -> str:
    return f"{span / timedelta(hours=1):.1f} h"


@pytest.mark.parametrize(
    ("scenario", "back"),
    [
        ("down from 01:15 to 07:10: by 07:12 every hour has its label", at(16, 7, 10)),
        ("down from 07:15 to 00:20, over midnight UTC and the daily 00:05", at(17, 0, 20)),
        ("down for 24 hours, five symbols, at Upbit's limit", at(18, 0, 25)),
    ],
)
def test_what_was_missed_is_healed_by_itself(
    world: World, reliability: Reliability, scenario: str, back: datetime
) -> None:
    gone = take_down(world, back)
    row = reliability.row(scenario, f"all processes down for {hours(back - gone)}, the bot goes on")
    started = time.monotonic()
    world.up(awaited=False)
    world.until(lambda: world.newest() >= back - MINUTE, "the newest candle is there")
    newest = time.monotonic() - started
    world.until(lambda: "regime_labels" not in world.missing(gone, back), "every hour its label")
    labelled = time.monotonic() - started
    world.until(lambda: world.healed(gone, back), "all is healed")
    row.seconds = time.monotonic() - started
    row.done += f"; the newest candle after {newest:.0f} s, all labels after {labelled:.0f} s"
    world.account(row, gone, back)


def take_down(world: World, back: datetime) -> datetime:
    """Stop everything until `back`, the bot refusing trades meanwhile; return when it stopped."""
    world.down()
    gone = world.now
    world.reject(gone + (back - gone) / 2, count=7)
    world.set_clock(back)
    return gone


def test_longer_down_than_the_look_back_is_said_with_the_command_that_heals_it(
    history: Path, recorded_market: Recording, reference: Reference, reliability: Reliability
) -> None:
    row = reliability.row("down for three days, with a look-back of one", "")
    with running(history, recorded_market, reference) as world:
        gone = take_down(world, back := at(19, 12, 0))
        world.configure_world(look_back_days=1)
        started = time.monotonic()
        world.up()
        seen = day_interval(date(2025, 9, 18)).start + MINUTE
        # Its labels and forecasts look back at days that are not there yet.
        world.until(lambda: "candles" not in world.missing(seen, back), "what is looked at")
        begun = day_interval(date(2025, 9, 16)).end
        labelled = {"candles", "regime_labels"}
        world.until(
            lambda: not labelled & world.missing(gone, begun).keys(), "the day that was open then"
        )
        told = world.run("health", "--json")
        assert told.returncode == 1, told.stdout
        (holes,) = [one for one in json.loads(told.stdout)["checks"] if one["name"] == "holes"]
        assert holes["found"].count("2025-09-17, older than the look-back") == 5
        assert "trading-pipelines backfill --with-signals" in holes["advice"]
        assert "older than the look-back" in world.run("status").stdout
        days = ("--start", "2025-09-17", "--end", "2025-09-17", "--with-signals")
        healed = world.run("backfill", "--symbols", ",".join(SYMBOLS), *days)
        assert healed.returncode == 0, healed.stdout + healed.stderr
        world.until(lambda: world.healed(gone, back), "all is healed")
        row.seconds = time.monotonic() - started
        row.done = f"all processes down for {hours(back - gone)}; then the backfill of `health`"
        world.account(row, gone, back)
        assert "older than the look-back" not in world.run("status").stdout
