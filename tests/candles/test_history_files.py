"""The download from history files of the replay exchange into the real Postgres."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import psycopg
import pytest

from tests.candles.conftest import (
    FAST,
    HEALING,
    Bench,
    RecordedRows,
    differences,
    insert,
    stored_rows,
    versions,
)
from tests.candles.test_download import at, days, part, spoiled, windows
from tests.conftest import RECORDED_DAYS, SYMBOLS
from trading_pipelines.candles import history_files, store
from trading_pipelines.candles.download import FailedDay, download
from trading_pipelines.candles.history_files import FileNote, HistoryFiles
from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.settings.environment import LISTING, HistoryFileUrls
from trading_pipelines.simulators.upbit.faults import FILE_KINDS, Fault
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

BTC, ETH, XRP, SOL, DOGE = SYMBOLS
REASONS = {
    "file_bomb": "unpacks to more than",
    "file_cut": "no zip that can be read",
    "file_doubled_row": "doubled or out of order",
    "file_half_minute": "does not start on the minute",
    "file_impossible_row": "contradict each other",
    "file_no_number": "other signs than numbers",
    "file_no_rows": "no rows of the day",
    "file_other_columns": "no column close",
    "file_other_day": "a row of '2025-0|no rows of the day",
    "file_other_market": "of market KRW-",
    "file_out_of_order": "doubled or out of order",
    "file_path": "a path in the archive",
    "file_short_row": "a row that can't be a candle",
    "file_swapped_rows": "where the day before ended at|not the exchange's",
    "file_two_members": "it holds 2 files",
    "file_404": "HTTP 404",
    "file_500": "HTTP 500",
    "file_html": "its checksum is",
    "file_no_checksum": "HTTP 404",
    "file_wrong_checksum": "its checksum is another",
    "file_unlisted": "no file is listed",
    "file_endless": "an answer without end",
    "file_drip": "no answer: ReadTimeout",
    "listing_500": "the list of files: HTTP 500",
    "listing_html": "the list of files: it can't be read",
    "listing_object": "the list of files: it can't be read",
    "listing_endless": "the list of files: an answer without end",
    # Only the exchange can tell these from a day as it was.
    "file_lacks_rows": "its candles are not the exchange's",
    "file_replaced": "its candles are not the exchange's",
}


def reader(
    bench: Bench, sample: float = 0.0, say: Callable[[str], None] = print, timeout: float = 10.0
) -> HistoryFiles:
    urls = HistoryFileUrls(bench.replay.url, f"{bench.replay.url}{LISTING}")
    return HistoryFiles(urls, FAST.model_copy(update={"timeout_seconds": timeout}), sample, say)


def fetch(
    bench: Bench,
    symbols: Sequence[str],
    wanted: Sequence[date],
    run_id: str = "run",
    *,
    sample: float = 0.0,
    between_pages: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
    timeout: float = 10.0,
) -> list[FailedDay]:
    return download(
        bench.connection,
        bench.client(),
        symbols,
        wanted,
        run_id,
        HEALING,
        between_pages=between_pages,
        files=reader(bench, sample, say, timeout),
    )


def notes(bench: Bench, symbol: str, wanted: Sequence[date]) -> list[FileNote]:
    found = history_files.read(bench.connection, [symbol], wanted)
    return sorted(found, key=lambda note: note.day)


def coverage_figures(bench: Bench, symbols: Sequence[str], wanted: Sequence[date]) -> set[object]:
    return {
        (
            d.symbol,
            d.day,
            d.status,
            d.rows,
            d.quiet,
            d.fetched_until,
            d.confirmed_until,
            d.set_aside,
        )
        for d in bench.coverage(symbols, wanted)
    }


def test_the_recording_arrives_from_files_row_by_row_without_a_request_for_candles(
    bench: Bench, recorded_rows: RecordedRows, recording: Path
) -> None:
    assert fetch(bench, SYMBOLS, RECORDED_DAYS) == []
    assert bench.requests() == 0
    by_files = coverage_figures(bench, SYMBOLS, RECORDED_DAYS)
    rows = recorded_rows(SYMBOLS, RECORDED_DAYS)
    assert differences(stored_rows(bench.connection), rows) == []
    assert {day.source for day in bench.coverage([BTC], RECORDED_DAYS)} == {
        f"KRW-BTC_candle-1m_202509.zip (recording {recording.name})"
    }
    assert bench.replay.stats().files < 20, "the month's file is asked for once"

    bench.connection.execute("TRUNCATE public.market_data, trading_pipelines.candle_coverage")
    assert bench.download(SYMBOLS, RECORDED_DAYS) == []
    assert coverage_figures(bench, SYMBOLS, RECORDED_DAYS) == by_files


def test_a_few_days_come_from_their_own_files_and_their_names_are_kept(bench: Bench) -> None:
    assert fetch(bench, [BTC], days(2, 4)) == []
    assert bench.requests() == 0
    kept = notes(bench, BTC, days(1, 5))
    assert [(note.day, note.name, note.not_used) for note in kept] == [
        (day, f"KRW-BTC_candle-1m_{day:%Y%m%d}.zip", None) for day in days(2, 4)
    ]


ROW_FAULTS = {
    *("file_doubled_row", "file_half_minute", "file_impossible_row", "file_lacks_rows"),
    *("file_no_number", "file_replaced", "file_short_row"),
}
"""Kinds that hit the row in the middle of a file."""


@pytest.mark.parametrize("first", [8, 2], ids=["days' files", "a month's file"])
@pytest.mark.parametrize("kind", FILE_KINDS)
def test_through_each_fault_of_the_files_the_rows_are_the_recorded_ones(
    bench: Bench, recorded_rows: RecordedRows, kind: str, first: int
) -> None:
    bench.replay.set_faults([Fault(kind, market=DOGE)])
    # What only the exchange can tell is found by asking for each day.
    sample = 1.0 if kind in {"file_lacks_rows", "file_replaced"} else 1e-9
    wanted = days(first, 11)
    timeout = 1.0 if kind == "file_drip" else 10.0
    assert fetch(bench, [DOGE, XRP], wanted, sample=sample, timeout=timeout) == []
    assert differences(stored_rows(bench.connection), recorded_rows([DOGE, XRP], wanted)) == []
    assert {day.status for day in bench.coverage([DOGE, XRP], wanted)} == {"complete"}
    assert {note.not_used for note in notes(bench, XRP, wanted)} == {None}

    hit = {note.day: note.not_used for note in notes(bench, DOGE, wanted) if note.not_used}
    by_exchange = {
        day.day for day in bench.coverage([DOGE], wanted) if day.source == bench.replay.market.label
    }
    assert hit.keys() == by_exchange
    # Of the month's file one row is at fault, or the first and second, which nobody asks for.
    in_month = {date(2025, 9, 11)} if kind in ROW_FAULTS else set()
    in_month = set() if kind == "file_out_of_order" else in_month or set(wanted)
    assert by_exchange == (in_month if first == 2 else set(wanted))
    expected = (*REASONS[kind].split("|"), "not asked for, as the files before it gave no answer")
    assert all(any(words in reason for words in expected) for reason in hit.values()), hit


def test_every_fault_is_known_here() -> None:
    assert REASONS.keys() == set(FILE_KINDS)


def test_a_bomb_is_read_no_further_than_a_file_can_be_long(bench: Bench) -> None:
    bench.replay.set_faults([Fault("file_bomb")])
    files = reader(bench)
    fetch(bench, [DOGE], days(1, 1))  # imports, connections, the bomb itself
    tracemalloc.start()
    try:
        ((_, day),) = files._ahead(DOGE, days(1, 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "unpacks to more than" in (day.file.not_used or "")
    assert peak < 4 << 20


# ---- storing ----


def test_where_a_row_comes_between_the_look_and_the_copy_the_day_is_staged(
    bench: Bench, recorded_rows: RecordedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = recorded_rows([DOGE], days(1, 2))
    insert(bench.connection, spoiled(part(rows, at(1, 6), at(1, 7))))
    monkeypatch.setattr(store, "IS_FRESH", "SELECT true")
    assert fetch(bench, [DOGE], days(1, 2)) == []
    assert differences(stored_rows(bench.connection), rows) == []
    repaired = len(part(rows, at(1, 6), at(1, 7)))
    assert [day.repaired for day in bench.coverage([DOGE], days(1, 2))] == [repaired, 0]


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (
            "ALTER TABLE public.market_data ALTER COLUMN volume TYPE numeric(20, 2)",
            "ALTER TABLE public.market_data ALTER COLUMN volume TYPE numeric(20, 8)",
        ),
        (
            """CREATE FUNCTION half() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.volume = NEW.volume / 2; RETURN NEW; END';
            CREATE TRIGGER half BEFORE INSERT ON public.market_data
            FOR EACH ROW EXECUTE FUNCTION half()""",
            "DROP FUNCTION half CASCADE",
        ),
    ],
    ids=["another type", "a trigger"],
)
def test_a_table_that_does_not_keep_what_is_copied_fails_the_day_and_says_which_candle(
    bench: Bench, change: str, undo: str
) -> None:
    bench.connection.execute(change)
    try:
        (failed,) = fetch(bench, [DOGE], days(1, 1))
    finally:
        bench.connection.execute(undo)
    assert "does not keep the candle of KRW-DOGE at 2025-09-01 00:0" in failed.error
    assert stored_rows(bench.connection) == {}


# ---- the sample ----


def test_a_sample_that_is_equal_comes_from_the_file_and_says_so(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    assert fetch(bench, [BTC], days(1, 3), sample=1.0) == []
    assert bench.requests() == 3 * windows(1440)
    for note in notes(bench, BTC, days(1, 3)):
        assert note.comparison
        counts = [note.comparison[name] for name in ("compared", "added", "changed", "kept")]
        assert counts == [len(recorded_rows([BTC], [note.day])), 0, 0, 0]
        assert not note.differs
    known = bench.coverage([BTC], days(1, 3))
    assert all((day.source or "").startswith("KRW-BTC_candle") for day in known)
    assert [day.requests for day in known] == [windows(1440)] * 3


def test_where_a_sample_differs_the_exchange_wins_and_it_is_told_by_how_much(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_faults([Fault("file_replaced")])
    assert fetch(bench, [DOGE], days(1, 2), sample=1.0) == []
    assert differences(stored_rows(bench.connection), recorded_rows([DOGE], days(1, 2))) == []
    for note in notes(bench, DOGE, days(1, 2)):
        assert note.differs
        assert note.comparison
        assert note.comparison["changed"] == 1
        assert note.comparison["changes"]["volume"]["values"] == 1
        assert note.comparison["changes"]["close"] is None
        counts = "0 are not in it and 1 differ, 0 are in it alone"
        compared = note.comparison["compared"]
        assert note.difference == f"of the exchange's {compared} candles {counts}"


def test_the_sample_is_the_same_in_every_run_and_has_the_share_of_days_that_is_set(
    bench: Bench,
) -> None:
    wanted = [date(2020, 1, 1) + DAY * n for n in range(2000)]
    drawn = []
    for _ in range(2):
        files = reader(bench, 0.1)
        files._is_sample(BTC, date(2019, 1, 1))
        drawn.append([day for day in wanted if files._is_sample(BTC, day)])
    assert drawn[0] == drawn[1]
    assert 150 < len(drawn[0]) < 250
    assert not any(reader(bench, 0.0)._is_sample(BTC, day) for day in wanted)


def test_the_first_file_of_a_symbol_is_always_in_the_sample(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_faults([Fault("file_swapped_rows", market=BTC)])
    assert fetch(bench, [BTC], days(1, 3), sample=1e-9) == []
    assert differences(stored_rows(bench.connection), recorded_rows([BTC], days(1, 3))) == []
    first, *others = (note.not_used or "" for note in notes(bench, BTC, days(1, 3)))
    assert "its candles are not the exchange's" in first
    assert all("where the day before ended at" in reason for reason in others)


def test_a_sample_that_the_exchange_does_not_answer_leaves_the_file_s_candles(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_faults([Fault("500_html")])
    assert fetch(bench, [BTC], days(1, 2), sample=1.0) == []
    assert differences(stored_rows(bench.connection), recorded_rows([BTC], days(1, 2))) == []
    for note in notes(bench, BTC, days(1, 2)):
        assert note.comparison
        assert "HTTP 500" in note.comparison["failed"]


# ---- again, half-way, switched on and off ----


def test_a_file_that_was_replaced_is_noticed_when_its_day_is_asked_for_again(bench: Bench) -> None:
    fetch(bench, [BTC], days(1, 2), "first")
    fetch(bench, [BTC], days(1, 2), "second")
    assert [note.replaced_at for note in notes(bench, BTC, days(1, 2))] == [None, None]
    assert {day.repaired for day in bench.coverage([BTC], days(1, 2))} == {0}

    bench.replay.set_faults([Fault("file_replaced", between=(at(2), at(3)))])
    fetch(bench, [BTC], days(1, 2), "third")
    same, replaced = notes(bench, BTC, days(1, 2))
    assert same.replaced_at is None
    assert replaced.replaced_at is not None
    assert [day.repaired for day in bench.coverage([BTC], days(1, 2))] == [0, 1]


def test_asking_again_for_days_of_files_writes_no_row(bench: Bench) -> None:
    fetch(bench, [BTC, DOGE], days(1, 3), "first")
    before = versions(bench.connection)
    fetch(bench, [BTC, DOGE], days(1, 3), "second")
    assert versions(bench.connection) == before


def test_candles_that_neither_source_has_are_moved_away_and_spoiled_ones_repaired(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    rows = recorded_rows([DOGE], days(3, 4))
    quiet = next(
        key
        for minute in range(1440)
        if (key := (DOGE, at(3) + timedelta(minutes=minute))) not in rows
    )
    insert(bench.connection, spoiled(part(rows, at(3, 6), at(3, 12))) | {quiet: (Decimal(1),) * 5})
    assert fetch(bench, [DOGE], days(3, 4)) == []
    assert differences(stored_rows(bench.connection), rows) == []
    moved = bench.connection.execute(
        "SELECT timestamp FROM trading_pipelines.unconfirmed_candles"
    ).fetchall()
    assert moved == [(quiet[1],)]


@pytest.mark.parametrize("by_files", [True, False])
def test_before_the_first_trade_of_a_day_nothing_stays_that_the_exchange_has_not(
    connection: psycopg.Connection, recorded_market: Recording, *, by_files: bool
) -> None:
    candles = recorded_market.by_symbol[DOGE]
    late = {DOGE: candles.rows(candles.minute % 1440 > 4)}
    with ReplayExchange(replace(recorded_market, by_symbol=late), rate=None) as replay:
        bench = Bench(connection, replay)
        insert(connection, {(DOGE, at(2, 0, minute)): (Decimal(1),) * 5 for minute in (0, 2)})
        ask = fetch if by_files else Bench.download
        assert ask(bench, [DOGE], days(2, 3)) == []
        assert min(key[1] for key in stored_rows(connection)) == at(2, 0, 5)
        assert [day.status for day in bench.coverage([DOGE], days(2, 3))] == ["complete"] * 2


@pytest.mark.parametrize("minutes", [0, 200, 1440, 1640, 2880])
def test_switched_on_and_off_in_the_middle_the_rows_are_the_same(
    bench: Bench, recorded_rows: RecordedRows, minutes: int
) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    reached = at(1) + timedelta(minutes=minutes)

    def until_reached() -> None:
        (last,) = bench.connection.execute(
            "SELECT max(fetched_until) FROM trading_pipelines.candle_coverage"
        ).fetchone() or (None,)
        if last is not None and last >= reached:
            raise Stop

    wanted = days(1, 4)
    with pytest.raises(Stop):
        bench.download([SOL], wanted, between_pages=until_reached)
    by_exchange = bench.requests()
    reached = at(3)
    with pytest.raises(Stop):
        fetch(bench, [SOL], wanted, between_pages=until_reached)
    # The rest of a day that was begun comes from where it began.
    assert bench.requests() - by_exchange < windows(1440)
    assert bench.download([SOL], wanted) == []
    assert differences(stored_rows(bench.connection), recorded_rows([SOL], wanted)) == []
    assert {day.status for day in bench.coverage([SOL], wanted)} == {"complete"}


DOWNLOAD = """
import sys
from dataclasses import replace
from datetime import date, timedelta
from trading_pipelines.candles.download import download
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.history_files import HistoryFiles
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.database.connection import connect
from trading_pipelines.settings.environment import LISTING, HistoryFileUrls
from trading_pipelines.settings.strategy import ExchangeSettings, HealingSettings

market_url, url, symbols, source = sys.argv[1:]
settings = ExchangeSettings(requests_per_second=500)
files = HistoryFiles(HistoryFileUrls(url, url + LISTING), settings, 0.2)
days = [date(2025, 9, 1) + timedelta(days=n) for n in range(21)]
with connect(market_url) as connection:
    exchange = Exchange(url, RequestSlots(connection, url, 500), settings)
    print("begun", flush=True)
    download(
        connection, exchange, symbols.split(), days, "run", HealingSettings(),
        files=files if source == "files" else None,
        say=lambda line: print(line, flush=True),
    )
"""


KILLS = int(os.environ.get("FAULTS_KILLS", "5"))


@pytest.mark.parametrize("source", ["files", "a full pipeline"])
def test_killed_again_and_again_in_files_or_a_full_pipeline_the_rows_are_the_recorded_ones(
    bench: Bench, market_url: str, recorded_rows: RecordedRows, source: str
) -> None:
    bench.replay.set_faults([Fault("file_cut", probability=0.2)])
    bench.replay.latency = 0.05
    random = Random(18)
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", DOWNLOAD, market_url, bench.replay.url, f"{DOGE} {BTC}", source],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout
        # At a moment after a few more days, which no sleep would hit on every machine.
        for _ in range(random.randint(1, 1 + 35 // KILLS)):
            child.stdout.readline()
        time.sleep(random.random() / 20)
        child.send_signal(signal.SIGKILL)
        child.wait()
    known = [day for day in bench.coverage([DOGE, BTC], RECORDED_DAYS) if day.complete]
    assert 0 < len(known) < 42
    # What is complete is so to the digit.
    for day in known:
        wanted = recorded_rows([day.symbol], [day.day])
        start = day_interval(day.day).start
        got = part(stored_rows(bench.connection), start, start + DAY)
        mine = {key: row for key, row in got.items() if key[0] == day.symbol}
        assert differences(mine, wanted) == []
    assert fetch(bench, [DOGE, BTC], RECORDED_DAYS) == []
    wanted = recorded_rows([DOGE, BTC], RECORDED_DAYS)
    assert differences(stored_rows(bench.connection), wanted) == []


def test_the_newest_days_and_days_before_the_files_come_from_the_exchange(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_clock(at(4, 0, 30, 10))
    failed = download(
        bench.connection,
        bench.client(),
        [BTC],
        days(1, 4),
        "run",
        HEALING,
        files=reader(bench),
    )
    assert failed == []
    known = bench.coverage([BTC], days(1, 4))
    label = bench.replay.market.label
    assert [day.source == label for day in known] == [False, False, True, True]
    assert [day.status for day in known] == ["complete"] * 3 + ["partial"]
    assert (
        differences(
            stored_rows(bench.connection),
            part(recorded_rows([BTC], days(1, 4)), at(1), at(4, 0, 30)),
        )
        == []
    )


def test_when_the_exchange_is_away_the_days_with_files_are_had_and_the_others_fail(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_faults([Fault("file_404", between=(at(2), at(3))), Fault("502", market=BTC)])
    failed = fetch(bench, [BTC], days(1, 4))
    assert [day.day for day in failed] == days(2, 2)
    rows = recorded_rows([BTC], [*days(1, 1), *days(3, 4)])
    assert differences(stored_rows(bench.connection), rows) == []
