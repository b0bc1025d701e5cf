"""What can go wrong with an answer, by name, and how often it does.

Here belongs every fault's kind and content, and the schedule that decides which request is hit.
Faults of the connection itself (`reset`, `timeout`, `short_body`) are named here and carried out
by `server`, those of the stream by `stream`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal, NamedTuple, Self, get_args

from trading_pipelines.simulators.upbit.market import EPOCH
from trading_pipelines.simulators.upbit.pages import MINUTE_MS, CandleJson, PageQuery


class CannedAnswer(NamedTuple):
    """An HTTP answer, without the headers that every answer carries."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


def json_answer(status: int, content: object) -> CannedAnswer:
    """An answer with a JSON body."""
    return CannedAnswer(status, json.dumps(content, ensure_ascii=False).encode())


def error_answer(status: int, name: str | int, message: str) -> CannedAnswer:
    """An answer in the form of Upbit's errors."""
    return json_answer(status, {"error": {"name": name, "message": message}})


def _html(status: int, title: str) -> CannedAnswer:
    body = f"<!DOCTYPE html><html><head><title>{title}</title></head><body>{title}</body></html>"
    return CannedAnswer(status, body.encode(), "text/html; charset=utf-8")


_SLOW_DOWN = "too_many_requests"
TOO_MANY_REQUESTS = {
    "429_error_key": error_answer(429, _SLOW_DOWN, "Too many API requests."),
    "429_plain_key": json_answer(429, {"name": _SLOW_DOWN}),
    "429_text": CannedAnswer(429, b"Too many API requests.", "text/plain; charset=utf-8"),
}
CANNED = TOO_MANY_REQUESTS | {
    "418_error_key": error_answer(418, _SLOW_DOWN, "This client is blocked for a while."),
    "418_plain_key": json_answer(418, {"name": _SLOW_DOWN}),
    "500_json": error_answer(500, "server_error", "Internal server error."),
    "500_html": _html(500, "Internal Server Error"),
    "502": _html(502, "Bad Gateway"),
    "503_html": _html(503, "Service Temporarily Unavailable"),
    "504": _html(504, "Gateway Time-out"),
    "html_200": _html(200, "Scheduled maintenance"),
    "json_object": json_answer(200, {"status": "maintenance"}),
    # Of what stands before the exchange, and not the exchange's word on a market.
    "404_json": json_answer(404, {"message": "no Route matched with those values"}),
    "404_html": _html(404, "Not Found"),
    "404_empty": CannedAnswer(404, b""),
}
# A row is odd for good: the middle one of the page, or that of the minute `at`.
ODD_ROWS: dict[str, CandleJson] = {
    "null_fields": {"trade_price": None, "candle_acc_trade_volume": None},
    "impossible_row": {"high_price": 0.5},
    "huge_volume": {"candle_acc_trade_volume": 1e12},
    "undated_row": {"candle_date_time_utc": None},
}
# What a copy of the exchange shows that is three minutes behind, or minutes not yet revised.
LATE = ("lagging_copy", "unrevised_copy")
_LAG_MS = 3 * MINUTE_MS
_SPOILED_PAGES = (
    *ODD_ROWS,
    "doubled_row",
    *LATE,
    "out_of_order",
    "stale_page",
    "empty_page",
    "wrong_market",
)
_BROKEN_BODIES = ("truncated_json", "short_body")
_BROKEN_CONNECTIONS = ("reset", "timeout")
FileContent = Literal[
    "file_bomb",
    "file_cut",
    "file_doubled_row",
    "file_half_minute",
    "file_impossible_row",
    "file_lacks_rows",
    "file_no_number",
    "file_no_rows",
    "file_other_columns",
    "file_other_day",
    "file_other_market",
    "file_out_of_order",
    "file_path",
    "file_replaced",
    "file_short_row",
    "file_swapped_rows",
    "file_two_members",
]
"""What can be wrong with a history file whose checksum fits."""
_LISTINGS = {
    "listing_500": CANNED["500_html"],
    "listing_html": CANNED["html_200"],
    "listing_object": CANNED["json_object"],
}
_FILES = {
    "file_404": CANNED["404_html"],
    "file_500": CANNED["500_html"],
    "file_html": CANNED["html_200"],
}
ENDLESS, DRIP = "file_endless", "file_drip"
FILE_KINDS: tuple[str, ...] = (
    *get_args(FileContent),
    *_FILES,
    *_LISTINGS,
    "file_no_checksum",
    "file_wrong_checksum",
    "file_unlisted",
    ENDLESS,
    DRIP,
    "listing_endless",
)
"""Of the history files and their listings."""
STREAM_REFUSALS = {
    "stream_refused_404": 404,
    "stream_refused_429": 429,
    "stream_refused_503": 503,
}
"""Of the stream's handshakes, each with its status."""
StreamMinute = Literal["stream_forming_wrong", "stream_late", "stream_missing"]
"""What can be wrong with all that the stream shows of a minute."""
StreamMessage = Literal[
    "stream_cut",
    "stream_dead",
    "stream_double",
    "stream_error",
    "stream_garbage",
    "stream_old",
    "stream_other_market",
    "stream_silent",
]
"""What can be wrong with a candle's message, or from it on."""
STREAM_KINDS: tuple[str, ...] = (
    *STREAM_REFUSALS,
    *get_args(StreamMinute),
    *get_args(StreamMessage),
)
_LATE_SECONDS, _MOST_SECONDS = 5.0, 3600
KINDS = (*CANNED, *_SPOILED_PAGES, *_BROKEN_BODIES, *_BROKEN_CONNECTIONS)
"""Of the candle requests."""


class BadFaultError(ValueError):
    """A fault that cannot be set; the message says what is allowed."""


@dataclass(frozen=True)
class Fault:
    """One kind of wrong answer, and which candle requests get it.

    `every`: each Nth request that matches. `probability`: each with this chance, the same ones in
    every run. `count`: at most so many. `market`: only requests for it. `between`: only those
    with first < `to` <= last, which are the pages whose newest candle lies in [first, last).
    `retry_after`: the Retry-After header in seconds, of the kinds that have a status of 4xx or
    5xx. `at`: the minute of the row that is odd; other rows are sound. Raises BadFaultError.

    A kind that begins with `file_` hits files, and each that it has hit for as long as it is set:
    `every`, `probability` and `count` count files, and `between` is where a file's end lies. One
    that begins with `listing_` hits every listing of the market.

    A kind that begins with `stream_` hits candles' messages, and `between` is where the minute
    lies. `stream_cut` resets the connection, `stream_silent` sends no candle from then on,
    `stream_dead` does not answer pings either, `stream_double` comes twice, `stream_old` is
    followed by what the connection has shown of the market first, `stream_other_market` has the
    name of one that was not asked for; `stream_error` and `stream_garbage` come in its place.
    `stream_refused_…` hits handshakes. `stream_late`, `stream_forming_wrong` and `stream_missing`
    hit a market's minutes, for all connections: the last message of one comes `seconds` after the
    minute's end, or is wrong and stays so; or no message of it comes.
    """

    kind: str
    every: int = 1
    probability: float = 1.0
    count: int | None = None
    market: str | None = None
    between: tuple[datetime, datetime] | None = None
    retry_after: int | None = None
    at: datetime | None = None
    seconds: float = _LATE_SECONDS

    def __post_init__(self) -> None:
        """Refuse what could never strike, or never as meant."""
        if self.kind not in (*KINDS, *FILE_KINDS, *STREAM_KINDS):
            allowed = ", ".join((*KINDS, *FILE_KINDS, *STREAM_KINDS))
            raise BadFaultError(f"fault kind {self.kind!r}; allowed: {allowed}")
        for name in ("every", "count"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise BadFaultError(f"{name}={number}; allowed: a whole number from 1")
        if not 0 < self.probability <= 1:
            raise BadFaultError(f"probability={self.probability}; allowed: above 0, up to 1")
        if self.between and not EPOCH <= self.between[0] < self.between[1]:
            raise BadFaultError("between: the first time is not before the last")
        if self.at and self.kind not in (*ODD_ROWS, "doubled_row"):
            raise BadFaultError(f"at: allowed with {', '.join(ODD_ROWS)}, doubled_row")
        if self.retry_after is not None and (
            self.retry_after < 0 or self.kind not in CANNED or CANNED[self.kind].status == 200
        ):
            raise BadFaultError(
                "retry_after: allowed: seconds from 0, with a kind that is an error"
            )

        self._check_of_the_stream()

    def _check_of_the_stream(self) -> None:
        if self.kind in STREAM_REFUSALS and (self.market or self.between):
            raise BadFaultError("market, between: a handshake has none")
        if self.seconds != _LATE_SECONDS and self.kind != "stream_late":
            raise BadFaultError("seconds: allowed with stream_late")
        if not 0 < self.seconds <= _MOST_SECONDS:
            raise BadFaultError(f"seconds={self.seconds}; allowed: above 0, up to {_MOST_SECONDS}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `kind` or `kind:option=value,…`; `between` is two ISO 8601 times, `first/last`.

        Times without an offset are UTC. Raises BadFaultError with what is allowed.
        """
        kind, _, rest = text.strip().partition(":")
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in _OPTIONS:
                raise BadFaultError(
                    f"{part!r} in {text!r}; allowed: {', '.join(_OPTIONS)}, each with ="
                )
            read, allowed = _OPTIONS[name]
            try:
                options[name] = read(value)
            except ValueError as error:
                raise BadFaultError(f"{part!r} in {text!r}; allowed: {allowed}") from error
        return cls(kind, **options)


def _between(text: str) -> tuple[datetime, datetime]:
    first, last = (parse_time(time) for time in text.split("/"))
    return first, last


def parse_time(text: str) -> datetime:
    """Read an ISO 8601 time, UTC unless it carries an offset; raises ValueError."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


_OPTIONS: dict[str, tuple[Callable[[str], object], str]] = {
    "every": (int, "a whole number from 1"),
    "probability": (float, "a number above 0, up to 1"),
    "count": (int, "a whole number from 1"),
    "market": (str, "a market such as KRW-DOGE"),
    "between": (_between, "two times such as 2025-09-03T00:00/2025-09-04T00:00"),
    "retry_after": (int, "whole seconds from 0"),
    "at": (parse_time, "a minute such as 2025-09-03T10:00"),
    "seconds": (float, "seconds above 0"),
}


class FaultSchedule:
    """Faults in order, and what each has seen and sent so far; not thread-safe.

    A fault sees only the requests that the ones before it let pass.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        # Seeded by its own text: the same fault strikes the same requests in every run.
        self._faults = [(fault, Random(repr(fault))) for fault in faults]  # noqa: S311
        self._seen: Counter[int] = Counter()
        self._sent: Counter[int] = Counter()
        self._files: dict[str, Fault | None] = {}
        self._minutes: dict[tuple[str, int], Fault | None] = {}

    def strike(self, symbol: str, to_ms: int) -> Fault | None:
        """The fault that hits the next candle request, which has this market and `to`, if any."""
        return self._strike(symbol, EPOCH + timedelta(milliseconds=to_ms), "")

    def strike_file(self, key: str, symbol: str, end: datetime) -> Fault | None:
        """The fault of a history file, which its first request decides."""
        if key not in self._files:
            self._files[key] = self._strike(symbol, end, "file_")
        return self._files[key]

    def strike_listing(self, symbol: str) -> Fault | None:
        """The fault of a listing of a market's files."""
        return self._strike(symbol, None, "listing_")

    def strike_handshake(self) -> Fault | None:
        """The fault of a handshake of the stream."""
        return self._strike(None, None, "stream_refused_")

    def strike_minute(self, symbol: str, minute: int) -> tuple[Fault | None, bool]:
        """The fault of a minute (since 1970) in the stream, and whether it was decided just now."""
        is_new = (symbol, minute) not in self._minutes
        if is_new:
            end = EPOCH + timedelta(minutes=minute + 1)
            self._minutes[symbol, minute] = self._strike(symbol, end, "stream_minute")
        return self._minutes[symbol, minute], is_new

    def strike_message(self, symbol: str, minute: int) -> Fault | None:
        """The fault of a message that shows this minute (since 1970)."""
        return self._strike(symbol, EPOCH + timedelta(minutes=minute + 1), "stream_")

    def _strike(self, symbol: str | None, to: datetime | None, family: str) -> Fault | None:
        for index, (fault, random) in enumerate(self._faults):
            if _family(fault.kind) != family:
                continue
            if fault.market not in (None, symbol) or self._sent[index] == fault.count:
                continue
            if fault.between and to and not fault.between[0] < to <= fault.between[1]:
                continue
            self._seen[index] += 1
            if self._seen[index] % fault.every == 0 and random.random() < fault.probability:
                self._sent[index] += 1
                return fault
        return None


def _family(kind: str) -> str:
    if kind in get_args(StreamMinute):
        return "stream_minute"
    families = ("file_", "listing_", "stream_refused_", "stream_")
    return next((name for name in families if kind.startswith(name)), "")


def canned_file(fault: Fault | None) -> CannedAnswer | None:
    """The answer of a kind that has nothing of a file or a listing in it."""
    return (_FILES | _LISTINGS).get(fault.kind) if fault else None


def canned(fault: Fault) -> CannedAnswer:
    """The answer of a kind in CANNED, with its Retry-After."""
    answer = CANNED[fault.kind]
    if fault.retry_after is None:
        return answer
    return answer._replace(headers=(("Retry-After", str(fault.retry_after)),))


def faulty_page(
    fault: Fault | None,
    query: PageQuery,
    other: str | None,
    ask: Callable[[PageQuery], list[CandleJson]],
    now_ms: int,
) -> list[CandleJson]:
    """The rows that a fault's page has; those of a sound one for a kind that spares the rows.

    `other` is another market, if there is one; `ask` gives the sound page of a query.
    """
    kind = fault.kind if fault else ""
    behind_ms = (now_ms - _LAG_MS) // MINUTE_MS * MINUTE_MS
    match kind:
        case "stale_page":
            query = query._replace(to_ms=query.to_ms - query.size * query.unit * MINUTE_MS)
        case "lagging_copy":
            query = query._replace(to_ms=min(query.to_ms, behind_ms))
        case "wrong_market":
            query = query._replace(symbol=other or query.symbol)
    rows = ask(query)
    match kind:
        case "empty_page":
            return []
        case "wrong_market":
            return [row | {"market": other or "KRW-OTHER"} for row in rows]
        case "out_of_order":
            return rows[1::2] + rows[::2]
        case "unrevised_copy":
            since = _row_time(EPOCH + timedelta(milliseconds=behind_ms))
            return [
                row | {"trade_price": row["opening_price"]}
                if row["candle_date_time_utc"] >= since
                else row
                for row in rows
            ]
    return _with_odd_row(fault, rows)[: query.size] if fault else rows


def _with_odd_row(fault: Fault, rows: list[CandleJson]) -> list[CandleJson]:
    at = [n for n, row in enumerate(rows) if row["candle_date_time_utc"] == _row_time(fault.at)]
    if fault.at is None:
        at = [len(rows) // 2] if rows else []
    for n in at:
        if fault.kind == "doubled_row":
            return [*rows[:n], rows[n], *rows[n:]]
        rows[n] |= ODD_ROWS.get(fault.kind, {})
    return rows


def _row_time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}" if moment else ""
