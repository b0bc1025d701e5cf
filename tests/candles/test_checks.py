"""Each check against the recording as it is and with one thing broken."""

from datetime import datetime, timedelta

import psycopg
import pytest

from tests.candles.conftest import Bench
from tests.candles.test_download import at, days
from tests.conftest import RECORDED_DAYS, SYMBOLS
from trading_pipelines.candles import checks, coverage
from trading_pipelines.candles.checks import BLOCKING, WARNING, ContractBreach
from trading_pipelines.candles.failed_checks import Partition
from trading_pipelines.settings.strategy import HealingSettings

BTC, ETH, XRP, SOL, DOGE = SYMBOLS
ASKED = days(5, 6)
PAIR = [BTC, DOGE]


@pytest.fixture
def filled(bench: Bench) -> Bench:
    """Two symbols over two days, complete."""
    bench.download(PAIR, ASKED)
    return bench


def findings(bench: Bench, now: datetime | None = None) -> dict[str, list[ContractBreach]]:
    """Return what all checks find, without those that find nothing."""
    known = bench.coverage(PAIR, ASKED)
    moment = now or bench.now()
    found = {
        "overlaps": checks.overlaps(bench.connection, PAIR, ASKED),
        "broken_ohlc": checks.broken_ohlc(bench.connection, PAIR, ASKED),
        "differing_files": checks.differing_files(bench.connection, PAIR, ASKED),
        "jumps": checks.jumps(bench.connection, PAIR, ASKED),
        "holes": checks.holes(known, moment),
        "stale": checks.stale(known, moment),
    }
    return {name: what for name, what in found.items() if what}


def execute(bench: Bench, statement: str) -> None:
    assert bench.connection.execute(statement).rowcount > 0


def test_nothing_is_found_in_the_recording(bench: Bench) -> None:
    bench.download(PAIR, RECORDED_DAYS)
    known = bench.coverage(PAIR, RECORDED_DAYS)
    assert checks.overlaps(bench.connection, PAIR, RECORDED_DAYS) == []
    assert checks.broken_ohlc(bench.connection, PAIR, RECORDED_DAYS) == []
    assert checks.jumps(bench.connection, PAIR, RECORDED_DAYS) == []
    assert checks.holes(known, bench.now()) == []
    assert checks.stale(known, bench.now()) == []


def test_candles_that_are_gone_are_holes(filled: Bench) -> None:
    execute(
        filled,
        "DELETE FROM public.market_data WHERE symbol = 'KRW-BTC' AND timestamp IN "
        "('2025-09-06 03:00Z', '2025-09-06 03:01Z', '2025-09-06 23:59Z')",
    )
    assert findings(filled) == {"holes": [ContractBreach(BTC, ASKED[1], "3 minutes")]}


def test_a_closed_day_that_was_never_asked_for_is_a_hole_and_stale(bench: Bench) -> None:
    bench.download(PAIR, ASKED[:1])
    bench.download([DOGE], ASKED[1:])
    assert findings(bench) == {
        "holes": [ContractBreach(BTC, ASKED[1], "1440 minutes")],
        "stale": [ContractBreach(BTC, ASKED[1], "missing, candles until 00:00 UTC")],
    }


def test_an_open_day_has_no_holes_until_it_closes(bench: Bench) -> None:
    bench.replay.set_clock(at(6, 12, 0, 30))
    bench.download(PAIR, ASKED)
    assert findings(bench) == {}
    late = findings(bench, at(7))
    assert late["holes"] == [ContractBreach(symbol, ASKED[1], "720 minutes") for symbol in PAIR]


@pytest.mark.parametrize(
    ("now", "is_stale"),
    [
        (at(6, 12, 14, 59), False),
        (at(6, 12, 15), False),
        (at(6, 12, 15, 1), True),
        (at(7, 0, 30), True),
    ],
)
def test_an_open_day_is_stale_after_a_quarter_of_an_hour(
    bench: Bench, now: datetime, *, is_stale: bool
) -> None:
    bench.replay.set_clock(at(6, 12, 0, 30))
    bench.download([BTC], ASKED[1:])
    found = checks.stale(bench.coverage([BTC], ASKED[1:]), now)
    what = ContractBreach(BTC, ASKED[1], "partial, candles until 12:00 UTC")
    assert found == ([what] if is_stale else [])


@pytest.mark.parametrize(
    ("now", "is_stale"), [(at(7, 0, 10), False), (at(7, 0, 20), True), (at(7, 1, 1), True)]
)
def test_a_day_topped_up_to_its_end_is_stale_until_it_is_asked_for_whole(
    bench: Bench, now: datetime, *, is_stale: bool
) -> None:
    bench.replay.set_clock(at(6, 23, 59, 30))
    bench.download([BTC], ASKED[1:])
    found = checks.stale(bench.coverage([BTC], ASKED[1:]), now)
    what = ContractBreach(BTC, ASKED[1], "partial, candles until 23:59 UTC")
    assert found == ([what] if is_stale else [])


def test_complete_days_are_never_stale(filled: Bench) -> None:
    assert "stale" not in findings(filled, filled.now() + timedelta(days=900))


def candle(timestamp: str, prices: str = "1, 1, 1, 1, 1", symbol: str = DOGE) -> str:
    return (
        "INSERT INTO public.market_data (symbol, interval, timestamp, open_price, high_price, "
        f"low_price, close_price, volume) VALUES ('{symbol}', '1m', '{timestamp}', {prices})"
    )


def test_a_candle_off_the_minute_overlaps(filled: Bench) -> None:
    execute(
        filled,
        "INSERT INTO public.market_data (symbol, interval, timestamp, open_price, high_price, "
        "low_price, close_price, volume) SELECT symbol, interval, timestamp + interval '30 s', "
        "open_price, high_price, low_price, close_price, volume FROM public.market_data "
        "WHERE symbol = 'KRW-BTC' AND timestamp = '2025-09-05 23:59Z'",
    )
    found = findings(filled)
    assert found == {
        "overlaps": [ContractBreach(BTC, ASKED[0], "2 candles in the minute of 23:59 UTC")]
    }


def test_a_candle_off_the_minute_is_found_where_it_is_alone(filled: Bench) -> None:
    execute(
        filled,
        "UPDATE public.market_data SET timestamp = timestamp + interval '1 s' "
        "WHERE symbol = 'KRW-BTC' AND timestamp = '2025-09-05 08:00Z'",
    )
    assert findings(filled)["overlaps"] == [
        ContractBreach(BTC, ASKED[0], "1 candles in the minute of 08:00 UTC")
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "high_price = least(open_price, close_price) - 1",
        "low_price = greatest(open_price, close_price) + 1",
        "low_price = 0",
        "low_price = -1",
        "volume = -0.00000001",
        "low_price = 'NaN'",
        "high_price = 'NaN', close_price = 'NaN'",
        "volume = 'NaN'",
    ],
)
def test_prices_that_contradict_each_other_are_found(filled: Bench, broken: str) -> None:
    execute(
        filled,
        f"UPDATE public.market_data SET {broken} WHERE symbol = 'KRW-BTC' "
        "AND timestamp IN ('2025-09-06 10:00Z', '2025-09-06 10:01Z')",
    )
    found = findings(filled)
    assert found["broken_ohlc"] == [
        ContractBreach(BTC, ASKED[1], "2 candles, the first at 10:00 UTC")
    ]


@pytest.mark.parametrize(("factor", "found"), [(1.06, 2), (0.94, 2), (1.03, 0), (0.97, 0)])
def test_a_step_of_more_than_five_percent_is_found_on_both_sides(
    filled: Bench, factor: float, found: int
) -> None:
    execute(
        filled,
        f"UPDATE public.market_data SET open_price = open_price * {factor}, "
        f"high_price = high_price * {factor}, low_price = low_price * {factor}, "
        f"close_price = close_price * {factor} WHERE symbol = 'KRW-BTC' "
        "AND timestamp >= '2025-09-05 23:50Z' AND timestamp < '2025-09-06 00:10Z'",
    )
    jumps = findings(filled).get("jumps", [])
    assert len(jumps) == found
    if found:
        assert [(one.symbol, one.day) for one in jumps] == [(BTC, ASKED[0]), (BTC, ASKED[1])]
        assert jumps[0].what.endswith("at 23:50 UTC")
        assert jumps[1].what.endswith("at 00:10 UTC")


def test_only_the_symbols_days_and_minutes_that_were_asked_about_count(filled: Bench) -> None:
    for statement in (
        candle("2025-09-04 23:59:30Z", "1, 0, 1, 1, 1"),
        candle("2025-09-07 00:00:30Z", "1, 0, 1, 1, 1"),
        candle("2025-09-05 10:00:30Z", "1, 0, 1, 1, 1", ETH),
        candle("2025-09-05 10:00:30Z", "1, 0, 1, 1, 1").replace("'1m'", "'5m'"),
    ):
        execute(filled, statement)
    assert findings(filled) == {}


CLEAN: dict[str, list[ContractBreach]] = {check: [] for check in (*BLOCKING, *WARNING)}


def settle(connection: psycopg.Connection, breaches: dict[str, list[ContractBreach]]) -> list[int]:
    """Settle two symbols over two days; return each day's failures in a row."""
    by_partition: dict[str, dict[Partition, list[ContractBreach]]] = {}
    for check, found in breaches.items():
        by_partition[check] = {}
        for breach in found:
            by_partition[check].setdefault((breach.symbol, breach.day), []).append(breach)
    asked = [(symbol, day) for symbol in PAIR for day in ASKED]
    checks.settle_contract(connection, by_partition, asked, "run", HealingSettings())
    return [day.failures for day in coverage.read(connection, PAIR, ASKED)]


def test_a_day_that_breaks_its_contract_has_failed_once_and_alone(
    connection: psycopg.Connection,
) -> None:
    breach, other = (ContractBreach(BTC, ASKED[1], what) for what in ("10 minutes", "2 candles"))
    broken = CLEAN | {"no_hole_in_a_closed_day": [breach], "ohlc_valid": [other, other]}
    assert settle(connection, broken) == [0, 1, 0, 0]
    assert settle(connection, broken) == [0, 2, 0, 0]
    (day,) = coverage.read(connection, [BTC], ASKED[1:])
    assert day.error == "ohlc_valid: 2 candles"
    assert settle(connection, CLEAN) == [0, 0, 0, 0], "mended"


def test_a_warning_is_no_failure(connection: psycopg.Connection) -> None:
    jump = ContractBreach(DOGE, ASKED[0], "from 1 to 2 at 10:00 UTC")
    assert settle(connection, CLEAN | {"prices_continuous": [jump]}) == [0, 0, 0, 0]


def test_a_failure_ends_only_when_every_blocking_check_was_asked(
    connection: psycopg.Connection,
) -> None:
    breach = ContractBreach(BTC, ASKED[0], "2 candles in the minute of 23:59 UTC")
    assert settle(connection, CLEAN | {"no_overlap": [breach]}) == [1, 0, 0, 0]
    others = {check: breaches for check, breaches in CLEAN.items() if check != "no_overlap"}
    assert settle(connection, others) == [1, 0, 0, 0]


def test_the_named_checks_alone_are_asked(filled: Bench) -> None:
    execute(filled, "DELETE FROM public.market_data WHERE timestamp = '2025-09-06 03:00Z'")
    names = ["no_hole_in_a_closed_day", "fresh"]
    breaches = checks.find_breaches(filled.connection, names, PAIR, ASKED, filled.now())
    assert breaches == {
        "no_hole_in_a_closed_day": [ContractBreach(s, ASKED[1], "1 minutes") for s in PAIR],
        "fresh": [],
    }
