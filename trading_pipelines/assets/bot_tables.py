"""What the bot decided and did, in the lineage: its own tables, which Dagster does not write.

A sensor observes them when rows have arrived. What is read of them belongs in the package's
`bot_tables`.
"""

import dagster as dg

from trading_pipelines.assets.about import ARRIVES, describe
from trading_pipelines.bot_views import FOLLOWED

# What the table is, its row, its unit.
BOT_TABLES = {
    "agent_decisions": (
        "What the bot's AI was asked about: CONFIRM or REJECT, and why.",
        "per decision",
        "prices in KRW, confidence in percent",
    ),
    "trading_history": (
        "The bot's orders: side, price, quantity, fee, status.",
        "per order",
        "prices and fees in KRW, quantities in the coin",
    ),
    "risk_audit": (
        "The violations of the bot's risk rules; the view `risk_log_kst` adds cooldowns and halts.",
        "per violation",
        "times in UTC",
    ),
    "daily_risk_state": (
        "The bot's PnL, losses in a row, cooldown and halt.",
        "per day, updated in place",
        "as the bot has it",
    ),
}


def build_assets() -> list[dg.AssetSpec]:
    """Return the bot's tables."""
    return [
        dg.AssetSpec(
            name,
            **describe(
                f"{sentence} The table is the bot's: it is only read here. Where the bot has not "
                "created it yet, it is created empty; where the bot has, its rows are used as they "
                f"are. The view `trading_pipelines.{FOLLOWED[name].name}` shows it in Korean time.",
                row=row,
                unit=unit,
                refreshed="by the bot; `observe_bot_tables` shows its newest rows here within "
                "minutes",
                backfill="never: the bot alone writes it",
                group="bot_tables",
                kinds={"postgres"},
                table=f"public.{name}",
                runbook=ARRIVES,
            ),
        )
        for name, (sentence, row, unit) in BOT_TABLES.items()
    ]
