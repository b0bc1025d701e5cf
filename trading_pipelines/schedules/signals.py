"""The schedules of the signals: each tick asks the tables which partitions are due."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg

from trading_pipelines.candles import due
from trading_pipelines.candles.windows import DAY
from trading_pipelines.partitions import range_tags
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.schedules.in_flight import NEWEST, UNFINISHED, in_flight
from trading_pipelines.schedules.market_data import status
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.catalogue import (
    GARCH_BASELINE,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    REJECT_OUTCOMES,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    VOLATILITY_SCORE,
    Signal,
)
from trading_pipelines.signals.published.current import CURRENT_SIGNALS, SIGNALS_OVERVIEW

# What a person or the bot looks at, refreshed by the runs that bring something newer.
SHOWN_WITH = {
    REGIME_LABELS: [CURRENT_SIGNALS],
    VOLATILITY_FORECAST: [CURRENT_SIGNALS],
    VOLATILITY_SCORE: [SIGNALS_OVERVIEW],
}
# A person's, who does not want to wait for the hour.
REFRESH_OVERVIEW = dg.define_asset_job(
    "refresh_overview_job",
    selection=dg.AssetSelection.assets(CURRENT_SIGNALS, SIGNALS_OVERVIEW),
    description="Writes the bot's keys in Redis and draws the overview anew, from the labels and "
    "forecasts there are: after Redis was away, say.",
)


def build_signal_schedules(
    settings: StrategySettings,
    partitions: dg.MultiPartitionsDefinition,
    days: dg.DailyPartitionsDefinition,
) -> list[dg.ScheduleDefinition]:
    """Return a schedule for each job of signals; that of the volatility model is by day."""
    volatility = [
        REALIZED_VOLATILITY,
        VOLATILITY_FORECAST,
        GARCH_BASELINE,
        VOLATILITY_SCORE,
    ]
    return [
        _build_update(
            "update_regime",
            [REGIME_LABELS],
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
            [VOLATILITY_MODEL],
            settings,
            days,
            "Fits the model of the day that has closed, at 00:05 UTC (09:05 KST), and again those "
            "whose training data have changed since.",
        ),
        _build_update(
            "update_reject_outcomes",
            [REJECT_OUTCOMES],
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
        default_status=status(settings),
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
                signal: signal_coverage.read(connection, signal, settings.symbols, days, settings)
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
                is_urgent = is_newest and signal is not REJECT_OUTCOMES
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
