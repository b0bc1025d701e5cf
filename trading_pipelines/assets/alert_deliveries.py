"""The ledger of alerts in the lineage, and the check that none was given up.

Dagster does not materialise it: the sensors write it. What an alert is belongs in `alerts/`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from trading_pipelines.alerts import endpoints, ledger
from trading_pipelines.alerts.endpoints import Endpoint
from trading_pipelines.alerts.kinds import AI_SCORECARD, DAILY_REPORT
from trading_pipelines.assets.about import ARRIVES, describe
from trading_pipelines.assets.bot_tables import BOT_TABLES
from trading_pipelines.assets.table_checks import TableCheck
from trading_pipelines.korean_time import kst
from trading_pipelines.partitions import CANDLES_1M
from trading_pipelines.signals.catalogue import REGIME_LABELS
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

ALERT_DELIVERIES = "alert_deliveries"


def build_assets() -> list[dg.AssetSpec]:
    """Return the ledger of alerts."""
    return [
        dg.AssetSpec(
            ALERT_DELIVERIES,
            deps=[
                *(*BOT_TABLES, CANDLES_1M, REGIME_LABELS.asset, DAILY_REPORT, REJECT_SUMMARY),
                AI_SCORECARD,
            ],
            **describe(
                "The alerts: what each says, which webhook it goes to and whether it has arrived; "
                "each attempt is a row of `trading_pipelines.alert_attempts`. Delivered means that "
                "Discord accepted it, as n8n reports. `trading-pipelines alerts list` shows it.",
                row="per alert and webhook",
                unit="times in UTC",
                refreshed="by the sensors named `…_alerts`; for a row of the bot's within a second",
                backfill="never; `trading-pipelines alerts replay` sends again",
                group="alerts",
                kinds={"postgres", "n8n", "discord"},
                table="trading_pipelines.alert_deliveries",
                runbook=ARRIVES,
            ),
        ),
    ]


def build_checks() -> list[dg.AssetChecksDefinition]:
    """Return the checks that fail while an alert is dead, and while an endpoint is broken.

    A sensor evaluates each at each change.
    """
    return [NO_DEAD_ALERTS.definition(), ENDPOINTS_WORK.definition()]


def _judge_dead(counts: Mapping[str, Mapping[str, int]]) -> tuple[bool, dict[str, Any]]:
    dead = {kind: states["dead"] for kind, states in counts.items()}
    return not any(dead.values()), {f"dead_{kind}": number for kind, number in dead.items()}


def _judge_endpoints(broken: Sequence[Endpoint]) -> tuple[bool, dict[str, Any]]:
    lines = {endpoints.shown_name(e.name): endpoints.described(e, kst) for e in broken}
    return not lines, lines


NO_DEAD_ALERTS = TableCheck(
    ALERT_DELIVERIES,
    "no_dead_alerts",
    "No alert was given up. `trading-pipelines alerts list --state dead` says why, "
    "`alerts replay --dead` sends them when the cause is mended.",
    ledger.counts,
    _judge_dead,
)
ENDPOINTS_WORK = TableCheck(
    ALERT_DELIVERIES,
    "endpoints_work",
    "Discord's webhook and n8n's take alerts. Of one that is broken: since when, what it answered "
    "and what to do; its alerts wait, and go out by themselves when it is mended.",
    endpoints.broken,
    _judge_endpoints,
)
