"""Candles as partitioned assets: candles_1m → candles_1h, and the checks of their contract.

What is asked, stored, counted and checked belongs in `candles/`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any, NoReturn

import dagster as dg
import psycopg

from trading_pipelines.assets.about import BY_HAND, describe
from trading_pipelines.assets.metadata import ROW_COUNT, metadata_values, table
from trading_pipelines.assets.partition_checks import Findings, PartitionChecks
from trading_pipelines.assets.runs import (
    SCHEDULE,
    end_where_called_off,
    ender,
    is_by_hand,
    wanted_assets,
)
from trading_pipelines.candles import checks, coverage, due, history_files, resample
from trading_pipelines.candles.download import FailedDay, download
from trading_pipelines.candles.due import look_back
from trading_pipelines.candles.failed_checks import Partition
from trading_pipelines.candles.turns import turn
from trading_pipelines.partitions import (
    BACKFILL,
    CANDLES_1H,
    CANDLES_1M,
    SymbolDays,
    partition_key,
    partitions_of_run,
)
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.resources.exchange import ExchangeResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals.catalogue import SIGNALS

GROUP = "market_data"
SHOWN_FINDINGS = 50


def build_assets(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Return candles_1m and candles_1h over `partitions`."""

    @dg.asset(
        name=CANDLES_1M,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        **describe(
            "One-minute candles of a symbol's UTC day from Upbit, in the table that the bot reads "
            "(its rows of interval `1m`). Closed minutes only. A re-run repairs rows that differ "
            "and changes nothing else.",
            row="per symbol and minute, at its start; a minute without a trade has none",
            unit="prices in KRW, volume in the coin",
            refreshed="by `refresh_market_data`, which asks the tables every minute what is due: "
            "the open day every five minutes, and each day once more as a whole when it has closed",
            backfill=f"`trading-pipelines backfill`, or {BY_HAND} with candles_1h",
            group=GROUP,
            kinds={"python", "postgres"},
            table="public.market_data",
            interval="1m",
        ),
    )
    def candles_1m(
        context: dg.AssetExecutionContext, database: DatabaseResource, exchange: ExchangeResource
    ) -> None:
        partitions = partitions_of_run(context.partition_keys)
        run_id = context.run.root_run_id or context.run_id
        with database.connect() as connection, database.connect() as line:
            between_pages = ender(context)
            between_pages()
            _ask_for_signals(context, connection, partitions, settings)
            due_at = None if is_by_hand(context.run) else datetime.now(UTC)
            # The schedules bring the newest minutes, and wait for no backfill; files share no line.
            shares_line = BACKFILL in context.run.tags and not settings.data.history_files
            waits = shares_line and any(
                due_at is None or due.lacks_minutes(day, due_at)
                for day in coverage.read(connection, partitions.symbols, partitions.days)
            )
            # What it imports takes a second or two: before the turn, in which nobody else asks.
            client = exchange.client(line, context.log.info)

            def while_waiting() -> None:
                between_pages()
                client.connect()

            its_turn = turn(connection, while_waiting, context.log.info)
            with its_turn if waits else nullcontext(lambda: None) as give_back:
                failed = download(
                    connection,
                    client,
                    partitions.symbols,
                    partitions.days,
                    run_id,
                    settings.healing,
                    due_at=due_at,
                    between_pages=between_pages,
                    say=context.log.info,
                    files=exchange.history_files(settings.data, context.log.info),
                    when_all_is_asked=give_back,
                )
            days = coverage.read(connection, partitions.symbols, partitions.days)
            if others := sum(day.complete and day.run_id != run_id for day in days):
                context.log.info(
                    "%d of %d partitions were complete: not asked for", others, len(days)
                )
            minutes = {partition_key(d.symbol, d.day): minutes_metadata(d) for d in days}
            if settings.data.history_files:
                _add_files(context, connection, partitions, minutes)
            if failed:
                # The step fails, and candles_1h after it: the good partitions must not wait for it.
                _fail(context, failed, minutes, _compute_hours(run_id, connection, partitions))
        for key, values in minutes.items():
            context.add_asset_metadata(values, partition_key=key)

    @dg.asset(
        name=CANDLES_1H,
        deps=[candles_1m],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        **describe(
            "Hourly candles [hh:00, hh+1:00) UTC of a symbol's UTC day, computed from candles_1m, "
            "with the number of minutes that were traded. Closed hours only; equal to Upbit's own "
            "hourly candles.",
            row="per symbol and hour, at its start; an hour without a trade has none",
            unit="prices in KRW, volume in the coin",
            refreshed="by `refresh_market_data`, in the run that brings the minutes",
            backfill=f"`trading-pipelines backfill`, or {BY_HAND}: nothing is downloaded for it",
            group=GROUP,
            kinds={"sql", "postgres"},
            table="trading_pipelines.candles_1h",
            interval="1h",
        ),
    )
    def candles_1h(context: dg.AssetExecutionContext, database: DatabaseResource) -> None:
        end_where_called_off(context)
        partitions = partitions_of_run(context.partition_keys)
        with database.connect() as connection:
            run_id = context.run.root_run_id or context.run_id
            hours = _compute_hours(run_id, connection, partitions)
        for key, values in hours.items():
            context.add_asset_metadata(values, partition_key=key)

    return [candles_1m, candles_1h]


def _ask_for_signals(
    context: dg.AssetExecutionContext,
    connection: psycopg.Connection,
    partitions: SymbolDays,
    settings: StrategySettings,
) -> None:
    """Record which signals are wanted of the days, so that they follow whatever comes between.

    Those of the run or its backfill; where a schedule looks after the days, all of them.
    """
    assets, days = wanted_assets(context), partitions.days
    if SCHEDULE in context.run.tags:
        data, now = settings.data, datetime.now(UTC)
        first = look_back(data.start_date, data.look_back_days, now)[0]
        assets, days = {s.asset for s in SIGNALS}, [day for day in days if day >= first]
    signals = [signal for signal in SIGNALS if signal.asset in assets]
    run_id = context.run.root_run_id or context.run_id
    signal_coverage.ask_for(connection, signals, partitions.symbols, days, run_id)


def minutes_metadata(day: coverage.CandleCoverage) -> dict[str, Any]:
    """Return what a partition of candles_1m says of itself."""
    return {
        "source": day.source or "",
        ROW_COUNT: day.stored,
        "repaired": day.repaired,
        "quiet": day.quiet,
        "set_aside": day.set_aside,
        "holes": day.holes(datetime.now(UTC)),
        "requests": day.requests,
        "waits": day.waits,
        "seconds": round(day.seconds, 2),
        "status": day.status,
        **_times(first=day.first, last=day.last, fetched_until=day.fetched_until),
    }


def _add_files(
    context: dg.AssetExecutionContext,
    connection: psycopg.Connection,
    partitions: SymbolDays,
    minutes: dict[str, dict[str, Any]],
) -> None:
    """Add to the partitions' metadata what became of their history files."""
    for note in history_files.read(connection, partitions.symbols, partitions.days):
        figures = {
            "file": note.name,
            "file_not_used": note.not_used,
            "file_compared": note.comparison,
            "file_replaced": note.replaced_at,
        }
        minutes[partition_key(note.symbol, note.day)] |= metadata_values(figures)
        if note.differs:
            context.log.warning(
                "%s %s: %s, the exchange's are stored: %s",
                note.symbol, note.day, note.not_used, note.comparison,
            )  # fmt: skip


def _compute_hours(
    run_id: str, connection: psycopg.Connection, partitions: SymbolDays
) -> dict[str, dict[str, Any]]:
    """Bring candles_1h up to date; return the metadata of each partition."""
    return {
        partition_key(day.symbol, day.day): hours_metadata(day)
        for day in resample.resample(connection, partitions.symbols, partitions.days, run_id)
    }


def hours_metadata(day: resample.ResampledDay) -> dict[str, Any]:
    """Return what a partition of candles_1h says of itself."""
    return {
        ROW_COUNT: day.rows,
        "repaired": day.repaired,
        "quiet": day.quiet,
        **_times(first=day.first, last=day.last),
    }


def _times(**times: datetime | None) -> dict[str, dg.TimestampMetadataValue]:
    return {name: dg.MetadataValue.timestamp(at) for name, at in times.items() if at is not None}


def _fail(
    context: dg.AssetExecutionContext,
    failed: Sequence[FailedDay],
    minutes: dict[str, dict[str, Any]],
    hours: dict[str, dict[str, Any]],
) -> NoReturn:
    """Fail the step for the failed partitions alone: the good ones are reported first."""
    from trading_pipelines.monitoring.partition_events import log_materializations

    good = minutes.keys() - {partition_key(day.symbol, day.day) for day in failed}
    for asset, metadata in ((CANDLES_1M, minutes), (CANDLES_1H, hours)):
        made = [
            dg.AssetMaterialization(asset, partition=key, metadata=values)
            for key, values in metadata.items()
            if key in good
        ]
        log_materializations(context.op_execution_context, made)
    raise dg.Failure(
        description=f"{len(failed)} of {len(minutes)} partitions failed, the others are stored. "
        + "; ".join(dict.fromkeys(day.error for day in failed[:3])),
        metadata={"failed": _table(failed)},
    )


def contract(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> PartitionChecks:
    """Return the checks of what candles_1m holds."""

    def settle(
        connection: psycopg.Connection,
        findings: Findings,
        keys: Collection[Partition],
        run: dg.DagsterRun,
    ) -> Iterator[dg.AssetMaterialization]:
        blocked = checks.settle_contract(connection, findings, keys, run.run_id, settings.healing)
        good = [key for key in keys if key not in blocked]
        if blocked and good:
            # The step fails, and candles_1h after it: the good partitions must not wait for it.
            run_id = run.root_run_id or run.run_id
            for symbol, days in _by_symbol(good).items():
                hours = _compute_hours(run_id, connection, SymbolDays([symbol], days))
                for key, values in hours.items():
                    yield dg.AssetMaterialization(CANDLES_1H, partition=key, metadata=values)

    def watch(
        _connection: psycopg.Connection, made: Collection[Partition], now: datetime
    ) -> dict[str, list[Partition]]:
        asked = dict.fromkeys(checks.OF_COVERAGE, checks.settled(made, now))
        return asked if settings.data.refresh else asked | {"fresh": []}

    return PartitionChecks(
        "candles_1m_contract",
        CANDLES_1M,
        partitions,
        checks.BLOCKING | checks.SERIOUS | checks.WARNING,
        checks.find_breaches,
        watch,
        settings,
        blocking=checks.BLOCKING.keys(),
        warning=checks.WARNING.keys(),
        after=settle,
    )


def _by_symbol(keys: Iterable[Partition]) -> dict[str, list[date]]:
    days: dict[str, list[date]] = {}
    for symbol, day in keys:
        days.setdefault(symbol, []).append(day)
    return days


def _table(rows: Sequence[FailedDay]) -> dg.TableMetadataValue:
    return table(asdict(row) for row in rows[:SHOWN_FINDINGS])
