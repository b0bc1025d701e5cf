"""Upbit's history files, a second source of closed days: what a file holds, and whether to use it.

A day whose file can't be believed whole is asked of the exchange instead, and the reason is kept.
Upbit's terms: personal use, own strategies and backtests; no redistribution, no service to others.
What a candle is belongs in `page`, storing in `download`.
"""

import csv
import hashlib
import io
import json
import re
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Any, NamedTuple

import psycopg
import requests
import tenacity
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from trading_pipelines.candles.ahead import in_order
from trading_pipelines.candles.differences import Differences
from trading_pipelines.candles.page import (
    Candle,
    ExchangeError,
    FileOfDay,
    Page,
    fitted,
    sound_candle,
)
from trading_pipelines.candles.windows import HOUR, MINUTE, Interval, day_interval
from trading_pipelines.http_calls import KILOBYTE, MEGABYTE, BoundedSession
from trading_pipelines.settings.environment import HistoryFileUrls
from trading_pipelines.settings.strategy import ExchangeSettings

# A month of a symbol is 1.5 MB packed and 4.5 MB unpacked, a list of a year's files 60 KB.
MOST_BYTES = 8 * MEGABYTE
MOST_CSV_BYTES_A_DAY = 512 * KILOBYTE
# Upbit's are there at about 10:00 in Korea, an hour after the end of the UTC day.
COME_AFTER = HOUR
# From so many days of a month on its file is read in the place of theirs.
DAYS_OF_A_MONTH = 8
# Days that are read while one is written.
DAYS_AHEAD = 4
TRIES = 2
# Files of a symbol in a row without an answer: then the rest of its days does without in this run.
AWAY_IN_A_ROW = 3
# Seconds after which days without a file are asked for, before the next file is waited for.
LONGEST_SILENCE = 5.0
# From one minute to the next a price is not doubled or halved: such rows are another market's.
LARGEST_STEP = 2
COLUMNS = ("date_time_utc", "open", "high", "low", "close", "acc_trade_volume")
CHECKSUM = re.compile(rb"\s*([0-9a-fA-F]{64})\b")
# What a row may be made of: no NaN, no digit groups, no offset after a time.
ROWS = re.compile(r'[0-9T:,.eE+"\r\n-]*')
DIRECTORY_ENTRY = b"PK\x01\x02"
MOST_DIRECTORY_ENTRIES = 16
MARKET = re.compile(r"[A-Z]{2,5}-[A-Z0-9]+")
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)

RECORD = """
INSERT INTO trading_pipelines.history_files AS known
    (symbol, day, name, sha256, not_used, comparison)
VALUES (%(symbol)s, %(day)s, %(name)s, %(sha256)s, %(not_used)s, %(comparison)s)
ON CONFLICT (symbol, day) DO UPDATE SET
    name = coalesce(excluded.name, known.name), sha256 = coalesce(excluded.sha256, known.sha256),
    not_used = excluded.not_used, comparison = excluded.comparison,
    replaced_at = CASE WHEN excluded.name = known.name AND excluded.sha256 <> known.sha256
        THEN clock_timestamp() ELSE known.replaced_at END,
    read_at = clock_timestamp()
"""
READ = """
SELECT symbol, day, name, not_used, comparison, replaced_at, read_at
FROM trading_pipelines.history_files
WHERE symbol = ANY(%s) AND day = ANY(%s)
"""


class _UnusableError(Exception):
    """Says why a file, or a list of files, can't be used."""


class _AwayError(_UnusableError):
    """No answer, or one that another attempt may better."""


class _Contents(NamedTuple):
    """A file whose checksum fits: its rows by the day they begin with, such as 2025-09-01."""

    header: str
    rows: dict[str, list[str]]
    sha256: str
    source: str


class _DayRead(NamedTuple):
    """The candles of a day by its file, or none and why."""

    file: FileOfDay
    source: str = ""
    candles: Sequence[Candle] = ()
    refused: Sequence[str] = ()
    """Why each file that should hold the day can't be used."""


@dataclass(frozen=True)
class FileNote:
    """What is on record of a day's history file, times UTC; see the columns' comments."""

    symbol: str
    day: date
    name: str | None
    not_used: str | None
    comparison: dict[str, Any] | None
    replaced_at: datetime | None
    read_at: datetime

    @property
    def differs(self) -> bool:
        """Whether the sample showed other candles than the exchange has."""
        counts = self.comparison or {}
        return any(counts.get(name) for name in ("added", "changed", "kept"))

    @property
    def difference(self) -> str:
        """How a file that differs does, in words."""
        counts = self.comparison or {}
        words = "of the exchange's {compared} candles {added} are not in it and {changed} differ, "
        return (words + "{kept} are in it alone").format(**counts)


class HistoryFiles:
    """Reads the files of days ahead, in a thread of its own; one instance a run.

    `sample`: the share of days, 0 to 1, that the exchange is asked for too, always the same ones;
    besides the first day of each symbol. `say` is told why a file can't be used.
    """

    def __init__(
        self,
        urls: HistoryFileUrls,
        settings: ExchangeSettings,
        sample: float,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._urls = urls
        self._settings = settings
        self._sample = sample
        self._say = say
        self._sessions = threading.local()
        # One parses days, and asks for days' files; the other asks for the next month's meanwhile.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="history files")
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="months of history files")
        self._months: dict[tuple[str, int, int], Future[_Contents | None]] = {}
        self._listed: dict[str, frozenset[str] | _UnusableError] = {}
        self._away_in_a_row: Counter[str] = Counter()
        self._begun: set[str] = set()
        self._said: set[str] = set()

    def pages(
        self,
        symbol: str,
        interval: Interval,
        closed_until: datetime,
        ask: Callable[[Interval], Iterator[tuple[Interval, Page]]],
    ) -> Iterator[tuple[Interval, Page]]:
        """Yield the interval's pages in order, a whole day by its file where that can be used.

        Everything else is what `ask`, the exchange, gives of an interval, and what that raises.
        """
        walk = _Walk(interval.start, ask)
        for day, read in self._ahead(symbol, _whole_days(interval, closed_until)):
            self._tell(symbol, day, read.refused)
            whole, file = day_interval(day), read.file
            if read.candles:
                yield from walk.by_exchange(whole.start)
                file = walk.follows(file, read.candles[0])
            if file.not_used:
                walk.without_file.append(file)
                if walk.is_silent():
                    yield from walk.by_exchange(whole.end)
            else:
                page = Page(
                    list(read.candles),
                    closed_until,
                    read.source,
                    row_before=whole.start - MINUTE,
                    files=[file],
                )
                is_sample = not walk.has_ended and self._is_sample(symbol, day)
                yield from walk.by_file(
                    _compared(symbol, whole, page, ask) if is_sample else [(whole, page)]
                )
            if walk.has_ended:
                return
        yield from walk.by_exchange(interval.end)

    def _tell(self, symbol: str, day: date, refused: Sequence[str]) -> None:
        """Say of each kind of trouble once where it began; the days' records have all of it."""
        for reason in refused:
            trouble = f"{symbol} {reason.partition(': ')[2]}"
            if trouble not in self._said:
                self._said.add(trouble)
                self._say(f"{symbol} {day}: {reason}")

    def _is_sample(self, symbol: str, day: date) -> bool:
        is_first = symbol not in self._begun
        self._begun.add(symbol)
        digest = hashlib.sha256(f"{symbol} {day}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) / (1 << 64) < self._sample
        return drawn or (is_first and self._sample > 0)

    def _ahead(self, symbol: str, days: Sequence[date]) -> Iterator[tuple[date, _DayRead]]:
        """Return each day with what its file holds, while the next ones are being read."""
        of_month = Counter((day.year, day.month) for day in days)
        months = [month for month, number in of_month.items() if number >= DAYS_OF_A_MONTH]

        def read(
            question: tuple[date, Future[_Contents | None] | None], _: threading.Event
        ) -> tuple[date, _DayRead]:
            return question[0], self._read(symbol, *question)

        questions = ((day, self._month_of(symbol, day, months)) for day in days)
        return in_order(self._reader, read, questions, lambda: DAYS_AHEAD)

    def _month_of(
        self, symbol: str, day: date, months: Sequence[tuple[int, int]]
    ) -> Future[_Contents | None] | None:
        """Return the day's month, if it is one of `months`, and have the one after it fetched."""
        asked = (day.year, day.month)
        if asked not in months:
            return None
        place = months.index(asked)
        keys = [(symbol, *month) for month in months[place : place + 2]]
        self._months = {
            key: self._months.get(key) or self._fetcher.submit(self._fetch_month, *key)
            for key in keys
        }
        return self._months[keys[0]]

    # ---- in threads of their own ----

    def _fetch_month(self, symbol: str, year: int, month: int) -> _Contents | None:
        return self._contents(symbol, "monthly", f"{year}{month:02}")

    def _read(self, symbol: str, day: date, month: Future[_Contents | None] | None) -> _DayRead:
        refused: list[str] = []
        of_day = f"{day:%Y%m%d}"
        ways: list[tuple[str, Callable[[], _Contents | None]]] = [
            (of_day, lambda: self._contents(symbol, "daily", of_day))
        ]
        if month:
            ways.insert(0, (of_day[:6], month.result))
        for stamp, contents_of in ways:
            name = f"{symbol}_candle-1m_{stamp}.zip"
            try:
                contents = contents_of()
                if contents is None:
                    continue
                candles = _candles(contents, day)
            except _UnusableError as error:
                refused.append(f"{name}: {error}")
            else:
                source = f"{name} ({contents.source})" if contents.source else name
                return _DayRead(FileOfDay(day, name, contents.sha256), source, candles, refused)
        reason = "; ".join(refused) or "no file is listed"
        return _DayRead(FileOfDay(day, not_used=reason), refused=refused)

    def _contents(self, symbol: str, period: str, stamp: str) -> _Contents | None:
        """Return what a file holds, None where none is listed."""
        folder = f"candle/{symbol}/{period}/1m/{stamp[:4]}"
        key = f"{folder}/{symbol}_candle-1m_{stamp}.zip"
        return self._verified(key, symbol, stamp) if key in self._files_in(folder, symbol) else None

    def _files_in(self, folder: str, symbol: str) -> frozenset[str]:
        """Return the keys of the files that are listed of a year."""
        listed = self._listed.get(folder)
        if listed is None:
            try:
                listed = _keys(self._get(symbol, self._urls.listing, {"prefix": folder}).content)
            except _UnusableError as error:
                listed = _UnusableError(f"the list of files: {error}")
            self._listed[folder] = listed
        if isinstance(listed, _UnusableError):
            raise listed
        return listed

    def _verified(self, key: str, symbol: str, stamp: str) -> _Contents:
        url = f"{self._urls.files}/{key}"
        for is_last in (False, True):
            # A file that is replaced at this moment has another checksum a moment later.
            answer = self._get(symbol, url)
            checksum = CHECKSUM.match(self._get(symbol, f"{url}.checksum").content)
            if checksum is None:
                raise _UnusableError("what should be its checksum is none")
            sha256 = hashlib.sha256(answer.content).hexdigest()
            if sha256 == checksum[1].decode().lower():
                break
            if is_last:
                raise _UnusableError("its checksum is another")
        days = 1 if len(stamp) == len("YYYYMMDD") else 31
        text = _unpacked(answer.content, symbol, stamp, days * MOST_CSV_BYTES_A_DAY)
        header, *lines = text.splitlines() or [""]
        rows: dict[str, list[str]] = {}
        for line in lines:
            rows.setdefault(line[:10], []).append(line)
        if strange := next(
            (day for day in rows if day.replace("-", "")[: len(stamp)] != stamp), ""
        ):
            raise _UnusableError(f"a row of {strange!r}")
        return _Contents(header, rows, sha256, answer.headers.get("Replay-Source", ""))

    def _get(self, symbol: str, url: str, query: dict[str, str] | None = None) -> requests.Response:
        if self._away_in_a_row[symbol] >= AWAY_IN_A_ROW:
            raise _UnusableError("not asked for, as the files before it gave no answer")
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_AwayError),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=tenacity.wait_random_exponential(
                multiplier=self._settings.backoff_seconds, max=self._settings.max_backoff_seconds
            ),
            reraise=True,
        )
        try:
            answer = retrying(self._ask, url, query)
        except _AwayError:
            self._away_in_a_row[symbol] += 1
            raise
        self._away_in_a_row[symbol] = 0
        return answer

    def _ask(self, url: str, query: dict[str, str] | None) -> requests.Response:
        try:
            answer = self._session().request("GET", url, params=query)
        except requests.RequestException as error:
            raise _AwayError(f"no answer: {type(error).__name__}") from error
        if answer.status_code != HTTPStatus.OK:
            is_late = answer.status_code in {408, 425, 429} or answer.status_code >= 500
            raise (_AwayError if is_late else _UnusableError)(f"HTTP {answer.status_code}")
        if len(answer.content) >= MOST_BYTES:
            raise _UnusableError(f"an answer without end: {MOST_BYTES:,} bytes and more")
        return answer

    def _session(self) -> BoundedSession:
        """Return the thread's own."""
        if not hasattr(self._sessions, "session"):
            session = BoundedSession(self._settings.timeout_seconds, MOST_BYTES)
            # No password of a ~/.netrc.
            session.auth = lambda request: request
            self._sessions.session = session
        session = self._sessions.session
        assert isinstance(session, BoundedSession)
        return session


class _Walk:
    """How far the pages of an interval have come, and the days that wait for the exchange."""

    def __init__(
        self, at: datetime, ask: Callable[[Interval], Iterator[tuple[Interval, Page]]]
    ) -> None:
        self.without_file: list[FileOfDay] = []
        self.has_ended = False
        """The exchange has given less than it was asked for: the rest has not closed."""
        self._at = at
        self._ask = ask
        self._newest: tuple[datetime, Candle] | None = None
        self._yielded_at = time.monotonic()

    def is_silent(self) -> bool:
        return time.monotonic() - self._yielded_at > LONGEST_SILENCE

    def by_file(self, pages: Iterable[tuple[Interval, Page]]) -> Iterator[tuple[Interval, Page]]:
        for covered, page in () if self.has_ended else pages:
            self._at = covered.end
            self._newest = (covered.end, page.candles[-1]) if page.candles else None
            yield covered, page
            self._yielded_at = time.monotonic()

    def by_exchange(self, end: datetime) -> Iterator[tuple[Interval, Page]]:
        if self._at < end and not self.has_ended:
            yield from self.by_file(map(self._with_files, self._ask(Interval(self._at, end))))
            self.without_file.clear()
            self.has_ended = self._at < end

    def _with_files(self, answered: tuple[Interval, Page]) -> tuple[Interval, Page]:
        covered, page = answered
        begun = [
            file
            for file in self.without_file
            if covered.start <= day_interval(file.day).start < covered.end
        ]
        return covered, replace(page, files=begun) if begun else page

    def follows(self, file: FileOfDay, first: Candle) -> FileOfDay:
        """Return the file, as not to be used where its first candle can't follow the newest."""
        if self._newest is None or self._newest[0].date() != first.start.date():
            return file
        close = self._newest[1].close
        if close / LARGEST_STEP <= first.open <= close * LARGEST_STEP:
            return file
        step = f"it begins at {first.open:f}, where the day before ended at {close:f}"
        return replace(file, not_used=f"{file.name}: {step}")


def pages(
    files: HistoryFiles | None,
    symbol: str,
    interval: Interval,
    closed_until: Callable[[], datetime],
    ask: Callable[[Interval], Iterator[tuple[Interval, Page]]],
) -> Iterator[tuple[Interval, Page]]:
    """Yield the interval's pages in order: by the files where there are any, or by `ask`."""
    if files is None:
        return ask(interval)
    return files.pages(symbol, interval, closed_until(), ask)


def record(connection: psycopg.Connection, symbol: str, files: Iterable[FileOfDay]) -> None:
    """Record what became of the files, in the transaction that stores the days' candles."""
    for file in files:
        comparison = file.comparison and Jsonb(file.comparison)
        connection.execute(RECORD, {"symbol": symbol, **vars(file), "comparison": comparison})


def read(
    connection: psycopg.Connection, symbols: Iterable[str], days: Iterable[date]
) -> list[FileNote]:
    """Return what is on record of the files of the symbols' UTC days."""
    with connection.cursor(row_factory=class_row(FileNote)) as cursor:
        return cursor.execute(READ, [list(symbols), list(days)]).fetchall()


def _whole_days(interval: Interval, closed_until: datetime) -> list[date]:
    """Return the days that lie in the interval as a whole and may have a file by now."""
    return [
        day
        for day in (interval.days() if interval.start < interval.end else ())
        if interval.start <= day_interval(day).start
        and day_interval(day).end <= min(interval.end, closed_until - COME_AFTER)
    ]


def _compared(
    symbol: str,
    whole: Interval,
    page: Page,
    ask: Callable[[Interval], Iterator[tuple[Interval, Page]]],
) -> list[tuple[Interval, Page]]:
    """Return the day by the exchange, where that has other candles, or else by its file."""
    (file,) = page.files
    try:
        theirs = list(ask(whole))
    except ExchangeError as error:
        failed = replace(file, comparison={"failed": str(error)})
        return [(whole, replace(page, files=[failed]))]
    if not theirs or theirs[-1][0].end < whole.end:
        failed = replace(file, comparison={"failed": "the exchange has not closed the day"})
        return [(whole, replace(page, files=[failed]))]
    spent = [part.spent for _, part in theirs]
    page.spent.requests += sum(stats.requests for stats in spent)
    page.spent.retries += sum(stats.retries for stats in spent)
    differences = Differences(symbol)
    candles = [candle for _, part in theirs for candle in part.candles]
    differences.add({candle.start: candle for candle in page.candles}, candles)
    comparison = differences.comparison()
    file = replace(file, comparison=asdict(comparison))
    if comparison.is_equal:
        return [(whole, replace(page, files=[file]))]
    file = replace(file, not_used=f"{file.name}: its candles are not the exchange's")
    (covered, first), *others = theirs
    return [(covered, replace(first, files=[file])), *others]


def _keys(content: bytes) -> frozenset[str]:
    try:
        rows = json.loads(content)
        return frozenset(row["key"] for row in rows if row["type"] == "FILE")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _UnusableError(f"it can't be read: {type(error).__name__}") from error


def _unpacked(content: bytes, symbol: str, stamp: str, most_bytes: int) -> str:
    """Return the text of the CSV in a zip; raise where it is not what such a file holds."""
    if content.count(DIRECTORY_ENTRY) > MOST_DIRECTORY_ENTRIES:
        raise _UnusableError("it holds too many files")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise _UnusableError(f"it holds {len(names)} files")
            _check_member(names[0], symbol, stamp)
            with archive.open(names[0]) as member:
                unpacked = member.read(most_bytes + 1)
    except BROKEN_ZIP as error:
        raise _UnusableError(f"no zip that can be read: {error}"[:120]) from error
    if len(unpacked) > most_bytes:
        raise _UnusableError(f"it unpacks to more than {most_bytes:,} bytes")
    # Of other signs than ASCII's nothing is left that a row may be made of.
    return unpacked.decode("ascii", "replace").removeprefix("\ufffd" * 3)


def _check_member(name: str, symbol: str, stamp: str) -> None:
    if "/" in name or "\\" in name or ".." in name:
        raise _UnusableError(f"a path in the archive: {name[:60]!r}")
    market = MARKET.search(name)
    if market and market[0] != symbol:
        raise _UnusableError(f"of market {market[0]}")
    if any(digits != stamp for digits in re.findall(r"\d{6,8}", name.replace(symbol, ""))):
        raise _UnusableError(f"of another time: {name[:60]!r}")


def _candles(contents: _Contents, day: date) -> list[Candle]:
    """Return the candles of a day by a file; raise where one row is not one's."""
    lines = contents.rows.get(str(day))
    if not lines:
        raise _UnusableError("it has no rows of the day")
    if not ROWS.fullmatch("\n".join(lines)):
        raise _UnusableError("rows of other signs than numbers and times")
    names = next(csv.reader([contents.header]), [])
    if missing := [name for name in COLUMNS if name not in names]:
        raise _UnusableError(f"no column {', '.join(missing)}")
    places = [names.index(name) for name in COLUMNS]
    candles: list[Candle] = []
    try:
        for row in csv.reader(lines):
            start, *numbers = (row[place] for place in places)
            candle = sound_candle(_start(start), *(fitted(Decimal(text)) for text in numbers))
            if candles and candle.start <= candles[-1].start:
                raise ValueError(f"rows doubled or out of order at {start}")
            candles.append(candle)
    except InvalidOperation as error:
        raise _UnusableError(f"a row that can't be a candle: {', '.join(row)}"[:200]) from error
    except (ValueError, IndexError, csv.Error) as error:
        raise _UnusableError(f"a row that can't be a candle: {error}"[:200]) from error
    return candles


def _start(text: str) -> datetime:
    if len(text) != len("2025-01-01T00:00:00"):
        raise ValueError(f"a time of another form: {text}")
    return datetime.fromisoformat(text)
