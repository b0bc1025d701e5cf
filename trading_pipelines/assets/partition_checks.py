"""Checks with a verdict for each partition: a red one stays red until it has been healed itself.

What a check looks for comes in as a function; which partitions stand red is the table
`failed_checks`. A check over a whole table belongs in `table_checks`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import psycopg

from trading_pipelines.assets.metadata import table
from trading_pipelines.candles import failed_checks
from trading_pipelines.candles.checks import ContractBreach
from trading_pipelines.candles.due import look_back
from trading_pipelines.candles.failed_checks import Partition
from trading_pipelines.monitoring.partition_events import (
    TargetMaterialization,
    log_materializations,
    newest_materialization,
    newest_materializations,
    store_verdicts,
)
from trading_pipelines.partitions import partition_key, partitions_of_run
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import POOLED
from trading_pipelines.signals.left_failed import LEFT_FAILED, left_failed_days

SHOWN_FINDINGS = 50

Find = Callable[
    [psycopg.Connection, Sequence[str], Sequence[str], Sequence[date], datetime],
    Mapping[str, Sequence[ContractBreach]],
]
"""Takes the checks' names, symbols, UTC days and the moment; returns each check's breaches."""
Findings = Mapping[str, Mapping[Partition, Sequence[ContractBreach]]]
"""By check and partition; only the red ones."""


@dataclass(frozen=True)
class PartitionChecks:
    """The checks of one asset that are asked for together."""

    name: str
    asset: str
    partitions: dg.PartitionsDefinition[str]
    descriptions: Mapping[str, str]
    """By the check's name."""
    find: Find
    watch: Callable[
        [psycopg.Connection, Collection[Partition], datetime], Mapping[str, Collection[Partition]]
    ]
    """Takes materialised partitions; returns which of them, and of others, a tick asks about."""
    settings: StrategySettings
    blocking: Collection[str] = ()
    warning: Collection[str] = ()
    pooled: bool = False
    after: Callable[
        [psycopg.Connection, Findings, Collection[Partition], dg.DagsterRun],
        Iterable[dg.AssetMaterialization],
    ] = field(default=lambda *_: ())
    """What a run over partitions does with the findings."""

    def definition(self) -> dg.AssetChecksDefinition:
        """Return the checks as Dagster evaluates them: on a run's partitions, or the look-back."""
        specs = {
            name: dg.AssetCheckSpec(
                name,
                asset=self.asset,
                blocking=name in self.blocking,
                description=text,
                partitions_def=self.partitions,
            )
            for name, text in self.descriptions.items()
        }

        @dg.multi_asset_check(name=self.name, specs=list(specs.values()), can_subset=True)
        def checks(
            context: dg.AssetCheckExecutionContext, database: DatabaseResource
        ) -> Iterator[dg.AssetCheckEvaluation | dg.DagsterEvent | dg.Output[None]]:
            run = context.instance.get_run_record_by_id(context.run.run_id)
            # A day that has closed since the run began was not closed when it was asked for.
            now = (
                datetime.fromtimestamp(run.start_time, UTC)
                if run and run.start_time
                else datetime.now(UTC)
            )
            in_partitions = context.has_partition_key or context.has_partition_key_range
            if in_partitions:
                run_partitions = partitions_of_run(context.partition_keys)
                symbols, days = run_partitions.symbols, run_partitions.days
            else:
                data = self.settings.data
                symbols = list(self.settings.symbols)
                days = look_back(data.start_date, data.look_back_days, now)
            partitions = [(s, day) for s in ([POOLED] if self.pooled else symbols) for day in days]
            selected = context.selected_asset_check_keys
            names = [name for name, spec in specs.items() if spec.key in selected]
            with database.connect() as connection:
                findings = self.findings(connection, names, partitions, now)
                self.settle(connection, findings, partitions)
                partitions_of = dict.fromkeys(names, partitions)
                verdicts = self.evaluations(context.instance, partitions_of, findings)
                # A green partition needs no event of the run: 30 days of five symbols are 1,050.
                green = [verdict for verdict in verdicts if verdict.passed]
                store_verdicts(context.instance, green, context.run.run_id)
                yield from (verdict for verdict in verdicts if not verdict.passed)
                yield from self.summaries(connection, context.instance, names)
                if in_partitions:
                    made = list(self.after(connection, findings, partitions, context.run))
                    yield from log_materializations(context.op_execution_context, made)
            for name in names:
                yield dg.Output(None, output_name=specs[name].get_python_identifier())

        return checks

    def findings(
        self,
        connection: psycopg.Connection,
        names: Sequence[str],
        partitions: Collection[Partition],
        now: datetime,
    ) -> Findings:
        """Return what the named checks find on the partitions at `now` (UTC)."""
        findings: dict[str, dict[Partition, list[ContractBreach]]] = {name: {} for name in names}
        if not partitions:
            return findings
        symbols = list(dict.fromkeys(symbol for symbol, _ in partitions))
        days = sorted({day for _, day in partitions})
        for name, breaches in self.find(connection, names, symbols, days, now).items():
            for breach in breaches:
                if (breach.symbol, breach.day) in partitions:
                    findings[name].setdefault((breach.symbol, breach.day), []).append(breach)
        return findings

    def settle(
        self, connection: psycopg.Connection, findings: Findings, partitions: Collection[Partition]
    ) -> dict[str, set[Partition]]:
        """Record the verdicts; return, by check, the partitions for which it has changed."""
        return {
            name: failed_checks.settle(
                connection,
                self.asset,
                name,
                partitions,
                {key: _text(breaches) for key, breaches in of_check.items()},
            )
            for name, of_check in findings.items()
        }

    def evaluations(
        self,
        instance: dg.DagsterInstance,
        partitions: Mapping[str, Collection[Partition]],
        findings: Findings,
    ) -> list[dg.AssetCheckEvaluation]:
        """Return each check's verdict of each of its `partitions`."""
        keys = {key: partition_key(*key) for of_check in partitions.values() for key in of_check}
        newest = newest_materializations(instance, self.asset, set(keys.values()))
        return [
            self._evaluation(
                name,
                passed=not (breaches := findings[name].get(key, ())),
                description=_text(breaches) if breaches else "nothing found",
                metadata=_shown(breaches) if breaches else {},
                target=newest.get(keys[key]),
                partition=keys[key],
            )
            for name, of_check in partitions.items()
            for key in of_check
        ]

    def summaries(
        self, connection: psycopg.Connection, instance: dg.DagsterInstance, names: Collection[str]
    ) -> list[dg.AssetCheckEvaluation]:
        """Return the asset's verdict in each check: as long as a partition is red, it is.

        The UI shows the verdict that came last where it has room for one.
        """
        settings = self.settings
        red: dict[str, list[failed_checks.FailedCheck]] = {name: [] for name in names}
        for row in failed_checks.standing(connection, settings.symbols, settings.data.start_date):
            if row.asset == self.asset and row.check_name in red:
                red[row.check_name].append(row)
        return [self.summary(instance, name, reds) for name, reds in red.items()]

    def summary(
        self,
        instance: dg.DagsterInstance,
        name: str,
        red: Sequence[failed_checks.FailedCheck],
    ) -> dg.AssetCheckEvaluation:
        """Return the asset's verdict: how many partitions are red, the newest and the oldest."""
        ends = [(partition_key(row.symbol, row.day), row.finding) for row in red]
        words = "1 partition is" if len(red) == 1 else f"{len(red):,} partitions are"
        description = f"{words} red; the newest is {ends[-1][0]}: {ends[-1][1]}" if red else (
            "no partition is red"
        )  # fmt: skip
        if len(red) > 1:
            description += f"; the oldest is {ends[0][0]}: {ends[0][1]}"
        shown = [
            {"partition": key, "finding": finding, "red since": f"{row.failed_since:%F %R} UTC"}
            for row, (key, finding) in zip(red, ends, strict=True)
        ]
        return self._evaluation(
            name,
            passed=not red,
            description=description,
            metadata={"red": len(red), "partitions": table(shown[-SHOWN_FINDINGS:])} if red else {},
            target=newest_materialization(instance, self.asset),
            # A run ends for what is wrong in its own partitions.
            blocks=False,
        )

    def _evaluation(
        self,
        name: str,
        *,
        passed: bool,
        description: str,
        metadata: Mapping[str, Any],
        target: TargetMaterialization | None,
        partition: str | None = None,
        blocks: bool = True,
    ) -> dg.AssetCheckEvaluation:
        severity = dg.AssetCheckSeverity
        return dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(self.asset),
            check_name=name,
            passed=passed,
            metadata=metadata,
            target_materialization_data=target,
            severity=severity.WARN if name in self.warning else severity.ERROR,
            description=description,
            blocking=blocks and name in self.blocking,
            partition=partition,
        )


def no_partition_left_failed(
    asset: str,
    settings: StrategySettings,
    partitions: dg.PartitionsDefinition[str],
    *,
    pooled: bool = False,
) -> PartitionChecks:
    """Return the check that is red for the partitions that nothing tries any more."""

    def find(
        connection: psycopg.Connection,
        names: Sequence[str],
        symbols: Sequence[str],
        days: Sequence[date],
        _now: datetime,
    ) -> dict[str, list[ContractBreach]]:
        rows = [
            ContractBreach(*row)
            for row in left_failed_days(connection, asset, symbols)
            if row[1] in days
        ]
        return dict.fromkeys(names, rows)

    def watch(
        connection: psycopg.Connection, _made: Collection[Partition], _now: datetime
    ) -> dict[str, list[Partition]]:
        rows = left_failed_days(connection, asset, settings.symbols)
        return {LEFT_FAILED: [(symbol, day) for symbol, day, _ in rows]}

    return PartitionChecks(
        f"{asset}_no_partition_left_failed",
        asset,
        partitions,
        {
            LEFT_FAILED: "The partition has not spent its attempts. One that has "
            "is named here and in `trading-pipelines status`, with what makes it be tried again."
        },
        find,
        watch,
        settings,
        pooled=pooled,
    )


def _text(breaches: Sequence[ContractBreach]) -> str:
    more = f" and {len(breaches) - 1} more" if len(breaches) > 1 else ""
    return f"{breaches[0].what}{more}"


def _shown(breaches: Sequence[ContractBreach]) -> dict[str, Any]:
    return {"findings": table({"what": breach.what} for breach in breaches[:SHOWN_FINDINGS])}
