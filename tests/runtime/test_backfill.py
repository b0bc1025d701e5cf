"""A backfill as its screen is told of it: real tables, and Dagster's answers by hand."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import FIRST_DAY
from trading_pipelines.candles.windows import day_interval
from trading_pipelines.cli import render
from trading_pipelines.database.connection import connect
from trading_pipelines.runtime import backfill
from trading_pipelines.runtime.backfill import BackfillProgress, BackfillTarget, follow

SECOND_DAY = FIRST_DAY + timedelta(days=1)
TARGET = BackfillTarget(("KRW-BTC",), FIRST_DAY, SECOND_DAY)
COMPLETE = """
INSERT INTO trading_pipelines.candle_coverage
    (symbol, interval, day, status, fetched_until, confirmed_until, rows, run_id, requests)
VALUES ('KRW-BTC', '1m', %(day)s, 'complete', %(end)s, %(end)s, 1, 'root', 8)
"""
CANDLE = """
INSERT INTO market_data
    (symbol, interval, timestamp, open_price, high_price, low_price, close_price, volume)
VALUES ('KRW-BTC', '1m', %(day)s::timestamp AT TIME ZONE 'UTC', 1, 1, 1, 1, 1)
"""


@pytest.fixture
def connection(market_url: str) -> Iterator[psycopg.Connection]:
    with connect(market_url) as connection:
        yield connection


def counted(asset: str, done: int, in_progress: int, failed: int = 0) -> dict[str, Any]:
    return {
        "assetKey": {"path": [asset]},
        "numPartitionsTargeted": 2,
        "numPartitionsInProgress": in_progress,
        "numPartitionsMaterialized": done,
        "numPartitionsFailed": failed,
    }


def answer(
    status: str, runs: int, *assets: dict[str, Any], overview: bool = False
) -> dict[str, Any]:
    shown = {
        "assetKey": {"path": ["signals_overview"]},
        "inProgress": False,
        "materialized": overview,
        "failed": False,
    }
    return {
        "partitionBackfillOrError": {
            "status": status,
            "error": None,
            "assetBackfillData": {"assetBackfillStatuses": [*assets, shown]},
        },
        "runsOrError": {
            "results": [{"runId": "root", "rootRunId": None, "status": "STARTED"}] * runs
        },
    }


def test_the_progress_counts_what_follows_the_candles_and_names_what_is_done_now(
    connection: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def at(status: str, runs: int, labels: str, model: str, **last: bool) -> dict[str, Any]:
        assets = {"regime_labels": labels, "volatility_model": model}
        counts = {name: map(int, numbers.split()) for name, numbers in assets.items()}
        return answer(status, runs, *(counted(name, *n) for name, n in counts.items()), **last)

    # Of each asset: done, in progress, failed.
    answers = iter(
        [
            at("REQUESTED", 0, "0 0", "0 0"),
            at("REQUESTED", 1, "0 2", "0 0"),
            at("REQUESTED", 1, "0 2", "0 0"),
            at("REQUESTED", 1, "0 2", "0 0"),
            at("REQUESTED", 1, "1 0 1", "0 0"),
            at("REQUESTED", 1, "1 0 1", "1 1"),
            at("COMPLETED", 1, "1 0 1", "2 0", overview=True),
        ]
    )
    monkeypatch.setattr(backfill, "_ask_patiently", lambda *_: next(answers))
    monkeypatch.setattr(backfill, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(render, "PLAIN_PROGRESS_SECONDS", 0.0)
    seen: list[BackfillProgress] = []
    with render.drawn_progress() as draw:

        def show(progress: BackfillProgress) -> None:
            seen.append(progress)
            draw(progress)
            if len(seen) in {2, 3}:
                day = (FIRST_DAY, SECOND_DAY)[len(seen) - 2]
                for statement in (COMPLETE, CANDLE):
                    connection.execute(statement, {"day": day, "end": day_interval(day).end})

        outcome = follow(connection, "", "id", TARGET, show)
    assert [progress.doing for progress in seen] == [
        "Dagster takes it up within seconds",
        "the first run starts",
        "candles_1m",
        "regime_labels",
        "Dagster looks what comes next",
        "volatility_model",
        "Dagster looks what comes next",
    ]
    shares = [progress.share for progress in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert seen[3].done == seen[3].total
    assert shares[3:] == [16 / 21, 18 / 21, 19 / 21, 1.0], "the candles are there, five are not"
    assert list(outcome.moments) == ["first request", "first row", "last row"]
    lines = capsys.readouterr().out.splitlines()
    assert "0 of 5 computed" in lines[3]
    assert "76.2%" in lines[3]
    assert "s left, regime_labels" in lines[3]
    assert "5 of 5 computed  100.0%" in lines[-1]
