"""The bot's tables that alerts come from, and the ledger of what was delivered, in the lineage.

All external: the bot writes its tables, and the sensors the ledger. The check says whether an alert
was given up. What an alert is belongs in `alerts/`.
"""

from collections.abc import Mapping

import dagster as dg

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.assets.shared import OWNERS
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.signals.due import REGIME_LABELS

ALERT_DELIVERIES = "alert_deliveries"
NO_DEAD_ALERTS = "no_dead_alerts"
BOT_TABLES = {
    "agent_decisions": "Each entry the AI was asked about: CONFIRM or REJECT, and why.",
    "trading_history": "Each order: side, price, quantity, fee, status; times in UTC.",
    "risk_audit": "Each violation of a risk rule.",
    "daily_risk_state": "Per day the bot's PnL, losses in a row and cooldown.",
}


def build_assets() -> list[dg.AssetSpec]:
    """Return the bot's tables and the ledger."""
    return [
        *(
            dg.AssetSpec(
                name,
                group_name="bot",
                owners=OWNERS,
                kinds={"postgres"},
                description=f"{about} The bot's own table `public.{name}`: read here, never "
                "written. Created where the bot has not made it, adopted with its rows else.",
            )
            for name, about in BOT_TABLES.items()
        ),
        dg.AssetSpec(
            ALERT_DELIVERIES,
            deps=[*BOT_TABLES, "candles_1h", REGIME_LABELS.asset, DAILY_REPORT],
            group_name="alerts",
            owners=OWNERS,
            kinds={"postgres", "n8n", "discord"},
            description=(
                "One row per alert and webhook: `trading_pipelines.alert_deliveries`, its tries in "
                "`alert_attempts`. Delivered means that Discord took it, as n8n reports. The "
                "sensors write it; `trading-pipelines alerts list` shows it, and `alerts replay` "
                "sends again."
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
