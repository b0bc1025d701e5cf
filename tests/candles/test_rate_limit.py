"""One limit for every process of an installation, over the real Postgres."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import requests

from tests.candles.conftest import Bench
from trading_pipelines.candles.rate_limit import (
    RESERVE,
    BlockedError,
    RequestSlots,
    Slot,
    blocked_until,
)
from trading_pipelines.candles.windows import MINUTE, Interval
from trading_pipelines.database.connection import connect
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

UPBIT = "https://api.upbit.com"
SECOND = timedelta(seconds=1)

RESERVING = """
import sys
from datetime import UTC, datetime, timedelta
from trading_pipelines.database.connection import connect
from trading_pipelines.candles.rate_limit import RequestSlots

market_url, rate = sys.argv[1:]
with connect(market_url) as connection:
    slots = RequestSlots(connection, "https://api.upbit.com", float(rate))
    print("ready", flush=True)
    until = datetime.fromisoformat(sys.stdin.readline().strip())
    while True:
        slot = slots.reserve()
        woke = datetime.now(UTC)
        if woke >= until:
            break
        print(slot.at.isoformat(), woke.isoformat())
"""


def most_in_a_second(moments: list[datetime]) -> int:
    """Return the most moments that lie in any second, [t, t + 1 s)."""
    oldest = most = 0
    for n, moment in enumerate(moments):
        while moments[oldest] <= moment - SECOND:
            oldest += 1
        most = max(most, n + 1 - oldest)
    return most


def test_processes_together_keep_the_limit_and_leave_little_of_it_unused(market_url: str) -> None:
    rate, seconds = 20, 3
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RESERVING, market_url, str(rate)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        began = datetime.now(UTC)
        said = f"{(began + SECOND * seconds).isoformat()}\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write(said)
            child.stdin.flush()
        lines = [line.split() for child in children for line in child.communicate()[0].splitlines()]
    reserved = sorted(
        (datetime.fromisoformat(at), datetime.fromisoformat(woke)) for at, woke in lines
    )
    slots = [at for at, _ in reserved]
    assert most_in_a_second(slots) <= rate
    assert len(set(slots)) == len(slots)
    assert all(woke >= at for at, woke in reserved), "nobody goes before the slot has come"
    assert len(reserved) > 0.9 * rate * seconds


@pytest.fixture
def other(market_url: str) -> Iterator[psycopg.Connection]:
    """A second process' connection."""
    with connect(market_url) as connection:
        yield connection


def next_at(connection: psycopg.Connection) -> datetime:
    row = connection.execute("SELECT next_at FROM trading_pipelines.request_slots").fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def test_the_limit_of_ten_is_kept_to_the_slot(connection: psycopg.Connection) -> None:
    slots = RequestSlots(connection, UPBIT, 10)
    taken = [slots.reserve() for _ in range(12)]
    assert most_in_a_second([slot.at for slot in taken]) <= 10
    for slot in taken:
        assert slot.in_last_second == sum(slot.at - SECOND < one.at <= slot.at for one in taken)


def test_the_tenth_after_a_request_that_left_late_waits_for_its_second(
    connection: psycopg.Connection,
) -> None:
    slots = RequestSlots(connection, UPBIT, 100)
    first, *others = [slots.reserve() for _ in range(10)]
    late = timedelta(milliseconds=50)
    slots.note_sent(first, first.due + late.total_seconds())
    slots.note_sent(others[0], others[0].due + 0.001)
    after, next_one = slots.reserve(), slots.reserve()
    tenth_of_a_second = SECOND / 10
    assert after.at - (first.at + late) >= tenth_of_a_second
    assert next_one.at - after.at < timedelta(milliseconds=11), "what left in time costs nothing"


def test_the_tenth_after_it_waits_though_it_had_its_slot_before_and_others_have_theirs_behind(
    connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    slots, others = RequestSlots(connection, UPBIT, 100), RequestSlots(other, UPBIT, 100)
    first, *_ = [slots.reserve() for _ in range(10)]
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        if not sleeps:
            for _ in range(5):
                others.reserve(sleep=lambda _: None)
            slots.note_sent(first, first.due + 0.05)
        sleeps.append(seconds)
        time.sleep(seconds)

    tenth = slots.reserve(sleep=sleep)
    assert time.monotonic() - (first.due + 0.05) >= 0.1
    assert tenth.due - first.due < 0.11, "its lateness is told by its own slot"


def test_an_answer_of_the_database_that_was_long_on_its_way_makes_no_slot_later(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = connection.execute

    def execute(query: str, *arguments: Any) -> psycopg.Cursor[Any]:
        answer = ask(query, *arguments)
        if query == RESERVE:
            time.sleep(1)
        return answer

    slots = RequestSlots(connection, UPBIT, 0.5)
    slots.reserve()
    monkeypatch.setattr(connection, "execute", execute)
    slot = slots.reserve()
    ((late,),) = ask("SELECT clock_timestamp() - %s", [slot.at]).fetchall()
    assert late < SECOND / 2
    assert time.monotonic() - slot.due >= late.total_seconds(), "its lateness is no less"


def test_a_pause_holds_back_every_process(
    connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    mine, theirs = RequestSlots(connection, UPBIT, 100), RequestSlots(other, UPBIT, 100)
    before = time.monotonic()
    mine.pause(1.0)
    theirs.reserve()
    assert time.monotonic() - before >= 1
    mine.pause(0.0)
    before = time.monotonic()
    mine.reserve()
    assert time.monotonic() - before < 1


def test_a_long_wait_for_a_slot_is_told_before_it_begins_and_a_short_one_is_not(
    connection: psycopg.Connection,
) -> None:
    happened: list[str] = []

    def sleep(seconds: float) -> None:
        if seconds > 1:
            happened.append(f"slept {seconds:.0f} s")

    slots = RequestSlots(connection, UPBIT, 100)
    slots.pause(9)
    slots.reserve(happened.append, sleep)
    slots.pause(60)
    slots.reserve(happened.append, sleep)
    told = "waiting 60 s for the next request that the rate limit leaves"
    assert happened == ["slept 9 s", told, "slept 60 s"]


def test_exchanges_have_limits_of_their_own(connection: psycopg.Connection) -> None:
    RequestSlots(connection, UPBIT, 100).pause(60)
    RequestSlots(connection, "http://127.0.0.1:1", 100).reserve()


def early_slot(slots: RequestSlots) -> Slot:
    """Reserve until a slot lies well before the end of its second."""
    while (slot := slots.reserve()).at.microsecond > 700_000:
        pass
    return slot


@pytest.mark.parametrize(
    ("remaining", "ours", "waits"),
    [
        (9, 1, False),
        (1, 1, False),
        (0, 1, True),  # somebody else has used the other nine
        (0, 9, True),
        (0, 10, False),  # all of them were ours
    ],
)
def test_a_used_up_second_is_waited_out_unless_our_own_requests_explain_it(
    connection: psycopg.Connection, remaining: int, ours: int, *, waits: bool
) -> None:
    slots = RequestSlots(connection, UPBIT, 10)
    slot = early_slot(slots)
    usual = next_at(connection)
    slots.obey(remaining, Slot(slot.at, ours, slot.due))
    second_over = slot.at.replace(microsecond=0) + SECOND
    assert second_over > usual
    assert next_at(connection) == (second_over if waits else usual)


def test_an_installation_that_takes_half_the_line_obeys_who_takes_the_other(
    connection: psycopg.Connection,
) -> None:
    # Set to 5 a second so that the bot may have the rest: 5 of ours do not explain a used-up 10.
    slots = RequestSlots(connection, UPBIT, 5)
    slot = early_slot(slots)
    slots.obey(0, Slot(slot.at, 5, slot.due))
    assert next_at(connection) == slot.at.replace(microsecond=0) + SECOND


def test_somebody_elses_requests_slow_ours_down_before_the_exchange_refuses_any(
    connection: psycopg.Connection, recorded_market: Recording
) -> None:
    with ReplayExchange(recorded_market, rate=10) as replay:
        client = Bench(connection, replay).client(requests_per_second=10.0)
        window = Interval(recorded_market.first, recorded_market.first + MINUTE)
        url = f"{replay.url}/v1/candles/minutes/1"
        with requests.Session() as bot:
            for _ in range(9):
                assert bot.get(url, params={"market": "KRW-BTC"}, timeout=60).status_code == 200
        before = datetime.now(UTC)
        client.page("KRW-BTC", window)
        assert next_at(connection) >= before.replace(microsecond=0) + SECOND
        assert replay.stats().refused == 0


def test_a_refused_request_holds_everybody_back_for_a_second_and_is_asked_again(
    connection: psycopg.Connection, other: psycopg.Connection, recorded_market: Recording
) -> None:
    with ReplayExchange(recorded_market, rate=10) as replay:
        bench = Bench(connection, replay)
        client = bench.client(requests_per_second=10.0)
        theirs = RequestSlots(other, replay.url, 10)
        window = Interval(recorded_market.first, recorded_market.first + MINUTE)
        url = f"{replay.url}/v1/candles/minutes/1"
        with requests.Session() as bot:
            for _ in range(10):
                bot.get(url, params={"market": "KRW-BTC"}, timeout=60)
        before = time.monotonic()
        page = client.page("KRW-BTC", window)
        assert len(page.candles) == 1
        assert (page.spent.requests, page.spent.retries) == (2, 1)
        theirs.reserve()
        assert time.monotonic() - before >= 1
        assert replay.stats().refused == 1


# ---- blocks ----


def block(slots: RequestSlots, retry_after: timedelta | None = None) -> BlockedError:
    """Return the block that a request of this moment has met."""
    return slots.block(retry_after, Slot(datetime.now(UTC), 1, 0.0))


def waits(connection: psycopg.Connection, blocked: BlockedError) -> float:
    """Return how long the block lasts, in seconds."""
    assert blocked_until(connection) == blocked.until
    return (blocked.until - datetime.now(UTC)).total_seconds()


def test_blocks_double_from_a_minute_to_an_hour_and_a_day_of_peace_starts_them_over(
    connection: psycopg.Connection,
) -> None:
    slots = RequestSlots(connection, UPBIT, 100)
    assert blocked_until(connection) is None
    grown = [waits(connection, block(slots)) for _ in range(8)]
    assert grown == pytest.approx([60, 120, 240, 480, 960, 1920, 3600, 3600], abs=5)

    connection.execute(
        "UPDATE trading_pipelines.request_slots SET blocked_until = now() - interval '23 hours'"
    )
    assert waits(connection, block(slots)) == pytest.approx(3600, abs=5)
    connection.execute(
        "UPDATE trading_pipelines.request_slots SET blocked_until = now() - interval '25 hours'"
    )
    assert waits(connection, block(slots)) == pytest.approx(60, abs=5)


def test_a_block_of_weeks_is_still_asked_about_every_hour(connection: psycopg.Connection) -> None:
    slots = RequestSlots(connection, UPBIT, 100)
    for _ in range(100):
        blocked = block(slots)
    assert waits(connection, blocked) == pytest.approx(3600, abs=5)


def test_what_the_exchange_says_of_its_block_is_obeyed(connection: psycopg.Connection) -> None:
    slots = RequestSlots(connection, UPBIT, 100)
    block(slots)
    assert waits(connection, block(slots, timedelta(seconds=90))) == pytest.approx(90, abs=5)
    assert waits(connection, block(slots, timedelta(hours=3))) == pytest.approx(10800, abs=5)


def test_during_a_block_nobody_gets_a_slot_and_after_it_everybody(
    connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    mine, theirs = RequestSlots(connection, UPBIT, 100), RequestSlots(other, UPBIT, 100)
    until = block(mine, timedelta(seconds=0.3)).until
    for slots in (mine, theirs):
        with pytest.raises(
            BlockedError, match=r"api\.upbit\.com has blocked this address until"
        ) as one:
            slots.reserve()
        assert one.value.until == until
    while datetime.now(UTC) < until:
        time.sleep(0.01)
    assert theirs.reserve().at >= until
    assert blocked_until(connection) is None


# ---- slots that were reserved ahead ----


def test_a_pause_makes_slots_void_that_were_reserved_before_it_and_not_used_yet(
    connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    mine, theirs = RequestSlots(connection, UPBIT, 0.2), RequestSlots(other, UPBIT, 0.2)
    mine.reserve()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        if not slept:
            theirs.pause(60)
        if seconds > 1:
            slept.append(seconds)

    slot = mine.reserve(sleep=sleep)
    assert slept == [pytest.approx(5, abs=1), pytest.approx(60, abs=1)]
    assert slot.at > datetime.now(UTC) + SECOND * 55


def test_a_block_also_ends_the_wait_for_a_slot_that_was_reserved_before_it(
    connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    mine, theirs = RequestSlots(connection, UPBIT, 0.2), RequestSlots(other, UPBIT, 0.2)
    mine.reserve()
    with pytest.raises(BlockedError):
        mine.reserve(sleep=lambda _: block(theirs))


def test_requests_that_were_under_way_together_when_a_block_began_are_one_offence(
    connection: psycopg.Connection,
) -> None:
    slots = RequestSlots(connection, UPBIT, 100)
    together = [slots.reserve() for _ in range(4)]
    first = slots.block(None, together[0])
    assert waits(connection, first) == pytest.approx(60, abs=5)
    assert slots.block(None, together[1]).until == first.until
    assert waits(connection, slots.block(SECOND * 90, together[2])) == pytest.approx(90, abs=5)
    assert slots.block(SECOND * 10, together[3]).until > first.until, "the longest is obeyed"
    assert waits(connection, block(slots)) == pytest.approx(120, abs=5)
