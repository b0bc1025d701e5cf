"""The download over HTTP from the replay exchange into the real Postgres."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
import tenacity

from tests.candles.conftest import (
    HEALING,
    Bench,
    RecordedRows,
    Rows,
    differences,
    insert,
    stored_rows,
    versions,
)
from tests.conftest import RECORDED_DAYS, SYMBOLS
from trading_pipelines.candles import coverage
from trading_pipelines.candles import exchange as exchange_module
from trading_pipelines.candles.coverage import CandleCoverage, FailureKind, summarise
from trading_pipelines.candles.download import FailedDay, download
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.page import PAGE_SIZE, ExchangeError, Page, RequestStats
from trading_pipelines.candles.rate_limit import BlockedError
from trading_pipelines.candles.windows import DAY, HOUR, MINUTE, Interval, day_interval
from trading_pipelines.candles.windows import windows as cut
from trading_pipelines.database.connection import connect
from trading_pipelines.simulators.upbit.faults import KINDS, Fault
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

BTC, ETH, XRP, SOL, DOGE = SYMBOLS
BLOCKS = ["418_error_key", "418_plain_key"]
# Answers of the form that a quiet stretch has: believed when they are given twice.
SAYS_NOTHING = ["empty_page", "stale_page"]
# Pages with a row that can't be a candle: believed without it, or where it is doubled with it once.
ODD_ROWS = {
    "null_fields": "missing or broken field",
    "impossible_row": "contradict each other",
    "huge_volume": "a volume out of range",
    "undated_row": "missing or broken field",
}
# Of a closed day they show what everybody shows.
LATE = ["lagging_copy", "unrevised_copy"]
REASONS = {
    "429_error_key": "HTTP 429",
    "429_plain_key": "HTTP 429",
    "429_text": "HTTP 429",
    "500_json": "HTTP 500",
    "500_html": "HTTP 500",
    "502": "HTTP 502",
    "503_html": "HTTP 503",
    "504": "HTTP 504",
    "html_200": "HTTP 200",
    "json_object": "no list of candles",
    "404_json": "HTTP 404",
    "404_html": "HTTP 404",
    "404_empty": "HTTP 404",
    "out_of_order": "out of order",
    "wrong_market": "a row of market 'KRW-",
    "truncated_json": "HTTP 200",
    "short_body": "no answer",
    "reset": "no answer",
    "timeout": "no answer: RequestTimeout",
}
# The exchange has answered: nothing is known of the next day.
ANSWERED = ["json_object", "out_of_order", "wrong_market"]


def windows(minutes: int) -> int:
    """Return how many requests of 200 minutes are needed."""
    return -(-minutes // 200)


def days(first: int, last: int) -> list[date]:
    return [date(2025, 9, day) for day in range(first, last + 1)]


def at(day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2025, 9, day, hour, minute, second, tzinfo=UTC)


def part(rows: Rows, start: datetime, end: datetime) -> Rows:
    return {key: values for key, values in rows.items() if start <= key[1] < end}


def spoiled(rows: Rows) -> Rows:
    """Return the rows as a bot stores them that freezes a forming candle: less of everything."""
    digits = Decimal("0.00000001")
    return {
        key: (o, o, o, o, (v / 2 + digits).quantize(digits))
        for key, (o, _, _, _, v) in rows.items()
    }


# ---- a sound exchange ----


def test_the_recording_arrives_row_by_row_in_as_few_requests_as_the_windows_allow(
    bench: Bench, recorded_rows: RecordedRows, recording: Path
) -> None:
    assert bench.download(SYMBOLS, RECORDED_DAYS) == []
    wanted = recorded_rows(SYMBOLS, RECORDED_DAYS)
    assert differences(stored_rows(bench.connection), wanted) == []

    known = bench.coverage(SYMBOLS, RECORDED_DAYS)
    assert {(day.status, day.failures, day.error, day.repaired, day.waits) for day in known} == {
        ("complete", 0, None, 0, 0)
    }
    assert {day.fetched_until - day_interval(day.day).start for day in known} == {DAY}
    for line in summarise(known, bench.now()):
        rows = sum(symbol == line.symbol for symbol, _ in wanted)
        assert (line.complete_days, line.candles, line.holes) == (21, rows, 0)
        assert line.quiet == 1440 * 21 - rows
        assert line.requests == windows(1440 * 21)
        assert line.source == f"recording {recording.name}"
    assert bench.requests() == windows(1440 * 21) * 5


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Seoul"])
def test_in_a_session_of_another_zone_the_same_rows_arrive(
    bench: Bench, recorded_rows: RecordedRows, zone: str
) -> None:
    bench.connection.execute("SELECT set_config('TimeZone', %s, false)", [zone])
    for run in ("first", "second"):
        assert bench.download([DOGE], days(1, 2), run) == []
        wanted = recorded_rows([DOGE], days(1, 2))
        assert differences(stored_rows(bench.connection), wanted) == []
        known = bench.coverage([DOGE], days(1, 2))
        assert {day.status for day in known} == {"complete"}
        assert sum(day.quiet for day in known) == 2880 - len(wanted)


def test_asking_again_for_complete_days_costs_requests_and_writes_no_row(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.download([BTC, DOGE], days(1, 3), "first")
    before, asked = versions(bench.connection), bench.requests()
    changed = bench.connection.execute(
        "SELECT changed_at FROM trading_pipelines.candle_coverage ORDER BY 1"
    ).fetchall()

    assert bench.download([BTC, DOGE], days(1, 3), "second") == []
    assert versions(bench.connection) == before
    assert bench.requests() - asked == 2 * windows(1440 * 3)
    known = bench.coverage([BTC, DOGE], days(1, 3))
    assert {(day.status, day.repaired, day.run_id) for day in known} == {("complete", 0, "second")}
    assert sum(day.requests for day in known) == 2 * windows(1440 * 3)
    assert changed == (
        bench.connection.execute(
            "SELECT changed_at FROM trading_pipelines.candle_coverage ORDER BY 1"
        ).fetchall()
    ), "hours would be computed again for nothing"
    wanted = recorded_rows([BTC, DOGE], days(1, 3))
    assert differences(stored_rows(bench.connection), wanted) == []


def test_of_what_is_due_only_the_missing_days_are_asked_for_the_open_one_every_five_minutes(
    bench: Bench,
) -> None:
    bench.replay.set_clock(at(4, 12, 4))
    bench.download([BTC], days(1, 2), "other")

    def asked(due_at: datetime) -> int:
        before = bench.requests()
        assert bench.download([BTC], days(1, 4), "run", due_at=due_at) == []
        return bench.requests() - before

    noon = at(4, 12, 4)
    assert asked(noon) == windows(1440 + 12 * 60 + 3)
    assert asked(noon) == 0, "another has done it meanwhile"
    bench.replay.set_clock(at(4, 12, 7))
    assert asked(at(4, 12, 7)) == 1
    coverage.record_failure(
        bench.connection, BTC, days(1, 1)[0], "boom", "other", FailureKind.AWAY, HEALING
    )
    assert asked(at(4, 12, 7)) == windows(1440), "whoever asks does not wait"


@pytest.mark.usefixtures("one_at_a_time")
def test_a_download_ends_between_two_pages_where_it_is_told_to_and_keeps_what_it_has(
    bench: Bench,
) -> None:
    looks = []

    def third() -> None:
        looks.append(bench.requests())
        if len(looks) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.download([BTC, DOGE], days(1, 2), between_pages=third)
    assert looks == [0, 1, 2, 3], "before the first page and after each"
    (day,) = bench.coverage([BTC], days(1, 1))
    assert day.fetched_until == at(1, 10)
    assert bench.download([BTC], days(1, 1)) == []
    assert bench.requests() == windows(1440), "it goes on from there"


def test_each_day_stored_to_its_end_is_told_once_with_what_it_holds(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    said: list[str] = []
    bench.replay.set_clock(at(3, 12, 4))
    assert bench.download([BTC, DOGE], days(1, 3), say=said.append) == []
    rows = {
        (symbol, day): len(recorded_rows([symbol], [day]))
        for symbol in (BTC, DOGE)
        for day in days(1, 2)
    }
    assert said == [
        f"{symbol} {day}: {count} minutes stored, {1440 - count} quiet"
        for (symbol, day), count in rows.items()
    ]
    bench.replay.set_clock(at(3, 12, 9))
    assert bench.download([BTC, DOGE], days(3, 3), say=said.append) == []
    assert len(said) == 4, "nothing of a refresh of the open day"


@pytest.mark.parametrize(("wait", "told"), [(24.0, [1, 2, 3, 4, 5]), (4.0, [3]), (1.0, [])])
def test_a_wait_for_an_exchange_that_fails_is_told_when_it_is_long_in_one_or_altogether(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, wait: float, told: list[int]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(tenacity.wait_random_exponential, "__call__", lambda *_: wait)
    # Nobody sleeps: only the clock that waits are measured by goes on.
    passed, clock = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed[0])
    sleep = lambda seconds: passed.append(passed.pop() + seconds)  # noqa: E731
    monkeypatch.setattr(tenacity, "sleep_using_event", lambda _: sleep)
    bench.replay.set_faults([Fault("503_html", count=5)])
    assert bench.download([BTC], days(1, 1), exchange=bench.client(say=said.append)) == []
    window = f"{BTC} 2025-09-01 00:00 to 03:20 UTC"
    assert [line.partition(": HTTP 503")[0] for line in said] == [
        f"waiting for {window}: try {n} of 6 failed, the next is in {wait:.0f} s" for n in told
    ]


def test_wrong_rows_and_frozen_candles_are_repaired_and_counted_and_no_other_row_is_touched(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    sound = recorded_rows([BTC], days(2, 3))
    frozen = spoiled(part(sound, at(2, 9), at(2, 9, 7)) | part(sound, at(3, 23, 59), at(4)))
    one_digit = {
        key: (o, h, low, c, v + Decimal("0.00000001"))
        for key, (o, h, low, c, v) in part(sound, at(3, 12), at(3, 12, 2)).items()
    }
    insert(bench.connection, frozen | one_digit)
    bench.connection.execute("CREATE TEMP TABLE wrong AS SELECT id FROM public.market_data")
    insert(bench.connection, part(sound, at(2, 20), at(2, 22)))
    others = spoiled(recorded_rows([ETH], days(2, 2)) | recorded_rows([BTC], [date(2025, 9, 5)]))
    others = part(others, at(2, 23), at(5, 1))
    insert(bench.connection, others)
    insert(bench.connection, part(sound, at(2), at(2, 1)), interval="5m")
    before = versions(bench.connection, where="id NOT IN (SELECT id FROM wrong)")

    assert bench.download([BTC], days(2, 3)) == []
    assert differences(stored_rows(bench.connection), sound | others) == []
    assert before <= versions(bench.connection)
    assert [day.repaired for day in bench.coverage([BTC], days(2, 3))] == [7, 3]
    (count,) = bench.connection.execute(
        "SELECT count(*) FROM public.market_data WHERE interval = '5m'"
    ).fetchone() or (0,)
    assert count == 60


def test_rows_spoiled_and_deleted_after_the_download_come_back(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.download([DOGE], days(4, 5), "first")
    bench.connection.execute(
        "DELETE FROM public.market_data WHERE timestamp >= '2025-09-04 10:00Z' "
        "AND timestamp < '2025-09-04 10:05Z'"
    )
    bench.connection.execute(
        "UPDATE public.market_data SET volume = volume / 2 WHERE timestamp >= '2025-09-05 23:50Z'"
    )
    gone, halved = bench.coverage([DOGE], days(4, 5))
    assert (gone.holes(bench.now()), gone.damaged, halved.damaged) == (5, True, False)

    bench.download([DOGE], days(4, 5), "second")
    wanted = recorded_rows([DOGE], days(4, 5))
    assert differences(stored_rows(bench.connection), wanted) == []
    healed = bench.coverage([DOGE], days(4, 5))
    late = len(part(wanted, at(5, 23, 50), at(6)))
    assert [(day.holes(bench.now()), day.repaired) for day in healed] == [(0, 0), (0, late)]


def halted(market: Recording, symbol: str, start: datetime, end: datetime) -> Recording:
    """Return the recording as it would be if nothing had been traded from start to end."""
    candles = market.by_symbol[symbol]
    minutes = [int(moment.timestamp()) // 60 for moment in (start, end)]
    traded = (candles.minute < minutes[0]) | (candles.minute >= minutes[1])
    return replace(market, by_symbol=market.by_symbol | {symbol: candles.rows(traded)})


def test_a_halt_of_several_windows_and_a_midnight_loses_nothing_after_it(
    connection: psycopg.Connection, recorded_market: Recording, recorded_rows: RecordedRows
) -> None:
    start, end = at(7, 18), at(8, 6)
    market = halted(recorded_market, DOGE, start, end)
    with ReplayExchange(market, rate=None) as replay:
        bench = Bench(connection, replay)
        assert bench.download([DOGE], days(7, 8)) == []
        sound = recorded_rows([DOGE], days(7, 8))
        wanted = part(sound, at(7), start) | part(sound, end, at(9))
        assert differences(stored_rows(connection), wanted) == []
        known = bench.coverage([DOGE], days(7, 8))
        assert [(day.status, day.holes(bench.now())) for day in known] == [("complete", 0)] * 2
        assert sum(day.quiet for day in known) == 1440 * 2 - len(wanted)
        # Windows of [18:20, 21:40), [21:40, 1:00) and [1:00, 4:20) are asked for twice.
        assert bench.requests() == windows(1440 * 2) + 3


# ---- odd rows ----


def set_aside(bench: Bench) -> list[tuple[str, datetime, str]]:
    return bench.connection.execute(
        "SELECT symbol, timestamp, reason FROM trading_pipelines.set_aside_rows ORDER BY 1, 2"
    ).fetchall()


@pytest.mark.parametrize("kind", ODD_ROWS)
def test_an_odd_row_is_set_aside_alone_and_its_day_and_the_next_are_complete(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    minute = at(5, 10, 7)
    bench.replay.set_faults([Fault(kind, market=BTC, at=minute)])
    assert bench.download([BTC, ETH], days(5, 6), exchange=bench.client(attempts=3)) == []
    wanted = recorded_rows([BTC, ETH], days(5, 6))
    del wanted[BTC, minute]
    assert differences(stored_rows(bench.connection), wanted) == []
    ((symbol, when, reason),) = set_aside(bench)
    assert (symbol, when) == (BTC, minute)
    assert ODD_ROWS[kind] in reason
    odd, next_day = bench.coverage([BTC], days(5, 6))
    assert (odd.status, odd.set_aside, odd.holes(bench.now())) == ("complete", 1, 0)
    assert odd.rows + odd.quiet == 1440 - 1, "it is neither a candle nor a quiet minute"
    assert (next_day.status, next_day.set_aside) == ("complete", 0)
    assert bench.replay.stats().markets[BTC] == windows(1440 * 2) + 2, "every attempt was made"

    bench.replay.set_faults([])
    assert bench.download([BTC], days(5, 5), "second") == []
    assert set_aside(bench) == []
    assert differences(
        stored_rows(bench.connection), recorded_rows([BTC, ETH], days(5, 6))
    ) == []  # fmt: skip


def test_what_was_stored_in_the_minute_of_an_odd_row_stays(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    minute = at(5, 10, 7)
    before = part(recorded_rows([BTC], days(5, 5)), minute, minute + MINUTE)
    insert(bench.connection, before)
    bench.replay.set_faults([Fault("impossible_row", at=minute)])
    assert bench.download([BTC], days(5, 5), exchange=bench.client(attempts=1)) == []
    assert before.items() <= stored_rows(bench.connection).items()
    (day,) = bench.coverage([BTC], days(5, 5))
    assert (day.set_aside, day.rows + day.quiet) == (1, 1440)


def test_an_odd_row_is_asked_for_again_with_the_next_minutes_of_the_open_day(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    minute = at(10, 10, 7)
    client = bench.client(attempts=1)
    bench.replay.set_clock(at(10, 12, 0, 30))
    bench.replay.set_faults([Fault("impossible_row", at=minute)])
    assert bench.download([BTC], [OPEN], "first", client) == []
    assert len(set_aside(bench)) == 1
    bench.replay.set_faults([])
    bench.replay.set_clock(at(10, 12, 5, 30))
    asked = bench.requests()
    assert bench.download([BTC], [OPEN], "second", client) == []
    assert bench.requests() - asked == 1
    assert set_aside(bench) == []
    wanted = part(recorded_rows([BTC], [OPEN]), at(10), at(10, 12, 5))
    assert differences(stored_rows(bench.connection), wanted) == []


def test_a_row_that_comes_twice_takes_no_place_of_another(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_faults([Fault("doubled_row")])
    assert bench.download([BTC], days(5, 6)) == []
    assert differences(stored_rows(bench.connection), recorded_rows([BTC], days(5, 6))) == []
    assert set_aside(bench) == []
    assert bench.requests() > windows(1440 * 2), "what fell out at the other end was asked for"


def test_a_bad_answer_every_day_ends_no_backfill(bench: Bench, recorded_rows: RecordedRows) -> None:
    bench.replay.set_faults([Fault("wrong_market", between=(at(6), at(9)))])
    failed = bench.download([DOGE], days(5, 10), exchange=bench.client(attempts=1))
    assert [one.day for one in failed] == days(6, 8)
    wanted = recorded_rows([DOGE], [*days(5, 5), *days(9, 10)])
    assert differences(stored_rows(bench.connection), wanted) == []


@pytest.mark.parametrize(
    "body", ["RAISE EXCEPTION 'not this one'", "RETURN NULL", "NEW.volume := 0; RETURN NEW"]
)
def test_a_trigger_that_keeps_a_candle_out_fails_its_day_alone_and_is_no_silent_loss(
    bench: Bench, recorded_rows: RecordedRows, body: str
) -> None:
    bench.connection.execute(
        "CREATE OR REPLACE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN {body}; END$$"
    )
    bench.connection.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON public.market_data FOR EACH ROW "
        "WHEN (NEW.symbol = 'KRW-BTC' AND NEW.timestamp = '2025-09-06 12:00Z') "
        "EXECUTE FUNCTION pg_temp.refuse()"
    )
    try:
        (failure,) = bench.download([BTC, ETH], days(5, 7))
    finally:
        bench.connection.execute("DROP TRIGGER refuse ON public.market_data")
    assert (failure.symbol, failure.day) == (BTC, date(2025, 9, 6))
    assert "market_data" in failure.error
    assert [day.status for day in bench.coverage([BTC], days(5, 7))] == [
        "complete",
        "failed",
        "complete",
    ]
    assert {day.status for day in bench.coverage([ETH], days(5, 7))} == {"complete"}
    assert bench.download([BTC], days(6, 6), "second") == []
    assert differences(stored_rows(bench.connection), recorded_rows([BTC, ETH], days(5, 7))) == []


# ---- candles that the exchange does not have ----


def ahead(rows: Rows) -> Rows:
    """Return the rows as a collector leaves them that stores Korean time as UTC."""
    return {(symbol, start + 9 * HOUR): values for (symbol, start), values in rows.items()}


def unconfirmed(bench: Bench) -> Rows:
    cursor = bench.connection.execute(
        "SELECT symbol, timestamp, (candle->>'open_price')::numeric, "
        "(candle->>'high_price')::numeric, (candle->>'low_price')::numeric, "
        "(candle->>'close_price')::numeric, (candle->>'volume')::numeric "
        "FROM trading_pipelines.unconfirmed_candles"
    )
    return {(symbol, start): tuple(values) for symbol, start, *values in cursor}


@pytest.mark.parametrize("lived", [None, 1, 7, 8])
def test_days_asked_for_whole_give_up_what_the_exchange_does_not_have(
    bench: Bench, recorded_rows: RecordedRows, lived: int | None
) -> None:
    sound, false = recorded_rows([DOGE], days(5, 6)), ahead(recorded_rows([DOGE], days(3, 7)))
    insert(bench.connection, false)
    if lived:
        with pytest.raises(KeyboardInterrupt):
            bench.download([DOGE], days(5, 6), "run", Dying(bench.client(), lived))
    assert bench.download([DOGE], days(5, 6), "run") == []
    last = max(start for _, start in sound)
    outside = part(false, at(3), at(5)) | part(false, last + MINUTE, at(9))
    assert differences(stored_rows(bench.connection), sound | outside) == []
    moved = part(false, at(5), last)
    moved = {key: moved[key] for key in moved.keys() - sound.keys()}
    assert moved, "there are minutes without a trade"
    assert differences(unconfirmed(bench), moved) == []
    first, second = bench.coverage([DOGE], days(5, 6))
    assert first.rows == first.stored == len(part(sound, at(5), at(6)))
    assert first.quiet == 1440 - first.rows
    assert not first.damaged
    assert not second.damaged


def test_through_a_halt_of_many_windows_what_is_false_is_given_up(
    connection: psycopg.Connection, recorded_market: Recording, recorded_rows: RecordedRows
) -> None:
    whole = recorded_rows([BTC], days(7, 8))
    insert(connection, whole)
    start, end = at(7, 3, 20), at(8, 6, 40)
    with ReplayExchange(halted(recorded_market, BTC, start, end), rate=None) as replay:
        bench = Bench(connection, replay)
        assert bench.download([BTC], days(7, 8)) == []
    left = part(whole, at(7), start) | part(whole, end, at(9))
    assert differences(stored_rows(connection), left) == []
    assert differences(unconfirmed(bench), part(whole, start, end)) == []
    known = coverage.read(connection, [BTC], days(7, 8))
    assert not any(day.damaged for day in known)
    assert sum(day.quiet for day in known) == 1440 * 2 - len(left)


@pytest.mark.parametrize("kind", [*SAYS_NOTHING, *LATE])
def test_an_answer_that_breaks_off_or_is_behind_makes_nothing_give_way(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    held = recorded_rows([BTC], days(5, 5))
    insert(bench.connection, held)
    bench.replay.set_clock(at(6, 0, 1, 10))
    bench.replay.set_faults([Fault(kind, between=(at(5, 20), at(6)))])
    assert bench.download([BTC], days(5, 5)) == []
    assert stored_rows(bench.connection).keys() == held.keys()
    assert unconfirmed(bench) == {}


def test_an_open_day_gives_up_nothing(bench: Bench, recorded_rows: RecordedRows) -> None:
    held = ahead(recorded_rows([DOGE], days(9, 10)))
    insert(bench.connection, held)
    bench.replay.set_clock(at(10, 20, 0, 30))
    assert bench.download([DOGE], days(10, 10)) == []
    assert held.keys() <= stored_rows(bench.connection).keys()


# ---- before the listing ----


def ask_range(bench: Bench, first: date, last: date, symbol: str = BTC) -> int:
    asked = bench.requests()
    range_ = [first + DAY * n for n in range((last - first).days + 1)]
    assert bench.download([symbol], range_, f"{first} {last}") == []
    known = bench.coverage([symbol], range_)
    assert {(day.status, day.holes(bench.now())) for day in known} == {("complete", 0)}
    return bench.requests() - asked


def test_two_years_before_a_listing_cost_a_few_requests(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    requests = ask_range(bench, date(2023, 9, 3), date(2025, 9, 2))
    # 728 days in pieces of 200: each asks for its first window and for its first day, twice.
    assert requests <= 4 * 4 + windows(1440 * 2)
    wanted = recorded_rows([BTC], days(1, 2))
    assert differences(stored_rows(bench.connection), wanted) == []
    before = bench.coverage([BTC], [date(2023, 9, 3), date(2025, 8, 31)])
    assert [(day.rows, day.quiet) for day in before] == [(0, 1440)] * 2


@pytest.mark.usefixtures("one_at_a_time")
def test_one_day_before_a_listing_costs_less_than_a_days_windows(bench: Bench) -> None:
    ask_range(bench, date(2025, 9, 1), date(2025, 9, 2))
    assert ask_range(bench, date(2025, 8, 31), date(2025, 8, 31)) == 4
    assert ask_range(bench, date(2025, 3, 1), date(2025, 8, 31)) == 4


def test_an_exchange_that_has_nothing_for_a_while_is_not_believed_beside_stored_candles(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    ask_range(bench, date(2025, 9, 1), date(2025, 9, 2))
    bench.replay.set_faults([Fault("empty_page", count=4)])
    bench.download([BTC], days(3, 5), "second")
    wanted = part(recorded_rows([BTC], days(1, 5)), at(3, 6, 40), at(6))
    got = part(stored_rows(bench.connection), at(3, 6, 40), at(6))
    assert differences(got, wanted) == []


def test_where_nobody_knows_the_first_day_the_windows_are_asked_one_by_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> datetime:
        raise ExchangeError("HTTP 404")

    monkeypatch.setattr(Exchange, "first_day", unable)
    assert ask_range(bench, date(2025, 8, 31), date(2025, 8, 31)) == 2 * windows(1440)


# ---- killed and started again ----


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked for side by side: faults meet requests in their order."""
    monkeypatch.setattr(exchange_module, "MOST_SIDE_BY_SIDE", 1)


class Dying:
    """An exchange whose client dies after some pages."""

    def __init__(self, exchange: Exchange, pages: int) -> None:
        self._exchange = exchange
        self._left = pages

    def closed_until(self) -> datetime:
        return self._exchange.closed_until()

    def first_day(self, symbol: str, until: datetime, spent: RequestStats) -> datetime:
        return self._exchange.first_day(symbol, until, spent)

    def pages(self, symbol: str, windows: Iterable[Interval]) -> Generator[Page, None, None]:
        with closing(self._exchange.pages(symbol, windows)) as answers:
            while self._left:
                self._left -= 1
                yield next(answers)
            raise KeyboardInterrupt


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize(
    ("lived", "known_before"), [(1, False), (7, False), (8, True), (15, False), (21, True)]
)
def test_a_killed_run_that_is_retried_continues_where_it_was(
    bench: Bench, recorded_rows: RecordedRows, lived: int, *, known_before: bool
) -> None:
    symbols, asked_days = [DOGE, BTC], days(10, 11)
    wanted = recorded_rows(symbols, asked_days)
    if known_before:
        insert(bench.connection, spoiled(wanted))
        bench.download(symbols, [], "earlier")
    with pytest.raises(KeyboardInterrupt):
        bench.download(symbols, asked_days, "run", Dying(bench.client(), lived))
    assert bench.requests() == lived

    assert bench.download(symbols, asked_days, "run") == []
    assert bench.requests() == 2 * windows(1440 * 2)
    assert differences(stored_rows(bench.connection), wanted) == []
    known = bench.coverage(symbols, asked_days)
    assert {day.status for day in known} == {"complete"}
    assert sum(day.requests for day in known) == 2 * windows(1440 * 2), "figures add up over tries"
    assert sum(day.repaired for day in known) == known_before * len(wanted)
    assert bench.download(symbols, asked_days, "run") == []
    assert bench.requests() == 2 * windows(1440 * 2), "the same run has nothing left to ask"


@pytest.mark.usefixtures("one_at_a_time")
def test_a_killed_run_over_complete_days_also_continues_where_it_was(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.download([BTC], days(1, 2), "earlier")
    bench.connection.execute("UPDATE public.market_data SET close_price = open_price")
    asked = bench.requests()
    with pytest.raises(KeyboardInterrupt):
        bench.download([BTC], days(1, 2), "run", Dying(bench.client(), 9))
    assert {day.status for day in bench.coverage([BTC], days(1, 2))} == {"complete"}
    assert bench.download([BTC], days(1, 2), "run") == []
    assert bench.requests() - asked == windows(1440 * 2)
    wanted = recorded_rows([BTC], days(1, 2))
    assert differences(stored_rows(bench.connection), wanted) == []


DOWNLOAD = """
import sys
from datetime import date, timedelta
from trading_pipelines.database.connection import connect
from trading_pipelines.candles.download import download
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.settings.strategy import ExchangeSettings, HealingSettings

market_url, exchange_url, symbols = sys.argv[1:]
settings = ExchangeSettings(requests_per_second=500.0, backoff_seconds=0.001)
with connect(market_url) as connection, connect(market_url) as line:
    exchange = Exchange(exchange_url, RequestSlots(line, exchange_url, 500.0), settings)
    days = [date(2025, 9, 1) + timedelta(days=n) for n in range(21)]
    print(download(connection, exchange, symbols.split(), days, "run", HealingSettings()))
"""


def test_after_a_sigkill_no_stored_page_is_asked_for_again(
    bench: Bench, market_url: str, recorded_rows: RecordedRows
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, market_url, bench.replay.url, f"{DOGE} {BTC}"]
    )
    while bench.requests() < 100 and child.poll() is None:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    # The server finishes or rolls back what the killed client had sent.
    while bench.connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'"
    ).fetchone():
        time.sleep(0.002)
    stored = versions(bench.connection)
    assert stored

    assert bench.download([DOGE, BTC], RECORDED_DAYS, "run") == []
    total = 2 * windows(1440 * 21)
    # At most the pages that were on their way are asked for twice.
    lost = bench.requests() - total
    assert 0 <= lost <= exchange_module.MOST_SIDE_BY_SIDE
    assert stored <= versions(bench.connection)
    wanted = recorded_rows([DOGE, BTC], RECORDED_DAYS)
    assert differences(stored_rows(bench.connection), wanted) == []


# ---- faults ----


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_now_and_then_is_retried_and_leaves_no_trace(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    count = 1 if kind.startswith("429") else 3
    retry_after = 0 if kind in BLOCKS else None
    bench.replay.set_faults([Fault(kind, every=3, count=count, retry_after=retry_after)])
    client = bench.client(timeout_seconds=0.3 if kind == "timeout" else 5.0)
    failed = bench.download([DOGE], days(5, 6), exchange=client)
    if kind in BLOCKS:
        # A block ends the run, even one that is over at once; the retries of the run go on.
        tries = 1
        while failed:
            failed = bench.download([DOGE], days(5, 6), exchange=client)
            tries += 1
        assert tries == 1 + count
    assert failed == []
    assert bench.replay.stats().faults == {kind: count}
    wanted = recorded_rows([DOGE], days(5, 6))
    assert differences(stored_rows(bench.connection), wanted) == []
    known = bench.coverage([DOGE], days(5, 6))
    assert [(d.status, d.error, d.failures, d.retry_at) for d in known] == [
        ("complete", None, 0, None)
    ] * 2
    if kind == "doubled_row":  # what fell out of a full page at its other end is asked for
        assert 0 < bench.requests() - windows(1440 * 2) <= count
        return
    more = 0 if kind in LATE else count
    assert bench.requests() == windows(1440 * 2) + more
    if kind not in BLOCKS:
        assert sum(day.requests for day in known) == windows(1440 * 2) + more
        assert sum(day.waits for day in known) == (0 if kind in SAYS_NOTHING else more)


def test_every_kind_of_fault_has_its_reason_here() -> None:
    assert {*REASONS, *BLOCKS, *SAYS_NOTHING, *ODD_ROWS, "doubled_row", *LATE} == set(KINDS)


@pytest.mark.parametrize("kind", REASONS)
def test_a_market_in_trouble_fails_with_its_reason_and_the_others_go_on(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    bench.replay.set_faults([Fault(kind, market=ETH)])
    attempts = 1 if kind.startswith("429") else 3
    client = bench.client(timeout_seconds=0.2 if kind == "timeout" else 5.0, attempts=attempts)
    asked_days = days(5, 7)
    began = datetime.now(UTC)
    failed = bench.download([ETH, DOGE], asked_days, exchange=client)
    assert [(one.symbol, one.day) for one in failed] == [(ETH, day) for day in asked_days]
    days_asked = 3 if kind in ANSWERED else 2
    assert bench.replay.stats().markets[ETH] == days_asked * attempts, (
        "an exchange that is away for two days stops the symbol"
    )
    assert all(REASONS[kind] in one.error for one in failed)
    wanted = recorded_rows([DOGE], asked_days)
    assert differences(stored_rows(bench.connection), wanted) == []

    known = bench.coverage([ETH], asked_days)
    assert [(day.status, day.failures) for day in known] == [
        ("failed", 1),
        ("failed", 1),
        ("failed", 1) if kind in ANSWERED else ("missing", 0),
    ]
    for day in known[:days_asked]:
        assert day.error is not None
        assert REASONS[kind] in day.error
        assert f"{ETH} {day.day} 00:00" in day.error
        assert f"asked {attempts} times" in day.error
        assert day.retry_at is not None
        assert timedelta(minutes=4) < day.retry_at - began < timedelta(minutes=6)


def test_a_market_whose_trouble_is_over_is_whole_after_the_next_run(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_faults([Fault("500_json", market=ETH)])
    for run in ("first", "second"):
        failed = bench.download([ETH], days(5, 7), run, bench.client(attempts=2))
        assert len(failed) == 3
    known = bench.coverage([ETH], days(5, 7))
    assert [day.failures for day in known] == [2, 2, 0]
    assert known[0].retry_at is not None
    assert timedelta(minutes=9) < known[0].retry_at - datetime.now(UTC) <= timedelta(minutes=10)

    bench.replay.set_faults([])
    assert bench.download([ETH], days(5, 7), "third") == []
    healed = bench.coverage([ETH], days(5, 7))
    assert [(d.status, d.error, d.failures, d.retry_at) for d in healed] == [
        ("complete", None, 0, None)
    ] * 3
    wanted = recorded_rows([ETH], days(5, 7))
    assert differences(stored_rows(bench.connection), wanted) == []


@pytest.mark.parametrize("kind", ["502", "wrong_market"])
def test_a_day_in_trouble_leaves_its_neighbours_alone(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    bench.replay.set_faults([Fault(kind, between=(at(7), at(8)))])
    failed = bench.download([BTC, DOGE], days(5, 9), exchange=bench.client(attempts=2))
    assert [(one.symbol, one.day) for one in failed] == [
        (BTC, days(7, 7)[0]),
        (DOGE, days(7, 7)[0]),
    ]
    sound = [*days(5, 6), *days(8, 9)]
    assert differences(stored_rows(bench.connection), recorded_rows([BTC, DOGE], sound)) == []
    for symbol in (BTC, DOGE):
        assert [day.status for day in bench.coverage([symbol], days(5, 9))] == [
            "complete",
            "complete",
            "failed",
            "complete",
            "complete",
        ]


def test_an_hour_in_trouble_keeps_what_came_before_it_and_the_next_day(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_faults([Fault("truncated_json", between=(at(7, 10), at(7, 13, 20)))])
    (failure,) = bench.download([BTC], days(7, 8), exchange=bench.client(attempts=2))
    assert "2025-09-07 10:00 to 13:20 UTC" in failure.error
    wanted = part(recorded_rows([BTC], days(7, 8)), at(7), at(7, 10))
    wanted |= recorded_rows([BTC], days(8, 8))
    assert differences(stored_rows(bench.connection), wanted) == []
    trouble, sound = bench.coverage([BTC], days(7, 8))
    assert (trouble.status, trouble.failures, trouble.fetched_until) == ("failed", 1, at(7, 10))
    assert trouble.holes(bench.now()) == 14 * 60
    assert (sound.status, sound.failures) == ("complete", 0)


def test_a_complete_day_that_cannot_be_asked_for_again_stays_complete(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.download([BTC], days(7, 7), "first")
    bench.replay.set_faults([Fault("502")])
    assert len(bench.download([BTC], days(7, 7), "second", bench.client(attempts=2))) == 1
    (day,) = bench.coverage([BTC], days(7, 7))
    assert (day.status, day.failures, day.holes(bench.now())) == ("complete", 1, 0)
    assert day.error is not None
    assert "HTTP 502" in day.error
    wanted = recorded_rows([BTC], days(7, 7))
    assert differences(stored_rows(bench.connection), wanted) == []


def test_a_market_that_stays_in_trouble_is_asked_for_every_half_hour(
    connection: psycopg.Connection,
) -> None:
    waits = []
    for _ in range(100):
        coverage.record_failure(
            connection, BTC, RECORDED_DAYS[0], "no answer", "run", FailureKind.AWAY, HEALING
        )
        (day,) = coverage.read(connection, [BTC], RECORDED_DAYS[:1])
        assert day.retry_at is not None
        waits.append(round((day.retry_at - datetime.now(UTC)) / MINUTE))
    assert waits[:4] == [5, 10, 20, 30]
    assert set(waits[3:]) == {30}


FEW = HEALING.model_copy(update={"attempts": 3})
CLOSED = RECORDED_DAYS[0]


def fail(bench: Bench, trouble: FailureKind, day: date = CLOSED) -> CandleCoverage:
    coverage.record_failure(bench.connection, BTC, day, "boom", "run", trouble, FEW)
    (known,) = coverage.read(bench.connection, [BTC], [day])
    return known


def wait(known: CandleCoverage) -> timedelta:
    """Return the wait before the next try, to the minute."""
    assert known.retry_at is not None
    return round((known.retry_at - datetime.now(UTC)) / MINUTE) * MINUTE


@pytest.mark.parametrize("trouble", [FailureKind.ANSWER, FailureKind.CONTRACT])
def test_a_day_whose_tries_are_spent_is_left_failed_and_looked_at_once_a_day(
    bench: Bench, trouble: FailureKind
) -> None:
    tries = [fail(bench, trouble) for _ in range(4)]
    assert [day.left_failed for day in tries] == [False, False, True, True]
    assert [wait(day) for day in tries] == [5 * MINUTE, 10 * MINUTE, DAY, DAY]


def test_an_outage_leaves_nothing_failed_and_spends_no_try(bench: Bench) -> None:
    assert not any(fail(bench, FailureKind.AWAY).left_failed for _ in range(100))
    tries = [fail(bench, FailureKind.ANSWER) for _ in range(3)]
    assert [day.left_failed for day in tries] == [False, False, True]


def test_trouble_that_changes_its_kind_backs_off_and_counts_and_is_not_left_failed(
    bench: Bench,
) -> None:
    tries = [fail(bench, kind) for _ in range(5) for kind in (FailureKind.AWAY, FailureKind.ANSWER)]
    assert [day.failures for day in tries] == list(range(1, 11))
    assert [wait(day) / MINUTE for day in tries[:4]] == [5, 10, 20, 30]
    assert not any(day.left_failed for day in tries)


def test_a_day_is_left_failed_at_its_last_try_whatever_is_tried_after_that(bench: Bench) -> None:
    for _ in range(3):
        fail(bench, FailureKind.ANSWER)
    left_at = "SELECT left_at FROM trading_pipelines.candle_coverage"
    first = bench.connection.execute(left_at).fetchone()
    assert first != (None,)
    fail(bench, FailureKind.ANSWER)
    fail(bench, FailureKind.AWAY)
    assert bench.connection.execute(left_at).fetchone() == first
    bench.download([BTC], [CLOSED])
    anew = "SELECT left_at, tries FROM trading_pipelines.candle_coverage WHERE interval = '1m'"
    assert bench.connection.execute(anew).fetchone() == (None, 0)


def test_an_outage_changes_nothing_of_what_is_left_failed_but_when_it_is_tried(
    bench: Bench,
) -> None:
    fail(bench, FailureKind.MARKET)
    away = fail(bench, FailureKind.AWAY)
    assert (away.left_failed, away.failures, wait(away)) == (True, 2, 10 * MINUTE)
    again = fail(bench, FailureKind.ANSWER)
    assert (again.left_failed, wait(again)) == (True, DAY)


def test_the_open_day_is_never_left_failed_by_answers(bench: Bench) -> None:
    today = datetime.now(UTC).date()
    assert not fail(bench, FailureKind.MARKET, today).left_failed, (
        "it may be listed within the hour"
    )
    tries = [fail(bench, FailureKind.ANSWER, today) for _ in range(9)]
    assert not any(day.left_failed for day in tries)
    assert wait(tries[-1]) == 30 * MINUTE


@pytest.mark.parametrize(
    ("kind", "is_left"), [("wrong_market", True), ("json_object", True), ("502", False),
                          ("timeout", False), ("html_200", False), ("429_text", False)]
)  # fmt: skip
def test_a_day_is_left_failed_by_what_the_exchange_answers_and_not_by_its_absence(
    bench: Bench, recorded_rows: RecordedRows, kind: str, *, is_left: bool
) -> None:
    once = HEALING.model_copy(update={"attempts": 1})
    client = bench.client(attempts=1, timeout_seconds=0.2 if kind == "timeout" else 5.0)
    bench.replay.set_faults([Fault(kind)])
    download(bench.connection, client, [DOGE], [CLOSED], "first", once)
    (day,) = bench.coverage([DOGE], [CLOSED])
    assert (day.failures, day.left_failed) == (1, is_left)
    bench.replay.set_faults([])
    assert bench.download([DOGE], [CLOSED], "second") == []
    (day,) = bench.coverage([DOGE], [CLOSED])
    assert (day.status, day.failures, day.left_failed, day.retry_at) == ("complete", 0, False, None)
    assert differences(stored_rows(bench.connection), recorded_rows([DOGE], [CLOSED])) == []


def test_the_pages_before_the_one_in_trouble_are_no_success_of_the_day(bench: Bench) -> None:
    bench.download([BTC], [CLOSED], "earlier")
    bench.replay.set_faults([Fault("wrong_market", between=(at(1, 20), at(1, 23, 20)))])
    for run in ("first", "second"):
        bench.download([BTC], [CLOSED], run, bench.client(attempts=1))
    (day,) = bench.coverage([BTC], [CLOSED])
    assert (day.status, day.failures, wait(day)) == ("complete", 2, 10 * MINUTE)


def test_a_broken_contract_outlives_the_next_download_until_it_is_kept(bench: Bench) -> None:
    fail(bench, FailureKind.CONTRACT)
    bench.download([BTC], [CLOSED])
    assert fail(bench, FailureKind.CONTRACT).failures == 2
    coverage.record_contract_kept(bench.connection, BTC, [CLOSED])
    (day,) = bench.coverage([BTC], [CLOSED])
    assert (day.failures, day.error, day.retry_at) == (0, None, None)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {*SAYS_NOTHING, *LATE}))
def test_faults_that_meet_a_full_pipeline_leave_no_trace(
    connection: psycopg.Connection,
    recorded_market: Recording,
    recorded_rows: RecordedRows,
    kind: str,
) -> None:
    with ReplayExchange(recorded_market, rate=None, latency=0.05) as replay:
        bench = Bench(connection, replay)
        retry_after = 0 if kind in BLOCKS else None
        count = 2 if kind.startswith("429") else 8  # each of them holds everybody back for a second
        fault = Fault(kind, every=3, count=count, retry_after=retry_after)
        replay.set_faults([fault])
        client = bench.client(timeout_seconds=0.5 if kind == "timeout" else 5.0)
        while bench.download([DOGE], days(5, 6), exchange=client):
            pass  # as the retries of the run do
        assert replay.stats().faults[kind] > 0
    wanted = recorded_rows([DOGE], days(5, 6))
    assert differences(stored_rows(connection), wanted) == []
    assert [(d.status, d.error) for d in bench.coverage([DOGE], days(5, 6))] == [
        ("complete", None)
    ] * 2


def test_pages_that_are_not_read_to_their_end_are_asked_for_no_further(bench: Bench) -> None:
    client = bench.client(requests_per_second=5.0)
    answers = client.pages(BTC, cut(day_interval(days(5, 5)[0]), PAGE_SIZE))
    for _ in range(2):
        next(answers)
    answers.close()
    asked = bench.requests()
    assert client.page(BTC, Interval(at(5), at(5, 1))).candles
    assert bench.requests() <= asked + 1 + 1, "the page, and what was on its way"


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("kind", SAYS_NOTHING)
def test_a_window_is_believed_to_be_empty_only_when_two_answers_agree(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    bench.replay.set_faults([Fault(kind, every=2)])
    assert bench.download([DOGE], days(5, 6)) == []
    wanted = recorded_rows([DOGE], days(5, 6))
    assert differences(stored_rows(bench.connection), wanted) == []
    assert bench.replay.stats().faults[kind] > 5


@pytest.mark.parametrize("kind", SAYS_NOTHING)
def test_an_exchange_that_insists_on_having_nothing_deletes_nothing(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    held = part(recorded_rows([DOGE], days(5, 5)), at(5, 9), at(5, 10))
    insert(bench.connection, held)
    before = versions(bench.connection)
    bench.replay.set_faults([Fault(kind)])
    assert bench.download([DOGE], days(5, 5)) == []
    assert versions(bench.connection) == before
    (day,) = bench.coverage([DOGE], days(5, 5))
    assert (day.status, day.rows, day.quiet) == ("complete", len(held), 1440 - len(held))
    assert bench.requests() == 2 * windows(1440)


def blocked_until(bench: Bench) -> datetime:
    row = bench.connection.execute(
        "SELECT blocked_until FROM trading_pipelines.request_slots"
    ).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("retry_after", "wait"), [(7, 7), (None, 60)])
def test_a_block_ends_the_whole_download_and_nothing_is_asked_before_it_is_over(
    bench: Bench, recorded_rows: RecordedRows, kind: str, retry_after: int | None, wait: int
) -> None:
    fault = Fault(kind, market=ETH, between=(at(6), at(7)), count=1, retry_after=retry_after)
    bench.replay.set_faults([fault])
    symbols, asked_days = [BTC, ETH, XRP], days(5, 6)
    client = bench.client()
    began = datetime.now(UTC)
    failed = bench.download(symbols, asked_days, exchange=client)
    until = blocked_until(bench)
    assert timedelta(seconds=wait - 1) < until - began < timedelta(seconds=wait + 30)
    # The first day of ETH ended with the page over midnight that met the block.
    assert [(one.symbol, one.day) for one in failed] == [
        (symbol, day) for symbol in (ETH, XRP) for day in asked_days
    ]
    assert all(f"blocked this address until {until:%Y-%m-%d %H:%M:%S} UTC" in one.error
               for one in failed)  # fmt: skip
    stats = bench.replay.stats()
    assert XRP not in stats.markets
    wanted = recorded_rows([BTC], asked_days) | part(
        recorded_rows([ETH], asked_days), at(5), at(5, 23, 20)
    )
    assert differences(stored_rows(bench.connection), wanted) == []

    bench.download(symbols, asked_days, "another", bench.client())
    with pytest.raises(BlockedError):
        bench.client().page(BTC, Interval(at(5), at(5, 1)))
    assert bench.requests() == stats.requests, "nobody asks during the block"

    bench.connection.execute(
        "UPDATE trading_pipelines.request_slots SET blocked_until = clock_timestamp()"
    )
    assert bench.download(symbols, asked_days, exchange=client) == []
    wanted = recorded_rows(symbols, asked_days)
    assert differences(stored_rows(bench.connection), wanted) == []


def test_a_market_the_exchange_does_not_know_fails_after_one_request_for_a_day(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    began = datetime.now(UTC)
    failed = bench.download([BTC, "KRW-GONE", DOGE], days(5, 7))
    assert [(one.symbol, one.day) for one in failed] == [("KRW-GONE", day) for day in days(5, 7)]
    assert bench.replay.stats().markets["KRW-GONE"] == 1
    for day in bench.coverage(["KRW-GONE"], days(5, 7)):
        assert (day.status, day.failures, day.left_failed) == ("failed", 1, True)
        assert day.error is not None
        assert "404" in day.error
        assert day.retry_at is not None
        assert timedelta(hours=23) < day.retry_at - began < timedelta(hours=25)
    wanted = recorded_rows([BTC, DOGE], days(5, 7))
    assert differences(stored_rows(bench.connection), wanted) == []


# ---- from one run to the next ----


@pytest.fixture
def far(connection: psycopg.Connection, recorded_market: Recording) -> Iterator[Bench]:
    """The recording on a long way at Upbit's limit, where a run has seen how long that is."""
    with ReplayExchange(recorded_market, rate=None, latency=0.5) as replay:
        bench = Bench(connection, replay)
        assert bench.client(requests_per_second=10.0).page(BTC, Interval(at(5), at(5, 1))).candles
        yield bench


def asked_at_first(bench: Bench, run: Exchange | None = None) -> int:
    """Return how many windows of a day a run, or a new one, asks for before it has an answer."""
    asked = bench.requests()
    run = run or bench.client(requests_per_second=10.0)
    with closing(run.pages(DOGE, cut(day_interval(CLOSED), 60))) as answers:
        next(answers)
        return bench.requests() - asked


def test_a_run_begins_side_by_side_where_the_one_before_has_seen_a_long_way(far: Bench) -> None:
    assert asked_at_first(far) > 1
    run = far.client(requests_per_second=10.0)
    assert asked_at_first(far, run) > 1
    assert asked_at_first(far, run) == 1, "what it asks for next may not be there"
    far.connection.execute("UPDATE trading_pipelines.request_slots SET latency = NULL")
    assert asked_at_first(far) == 1, "as on the first day"


@pytest.mark.parametrize("kind", ["502", "truncated_json", *BLOCKS])
def test_a_run_begins_alone_where_the_one_before_has_failed(far: Bench, kind: str) -> None:
    far.replay.set_faults([Fault(kind, retry_after=0 if kind in BLOCKS else None)])
    with pytest.raises((ExchangeError, BlockedError)):
        far.client(requests_per_second=10.0, attempts=1).page(BTC, Interval(at(5), at(5, 1)))
    far.replay.set_faults([])
    assert asked_at_first(far) == 1


def test_a_market_that_is_not_there_costs_what_fills_the_line_and_the_next_one_request(
    far: Bench,
) -> None:
    gone = ["KRW-GONE", "KRW-LOST"]
    failed = far.download(gone, [CLOSED], exchange=far.client(requests_per_second=10.0))
    assert [one.symbol for one in failed] == gone
    asked = far.replay.stats().markets
    # Half a second of slots, one to follow and one that is stored.
    assert 1 <= asked["KRW-GONE"] <= 5 + 2
    assert asked["KRW-LOST"] == 1
    assert asked_at_first(far) == 1


@pytest.mark.usefixtures("one_at_a_time")
def test_that_all_is_asked_for_is_told_while_the_last_window_is_on_its_way(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    """Not at the end of an earlier symbol, nor of a day that is asked for alone since it failed."""
    left: list[list[Interval]] = []

    def tell() -> None:
        known = bench.coverage([BTC, DOGE], days(5, 6))
        until = [day.fetched_until or day_interval(day.day).start for day in known]
        pairs = zip(known, until, strict=True)
        left.append([Interval(at, e) for d, at in pairs if at < (e := day_interval(d.day).end)])

    bench.replay.set_faults([Fault("502", market=DOGE, between=(at(6, 2), at(6, 3)), count=6)])
    client = bench.client()
    failed = bench.download([BTC, DOGE], days(5, 6), exchange=client, when_all_is_asked=tell)
    assert failed == []
    assert left == [[Interval(at(6, 23, 20), at(7))]]

    left.clear()
    bench.replay.set_faults([Fault("502", market=DOGE, between=(at(6, 23), at(7)), count=4)])
    bench.connection.execute("DELETE FROM market_data WHERE symbol = %s", [DOGE])
    bench.connection.execute(
        "DELETE FROM trading_pipelines.candle_coverage WHERE symbol = %s", [DOGE]
    )
    assert bench.download([DOGE], days(5, 6), exchange=client, when_all_is_asked=tell) == []
    assert left == [[Interval(at(6, 22, 40), at(7))]], "asked again, the turn is the next one's"
    assert bench.replay.stats().faults["502"] == 6 + 4
    wanted = recorded_rows([BTC, DOGE], days(5, 6))
    assert differences(stored_rows(bench.connection), wanted) == []


# ---- the open day and the clocks ----

OPEN = date(2025, 9, 10)


def test_the_open_day_is_topped_up_minute_by_minute_and_asked_for_whole_after_midnight(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    sound = recorded_rows([BTC, DOGE], [OPEN])
    client = bench.client()

    def refresh() -> int:
        asked = bench.requests()
        assert bench.download([BTC, DOGE], [OPEN], f"run at {bench.now()}", client) == []
        return bench.requests() - asked

    bench.replay.set_clock(at(10, 12, 34, 30))
    assert refresh() == 2 * windows(12 * 60 + 34)
    held = part(sound, at(10), at(10, 12, 34))
    assert differences(stored_rows(bench.connection), held) == []
    known = bench.coverage([BTC, DOGE], [OPEN])
    assert {(day.status, day.fetched_until) for day in known} == {("partial", at(10, 12, 34))}
    assert [day.quiet for day in known] == [
        12 * 60 + 34 - sum(key[0] == symbol for key in held) for symbol in (BTC, DOGE)
    ]
    assert [day.holes(bench.now()) for day in known] == [0, 0]
    assert refresh() == 0, "no minute has closed since"

    # The bot freezes a minute after the last one asked for, and spoils one before it.
    insert(bench.connection, spoiled(part(sound, at(10, 12, 36), at(10, 12, 37))))
    bench.connection.execute(
        "UPDATE public.market_data SET volume = volume / 2 WHERE timestamp = '2025-09-10 11:00Z'"
    )
    frozen = stored_rows(bench.connection)
    before = versions(bench.connection)
    bench.replay.set_clock(at(10, 12, 39, 30))
    assert refresh() == 2
    held = part(sound, at(10), at(10, 12, 39))
    wanted = held | part(frozen, at(10, 11), at(10, 11, 1))
    assert differences(stored_rows(bench.connection), wanted) == []
    assert [day.repaired for day in bench.coverage([BTC, DOGE], [OPEN])] == [1, 1]
    assert len(before - versions(bench.connection)) == 2, "only the frozen candles were written"

    bench.replay.set_clock(at(11, 0, 0, 3))
    refresh()
    assert {day.status for day in bench.coverage([BTC, DOGE], [OPEN])} == {"partial"}
    bench.replay.set_clock(at(11, 0, 1, 30))
    assert refresh() == 2 * windows(1440)
    assert differences(stored_rows(bench.connection), sound) == []
    known = bench.coverage([BTC, DOGE], [OPEN])
    assert [(day.status, day.repaired, day.holes(bench.now())) for day in known] == [
        ("complete", 1, 0)
    ] * 2


def top_up(bench: Bench, moment: datetime, day: date, symbol: str = BTC) -> int:
    """Ask for a day at a moment of the exchange's clock; return how many requests it took."""
    bench.replay.set_clock(moment)
    asked = bench.requests()
    assert bench.download([symbol], [day], f"run at {moment}", bench.client()) == []
    return bench.requests() - asked


@pytest.mark.parametrize("kind", LATE)
def test_minutes_that_come_late_or_are_revised_are_there_with_the_next_look(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    sound = recorded_rows([BTC], [OPEN])
    bench.replay.set_faults([Fault(kind)])
    top_up(bench, at(10, 12, 1, 10), OPEN)
    known = part(sound, at(10), at(10, 12, 1))
    assert differences(stored_rows(bench.connection), known), "the copy was behind"
    bench.connection.execute(
        "INSERT INTO trading_pipelines.signal_coverage (asset, symbol, day, run_id) "
        "SELECT 'before', symbol, day, version FROM trading_pipelines.input_versions"
    )
    bench.replay.set_faults([])
    assert top_up(bench, at(10, 12, 6, 10), OPEN) == 1, "it costs no request of its own"
    known = part(sound, at(10), at(10, 12, 6))
    assert differences(stored_rows(bench.connection), known) == []
    (day,) = bench.coverage([BTC], [OPEN])
    assert day.quiet == 12 * 60 + 6 - len(known)
    changed = bench.connection.execute(
        "SELECT version <> run_id FROM trading_pipelines.input_versions AS now "
        "JOIN trading_pipelines.signal_coverage AS before USING (symbol, day)"
    ).fetchall()
    bench.connection.execute("TRUNCATE trading_pipelines.signal_coverage")
    assert changed == [(True,)], "what was computed from the hour that had closed is due"

    before = bench.connection.execute("SELECT version FROM trading_pipelines.input_versions")
    version = before.fetchall()
    top_up(bench, at(10, 12, 11, 10), OPEN)
    after = bench.connection.execute("SELECT version FROM trading_pipelines.input_versions")
    assert after.fetchall() == version, "minutes of the open hour make nothing due"


@pytest.mark.parametrize("kind", LATE)
def test_the_last_minutes_of_a_day_come_with_the_first_of_the_next(
    bench: Bench, recorded_rows: RecordedRows, kind: str
) -> None:
    next_day = OPEN + DAY
    bench.replay.set_faults([Fault(kind)])
    top_up(bench, at(11, 0, 1, 10), OPEN)
    sound = recorded_rows([BTC], [OPEN, next_day])
    (before,) = bench.coverage([BTC], [OPEN])
    assert before.complete
    assert differences(stored_rows(bench.connection), part(sound, at(10), at(11)))

    bench.replay.set_faults([])
    assert top_up(bench, at(11, 0, 6, 10), next_day) == 1
    known = part(sound, at(10), at(11, 0, 6))
    assert differences(stored_rows(bench.connection), known) == []
    (after,) = bench.coverage([BTC], [OPEN])
    of_day = len(part(sound, at(10), at(11)))
    assert (after.status, after.rows, after.quiet) == ("complete", of_day, 1440 - of_day)
    assert (after.requests, after.run_id) == (before.requests, before.run_id)
    assert not after.hours_current


def test_a_day_before_that_is_not_complete_is_left_to_its_own_partition(bench: Bench) -> None:
    top_up(bench, at(11, 0, 6, 10), OPEN + DAY)
    assert bench.coverage([BTC], [OPEN])[0].status == "missing"
    assert min(start for _, start in stored_rows(bench.connection)) == at(11)


def test_the_exchange_away_just_after_midnight_fails_the_day_that_was_asked_for(
    bench: Bench,
) -> None:
    top_up(bench, at(11, 0, 1, 10), OPEN)
    bench.replay.set_clock(at(11, 0, 6, 10))
    bench.replay.set_faults([Fault("502")])
    (failure,) = bench.download([BTC], [OPEN + DAY], "run", bench.client(attempts=1))
    assert failure.day == OPEN + DAY
    yesterday, today = bench.coverage([BTC], [OPEN, OPEN + DAY])
    assert (yesterday.status, yesterday.failures) == ("complete", 0)
    assert (today.status, today.failures) == ("failed", 1)


def test_a_minute_is_not_asked_for_within_five_seconds_of_its_end(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    bench.replay.set_clock(at(10, 0, 10, 1))
    assert bench.download([BTC], [OPEN]) == []
    wanted = part(recorded_rows([BTC], [OPEN]), at(10), at(10, 0, 9))
    assert differences(stored_rows(bench.connection), wanted) == []


@pytest.mark.parametrize("minutes", [10, -10])
@pytest.mark.parametrize("now", [at(10, 12, 34, 30), at(10, 23, 55, 30), at(11, 0, 4, 30)], ids=str)
def test_a_wrong_clock_of_ours_never_stores_a_candle_that_is_forming(
    bench: Bench, recorded_rows: RecordedRows, minutes: int, now: datetime
) -> None:
    asked_days = [OPEN, OPEN + DAY]
    sound = recorded_rows([BTC, DOGE], asked_days)
    closed = now.replace(second=0)
    bench.replay.set_clock(now)
    client = bench.client(shift=MINUTE * minutes)
    for run in ("first", "second"):
        assert bench.download([BTC, DOGE], asked_days, run, client) == []
        got = stored_rows(bench.connection)
        assert differences(got, {key: sound[key] for key in got}) == []
        assert max(start for _, start in got) < closed
        statuses = {day.status for day in bench.coverage([BTC, DOGE], [OPEN])}
        assert closed >= at(11) or statuses == {"partial"}
    # Since its first answer the client goes by the exchange's clock.
    assert differences(stored_rows(bench.connection), part(sound, at(10), closed)) == []
    if closed >= at(11):
        assert statuses == {"complete"}


def test_an_answer_that_was_long_on_its_way_is_no_proof_that_its_minutes_had_closed(
    connection: psycopg.Connection,
    recorded_market: Recording,
    recorded_rows: RecordedRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The margin covers a second or two; without it the way is longer than the margin.
    monkeypatch.setattr(exchange_module, "CLOSE_MARGIN", timedelta(0))
    with ReplayExchange(recorded_market, rate=None, latency=1.5) as replay:
        bench = Bench(connection, replay)
        replay.set_clock(at(10, 0, 1, 59))
        page = bench.client().page(BTC, Interval(at(10), at(10, 0, 2)))
    sound = part(recorded_rows([BTC], [OPEN]), at(10), at(10, 0, 5))
    got = {(BTC, candle.start): tuple(candle[1:]) for candle in page.candles}
    assert differences(got, {key: sound[key] for key in got}) == []


# ---- two at once ----


def test_two_downloads_of_the_same_days_at_once_end_in_the_same_rows(
    bench: Bench, market_url: str, recorded_rows: RecordedRows
) -> None:
    symbols, asked_days = [DOGE, BTC], days(12, 14)
    insert(bench.connection, spoiled(part(recorded_rows(symbols, asked_days), at(12), at(13))))
    barrier = threading.Barrier(2)
    failed: dict[str, list[FailedDay]] = {}

    def run(run_id: str) -> None:
        with connect(market_url) as connection:
            client = bench.client()
            barrier.wait()
            failed[run_id] = download(connection, client, symbols, asked_days, run_id, HEALING)

    threads = [threading.Thread(target=run, args=[name]) for name in ("schedule", "backfill")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == {"schedule": [], "backfill": []}
    wanted = recorded_rows(symbols, asked_days)
    assert differences(stored_rows(bench.connection), wanted) == []
    known = bench.coverage(symbols, asked_days)
    assert {(day.status, day.holes(bench.now())) for day in known} == {("complete", 0)}
    assert all(day.rows == day.stored and day.rows + day.quiet == 1440 for day in known)
