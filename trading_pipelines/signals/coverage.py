"""The table `signal_coverage`: which partition was computed from what, and which failed.

The versions of the inputs are the view `input_versions`. Whether a partition is due belongs in
`due`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from trading_pipelines.candles.back_off import BACK_OFF, back_off_parameters
from trading_pipelines.settings.strategy import HealingSettings, StrategySettings
from trading_pipelines.signals.catalogue import POOLED, REGIME_LABELS, Signal


@dataclass(frozen=True)
class SignalCoverage:
    """One partition as it was computed or failed, beside its inputs as they are now."""

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
    """Their digest; None where there are none."""
    until: datetime | None
    """As of when it can be computed: how far its inputs reach."""
    has_all_inputs: bool
    settings_digest: str | None = None
    """Of the settings that it was made by; None: it was made before that was kept."""
    code_version: str | None = None
    """Of the computation that made it; None: it was made before that was kept."""
    rows_digest: str | None = None
    """Of the rows that it made; None: it was made before that was kept."""


# The inputs of one partition, as they are seen by this transaction.
INPUT_DIGEST = """
SELECT CASE WHEN count(*) > 0 THEN md5(concat_ws(';',
        string_agg(concat_ws(' ', version.asset, version.symbol, version.day, version.version),
            ';' ORDER BY version.asset, version.symbol, version.day),
        {decisions})) END AS inputs,
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
DECISION_VERSION = """
(SELECT version FROM {versions} AS decided
    WHERE decided.symbol = {symbol} AND decided.day = {day})
"""
DECISION_VERSIONS = (
    "trading_pipelines.decision_versions(%(decision)s::text, {symbols}, {first}, {last})"
)
DIGEST_OF_A_TICK = INPUT_DIGEST.format(
    symbol="symbols.symbol",
    day="days.day",
    inputs_from="known.inputs_from",
    decisions=DECISION_VERSION.format(
        versions="decisions", symbol="symbols.symbol", day="days.day"
    ),
)
DIGEST_OF_A_RECORD = INPUT_DIGEST.format(
    symbol="%(symbol)s",
    day="%(day)s::date",
    inputs_from="%(inputs_from)s::date",
    decisions="CASE WHEN %(decision)s::text IS NOT NULL THEN "
    + DECISION_VERSION.format(
        versions=DECISION_VERSIONS.format(
            symbols="ARRAY[%(symbol)s]", first="%(day)s::date", last="%(day)s::date"
        ),
        symbol="%(symbol)s",
        day="%(day)s::date",
    )
    + " END",
)
READ_SIGNAL_COVERAGE = f"""
WITH decisions AS MATERIALIZED (
    SELECT * FROM {
    DECISION_VERSIONS.format(
        symbols="%(symbols)s::text[]",
        first="(SELECT min(day) FROM unnest(%(days)s::date[]) AS day)",
        last="(SELECT max(day) FROM unnest(%(days)s::date[]) AS day)",
    )
} WHERE %(decision)s::text IS NOT NULL
)
SELECT %(asset)s AS asset, symbols.symbol, days.day, known.computed_until,
    known.inputs AS computed_from, coalesce(known.failures, 0) AS failures, known.error,
    known.retry_at, coalesce(known.left_failed, false) AS left_failed, known.failed_inputs,
    known.rows_digest,
    digest.inputs, digest.until,
    digest.assets = cardinality(%(inputs)s::text[]) AS has_all_inputs,
    known.settings_digest, known.code_version
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS symbols (symbol, place)
CROSS JOIN unnest(%(days)s::date[]) AS days (day)
LEFT JOIN trading_pipelines.signal_coverage AS known
    ON known.asset = %(asset)s AND known.symbol = symbols.symbol AND known.day = days.day
CROSS JOIN LATERAL (
{DIGEST_OF_A_TICK}
) AS digest
ORDER BY place, days.day
"""  # noqa: S608 - constants
RECORD_SIGNAL_COVERAGE = f"""
INSERT INTO trading_pipelines.signal_coverage AS known
    (asset, symbol, day, computed_until, inputs_from, inputs, run_id,
     settings_digest, code_version, rows_digest, computed_at, computed_by)
SELECT %(asset)s, %(symbol)s, %(day)s, %(until)s, %(inputs_from)s::date, digest.inputs, %(run_id)s,
    %(settings_digest)s, %(code_version)s, %(rows_digest)s, clock_timestamp(), %(run_id)s
FROM (
{DIGEST_OF_A_RECORD}
) AS digest
ON CONFLICT (asset, symbol, day) DO UPDATE SET
    computed_until = excluded.computed_until, inputs_from = excluded.inputs_from,
    inputs = excluded.inputs, run_id = excluded.run_id,
    settings_digest = excluded.settings_digest, code_version = excluded.code_version,
    rows_digest = excluded.rows_digest,
    computed_at = excluded.computed_at, computed_by = excluded.computed_by,
    changed_at = CASE WHEN %(changed)s THEN clock_timestamp() ELSE known.changed_at END,
    failures = 0, left_failed = false, failed_inputs = NULL, error = NULL, retry_at = NULL
"""  # noqa: S608 - constants
# The same inputs give the same failure; with other inputs the attempts are counted anew.
FAIL_SIGNAL = f"""
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


def _signal_arguments(signal: Signal, settings: StrategySettings) -> dict[str, object]:
    inputs, after = signal.inputs(settings), signal.inputs_after(settings)
    return {
        "asset": signal.asset,
        "inputs": list(inputs),
        "days_before": list(inputs.values()),
        "days_after": [after.get(name, 0) for name in inputs],
        "longest": max(inputs.values()),
        "furthest": signal.days_after(settings),
        "pooled": list(settings.symbols) if signal.pooled else [],
        "decision": signal.decision,
    }


def read(
    connection: psycopg.Connection,
    signal: Signal,
    symbols: Sequence[str],
    days: Iterable[date],
    settings: StrategySettings,
) -> list[SignalCoverage]:
    """Return one entry a partition, in the symbols' order and by day; one a day where pooled."""
    arguments = {"symbols": [POOLED] if signal.pooled else list(symbols), "days": list(days)}
    with connection.cursor(row_factory=class_row(SignalCoverage)) as cursor:
        cursor.execute(READ_SIGNAL_COVERAGE, arguments | _signal_arguments(signal, settings))
        return cursor.fetchall()


ASK_FOR = """
INSERT INTO trading_pipelines.signal_coverage (asset, symbol, day, run_id)
SELECT %(asset)s, symbols.symbol, days.day, %(run_id)s
FROM unnest(%(symbols)s::text[]) AS symbols (symbol) CROSS JOIN unnest(%(days)s::date[])
    AS days (day)
ON CONFLICT DO NOTHING
"""
# 2 ms with 100,000 rows of coverage.
HALF_MADE = """
SELECT known.symbol, known.day
FROM trading_pipelines.signal_coverage AS known
WHERE known.asset = %(asset)s AND known.symbol = ANY(%(symbols)s)
  AND known.day >= %(start)s AND known.day < %(before)s
  AND (known.computed_until IS NULL
    OR known.computed_until < (known.day + 1)::timestamp AT TIME ZONE 'UTC')
  AND NOT known.left_failed AND coalesce(known.retry_at <= now(), true)
  AND EXISTS (SELECT FROM trading_pipelines.input_versions AS input
    WHERE input.asset = %(input)s AND input.day = known.day
      AND input.symbol = ANY (ARRAY['', known.symbol] || %(pooled)s::text[]))
ORDER BY known.day DESC LIMIT %(most)s
"""
MOST_HALF_MADE = 200


def ask_for(
    connection: psycopg.Connection,
    signals: Iterable[Signal],
    symbols: Sequence[str],
    days: Sequence[date],
    run_id: str,
) -> None:
    """Record that partitions are wanted: they are due until they are made, however old they are."""
    for signal in signals:
        arguments = {
            "asset": signal.asset,
            "symbols": [POOLED] if signal.pooled else list(symbols),
            "days": list(days),
            "run_id": run_id,
        }
        connection.execute(ASK_FOR, arguments)


def half_made(
    connection: psycopg.Connection,
    signal: Signal,
    start: date,
    before: date,
    settings: StrategySettings,
) -> list[SignalCoverage]:
    """Return the signal's partitions of UTC days in [start, before) that were asked for in vain.

    The newest 200, of those that have candles or whatever they are computed from. `before` is where
    the look-back begins. One that is left failed, or waits after a failure, is none of them.
    """
    symbols = [POOLED] if signal.pooled else settings.symbols
    of_signal = _signal_arguments(signal, settings)
    arguments = of_signal | {
        "symbols": symbols,
        "start": start,
        "before": before,
        "input": next(iter(signal.inputs(settings))),
        "most": MOST_HALF_MADE,
    }
    asked = set(connection.execute(HALF_MADE, arguments).fetchall())
    if not asked:
        return []
    asked_symbols = {symbol for symbol, _ in asked}
    days = sorted({day for _, day in asked})
    partitions = read(
        connection, signal, [s for s in symbols if s in asked_symbols], days, settings
    )
    return [partition for partition in partitions if (partition.symbol, partition.day) in asked]


GAPS_BEFORE_LOOK_BACK = """
SELECT look_back.symbol, days.day::date
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS symbols (symbol, place)
JOIN trading_pipelines.look_backs AS look_back ON look_back.symbol = symbols.symbol
CROSS JOIN generate_series(
    greatest(%(start)s::date, least(look_back.first_day, lower(look_back.left_behind))),
    %(before)s::date - 1, interval '1 day') AS days (day)
WHERE (look_back.left_behind @> days.day::date OR NOT look_back.is_dropped
        AND days.day >= look_back.first_day AND days.day < coalesce(greatest(look_back.start_date,
            %(today)s::date - look_back.look_back_days), %(before)s))
  AND NOT EXISTS (
    SELECT FROM trading_pipelines.candle_coverage AS asked
    JOIN trading_pipelines.signal_coverage AS labelled
        ON labelled.symbol = asked.symbol AND labelled.day = asked.day
    WHERE asked.symbol = symbols.symbol AND asked.interval = '1m' AND asked.day = days.day::date
      AND asked.status = 'complete'
      AND labelled.asset = %(labels)s AND labelled.computed_until = days.day + interval '1 day')
ORDER BY place, days.day
"""


def gaps_before_look_back(
    connection: psycopg.Connection, symbols: Sequence[str], start: date, days: Sequence[date]
) -> list[tuple[str, date]]:
    """Return each (symbol, UTC day) from `start` to the look-back that lacks candles or labels.

    Only days that a schedule once looked after and that left its look-back by time: an outage
    longer than the look-back leaves such days. `days` are the look-back's, up to the open one.
    """
    arguments = {
        "symbols": list(symbols),
        "start": start,
        "before": days[0],
        "today": days[-1],
        "labels": REGIME_LABELS.asset,
    }
    return connection.execute(GAPS_BEFORE_LOOK_BACK, arguments).fetchall()


def record(
    connection: psycopg.Connection,
    signal: Signal,
    coverage: SignalCoverage,
    settings: StrategySettings,
    run_id: str,
    *,
    rows_digest: str,
    changed: bool,
    inputs_from: date | None = None,
) -> None:
    """Record what the partition was computed from and by, in the transaction that wrote it.

    That transaction sees one snapshot (REPEATABLE READ): the versions are those of the rows read.
    """
    arguments = {
        "symbol": coverage.symbol,
        "day": coverage.day,
        "until": coverage.until,
        "inputs_from": inputs_from,
        "run_id": run_id,
        "settings_digest": signal.settings_digest(settings),
        "code_version": signal.code_version,
        "rows_digest": rows_digest,
        "changed": changed,
    }
    connection.execute(RECORD_SIGNAL_COVERAGE, arguments | _signal_arguments(signal, settings))


KEEP_SETTINGS = """
INSERT INTO trading_pipelines.signal_settings (asset, digest, settings) VALUES (%s, %s, %s)
ON CONFLICT DO NOTHING
"""


def keep_settings(
    connection: psycopg.Connection, signal: Signal, settings: StrategySettings
) -> None:
    """Keep the settings that matter to the signal, so that their digest can be called to account.

    Not in a transaction of one snapshot, which would fail where another run keeps them as well.
    """
    matter = Jsonb(signal.settings_that_matter(settings))
    connection.execute(KEEP_SETTINGS, [signal.asset, signal.settings_digest(settings), matter])


def record_failure(
    connection: psycopg.Connection,
    coverage: SignalCoverage,
    error: str,
    run_id: str,
    healing: HealingSettings,
    *,
    is_its_own: bool = True,
) -> None:
    """Record a failed attempt on the partition's inputs; what was computed before stays.

    It is tried again with back-off, until its attempts with these inputs are spent. A failure that
    is the machine's and not its own never leaves it failed.
    """
    connection.execute(
        FAIL_SIGNAL,
        {
            "asset": coverage.asset,
            "symbol": coverage.symbol,
            "day": coverage.day,
            "run_id": run_id,
            "failed_inputs": coverage.inputs,
            "is_its_own": is_its_own,
            "error": error,
            **back_off_parameters(healing),
        },
    )
