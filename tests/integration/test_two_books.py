"""Misuse of the UI on a running installation: afterwards colours, tables, `status`, `health` agree.

Each test does what a person does in the UI, by the UI's own GraphQL calls, and waits for the tick
that puts it right. What the sensor does with each difference is in tests/sensors/test_partitions.
"""

from collections.abc import Iterator
from datetime import date
from typing import Any

import psycopg
import pytest

from tests.conftest import FIRST_DAY
from tests.integration.conftest import Installation, await_that, running
from trading_pipelines.candles.windows import DAY
from trading_pipelines.runtime.graphql import ask
from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.server import ReplayExchange

SYMBOLS = ["KRW-BTC", "KRW-DOGE"]
DAYS = [FIRST_DAY + DAY * n for n in range(4)]
KEYS = {f"{day}|{symbol}" for day in DAYS for symbol in SYMBOLS}
CANDLES = ("candles_1m", "candles_1h")
AGREE = "Dagster's events: agree with the tables"

COLOURS = """
query ($asset: [String!]!) { assetNodeOrError(assetKey: {path: $asset}) { ... on AssetNode {
  partitionStats { numMaterialized numFailed numMaterializing }
  assetPartitionStatuses { ... on MultiPartitionStatuses { ranges {
    primaryDimStartKey primaryDimEndKey
    secondaryDim { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
  } } }
} } }
"""
WIPE = """
mutation ($ranges: [PartitionsByAssetSelector!]!) {
  wipeAssets(assetPartitionRanges: $ranges) { __typename } }
"""
REPORT = """
mutation ($params: ReportRunlessAssetEventsParams!) {
  reportRunlessAssetEvents(eventParams: $params) { __typename } }
"""
RUNS = """
query ($statuses: [RunStatus!]) { runsOrError(filter: {statuses: $statuses}) { ... on Runs {
  results { runId status } } } }
"""
DELETE = "mutation ($run: String!) { deletePipelineRun(runId: $run) { __typename } }"
AGAIN = """
mutation ($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
MATERIALIZE = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
FORCE_TERMINATE = """
mutation ($runs: [String!]!) { terminateRuns(runIds: $runs,
  terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename } }
"""
RELOAD = """
mutation { reloadWorkspace { __typename } }
"""
BACKFILL = """
query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
  status } } }
"""
STORED = """
SELECT day || '|' || symbol FROM trading_pipelines.candle_coverage
WHERE interval = %s AND status = 'complete' AND failures = 0
"""


@pytest.fixture(scope="module")
def up(exchange: ReplayExchange) -> Iterator[Installation]:
    """An installation that runs, with four days of two symbols."""
    with running(exchange) as installation:
        done = installation.backfill(DAYS[0], DAYS[-1], *SYMBOLS)
        assert done.returncode == 0, done.stdout + done.stderr
        yield installation


def tell(up: Installation, mutation: str, **variables: Any) -> dict[str, Any]:
    """Do what a click in the UI does; return its answer, which is no error."""
    (answer,) = ask(up.url, mutation, variables).values()
    assert "Error" not in answer["__typename"], answer
    return dict(answer)


def colours(up: Installation, asset: str) -> dict[str, str]:
    """Return the partitions that the UI shows as materialized or failed."""
    node = ask(up.url, COLOURS, {"asset": [asset]})["assetNodeOrError"]
    shown = {}
    for span in node["assetPartitionStatuses"]["ranges"]:
        first, last = (
            date.fromisoformat(span[end]) for end in ("primaryDimStartKey", "primaryDimEndKey")
        )
        for n in range((last - first).days + 1):
            for state in ("materialized", "failed"):
                for symbol in span["secondaryDim"][f"{state}Partitions"]:
                    shown[f"{first + DAY * n}|{symbol}"] = state
    return shown


def stored(up: Installation, interval: str) -> set[str]:
    with psycopg.connect(up.market_url) as connection:
        return {key for (key,) in connection.execute(STORED, [interval])}


def tell_one_story(up: Installation) -> bool:
    """Return whether the UI shows as green what the tables hold whole, and no run is left over."""
    unfinished = ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"]
    if ask(up.url, RUNS, {"statuses": unfinished})["runsOrError"]["results"]:
        return False
    for asset in CANDLES:
        shown = colours(up, asset)
        # A day that has failed and is not whole is red in both books.
        green = {key for key, state in shown.items() if state == "materialized"}
        if green != stored(up, asset[-2:]):
            return False
    return True


def await_one_story(up: Installation) -> None:
    await_that(lambda: tell_one_story(up), "the UI shows what the tables hold")
    await_that(lambda: AGREE in up.run("status").stdout, "status says that they agree")
    events = up.run("health", "--only", "events", "--only", "slots")
    assert events.returncode == 0, events.stdout


def test_a_wiped_asset_is_green_again(up: Installation) -> None:
    tell(up, WIPE, ranges=[{"assetKey": {"path": [asset]}} for asset in CANDLES])
    assert colours(up, "candles_1m") == {}
    await_one_story(up)
    assert stored(up, "1m") == KEYS
    said = " ".join(up.run("status").stdout.split())
    assert f"candles_1m: 8 ({DAYS[0]}|KRW-BTC to {DAYS[-1]}|KRW-DOGE) whole in the tables" in said


def test_what_a_deleted_run_has_made_stays_green(up: Installation) -> None:
    for run in ask(up.url, RUNS, {"statuses": ["SUCCESS"]})["runsOrError"]["results"]:
        tell(up, DELETE, run=run["runId"])
    await_one_story(up)
    assert set(colours(up, "candles_1m")) == KEYS


def test_a_report_by_hand_of_what_is_not_there_is_taken_back(up: Installation) -> None:
    false = f"{DAYS[-1] + DAY}|KRW-BTC"
    tell(
        up, REPORT,
        params={"eventType": "ASSET_MATERIALIZATION", "assetKey": {"path": ["candles_1m"]},
                "partitionKeys": [false]},
    )  # fmt: skip
    assert false in colours(up, "candles_1m")
    await_one_story(up)
    assert false not in colours(up, "candles_1m")


def materialize(up: Installation, first: str, last: str) -> str:
    """Materialize candles from one partition to another, as the UI's dialog does."""
    span = {"ranges": [{"start": first, "end": last}]}
    answer = tell(
        up, MATERIALIZE,
        params={"partitionsByAssets": [{"assetKey": {"path": [asset]}, "partitions": span}
                                       for asset in CANDLES], "tags": []},
    )  # fmt: skip
    return str(answer["backfillId"])


def at_work(up: Installation) -> list[str]:
    runs = ask(up.url, RUNS, {"statuses": ["STARTED"]})["runsOrError"]["results"]
    return [run["runId"] for run in runs]


def failed_run(up: Installation) -> str:
    ((run,)) = [ask(up.url, RUNS, {"statuses": ["FAILURE"]})["runsOrError"]["results"]]
    return str(run[0]["runId"]) if run else ""


def test_a_failed_range_is_executed_again_from_its_failure(
    up: Installation, exchange: ReplayExchange
) -> None:
    days = [DAYS[-1] + DAY * n for n in (2, 3)]
    bad = f"{days[1]}|KRW-DOGE"
    exchange.set_faults(
        [Fault.parse(f"html_200:market=KRW-DOGE,between={days[1]}T00:00/{days[1] + DAY}T00:00")]
    )
    materialize(up, f"{days[0]}|KRW-DOGE", bad)
    await_that(lambda: colours(up, "candles_1m").get(bad) == "failed", "one of its days fails")
    assert colours(up, "candles_1h")[f"{days[0]}|KRW-DOGE"] == "materialized", "the other goes on"
    exchange.set_faults([])
    tell(up, AGAIN, params={"parentRunId": failed_run(up), "strategy": "FROM_FAILURE"})
    await_that(lambda: colours(up, "candles_1h").get(bad) == "materialized", "it is done again")
    await_one_story(up)


def test_a_run_that_is_terminated_by_force_leaves_nothing_in_flight(
    up: Installation, exchange: ReplayExchange
) -> None:
    exchange.latency = 0.5
    days = [DAYS[-1] + DAY * n for n in (4, 5)]
    materialize(up, f"{days[0]}|KRW-BTC", f"{days[1]}|KRW-BTC")
    await_that(lambda: bool(at_work(up)), "its run is at work")
    tell(up, FORCE_TERMINATE, runs=at_work(up))
    exchange.latency = 0.0
    await_one_story(up)


def backfill_status(up: Installation, backfill: str) -> str:
    return str(ask(up.url, BACKFILL, {"id": backfill})["partitionBackfillOrError"]["status"])


def test_a_symbol_that_goes_and_comes_back_during_a_backfill_leaves_nothing_behind(
    up: Installation, exchange: ReplayExchange
) -> None:
    exchange.latency = 0.3
    days = [DAYS[-1] + DAY * n for n in (6, 7)]
    backfill = materialize(up, f"{days[0]}|KRW-BTC", f"{days[1]}|KRW-DOGE")
    await_that(lambda: bool(at_work(up)), "a run of it is at work")
    config = up.config.read_text()
    assert "KRW-DOGE" in config
    up.config.write_text(config.replace("- KRW-DOGE\n", ""))
    tell(up, RELOAD)
    up.config.write_text(config)
    tell(up, RELOAD)
    exchange.latency = 0.0
    ended = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "CANCELED", "FAILED"}
    await_that(lambda: backfill_status(up, backfill) in ended, "the backfill ends")
    await_one_story(up)
    again = materialize(up, f"{days[0]}|KRW-BTC", f"{days[1]}|KRW-DOGE")
    await_that(lambda: backfill_status(up, again) == "COMPLETED_SUCCESS", "it is done")
    await_one_story(up)
    assert stored(up, "1h") >= {f"{day}|{symbol}" for day in days for symbol in SYMBOLS}
