"""The RSI against the bot's arithmetic, pandas' exponential means, and against looking ahead."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SYMBOLS
from trading_pipelines.database.connection import connect
from trading_pipelines.signals.regimes.rsi import (
    CLOSES,
    PERIODS,
    STALE,
    Rsi,
    rsi_as_of,
    wilder_rsi,
)

BTC, ETH = "KRW-BTC", "KRW-ETH"
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
FIRST = datetime(2025, 9, 1, tzinfo=UTC)


def reference(closes: Sequence[float]) -> float:
    """Wilder's RSI as the bot has it: exponential means of gains and losses, alpha 1/14."""
    changes = pd.Series(closes).diff().iloc[1:]
    gain, loss = (
        part.clip(lower=0).ewm(alpha=1 / 14, adjust=False).mean().iloc[-1]
        for part in (changes, -changes)
    )
    return float(100 - 100 / (1 + gain / loss)) if loss else 100.0


def rsi(closes: Sequence[float]) -> float | None:
    return wilder_rsi(np.array(closes, dtype=np.float64))


def approximately(value: float) -> Any:
    return pytest.approx(value, abs=1e-6)


def bots(closes: Sequence[float]) -> float:
    """Replay the bot's arithmetic on its newest 200 rows, as its own code has it."""
    rows = pd.Series(closes).tail(200)
    changes = rows.diff()
    gain = changes.clip(lower=0).ewm(alpha=1 / 14, min_periods=14, adjust=False).mean()
    loss = -changes.clip(upper=0).ewm(alpha=1 / 14, min_periods=14, adjust=False).mean()
    return round(float((100 - 100 / (1 + gain / loss)).iloc[-1]), 1)


def store(connection: psycopg.Connection, symbol: str, closes: dict[datetime, float]) -> None:
    """Store minutes by their start; one that is there is replaced."""
    for minute, close in closes.items():
        connection.execute(
            "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, "
            "low_price, close_price, volume) VALUES (%(symbol)s, '1m', %(minute)s, %(close)s, "
            "%(close)s, %(close)s, %(close)s, 1) ON CONFLICT (symbol, interval, timestamp) "
            "DO UPDATE SET close_price = excluded.close_price",
            {"symbol": symbol, "minute": minute, "close": close},
        )


def minutes(count: int, scale: float = 1.0) -> dict[datetime, float]:
    """Closes that go up and down without a pattern that an RSI would be blind to."""
    return {FIRST + n * MINUTE: scale * (1000 + (n * n * 37) % 101) for n in range(count)}


PRICES = st.floats(min_value=0.0001, max_value=2e8)


@given(
    st.lists(PRICES, min_size=PERIODS + 1, max_size=250)
    .filter(lambda closes: any(one != other for one, other in pairwise(closes)))
)  # fmt: skip
def test_it_is_what_pandas_says(closes: list[float]) -> None:
    assert rsi(closes) == pytest.approx(reference(closes), abs=1e-6)


@given(st.lists(PRICES, max_size=PERIODS))
def test_fourteen_closes_are_too_few(closes: list[float]) -> None:
    assert rsi(closes) is None


@pytest.mark.parametrize(
    ("closes", "expected"),
    [
        (range(1, 16), 100.0),
        (range(15, 0, -1), 0.0),
        ([5] * 15, 50.0),
        ([5] * 300, 50.0),
        ([*[5] * 14, 6], 100.0),
        ([*[5] * 14, 4], 0.0),
        # The first change counts whole, each later one for a fourteenth.
        ([10, 20, *[20] * 12, 10], 100 * (13 / 14) ** 13 / ((13 / 14) ** 13 + 1 / 14)),
    ],
)
def test_where_the_answer_is_known(closes: Sequence[float], expected: float) -> None:
    assert rsi(closes) == pytest.approx(expected, abs=1e-9)


def test_it_is_what_the_bot_computes_of_its_newest_200_minutes(
    connection: psycopg.Connection,
) -> None:
    closes = minutes(260)
    # The first of the 200 has a close that the 201st before it would make another RSI of.
    closes[FIRST + 59 * MINUTE] = 1e7
    store(connection, BTC, closes)
    moment = FIRST + 260 * MINUTE
    found = rsi_as_of(connection, BTC, moment)
    assert found is not None
    assert round(found.value, 1) == bots(list(closes.values()))
    assert found.as_of == moment


def test_of_what_no_longer_is_among_the_200_nothing_counts(connection: psycopg.Connection) -> None:
    closes = minutes(CLOSES + 60)
    store(connection, BTC, closes)
    moment = FIRST + len(closes) * MINUTE
    before = rsi_as_of(connection, BTC, moment)
    store(connection, BTC, {FIRST + n * MINUTE: 1.0 for n in range(60)})
    assert rsi_as_of(connection, BTC, moment) == before
    store(connection, BTC, {FIRST + 60 * MINUTE: 9e11})
    assert rsi_as_of(connection, BTC, moment) != before, "the first of the 200 counts"


def test_it_is_of_the_symbols_own_minutes_that_had_closed(connection: psycopg.Connection) -> None:
    closes = minutes(48)
    store(connection, BTC, closes)
    store(connection, ETH, minutes(48, scale=3.0) | {FIRST + 20 * MINUTE: 1.0})
    connection.execute(
        "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, low_price, "
        "close_price, volume) VALUES (%s, '1h', %s, 1, 1, 1, 1, 1)",
        [BTC, FIRST],
    )
    for count in (PERIODS + 1, 30, 48):
        end = FIRST + count * MINUTE
        expected = reference(list(closes.values())[:count])
        for moment in (end, end + SECOND, end + MINUTE - SECOND):
            found = rsi_as_of(connection, BTC, moment)
            assert found is not None
            assert (found.value, found.as_of) == (approximately(expected), end), moment
    assert rsi_as_of(connection, BTC, FIRST + PERIODS * MINUTE) is None
    assert rsi_as_of(connection, "KRW-XRP", FIRST + 48 * MINUTE) is None


@pytest.mark.parametrize("seconds", [0, 1, 59])
def test_what_comes_after_the_moment_changes_nothing(
    connection: psycopg.Connection, seconds: int
) -> None:
    closes = minutes(60)
    store(connection, BTC, closes)
    moment = FIRST + 40 * MINUTE + seconds * SECOND
    before = rsi_as_of(connection, BTC, moment)
    later = {minute: 1.0 for minute in closes if minute + MINUTE > moment}
    assert min(later) == FIRST + 40 * MINUTE, "the minute that is open is what comes after"
    store(connection, BTC, later)
    assert rsi_as_of(connection, BTC, moment) == before
    connection.execute("DELETE FROM market_data WHERE timestamp > %s", [FIRST + 40 * MINUTE])
    assert rsi_as_of(connection, BTC, moment) == before
    store(connection, BTC, {FIRST + 39 * MINUTE: 1.0})
    assert rsi_as_of(connection, BTC, moment) != before, "the last closed minute counts"


def test_a_minute_that_the_bot_had_while_it_was_forming_is_named_and_not_counted(
    connection: psycopg.Connection,
) -> None:
    store(connection, BTC, minutes(40))
    at = FIRST + 40 * MINUTE
    closed = rsi_as_of(connection, BTC, at + 20 * SECOND)
    store(connection, BTC, {at: 1e6})
    for moment in (at, at + 20 * SECOND, at + 59 * SECOND):
        found = rsi_as_of(connection, BTC, moment)
        assert found is not None
        assert closed is not None
        assert (found.value, found.as_of, found.open_minute) == (closed.value, at, at)
    after = rsi_as_of(connection, BTC, at + MINUTE)
    assert after is not None
    assert after.open_minute is None, "it has closed"


def test_a_minute_that_we_stored_once_it_had_closed_was_not_there_before(
    connection: psycopg.Connection,
) -> None:
    at = FIRST + 40 * MINUTE
    store(connection, BTC, minutes(41))
    asked_for = (
        "INSERT INTO trading_pipelines.candle_coverage (symbol, interval, day, fetched_until, "
        "confirmed_until, status) VALUES (%s, '1m', %s, %s, %s, 'partial') "
        "ON CONFLICT (symbol, interval, day) DO UPDATE SET fetched_until = excluded.fetched_until"
    )
    for until, expected in ((at, at), (at + MINUTE, None)):
        connection.execute(asked_for, [BTC, FIRST.date(), until, FIRST])
        found = rsi_as_of(connection, BTC, at + 20 * SECOND)
        assert found is not None
        assert found.open_minute == expected


def test_minutes_that_ended_long_before_say_nothing(connection: psycopg.Connection) -> None:
    store(connection, BTC, minutes(40))
    end = FIRST + 40 * MINUTE
    known = rsi_as_of(connection, BTC, end)
    assert known is not None
    assert rsi_as_of(connection, BTC, end + STALE) == known
    assert rsi_as_of(connection, BTC, end + STALE + SECOND) is None


def test_a_minute_in_which_nothing_was_traded_is_left_out(connection: psycopg.Connection) -> None:
    closes = {minute: close for minute, close in minutes(60).items() if minute.minute % 5}
    store(connection, BTC, closes)
    found = rsi_as_of(connection, BTC, FIRST + 60 * MINUTE)
    assert found == Rsi(approximately(reference(list(closes.values()))), max(closes) + MINUTE)


def test_on_recorded_markets_it_is_what_the_bot_computed(
    recorded_url: str, recorded: pd.DataFrame
) -> None:
    closes_of = recorded.set_index("timestamp_utc").groupby("symbol")["close"]
    with connect(recorded_url) as connection:
        for symbol in SYMBOLS:
            closes = closes_of.get_group(symbol)
            for at in closes.index[300::5000]:
                found = rsi_as_of(connection, symbol, at.to_pydatetime() + MINUTE)
                assert found is not None
                assert found.as_of == at + MINUTE
                assert round(found.value, 1) == pytest.approx(bots(list(closes[:at])), abs=0.11)
