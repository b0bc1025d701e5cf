"""The RSI against pandas' own exponential means, and against looking ahead."""

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
from trading_pipelines.signals.regimes.regime import STALE
from trading_pipelines.signals.regimes.rsi import HOURS, PERIODS, Rsi, rsi_as_of, wilder_rsi

BTC, ETH = "KRW-BTC", "KRW-ETH"
HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
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


def store(connection: psycopg.Connection, symbol: str, closes: dict[datetime, float]) -> None:
    """Store hours by their start; one that is there is replaced."""
    for hour, close in closes.items():
        connection.execute(
            "INSERT INTO trading_pipelines.candles_1h (symbol, timestamp, open_price, high_price, "
            "low_price, close_price, volume, minutes) VALUES (%(symbol)s, %(hour)s, %(close)s, "
            "%(close)s, %(close)s, %(close)s, 1, 60) ON CONFLICT (symbol, timestamp) "
            "DO UPDATE SET close_price = excluded.close_price",
            {"symbol": symbol, "hour": hour, "close": close},
        )


def hourly(count: int, first: datetime = FIRST, scale: float = 1.0) -> dict[datetime, float]:
    """Closes that go up and down without a pattern that an RSI would be blind to."""
    return {first + n * HOUR: scale * (1000 + (n * n * 37) % 101) for n in range(count)}


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


def test_it_is_of_the_symbols_own_hours_that_had_closed(connection: psycopg.Connection) -> None:
    closes = hourly(48)
    store(connection, BTC, closes)
    store(connection, ETH, hourly(48, scale=3.0) | {FIRST + 20 * HOUR: 1.0})
    for count in (PERIODS + 1, 30, 48):
        end = FIRST + count * HOUR
        expected = reference(list(closes.values())[:count])
        for moment in (end, end + SECOND, end + HOUR - SECOND):
            found = rsi_as_of(connection, BTC, moment)
            assert found == Rsi(approximately(expected), end), moment
    assert rsi_as_of(connection, BTC, FIRST + PERIODS * HOUR) is None
    assert rsi_as_of(connection, "KRW-XRP", FIRST + 48 * HOUR) is None


@pytest.mark.parametrize("minutes", [0, 1, 59])
def test_what_comes_after_the_moment_changes_nothing(
    connection: psycopg.Connection, minutes: int
) -> None:
    closes = hourly(60)
    store(connection, BTC, closes)
    moment = FIRST + 40 * HOUR + timedelta(minutes=minutes)
    before = rsi_as_of(connection, BTC, moment)
    later = {hour: 1.0 for hour in closes if hour + HOUR > moment}
    assert min(later) == FIRST + 40 * HOUR, "the hour that is open belongs to what comes after"
    store(connection, BTC, later)
    assert rsi_as_of(connection, BTC, moment) == before
    for hour in later:
        connection.execute("DELETE FROM trading_pipelines.candles_1h WHERE timestamp = %s", [hour])
    assert rsi_as_of(connection, BTC, moment) == before
    store(connection, BTC, {FIRST + 39 * HOUR: 1.0})
    assert rsi_as_of(connection, BTC, moment) != before, "the last closed hour counts"


def test_hours_that_ended_long_before_say_nothing(connection: psycopg.Connection) -> None:
    store(connection, BTC, hourly(40))
    end = FIRST + 40 * HOUR
    known = rsi_as_of(connection, BTC, end)
    assert known is not None
    assert rsi_as_of(connection, BTC, end + STALE) == known
    assert rsi_as_of(connection, BTC, end + STALE + SECOND) is None


def test_an_hour_in_which_nothing_was_traded_is_left_out(connection: psycopg.Connection) -> None:
    closes = {hour: close for hour, close in hourly(60).items() if hour.hour % 5}
    store(connection, BTC, closes)
    expected = reference(list(closes.values()))
    found = rsi_as_of(connection, BTC, FIRST + 60 * HOUR)
    assert found == Rsi(approximately(expected), max(closes) + HOUR)


def test_of_a_long_history_the_last_hours_are_enough(
    recorded_url: str, recorded: pd.DataFrame
) -> None:
    hours = recorded.set_index("timestamp_utc").groupby("symbol")["close"].resample("1h").last()
    with connect(recorded_url) as connection:
        for symbol in SYMBOLS:
            closes = hours[symbol].dropna()
            assert len(closes) > 2 * HOURS
            for at in closes.index[300::50]:
                found = rsi_as_of(connection, symbol, at.to_pydatetime() + HOUR)
                assert found is not None
                assert found.as_of == at + HOUR
                assert found.value == pytest.approx(reference(list(closes[:at])), abs=1e-3)
