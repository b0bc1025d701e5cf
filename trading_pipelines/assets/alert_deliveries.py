"""The ledger of what was delivered, in the lineage.

External: the sensors write it. The check says whether an alert was given up. What an alert is
belongs in `alerts/`.
"""

from collections.abc import Mapping

import dagster as dg

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.assets.about import ARRIVES, describe
from trading_pipelines.assets.bot_tables import BOT_TABLES
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.signals.catalogue import REGIME_LABELS
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

ALERT_DELIVERIES = "alert_deliveries"
NO_DEAD_ALERTS = "no_dead_alerts"


def build_assets() -> list[dg.AssetSpec]:
    """Return the ledger."""
    return [
        dg.AssetSpec(
            ALERT_DELIVERIES,
            deps=[*BOT_TABLES, "candles_1h", REGIME_LABELS.asset, DAILY_REPORT, REJECT_SUMMARY],
            **describe(
                "What was told, to whom, and what became of it; each try is a row of "
                "`trading_pipelines.alert_attempts`. Delivered means that Discord took it, as n8n "
                "reports. `trading-pipelines alerts list` shows it.",
                row="per alert and webhook",
                unit="times in UTC",
                refreshed="by the sensors named `…_alerts`, within a second of what they tell",
                backfill="never; `trading-pipelines alerts replay` sends again",
                group="alerts",
                kinds={"postgres", "n8n", "discord"},
                table="trading_pipelines.alert_deliveries",
                runbook=ARRIVES,
            ),
        ),
    ]


def build_checks() -> list[dg.AssetChecksDefinition]:
    """Return the check that fails while an alert is dead; a sensor evaluates it at each change."""

    @dg.asset_check(
        asset=ALERT_DELIVERIES,
        name=NO_DEAD_ALERTS,
        description="No alert was given up. `trading-pipelines alerts list --state dead` says "
        "why, `alerts replay --dead` sends them when the cause is mended.",
    )
    def no_dead_alerts(database: DatabaseResource) -> dg.AssetCheckResult:
        with database.connect() as connection:
            counts = ledger.counts(connection)
        passed, metadata = _dead(counts)
        return dg.AssetCheckResult(passed=passed, metadata=metadata)

    return [no_dead_alerts]


def evaluate_no_dead_alerts(counts: Mapping[str, Mapping[str, int]]) -> dg.AssetCheckEvaluation:
    """Return the check's evaluation as an event, for a sensor."""
    passed, metadata = _dead(counts)
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(ALERT_DELIVERIES),
        check_name=NO_DEAD_ALERTS,
        passed=passed,
        metadata=metadata,
    )


def _dead(counts: Mapping[str, Mapping[str, int]]) -> tuple[bool, dict[str, int]]:
    dead = {kind: states["dead"] for kind, states in counts.items()}
    return not any(dead.values()), {f"dead_{kind}": number for kind, number in dead.items()}
