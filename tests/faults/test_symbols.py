"""The settings change, the exchange lists and delists, a code location does not load."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.conftest import SYMBOLS
from tests.faults.conftest import START, Reference, Reliability, World, world_of
from trading_pipelines.candles.windows import HOUR, MINUTE, day_interval
from trading_pipelines.simulators.upbit.market import Recording

pytestmark = pytest.mark.timeout(900)

ADDED = "KRW-DOGE"
OLD = [symbol for symbol in SYMBOLS if symbol != ADDED]


@pytest.fixture(scope="module")
def world(history: Path, recorded_market: Recording, reference: Reference) -> Iterator[World]:
    """An installation that knows nothing of one of the symbols."""
    with world_of(history, recorded_market, reference) as world:
        world.run("db", "url")
        with psycopg.connect(world.market_url) as connection:
            for table, column in TABLES.items():
                connection.execute(f"DELETE FROM {table} WHERE {column} = %s", [ADDED])
        world.configure_world(OLD)
        world.up()
        world.set_clock(START)
        world.until(lambda: world.newest(OLD) >= START - 2 * MINUTE, "the newest candles")
        yield world


TABLES = {
    "market_data": "symbol",
    "regime_history": "coin_symbol",
    **{
        f"trading_pipelines.{name}": "symbol"
        for name in (
            "candle_coverage",
            "signal_coverage",
            "candles_1h",
            "regime_labels",
            "realized_volatility",
            "volatility_forecast",
            "garch_baseline",
            "volatility_score",
        )
    },
}


def versions(world: World) -> list[tuple[object, ...]]:
    """Return when the closed days of the old symbols were last written."""
    with psycopg.connect(world.market_url) as connection:
        return connection.execute(
            "SELECT symbol, interval, day, changed_at, run_id FROM trading_pipelines."
            "candle_coverage WHERE symbol = ANY(%s) AND day < %s ORDER BY 1, 2, 3",
            [OLD, START.date()],
        ).fetchall()


def test_a_symbol_that_is_added_gets_its_history_and_the_others_are_not_touched(
    world: World, reliability: Reliability
) -> None:
    before = versions(world)
    row = reliability.row("a symbol is added", "in the settings; `down`, `up`")
    world.down()
    world.configure_world(SYMBOLS)
    world.up(awaited=False)
    since, until = START - 15 * 24 * HOUR, world.now
    row.seconds = world.until(
        lambda: (
            not {"candles", "regime_labels", "realized_volatility"}
            & world.missing(since, until).keys()
        ),
        "its history",
        420,
    )
    assert versions(world) == before


def count(world: World, symbol: str) -> int:
    with psycopg.connect(world.market_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM market_data WHERE symbol = %s", [symbol]
        ).fetchone()
    return row[0] if row else -1


def test_what_is_removed_keeps_its_data_and_comes_back_without_a_hole(
    world: World, reliability: Reliability
) -> None:
    gone, held = world.now, count(world, ADDED)
    row = reliability.row("a symbol is removed, and added again two hours later", "`down`, `up`")
    for symbols in (OLD, SYMBOLS):
        world.down()
        world.configure_world(symbols)
        world.set_clock(world.now + 2 * HOUR)
        world.up()
        if symbols == OLD:
            world.until(lambda: world.newest(OLD) >= world.now - 10 * MINUTE, "the others go on")
            assert count(world, ADDED) == held
    until = world.now
    row.seconds = world.until(lambda: world.healed(gone, until), "no hole", 420)
    world.account(row, gone, until)


def bad_checks(world: World) -> dict[str, str]:
    """Return what `health` finds wrong, by the check's name."""
    checks = json.loads(world.run("health", "--json").stdout)["checks"]
    return {one["name"]: one["found"] for one in checks if not one["good"]}


def test_a_delisted_symbol_is_told_keeps_its_data_and_leaves_the_others_alone(
    world: World, recorded_market: Recording, reliability: Reliability
) -> None:
    row = reliability.row(
        "a symbol is delisted, and listed again the next day", "the exchange answers 404 for it"
    )
    gone, held = world.now, count(world, ADDED)
    known = {name: rows for name, rows in recorded_market.by_symbol.items() if name != ADDED}
    world.exchange.market = replace(recorded_market, symbols=tuple(known), by_symbol=known)
    # Into the next day: an open day's tries are never spent.
    world.set_clock(day_interval(world.now.date()).end + 7 * MINUTE)
    world.until(lambda: world.newest(OLD) >= world.now - 10 * MINUTE, "the others go on")
    left = f"left failed candles_1m {ADDED}"
    world.until(lambda: left in bad_checks(world).get("failed_partitions", ""), "it is told")
    assert count(world, ADDED) == held
    world.until(lambda: left_failed_alerts(world) > 0, "an alert")
    world.exchange.market = recorded_market
    days = ("--start", str(gone.date()), "--end", str(world.now.date()))
    asked = world.run("backfill", "--symbols", ADDED, *days)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    until = world.now
    row.seconds = world.until(lambda: world.healed(gone, until), "listed again, and asked for")
    world.account(row, gone, until)
    assert "failed_partitions" not in bad_checks(world)
    assert left_failed_alerts(world) == 1


def left_failed_alerts(world: World) -> int:
    told = [str(message.payload) for message in world.inbox.messages]
    return sum("재시도를 모두 소진" in one and ADDED in one for one in told)


def test_a_code_location_that_does_not_load_is_told_and_heals_when_it_does(
    world: World, reliability: Reliability
) -> None:
    row = reliability.row(
        "the code location does not load for an hour", "a wrong key in the settings, and a kill"
    )
    gone = world.now
    good = world.config.read_text()
    world.config.write_text(good + "symbolz: []\n")
    os.killpg(world.children["code-server"], signal.SIGKILL)
    world.reject()
    world.until(lambda: "daemon" not in world.children, "nothing is launched")
    world.set_clock(world.now + HOUR)
    world.config.write_text(good)
    row.seconds = world.until(lambda: world.healed(gone, gone + HOUR), "healed")
    world.account(row, gone, gone + HOUR)


def test_a_second_instance_on_one_home_is_refused(world: World) -> None:
    second = world.run("up", "--port", "0")
    assert second.returncode == 1
    assert f"the services of {world.home} are running already" in second.stderr
    assert "trading-pipelines down" in second.stderr
