"""What a repair would change, told before it: equal to what it then changes."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median

import psycopg
import pytest
from typer.testing import CliRunner

from tests.candles.conftest import (
    FAST,
    Bench,
    RecordedRows,
    Rows,
    differences,
    insert,
    stored_rows,
    versions,
)
from tests.conftest import SYMBOLS
from trading_pipelines.candles.compare import compare
from trading_pipelines.candles.differences import VALUES, Change, Comparison
from trading_pipelines.candles.windows import HOUR, Interval, day_interval
from trading_pipelines.cli.main import app
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

DAYS = [date(2025, 9, 3), date(2025, 9, 4)]
STRETCH = Interval(day_interval(DAYS[0]).start, day_interval(DAYS[-1]).end)
TWO = ["KRW-BTC", "KRW-DOGE"]


def spoiled(rows: Rows) -> Rows:
    """Return rows as a bot leaves them: one in 50 frozen, one in 70 gone, one of its own."""
    left: Rows = {}
    for n, ((symbol, start), (open_, high, low, close, volume)) in enumerate(rows.items()):
        if n % 70 == 3:
            continue
        is_frozen = n % 50 == 7
        left[symbol, start] = (
            (open_, open_, open_, open_, round(volume / (n % 9 + 2), 8))
            if is_frozen
            else (open_, high, low, close, volume)
        )
    missing = datetime(2025, 9, 4, 12, 0, 30, tzinfo=UTC)
    return left | {("KRW-DOGE", missing): (Decimal(1),) * 5}


def plainly(symbol: str, here: Rows, there: Rows) -> dict[str, object]:
    """Compute the report of a symbol without the code that is tested."""
    here = {key: row for key, row in here.items() if key[0] == symbol}
    there = {key: row for key, row in there.items() if key[0] == symbol}
    both = here.keys() & there.keys()
    shares = {
        name: [
            float(abs(here[key][n] - there[key][n]) / max(here[key][n], there[key][n]))
            for key in both
            if here[key][n] != there[key][n]
        ]
        for n, name in enumerate(VALUES)
    }
    return {
        "symbol": symbol,
        "compared": len(there),
        "added": len(there.keys() - here.keys()),
        "changed": sum(here[key] != there[key] for key in both),
        "kept": len(here.keys() - there.keys()),
        "changes": {
            name: {"values": len(found), "median": median(found), "largest": max(found)}
            if found
            else None
            for name, found in shares.items()
        },
    }


def set_strategy(monkeypatch: pytest.MonkeyPatch, folder: Path, settings: StrategySettings) -> None:
    dump_strategy(settings, folder / "strategy.yaml")
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(folder / "strategy.yaml"))


def test_the_figures_are_those_of_a_plain_count_and_of_the_repair_that_follows(
    bench: Bench,
    tmp_path: Path,
    recorded_rows: RecordedRows,
    monkeypatch: pytest.MonkeyPatch,
    market_url: str,
) -> None:
    whole = recorded_rows(TWO, DAYS)
    before = spoiled(whole)
    insert(bench.connection, before)
    as_it_was = versions(bench.connection)

    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("UPBIT_BASE_URL", bench.replay.url)
    set_strategy(monkeypatch, tmp_path, StrategySettings(symbols=SYMBOLS, exchange=FAST))
    days = ["--start", str(DAYS[0]), "--end", str(DAYS[-1])]
    asked = ["db", "adopt", "--compare", "--symbols", ",".join(TWO), *days]
    told = CliRunner().invoke(app, [*asked, "--json"])
    assert told.exit_code == 0, told.output
    reports = json.loads(told.stdout)["compared"]
    assert reports == [plainly(symbol, before, whole) for symbol in TWO]
    assert all(one["changed"] > 50 and one["added"] > 35 for one in reports)
    assert versions(bench.connection) == as_it_was, "nothing is written before the backfill"

    assert bench.download(TWO, DAYS) == []
    known = bench.coverage(TWO, DAYS)
    for one in reports:
        of_symbol = [day for day in known if day.symbol == one["symbol"]]
        assert sum(day.repaired for day in of_symbol) == one["changed"]
    repaired = stored_rows(bench.connection)
    own = {key: repaired.pop(key) for key in before.keys() - whole.keys()}
    assert differences(repaired, whole) == []
    assert own, "what the exchange does not have stays"
    for one in reports:
        again = compare(bench.connection, bench.client(), one["symbol"], STRETCH)
        assert again == Comparison(one["symbol"], one["compared"], 0, 0, one["kept"],
                                   dict.fromkeys(VALUES))  # fmt: skip
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0
    assert "to repair" not in told.stdout


def test_minutes_that_have_not_closed_are_left_out(
    connection: psycopg.Connection, recorded_market: Recording
) -> None:
    with ReplayExchange(recorded_market, rate=None, clock=STRETCH.start + HOUR) as replay:
        found = compare(connection, Bench(connection, replay).client(), "KRW-ETH", STRETCH)
    assert found.added == found.compared
    assert 59 <= found.compared <= 60


def test_a_volume_that_is_no_number_is_changed_as_a_whole(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    rows = recorded_rows(["KRW-BTC"], DAYS)
    key = next(iter(rows))
    insert(bench.connection, rows | {key: (*rows[key][:4], Decimal("NaN"))})
    found = compare(bench.connection, bench.client(), "KRW-BTC", STRETCH)
    assert (found.changed, found.added, found.changes["close"]) == (1, 0, None)
    assert found.changes["volume"] == Change(values=1, median=1, largest=1)


def test_what_one_symbol_can_not_be_asked_is_its_own_and_the_command_fails(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, market_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("UPBIT_BASE_URL", bench.replay.url)
    settings = StrategySettings(symbols=["KRW-GONE", "KRW-BTC"], exchange=FAST)
    set_strategy(monkeypatch, tmp_path, settings)
    told = CliRunner().invoke(
        app,
        ["db", "adopt", "--compare", "--start", "2025-09-03", "--end", "2025-09-03", "--json"],
    )
    assert told.exit_code == 1
    said = json.loads(told.stdout)
    assert [one["symbol"] for one in said["compared"]] == ["KRW-BTC"]
    assert "404" in said["failed"]["KRW-GONE"]


def test_before_the_upgrade_the_request_slots_are_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, market_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setenv("UPBIT_BASE_URL", bench.replay.url)
    with psycopg.connect(market_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE trading_pipelines.request_slots RENAME TO away")
        try:
            told = CliRunner().invoke(
                app,
                ["db", "adopt", "--compare", "--start", "2025-09-03", "--end", "2025-09-03"],
            )
        finally:
            connection.execute("ALTER TABLE trading_pipelines.away RENAME TO request_slots")
    assert told.exit_code == 1
    assert "`trading-pipelines db upgrade` comes first" in " ".join(told.stderr.split())
    assert bench.requests() == 0
