"""Launching a native partition backfill on running services, and following it to its end.

A client of Dagster's GraphQL API and a reader of coverage; it computes nothing itself. How progress
is drawn belongs in `cli`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Protocol

import psycopg
import requests
import tenacity

from trading_pipelines.candles import coverage
from trading_pipelines.candles.windows import MINUTE, day_interval
from trading_pipelines.database.connection import DatabaseUrls, connect
from trading_pipelines.errors import OperatorError
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.published.current import CURRENT_SIGNALS, SIGNALS_OVERVIEW

CANDLES = ("candles_1m", "candles_1h")
POLL_SECONDS = 1.0
# A web server that dies is started again within ten seconds.
PATIENCE_SECONDS = 30
SIGNALS_FOLLOW = "labels, models and forecasts follow"
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
    ... on PartitionBackfill { status error { message } }
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
    """How far a backfill is, by what is committed; `done` and `total` in minutes of market time."""

    done: int
    total: int
    rows: int
    requests: int


@dataclass(frozen=True)
class BackfillOutcome:
    """How a backfill ended; the days that failed, each with its reason; failed runs as URLs."""

    backfill_id: str
    known: list[coverage.CandleCoverage]
    failed: list[tuple[coverage.CandleCoverage, str]]
    failed_runs: list[str]
    succeeded: bool


class Screen(Protocol):
    """What shows a backfill to a person: the module `cli.render`."""

    def say(self, text: str) -> None:
        """Show one line."""

    def drawn_progress(
        self, after: str
    ) -> AbstractContextManager[Callable[[BackfillProgress], None]]:
        """Yield what draws progress; `after` is what is waited for when the candles are there."""


def run_backfill(
    urls: DatabaseUrls,
    url: str,
    target: BackfillTarget,
    screen: Screen,
    source: str | None = None,
    *,
    with_signals: bool = False,
) -> BackfillOutcome:
    """Launch the native backfill on the web server at `url` and show it to its end.

    Raises BackfillError.
    """
    backfill_id = launch(url, target, source, with_signals=with_signals)
    screen.say(
        f"backfill {backfill_id} of {len(target.symbols)} symbols x {len(target.days)} days: "
        f"{url}/runs/b/{backfill_id}"
    )
    after = SIGNALS_FOLLOW if with_signals else ""
    with connect(urls.market) as connection, screen.drawn_progress(after) as show:
        return follow(connection, url, backfill_id, target, show)


def launch(
    url: str, target: BackfillTarget, source: str | None = None, *, with_signals: bool = False
) -> str:
    """Launch the native backfill of the market data assets; return its id. Raises BackfillError.

    `source` tags its runs, so that the UI says it when the market is not the real one. With the
    signals, the model is fitted on the symbols of the instance's settings, whatever the target's.
    """
    ranges = [
        {"start": f"{target.first}|{symbol}", "end": f"{target.last}|{symbol}"}
        for symbol in target.symbols
    ]
    ranges_of: dict[str, Any] = dict.fromkeys(CANDLES, ranges)
    if with_signals:
        ranges_of |= {CURRENT_SIGNALS: None, SIGNALS_OVERVIEW: None}
        days = [{"start": f"{target.first}", "end": f"{target.last}"}]
        ranges_of |= {one.asset: days if one.pooled else ranges for one in SIGNALS}
    parameters = {
        "title": f"{len(target.symbols)} symbols, {target.first} to {target.last}",
        "tags": [{"key": "source", "value": source}] if source else [],
        "partitionsByAssets": [
            {"assetKey": {"path": [asset]}, "partitions": ranges and {"ranges": ranges}}
            for asset, ranges in ranges_of.items()
        ],
    }
    answer = _ask(url, LAUNCH, {"parameters": parameters})["launchPartitionBackfill"]
    if "backfillId" not in answer:
        said = " ".join(str(answer.get("message", answer)).split())
        raise BackfillError(
            f"Dagster refused the backfill: {said} (a running instance knows the symbols and days "
            "of its own settings: add them there and start it again, or stop it and backfill alone)"
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
    while True:
        since = time.monotonic()
        answer = _patiently(url, FOLLOW, variables)
        backfill = answer["partitionBackfillOrError"]
        if "status" not in backfill:
            raise BackfillError(f"the backfill {backfill_id} is gone: {backfill.get('message')}")
        runs = answer["runsOrError"]["results"]
        passes = {run["rootRunId"] or run["runId"] for run in runs}
        known = coverage.read(connection, target.symbols, target.days)
        show(_progress(known, passes))
        if backfill["status"] in ENDED:
            if backfill["error"]:
                raise BackfillError(f"the backfill failed: {backfill['error']['message']}")
            # Asked first: a day that the schedule has refreshed since bears another run's id.
            if backfill["status"] in {"COMPLETED", "COMPLETED_SUCCESS"}:
                return BackfillOutcome(
                    backfill_id, known, failed=[], failed_runs=[], succeeded=True
                )
            reasons = ((day, _failure(day, passes)) for day in known)
            return BackfillOutcome(
                backfill_id,
                known,
                failed=[(day, why) for day, why in reasons if why is not None],
                failed_runs=[f"{url}/runs/{r['runId']}" for r in runs if r["status"] == "FAILURE"],
                succeeded=False,
            )
        # Two years of five symbols are 5 million candles to count: watching must not be the load.
        time.sleep(max(POLL_SECONDS, 5 * (time.monotonic() - since)))


def _failure(day: coverage.CandleCoverage, passes: set[str]) -> str | None:
    if day.error:
        return day.error
    if day.run_id not in passes:
        return "not reached"
    return None if day.hours_current else "its hours were not computed"


def _progress(known: Sequence[coverage.CandleCoverage], passes: set[str]) -> BackfillProgress:
    now = datetime.now(UTC)
    mine = [day for day in known if day.run_id in passes]
    return BackfillProgress(
        done=sum(
            (
                (day.confirmed_until if day_interval(day.day).end <= now else day.fetched_until)
                - day_interval(day.day).start
            )
            // MINUTE
            for day in mine
        ),
        total=sum(
            max(0, (min(day_interval(day.day).end, now) - day_interval(day.day).start) // MINUTE)
            for day in known
        ),
        rows=sum(day.stored for day in mine),
        requests=sum(day.requests for day in mine),
    )


class _NoAnswerError(BackfillError):
    pass


def _ask(url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = requests.post(
            f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        body = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise _NoAnswerError(
            f"Dagster's web server at {url} does not answer ({error}); a backfill that was "
            "launched goes on whenever the services run"
        ) from error
    if body.get("errors"):
        raise BackfillError(
            f"Dagster's web server refused the query: {body['errors'][0]['message']}"
        )
    data: dict[str, Any] = body["data"]
    return data


_patiently = tenacity.retry(
    retry=tenacity.retry_if_exception_type(_NoAnswerError),
    stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
    wait=tenacity.wait_fixed(POLL_SECONDS),
    reraise=True,
)(_ask)


def write_backfill_settings(settings: StrategySettings, start_date: date, config: Path) -> None:
    """Write settings for one backfill: partitions from its first day on, no schedule beside it."""
    data = settings.data.model_copy(update={"start_date": start_date, "refresh": False})
    dump_strategy(settings.model_copy(update={"data": data}), config)
