"""The sensor that keeps Dagster's events and checks true to the tables, partition by partition.

A run tells Dagster what it made and found. What happens beside a run (an asset wiped, a run
deleted, a report by hand, candles gone, a hole healed) is found here. What differs is asked in
`monitoring/reconciliation`, what a check looks for belongs with the check.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import psycopg

from trading_pipelines.assets import market_data
from trading_pipelines.assets.computed import CODE_VERSION, made
from trading_pipelines.assets.partition_checks import PartitionChecks
from trading_pipelines.candles import coverage, due, failed_checks, resample
from trading_pipelines.candles.checks import ContractBreach
from trading_pipelines.candles.failed_checks import FailedCheck, Partition
from trading_pipelines.candles.windows import DAY, floor_hour
from trading_pipelines.monitoring import reconciliation
from trading_pipelines.monitoring.dagster_instance import unfinished_runs
from trading_pipelines.monitoring.partition_events import store_materializations, store_verdicts
from trading_pipelines.monitoring.reconciliation import MOST_TAKEN_BACK, Difference, named_keys
from trading_pipelines.partitions import (
    CANDLES_1H,
    CANDLES_1M,
    days,
    parse_keys,
    partition_key,
    symbol_days,
)
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import in_flight
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals.catalogue import POOLED, SIGNALS

NAME = "reconcile_partitions"
# A tick may take a minute; what is left over is the next tick's.
TICK_SECONDS = 25.0
# Of history, at each tick: a thousand partitions in two minutes, 18,000 in 36.
PARTITIONS_A_TICK = 250
AT_ONCE = 100


def build_reconciliation(
    settings: StrategySettings, checks: Sequence[PartitionChecks]
) -> dg.SensorDefinition:
    """Return the sensor over the assets with coverage and the checks by partition."""

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Compares Dagster's events with the tables, partition by partition. What is "
        "whole in the tables and not green gets its event; an event of which the tables have "
        "nothing is taken back; a check that has become red or green since is evaluated again. "
        "Status says what differed.",
    )
    def reconcile_partitions(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.SkipReason:
        # Before the tables: a run that ended in between would look like a difference.
        runs = unfinished_runs(context.instance)
        with database.connect() as market, database.connect_to_dagster() as dagster:
            now = datetime.now(UTC)
            history = _next_days(market, settings, context.cursor, now)
            tick = _Tick(context.instance, market, dagster, settings, now, history)
            partitions = symbol_days(settings)
            pooled = {signal.asset for signal in SIGNALS if signal.pooled}
            busy = {
                asset: in_flight(runs, days(settings) if asset in pooled else partitions, asset)
                for asset in reconciliation.ASSETS
            }
            differences = [
                tick.compare(
                    asset, [group for group in checks if group.asset == asset], busy[asset]
                )
                for asset in reconciliation.ASSETS
            ]
            differences += [
                tick.tell_open_day(asset, checks, busy[asset]) for asset in reconciliation.CANDLES
            ]
            messages = [words for words in differences if words]
            judged = sum(tick.judge(group, busy[group.asset]) for group in checks)
            judged += tick.show_the_worst(checks)
        context.update_cursor(f"{history[-1]}" if history else "")
        if judged:
            messages.append(f"{judged} verdicts")
        return dg.SkipReason("; ".join(messages) or "Dagster's events and the tables agree")

    return reconcile_partitions


@dataclass(frozen=True)
class _Tick:
    """One tick: what it asks and tells, and until when."""

    instance: dg.DagsterInstance
    market: psycopg.Connection
    dagster: psycopg.Connection
    settings: StrategySettings
    now: datetime
    history: Sequence[date]
    """The days older than the look-back that this tick looks at too."""
    ends: float = field(default_factory=lambda: time.monotonic() + TICK_SECONDS)

    def compare(
        self, asset: str, checks: Sequence[PartitionChecks], busy: Collection[Partition]
    ) -> str | None:
        """Make Dagster's events of the asset what the tables hold; return what differed."""
        difference = reconciliation.compare(
            self.market, self.dagster, asset, self.settings, [partition_key(*key) for key in busy]
        )
        left, message = 0, None
        if difference:
            recorded = self._record(asset, difference.not_recorded, checks)
            taken_back = self._take_back(asset, difference.not_stored)
            left = len(difference.not_recorded) + len(difference.not_stored) - recorded - taken_back
            message = _said(asset, difference, left)
            # The UI keeps a digest of the events, which only ever grows.
            self.instance.wipe_asset_cached_status([dg.AssetKey(asset)])
        reconciliation.record(self.market, asset, message, left, self.now)
        return message

    def tell_open_day(
        self, asset: str, checks: Sequence[PartitionChecks], busy: Collection[Partition]
    ) -> str | None:
        """Tell Dagster once an hour what candles the open day holds; return how many partitions.

        The reader of the exchange's stream brings them without a run.
        """
        hour, day = floor_hour(self.now), _look_back(self.settings, self.now)[-1]
        keys = reconciliation.not_told(
            self.market, self.dagster, asset, self.settings.symbols, day, hour
        )
        keys = [key for key in keys if parse_keys([key])[0] not in busy]
        self._record(asset, keys, [group for group in checks if group.asset == asset])
        return f"{asset}: {len(keys)} of the open day told" if keys else None

    def _record(self, asset: str, keys: Sequence[str], checks: Sequence[PartitionChecks]) -> int:
        """Tell Dagster of partitions that are whole; return how many there was time for."""
        for at in range(0, len(keys), AT_ONCE):
            if self._is_over():
                return at
            some = keys[at : at + AT_ONCE]
            store_materializations(self.instance, self._made(asset, some))
            for group in checks:
                partitions = dict.fromkeys(group.descriptions, parse_keys(some))
                self._judge(group, partitions, told=dict.fromkeys(group.descriptions, some))
        return len(keys)

    def _made(self, asset: str, keys: Sequence[str]) -> list[dg.AssetMaterialization]:
        """Return the partitions' events, as the runs that made them would have told them."""
        partitions = parse_keys(keys)
        symbols = list(dict.fromkeys(symbol for symbol, _ in partitions))
        days = sorted({day for _, day in partitions})
        recorded_by = {"recorded_by": NAME}
        if signal := next((signal for signal in SIGNALS if signal.asset == asset), None):
            signals = signal_coverage.read(self.market, signal, symbols, days, self.settings)
            return [
                made(
                    signal,
                    row.symbol,
                    row.day,
                    row.rows_digest,
                    {CODE_VERSION: f"{row.code_version}+{row.settings_digest}"},
                    recorded_by,
                )
                for row in signals
                if (row.symbol, row.day) in partitions
            ]
        figures: dict[Partition, dict[str, Any]] = {}
        if asset == CANDLES_1M:
            candles = coverage.read(self.market, symbols, days)
            figures = {(row.symbol, row.day): market_data.minutes_metadata(row) for row in candles}
        elif asset == CANDLES_1H:
            hours = resample.read(self.market, symbols, days)
            figures = {(row.symbol, row.day): market_data.hours_metadata(row) for row in hours}
        return [
            dg.AssetMaterialization(
                asset,
                partition=partition_key(*partition),
                metadata=figures.get(partition, {}) | recorded_by,
            )
            for partition in partitions
        ]

    def _take_back(self, asset: str, keys: Sequence[str]) -> int:
        if not keys or len(keys) > MOST_TAKEN_BACK:
            return 0
        reconciliation.take_back(self.dagster, asset, keys)
        return len(keys)

    def judge(self, checks: PartitionChecks, busy: Collection[Partition]) -> int:
        """Evaluate what may have changed without a run; return how many verdicts were told."""
        data = self.settings.data
        looked_at = [
            (symbol, day)
            for symbol in ([POOLED] if checks.pooled else self.settings.symbols)
            for day in [*self.history, *_look_back(self.settings, self.now)]
            if (symbol, day) not in busy
        ]
        made = reconciliation.materialised(
            self.dagster, checks.asset, [partition_key(*key) for key in looked_at]
        )
        asked: dict[str, set[Partition]] = {name: set() for name in checks.descriptions}
        for name, watched in checks.watch(self.market, parse_keys(made), self.now).items():
            asked[name].update(key for key in watched if key not in busy)
        for red in failed_checks.standing(self.market, self.settings.symbols, data.start_date):
            is_asked = red.asset == checks.asset and red.check_name in asked
            if is_asked and (red.symbol, red.day) not in busy:
                asked[red.check_name].add((red.symbol, red.day))
        told = reconciliation.unjudged(self.dagster, checks.asset, list(checks.descriptions), made)
        for name, keys in told.items():
            asked[name].update(parse_keys(keys))
        return self._judge(checks, asked, told)

    def _judge(
        self,
        checks: PartitionChecks,
        asked: Mapping[str, Collection[Partition]],
        told: Mapping[str, Collection[str]],
    ) -> int:
        """Ask each check about its partitions; tell of those in `told`, and of what has changed."""
        findings: dict[str, Mapping[Partition, Sequence[ContractBreach]]] = {}
        changed: dict[str, set[Partition]] = {}
        for name, partitions in asked.items():
            breaches = checks.findings(self.market, [name], partitions, self.now)
            findings |= breaches
            changed |= checks.settle(self.market, breaches, partitions)
        for name, keys in told.items():
            changed[name] |= set(parse_keys(keys))
        events = checks.evaluations(self.instance, changed, findings)
        events += checks.summaries(
            self.market, self.instance, [name for name, keys in changed.items() if keys]
        )
        store_verdicts(self.instance, events)
        return len(events)

    def show_the_worst(self, checks: Sequence[PartitionChecks]) -> int:
        """Tell the asset's verdict where the UI shows another one; return how many were told."""
        red: dict[tuple[str, str], list[FailedCheck]] = {}
        start = self.settings.data.start_date
        for row in failed_checks.standing(self.market, self.settings.symbols, start):
            red.setdefault((row.asset, row.check_name), []).append(row)
        of_check = {(group.asset, name): group for group in checks for name in group.descriptions}
        told = []
        for key, shown in reconciliation.shown_verdicts(self.dagster, list(of_check)).items():
            reds = red.get(key, [])
            if shown.is_planned or shown.red != bool(reds) or (reds and shown.of_partition):
                told.append(of_check[key].summary(self.instance, key[1], reds))
        store_verdicts(self.instance, told)
        return len(told)

    def _is_over(self) -> bool:
        return time.monotonic() > self.ends


def _look_back(settings: StrategySettings, now: datetime) -> list[date]:
    return due.look_back(settings.data.start_date, settings.data.look_back_days, now)


def _next_days(
    market: psycopg.Connection, settings: StrategySettings, cursor: str | None, now: datetime
) -> list[date]:
    """Return the days with candles after the one that the last tick ended with, or the first ones.

    Those of the look-back are looked at by each tick.
    """
    try:
        after = date.fromisoformat(cursor or "")
    except ValueError:
        after = date.min  # the first tick, or a cursor of nobody's
    before = _look_back(settings, now)[0]
    number = max(1, PARTITIONS_A_TICK // len(settings.symbols))
    for at in (max(after + DAY, settings.data.start_date), settings.data.start_date):
        if days := coverage.days_between(market, at, before, number):
            return days
    return []


def _said(asset: str, difference: Difference, left: int) -> str:
    """Return what differed, for `status`."""
    words = []
    if difference.not_recorded:
        words.append(f"{named_keys(difference.not_recorded)} whole in the tables and not green")
    if difference.not_stored:
        words.append(f"{named_keys(difference.not_stored)} green, of which the tables have nothing")
    done = f"{left:,} still are" if left else "put right"
    return f"{asset}: {', '.join(words)}; {done}"
