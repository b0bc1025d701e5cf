"""What the messages add up to, and the exchange's clock: scripted, without a line or a database."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from trading_pipelines.candles.page import Candle
from trading_pipelines.live.clock import ExchangeClock
from trading_pipelines.live.confirm import next_look
from trading_pipelines.live.edge import Closed, Edge, Verdict
from trading_pipelines.live.stream import BadMessageError, NoStreamError, Shown, read

BTC, ETH = "KRW-BTC", "KRW-ETH"
GRACE, LATE = timedelta(seconds=2), timedelta(seconds=60)


def at(minute: int, second: float = 0.0) -> datetime:
    return datetime(2026, 9, 24, 18, tzinfo=UTC) + timedelta(minutes=minute, seconds=second)


def shown(minute: int, second: float, volume: int = 1, symbol: str = BTC) -> Shown:
    """A minute as it was after the trade at its `second`."""
    price = Decimal(100 + volume)
    candle = Candle(at(minute), Decimal(100), price, Decimal(100), price, Decimal(volume))
    return Shown(symbol, candle, at(minute, second))


@pytest.fixture
def edge() -> Edge:
    return Edge([BTC, ETH], GRACE, LATE)


def write(edge: Edge, now: datetime) -> list[Closed]:
    closed = edge.closed(now)
    edge.note_written(closed, now)
    return closed


def test_a_minute_closes_by_the_clock_and_its_grace_alone(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10.2))
    edge.take(shown(0, 50, 2), at(0, 50.2))
    # The next minute has begun, for this symbol and for another one.
    edge.take(shown(1, 0.5), at(1, 0.7))
    edge.take(shown(1, 0.5, symbol=ETH), at(1, 0.7))
    assert write(edge, at(1, 1.9)) == []
    assert write(edge, at(1, 2)) == [Closed(BTC, shown(0, 50, 2).candle, is_late=False)]
    assert write(edge, at(1, 30)) == []


def test_a_minute_without_a_message_is_not_written(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10))
    assert [closed.symbol for closed in write(edge, at(3))] == [BTC]


def test_doubles_and_older_messages_of_a_minute_change_nothing(edge: Edge) -> None:
    newest = shown(0, 50, 3)
    verdicts = [
        edge.take(message, at(0, 51)) for message in (newest, newest, shown(0, 20, 2), newest)
    ]
    assert verdicts == [Verdict.NEW, *[Verdict.KNOWN] * 3]
    assert write(edge, at(1, 2)) == [Closed(BTC, newest.candle, is_late=False)]
    assert edge.take(newest, at(1, 3)) is Verdict.KNOWN
    assert write(edge, at(1, 3)) == []


def test_the_last_trade_of_a_minute_may_come_after_the_next_has_begun(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10))
    edge.take(shown(1, 0.1), at(1, 0.2))
    assert edge.take(shown(0, 59.9, 2), at(1, 0.9)) is Verdict.NEW
    assert [closed.candle for closed in write(edge, at(1, 2))] == [shown(0, 59.9, 2).candle]


def test_a_late_message_rewrites_its_minute_within_the_bound(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10))
    write(edge, at(1, 2))
    assert edge.take(shown(0, 59.9, 2), at(1, 40)) is Verdict.LATE
    assert write(edge, at(1, 40)) == [Closed(BTC, shown(0, 59.9, 2).candle, is_late=True)]
    assert edge.take(shown(0, 59.95, 3), at(2)) is Verdict.OLD
    assert write(edge, at(2)) == []


def test_what_is_shown_while_it_is_written_is_written_too(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10))
    closed = edge.closed(at(1, 2))
    edge.take(shown(0, 59.9, 2), at(1, 2.1))
    edge.note_written(closed, at(1, 2.2))
    assert [closed.candle for closed in write(edge, at(1, 2.2))] == [shown(0, 59.9, 2).candle]


def test_a_minute_that_could_not_be_written_waits(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10))
    edge.closed(at(1, 2))
    edge.note_written([], at(30))
    assert len(write(edge, at(30))) == 1


def test_a_minute_in_which_the_stream_was_cut_is_left_to_rest(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10))
    edge.cut()
    assert write(edge, at(1, 30)) == []


@pytest.mark.parametrize("snapshot", [shown(0, 10), shown(0, 40, 2)])
def test_the_snapshot_after_a_cut_makes_its_minute_whole(edge: Edge, snapshot: Shown) -> None:
    edge.take(shown(0, 10), at(0, 10))
    edge.cut()
    edge.take(snapshot, at(0, 45))
    assert [closed.candle for closed in write(edge, at(1, 2))] == [snapshot.candle]


def test_a_snapshot_from_before_the_cut_does_not(edge: Edge) -> None:
    edge.take(shown(0, 20, 2), at(0, 20))
    edge.cut()
    edge.take(shown(0, 10), at(0, 45))
    assert write(edge, at(1, 2)) == []


def test_a_cut_leaves_what_was_written_and_what_came_late(edge: Edge) -> None:
    edge.take(shown(0, 10), at(0, 10))
    write(edge, at(1, 2))
    edge.take(shown(0, 59, 2), at(1, 3))
    edge.cut()
    assert len(write(edge, at(1, 4))) == 1


def test_the_snapshot_of_a_quiet_market_is_old(edge: Edge) -> None:
    assert edge.take(shown(0, 10), at(7)) is Verdict.OLD
    assert write(edge, at(7)) == []


def test_the_minute_before_is_taken_from_a_snapshot(edge: Edge) -> None:
    assert edge.take(shown(0, 10), at(1, 20)) is Verdict.LATE
    assert write(edge, at(1, 20)) == [Closed(BTC, shown(0, 10).candle, is_late=False)]


def test_another_market_and_a_minute_of_the_future_are_left_out(edge: Edge) -> None:
    assert edge.take(shown(0, 10, symbol="KRW-XRP"), at(0, 10)) is Verdict.FOREIGN
    assert edge.take(shown(5, 10), at(0, 10)) is Verdict.FUTURE
    assert write(edge, at(9)) == []


# ---- the clock ----


class Ticks:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_the_clock_is_not_known_before_the_exchange_has_said_it() -> None:
    clock = ExchangeClock(Ticks())
    assert not clock.note_trade(at(0))
    assert clock.now() is None


def test_the_clock_never_runs_ahead_of_the_exchange() -> None:
    """A Date is cut to its second; a trade says that it is at least as late."""
    ticks = Ticks()
    clock = ExchangeClock(ticks)
    clock.note_date(at(0, 10), 0.2)
    assert clock.now() == at(0, 10)
    assert clock.note_trade(at(0, 10.7))
    ticks.seconds += 5
    assert clock.now() == at(0, 15.7)
    # What was traded before says nothing.
    assert clock.note_trade(at(0, 3))
    assert clock.now() == at(0, 15.7)
    # Ours has run too fast: a new Date sets it back.
    clock.note_date(at(0, 14), 0.2)
    assert clock.now() == at(0, 14)


def test_a_trade_from_the_future_moves_no_clock() -> None:
    clock = ExchangeClock(Ticks())
    clock.note_date(at(0, 10), 0.2)
    assert not clock.note_trade(at(0, 14))
    assert clock.now() == at(0, 10)


# ---- what is believed ----

GOOD = {
    "type": "candle.1m", "code": BTC, "candle_date_time_utc": "2026-09-24T18:26:00",
    "opening_price": 100.5, "high_price": 110, "low_price": 99.5, "trade_price": 101,
    "candle_acc_trade_volume": 1.23456789, "candle_acc_trade_price": 5, "timestamp": 1790274370123,
    "stream_type": "REALTIME",
}  # fmt: skip


@pytest.mark.parametrize("encode", [str, str.encode])
def test_a_candle_is_read_to_the_digit_from_text_and_binary(encode: type) -> None:
    symbol, candle, traded_at = read(encode(json.dumps(GOOD))) or pytest.fail("no candle")
    assert (symbol, candle.start) == (BTC, at(26))
    numbers = [Decimal(n) for n in ("100.5", "110", "99.5", "101", "1.23456789")]
    assert list(candle[1:]) == numbers
    assert traded_at == datetime(2026, 9, 24, 18, 26, 10, 123000, tzinfo=UTC)


def test_the_answer_to_a_ping_says_nothing() -> None:
    assert read('{"status":"UP"}') is None


def test_an_error_of_the_exchanges_ends_the_connection() -> None:
    with pytest.raises(NoStreamError, match="NO_CODES"):
        read('{"error": {"name": "NO_CODES", "message": "codes"}}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        b"\xff\xfe\x00",
        json.dumps(GOOD)[:200],
        "[" * 100_000,
        *(
            json.dumps(GOOD | change)
            for change in (
                {"type": "candle.3m"},
                {"type": "trade"},
                {"code": None},
                {"code": ["KRW-BTC"]},
                {"timestamp": "1790274370123"},
                {"timestamp": True},
                {"timestamp": 10**30},
                {"timestamp": -1},
                {"candle_date_time_utc": "2026-09-24T18:26:07"},
                {"candle_date_time_utc": "soon"},
                {"candle_date_time_utc": None},
                {"trade_price": None},
                {"trade_price": "101"},
                {"trade_price": float("nan")},
                {"low_price": 105},
                {"low_price": 0},
                {"high_price": 1e30, "trade_price": 1e30},
                {"candle_acc_trade_volume": -1},
            )
        ),
    ],
)
def test_what_is_no_candle_is_not_believed(text: str | bytes) -> None:
    with pytest.raises(BadMessageError):
        read(text)


# ---- when REST is asked ----


@pytest.mark.parametrize(
    ("reached", "wanted", "step", "until"),
    [
        (at(3), at(0), 5, at(5)),
        (at(5), at(0), 5, at(10)),
        (at(55), at(0), 7, at(60)),
        (at(5), at(7), 5, at(7)),
        (at(8), at(7), 1, at(9)),
        (at(5 * 60 + 58), at(0), 60, at(6 * 60)),
    ],
)
def test_rest_is_asked_by_its_step_at_each_hour_and_for_a_hole(
    reached: datetime, wanted: datetime, step: int, until: datetime
) -> None:
    assert next_look(reached, wanted, timedelta(minutes=step)) == until
