"""What became of the bot's rejections: agent_decisions → reject_outcomes → reject_summary.

How an outcome is judged and a week summed up belongs in `signals/rejections`.
"""

from datetime import UTC, date, datetime

import dagster as dg

from trading_pipelines.alerts.periodic import send_summary
from trading_pipelines.alerts.reject_summary import body
from trading_pipelines.assets.about import BY_HAND, describe
from trading_pipelines.assets.computed import (
    Materialized,
    Resend,
    code_version,
    days_before,
    materialize,
)
from trading_pipelines.assets.metadata import picture, table
from trading_pipelines.partitions import kst_weeks
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import REJECT_OUTCOMES
from trading_pipelines.signals.regimes.regime import Regime
from trading_pipelines.signals.rejections import summary as reject_summary
from trading_pipelines.signals.rejections.exit_rules import exit_rules_of
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY

GROUP = "rejections"


def build_assets(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Return reject_outcomes over `partitions`, and the weekly reject_summary."""
    signal = REJECT_OUTCOMES
    costs = settings.reject_outcomes

    @dg.asset(
        name=signal.asset,
        code_version=code_version(signal, settings),
        deps=[
            "agent_decisions",
            *(days_before(settings, signal, name) for name in ("candles_1m", "regime_labels")),
        ],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        **describe(
            "What became of each REJECT of a symbol's UTC day: the price at the decision and 1, 4, "
            "12 and 24 hours later, the best and worst in between, and what the entry would have "
            f"made with {costs.notional_krw:,} KRW at a fee of {costs.fee_pct:g} % an order, ended "
            "by the exit rules of its regime (the settings' section `regimes`: take_profit_pct, "
            "stop_loss_pct, max_hours). What such an entry would have lost, the rejection saved. "
            "Pending until 24 hours have passed and the exit is known.",
            row="per REJECT of the bot's that has a time",
            unit="prices and results in KRW, times in UTC",
            refreshed="every hour by `update_reject_outcomes`, and when a candle, a label or a "
            "decision has changed; changed exit rules count for what is computed from then on, "
            "or for all of the look-back (`signals.when_settings_change`)",
            backfill=BY_HAND,
            group=GROUP,
            kinds={"python", "postgres"},
            table="trading_pipelines.reject_outcomes",
        ),
    )
    def reject_outcomes(
        context: dg.AssetExecutionContext, database: DatabaseResource
    ) -> Materialized:
        for regime in Regime:
            if isinstance(unknown := exit_rules_of(settings, regime), str):
                context.log.warning("not judged: %s", unknown)
        yield from materialize(context, database, signal, settings)

    @dg.asset(
        name=REJECT_SUMMARY,
        deps=[dg.AssetDep(signal.asset, partition_mapping=dg.AllPartitionMapping())],
        partitions_def=kst_weeks(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        **describe(
            "Whether the rejections of a Korean week (Monday 00:00 to Monday 00:00 KST) paid off: "
            "how many were judged, what they saved and cost, how many were right; with a picture "
            "of twelve weeks. `alerts.reject_summary` in the settings sends it to Discord, once; "
            "`resend: true` in the run's config sends it again.",
            row="per week for all rejections, and for those of each symbol, regime, AI model and "
            "family of reasons",
            unit="KRW after fees; hit rates from 0 to 1 with a 95 % interval",
            refreshed="by `make_reject_summary` when all outcomes of the week are there, and when "
            "one of them has changed",
            backfill=BY_HAND,
            group=GROUP,
            kinds={"python", "postgres"},
            table="trading_pipelines.reject_summary",
            interval="1w",
        ),
    )
    def summary(
        context: dg.AssetExecutionContext, config: Resend, database: DatabaseResource
    ) -> None:
        from trading_pipelines.signals.rejections import plots

        with database.connect() as connection:
            for key in context.partition_keys:
                now, week = datetime.now(UTC), date.fromisoformat(key)
                made = reject_summary.summarise(connection, week)
                drawn = plots.draw(connection, week)
                sending = send_summary(
                    connection, week, reject_summary.settled_at(week, settings),
                    body(made.totals, week, now), settings.alerts, now, resend=config.resend,
                )  # fmt: skip
                # Last: a week that is stored is not due, whatever else has not been done for it.
                reject_summary.store(connection, made)
                together = made.totals[0]
                context.add_asset_metadata(
                    {
                        "picture": picture("rejections", drawn),
                        "totals": table(total.shown() for total in made.totals),
                        "rejections": together.rejections,
                        "net_krw": int(together.net_krw),
                        "sending": sending,
                    },
                    partition_key=key,
                )

    return [reject_outcomes, summary]
