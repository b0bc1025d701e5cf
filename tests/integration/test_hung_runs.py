"""Runs that hang in a step, on the real instance: an exchange that never answers holds them."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg
import pytest
import yaml

from tests.integration.conftest import Installation, await_that, installed
from trading_pipelines.database.connection import SCHEMA
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import (
    DataSettings,
    ExchangeSettings,
    LiveSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.upbit import GeneratedMarket, ReplayExchange

BTC = "KRW-BTC"
FOR_EVER = 3600.0
# Which of the two is a race of the run's own process with Dagster's daemon.
ENDED = {"FAILURE", "CANCELED"}
# Seconds; that of the shipped settings is hours.
LIMIT_BY_HAND = 25
COMPLETE = """
SELECT count(*) FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND status = 'complete' AND day = %s
"""
FETCHED = """
SELECT count(*) FROM trading_pipelines.candle_coverage WHERE interval = '1m' AND day = %s
"""


@pytest.fixture(scope="module")
def silent() -> Iterator[ReplayExchange]:
    """Today's exchange."""
    with ReplayExchange(GeneratedMarket([BTC]), rate=None) as exchange:
        yield exchange


@pytest.fixture(scope="module")
def up(silent: ReplayExchange) -> Iterator[Installation]:
    """An installation whose schedules run, and which waits for an answer as long as it takes."""
    with installed() as installation:
        today = datetime.now(UTC).date()
        dump_strategy(
            StrategySettings(
                symbols=[BTC],
                data=DataSettings(start_date=today - timedelta(days=9), look_back_days=1),
                # Its reader would bring the open day, and no run would hang.
                live=LiveSettings(enabled=False),
                exchange=ExchangeSettings(requests_per_second=1000.0, timeout_seconds=FOR_EVER),
            ),
            installation.config,
        )
        overrides = installation.home / "overrides.yaml"
        limits = {"poll_interval_seconds": 2, "max_runtime_seconds": LIMIT_BY_HAND}
        overrides.write_text(yaml.safe_dump({"run_monitoring": limits}), encoding="utf-8")
        installation.variables |= {
            "UPBIT_BASE_URL": silent.url,
            "DAGSTER_OVERRIDES": f"{overrides}",
        }
        silent.latency = FOR_EVER
        process = installation.start("up", "--port", "0")
        await_that(lambda: bool(installation.url), "up says where it runs")
        yield installation
        assert process.poll() is None, "it still runs"


@pytest.fixture(scope="module")
def instance(up: Installation) -> Iterator[dg.DagsterInstance]:
    """Its Dagster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_POSTGRES_URL", storage(up))
        with dg.DagsterInstance.from_config(f"{up.home}/dagster") as found:
            yield found


def storage(up: Installation) -> str:
    url = EmbeddedServer(up.home).url(f"{SCHEMA}_dagster")
    return url.replace("postgresql:", "postgresql+psycopg2:")


def runs(instance: dg.DagsterInstance, tag: str, value: str) -> list[dg.DagsterRun]:
    """Return the runs with the tag, the oldest first."""
    return list(instance.get_runs(dg.RunsFilter(tags={tag: value})))[::-1]


def downloads(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    return runs(instance, "dagster/schedule_name", "refresh_market_data")


def count(url: str, query: str, *arguments: object) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(query, arguments).fetchone()
    assert row is not None
    return int(row[0])


def statuses(instance: dg.DagsterInstance, *asked: dg.DagsterRun) -> set[str]:
    ids = [run.run_id for run in asked]
    return {run.status.value for run in instance.get_runs(dg.RunsFilter(run_ids=ids))}


def ticks_in_flight(instance: dg.DagsterInstance) -> int:
    """Return how many ticks found that all that is due is in flight."""
    (schedule,) = [
        state
        for state in instance.all_instigator_state()
        if state.instigator_name == "refresh_market_data"
    ]
    ticks = instance.get_ticks(schedule.instigator_origin_id, schedule.selector_id)
    return sum("2 due, 2 of them in flight" in (tick.skip_reason or "") for tick in ticks)


def test_scheduled_runs_that_hang_are_ended_and_what_they_held_is_asked_for_again(
    up: Installation, instance: dg.DagsterInstance, silent: ReplayExchange
) -> None:
    today = datetime.now(UTC).date()
    yesterday = today - timedelta(days=1)
    await_that(lambda: silent.stats().requests == 2, "both runs wait for an answer")
    first, second = downloads(instance)
    hung_since = time.monotonic()
    await_that(
        lambda: ticks_in_flight(instance) > 0 and time.monotonic() - hung_since > LIMIT_BY_HAND + 5,
        "a tick asks for nothing, and the limit of what is launched by hand is over",
    )
    assert statuses(instance, first, second) == {"STARTED"}, "it is not theirs"

    silent.latency = 0.0
    # So that Dagster does not start them again: that is left to the schedule.
    over = {"dagster/max_runtime": f"{LIMIT_BY_HAND}", "dagster/max_retries": "0"}
    for run in (first, second):
        instance.add_run_tags(run.run_id, over)
    await_that(lambda: statuses(instance, first, second) <= ENDED, "both have ended")
    await_that(lambda: count(up.market_url, COMPLETE, yesterday) == 1, "yesterday is whole")
    await_that(lambda: count(up.market_url, FETCHED, today) == 1, "today was asked for")
    *_, asked_again = [run for run in downloads(instance) if f"{yesterday}" in partitions(run)]
    assert f"{yesterday}" in partitions(second)
    assert asked_again.run_id != second.run_id
    assert asked_again.parent_run_id is None, "by the schedule"


def partitions(run: dg.DagsterRun) -> str:
    return run.tags["dagster/asset_partition_range_start"]
