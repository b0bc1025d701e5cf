"""Launching a native partition backfill on running services, and following it to its end.

It asks Dagster by `graphql`, reads the tables of coverage, and computes nothing itself. How
progress is drawn belongs in `cli.render`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Protocol

import psycopg
import tenacity

from trading_pipelines.candles import coverage
from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.windows import MINUTE, day_interval
from trading_pipelines.database.connection import DatabaseUrls, connect
from trading_pipelines.errors import OperatorError
from trading_pipelines.runtime import graphql
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.published.current import CURRENT_SIGNALS, SIGNALS_OVERVIEW

CANDLES = ("candles_1m", "candles_1h")
POLL_SECONDS = 1.0
# A web server that dies is started again within ten seconds.
NO_RESPONSE_SECONDS = 30
# A day of candles is eight pages: it counts as much as eight partitions that are computed.
PAGES_A_DAY = 8
MINUTES_A_DAY = 1440
SHOWN_ASSETS = 2
ENDED = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}

LAUNCH = """
mutation Launch($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}
"""
FOLLOW = """
query Follow($id: String!, $runs: RunsFilter!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {
      status
      error { message }
      assetBackfillData { assetBackfillStatuses {
        ... on AssetPartitionsStatusCounts {
          assetKey { path }
          numPartitionsTargeted numPartitionsInProgress
          numPartitionsMaterialized numPartitionsFailed
        }
        ... on UnpartitionedAssetStatus { assetKey { path } inProgress materialized failed }
      } }
    }
    ... on Error { message }
  }
  runsOrError(filter: $runs) { ... on Runs { results { runId rootRunId status } } }
}
"""


class BackfillError(OperatorError):
    """The backfill can't be launched or followed, or has failed as a whole."""


@dataclass(frozen=True)
class BackfillTarget:
    """What to backfill: every symbol on every UTC day, `first` to `last` inclusive."""

    symbols: tuple[str, ...]
    first: date
    last: date

    @property
    def days(self) -> list[date]:
        """The days, in order."""
        return [
            date.fromordinal(n) for n in range(self.first.toordinal(), self.last.toordinal() + 1)
        ]


@dataclass(frozen=True)
class BackfillProgress:
    """How far a backfill is; `done` and `total` in minutes of candles that are committed."""

    done: int
    total: int
    rows: int
    requests: int
    computed: int
    """Partitions of all that follows the candles, as Dagster has seen them; failed ones too."""
    to_compute: int
    doing: str
    """What is being done now, or what is waited for."""

    @property
    def share(self) -> float:
        """How much of the whole is done, from 0 to 1."""
        pages = PAGES_A_DAY / MINUTES_A_DAY
        done, total = self.done * pages + self.computed, self.total * pages + self.to_compute
        return done / total if total else 1.0


@dataclass(frozen=True)
class _AssetProgress:
    """How far one asset is, in partitions; an asset without has one."""

    asset: str
    total: int
    done: int
    in_progress: int

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> "_AssetProgress":
        """Return it from what Dagster says of the asset."""
        (asset,) = status["assetKey"]["path"]
        if "inProgress" in status:
            return cls(asset, 1, status["materialized"] or status["failed"], status["inProgress"])
        done = status["numPartitionsMaterialized"] + status["numPartitionsFailed"]
        return cls(asset, status["numPartitionsTargeted"], done, status["numPartitionsInProgress"])


@dataclass(frozen=True)
class BackfillOutcome:
    """How a backfill ended: all of its partitions, and those that failed with their reasons."""

    backfill_id: str
    partitions: list[CandleCoverage]
    failed: list[tuple[CandleCoverage, str]]
    failed_runs: list[str]
    """Their URLs."""
    succeeded: bool
    moments: Mapping[str, datetime]
    """When (UTC, to a second or two) the first request, the first and the last row were seen."""


class Screen(Protocol):
    """Shows a backfill to a person, as the module `cli.render` does."""

    def say(self, text: str) -> None:
        """Show one line."""

    def drawn_progress(self) -> AbstractContextManager[Callable[[BackfillProgress], None]]:
        """Yield a function that draws progress."""


def run_backfill(
    urls: DatabaseUrls,
    url: str,
    target: BackfillTarget,
    screen: Screen,
    source: str | None = None,
    *,
    with_signals: bool = False,
    again: bool = False,
) -> BackfillOutcome:
    """Launch the native backfill on the web server at `url` and show it to its end.

    Raises BackfillError.
    """
    backfill_id = launch(url, target, source, with_signals=with_signals, again=again)
    screen.say(
        f"backfill {backfill_id} of {len(target.symbols)} symbols x {len(target.days)} days: "
        f"{url}/runs/b/{backfill_id}"
    )
    with connect(urls.market) as connection, screen.drawn_progress() as show:
        return follow(connection, url, backfill_id, target, show)


def launch(
    url: str,
    target: BackfillTarget,
    source: str | None = None,
    *,
    with_signals: bool = False,
    again: bool = False,
) -> str:
    """Launch the native backfill of the market data assets; return its id. Raises BackfillError.

    `source` tags its runs, so that the UI says it when the market is not the real one. With the
    signals, the model is fitted on the symbols of the instance's settings, whatever the target's.
    Complete days are not asked for, but `again`.
    """
    ranges = [
        {"start": f"{target.first}|{symbol}", "end": f"{target.last}|{symbol}"}
        for symbol in target.symbols
    ]
    ranges_of: dict[str, Any] = dict.fromkeys(CANDLES, ranges)
    if with_signals:
        ranges_of |= {CURRENT_SIGNALS: None, SIGNALS_OVERVIEW: None}
        days = [{"start": f"{target.first}", "end": f"{target.last}"}]
        ranges_of |= {signal.asset: days if signal.pooled else ranges for signal in SIGNALS}
    tags = {"source": source or "", "again": "true" if again else ""}
    parameters = {
        "title": f"{len(target.symbols)} symbols, {target.first} to {target.last}",
        "tags": [{"key": key, "value": value} for key, value in tags.items() if value],
        "partitionsByAssets": [
            {"assetKey": {"path": [asset]}, "partitions": ranges and {"ranges": ranges}}
            for asset, ranges in ranges_of.items()
        ],
    }
    answer = _ask(graphql.ask, url, LAUNCH, {"parameters": parameters})["launchPartitionBackfill"]
    if "backfillId" not in answer:
        message = " ".join(str(answer.get("message", answer)).split())
        raise BackfillError(
            f"Dagster refused the backfill: {message} (a running instance knows the symbols and "
            "days of its own settings: add them there and start it again, or stop it and backfill "
            "alone)"
        )
    return str(answer["backfillId"])


def follow(
    connection: psycopg.Connection,
    url: str,
    backfill_id: str,
    target: BackfillTarget,
    show: Callable[[BackfillProgress], None],
) -> BackfillOutcome:
    """Wait for the end of the backfill, showing its progress. Raises BackfillError."""
    variables = {
        "id": backfill_id,
        "runs": {"tags": [{"key": "dagster/backfill", "value": backfill_id}]},
    }
    moments: dict[str, datetime] = {}
    while True:
        started = time.monotonic()
        answer = _ask(_ask_patiently, url, FOLLOW, variables)
        backfill = answer["partitionBackfillOrError"]
        if "status" not in backfill:
            raise BackfillError(f"the backfill {backfill_id} is gone: {backfill.get('message')}")
        runs = answer["runsOrError"]["results"]
        # A run that Dagster starts again records its partitions under the first attempt's id.
        run_ids = {run["rootRunId"] or run["runId"] for run in runs}
        partitions = [
            # The requests of others are none of this backfill's.
            day if day.run_id in run_ids else replace(day, requests=0, waits=0)
            for day in coverage.read(connection, target.symbols, target.days)
        ]
        data = backfill["assetBackfillData"] or {"assetBackfillStatuses": []}
        assets = [_AssetProgress.of(status) for status in data["assetBackfillStatuses"]]
        progress = _progress(partitions, run_ids, assets)
        for moment, has_come in {
            "first request": progress.requests,
            "first row": progress.rows,
            "last row": progress.rows and progress.done == progress.total,
        }.items():
            if has_come:
                moments.setdefault(moment, datetime.now(UTC))
        show(progress)
        if backfill["status"] in ENDED:
            if backfill["error"]:
                raise BackfillError(f"the backfill failed: {backfill['error']['message']}")
            # Asked first: a day that the schedule has refreshed since has another run's id.
            if backfill["status"] in {"COMPLETED", "COMPLETED_SUCCESS"}:
                return BackfillOutcome(
                    backfill_id,
                    partitions,
                    failed=[],
                    failed_runs=[],
                    succeeded=True,
                    moments=moments,
                )
            reasons = ((partition, _failure(partition, run_ids)) for partition in partitions)
            return BackfillOutcome(
                backfill_id,
                partitions,
                failed=[(partition, why) for partition, why in reasons if why is not None],
                failed_runs=[f"{url}/runs/{r['runId']}" for r in runs if r["status"] == "FAILURE"],
                succeeded=False,
                moments=moments,
            )
        # Two years of five symbols are 5 million candles to count: watching must not be the load.
        time.sleep(max(POLL_SECONDS, 5 * (time.monotonic() - started)))


def _failure(partition: CandleCoverage, run_ids: set[str]) -> str | None:
    if partition.error:
        return partition.error
    if partition.run_id not in run_ids and not partition.complete:
        return "not reached"
    return None if partition.hours_current else "its hours were not computed"


def _progress(
    partitions: Sequence[CandleCoverage], run_ids: set[str], assets: Sequence[_AssetProgress]
) -> BackfillProgress:
    now = datetime.now(UTC)
    reached = [partition for partition in partitions if partition.run_id in run_ids]
    fetched = [day for day in partitions if day.complete or day.run_id in run_ids]
    done = sum(_fetched_minutes(partition, now) for partition in fetched)
    total = sum(_minutes_until(partition.day, now) for partition in partitions)
    following = [asset for asset in assets if asset.asset != CANDLES[0]]
    if not run_ids:
        doing = "Dagster takes it up within seconds"
    elif done < total:
        doing = CANDLES[0] if done else "the first run starts"
    else:
        doing = _names([asset.asset for asset in following if asset.in_progress])
    return BackfillProgress(
        done=done,
        total=total,
        rows=sum(partition.stored for partition in reached),
        requests=sum(partition.requests for partition in partitions),
        computed=sum(asset.done for asset in following),
        to_compute=sum(asset.total for asset in following),
        doing=doing or "Dagster looks what comes next",
    )


def _names(assets: Sequence[str]) -> str:
    more = len(assets) - SHOWN_ASSETS
    return ", ".join(assets[:SHOWN_ASSETS]) + (f" and {more} more" if more > 0 else "")


def _fetched_minutes(partition: CandleCoverage, now: datetime) -> int:
    day = day_interval(partition.day)
    until = partition.confirmed_until if day.end <= now else partition.fetched_until
    return (until - day.start) // MINUTE


def _minutes_until(day: date, now: datetime) -> int:
    interval = day_interval(day)
    return max(0, (min(interval.end, now) - interval.start) // MINUTE)


_ask_patiently = tenacity.retry(
    retry=tenacity.retry_if_exception_type(graphql.NoResponseError),
    stop=tenacity.stop_after_delay(NO_RESPONSE_SECONDS),
    wait=tenacity.wait_fixed(POLL_SECONDS),
    reraise=True,
)(graphql.ask)


def _ask(
    ask: Callable[[str, str, dict[str, Any]], dict[str, Any]],
    url: str,
    query: str,
    variables: dict[str, Any],
) -> dict[str, Any]:
    try:
        return ask(url, query, variables)
    except graphql.NoResponseError as error:
        raise BackfillError(
            f"{error}; a backfill that was launched goes on whenever the services run"
        ) from error
    except graphql.GraphQLError as error:
        raise BackfillError(str(error)) from error


def write_backfill_settings(settings: StrategySettings, start_date: date, config: Path) -> None:
    """Write settings for one backfill: partitions from its first day on, no schedule beside it."""
    data = settings.data.model_copy(update={"start_date": start_date, "refresh": False})
    dump_strategy(settings.model_copy(update={"data": data}), config)
