"""The bodies the contract asks for, made of the bot's rows, the incomplete ones too."""

import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from tests.alerts.conftest import BTC, ETH, NOON, Bot
from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import (
    AI_DECISION,
    AI_REJECT,
    CHANNELS,
    LONGEST_REASON,
    RISK,
    SOURCES,
    TRADE,
    cut,
)
from trading_pipelines.database.connection import refresh_korean_views
from trading_pipelines.signals.regimes.regime import label_as_of

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
LONG_AGO = NOON - timedelta(days=7)


def bodies(bot: Bot, kind: str, now: datetime = NOON + HOUR) -> list[dict[str, Any]]:
    """Collect what is new of the kind and return the bodies, without their idempotency keys."""
    known = len(bot.ledger())
    ledger.collect(bot.connection, kind, LONG_AGO, now)
    found = bot.ledger("body")[known:]
    for body in found:
        del body["idempotency_key"]
    return found


def store_minutes(bot: Bot, count: int, until: datetime = NOON, symbol: str = BTC) -> None:
    """Store minutes that close one after another, the last of them at `until`."""
    for n in range(count):
        close = 1000 + (n * n * 37) % 101
        bot.connection.execute(
            "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, "
            "low_price, close_price, volume) VALUES (%s, '1m', %s, %s, %s, %s, %s, 1)",
            [symbol, until - (count - n) * MINUTE, *[close] * 4],
        )


def store_label(bot: Bot, label: str, closed_at: datetime, symbol: str = BTC) -> None:
    bot.connection.execute(
        "INSERT INTO trading_pipelines.regime_labels "
        "(symbol, hour, label, candles, empty_hours, hysteresis_label) "
        "VALUES (%s, %s, %s, 200, 0, %s)",
        [symbol, closed_at - HOUR, label, label],
    )


def test_a_rejection_has_the_body_of_the_contract(bot: Bot) -> None:
    store_minutes(bot, 40, NOON + 5 * MINUTE)
    bot.reject(NOON + 5 * MINUTE, "RSI 71, 과매수", regime="BULL", confidence=72)
    (body,) = bodies(bot, AI_REJECT)
    assert 0 < body["rsi"] < 100
    assert round(body["rsi"], 1) == body["rsi"]
    assert body == {
        "symbol": BTC,
        "regime": "BULL",
        "rsi": body["rsi"],
        "reason": "RSI 71, 과매수",
        "timestamp": "2025-09-10T12:05:00+00:00",
    }


def test_a_rejection_that_nothing_else_is_known_of_has_the_defaults(bot: Bot) -> None:
    bot.reject(NOON, None)
    assert bodies(bot, AI_REJECT) == [
        {
            "symbol": BTC,
            "regime": "UNKNOWN",
            "rsi": 0,
            "reason": "",
            "timestamp": "2025-09-10T12:00:00+00:00",
        }
    ]


def test_the_time_is_in_utc_whatever_the_bot_wrote(bot: Bot) -> None:
    bot.reject(datetime.fromisoformat("2025-09-10T21:00:00.123456+09:00"))
    bot.connection.execute("SET timezone = 'Asia/Seoul'")
    (body,) = bodies(bot, AI_REJECT)
    assert body["timestamp"] == "2025-09-10T12:00:00.123456+00:00"


def test_a_row_without_a_time_is_told_as_of_now(bot: Bot) -> None:
    bot.reject(None)
    bot.trade(None)
    bot.violation(None)
    for kind in (AI_REJECT, TRADE, RISK):
        (body,) = bodies(bot, kind, NOON)
        assert body["timestamp"] == "2025-09-10T12:00:00+00:00"
    assert bot.ledger("occurred_at") == [None] * 3


@pytest.mark.parametrize("is_old", [False, True], ids=["newer", "older"])
def test_the_regime_is_the_decisions_own_else_the_label_as_of_its_time(
    bot: Bot, old_bot: Bot, *, is_old: bool
) -> None:
    database = old_bot if is_old else bot
    store_label(database, "BEAR", NOON)
    store_label(database, "BULL", NOON + HOUR)
    store_label(database, "BULL", NOON, ETH)
    database.reject(NOON + 59 * MINUTE)
    database.reject(NOON + HOUR)
    assert [body["regime"] for body in bodies(database, AI_REJECT)] == ["BEAR", "BULL"]
    if not is_old:
        database.reject(NOON + HOUR, regime="SIDEWAYS")
        database.reject(NOON + HOUR, regime="")
        assert [body["regime"] for body in bodies(database, AI_REJECT)] == ["SIDEWAYS", "BULL"]


def test_a_label_is_no_older_than_a_regime_may_be_and_never_of_an_hour_that_is_open(
    bot: Bot,
) -> None:
    store_label(bot, "BEAR", NOON)
    for moment, expected in {
        NOON - SECOND: None,
        NOON: "BEAR",
        NOON + 3 * HOUR - SECOND: "BEAR",
        NOON + 3 * HOUR + SECOND: None,
    }.items():
        assert label_as_of(bot.connection, BTC, moment) == expected, moment
    store_label(bot, "UNKNOWN", NOON + HOUR)
    assert label_as_of(bot.connection, BTC, NOON + HOUR) == "UNKNOWN"
    assert label_as_of(bot.connection, ETH, NOON) is None


def test_the_rsi_is_as_of_the_decision_and_0_where_there_is_none(bot: Bot) -> None:
    store_minutes(bot, 40)
    for symbol in (BTC, ETH):
        bot.reject(NOON - 3 * MINUTE, symbol=symbol)
        bot.reject(NOON, symbol=symbol)
    bot.reject(NOON + 6 * MINUTE)
    by_time: dict[str, list[float]] = {BTC: [], ETH: []}
    for body in bodies(bot, AI_REJECT):
        by_time[body["symbol"]].append(body["rsi"])
    earlier, at_noon, stale = by_time[BTC]
    assert earlier != at_noon
    assert min(earlier, at_noon) > 0
    assert stale == 0
    assert by_time[ETH] == [0, 0]


def test_a_minute_that_the_bot_saw_while_it_was_forming_is_named(bot: Bot) -> None:
    store_minutes(bot, 41, NOON + MINUTE)
    bot.reject(NOON)
    bot.reject(NOON + MINUTE)
    bot.reject(NOON - 8 * HOUR)
    _, forming, closed = bodies(bot, AI_REJECT)
    assert forming["rsi_note"] == "닫힌 1분봉 기준, 봇의 최신 봉 2025-09-10 21:00 KST은 미완성"
    assert "rsi_note" not in closed


@pytest.mark.parametrize("decision", ["CONFIRM", "REJECT"])
def test_a_decision_has_what_the_bots_table_holds_and_invents_nothing(
    bot: Bot, decision: str
) -> None:
    store_minutes(bot, 40)
    values = {"confidence": 72, "model_used": "claude-sonnet", "regime": "BULL"}
    bot.reject(NOON, "가" * 1600, decision=decision, **values)
    (body,) = bodies(bot, AI_DECISION)
    assert 0 < body["rsi"] < 100
    assert body == {
        "symbol": BTC,
        "decision": decision,
        "regime": "BULL",
        "rsi": round(body["rsi"], 1),
        "confidence": 72,
        "model_used": "claude-sonnet",
        "reason": "가" * 1500,
        "timestamp": "2025-09-10T12:00:00+00:00",
    }


@pytest.mark.parametrize("is_old", [False, True], ids=["newer", "older"])
def test_a_decision_that_nothing_else_is_known_of_says_no_more(
    bot: Bot, old_bot: Bot, *, is_old: bool
) -> None:
    database = old_bot if is_old else bot
    database.reject(NOON, None, decision="CONFIRM")
    for other in ("SAFE", "WARNING"):
        database.reject(NOON, decision=other)
    assert bodies(database, AI_DECISION) == [
        {
            "symbol": BTC,
            "decision": "CONFIRM",
            "regime": "UNKNOWN",
            "reason": "",
            "timestamp": "2025-09-10T12:00:00+00:00",
        }
    ]


def test_only_rejections_are_told(bot: Bot) -> None:
    for decision in ("CONFIRM", "REJECT", "SAFE", "WARNING"):
        bot.reject(NOON, decision, decision=decision)
    assert [body["reason"] for body in bodies(bot, AI_REJECT)] == ["REJECT"]


@pytest.mark.parametrize("is_old", [False, True], ids=["newer", "older"])
def test_a_trade_has_the_body_of_the_contract(bot: Bot, old_bot: Bot, *, is_old: bool) -> None:
    database = old_bot if is_old else bot
    database.trade(
        NOON, side="SELL", price="152000000.5", quantity="0.00000001", created_at=NOON - HOUR
    )
    assert bodies(database, TRADE) == [
        {
            "symbol": BTC,
            "side": "SELL",
            "price": 152000000.5,
            "quantity": 0.00000001,
            "strategy": "MeanReversion",
            "executed_at": "2025-09-10T12:00:00+00:00",
            "timestamp": "2025-09-10T12:00:00+00:00",
        }
    ]


def test_a_trade_without_a_strategy_or_a_time_of_its_own_is_told(bot: Bot) -> None:
    bot.trade(NOON, strategy_name=None, executed_at=None, signal_info={"rsi": 71})
    (body,) = bodies(bot, TRADE)
    assert body["strategy"] == "UNKNOWN"
    assert body["executed_at"] == body["timestamp"] == "2025-09-10T12:00:00+00:00"


def test_only_what_was_filled_is_told_and_a_pending_order_once_it_is(bot: Bot) -> None:
    for status in ("PENDING", "CANCELLED"):
        bot.trade(NOON, status=status)
    assert bodies(bot, TRADE) == []
    bot.connection.execute("UPDATE trading_history SET status = 'FILLED' WHERE status = 'PENDING'")
    assert len(bodies(bot, TRADE)) == 1
    assert bodies(bot, TRADE) == []


def test_a_violation_has_the_body_of_the_contract(bot: Bot) -> None:
    bot.violation(NOON)
    bot.violation(NOON + SECOND, description=None)
    bot.violation(NOON + SECOND, description="", related_order_id=bot.trade(NOON))
    first, *rest = bodies(bot, RISK)
    assert first == {
        "type": "MAX_EXPOSURE",
        "level": "WARNING",
        "message": "over 30 %",
        "timestamp": "2025-09-10T12:00:00+00:00",
    }
    assert [body["message"] for body in rest] == ["MAX_EXPOSURE"] * 2


def test_a_cooldown_is_critical_and_says_until_when_in_korean_time(bot: Bot) -> None:
    bot.cooldown(NOON + 4 * HOUR, NOON)
    assert bodies(bot, RISK, NOON) == [
        {
            "type": "COOLDOWN",
            "level": "CRITICAL",
            "message": "연속 손실 3회: 2025-09-11 01:00 KST까지 신규 거래 중지",
            "timestamp": "2025-09-10T12:00:00+00:00",
        }
    ]


def test_a_cooldown_is_told_once_and_the_second_of_a_day_too(bot: Bot) -> None:
    bot.cooldown(None, NOON)
    assert bodies(bot, RISK) == []
    bot.cooldown(NOON + HOUR, NOON)
    assert len(bodies(bot, RISK)) == 1
    bot.cooldown(NOON + HOUR, NOON + MINUTE)
    assert bodies(bot, RISK) == [], "a later trade of the day only moves updated_at"
    bot.cooldown(NOON + 3 * HOUR, NOON + 2 * HOUR)
    (second,) = bodies(bot, RISK)
    assert "2025-09-11 00:00 KST" in second["message"]


@pytest.mark.parametrize("losses", [0, 1])
def test_a_cooldown_whose_losses_the_bot_counts_anew_names_no_number(bot: Bot, losses: int) -> None:
    bot.cooldown(NOON + 4 * HOUR, NOON, losses=losses)
    (body,) = bodies(bot, RISK, NOON)
    assert body["message"] == "쿨다운: 2025-09-11 01:00 KST까지 신규 거래 중지"


def told(bot: Bot) -> list[tuple[str, str, str]]:
    """Collect and return type, message and time of what is new."""
    return [(one["type"], one["message"], one["timestamp"]) for one in bodies(bot, RISK)]


def test_a_halt_its_end_and_the_next_are_each_told_once(bot: Bot) -> None:
    bot.halt(False, NOON - HOUR)
    assert told(bot) == []
    bot.halt(True, NOON)
    halted = "거래 정지: 손익 -1, 거래 4회, 연속 손실 3회"
    assert told(bot) == [("HALT", halted, "2025-09-10T12:00:00+00:00")]
    bot.halt(True, NOON + MINUTE)
    assert told(bot) == [], "a later trade of the day only moves updated_at"
    bot.halt(False, NOON + 2 * MINUTE)
    lifted = "거래 정지 해제: 2025-09-10의 정지가 풀림"
    assert told(bot) == [("HALT_LIFTED", lifted, "2025-09-10T12:02:00+00:00")]
    bot.halt(False, NOON + 3 * MINUTE)
    assert told(bot) == []
    bot.halt(True, NOON + 4 * MINUTE)
    assert [one[0] for one in told(bot)] == ["HALT"]
    bot.halt(False, NOON + 5 * MINUTE)
    assert [one[0] for one in told(bot)] == ["HALT_LIFTED"]
    bot.violation(NOON)
    levels = {body["level"] for body in bot.ledger("body") if body["type"].startswith("HALT")}
    assert levels == {"CRITICAL"}


def test_a_halt_ends_with_the_next_day_that_has_none(bot: Bot) -> None:
    bot.halt(True, NOON)
    assert [one[0] for one in told(bot)] == ["HALT"]
    bot.halt(True, NOON + 13 * HOUR, "2025-09-11")
    assert [one[0] for one in told(bot)] == ["HALT"], "the next day is halted as well"
    bot.halt(False, NOON + 37 * HOUR, "2025-09-12")
    lifted = "거래 정지 해제: 2025-09-11의 정지가 풀림"
    assert told(bot) == [("HALT_LIFTED", lifted, "2025-09-12T01:00:00+00:00")]
    bot.halt(False, NOON + 38 * HOUR, "2025-09-12")
    assert told(bot) == []


def test_an_end_whose_row_has_no_new_time_is_told_as_of_when_it_was_seen(bot: Bot) -> None:
    bot.halt(True, NOON)
    assert len(told(bot)) == 1
    before = datetime.now(UTC)
    bot.halt(False, NOON)
    ((_, _, at),) = told(bot)
    assert before - MINUTE < datetime.fromisoformat(at) < datetime.now(UTC) + MINUTE


def test_halts_of_long_ago_are_not_told(bot: Bot) -> None:
    bot.halt(True, NOON - timedelta(days=30), "2025-08-11")
    bot.halt(False, NOON - timedelta(days=29), "2025-08-12")
    bot.halt(False, NOON, "2025-09-10")
    assert told(bot) == []
    assert told(bot) == []


def test_the_moment_of_a_risk_state_is_that_at_which_it_was_first_seen(bot: Bot) -> None:
    first = NOON - 2 * MINUTE
    bot.cooldown(NOON + HOUR, first, is_halted=True)
    ledger.observe(bot.connection, RISK)
    bot.cooldown(NOON + HOUR, NOON, losses=0, is_halted=True)
    refresh_korean_views(bot.connection)
    log = bot.connection.execute(
        "SELECT type, occurred_at, message FROM trading_pipelines.risk_log_kst ORDER BY type"
    ).fetchall()
    found = bodies(bot, RISK)
    assert [(one["type"], datetime.fromisoformat(one["timestamp"]), one["message"])
            for one in sorted(found, key=lambda one: one["type"])] == log  # fmt: skip
    assert log == [
        ("COOLDOWN", first, "연속 손실 3회: 2025-09-10 22:00 KST까지 신규 거래 중지"),
        ("HALT", first, "거래 정지: 손익 -1, 거래 3회, 연속 손실 3회"),
    ]


def test_every_source_has_a_channel_of_n8ns_and_a_key_of_its_own() -> None:
    assert {source.channel for source in SOURCES} <= set(CHANNELS)
    assert len({(source.table, source.channel) for source in SOURCES}) == len(SOURCES)


FAMILY = "👨‍👩‍👧‍👦"
FLAG = "🇰🇷"
JAMO = unicodedata.normalize("NFD", "각")
COMBINED = "é̈"
LETTERS = [FAMILY, FLAG, JAMO, COMBINED, "👍🏽", "한", "a", " ", "\r\n", "क्षि", "🇰", "\u200d"]


@pytest.mark.parametrize("letter", [FAMILY, FLAG, JAMO, COMBINED, "👍🏽", "\r\n"])
def test_no_character_is_split(letter: str) -> None:
    room = LONGEST_REASON // len(letter)
    text = letter * (room + 1)
    assert cut(text, LONGEST_REASON) == letter * room
    for missing in range(1, len(letter)):
        before = "x" * (LONGEST_REASON - len(letter) + missing)
        assert cut(before + letter + "y", LONGEST_REASON) == before
    fitting = "x" * (LONGEST_REASON - len(letter)) + letter
    assert cut(fitting + "y", LONGEST_REASON) == fitting
    assert cut(fitting, LONGEST_REASON) == fitting


def test_what_is_too_long_for_one_character_is_split_rather_than_left_out() -> None:
    assert cut("Z" + "\u0301" * 9000, LONGEST_REASON) == "Z" + "\u0301" * (LONGEST_REASON - 1)


@given(
    st.lists(st.sampled_from(LETTERS) | st.characters(), max_size=60).map("".join),
    st.integers(min_value=1, max_value=80),
)
@example(FLAG * 3, 3)
def test_what_is_cut_is_the_beginning_and_ends_where_a_character_does(
    text: str, longest: int
) -> None:
    found = cut(text, longest)
    assert text.startswith(found)
    assert len(found) <= longest
    ends = [0, *(cluster.end() for cluster in regex.finditer(r"\X", text))]
    fitting = max(end for end in ends if end <= longest)
    assert len(found) == (fitting or min(longest, len(text))), "and is as long as it can be"


def test_a_reason_is_cut_to_500_characters(bot: Bot) -> None:
    bot.reject(NOON, FLAG * 400)
    bot.reject(NOON, "가" * LONGEST_REASON)
    reasons = [body["reason"] for body in bodies(bot, AI_REJECT)]
    assert sorted(reasons) == sorted([FLAG * 250, "가" * 500])
