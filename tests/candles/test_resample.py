"""Hours of minutes, against an independent pandas resample."""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal

import pandas as pd
import psycopg

from tests.candles.conftest import (
    Bench,
    RecordedRows,
    Rows,
    Values,
    differences,
    versions,
)
from tests.candles.test_download import at, days, halted, part
from tests.conftest import SYMBOLS
from trading_pipelines.candles.resample import ResampledDay, await_hours, resample
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

BTC, ETH, XRP, SOL, DOGE = SYMBOLS
HOURS = "trading_pipelines.candles_1h"


def hours(connection: psycopg.Connection) -> Rows:
    """Return the stored hours: open, high, low, close, volume and minutes."""
    cursor = connection.execute(f"SELECT * FROM {HOURS}")
    return {(symbol, start): tuple(values) for symbol, start, *values in cursor}


def resampled_by_pandas(minutes: Mapping[tuple[str, datetime], Values]) -> Rows:
    """Return the hours that pandas makes of the rows, with exact decimals."""
    index = pd.MultiIndex.from_tuples(minutes, names=["symbol", "start"])
    columns = ["open", "high", "low", "close", "volume"]
    frame = pd.DataFrame(list(minutes.values()), index=index, columns=columns).reset_index()
    found: Rows = {}
    for symbol, rows in frame.groupby("symbol"):
        for start, hour in rows.sort_values("start").resample("1h", on="start"):
            if len(hour):
                hour_start = pd.Timestamp(str(start)).to_pydatetime()
                found[str(symbol), hour_start] = (
                    hour["open"].iloc[0],
                    max(hour["high"]),
                    min(hour["low"]),
                    hour["close"].iloc[-1],
                    sum(hour["volume"], Decimal(0)),
                    Decimal(len(hour)),
                )
    return found


def current(bench: Bench, symbol: str, day: date) -> bool:
    (known,) = bench.coverage([symbol], [day])
    return known.hours_current


def test_every_hour_equals_pandas_to_the_digit(bench: Bench, recorded_rows: RecordedRows) -> None:
    asked_days = days(5, 7)
    bench.download(SYMBOLS, asked_days)
    resampled = resample(bench.connection, SYMBOLS, asked_days, "run")
    assert resampled == [
        ResampledDay(s, d, 24, 0, 0, at(d.day, 0), at(d.day, 23))
        for s in SYMBOLS
        for d in asked_days
    ]
    wanted = resampled_by_pandas(recorded_rows(SYMBOLS, asked_days))
    assert len(wanted) == 24 * 3 * 5
    assert min(values[-1] for values in wanted.values()) < 60, "there are quiet minutes in it"
    assert differences(hours(bench.connection), wanted) == []
    assert all(day.hours_current for day in bench.coverage(SYMBOLS, asked_days))


def test_a_second_run_gives_the_same_bits_and_writes_no_row(bench: Bench) -> None:
    bench.download([DOGE], days(5, 6))
    resample(bench.connection, [DOGE], days(5, 6), "first")
    before = versions(bench.connection, HOURS)
    assert len(before) == 48
    again = resample(bench.connection, [DOGE], days(5, 6), "second")
    assert [(day.rows, day.repaired) for day in again] == [(24, 0), (24, 0)]
    assert versions(bench.connection, HOURS) == before


def changed_at(bench: Bench, interval: str) -> datetime:
    row = bench.connection.execute(
        "SELECT changed_at FROM trading_pipelines.candle_coverage WHERE interval = %s", [interval]
    ).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def test_a_repaired_minute_changes_exactly_its_hour(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    (day,) = days(5, 5)
    bench.download([BTC], [day], "first")
    bench.connection.execute(
        "UPDATE public.market_data SET high_price = high_price + 1000000 "
        "WHERE timestamp = '2025-09-05 13:07Z'"
    )
    resample(bench.connection, [BTC], [day], "first")
    wanted = resampled_by_pandas(recorded_rows([BTC], [day]))
    ((key, *_),) = differences(hours(bench.connection), wanted)
    assert key == (BTC, at(5, 13))
    before, minutes_were, hours_were = (
        versions(bench.connection, HOURS),
        changed_at(bench, "1m"),
        changed_at(bench, "1h"),
    )

    bench.download([BTC], [day], "second")
    assert changed_at(bench, "1m") > minutes_were
    assert not current(bench, BTC, day), "hours are older than their minutes"
    (again,) = resample(bench.connection, [BTC], [day], "second")
    assert again.repaired == 1
    assert differences(hours(bench.connection), wanted) == []
    assert len(before - versions(bench.connection, HOURS)) == 1
    assert changed_at(bench, "1h") > hours_were
    assert current(bench, BTC, day)

    hours_were = changed_at(bench, "1h")
    bench.download([BTC], [day], "third")
    assert current(bench, BTC, day), "nothing was changed, so the hours are still current"
    resample(bench.connection, [BTC], [day], "third")
    assert changed_at(bench, "1h") == hours_were


def test_only_hours_that_have_closed_get_a_candle(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    (day,) = days(10, 10)
    wanted = resampled_by_pandas(recorded_rows([DOGE], [day]))
    client = bench.client()
    for now, until in (
        (at(10, 0, 59, 30), at(10, 0)),
        (at(10, 12, 34, 30), at(10, 12)),
        (at(10, 13, 0, 3), at(10, 12)),
        (at(10, 13, 0, 30), at(10, 13)),
        (at(10, 23, 59, 30), at(10, 23)),
        (at(11, 0, 0, 30), at(11, 0)),
    ):
        bench.replay.set_clock(now)
        bench.download([DOGE], [day], str(now), client)
        if until in (at(10, 0), at(10, 12), at(11, 0)):
            assert not current(bench, DOGE, day)
        resample(bench.connection, [DOGE], [day], str(now))
        assert differences(hours(bench.connection), part(wanted, at(10), until)) == []
        assert current(bench, DOGE, day)


def test_an_hour_without_a_trade_has_no_candle_and_counts_as_quiet(
    connection: psycopg.Connection, recorded_market: Recording, recorded_rows: RecordedRows
) -> None:
    market = halted(recorded_market, SOL, at(5, 9, 30), at(5, 13, 10))
    with ReplayExchange(market, rate=None) as replay:
        bench = Bench(connection, replay)
        bench.download([SOL], days(5, 5))
        assert resample(connection, [SOL], days(5, 5), "run") == [
            ResampledDay(SOL, days(5, 5)[0], 21, 0, 3, at(5, 0), at(5, 23))
        ]
    sound = recorded_rows([SOL], days(5, 5))
    wanted = resampled_by_pandas(
        part(sound, at(5), at(5, 9, 30)) | part(sound, at(5, 13, 10), at(6))
    )
    assert differences(hours(connection), wanted) == []
    assert wanted[SOL, at(5, 9)][-1] == 30
    assert (SOL, at(5, 10)) not in wanted


def test_an_hour_whose_minutes_are_gone_goes_too(bench: Bench) -> None:
    (day,) = days(5, 5)
    bench.download([BTC, ETH], [day])
    resample(bench.connection, [BTC, ETH], [day], "run")
    bench.connection.execute(
        "DELETE FROM public.market_data WHERE symbol = 'KRW-BTC' "
        "AND timestamp >= '2025-09-05 07:00Z' AND timestamp < '2025-09-05 08:00Z'"
    )
    (again,) = resample(bench.connection, [BTC], [day], "run")
    assert (again.rows, again.repaired, again.quiet) == (23, 1, 1)
    stored = hours(bench.connection)
    assert (BTC, at(5, 7)) not in stored
    assert (ETH, at(5, 7)) in stored


def test_days_never_asked_for_are_passed_over_and_rows_of_the_bot_alone_make_no_hour(
    bench: Bench, recorded_rows: RecordedRows
) -> None:
    with bench.connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO public.market_data (symbol, interval, timestamp, open_price, high_price, "
            "low_price, close_price, volume) VALUES (%s, '1m', %s, %s, %s, %s, %s, %s)",
            [(*key, *values) for key, values in recorded_rows([BTC], days(5, 5)).items()],
        )
    assert resample(bench.connection, [BTC], days(5, 6), "run") == []
    assert hours(bench.connection) == {}
    assert current(bench, BTC, days(5, 5)[0])


def test_candles_of_other_intervals_are_no_minutes(bench: Bench) -> None:
    (day,) = days(5, 5)
    bench.download([BTC], [day])
    bench.connection.execute(
        "INSERT INTO public.market_data (symbol, interval, timestamp, open_price, high_price, "
        "low_price, close_price, volume) SELECT symbol, '5m', timestamp + interval '1 second', 1, "
        "999999999, 1, 1, 1 FROM public.market_data"
    )
    (one,) = resample(bench.connection, [BTC], [day], "run")
    assert (one.rows, one.quiet) == (24, 0)
    assert max(values[1] for values in hours(bench.connection).values()) < 999999999
    assert max(values[-1] for values in hours(bench.connection).values()) == 60


def test_the_hours_of_every_symbol_are_waited_for(bench: Bench) -> None:
    (day,) = days(10, 10)
    client = bench.client()
    looks: list[int] = []

    def bring(symbols: list[str], now: datetime) -> None:
        bench.replay.set_clock(now)
        bench.download(symbols, [day], str(now), client)
        resample(bench.connection, symbols, [day], str(now))

    def sleep(_: float) -> None:
        looks.append(len(looks))
        if len(looks) == 2:
            bring([DOGE], at(11, 0, 0, 30))

    bring([BTC], at(11, 0, 0, 30))
    bring([DOGE], at(10, 23, 59, 30))
    assert await_hours(bench.connection, [BTC, DOGE], at(10, 23), 0)
    assert not await_hours(bench.connection, [BTC, DOGE], at(11), 0)
    assert await_hours(bench.connection, [BTC, DOGE], at(11), 60, sleep)
    assert len(looks) == 2
