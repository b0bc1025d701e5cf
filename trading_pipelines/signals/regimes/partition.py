"""A partition of `regime_labels`: its rows, and the rows of `regime_history` that the bot reads.

The labels themselves are made in `labels`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import pairwise

import psycopg

from trading_pipelines.candles.windows import HOUR
from trading_pipelines.signals import tables
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.engine import ComputeRun, PartitionRows, closed_hours, input_interval
from trading_pipelines.signals.regimes.labels import Label, label_hours
from trading_pipelines.signals.regimes.regime import Regime

SYNC_HISTORY = """
UPDATE public.regime_history AS history SET regime = label.label, ma50 = label.ma_fast,
    ma200 = label.ma_slow, diff_pct = label.diff_pct
FROM trading_pipelines.regime_labels AS label
WHERE label.symbol = %(symbol)s AND label.hour = ANY(%(hours)s) AND history.id = label.history_id
    AND (history.regime, history.ma50, history.ma200, history.diff_pct) IS DISTINCT FROM
        (label.label, label.ma_fast::numeric(20, 8), label.ma_slow::numeric(20, 8),
         label.diff_pct::numeric(10, 4))
"""
ADD_HISTORY = """
WITH added AS (
    INSERT INTO public.regime_history (detected_at, regime, ma50, ma200, diff_pct, coin_symbol)
    SELECT label.hour + interval '1 hour', label.label, label.ma_fast, label.ma_slow,
        label.diff_pct, label.symbol
    FROM trading_pipelines.regime_labels AS label
    WHERE label.symbol = %(symbol)s AND label.hour = ANY(%(hours)s)
        AND NOT EXISTS (SELECT FROM public.regime_history WHERE id = label.history_id)
    ORDER BY label.hour
    RETURNING id, detected_at
)
UPDATE trading_pipelines.regime_labels AS label SET history_id = added.id FROM added
WHERE label.symbol = %(symbol)s AND label.hour = added.detected_at - interval '1 hour'
"""


# Of a row that the bot's table does not take; anything else is a failure of the partition.
REFUSALS = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)


def sync_history(
    connection: psycopg.Connection, symbol: str, rows_of: Mapping[date, PartitionRows]
) -> str | None:
    """Bring the bot's rows of `regime_history` in line with the labels just written.

    A label whose row the table refuses is kept; returns what was refused, and what to do.
    """
    hours = [hour for content in rows_of.values() for hour in content.times]
    refused = list(_sync(connection, symbol, hours))
    if not refused:
        return None
    alter = (
        " ALTER TABLE public.regime_history ALTER COLUMN coin_symbol TYPE varchar(20);"
        if isinstance(refused[0], psycopg.errors.StringDataRightTruncation)
        else ""
    )
    return (
        f"public.regime_history, which the bot reads, does not take {len(refused)} rows of "
        f"{symbol}: {' '.join(str(refused[0]).split())}. The labels are kept in "
        f"trading_pipelines.regime_labels.{alter}"
    )


def _sync(
    connection: psycopg.Connection, symbol: str, hours: Sequence[date]
) -> Iterator[psycopg.Error]:
    try:
        with connection.transaction():
            for statement in (SYNC_HISTORY, ADD_HISTORY):
                connection.execute(statement, {"symbol": symbol, "hours": list(hours)})
    except REFUSALS as error:
        if len(hours) == 1:
            yield error
            return
        for hour in hours:
            yield from _sync(connection, symbol, [hour])


def compute_regime_labels(
    run: ComputeRun, symbol: str, partitions: Sequence[SignalCoverage]
) -> dict[date, PartitionRows]:
    """Return each day's labels."""
    closes = tables.closes(run.connection, symbol, input_interval(run, partitions, "candles_1h"))
    hours = [as_of - HOUR for partition in partitions for as_of in closed_hours(partition)]
    by_day: dict[date, list[Label]] = defaultdict(list)
    for label in label_hours(closes, hours, run.settings):
        by_day[label.hour.date()].append(label)
    rows_of = {}
    for partition in partitions:
        labels = by_day[partition.day]
        rows = [
            (symbol, label.hour, str(label.label), label.ma_fast, label.ma_slow, label.diff_pct,
             label.candles, label.empty_hours, str(label.hysteresis_label))
            for label in labels
        ]  # fmt: skip
        last = labels[-1]
        figures = {
            "label": str(last.label),
            "diff_pct": None if last.diff_pct is None else round(float(last.diff_pct), 4),
            "empty_hours": last.empty_hours,
            "flips": sum(a.label is not b.label for a, b in pairwise(labels)),
            "unknown_hours": sum(label.label is Regime.UNKNOWN for label in labels),
        }
        inputs_from = min(label.inputs_from for label in labels).date()
        rows_of[partition.day] = PartitionRows(
            rows, tables.hours_of(partition.day), figures, inputs_from
        )
    return rows_of
