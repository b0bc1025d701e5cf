"""What `status` says of real tables, and that it fits a screen."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.conftest import FIRST_DAY, LAST_DAY
from trading_pipelines.alerts import ledger
from trading_pipelines.candles import coverage
from trading_pipelines.candles.due import look_back
from trading_pipelines.candles.failed_checks import FailedCheck
from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.cli import render
from trading_pipelines.cli.main import app
from trading_pipelines.database.connection import connect
from trading_pipelines.monitoring.facts import Daemon, RunInFlight, Unknown
from trading_pipelines.monitoring.reconciliation import Reconciliation
from trading_pipelines.monitoring.settings_change import SettingsChange
from trading_pipelines.monitoring.status import (
    DuePartition,
    InstallationStatus,
    SymbolStatus,
    draw,
    lines_by_interval,
    read,
    services_apart,
)
from trading_pipelines.settings.strategy import DataSettings, StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals.catalogue import REGIME_LABELS
from trading_pipelines.signals.left_failed import LeftFailed
from trading_pipelines.signals.registry import compute

SETTINGS = StrategySettings(data=DataSettings(start_date=FIRST_DAY))
BTC, ETH, *OTHERS = SETTINGS.symbols
UPBIT = "https://api.upbit.com"
NOON = datetime(2025, 9, 22, 12, tzinfo=UTC)
"""Half a day after the recording has ended."""


def shown(
    status: InstallationStatus, flying: list[RunInFlight] | str, services: str = "not running"
) -> list[str]:
    """Return the lines of the screen, 80 columns wide."""
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        for part in draw(status, services, flying, NOON):
            console.print(part)
    return capture.get().splitlines()


@pytest.fixture
def filled(recorded_url: str) -> Iterator[psycopg.Connection]:
    """A connection to the recording."""
    with connect(recorded_url) as connection:
        yield connection


def test_a_symbol_is_complete_to_where_it_has_no_hole_and_its_hours_are_current(
    filled: psycopg.Connection,
) -> None:
    filled.execute(
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial', rows = 0, "
        "fetched_until = '2025-09-21 13:37Z' WHERE symbol = %s AND day = '2025-09-21'",
        [BTC],
    )
    filled.execute(
        "DELETE FROM trading_pipelines.candle_coverage WHERE symbol = %s AND day = '2025-09-10'",
        [ETH],
    )
    stale = "UPDATE trading_pipelines.candle_coverage SET changed_at = now() WHERE symbol = %s"
    filled.execute(f"{stale} AND interval = '1m' AND day = '2025-09-20'", [OTHERS[0]])
    compute(filled, REGIME_LABELS, [BTC], [LAST_DAY - DAY], SETTINGS, "run")
    btc, eth, xrp, *_ = read(filled, SETTINGS, UPBIT, NOON).symbols
    assert (btc.candles_until, btc.hours_until) == (
        datetime(2025, 9, 21, 13, 37, tzinfo=UTC),
        datetime(2025, 9, 21, 13, tzinfo=UTC),
    )
    assert btc.label_as_of == day_interval(LAST_DAY).start
    assert (btc.holes, eth.holes) == (623, 1440)
    assert eth.candles_until == eth.hours_until == datetime(2025, 9, 10, tzinfo=UTC)
    assert xrp.candles_until == day_interval(LAST_DAY).end
    assert xrp.hours_until == datetime(2025, 9, 20, tzinfo=UTC)
    assert eth.forecast_as_of is None


def test_a_candle_that_is_gone_ends_what_is_complete(filled: psycopg.Connection) -> None:
    filled.execute(
        "DELETE FROM market_data WHERE symbol = %s AND timestamp = '2025-09-05 11:59Z'", [ETH]
    )
    status = read(filled, SETTINGS, UPBIT, NOON)
    assert status.symbols[1].candles_until == datetime(2025, 9, 5, tzinfo=UTC)
    assert DuePartition("candles_1m", ETH, date(2025, 9, 5), "damaged") in status.due


def test_what_is_due_left_failed_and_of_the_alerts_is_read(filled: psycopg.Connection) -> None:
    for trouble, day in ((coverage.FailureKind.MARKET, 1), (coverage.FailureKind.AWAY, 2)):
        coverage.record_failure(
            filled, BTC, date(2025, 9, day), f"boom {day}", "run", trouble, SETTINGS.healing
        )
    for kind, problem in {"trade": "odd", "risk": None}.items():
        ledger.enter(
            filled, kind, kind, "1", "risk", {"timestamp": "x"}, occurred_at=NOON,
            problem=problem,
        )  # fmt: skip
    status = read(filled, SETTINGS, UPBIT, NOON)
    assert [(one.asset, one.symbol, one.days) for one in status.left_failed] == [
        ("candles_1m", BTC, [FIRST_DAY])
    ]
    assert (status.waiting, status.dead, status.delivered_at) == (1, 1, None)
    candles = [one for one in status.due if (one.asset, one.symbol) == ("candles_1m", BTC)]
    assert [one.day.day for one in candles] == [2], "nor the open day"
    assert candles[0].why.startswith("waiting: boom 2, again after ")
    assert candles[0].why.endswith(" KST")


def test_what_was_begun_is_named_however_old_and_not_as_for_a_backfill(
    filled: psycopg.Connection,
) -> None:
    data = SETTINGS.data.model_copy(update={"look_back_days": 5})
    short = SETTINGS.model_copy(update={"data": data})
    days = look_back(data.start_date, data.look_back_days, day_interval(FIRST_DAY + DAY * 5).end)
    coverage.look_after(filled, [BTC, ETH], data, days)
    of_day = "symbol = %s AND interval = %s AND day = '2025-09-03'"
    filled.execute(f"DELETE FROM trading_pipelines.candle_coverage WHERE {of_day}", [BTC, "1h"])
    filled.execute(
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial' "
        f"WHERE {of_day}", [ETH, "1m"],
    )  # fmt: skip
    signal_coverage.ask_for(filled, [REGIME_LABELS], [OTHERS[0]], [date(2025, 9, 3)], "run")
    due = read(filled, short, UPBIT, NOON).due
    begun = {(one.asset, one.symbol, one.why) for one in due if one.day == date(2025, 9, 3)}
    assert begun == {
        ("candles_1m", BTC, "hours"),
        ("candles_1m", ETH, "incomplete"),
        ("regime_labels", OTHERS[0], "missing"),
    }


def crowded() -> InstallationStatus:
    """Five symbols, more due than fits, and something of everything."""
    symbols = [BTC, ETH, *OTHERS]
    first = date(2025, 9, 1)
    return InstallationStatus(
        nothing_due(symbols).symbols,
        first,
        [DuePartition("regime_labels", s, first + 2 * n * DAY, "missing")
         for n in range(14) for s in symbols],
        [LeftFailed("candles_1m", BTC, [first, first + DAY], "HTTP 404", NOON)],
        [FailedCheck("candles_1m", "no_overlap", ETH, first, "2 candles", NOON)],
        [
            Reconciliation("candles_1m", NOON, NOON - DAY / 2, "candles_1m: 8 green; put right", 0),
            Reconciliation("candles_1h", NOON, NOON - 2 * DAY, "candles_1h: long ago", 0),
        ],
        waiting=3,
        dead=1,
        delivered_at=NOON,
    )  # fmt: skip


def nothing_due(symbols: list[str]) -> InstallationStatus:
    moment = NOON - timedelta(minutes=2)
    return InstallationStatus(
        [SymbolStatus(s, moment, 12_345, moment, moment, moment) for s in symbols],
        None, [], [], [], [], 0, 0, None,
    )  # fmt: skip


def test_a_crowded_screen_fits_80_columns_and_40_lines_and_says_how_much_is_left_out() -> None:
    day = date(2025, 9, 22)
    flying = [RunInFlight("update_regime_job", (BTC, OTHERS[-1]), (day,), "started", NOON)] * 2
    lines = shown(crowded(), flying, "http://127.0.0.1:3000")
    assert len(lines) <= 40, "\n".join(lines)
    assert max(map(len, lines)) <= 80
    said = " ".join(" ".join(lines).split())
    assert "services: http://127.0.0.1:3000" in said
    assert "now 2025-09-22 21:00 KST; all times in KST" in said
    assert "KRW-DOGE │ 09-22 20:58 │ 12,345 │ 09-22 20:58" in said
    assert "volatility model: of 2025-09-01 (UTC day)" in said
    assert "red check: candles_1m KRW-ETH 2025-09-01: no_overlap: 2 candles" in said
    assert "Dagster's events: agree with the tables as of 2025-09-22 21:00 KST" in said
    assert "Dagster's events: candles_1m: 8 green; put right (2025-09-22 09:00 KST)" in said
    assert "long ago" not in said
    assert (
        "in flight: update_regime_job KRW-BTC to KRW-DOGE 2025-09-22, started since "
        "2025-09-22 21:00 KST" in said
    )
    assert "due: regime_labels all symbols 2025-09-01: missing" in said
    assert said.count("due: ") == 11
    assert "due: and 4 more" in said
    assert (
        "left failed: candles_1m KRW-BTC 2025-09-01 ~ 2025-09-02: HTTP 404; again by: "
        "trading-pipelines backfill --symbols KRW-BTC --start 2025-09-01 --end 2025-09-02" in said
    )
    assert "alerts: 3 waiting, 1 dead, last delivered 2025-09-22 21:00 KST" in said


def test_a_quiet_screen_says_that_nothing_is_due_and_what_is_not_known() -> None:
    lines = shown(nothing_due([BTC]), "Dagster has never run")
    assert {"in flight: not known, Dagster has never run", "due: nothing",
            "left failed: nothing", "volatility model: none yet"} <= set(lines)  # fmt: skip


def test_days_in_a_row_and_symbols_with_the_same_reason_are_one_line() -> None:
    day = date(2025, 9, 1)
    partitions = [
        *(DuePartition("a", s, day + n * DAY, "missing") for s in (BTC, ETH) for n in (0, 1, 3)),
        DuePartition("a", BTC, day, "failed"),
        DuePartition("b", "", day, "missing"),
    ]
    assert lines_by_interval(partitions) == [
        "a KRW-BTC, KRW-ETH 2025-09-01 to 2025-09-02: missing",
        "a KRW-BTC, KRW-ETH 2025-09-04: missing",
        "a KRW-BTC 2025-09-01: failed",
        "b 2025-09-01: missing",
    ]


def test_the_command_shows_it_where_nothing_has_ever_run(
    market_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setattr(render.out, "width", 160)
    done = CliRunner().invoke(app, ["status"])
    assert done.exit_code == 0, done.exception
    assert "services: not running" in done.stdout
    assert "in flight: not known, Dagster has never run on this database" in done.stdout
    assert "due: candles_1m all symbols" in done.stdout


def test_services_that_are_served_apart_are_told_by_the_daemons_heartbeat() -> None:
    beats = [NOON - timedelta(seconds=90), NOON - timedelta(minutes=20), None]
    daemons = [Daemon(f"{n}", healthy=True, last_heartbeat=beat) for n, beat in enumerate(beats)]
    assert services_apart(daemons, NOON) == (
        "served apart (daemon healthy as of 2025-09-22 20:58 KST)"
    )
    # Dagster itself calls a daemon healthy for half an hour after it was stopped.
    assert services_apart(daemons[1:], NOON) == (
        "not running (the daemon's last heartbeat: 2025-09-22 20:40 KST)"
    )
    assert services_apart(daemons[2:], NOON) == "not running (no daemon has ever run)"
    assert services_apart(Unknown("see database"), NOON).endswith("not known: see database")


def test_a_changed_settings_file_is_said_with_what_comes_goes_and_costs(
    filled: psycopg.Connection,
) -> None:
    def lines(settings: StrategySettings) -> list[str]:
        status = read(filled, settings, UPBIT, NOON)
        text = shown(status, [])
        return [line for line in text if line.startswith("settings:")] if status.change else []

    week = DataSettings(start_date=LAST_DAY - DAY * 9, look_back_days=7)
    in_use = SETTINGS.model_copy(update={"symbols": [BTC, ETH], "data": week})
    assert lines(in_use) == [], "no tick has looked after anything"
    days = look_back(week.start_date, week.look_back_days, NOON)
    coverage.look_after(filled, in_use.symbols, week, days)
    assert lines(in_use) == []
    # Eight days of KRW-NEW, today with them; those of KRW-ETH are stored but for today's.
    changed = in_use.model_copy(update={"symbols": [ETH, "KRW-NEW"]})
    assert read(filled, changed, UPBIT, NOON).change == SettingsChange(
        coming=["KRW-NEW"],
        going=[BTC],
        values=[],
        partitions_in_use=22,
        partitions=22,
        looked_after=8,
        others=3,
        requests_per_second=10.0,
    )
    assert lines(changed)[1] == (
        "settings: partitions 22 -> 22; refreshed: 8 (58 requests, 1 min or more)"
    )
    assert f"KRW-NEW comes; {BTC} goes" in " ".join(shown(read(filled, changed, UPBIT, NOON), []))
    wider = DataSettings(start_date=date(2024, 1, 1), look_back_days=30)
    change = read(filled, in_use.model_copy(update={"data": wider}), UPBIT, NOON).change
    assert change is not None
    assert change.values == [
        f"data.start_date 2024-01-01 (in use: {week.start_date})",
        "data.look_back_days 30 (in use: 7)",
    ]
    # The recording has the days from FIRST_DAY on.
    before_the_recording = (FIRST_DAY - (NOON.date() - DAY * 30)).days
    assert change.looked_after == 2 * before_the_recording
    coverage.look_after(filled, changed.symbols, week, days)
    assert lines(changed) == [], "a tick has taken it up"
    off = changed.model_copy(update={"data": DataSettings(refresh=False)})
    assert lines(off) == []
