"""The history files that the replay exchange serves, as a client sees them."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest
import requests

from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

DAY = "candle/KRW-DOGE/daily/1m/2025/KRW-DOGE_candle-1m_20250903.zip"
MONTH = "candle/KRW-DOGE/monthly/1m/2025/KRW-DOGE_candle-1m_202509.zip"
OCTOBER = datetime(2025, 10, 2, tzinfo=UTC)


@pytest.fixture
def exchange(recorded_market: Recording) -> Iterator[ReplayExchange]:
    with ReplayExchange(recorded_market, rate=None, clock=OCTOBER) as running:
        yield running


def get(exchange: ReplayExchange, key: str) -> requests.Response:
    return requests.get(f"{exchange.url}/{key}", timeout=60)


def listing(exchange: ReplayExchange, prefix: str) -> list[dict[str, Any]]:
    url = f"{exchange.url}/api/v1/market-data/listing"
    rows: list[dict[str, Any]] = requests.get(url, params={"prefix": prefix}, timeout=60).json()
    return rows


def rows(content: bytes) -> tuple[list[str], pd.DataFrame]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = archive.namelist()
        return archive.namelist(), pd.read_csv(io.BytesIO(archive.read(name)))


@pytest.mark.parametrize("key", [DAY, MONTH])
def test_a_file_holds_the_recorded_candles_and_its_checksum_stands_beside_it(
    exchange: ReplayExchange, recorded: pd.DataFrame, key: str
) -> None:
    content = get(exchange, key).content
    names, table = rows(content)
    assert names == [key.rpartition("/")[2].replace(".zip", ".csv")]
    assert list(table) == [
        *("date_time_utc", "open", "high", "low", "close"),
        *("acc_trade_price", "acc_trade_volume"),
    ]
    doge = recorded[recorded["symbol"] == "KRW-DOGE"]
    if key == DAY:
        doge = doge[doge["timestamp_utc"].dt.day == 3]
    times = doge["timestamp_utc"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    assert table["date_time_utc"].tolist() == times.tolist()
    for theirs, ours in (("open", "open"), ("low", "low"), ("acc_trade_volume", "volume")):
        assert table[theirs].tolist() == doge[ours].tolist()
    checksum = get(exchange, f"{key}.checksum").text
    assert checksum.split() == [hashlib.sha256(content).hexdigest(), key.rpartition("/")[2]]
    assert exchange.stats().requests == 0, "no candle request"
    assert exchange.stats().files == 2


def test_a_day_s_file_is_listed_and_there_an_hour_after_its_end(exchange: ReplayExchange) -> None:
    folder = DAY.rpartition("/")[0]
    assert [row["key"] for row in listing(exchange, folder)][2] == DAY
    assert len(listing(exchange, folder)) == 21
    (month,) = listing(exchange, MONTH.rpartition("/")[0])
    assert month["key"] == MONTH
    assert (month["type"], month["lastModified"]) == ("FILE", "2025-10-01T01:00:00.000Z")
    (year,) = listing(exchange, "candle/KRW-DOGE/daily/1m")
    assert (year["key"], year["type"]) == ("candle/KRW-DOGE/daily/1m/2025/", "DIRECTORY")
    assert listing(exchange, "candle/KRW-NONE/daily/1m/2025") == []

    exchange.set_clock(datetime(2025, 9, 4, 0, 59, tzinfo=UTC))
    assert [row["key"] for row in listing(exchange, folder)][2:] == []
    assert get(exchange, DAY).status_code == 404
    exchange.set_clock(datetime(2025, 9, 4, 1, 0, 1, tzinfo=UTC))
    assert [row["key"] for row in listing(exchange, folder)][2:] == [DAY]
    assert get(exchange, DAY).ok
    assert get(exchange, MONTH).status_code == 404


def test_a_file_that_a_fault_has_hit_stays_hit_and_the_next_one_is_sound(
    exchange: ReplayExchange,
) -> None:
    sound = get(exchange, DAY).content
    exchange.set_faults([Fault("file_replaced", count=1)])
    replaced = get(exchange, DAY).content
    assert replaced != sound
    assert get(exchange, DAY).content == replaced
    checksum = get(exchange, f"{DAY}.checksum").text[:64]
    assert checksum == hashlib.sha256(replaced).hexdigest(), "a replaced file has its own"
    assert get(exchange, DAY.replace("20250903", "20250904")).ok
    folder = DAY.rpartition("/")[0]
    modified = {row["key"]: row["lastModified"] for row in listing(exchange, folder)}
    assert modified[DAY] > modified[DAY.replace("20250903", "20250921")]
