"""The exchange's history files: which there are at a moment, what each holds, what can be wrong.

A file is a zip of one CSV, of a UTC day or of a month. Where its candles come from belongs to
`market`, which file a fault hits to `faults`, and HTTP to `server`.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from trading_pipelines.simulators.upbit.faults import FileContent
from trading_pipelines.simulators.upbit.market import EPOCH, Candles, Market

HEADER = "date_time_utc,open,high,low,close,acc_trade_price,acc_trade_volume\n"
# A file is there an hour after the end of its day or month, as at Upbit (10:00 in Korea).
_COMES_AFTER = timedelta(hours=1)
_KEY = re.compile(
    r"candle/(?P<symbol>[^/]+)/(?P<period>daily|monthly)/1m/(?P<year>\d{4})/"
    r"(?P=symbol)_candle-1m_(?P<stamp>(?P=year)\d{2}(?:\d{2})?)\.zip"
)
_PREFIX = re.compile(
    r"candle/(?P<symbol>[^/]+)/(?P<period>daily|monthly)/1m(?:/(?P<year>\d{4}))?/?"
)
_STAMPS = {"daily": "%Y%m%d", "monthly": "%Y%m"}
_ZIP_BYTES_A_MINUTE = 30
_BOMB_BYTES = 20 << 20
_CACHED_FILES = 8  # a month of a symbol is 1.5 MB


def _with_value(line: str, place: int, value: str) -> str:
    values = line.rstrip("\n").split(",")
    values[place] = value
    return ",".join(values) + "\n"


# What becomes of the row in the middle.
_ROW_EDITS: dict[FileContent | None, Callable[[str], list[str]]] = {
    "file_doubled_row": lambda line: [line, line],
    "file_half_minute": lambda line: [line.replace(":00,", ":30,", 1)],
    "file_impossible_row": lambda line: [_with_value(line, 2, "0.5")],
    "file_lacks_rows": lambda _: [],
    "file_no_number": lambda line: [_with_value(line, 4, "NaN")],
    "file_replaced": lambda line: [_with_value(line, 6, "0.5")],
    "file_short_row": lambda line: [line[:30] + "\n"],
}


class HistoryFile(NamedTuple):
    """The minutes [start, end) of a symbol, under the key by which they are asked for."""

    key: str
    symbol: str
    start: datetime
    end: datetime

    @property
    def member(self) -> str:
        """The name of the CSV in it."""
        return self.key.rpartition("/")[2].removesuffix(".zip") + ".csv"


class HistoryFiles:
    """The files of a market; thread-safe."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self.zip = lru_cache(_CACHED_FILES)(self._zip)

    def file(self, key: str, now: datetime) -> HistoryFile | None:
        """The file of a key, where there is one at `now` (aware UTC)."""
        named = _KEY.fullmatch(key)
        if named is None or named["symbol"] not in self._market.symbols:
            return None
        try:
            first = datetime.strptime(named["stamp"], _STAMPS[named["period"]]).date()  # noqa: DTZ007
        except ValueError:
            return None
        file = _of(named["symbol"], named["period"], first)
        return file if file.key == key and self._is_there(file, now) else None

    def listing(self, prefix: str, now: datetime) -> list[dict[str, Any]]:
        """What the listing of a prefix shows: a year's files, or the years. `size` is a guess."""
        named = _PREFIX.fullmatch(prefix)
        if named is None or named["symbol"] not in self._market.symbols:
            return []
        symbol, period = named["symbol"], named["period"]
        years = range(self._market.first.year, min(now, self._market.end).year + 1)
        if named["year"] is None:
            keys = (f"candle/{symbol}/{period}/1m/{year}/" for year in years)
            return [
                {"key": key, "size": 0, "type": "DIRECTORY", "lastModified": ""} for key in keys
            ]
        return [
            {
                "key": file.key,
                "size": (file.end - file.start) // timedelta(minutes=1) * _ZIP_BYTES_A_MINUTE,
                "type": "FILE",
                "lastModified": f"{file.end + _COMES_AFTER:%Y-%m-%dT%H:%M:%S}.000Z",
            }
            for file in _of_year(symbol, period, int(named["year"]))
            if self._is_there(file, now)
        ]

    def _is_there(self, file: HistoryFile, now: datetime) -> bool:
        is_covered = self._market.first < file.end and file.start < self._market.end
        return is_covered and file.end + _COMES_AFTER <= now

    def _zip(self, file: HistoryFile, content: FileContent | None) -> bytes:
        """The bytes of a file, with what a fault makes of its content."""
        start, end = ((moment - EPOCH) // timedelta(minutes=1) for moment in (file.start, file.end))
        symbol, member = file.symbol, file.member
        if content in {"file_other_market", "file_swapped_rows"}:
            symbol = next((s for s in self._market.symbols if s != symbol), symbol)
        if content == "file_other_market":
            member = member.replace(file.symbol, symbol)
        if content == "file_other_day":
            start, end = start - (end - start), start
        lines = list(_lines(self._market.candles(symbol, start, end)))
        if content in _ROW_EDITS and lines:
            middle = len(lines) // 2
            lines[middle : middle + 1] = _ROW_EDITS[content](lines[middle])
        if content == "file_out_of_order":
            lines[1:3] = lines[2:0:-1]
        header = HEADER.replace("close", "closing") if content == "file_other_columns" else HEADER
        text = (header + "".join(() if content == "file_no_rows" else lines)).encode()
        members = {
            "file_path": {f"../../tmp/{member}": text},
            "file_two_members": {member: text, f"more_{member}": text},
            "file_bomb": {member: bytes(_BOMB_BYTES)} if content == "file_bomb" else {},
        }.get(str(content), {member: text})
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, text in members.items():
                archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
        whole = packed.getvalue()
        return whole[: len(whole) // 2] if content == "file_cut" else whole


def checksum(content: bytes, name: str) -> bytes:
    """What stands in the file beside a zip."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def _of(symbol: str, period: str, first: date) -> HistoryFile:
    """The file of the day or the month that begins on `first`."""
    start = datetime(first.year, first.month, first.day, tzinfo=UTC)
    if period == "daily":
        end = start + timedelta(days=1)
    else:
        end = (start + timedelta(days=31)).replace(day=1)
    stamp = f"{start:{_STAMPS[period]}}"
    name = f"{symbol}_candle-1m_{stamp}.zip"
    return HistoryFile(f"candle/{symbol}/{period}/1m/{start:%Y}/{name}", symbol, start, end)


def _of_year(symbol: str, period: str, year: int) -> Iterator[HistoryFile]:
    first = date(year, 1, 1)
    while first.year == year:
        file = _of(symbol, period, first)
        yield file
        first = file.end.date()


def _lines(candles: Candles) -> Iterator[str]:
    mean = (candles.open + candles.high + candles.low + candles.close) / 4
    columns = (
        np.datetime_as_string(candles.minute.astype("datetime64[m]"), unit="s"),
        *candles[1:5],
        (mean * candles.volume).round(5),
        candles.volume,
    )
    for time, *numbers in zip(*(column.tolist() for column in columns), strict=True):
        yield f"{time},{','.join(map(repr, numbers))}\n"
