"""What of the signals is due, asked of the tables; and the record of what was computed from what.

A partition is due when it is missing, or when the version of anything it was computed from has
changed: a healed hole makes due exactly the days it touches. The versions are the view
`input_versions`. Which runs are in flight is Dagster's knowledge; how a partition is computed
belongs in `compute`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles.coverage import BACK_OFF, healing_arguments
from trading_pipelines.candles.due import rectangles
from trading_pipelines.candles.windows import DAY, HOUR, day_interval
from trading_pipelines.settings import HealingSettings, StrategySettings
from trading_pipelines.signals import garch, outcomes, realized, regime, volatility

NOTHING = timedelta(0)
POOLED = ""
"""Stands where the symbol would, for an asset over all symbols."""


@dataclass(frozen=True)
class Signal:
    """One asset of signals: what its partition of day d is computed from."""

    asset: str
    inputs: Callable[[StrategySettings], dict[str, int]]
    """Upstream assets, each with the number of days before d that are looked at."""
    pooled: bool = False
    closed_days_only: bool = False
    """An open day is not computed hour by hour."""
    settles: timedelta = NOTHING
    """After midnight: until then the last candles of the day may still be on their way."""
    rejections: bool = False
    """The bot's rejections of the day are an input too."""
    inputs_after: Callable[[StrategySettings], dict[str, int]] = lambda _: {}
    """Those of the inputs of which days after d are looked at too, and how many."""

    def days_after(self, settings: StrategySettings) -> int:
        """Return how many days after its own a partition looks at."""
        return max(self.inputs_after(settings).values(), default=0)


def _longest_horizon_days(settings: StrategySettings) -> int:
    return -(-max(settings.volatility.horizons) // 24)


REGIME_LABELS = Signal("regime_labels", lambda s: {"candles_1h": regime.window_days(s)})
REALIZED_VOLATILITY = Signal(
    "realized_volatility", lambda _: {"candles_1m": realized.ZERO_SHARE_HOURS // 24}
)
VOLATILITY_MODEL = Signal(
    "volatility_model",
    lambda s: {
        "realized_volatility": volatility.training_days(s.volatility, len(s.symbols))
        + volatility.WARM_UP_HOURS // 24
        - 1
    },
    pooled=True,
    closed_days_only=True,
    settles=timedelta(minutes=5),
)
VOLATILITY_FORECAST = Signal(
    "volatility_forecast",
    lambda s: {
        "realized_volatility": max(s.volatility.threshold_days, volatility.EWMA_HOURS // 24)
        + _longest_horizon_days(s),
        "volatility_model": 1,
    },
)
GARCH_BASELINE = Signal(
    "garch_baseline", lambda _: {"candles_1h": garch.TRAINING_DAYS + 1}, closed_days_only=True
)
VOLATILITY_SCORE = Signal(
    "volatility_score",
    lambda s: {
        "volatility_forecast": _longest_horizon_days(s),
        "garch_baseline": _longest_horizon_days(s),
        "realized_volatility": 2 * _longest_horizon_days(s),
    },
    closed_days_only=True,
)
REJECT_OUTCOMES = Signal(
    "reject_outcomes",
    lambda _: {"candles_1m": 1, "regime_labels": 1},
    rejections=True,
    inputs_after=lambda s: {"candles_1m": outcomes.days_after(s)},
)


SIGNALS = (
    REGIME_LABELS,
    REALIZED_VOLATILITY,
    VOLATILITY_MODEL,
    VOLATILITY_FORECAST,
    GARCH_BASELINE,
    VOLATILITY_SCORE,
    REJECT_OUTCOMES,
)


class Reason(StrEnum):
    """Why a partition is due, or why it is not although it is not what it should be."""

    MISSING = "missing"
    STALE = "older than its inputs"
    FAILED = "failed"
    WAITING = "waiting"
    """Failed a short while ago; not tried before its retry_at."""
    LEFT_FAILED = "left failed"
    """Its tries are spent; not tried until it is asked for or its inputs change."""


@dataclass(frozen=True)
class Computed:
    """What is known of one partition; the digest and the reach of its inputs as they are now."""

    asset: str
    symbol: str
    day: date
    computed_until: datetime | None
    computed_from: str | None
    failures: int
    error: str | None
    retry_at: datetime | None
    left_failed: bool
    failed_inputs: str | None
    """The digest of the inputs that the last failed attempt saw."""
    inputs: str | None
    until: datetime | None
    """As of when it can be computed: how far its inputs reach."""
    has_all_inputs: bool


# The inputs of one partition, as they are seen by this transaction.
FOUND = """
SELECT CASE WHEN count(*) > 0 THEN md5(concat_ws(';',
        string_agg(concat_ws(' ', version.asset, version.symbol, version.day, version.version),
            ';' ORDER BY version.asset, version.symbol, version.day),
        {rejections})) END AS inputs,
    max(version.computed_until) FILTER (
        WHERE version.day >= {day} AND version.asset = (%(inputs)s::text[])[1]) AS until,
    count(DISTINCT version.asset) AS assets
FROM unnest(%(inputs)s::text[], %(days_before)s::int[], %(days_after)s::int[])
    AS input (asset, days_before, days_after)
JOIN trading_pipelines.input_versions AS version ON version.asset = input.asset
    AND version.symbol = ANY (ARRAY['', {symbol}] || %(pooled)s::text[])
    AND version.day BETWEEN coalesce({inputs_from}, {day} - input.days_before)
        AND {day} + input.days_after
    -- The same for all inputs, which an index can use: with years of history 40 times as fast.
    AND version.day BETWEEN coalesce({inputs_from}, {day} - %(longest)s) AND {day} + %(furthest)s
"""
# Of a whole tick in one scan: the bot's table may lack the index that a scan a day would need.
REJECTIONS = """
(SELECT version FROM {versions} AS rejected
    WHERE rejected.symbol = {symbol} AND rejected.day = {day})
"""
VERSIONS = "trading_pipelines.rejection_versions({symbols}, {first}, {last})"
OF_A_TICK = FOUND.format(
    symbol="symbols.symbol",
    day="days.day",
    inputs_from="known.inputs_from",
    rejections=REJECTIONS.format(versions="rejections", symbol="symbols.symbol", day="days.day"),
)
OF_A_RECORD = FOUND.format(
    symbol="%(symbol)s",
    day="%(day)s::date",
    inputs_from="%(inputs_from)s::date",
    rejections="CASE WHEN %(rejections)s THEN "
    + REJECTIONS.format(
        versions=VERSIONS.format(
            symbols="ARRAY[%(symbol)s]", first="%(day)s::date", last="%(day)s::date"
        ),
        symbol="%(symbol)s",
        day="%(day)s::date",
    )
    + " END",
)
READ = f"""
WITH rejections AS MATERIALIZED (
    SELECT * FROM {
    VERSIONS.format(
        symbols="%(symbols)s::text[]",
        first="(SELECT min(day) FROM unnest(%(days)s::date[]) AS day)",
        last="(SELECT max(day) FROM unnest(%(days)s::date[]) AS day)",
    )
} WHERE %(rejections)s
)
SELECT %(asset)s AS asset, symbols.symbol, days.day, known.computed_until,
    known.inputs AS computed_from, coalesce(known.failures, 0) AS failures, known.error,
    known.retry_at, coalesce(known.left_failed, false) AS left_failed, known.failed_inputs,
    found.inputs, found.until,
    found.assets = cardinality(%(inputs)s::text[]) AS has_all_inputs
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS symbols (symbol, place)
CROSS JOIN unnest(%(days)s::date[]) AS days (day)
LEFT JOIN trading_pipelines.signal_coverage AS known
    ON known.asset = %(asset)s AND known.symbol = symbols.symbol AND known.day = days.day
CROSS JOIN LATERAL (
{OF_A_TICK}
) AS found
ORDER BY place, days.day
"""  # noqa: S608 - constants
RECORD = f"""
INSERT INTO trading_pipelines.signal_coverage AS known
    (asset, symbol, day, computed_until, inputs_from, inputs, run_id)
SELECT %(asset)s, %(symbol)s, %(day)s, %(until)s, %(inputs_from)s::date, found.inputs, %(run_id)s
FROM (
{OF_A_RECORD}
) AS found
ON CONFLICT (asset, symbol, day) DO UPDATE SET
    computed_until = excluded.computed_until, inputs_from = excluded.inputs_from,
    inputs = excluded.inputs, run_id = excluded.run_id,
    changed_at = CASE WHEN %(changed)s THEN clock_timestamp() ELSE known.changed_at END,
    failures = 0, left_failed = false, failed_inputs = NULL, error = NULL, retry_at = NULL
"""  # noqa: S608 - constants
# The same inputs give the same failure; other ones begin to be tried anew.
FAIL = f"""
INSERT INTO trading_pipelines.signal_coverage AS known
    (asset, symbol, day, run_id, failures, left_failed, failed_inputs, error, retry_at)
SELECT %(asset)s, %(symbol)s, %(day)s, %(run_id)s, failures,
    %(is_its_own)s AND failures >= %(attempts)s,
    %(failed_inputs)s, %(error)s,
    now() + {BACK_OFF}
FROM (
    SELECT 1 + coalesce(max(failures), 0) AS failures FROM trading_pipelines.signal_coverage
    WHERE asset = %(asset)s AND symbol = %(symbol)s AND day = %(day)s
        AND failed_inputs IS NOT DISTINCT FROM %(failed_inputs)s
) AS tried
ON CONFLICT (asset, symbol, day) DO UPDATE SET
    failures = excluded.failures, left_failed = excluded.left_failed,
    failed_inputs = excluded.failed_inputs, error = excluded.error, retry_at = excluded.retry_at,
    run_id = excluded.run_id
"""  # noqa: S608 - constants


def _arguments(signal: Signal, settings: StrategySettings) -> dict[str, object]:
    inputs, after = signal.inputs(settings), signal.inputs_after(settings)
    return {
        "asset": signal.asset,
        "inputs": list(inputs),
        "days_before": list(inputs.values()),
        "days_after": [after.get(name, 0) for name in inputs],
        "longest": max(inputs.values()),
        "furthest": signal.days_after(settings),
        "pooled": list(settings.symbols) if signal.pooled else [],
        "rejections": signal.rejections,
    }


def read(
    connection: psycopg.Connection,
    signal: Signal,
    symbols: Sequence[str],
    days: Iterable[date],
    settings: StrategySettings,
) -> list[Computed]:
    """Return one entry a partition, in the symbols' order and by day; one a day where pooled."""
    arguments = {"symbols": [POOLED] if signal.pooled else list(symbols), "days": list(days)}
    with connection.cursor(row_factory=class_row(Computed)) as cursor:
        cursor.execute(READ, arguments | _arguments(signal, settings))
        return cursor.fetchall()


FORGOTTEN = """
SELECT look_back.symbol, days.day::date
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS symbols (symbol, place)
JOIN trading_pipelines.look_backs AS look_back ON look_back.symbol = symbols.symbol
CROSS JOIN generate_series(greatest(look_back.first_day, %(start)s::date), %(before)s::date - 1,
    interval '1 day') AS days (day)
WHERE NOT EXISTS (
    SELECT FROM trading_pipelines.candle_coverage AS asked
    JOIN trading_pipelines.signal_coverage AS labelled
        ON labelled.symbol = asked.symbol AND labelled.day = asked.day
    WHERE asked.symbol = symbols.symbol AND asked.interval = '1m' AND asked.day = days.day::date
      AND asked.status = 'complete'
      AND labelled.asset = %(labels)s AND labelled.computed_until = days.day + interval '1 day')
ORDER BY place, days.day
"""


def forgotten(
    connection: psycopg.Connection, symbols: Sequence[str], start: date, before: date
) -> list[tuple[str, date]]:
    """Return each (symbol, UTC day) in [start, before) that lacks candles or labels.

    Only days that a schedule once looked after: `before` is where its look-back begins now, so
    that none looks at them any more. An outage that was longer leaves such days.
    """
    arguments = {
        "symbols": list(symbols),
        "start": start,
        "before": before,
        "labels": REGIME_LABELS.asset,
    }
    return connection.execute(FORGOTTEN, arguments).fetchall()


def is_ready(known: Computed, signal: Signal) -> bool:
    """Return whether the partition's inputs are there, and the day closed where it has to be."""
    if known.until is None or not known.has_all_inputs:
        return False
    return not signal.closed_days_only or known.until == day_interval(known.day).end


def reason(
    known: Computed, signal: Signal, settings: StrategySettings, now: datetime
) -> Reason | None:
    """Return why the partition is due at `now`, or None; None too while its inputs are missing."""
    end = day_interval(known.day + DAY * signal.days_after(settings)).end
    is_settling = NOTHING <= now - end < signal.settles
    if not is_ready(known, signal) or is_settling:
        return None
    if known.failures and known.failed_inputs == known.inputs:
        if known.left_failed:
            return Reason.LEFT_FAILED
        if known.retry_at and known.retry_at > now:
            return Reason.WAITING
    if known.failures:
        return Reason.FAILED
    if known.computed_until is None:
        return Reason.MISSING
    # An open day is looked at when `check_interval_hours` more have closed, a closed one at once.
    next_look = min(known.computed_until + HOUR * settings.regime_detection.check_interval_hours,
                    end)  # fmt: skip
    is_early = known.until is not None and known.computed_until < known.until < next_look
    return None if is_early or known.computed_from == known.inputs else Reason.STALE


def runs(
    reasons: Mapping[tuple[str, date], Reason], symbols: Sequence[str]
) -> list[tuple[tuple[str, ...], date, date]]:
    """Cover the due (symbol, day)s with few (symbols, first day, last day), the newest first."""
    days_of: dict[str, set[date]] = {}
    for (symbol, day), why in reasons.items():
        if why not in {Reason.WAITING, Reason.LEFT_FAILED}:
            days_of.setdefault(symbol, set()).add(day)
    return rectangles(days_of, [POOLED, *symbols])


def record(
    connection: psycopg.Connection,
    signal: Signal,
    known: Computed,
    settings: StrategySettings,
    run_id: str,
    *,
    changed: bool,
    inputs_from: date | None = None,
) -> None:
    """Record what the partition was computed from, in the transaction that read and wrote it.

    That transaction sees one snapshot (REPEATABLE READ): the versions are those of the rows read.
    """
    arguments = {
        "symbol": known.symbol,
        "day": known.day,
        "until": known.until,
        "inputs_from": inputs_from,
        "run_id": run_id,
        "changed": changed,
    }
    connection.execute(RECORD, arguments | _arguments(signal, settings))


def record_failure(
    connection: psycopg.Connection,
    known: Computed,
    error: str,
    run_id: str,
    healing: HealingSettings,
    *,
    is_its_own: bool = True,
) -> None:
    """Record a failed attempt on the inputs of `known`; what was computed before stays.

    It is tried again with back-off, until its tries with these inputs are spent. A failure that is
    not its own, but the machine's, never leaves it failed.
    """
    connection.execute(
        FAIL,
        {
            "asset": known.asset,
            "symbol": known.symbol,
            "day": known.day,
            "run_id": run_id,
            "failed_inputs": known.inputs,
            "is_its_own": is_its_own,
            "error": error,
            **healing_arguments(healing),
        },
    )
