"""The sensors that deliver alerts: one a kind, on by default, each with a switch in the settings.

A tick asks the tables what is undelivered and posts it; it launches no run. The failures' cursor
only remembers which checks were evaluated. Finding, sending and giving up belong in `alerts/`.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from trading_pipelines.alerts import endpoints, failures, ledger
from trading_pipelines.alerts.delivery import Sender
from trading_pipelines.alerts.incidents import reconcile
from trading_pipelines.alerts.kinds import (
    AI_DECISION,
    AI_REJECT,
    AI_SCORECARD,
    DAILY_REPORT,
    PIPELINE_FAILURE,
    RISK,
    TRADE,
)
from trading_pipelines.assets.alert_deliveries import (
    ALERT_DELIVERIES,
    ENDPOINTS_WORK,
    NO_DEAD_ALERTS,
)
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.resources.webhooks import WebhooksResource
from trading_pipelines.sensors.finished_runs import finished_runs
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

STAYS = (
    " A tick stays for half a minute and looks five times a second, so that an alert is out in a "
    "moment; the next tick finds what a killed one left undone."
)


def build_alert_sensors(settings: StrategySettings) -> list[dg.SensorDefinition]:
    """Return a sensor for each kind of alert."""
    return [
        _build(settings, AI_REJECT, "the bot's decisions that are REJECT to n8n's ai-reject."),
        _build(
            settings,
            AI_DECISION,
            "the bot's decisions that are CONFIRM to n8n's webhook ai-decision; those that are "
            "REJECT too where alerts.ai_reject is off.",
        ),
        _build(settings, TRADE, "the bot's filled orders to n8n's webhook trade."),
        _build(
            settings,
            RISK,
            "the bot's risk violations, cooldowns, trading halts and their ends to n8n's webhook "
            "risk.",
        ),
        _build(
            settings,
            DAILY_REPORT,
            "each day's daily_report once to n8n's webhook daily-report, from 09:00 KST on.",
            watch=False,
        ),
        _build(
            settings,
            REJECT_SUMMARY,
            "each week's reject_summary once to n8n's webhook risk.",
            watch=False,
        ),
        _build(
            settings,
            AI_SCORECARD,
            "each week's ai_scorecard once to n8n's webhook risk.",
            watch=False,
        ),
        _build_pipeline_failure_alerts(settings),
    ]


def _build(
    settings: StrategySettings, kind: str, delivers: str, *, watch: bool = True
) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{kind}_alerts",
        # A kind that is off has nothing to hurry for, and each tick is a row of Dagster's.
        minimum_interval_seconds=1 if watch and settings.alerts.is_on(kind) else 30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Delivers {delivers}{STAYS if watch else ''}",
    )
    def alerts(database: DatabaseResource, webhooks: WebhooksResource) -> dg.SkipReason:
        return _deliver(kind, settings, database, webhooks, watch=watch)

    return alerts


def _build_pipeline_failure_alerts(settings: StrategySettings) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{PIPELINE_FAILURE}_alerts",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells n8n's webhook risk of runs that failed for good, partitions left "
        "failed, symbols gone quiet and dead alerts: each failure once, again after "
        "repeat_after with the number of repetitions held back, and when it has recovered. Also "
        "keeps the checks no_dead_alerts and endpoints_work up to date.",
    )
    def pipeline_failure_alerts(
        context: dg.SensorEvaluationContext, database: DatabaseResource, webhooks: WebhooksResource
    ) -> dg.SensorResult:
        now = datetime.now(UTC)
        if settings.alerts.pipeline_failure and webhooks.of(settings.alerts):
            runs = finished_runs(context.instance, settings.symbols, now)
            with database.connect() as connection:
                failing = failures.current(connection, settings, runs, now)
                repeat_after = timedelta(seconds=settings.alerts.repeat_after)
                reconcile(connection, failing, repeat_after, now)
        skip = _deliver(PIPELINE_FAILURE, settings, database, webhooks, watch=False)
        with database.connect() as connection:
            counts, broken = ledger.counts(connection), endpoints.broken(connection)
        dead = {kind: number for kind, states in counts.items() if (number := states["dead"])}
        # An evaluation is an event for ever: one at each change, not two a minute.
        states = {
            f"{ALERT_DELIVERIES} {dead}": NO_DEAD_ALERTS.evaluation(counts),
            f"endpoints {[(e.name, e.since.isoformat(), e.answer) for e in broken]}": (
                ENDPOINTS_WORK.evaluation(broken)
            ),
        }
        states_before = (context.cursor or "").splitlines()
        return dg.SensorResult(
            skip_reason=skip,
            cursor="\n".join(states),
            asset_events=[event for state, event in states.items() if state not in states_before],
        )

    return pipeline_failure_alerts


def _deliver(
    kind: str,
    settings: StrategySettings,
    database: DatabaseResource,
    webhooks: WebhooksResource,
    *,
    watch: bool,
) -> dg.SkipReason:
    """Deliver what is due of the kind, and say what came of it: no run is ever launched."""
    posting = webhooks.of(settings.alerts)
    with database.connect() as connection:
        ledger.observe(connection, kind)
        if not settings.alerts.is_on(kind):
            skipped = ledger.disable(connection, kind)
            return dg.SkipReason(f"alerts.{kind} is off in the settings; {skipped} skipped")
        if posting is None:
            return dg.SkipReason(
                "neither N8N_URL nor DISCORD_WEBHOOK_URL is set: nothing can be sent"
            )
        sender = Sender(connection, kind, settings.alerts, posting)
        tally = sender.deliver(webhooks.stop_flag().exists, watch=watch)
    return dg.SkipReason("another tick is still sending" if tally is None else str(tally))
