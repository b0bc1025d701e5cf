"""What became of the bot's decisions: agent_decisions → reject_outcomes → reject_summary.

And reject_outcomes and confirm_outcomes → ai_scorecard. How an outcome is judged and a week of
rejections summed up belongs in `signals/rejections`, the scorecard in `scorecard/`.
"""

from datetime import UTC, date, datetime

import dagster as dg

from trading_pipelines.alerts.kinds import AI_SCORECARD
from trading_pipelines.alerts.periodic import send_weekly
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
from trading_pipelines.scorecard import weekly
from trading_pipelines.scorecard.entries import read_entries
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import (
    CONFIRM_OUTCOMES,
    REJECT_OUTCOMES,
    VOLATILITY_FORECAST,
    Signal,
)
from trading_pipelines.signals.regimes.regime import Regime
from trading_pipelines.signals.rejections import summary as reject_summary
from trading_pipelines.signals.rejections.exit_rules import exit_rules_of
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY, settled_at

GROUP = "rejections"


def build_assets(
    settings: StrategySettings, partitions: dg.MultiPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Return the outcomes of both decisions over `partitions`, and the two weekly assets."""
    return [
        _outcomes(
            REJECT_OUTCOMES,
            settings,
            partitions,
            "What such an entry would have lost, the rejection saved.",
        ),
        _outcomes(
            CONFIRM_OUTCOMES,
            settings,
            partitions,
            "What the bot's own trades made of it, ai_scorecard finds: here both decisions are "
            "measured alike.",
        ),
        _reject_summary(settings),
        _ai_scorecard(settings),
    ]


def _outcomes(
    signal: Signal, settings: StrategySettings, partitions: dg.MultiPartitionsDefinition, more: str
) -> dg.AssetsDefinition:
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
            f"What became of each {signal.decision} of a symbol's UTC day: the price at the "
            "decision and 1, 4, "
            "12 and 24 hours later, the best and worst in between, and what the entry would have "
            f"made with {costs.notional_krw:,} KRW at a fee of {costs.fee_pct:g} % an order, ended "
            "by the exit rules of its regime (the settings' section `regimes`: take_profit_pct, "
            f"stop_loss_pct, max_hours). {more} "
            "Pending until 24 hours have passed and the exit is known.",
            row=f"per {signal.decision} of the bot's that has a time",
            unit="prices and results in KRW, times in UTC",
            refreshed="every hour by `update_reject_outcomes`, and when a candle, a label or a "
            "decision has changed; changed exit rules count for what is computed from then on, "
            "or for all of the look-back (`signals.when_settings_change`)",
            backfill=BY_HAND,
            group=GROUP,
            kinds={"python", "postgres"},
            table=f"trading_pipelines.{signal.asset}",
        ),
    )
    def outcomes(context: dg.AssetExecutionContext, database: DatabaseResource) -> Materialized:
        for regime in Regime:
            if isinstance(unknown := exit_rules_of(settings, regime), str):
                context.log.warning("not judged: %s", unknown)
        yield from materialize(context, database, signal, settings)

    return outcomes


def _reject_summary(settings: StrategySettings) -> dg.AssetsDefinition:
    @dg.asset(
        name=REJECT_SUMMARY,
        deps=[dg.AssetDep(REJECT_OUTCOMES.asset, partition_mapping=dg.AllPartitionMapping())],
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
                sending = send_weekly(
                    connection, REJECT_SUMMARY, week, settled_at(week, settings),
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

    return summary


def _ai_scorecard(settings: StrategySettings) -> dg.AssetsDefinition:
    @dg.asset(
        name=AI_SCORECARD,
        deps=[
            dg.AssetDep(name, partition_mapping=dg.AllPartitionMapping())
            for name in (REJECT_OUTCOMES.asset, CONFIRM_OUTCOMES.asset, VOLATILITY_FORECAST.asset)
        ]
        + ["agent_decisions", "trading_history"],
        partitions_def=kst_weeks(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        **describe(
            "Is the AI worth its money? What the entries made that it took (by the bot's own "
            "trades where it has closed them, else by the exits of the settings), that it refused, "
            "and every entry, which is without an AI, side by side: the thirteen Korean weeks up "
            "to this one. With what refusing saved or cost, an interval for how much better taken "
            "entries do, the days it takes to tell, and how often the AI is right at each "
            "confidence; below the needed sample it cannot be told. The same for the volatility "
            "flag, which keeps the bot from entries. `alerts.ai_scorecard` in the settings sends "
            "it to Discord, once; `resend: true` in the run's config sends it again.",
            row="per week for all decisions, for those of each model, regime, symbol, family of "
            "reasons and band of confidence, and for the volatility flag",
            unit="KRW after fees; returns of an entry as a fraction of its stake, shares from 0 to "
            "1, with 95 % intervals",
            refreshed="by `make_ai_scorecard` when all outcomes of the week are there, and when "
            "one of them, a trade or a confidence has changed",
            backfill=BY_HAND,
            group=GROUP,
            kinds={"python", "postgres"},
            table="trading_pipelines.ai_scorecard",
            interval="1w",
        ),
    )
    def scorecard(
        context: dg.AssetExecutionContext, config: Resend, database: DatabaseResource
    ) -> None:
        from trading_pipelines.scorecard import plots, words
        from trading_pipelines.scorecard.score import days_needed, score

        with database.connect() as connection:
            for key in context.partition_keys:
                now, week = datetime.now(UTC), date.fromisoformat(key)
                whole, as_of = weekly.weeks_interval(week), settled_at(week, settings)
                with connection.transaction():
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    read = read_entries(connection, whole.start, whole.end, as_of, settings)
                    computed_from = weekly.inputs_digest(connection, week, settings)
                made = score(read.entries, days_needed(settings))
                drawn = plots.draw(read.entries, made)
                sending = send_weekly(
                    connection, AI_SCORECARD, week, as_of, words.body(made, week, now),
                    settings.alerts, now, resend=config.resend,
                )  # fmt: skip
                # Last: a week that is stored is not due, whatever else has not been done for it.
                weekly.store(
                    connection, week, [comparison.figures() for comparison in made], computed_from
                )
                together = made[0]
                context.add_asset_metadata(
                    {
                        "verdict": words.headline(together),
                        "picture": picture("scorecard", drawn),
                        "scorecard": table(map(words.shown, made)),
                        "confidence": table(words.shown_confidence(made)),
                        "more confidence": words.confidence_line(together),
                        "decisions": words.left_out_line(read),
                        "saved_krw": int(together.saved_krw),
                        "sending": sending,
                    },
                    partition_key=key,
                )

    return scorecard
