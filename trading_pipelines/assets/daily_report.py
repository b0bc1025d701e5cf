"""daily_report: one partition a KST day.

What it says belongs in `alerts/daily_report`, whether it is sent in `alerts/periodic`.
"""

from datetime import UTC, date, datetime

import dagster as dg

from trading_pipelines.alerts.daily_report import text as report_text
from trading_pipelines.alerts.daily_report.figures import compute_report, shown_figures
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.alerts.periodic import send_report
from trading_pipelines.assets.about import ARRIVES, BY_HAND, describe
from trading_pipelines.assets.computed import Resend
from trading_pipelines.partitions import kst_days
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import REGIME_LABELS, VOLATILITY_FORECAST


def build_assets(settings: StrategySettings) -> list[dg.AssetsDefinition]:
    """Return daily_report."""

    @dg.asset(
        name=DAILY_REPORT,
        partitions_def=kst_days(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[
            "trading_history",
            "agent_decisions",
            *(
                dg.AssetDep(upstream, partition_mapping=dg.AllPartitionMapping())
                for upstream in (REGIME_LABELS.asset, VOLATILITY_FORECAST.asset)
            ),
        ],
        **describe(
            "The result of a KST day: realised PnL after fees, trades, win rate and maximum "
            "drawdown from the bot's tables (sales matched to purchases first in, first out), "
            "regimes, volatility, data health and alerts. Sent once, at 09:00 KST of the next day.",
            row="no table of its own: a report is a row of `trading_pipelines.alert_deliveries` "
            "per KST day, and the figures are on the partition",
            unit="money in KRW, rates in percent; days are Korean",
            refreshed="by `make_daily_report`, from 09:00 KST on for each day that has none",
            backfill=f"{BY_HAND} or by `daily_report_job`. A day that was sent is not sent again, "
            "unless the run's config says `resend: true`",
            group="alerts",
            kinds={"python", "postgres"},
            interval="1d",
            runbook=ARRIVES,
        ),
    )
    def daily_report(
        context: dg.AssetExecutionContext, config: Resend, database: DatabaseResource
    ) -> None:
        with database.connect() as connection:
            for key in context.partition_keys:
                now = datetime.now(UTC)
                made = compute_report(connection, date.fromisoformat(key), settings.symbols)
                body = report_text.body(made, now)
                sending = send_report(
                    connection, made.day, body, settings.alerts, now, resend=config.resend
                )
                figures = {n: v for n, v in shown_figures(made).items() if v is not None}
                summary = dg.MetadataValue.md(body["summary"])
                context.add_asset_metadata(
                    {**figures, "summary": summary, "sending": sending}, partition_key=key
                )

    return [daily_report]
