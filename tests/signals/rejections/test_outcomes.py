"""What became of the bot's rejections on the recorded candles, against a plain reference."""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from psycopg.rows import dict_row

from tests.conftest import FIRST_DAY, LAST_DAY, RECORDED_DAYS, STRATEGY, SYMBOLS, copied
from tests.signals.conftest import Bench
from trading_pipelines.candles.windows import DAY, HOUR, MINUTE, day_interval
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due
from trading_pipelines.signals.catalogue import REJECT_OUTCOMES
from trading_pipelines.signals.rejections import outcomes
from trading_pipelines.signals.rejections.exit_rules import (
    ExitRules,
    exit_rules_of,
    outcome_days_after,
)
from trading_pipelines.signals.rejections.outcomes import (
    Decision,
    MinutePrices,
    OutcomeState,
    evaluate,
)

REGIMES = {
    "BULL": {
        "exit": {"take_profit_pct": 0.02, "stop_loss_pct": 0.01, "max_hours": 48},
        "position_size_ratio": 1.0,
    },
    "SIDEWAYS": {
        "exit": {"take_profit_pct": 0.008, "stop_loss_pct": 0.006, "max_hours": 30},
        "position_size_ratio": 0.8,
    },
    "BEAR": {
        "exit": {"take_profit_pct": 0.004, "stop_loss_pct": 0.003, "max_hours": 6},
        "position_size_ratio": 0.35,
    },
}
SETTINGS = STRATEGY.model_copy(update={"regimes": REGIMES})
END = day_interval(LAST_DAY).end
ADD = """
INSERT INTO agent_decisions
    (symbol, strategy_name, decision, reasoning, model_used, created_at, price_at_decision, regime)
VALUES (%s, 'test', %s, %s, 'model', %s, %s, %s) RETURNING id
"""
WORDS = ["거래량이 부족", "Downtrend 지속", "rsi가 높음", "변동성 확대", "기분이 나쁨"]


@pytest.fixture
def bench(server: EmbeddedServer, computed_template: str) -> Iterator[Bench]:
    """The recording, its labels, and a strategy that has exits."""
    with connect(copied(server, computed_template)) as connection:
        yield Bench(connection, SETTINGS)


def reject(
    bench: Bench,
    symbol: str,
    at: datetime | None,
    price: Decimal | None = None,
    regime: str | None = None,
    *,
    decision: str = "REJECT",
    reason: str = "이유",
) -> int:
    values = [symbol, decision, reason, at, price, regime]
    row = bench.connection.execute(ADD, values).fetchone()
    assert row is not None
    return int(row[0])


def stored(bench: Bench) -> dict[int, dict[str, Any]]:
    with bench.connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM trading_pipelines.reject_outcomes ORDER BY decision_id")
        return {row["decision_id"]: row for row in cursor}


def plain_outcome(minutes: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """Follow one rejection minute by minute, as one would by hand."""
    at, price = row["created_at"], row["price_at_decision"]
    found: dict[str, Any] = {}
    for minute in minutes:
        if price is None and at - HOUR < minute["timestamp"] + MINUTE <= at:
            found["price"] = minute["close_price"]
    price = found["price"] = price or found["price"]
    for hours in (1, 4, 12, 24):
        found[f"price_{hours}h"] = None
        if at + HOUR * hours <= END:
            found[f"price_{hours}h"] = price
            for minute in minutes:
                if at < minute["timestamp"] + MINUTE <= at + HOUR * hours:
                    found[f"price_{hours}h"] = minute["close_price"]
    whole = [m for m in minutes if at <= m["timestamp"] and m["timestamp"] + MINUTE <= at + DAY]
    is_over = at + DAY <= END
    found["best_price"] = max(m["high_price"] for m in whole) if is_over else None
    found["worst_price"] = min(m["low_price"] for m in whole) if is_over else None

    found |= plain_exit(minutes, at, price, row["regime"])
    found["state"] = "completed" if is_over and found["exit_at"] else "pending"
    return found


def plain_exit(
    minutes: list[dict[str, Any]], at: datetime, price: Decimal, regime: str
) -> dict[str, Any]:
    """Hold a position minute by minute until a rule closes it."""
    rules = REGIMES[regime]
    exit_rules: dict[str, Any] = rules["exit"]  # type: ignore[assignment]
    stop = price * (1 - Decimal(str(exit_rules["stop_loss_pct"])))
    target = price * (1 + Decimal(str(exit_rules["take_profit_pct"])))
    limit = at + HOUR * exit_rules["max_hours"]
    left: tuple[Any, Any, Any] = (None, None, None)
    last = price
    for minute in minutes:
        if minute["timestamp"] < at or minute["timestamp"] + MINUTE > limit or left[0]:
            continue
        closes = minute["timestamp"] + MINUTE
        if minute["open_price"] >= target:
            left = (closes, minute["open_price"], "take_profit")
        elif minute["open_price"] <= stop:
            left = (closes, minute["open_price"], "stop_loss")
        elif minute["low_price"] <= stop:
            left = (closes, stop, "stop_loss")
        elif minute["high_price"] >= target:
            left = (closes, target, "take_profit")
        last = minute["close_price"]
    if not left[0] and limit <= END:
        left = (limit, last, "time_limit")
    found = dict(zip(("exit_at", "exit_price", "exit_reason"), left, strict=True))
    found["result_krw"] = found["verdict"] = None
    if left[0]:
        bought = Decimal(1_000_000) * Decimal(str(rules["position_size_ratio"]))
        sold = bought * left[1] / price
        result = round(sold - bought - (sold + bought) * Decimal("0.0005"))
        found["result_krw"] = result
        found["verdict"] = "saved" if result < 0 else "cost" if result > 0 else "even"
    return found


def test_every_outcome_is_that_of_a_plain_reference_to_the_won(bench: Bench) -> None:
    chance, seen = random.Random(7), set[str]()
    stretch = (END - day_interval(FIRST_DAY).start - 2 * HOUR).total_seconds()
    for _ in range(250):
        at = day_interval(FIRST_DAY).start + timedelta(seconds=chance.uniform(7200, stretch + 7200))
        at = at if chance.random() < 0.7 else at.replace(second=0, microsecond=0)
        regime = chance.choice(["BULL", "SIDEWAYS", "BEAR"])
        reject(bench, chance.choice(SYMBOLS), at, regime=regime, reason=chance.choice(WORDS))
    with bench.connection.cursor(row_factory=dict_row) as cursor:
        # A third of them say themselves what the price was: a little beside the last close.
        cursor.execute(
            "UPDATE agent_decisions AS decision SET price_at_decision = round((SELECT close_price "
            "FROM market_data WHERE symbol = decision.symbol AND timestamp < decision.created_at "
            "ORDER BY timestamp DESC LIMIT 1) * 1.0007, 4) WHERE id % 3 = 0"
        )
        decisions = cursor.execute("SELECT * FROM agent_decisions").fetchall()
        minutes = {
            symbol: cursor.execute(
                "SELECT timestamp, open_price, high_price, low_price, close_price FROM market_data "
                "WHERE symbol = %s AND interval = '1m' ORDER BY timestamp",
                [symbol],
            ).fetchall()
            for symbol in SYMBOLS
        }
    found = bench.compute(REJECT_OUTCOMES, SYMBOLS, FIRST_DAY, LAST_DAY)
    assert [one.error for one in found if one.error] == []
    outcome = stored(bench)
    for decision in decisions:
        expected = plain_outcome(minutes[decision["symbol"]], decision)
        mine = outcome.pop(decision["id"])
        assert {name: mine[name] for name in expected} == expected, decision
        seen.update([mine["state"], mine["exit_reason"], mine["verdict"], mine["reason_family"]])
    assert outcome == {}
    assert {"pending", "completed", "take_profit", "stop_loss", "time_limit", "saved", "cost",
            "volume", "trend", "momentum", "volatility", "other"} <= seen  # fmt: skip


def rows_of(bench: Bench) -> list[tuple[str]]:
    return bench.rows("reject_outcomes")


def cover(bench: Bench, until: datetime) -> None:
    """Pretend that minutes were fetched up to a moment, and no further."""
    bench.connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial', fetched_until = %s, "
        "confirmed_until = day::timestamp AT TIME ZONE 'UTC' WHERE interval = '1m' AND day = %s",
        [until, until.date()],
    )
    bench.connection.execute(
        "DELETE FROM trading_pipelines.candle_coverage WHERE day > %s", [until.date()]
    )


def test_what_is_pending_uses_no_candle_that_closed_later_and_is_completed_then(
    bench: Bench,
) -> None:
    day, until = date(2025, 9, 16), datetime(2025, 9, 16, 20, tzinfo=UTC)
    for hour in range(20):
        reject(bench, "KRW-BTC", datetime(2025, 9, 16, hour, 17, 5, tzinfo=UTC), regime="SIDEWAYS")
    late = reject(bench, "KRW-BTC", until + timedelta(seconds=1), regime="SIDEWAYS")
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], day)
    whole = stored(bench)
    assert {row["state"] for row in whole.values()} == {"completed"}
    cover(bench, until)
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], day)
    assert late not in stored(bench), "of an hour that is open nothing is known"
    then = rows_of(bench)
    bench.connection.execute(
        "UPDATE market_data SET high_price = high_price * 9, low_price = low_price / 9, "
        "close_price = close_price / 2 WHERE timestamp >= %s",
        [until],
    )
    bench.connection.execute("DELETE FROM trading_pipelines.reject_outcomes")
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], day)
    assert rows_of(bench) == then, "nothing of what closed after eight in the evening"

    for number, row in stored(bench).items():
        known = {name: value for name, value in row.items() if value is not None}
        assert row["state"] == "pending"
        assert row["best_price"] is row["price_24h"] is None
        assert (row["price_1h"] is None) == (row["decided_at"] + HOUR > until)
        del known["state"]
        assert known.items() <= whole[number].items(), "what is known stays as it is"
    assert any(row["exit_reason"] for row in stored(bench).values())


def test_a_hole_keeps_what_comes_after_it_from_being_used(bench: Bench) -> None:
    reject(bench, "KRW-BTC", datetime(2025, 9, 16, 1, 0, 30, tzinfo=UTC), regime="SIDEWAYS")
    bench.connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial', "
        "fetched_until = '2025-09-16T03:30Z' WHERE interval = '1m' AND day = '2025-09-16'"
    )
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], date(2025, 9, 16))
    (row,) = stored(bench).values()
    assert row["price_1h"] is not None
    assert row["price_4h"] is row["price_24h"] is None


def test_a_new_or_changed_rejection_and_a_repaired_candle_make_its_day_due(bench: Bench) -> None:
    day, now = date(2025, 9, 16), END + 2 * DAY

    def reasons() -> dict[tuple[str, date], str]:
        days = [day - DAY, day, day + DAY]
        known = signal_coverage.read(bench.connection, REJECT_OUTCOMES, SYMBOLS, days, SETTINGS)
        found = {
            (one.symbol, one.day): due.reason(one, REJECT_OUTCOMES, SETTINGS, now) for one in known
        }
        return {key: str(why) for key, why in found.items() if why}

    bench.compute(REJECT_OUTCOMES, SYMBOLS, FIRST_DAY, LAST_DAY)
    assert reasons() == {}
    number = reject(bench, "KRW-ETH", datetime(2025, 9, 16, 23, 59, 59, tzinfo=UTC))
    reject(bench, "KRW-ETH", datetime(2025, 9, 16, 12, tzinfo=UTC), decision="CONFIRM")
    reject(bench, "KRW-ETH", None)
    assert reasons() == {("KRW-ETH", day): "older than its inputs"}
    bench.compute(REJECT_OUTCOMES, SYMBOLS, FIRST_DAY, LAST_DAY)
    assert list(stored(bench)) == [number]
    assert reasons() == {}
    bench.connection.execute("UPDATE agent_decisions SET price_at_decision = 1 WHERE id = %s",
                             [number])  # fmt: skip
    assert reasons() == {("KRW-ETH", day): "older than its inputs"}
    bench.compute(REJECT_OUTCOMES, SYMBOLS, FIRST_DAY, LAST_DAY)
    bench.connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET changed_at = now() "
        "WHERE symbol = 'KRW-ETH' AND interval = '1m' AND day = %s",
        [day + DAY],
    )
    # Two days are followed (the longest limit is 48 hours), and the hour before midnight.
    assert reasons() == dict.fromkeys(
        [("KRW-ETH", day - DAY), ("KRW-ETH", day), ("KRW-ETH", day + DAY)], "older than its inputs"
    )


def test_the_bot_may_change_the_columns_of_its_table_while_outcomes_are_followed(
    bench: Bench,
) -> None:
    bench.connection.execute(
        "ALTER TABLE agent_decisions DROP COLUMN price_at_decision, DROP COLUMN regime, "
        "ALTER COLUMN symbol TYPE text, ALTER COLUMN decision TYPE text"
    )
    bench.connection.execute(
        "INSERT INTO agent_decisions (symbol, strategy_name, decision, created_at) "
        "VALUES ('KRW-BTC', 'test', 'REJECT', '2025-09-16T10:10Z')"
    )
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], date(2025, 9, 16))
    (row,) = stored(bench).values()
    label = bench.connection.execute(
        "SELECT label FROM trading_pipelines.regime_labels "
        "WHERE symbol = 'KRW-BTC' AND hour = '2025-09-16T09:00Z'"
    ).fetchone()
    assert (row["regime"],) == label, "without the bot's word, that of the last closed hour"
    assert row["state"] == "completed"


def test_without_exits_in_the_settings_the_prices_are_told_and_nothing_is_judged(
    bench: Bench,
) -> None:
    bench.settings = STRATEGY.model_copy(
        update={"regimes": {"BULL": {"exit": {"stop_loss_pct": 3, "take_profit_pct": 0.01}}}}
    )
    for regime in ("BULL", "BEAR"):
        reject(bench, "KRW-BTC", datetime(2025, 9, 16, 10, tzinfo=UTC), regime=regime)
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], date(2025, 9, 16))
    bull, bear = stored(bench).values()
    assert bull["state"] == bear["state"] == "completed"
    assert bull["price_24h"] == bear["price_24h"] is not None
    assert bull["verdict"] is bear["verdict"] is bull["result_krw"] is None
    assert bull["note"] == (
        "regimes.BULL.exit.stop_loss_pct is 3; wanted: a fraction, such as 0.03 for 3 %"
    )
    assert bear["note"] == "regimes.BEAR is not in the settings"


START = datetime(2025, 9, 16, 10, 0, 20, tzinfo=UTC)
HUNDRED = Decimal(100)
RULES = ExitRules(Decimal("0.02"), Decimal("0.01"), timedelta(hours=30), Decimal(1))
COSTS = STRATEGY.reject_outcomes


def candle(minute: int, o: float, h: float, low: float, c: float) -> MinutePrices:
    start = START.replace(second=0) + MINUTE * minute
    return MinutePrices(start, *(Decimal(str(price)) for price in (o, h, low, c)))


def rejection(price: Decimal | None = HUNDRED) -> Decision:
    return Decision(1, START, price, None, None, "")


def test_the_minute_of_the_decision_is_left_out_of_the_path() -> None:
    candles = [candle(0, 100, 150, 50, 100), candle(1, 100, 100.5, 99.5, 100.2)]
    found = evaluate(rejection(), candles, START + 31 * HOUR, RULES, COSTS)
    assert (found.best, found.worst) == (Decimal("100.5"), Decimal("99.5"))
    assert found.exit is not None
    assert found.exit.reason == "time_limit"
    assert found.exit.price == Decimal("100.2")


@pytest.mark.parametrize(
    ("minute", "price", "reason"),
    [
        ((100, 102, 99, 100), 99, "stop_loss"),
        ((98.5, 99, 98, 98), 98.5, "stop_loss"),
        ((103, 104, 90, 91), 103, "take_profit"),
        ((101, 102, 100, 100), 102, "take_profit"),
    ],
    ids=["both are touched: the worse", "opens below the stop", "opens above", "touched exactly"],
)
def test_a_minute_that_touches_a_level_ends_the_position(
    minute: tuple[float, ...], price: float, reason: str
) -> None:
    found = evaluate(rejection(), [candle(1, *minute)], START + 2 * HOUR, RULES, COSTS)
    assert found.exit is not None
    assert (found.exit.price, found.exit.reason) == (Decimal(str(price)), reason)
    assert found.exit.at == START.replace(second=0) + 2 * MINUTE


def test_a_rise_smaller_than_the_fees_is_money_saved() -> None:
    candles = [candle(1, 100, 100.09, 100, 100.09)]
    found = evaluate(rejection(), candles, START + 31 * HOUR, RULES, COSTS)
    # 1,000,000 KRW x 0.09 % less 500 KRW and 500.45 KRW.
    assert found.result_krw == -100
    assert found.verdict is outcomes.OutcomeVerdict.SAVED


def test_a_market_that_was_halted_for_an_hour_has_no_price() -> None:
    candles = [candle(-61, 100, 100, 100, 100)]
    assert (
        evaluate(rejection(None), candles, START + HOUR, RULES, COSTS).state
        is OutcomeState.NO_PRICE
    )
    candles.append(candle(-60, 100, 100, 100, 101))
    assert evaluate(rejection(None), candles, START + HOUR, RULES, COSTS).price == Decimal(101)


def test_a_decision_that_no_candle_has_reached_yet_is_pending() -> None:
    assert evaluate(rejection(None), [], START - HOUR, RULES, COSTS).state is OutcomeState.PENDING


def test_rows_are_the_same_however_often_and_in_which_order_they_are_computed(
    bench: Bench,
) -> None:
    chance = random.Random(3)
    for day in RECORDED_DAYS[3:]:
        at = day_interval(day).start + timedelta(seconds=chance.uniform(0, 86400))
        reject(bench, chance.choice(SYMBOLS), at)
    bench.compute(REJECT_OUTCOMES, SYMBOLS, FIRST_DAY, LAST_DAY)
    once = rows_of(bench)
    again = bench.compute(REJECT_OUTCOMES, SYMBOLS, FIRST_DAY, LAST_DAY)
    assert {one.changed for one in again} == {0}
    bench.connection.execute(
        "DELETE FROM trading_pipelines.reject_outcomes WHERE extract(day FROM day)::int % 2 = 0"
    )
    for day in reversed(RECORDED_DAYS):
        bench.compute(REJECT_OUTCOMES, SYMBOLS, day)
    assert rows_of(bench) == once
    assert len(once) == len(RECORDED_DAYS) - 3


def test_days_are_followed_for_as_long_as_the_longest_exit() -> None:
    assert outcome_days_after(STRATEGY) == 1
    assert outcome_days_after(SETTINGS) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"take_profit_pct": 1.5}, "take_profit_pct is 1.5; wanted: a fraction, such as 0.03"),
        ({"take_profit_pct": float("nan")}, "take_profit_pct is nan; wanted: a fraction"),
        ({"stop_loss_pct": True}, "stop_loss_pct is True; wanted: a fraction"),
        ({"max_hours": float("inf")}, "max_hours is inf; wanted: hours, less than 720"),
        ({"max_hours": 99999999999999}, "max_hours is 99999999999999; wanted: hours, less than"),
        ({"max_hours": None}, "max_hours is None; wanted: hours, less than 720"),
    ],
)
def test_exits_that_can_not_be_read_stop_nothing_and_say_which(
    given: dict[str, object], said: str
) -> None:
    good = {"take_profit_pct": 0.02, "stop_loss_pct": 0.01, "max_hours": 30}
    settings = STRATEGY.model_copy(update={"regimes": {"SIDEWAYS": {"exit": good | given}}})
    found = exit_rules_of(settings, "UNKNOWN")
    assert isinstance(found, str)
    assert found.startswith(f"regimes.SIDEWAYS.exit.{said}"), "whose the fallback's are"
    assert outcome_days_after(settings) == 1


def test_a_time_limit_goes_by_the_name_that_the_bot_gives_it() -> None:
    section = {"exit": {"take_profit_pct": 0.02, "stop_loss_pct": 0.01, "time_limit_hours": 30}}
    found = exit_rules_of(STRATEGY.model_copy(update={"regimes": {"BULL": section}}), "BULL")
    assert isinstance(found, ExitRules)
    assert found == RULES
    assert exit_rules_of(STRATEGY, "BEAR") == "regimes.BEAR is not in the settings"


@pytest.mark.parametrize(
    ("reason", "family"),
    [
        ("Persistent selling pressure", "other"),
        ("RSI가 높고 거래량이 적다", "volume"),
        ("rsi 71", "momentum"),
        ("Volumes are thin", "volume"),
        ("", "other"),
    ],
)
def test_a_reason_is_of_the_first_family_that_has_a_word_of_it(reason: str, family: str) -> None:
    assert outcomes.reason_family(reason, COSTS.reason_families) == family


def test_an_absurd_price_of_the_bots_leaves_no_day_failed(bench: Bench) -> None:
    at = datetime(2025, 9, 16, 10, tzinfo=UTC)
    reject(bench, "KRW-BTC", at, Decimal("0.0000001"), "SIDEWAYS")
    reject(bench, "KRW-BTC", at, Decimal("NaN"), "SIDEWAYS")
    (found,) = bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], at.date())
    assert found.error is None
    _, unknown = stored(bench).values()
    assert unknown["price"] > 100_000_000, "the last close"


def test_no_row_of_a_deleted_decision_stays(bench: Bench) -> None:
    number = reject(bench, "KRW-BTC", datetime(2025, 9, 16, 10, tzinfo=UTC))
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], date(2025, 9, 16))
    assert list(stored(bench)) == [number]
    bench.connection.execute("DELETE FROM agent_decisions")
    bench.compute(REJECT_OUTCOMES, ["KRW-BTC"], date(2025, 9, 16))
    assert stored(bench) == {}
