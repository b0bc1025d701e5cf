"""What can be replayed: which files are refused, and what a generated market is like."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading_pipelines.simulators.upbit.market import (
    BadRecordingError,
    Candles,
    GeneratedMarket,
    Recording,
)

SYMBOLS = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE", "KRW-NEW")
DAY = 1440
LISTED = (datetime(2017, 10, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days
FROM = LISTED + 2500
GOOD = "KRW-BTC,2025-09-01 00:01,2,3,1,2,0.5"
HEAD = "symbol,timestamp_utc,open,high,low,close,volume"

generated = GeneratedMarket(SYMBOLS)


def same(one: Candles, other: Candles) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_recording_is_read_whole(
    recorded_market: Recording, recorded: pd.DataFrame, recording: Path
) -> None:
    assert recorded_market.label == f"recording {recording.name}"
    assert recorded_market.first == datetime(2025, 9, 1, tzinfo=UTC)
    assert recorded_market.end == datetime(2025, 9, 22, tzinfo=UTC)
    for symbol, rows in recorded.groupby("symbol"):
        held = recorded_market.candles(str(symbol), 0, 10**9)
        assert (held.minute * 60 == rows["timestamp_utc"].astype("int64") // 1000).all()
        for name in ("open", "high", "low", "close", "volume"):
            assert (getattr(held, name) == rows[name].to_numpy()).all()


def test_a_csv_may_be_unsorted_and_its_times_naive_or_with_an_offset(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(f"{HEAD}\nKRW-BTC,2025-09-01T09:02:00+09:00,2,3,1,2,0.5\n{GOOD}\n")
    recording = Recording.load(file)
    assert recording.first == datetime(2025, 9, 1, 0, 1, tzinfo=UTC)
    assert recording.end == datetime(2025, 9, 1, 0, 3, tzinfo=UTC)
    assert np.diff(recording.candles("KRW-BTC", 0, 10**9).minute).tolist() == [1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "unreadable"),
        (HEAD, "no rows"),
        (f"{HEAD.replace('close', 'last')}\n{GOOD}", "no column close"),
        (f"{HEAD}\n{GOOD}\n{GOOD}", "two candles of one minute, first KRW-BTC at 2025-09-01 00:01"),
        (f"{HEAD}\nKRW-BTC,yesterday,2,3,1,2,0.5", "unparsable"),
        (f"{HEAD}\nKRW-BTC,1756684800,2,3,1,2,0.5", "numbers"),
        (f"{HEAD}\nKRW-BTC,2025-09-01 00:01:30,2,3,1,2,0.5", "not a whole minute"),
        (f"{HEAD}\nKRW-BTC,,2,3,1,2,0.5\n{GOOD}", "no time"),
        (f"{HEAD}\n,2025-09-01 00:02,2,3,1,2,0.5\n{GOOD}", "no symbol"),
        (f"{HEAD}\nKRW-BTC,2025-09-01 00:01,two,3,1,2,0.5", "unparsable"),
        (f"{HEAD}\nKRW-BTC,2025-09-01 00:01,2,3,1,,0.5", "a missing or infinite number"),
        (f"{HEAD}\nKRW-BTC,2025-09-01 00:01,2,inf,1,2,0.5", "a missing or infinite number"),
        (f"{HEAD}\nKRW-BTC,2025-09-01 00:01,2,3,0,2,0.5", "not above zero"),
        (f"{HEAD}\nKRW-BTC,2025-09-01 00:01,4,3,1,2,0.5", "inside the candle"),
        (f"{HEAD}\nKRW-BTC,2025-09-01 00:01,2,3,1,2,-1", "negative volume"),
    ],
)
def test_a_bad_recording_says_what_and_where(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(BadRecordingError, match=what) as caught:
        Recording.load(file)
    assert str(file) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not parquet")
    for name in ("gone.parquet", "text.parquet", "notes.txt"):
        with pytest.raises(BadRecordingError, match=name):
            Recording.load(tmp_path / name)


def test_a_parquet_file_says_what_reads_it_where_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "mine.parquet").touch()
    with pytest.raises(BadRecordingError, match=r"mine\.parquet: .* `pip install pyarrow`"):
        Recording.load(tmp_path / "mine.parquet")


@given(st.sampled_from(SYMBOLS), st.integers(LISTED, LISTED + 30_000))
@settings(max_examples=60)
def test_a_generated_day_is_sound(symbol: str, day: int) -> None:
    held = generated.candles(symbol, day * DAY, (day + 1) * DAY)
    assert len(held.minute) >= 17 * 60
    assert (np.diff(held.minute) > 0).all()
    assert (held.low <= np.minimum(held.open, held.close)).all()
    assert (held.high >= np.maximum(held.open, held.close)).all()
    assert (held.low > 0).all()
    assert (held.volume > 0).all()
    assert (held.volume == held.volume.round(8)).all()


def test_a_day_does_not_depend_on_what_was_asked_before() -> None:
    fresh = GeneratedMarket(("KRW-BTC",))
    day = fresh.candles("KRW-BTC", FROM * DAY, (FROM + 1) * DAY)
    other = GeneratedMarket(("KRW-DOGE", "KRW-BTC"))
    other.candles("KRW-DOGE", (FROM - 3) * DAY, (FROM + 3) * DAY)
    other.newest("KRW-BTC", (FROM + 5) * DAY, 700)
    assert same(day, other.candles("KRW-BTC", FROM * DAY, (FROM + 1) * DAY))
    wide = other.candles("KRW-BTC", (FROM - 1) * DAY, (FROM + 2) * DAY)
    assert same(day, wide.rows(wide.minute // DAY == FROM))
    reseeded = GeneratedMarket(("KRW-BTC",), seed=8)
    assert not same(day, reseeded.candles("KRW-BTC", FROM * DAY, (FROM + 1) * DAY))


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_prices_go_on_across_midnight_and_keep_to_their_ticks(symbol: str) -> None:
    held = generated.candles(symbol, FROM * DAY, (FROM + 400) * DAY)
    midnights = np.flatnonzero((held.minute % DAY == 0) & (np.diff(held.minute, prepend=0) == 1))
    assert len(midnights) > 300
    assert (held.open[midnights] == held.close[midnights - 1]).all()
    tick = {"KRW-BTC": 1000, "KRW-ETH": 1000, "KRW-XRP": 1, "KRW-SOL": 50, "KRW-DOGE": 0.1}
    for prices in held[1:5]:
        steps = prices / tick.get(symbol, 1)
        assert np.abs(steps - steps.round()).max() < 1e-6


def test_some_minutes_are_quiet_and_some_hours_are_lost_by_all_symbols() -> None:
    def missing(symbol: str) -> set[int]:
        wanted = range(FROM * DAY, (FROM + 200) * DAY)
        return set(wanted) - set(generated.candles(symbol, wanted[0], wanted[-1] + 1).minute)

    gone = {symbol: missing(symbol) for symbol in SYMBOLS}
    hours = [
        hour
        for hour in range(FROM * 24, (FROM + 200) * 24)
        if all(set(range(hour * 60, hour * 60 + 60)) <= gone[symbol] for symbol in SYMBOLS)
    ]
    days = {hour // 24 for hour in hours}
    assert 1 <= len(days) <= 12
    assert all(2 <= sum(hour // 24 == day for hour in hours) <= 6 for day in days)
    outage = {minute for hour in hours for minute in range(hour * 60, hour * 60 + 60)}
    quiet = {symbol: gone[symbol] - outage for symbol in SYMBOLS}
    assert 0 < len(quiet["KRW-BTC"]) < 40
    evening = [minute for minute in quiet["KRW-DOGE"] if 18 <= minute // 60 % 24 <= 20]
    assert len(quiet["KRW-DOGE"]) / 2 < len(evening) < len(quiet["KRW-DOGE"]) < 3000


def test_volatility_clusters_and_prices_stay_plausible() -> None:
    held = generated.candles("KRW-BTC", FROM * DAY, (FROM + 100) * DAY)
    moves = np.abs(np.diff(np.log(held.close)))
    assert np.corrcoef(moves[1:], moves[:-1])[0, 1] > 0.2  # 0.15 without the state of the hour
    assert 0.3 < np.median(held.close) / 150_000_000 < 3


def test_nothing_was_traded_before_the_listing() -> None:
    assert generated.newest("KRW-BTC", LISTED * DAY, 5).minute.size == 0
    assert generated.candles("KRW-BTC", 0, LISTED * DAY).minute.size == 0
    first = generated.newest("KRW-BTC", LISTED * DAY + 10, 200).minute
    assert first[0] == LISTED * DAY
    assert first[-1] == LISTED * DAY + 9


@given(st.integers(0, 3 * DAY), st.integers(1, 4000))
@settings(max_examples=60)
def test_newest_reaches_back_over_quiet_minutes_and_days(after: int, count: int) -> None:
    before = FROM * DAY + after
    everything = generated.candles("KRW-DOGE", before - 20 * DAY, before)
    newest = generated.newest("KRW-DOGE", before, count)
    assert same(newest, everything.rows(slice(-count, None)))
