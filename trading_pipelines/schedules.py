"""When to ask what is due. That comes from the data: `candles/due`, `signals/due`, `alerts/due`.

A tick that was missed therefore costs nothing but time: the next one finds the same days due.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.due import due_reports
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.assets.market_data import CANDLES_1H, CANDLES_1M
from trading_pipelines.candles import coverage, due, rate_limit
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database import housekeeping
from trading_pipelines.instance import AT_WORK, launched_as
from trading_pipelines.korean_time import KST
from trading_pipelines.partitions import (
    PARTITION,
    RANGE_END,
    RANGE_START,
    kst_days,
    kst_weeks,
    partition_key,
    range_tags,
    split,
)
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings import StrategySettings
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals import reject_summary
from trading_pipelines.signals.due import Signal
from trading_pipelines.signals.publish import CURRENT_SIGNALS, SIGNALS_OVERVIEW
from trading_pipelines.signals.reject_summary import REJECT_SUMMARY
from trading_pipelines.status import RunInFlight

# What a person or the bot looks at, refreshed by the runs that bring something newer.
SHOWN_WITH = {
    signals_due.REGIME_LABELS: [CURRENT_SIGNALS],
    signals_due.VOLATILITY_FORECAST: [CURRENT_SIGNALS],
    signals_due.VOLATILITY_SCORE: [SIGNALS_OVERVIEW],
}
# A person's, who does not want to wait for the hour.
REFRESH_OVERVIEW = dg.define_asset_job(
    "refresh_overview_job",
    selection=dg.AssetSelection.assets(CURRENT_SIGNALS, SIGNALS_OVERVIEW),
    description="Writes the bot's keys in Redis and draws the overview anew, from the labels and "
    "forecasts there are: after Redis was away, say.",
)
# Before history and the backfills that may be waiting: what the bot trades on.
REPORT = {"dagster/priority": "10"}
NEWEST = {"dagster/priority": "5"}
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    *AT_WORK,
]


def in_flight(
    runs: Sequence[dg.DagsterRun], partitions: dg.PartitionsDefinition[str], *assets: str
) -> set[tuple[str, date]]:
    """Return (symbol, UTC day) of what `runs` will write of any of the assets."""
    keys: set[str] = set()
    for run in runs:
        if run.asset_selection and not run.asset_selection & {dg.AssetKey(a) for a in assets}:
            continue
        if PARTITION in run.tags:
            keys.add(run.tags[PARTITION])
        elif RANGE_START in run.tags:
            span = dg.PartitionKeyRange(run.tags[RANGE_START], run.tags[RANGE_END])
            # A range of another kind of partition has no key of ours.
            if partitions.has_partition_key(span.start):
                keys.update(partitions.get_partition_keys_in_range(span))
    return set(split(keys))


def runs_in_flight(instance: dg.DagsterInstance) -> list[RunInFlight]:
    """Return the runs that wait or are at work, the newest first."""
    found = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED)):
        run = record.dagster_run
        keys = [run.tags[tag] for tag in (PARTITION, RANGE_START, RANGE_END) if tag in run.tags]
        pairs = split(keys)
        found.append(
            RunInFlight(
                job=launched_as(run),
                symbols=tuple(dict.fromkeys(symbol for symbol, _ in pairs if symbol)),
                days=tuple(dict.fromkeys(day for _, day in pairs)),
                state=run.status.value.lower().replace("_", " "),
                since=record.update_timestamp,
            )
        )
    return found


def build_refresh_market_data(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> dg.ScheduleDefinition:
    """Return the schedule that keeps the candles of the look-back complete."""
    job = dg.define_asset_job(
        "refresh_market_data_job",
        selection=dg.AssetSelection.assets(CANDLES_1M, CANDLES_1H),
        partitions_def=partitions,
        description="Candles of the partitions it is given, and their hours.",
    )

    @dg.schedule(
        name="refresh_market_data",
        job=job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=_status(settings),
        description=(
            "Asks the tables every minute which days of the look-back are missing, incomplete or "
            "damaged, and whether the open day was not asked for in the last five minutes; "
            "launches as few runs as their ranges allow. It needs no catching up: what a missed "
            "tick would have found is found by the next."
        ),
    )
    def refresh_market_data(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        days = due.look_back(settings.data.start_date, settings.data.look_back_days, now)
        # Asked first: a run that ends in between would be asked for again, and whole.
        unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        with database.connect() as connection:
            if until := rate_limit.blocked_until(connection):
                yield dg.SkipReason(f"the exchange has blocked this address until {until} UTC")
                return
            coverage.look_after(connection, settings.symbols, days[0])
            known = coverage.read(connection, settings.symbols, days)
        reasons = {
            (day.symbol, day.day): why for day in known if (why := due.reason(day, now)) is not None
        }
        flying = in_flight(unfinished, partitions, CANDLES_1M, CANDLES_1H)
        runs = due.runs(
            {key: why for key, why in reasons.items() if key not in flying}, settings.symbols
        )
        if not runs:
            waiting, left = (
                sum(why is one for why in reasons.values())
                for one in (due.Reason.WAITING, due.Reason.LEFT_FAILED)
            )
            yield dg.SkipReason(
                f"looked at {len(known)} partitions from {days[0]} to {days[-1]}: "
                f"{len(reasons)} due, {len(reasons.keys() & flying)} of them in flight, "
                f"{waiting} waiting after a failure, {left} left failed"
            )
        for run in runs:
            yield dg.RunRequest(
                # Keys dedupe for ever: the tick's time lets a later tick ask for the same again.
                run_key=f"{context.scheduled_execution_time.isoformat()} {run}",
                tags=range_tags(run.symbols, run.first, run.last)
                | (NEWEST if run.last == days[-1] else {}),
                asset_selection=[dg.AssetKey(CANDLES_1H)]
                if run.hours_only
                else [dg.AssetKey(CANDLES_1M), dg.AssetKey(CANDLES_1H)],
            )

    return refresh_market_data


def build_signal_schedules(
    settings: StrategySettings,
    partitions: dg.MultiPartitionsDefinition,
    days: dg.DailyPartitionsDefinition,
) -> list[dg.ScheduleDefinition]:
    """Return a schedule for each job of signals; that of the volatility model is by day."""
    volatility = [
        signals_due.REALIZED_VOLATILITY,
        signals_due.VOLATILITY_FORECAST,
        signals_due.GARCH_BASELINE,
        signals_due.VOLATILITY_SCORE,
    ]
    return [
        _build_update(
            "update_regime",
            [signals_due.REGIME_LABELS],
            settings,
            partitions,
            "Labels each hour within a minute or two of its candles, and again what was computed "
            "from candles that have changed since.",
        ),
        _build_update(
            "update_volatility",
            volatility,
            settings,
            partitions,
            "Measures and forecasts each hour when it has closed, scores each day when it has, and "
            "again what was computed from candles or a model that have changed since.",
        ),
        _build_update(
            "retrain_volatility",
            [signals_due.VOLATILITY_MODEL],
            settings,
            days,
            "Fits the model of the day that has closed, at 00:05 UTC (09:05 KST), and again those "
            "whose training data have changed since.",
        ),
        _build_update(
            "update_reject_outcomes",
            [signals_due.REJECT_OUTCOMES],
            settings,
            partitions,
            "Follows what became of the bot's rejections for each hour that has closed, and again "
            "where a candle, a label or a decision has changed since.",
        ),
    ]


def _build_update(
    name: str,
    asked: Sequence[Signal],
    settings: StrategySettings,
    partitions: dg.PartitionsDefinition[str],
    description: str,
) -> dg.ScheduleDefinition:
    """Return a schedule that asks every minute which partitions of the signals are due.

    Labels are hourly and the model daily because their inputs are. The question costs some
    milliseconds; asked hourly, a label whose candles came ten seconds late would be an hour late.
    """
    shown = {shown for signal in asked for shown in SHOWN_WITH.get(signal, [])}
    job = dg.define_asset_job(
        f"{name}_job",
        selection=dg.AssetSelection.assets(*(signal.asset for signal in asked), *shown),
        partitions_def=partitions,
        description=description,
    )

    @dg.schedule(
        name=name,
        job=job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=_status(settings),
        description=f"{description} Asks the tables every minute; most often nothing is due.",
    )
    def update(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        # A day is looked after for as long as something of it may still be to come.
        followed = max(signal.days_after(settings) for signal in asked) + 1
        look_back_days = max(settings.data.look_back_days, followed)
        days = due.look_back(settings.data.start_date, look_back_days, now)
        requests: list[dg.RunRequest] = []
        seen: list[str] = []
        unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        with database.connect() as connection:
            known_of = {
                signal: signals_due.read(connection, signal, settings.symbols, days, settings)
                for signal in asked
            }
        for signal, known in known_of.items():
            reasons = {
                (one.symbol, one.day): why
                for one in known
                if (why := signals_due.reason(one, signal, settings, now)) is not None
            }
            flying = in_flight(unfinished, partitions, signal.asset)
            wanted = {key: why for key, why in reasons.items() if key not in flying}
            for symbols, first, last in signals_due.runs(wanted, settings.symbols):
                is_newest = last >= days[-1] - DAY
                also = SHOWN_WITH.get(signal, []) if is_newest else []
                is_urgent = is_newest and signal is not signals_due.REJECT_OUTCOMES
                requests.append(
                    dg.RunRequest(
                        # Keys dedupe for ever: a later tick may ask for the same again.
                        run_key=f"{context.scheduled_execution_time.isoformat()} {signal.asset} "
                        f"{', '.join(symbols)} {first} to {last}",
                        tags=range_tags(symbols, first, last) | (NEWEST if is_urgent else {}),
                        asset_selection=[dg.AssetKey(name) for name in (signal.asset, *also)],
                    )
                )
            seen.append(
                f"{signal.asset} {len(reasons)} due of {len(known)}, "
                f"{len(reasons.keys() & flying)} of them in flight"
            )
        yield from requests
        if not requests:
            yield dg.SkipReason(f"looked at {days[0]} to {days[-1]}: {'; '.join(seen)}")

    return update


def _status(settings: StrategySettings) -> dg.DefaultScheduleStatus:
    running = settings.data.refresh
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED


def build_daily_report(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the schedule that makes the report of each KST day at 09:00 KST of the next."""
    partitions = kst_days(settings)
    job = dg.define_asset_job(
        "daily_report_job",
        selection=dg.AssetSelection.assets(DAILY_REPORT),
        partitions_def=partitions,
        description="The report of the KST days it is given.",
    )

    @dg.schedule(
        name="make_daily_report",
        job=job,
        cron_schedule="*/10 * * * *",
        execution_timezone=KST.key,
        default_status=_status(settings),
        description="Asks the ledger which KST days of the look-back have closed and have no "
        "report, from 09:00 KST on: at 09:00, and after a downtime when it ends.",
    )
    def daily_report(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        with database.connect() as connection:
            days = due_reports(connection, settings.alerts, datetime.now(UTC))
        # Tried again once an hour, not six times.
        failed = context.instance.get_runs(
            dg.RunsFilter(
                job_name=job.name,
                statuses=[dg.DagsterRunStatus.FAILURE],
                updated_after=datetime.now(UTC) - timedelta(hours=1),
            )
        )
        yield from _a_run_each(context, partitions, DAILY_REPORT, days, failed, REPORT)

    return daily_report


def _a_run_each(
    context: dg.ScheduleEvaluationContext,
    partitions: dg.PartitionsDefinition[str],
    asset: str,
    due: Sequence[date],
    just_failed: Sequence[dg.DagsterRun] = (),
    tags: Mapping[str, str] | None = None,
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Ask for a run for each of the asset's Korean days or weeks that is not in flight."""
    unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    flying = in_flight([*unfinished, *just_failed], partitions, asset)
    keys = [partition_key("", day) for day in due if ("", day) not in flying]
    wanted = [key for key in keys if partitions.has_partition_key(key)]
    for key in wanted:
        yield dg.RunRequest(
            # Keys dedupe for ever: a later tick may ask for the same again.
            run_key=f"{context.scheduled_execution_time.isoformat()} {key}",
            partition_key=key,
            tags=tags,
        )
    if not wanted:
        yield dg.SkipReason(
            f"{len(due)} due, in flight, of no partition or failed within the hour"
            if due
            else "nothing is due"
        )


def build_reject_summary(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the schedule that sums up each Korean week of rejections when it is settled."""
    partitions = kst_weeks(settings)
    job = dg.define_asset_job(
        "reject_summary_job",
        selection=dg.AssetSelection.assets(REJECT_SUMMARY),
        partitions_def=partitions,
        description="The summary of the Korean weeks it is given.",
    )

    @dg.schedule(
        name="make_reject_summary",
        job=job,
        cron_schedule="15 * * * *",
        execution_timezone=KST.key,
        default_status=_status(settings),
        description="Asks the tables every hour which Korean weeks of the look-back have all their "
        "outcomes and are not summed up, or are older than one of them.",
    )
    def make_reject_summary(
        context: dg.ScheduleEvaluationContext, database: DatabaseResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        with database.connect() as connection:
            weeks = reject_summary.due_weeks(connection, settings, datetime.now(UTC))
        yield from _a_run_each(context, partitions, REJECT_SUMMARY, weeks)

    return make_reject_summary


def build_housekeeping(settings: StrategySettings) -> dg.ScheduleDefinition:
    """Return the daily schedule that keeps both databases from growing without limit."""
    keep = settings.housekeeping

    @dg.op
    def delete_what_is_over(context: dg.OpExecutionContext, database: DatabaseResource) -> None:
        now = datetime.now(UTC)
        with database.connect() as market, database.connect_to_dagster() as dagster:
            before = [housekeeping.database_bytes(one) for one in (market, dagster)]
            deleted = housekeeping.purge_runs(dagster, now - DAY * keep.keep_runs_days)
            deleted.update(ledger.purge(market, now - DAY * keep.keep_alerts_days))
            after = [housekeeping.database_bytes(one) for one in (market, dagster)]
            growth = housekeeping.record_sizes(market, after[0], after[1], now)
        metadata = {
            **{f"{table}_deleted": rows for table, rows in deleted.items()},
            "market_bytes_before": before[0],
            "market_bytes_after": after[0],
            "dagster_bytes_before": before[1],
            "dagster_bytes_after": after[1],
        }
        if growth is not None:
            metadata["bytes_a_day"] = round(growth)
        context.add_output_metadata(metadata)

    @dg.job(
        description=f"Deletes runs and their events {keep.keep_runs_days} days after their end, "
        f"alerts {keep.keep_alerts_days} days after they were done, and notes how large both "
        "databases are. Partitions and checks keep their newest results: green stays green."
    )
    def housekeeping_job() -> None:
        delete_what_is_over()

    return dg.ScheduleDefinition(
        name="housekeeping",
        job=housekeeping_job,
        cron_schedule="10 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Deletes what is over, daily at 03:10 UTC; the job says what and when.",
    )
