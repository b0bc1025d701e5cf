"""One moment of one symbol called to account: what was computed, from what, by what, and anew.

Everything is read in one snapshot and nothing is written: the functions of the engine are given
what is stored now, and their rows are compared with those in the tables to the last bit. How it is
drawn belongs in `cli/explain`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb, set_json_loads

from trading_pipelines.candles.windows import DAY, HOUR, day_interval, floor_hour
from trading_pipelines.errors import OperatorError
from trading_pipelines.korean_time import kst
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due, provenance, tables
from trading_pipelines.signals.catalogue import (
    CONFIRM_OUTCOMES,
    GARCH_BASELINE,
    POOLED,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    REJECT_OUTCOMES,
    SIGNALS,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    Signal,
)
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.engine import ComputeRun, SignalRow
from trading_pipelines.signals.registry import COMPUTATIONS

LABELLED = """
SELECT min(hour) + interval '1 hour', max(hour) + interval '1 hour'
FROM trading_pipelines.regime_labels WHERE symbol = %s
"""
MAKING = """
SELECT made.computed_until, made.inputs_from, made.settings_digest, made.code_version,
    made.rows_digest, made.computed_at, made.computed_by, made.inputs, kept.settings
FROM trading_pipelines.signal_coverage AS made
LEFT JOIN trading_pipelines.signal_settings AS kept
    ON kept.asset = made.asset AND kept.digest = made.settings_digest
WHERE made.asset = %s AND made.symbol = %s AND made.day = %s
    AND made.computed_until IS NOT NULL
"""
# The recomputed rows take the columns' types on their way, as they do when they are stored.
COMPARED = """
SELECT to_jsonb(stored) AS stored, to_jsonb(anew) AS recomputed
FROM (SELECT {columns} FROM {table} AS stored
    WHERE {symbol} stored.{time} = ANY(%(times)s)) AS stored
FULL JOIN (SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, %(rows)s::jsonb)) AS anew
    USING ({key})
ORDER BY {key}
"""
CANDLES = """
SELECT count(*) AS rows, md5(coalesce(string_agg(concat_ws(' ', symbol,
    extract(epoch FROM timestamp)::bigint, open_price, high_price, low_price, close_price, volume),
    ';' ORDER BY symbol, timestamp), '')) AS digest
FROM {table} WHERE symbol = ANY(%(symbols)s) AND timestamp >= %(start)s AND timestamp < %(end)s
    {interval}
"""
SIGNAL_ROWS = """
SELECT count(*) AS rows, md5(coalesce(string_agg(jsonb_build_array({columns})::text,
    ';' ORDER BY {key}), '')) AS digest
FROM {table} WHERE {symbol} {time} {since} AND {time} {until}
"""
# Which days of a table belong to a partition: midnight closes the day before.
OF_DAYS = {
    "hour": (">= %(start)s", "< %(end)s"),
    "as_of": ("> %(start)s", "<= %(end)s"),
    "day": (">= %(first)s", "<= %(last)s"),
}
DECIDED = """
SELECT count(*) AS rows, coalesce(max(versions.version), '') AS digest
FROM trading_pipelines.decisions(%(decision)s, %(symbol)s, %(start)s, %(end)s) AS told
LEFT JOIN trading_pipelines.decision_versions(
    %(decision)s, ARRAY[%(symbol)s], %(first)s, %(first)s) AS versions ON true
"""
SOURCES = r"""
SELECT asked.symbol, regexp_replace(asked.source, '^\S+\.zip', 'history files') AS source,
    min(asked.day) AS first_day, max(asked.day) AS last_day,
    count(*) AS days, sum(asked.rows)::int AS candles
FROM unnest(%(symbols)s::text[], %(firsts)s::date[], %(lasts)s::date[])
    AS span (symbol, first_day, last_day)
JOIN trading_pipelines.candle_coverage AS asked ON asked.symbol = span.symbol
    AND asked.interval = '1m' AND asked.day BETWEEN span.first_day AND span.last_day
GROUP BY 1, 2 ORDER BY 1, first_day, 2
"""
CHANGED_SINCE = """
SELECT DISTINCT span.asset, asked.symbol, asked.day
FROM unnest(%(assets)s::text[], %(firsts)s::date[], %(lasts)s::date[])
    AS span (asset, first_day, last_day)
JOIN (
    SELECT 'candles_' || interval AS asset, symbol, day, changed_at
    FROM trading_pipelines.candle_coverage
    UNION ALL
    SELECT asset, symbol, day, changed_at FROM trading_pipelines.signal_coverage
) AS asked ON asked.asset = span.asset AND asked.symbol = ANY(%(symbols)s)
    AND asked.day BETWEEN span.first_day AND span.last_day AND asked.changed_at > %(since)s
ORDER BY 1, 2, 3
"""
SHOWN_DAYS = 5
NOT_ON_RECORD = "it was made before provenance was kept: its settings and code are not on record"
UNEXPLAINED = (
    "nothing on record has changed: the code was changed without its version, or its libraries were"
)


class ExplainError(OperatorError):
    """There is nothing to explain; the message says what there is."""


@dataclass(frozen=True)
class InputRows:
    """The rows of an input as they are now; equal rows have an equal digest, everywhere."""

    asset: str
    symbols: list[str]
    first_day: date
    last_day: date
    rows: int
    digest: str


@dataclass(frozen=True)
class CandleSource:
    """Where the one-minute candles at the beginning of it all came from; UTC days."""

    symbol: str
    source: str | None
    first_day: date
    last_day: date
    days: int
    candles: int


@dataclass(frozen=True)
class Difference:
    """A column of a row that is not what it would be now; None: there is no such row."""

    row: dict[str, Any]
    column: str
    stored: Any
    recomputed: Any


@dataclass(frozen=True)
class Here:
    """What only this installation has: other ones have other runs, moments and versions."""

    run_id: str | None
    computed_at: datetime | None
    inputs_version: str | None
    """Of the inputs that it was computed from (`signal_coverage.inputs`)."""
    inputs_version_now: str | None


@dataclass(frozen=True)
class ExplainedValue:
    """What one asset has of the moment; times and days UTC, exact numbers as Decimal."""

    asset: str
    symbol: str
    """Empty where it is pooled."""
    day: date
    """Of its partition."""
    rows: list[dict[str, Any]]
    computed_until: datetime
    settings: dict[str, Any] | None
    """By which it was made; None as `code_version`: not on record."""
    code_version: str | None
    inputs: list[InputRows]
    candles: list[CandleSource]
    equal: bool | None
    """Whether the same is computed now, to the bit; None: it can't be computed now."""
    differences: list[Difference]
    changed_since: list[str]
    """What has changed since it was computed, with or without a difference."""
    here: Here


@dataclass(frozen=True)
class Explanation:
    """What the tables have of one symbol as of the close of an hour (UTC)."""

    symbol: str
    as_of: datetime
    values: list[ExplainedValue]
    """In the order of the lineage; decisions are those of the hour that begins at `as_of`."""

    def flags(self) -> list[dict[str, Any]]:
        """Return, by horizon, whether volatility was flagged high, and of which two numbers."""
        names = ("horizon", "is_high_volatility", "variance", "threshold")
        return [
            {name: row[name] for name in names}
            for value in self.values if value.asset == VOLATILITY_FORECAST.asset
            for row in value.rows
        ]  # fmt: skip

    def account(self, *, here: bool) -> dict[str, Any]:
        """Return it for JSON: the same to the byte wherever candles, settings and code are equal.

        With `here`, also what only this installation has.
        """
        values = [asdict(value) for value in self.values]
        for value in values:
            if not here:
                del value["here"]
        return {
            "symbol": self.symbol, "as_of": self.as_of, "flags": self.flags(), "values": values
        }  # fmt: skip


@dataclass(frozen=True)
class _Making:
    computed_until: datetime
    inputs_from: date | None
    settings_digest: str | None
    code_version: str | None
    rows_digest: str | None
    computed_at: datetime | None
    computed_by: str | None
    inputs: str | None
    settings: dict[str, Any] | None


def explain(
    connection: psycopg.Connection,
    symbol: str,
    moment: datetime,
    settings: StrategySettings,
    now: datetime,
) -> Explanation:
    """Return what holds of the symbol at `moment`, as of the last close before it.

    Raises ExplainError for a symbol or a moment of which nothing is stored, and for an open hour.
    `connection` is autocommit; it is left as it was, and nothing is written.
    """
    as_of = floor_hour(moment)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        _require_stored(connection, symbol, as_of, settings, now)
        explainer = _Explainer(connection, settings)
        values = list(explainer.values(symbol, as_of))
    if not values:
        raise ExplainError(
            f"nothing is stored of {symbol} as of {kst(as_of)}: `trading-pipelines status` says "
            "what is due, `backfill --with-signals` brings it"
        )
    return Explanation(symbol, as_of, values)


def _require_stored(
    connection: psycopg.Connection,
    symbol: str,
    as_of: datetime,
    settings: StrategySettings,
    now: datetime,
) -> None:
    first, last = connection.execute(LABELLED, [symbol]).fetchone() or (None, None)
    if first is None:
        there_are = ", ".join(settings.symbols)
        raise ExplainError(f"nothing is stored of {symbol}; collected are {there_are}")
    stored = f"of {symbol} there is {kst(first)} to {kst(last)}"
    if as_of - HOUR > now:
        raise ExplainError(f"{kst(as_of)} is to come; {stored}")
    if as_of > now:
        raise ExplainError(f"the hour that closes at {kst(as_of)} is still open; {stored}")
    if not first <= as_of <= last:
        raise ExplainError(f"{kst(as_of)} is not computed; {stored}")


_Row = dict[str, Any]
_IsAsked = Callable[[_Row], bool]


@dataclass(frozen=True)
class _Span:
    """The days of an input that a partition looks at."""

    asset: str
    symbols: list[str]
    first: date
    last: date


class _Explainer:
    def __init__(self, connection: psycopg.Connection, settings: StrategySettings) -> None:
        self._connection = connection
        self._settings = settings

    def values(self, symbol: str, as_of: datetime) -> Iterator[ExplainedValue]:
        """Yield what each asset has of the moment, in the order of the lineage."""
        day, hour = (as_of - HOUR).date(), (as_of - HOUR).isoformat()

        def is_of_hour(row: _Row) -> bool:
            return bool(row["hour"] == hour)

        def is_as_of(row: _Row) -> bool:
            return bool(row["as_of"] == as_of.isoformat())

        def is_decided(row: _Row) -> bool:
            return as_of <= datetime.fromisoformat(row["decided_at"]) < as_of + HOUR

        yield from self._value(REGIME_LABELS, symbol, day, is_of_hour)
        yield from self._value(REALIZED_VOLATILITY, symbol, day, is_of_hour)
        forecasts = list(self._value(VOLATILITY_FORECAST, symbol, day, is_as_of))
        models = {(row["model_day"], row["horizon"]) for f in forecasts for row in f.rows}
        for model_day in sorted({of_day for of_day, _ in models}):
            yield from self._value(
                VOLATILITY_MODEL, POOLED, date.fromisoformat(model_day),
                lambda row: (row["day"], row["horizon"]) in models,
            )  # fmt: skip
        yield from forecasts
        yield from self._value(GARCH_BASELINE, symbol, day, is_as_of)
        for signal in (REJECT_OUTCOMES, CONFIRM_OUTCOMES):
            yield from self._value(signal, symbol, as_of.date(), is_decided)

    def _value(
        self, signal: Signal, symbol: str, day: date, is_asked: _IsAsked
    ) -> Iterator[ExplainedValue]:
        """Yield the partition's account, with the rows that are asked for; none without any."""
        with self._connection.cursor(row_factory=class_row(_Making)) as cursor:
            making = cursor.execute(MAKING, [signal.asset, symbol, day]).fetchone()
        if making is None:
            return
        (coverage,) = signal_coverage.read(
            self._connection, signal, [symbol], [day], self._settings
        )
        anew = self._recomputed(signal, symbol, coverage)
        pairs = [
            (stored, made)
            for stored, made in self._compared(signal, symbol, coverage, anew or [])
            if is_asked(stored or made or {})
        ]
        if not pairs:
            return
        differences = [] if anew is None else list(_differences(signal, pairs))
        spans = self._spans(signal, symbol, day, making.inputs_from)
        changed = list(self._changed_since(signal, symbol, making, coverage, spans))
        yield ExplainedValue(
            signal.asset,
            symbol,
            day,
            rows=[stored for stored, _ in pairs if stored is not None],
            computed_until=making.computed_until,
            settings=making.settings,
            code_version=making.code_version,
            inputs=list(self._input_rows(signal, symbol, coverage, spans)),
            candles=self._sources(spans),
            equal=None if anew is None else not differences,
            differences=differences,
            changed_since=changed or ([UNEXPLAINED] if differences else []),
            here=Here(making.computed_by, making.computed_at, making.inputs, coverage.inputs),
        )

    def _recomputed(
        self, signal: Signal, symbol: str, coverage: SignalCoverage
    ) -> Sequence[SignalRow] | None:
        """Return the partition's rows as they would be now; None where it can't be computed."""
        if not due.is_ready(coverage, signal):
            return None
        computation = COMPUTATIONS[signal.asset]
        run = ComputeRun(self._connection, signal, computation, self._settings, run_id="")
        return computation.function(run, symbol, [coverage])[coverage.day].rows

    def _compared(
        self, signal: Signal, symbol: str, coverage: SignalCoverage, rows: Sequence[SignalRow]
    ) -> list[tuple[_Row | None, _Row | None]]:
        """Return each row of the partition as it is stored and as it would be now."""
        table = COMPUTATIONS[signal.asset].table
        anew = [dict(zip(table.columns, row, strict=True)) for row in rows]
        content = json.dumps(anew, default=_as_json)
        with self._connection.cursor() as cursor:
            set_json_loads(partial(json.loads, parse_float=Decimal), cursor)
            return cursor.execute(
                tables.filled(COMPARED, tables.names(table)),
                {"symbol": symbol, "times": _times(table, coverage.day), "rows": content},
            ).fetchall()

    def _spans(
        self, signal: Signal, symbol: str, day: date, inputs_from: date | None
    ) -> list[_Span]:
        symbols = self._settings.symbols if signal.pooled else [symbol]
        after = signal.inputs_after(self._settings)
        return [
            _Span(
                asset,
                [POOLED] if _signal(asset) is VOLATILITY_MODEL else sorted(symbols),
                inputs_from or day - DAY * days,
                day + DAY * after.get(asset, 0),
            )
            for asset, days in signal.inputs(self._settings).items()
        ]

    def _input_rows(
        self, signal: Signal, symbol: str, coverage: SignalCoverage, spans: Sequence[_Span]
    ) -> Iterator[InputRows]:
        for span in spans:
            start, end = day_interval(span.first).start, day_interval(span.last).end
            if span.last == coverage.day and coverage.until is not None:
                end = coverage.until
            bounds = {
                "symbols": span.symbols, "start": start, "end": end,
                "first": span.first, "last": span.last,
            }  # fmt: skip
            upstream = _signal(span.asset)
            query = _candles(span.asset) if upstream is None else _signal_rows(upstream)
            yield InputRows(
                span.asset, span.symbols, span.first, span.last, *self._one(query, bounds)
            )
        if signal.decision:
            whole = day_interval(coverage.day)
            bounds = {
                "decision": signal.decision, "symbol": symbol,
                "start": whole.start, "end": whole.end, "first": coverage.day,
            }  # fmt: skip
            yield InputRows(
                "agent_decisions", [symbol], coverage.day, coverage.day,
                *self._one(sql.SQL(DECIDED), bounds),
            )  # fmt: skip

    def _one(
        self, query: sql.SQL | sql.Composed, arguments: Mapping[str, object]
    ) -> tuple[int, str]:
        row = self._connection.execute(query, arguments).fetchone()
        assert row is not None
        return row[0], row[1]

    def _sources(self, spans: Sequence[_Span]) -> list[CandleSource]:
        days: dict[str, tuple[date, date]] = {}
        for span in self._candle_spans(spans):
            for symbol in span.symbols:
                first, last = days.get(symbol, (span.first, span.last))
                days[symbol] = min(first, span.first), max(last, span.last)
        arguments = {
            "symbols": list(days),
            "firsts": [first for first, _ in days.values()],
            "lasts": [last for _, last in days.values()],
        }
        with self._connection.cursor(row_factory=class_row(CandleSource)) as cursor:
            return cursor.execute(SOURCES, arguments).fetchall()

    def _candle_spans(self, spans: Sequence[_Span]) -> Iterator[_Span]:
        """Yield the days of candles that the inputs go back to, through what is between."""
        for span in spans:
            signal = _signal(span.asset)
            if signal is None:
                yield span
                continue
            for symbol in span.symbols:
                for edge in {span.first, span.last}:
                    yield from self._candle_spans(self._spans(signal, symbol, edge, None))

    def _changed_since(
        self,
        signal: Signal,
        symbol: str,
        making: _Making,
        coverage: SignalCoverage,
        spans: Sequence[_Span],
    ) -> Iterator[str]:
        """Yield what is not as it was when the partition was computed, in words."""
        if making.settings_digest is None:
            yield NOT_ON_RECORD
        else:
            matter = signal.settings_that_matter(self._settings)
            for change in provenance.changes(making.settings or {}, matter):
                yield f"setting {change}"
            if making.code_version != signal.code_version:
                yield f"code version {making.code_version}, now {signal.code_version}"
        table = COMPUTATIONS[signal.asset].table
        times = _times(table, coverage.day)
        digest = tables.rows_digest(self._connection, table, symbol, times)
        if making.rows_digest not in {None, digest}:
            yield "its own rows, by something else than a run of the asset"
        if making.inputs != coverage.inputs:
            yield f"inputs: {self._changed_inputs(making, spans)}"
        for span in spans:
            if (upstream := _signal(span.asset)) is not None:
                yield from self._outdated(upstream, span)

    def _changed_inputs(self, making: _Making, spans: Sequence[_Span]) -> str:
        arguments = {
            "assets": [span.asset for span in spans],
            "firsts": [span.first for span in spans],
            "lasts": [span.last for span in spans],
            "symbols": sorted({symbol for span in spans for symbol in span.symbols}),
            "since": making.computed_at,
        }
        changed = self._connection.execute(CHANGED_SINCE, arguments).fetchall()
        texts = [" ".join(filter(None, (a, symbol, str(day)))) for a, symbol, day in changed]
        more = [f"and {len(texts) - SHOWN_DAYS} more"] if len(texts) > SHOWN_DAYS else []
        return ", ".join(texts[:SHOWN_DAYS] + more) or "which days is not on record"

    def _outdated(self, upstream: Signal, span: _Span) -> Iterator[str]:
        """Yield how many partitions of an input are themselves not what they would be now."""
        days = [span.first + DAY * n for n in range((span.last - span.first).days + 1)]
        partitions = signal_coverage.read(
            self._connection, upstream, span.symbols, days, self._settings
        )
        computed = [p for p in partitions if p.computed_until is not None]
        outdated = [
            p
            for p in computed
            if p.computed_from != p.inputs
            or due.made_otherwise(p, upstream, self._settings) is not None
        ]
        if outdated:
            yield (
                f"what {upstream.asset} is computed from: {len(outdated)} of its {len(computed)} "
                "partitions looked at are not what they would be now"
            )


def _signal(asset: str) -> Signal | None:
    """Return the signal of the name; None for candles."""
    return next((signal for signal in SIGNALS if signal.asset == asset), None)


def _times(table: tables.Table, day: date) -> list[Any]:
    """Return the values of the table's column of time that belong to the day's partition."""
    hours = tables.hours_of(day)
    times: dict[str, list[Any]] = {
        "hour": hours, "as_of": [hour + HOUR for hour in hours], "day": [day]
    }  # fmt: skip
    return times[table.time]


def _candles(asset: str) -> sql.Composed:
    minutes = asset == "candles_1m"
    return sql.SQL(CANDLES).format(
        table=sql.Identifier("public", "market_data")
        if minutes
        else sql.Identifier("trading_pipelines", asset),
        interval=sql.SQL("AND interval = '1m'" if minutes else ""),
    )


def _signal_rows(signal: Signal) -> sql.Composed:
    table = COMPUTATIONS[signal.asset].table
    since, until = OF_DAYS[table.time]
    names = tables.names(table)
    names |= {
        "symbol": sql.SQL("symbol = ANY(%(symbols)s) AND" if "symbol" in table.key else ""),
        "since": sql.SQL(since),
        "until": sql.SQL(until),
    }
    return tables.filled(SIGNAL_ROWS, names)


def _as_json(value: object) -> object:
    """Return what of a computed row JSON does not have; text is read by its column's type."""
    return value.obj if isinstance(value, Jsonb) else str(value)


def _differences(
    signal: Signal, pairs: Sequence[tuple[_Row | None, _Row | None]]
) -> Iterator[Difference]:
    table = COMPUTATIONS[signal.asset].table
    for stored, anew in pairs:
        there = stored or anew or {}
        row = {name: there[name] for name in table.key}
        for name in table.values:
            before, now = (stored or {}).get(name), (anew or {}).get(name)
            if before != now or (stored is None) != (anew is None):
                yield Difference(row, name, before, now)
