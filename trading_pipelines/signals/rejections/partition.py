"""A partition of `reject_outcomes` or `confirm_outcomes`: the day's decisions, each followed.

What a decision came to is evaluated in `outcomes`.
"""

from collections.abc import Sequence
from datetime import date

from trading_pipelines.candles.windows import HOUR, Interval, day_interval, floor_hour
from trading_pipelines.signals import tables
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.engine import ComputeRun, PartitionRows, SignalRow
from trading_pipelines.signals.regimes.regime import Regime, label_as_of
from trading_pipelines.signals.rejections import outcomes
from trading_pipelines.signals.rejections.exit_rules import exit_rules_of, outcome_days_after


def compute_outcomes(
    run: ComputeRun, symbol: str, partitions: Sequence[SignalCoverage]
) -> dict[date, PartitionRows]:
    """Return each day's decisions of the signal's kind with what became of them."""
    return {partition.day: _outcomes_of_day(run, symbol, partition) for partition in partitions}


def _outcomes_of_day(run: ComputeRun, symbol: str, partition: SignalCoverage) -> PartitionRows:
    assert partition.until is not None
    assert run.signal.decision is not None
    is_refused = run.signal.decision == "REJECT"
    day, days_after = day_interval(partition.day), outcome_days_after(run.settings)
    covered = floor_hour(tables.covered_until(run.connection, symbol, partition.day, days_after))
    as_of = min(partition.until, covered)
    decisions = tables.decisions(
        run.connection, run.signal.decision, symbol, Interval(day.start, min(as_of, day.end))
    )
    minutes: list[outcomes.MinutePrices] = []
    if decisions:
        # The price just after midnight is the day before's last one.
        minutes = tables.minutes(run.connection, symbol, Interval(day.start - HOUR, as_of))
    costs = run.settings.reject_outcomes
    rows: list[SignalRow] = []
    results: list[outcomes.Outcome] = []
    for decision in decisions:
        at = decision.decided_at
        label = decision.regime or label_as_of(run.connection, symbol, at)
        label = label or str(Regime.UNKNOWN)
        exits = exit_rules_of(run.settings, label)
        note, rules = (exits, None) if isinstance(exits, str) else (None, exits)
        outcome = outcomes.evaluate(decision, minutes, as_of, rules, costs)
        family = outcomes.reason_family(decision.reason, costs.reason_families)
        position_exit = outcome.exit
        results.append(outcome)
        rows.append(
            (symbol, partition.day, decision.id, at, label, decision.model, family,
             str(outcome.state), outcome.price, *outcome.later, outcome.best, outcome.worst,
             position_exit and position_exit.at, position_exit and position_exit.price,
             position_exit and str(position_exit.reason),
             outcome.result_krw, *([outcome.verdict] if is_refused else []), note)
        )  # fmt: skip
    made = [outcome.result_krw for outcome in results if outcome.result_krw is not None]
    completed = sum(outcome.state is outcomes.OutcomeState.COMPLETED for outcome in results)
    figures = {
        "rejections": len(results),
        "completed": completed,
        "saved": sum(outcome.verdict is outcomes.OutcomeVerdict.SAVED for outcome in results),
        "saved_krw": -int(sum(krw for krw in made if krw < 0)),
        "cost_krw": int(sum(krw for krw in made if krw > 0)),
    }
    if not is_refused:
        figures = {
            "confirmations": len(results),
            "completed": completed,
            "won": sum(krw > 0 for krw in made),
            "result_krw": int(sum(made)),
        }
    return PartitionRows(rows, [partition.day], figures)
