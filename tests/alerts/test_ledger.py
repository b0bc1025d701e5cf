"""The ledger loses nothing and says everything once, whatever the bot or another process does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.alerts.conftest import BTC, NOON, Bot
from trading_pipelines.alerts import attempts, kinds, ledger, retention
from trading_pipelines.alerts.attempts import NextState
from trading_pipelines.alerts.failures import Failure, missed_alerts
from trading_pipelines.alerts.incidents import IncidentTally, reconcile
from trading_pipelines.alerts.kinds import (
    AI_DECISION,
    AI_REJECT,
    DAILY_REPORT,
    KINDS,
    RISK,
    TRADE,
)
from trading_pipelines.alerts.ledger import Delivery, DeliveryState
from trading_pipelines.alerts.periodic import due_reports, send_report
from trading_pipelines.alerts.retention import purge
from trading_pipelines.alerts.webhooks import DISCORD, N8N, PostOutcome, WebhookAnswer
from trading_pipelines.settings.strategy import AlertSettings, StrategySettings

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
LONG_AGO = NOON - timedelta(days=7)
# The ledger's own defaults are of the database's clock.
LATER = datetime.now(UTC) + HOUR
REFUSED = WebhookAnswer(PostOutcome.REFUSED, "refused", 502)
AWAY = WebhookAnswer(PostOutcome.NO_RESPONSE, "no answer within 15 s")
UNREACHABLE = WebhookAnswer(PostOutcome.CONNECT_FAILED, "can't be reached")
ACCEPTED = WebhookAnswer(PostOutcome.DELIVERED, "delivered", 200, message_id="1130")


def collect(bot: Bot, kind: str = AI_REJECT, since: datetime = LONG_AGO) -> int:
    return ledger.collect(bot.connection, kind, since, NOON)


def only(bot: Bot, kind: str = AI_REJECT) -> Delivery:
    (delivery,) = ledger.due(bot.connection, kind, LATER)
    return delivery


def attempt(
    bot: Bot,
    delivery: Delivery,
    answer: WebhookAnswer,
    state: DeliveryState = DeliveryState.RETRYING,
    *,
    via: str = N8N,
    now: datetime = LATER,
    next_at: datetime = LATER + HOUR,
) -> None:
    """Try once, as a sender would, that far apart that no limit of Discord's is in the way."""
    reserved = attempts.reserve(bot.connection, delivery, via, 30, LATER + HOUR, now)
    assert reserved is not None
    attempts.record(bot.connection, delivery, reserved, answer, NextState(state, next_at, via), now)


# What is collected.


@pytest.mark.parametrize("kind", [AI_REJECT, TRADE, RISK])
def test_what_commits_late_and_out_of_order_is_not_lost(bot: Bot, bot_url: str, kind: str) -> None:
    insert: Callable[[Bot], Any] = {
        AI_REJECT: lambda one: one.reject(NOON),
        TRADE: lambda one: one.trade(NOON),
        RISK: lambda one: one.violation(NOON),
    }[kind]
    with psycopg.connect(bot_url) as slow, psycopg.connect(bot_url) as fast:
        first = insert(Bot(slow))
        second = insert(Bot(fast))
        assert collect(bot, kind) == 0, "neither has committed"
        fast.commit()
        assert collect(bot, kind) == 1
        assert bot.ledger("source_id") == [second]
        slow.commit()
        assert collect(bot, kind) == 1
    assert bot.ledger("source_id") == [second, first]


def test_collecting_again_enters_nothing_and_changes_nothing(
    bot: Bot, other: psycopg.Connection
) -> None:
    bot.reject(NOON)
    bot.reject(None)
    bot.cooldown(NOON + HOUR, NOON)
    bot.violation(NOON)
    assert collect(bot) == 2
    assert collect(bot, RISK) == 2
    before = bot.ledger("*")
    assert ledger.collect(other, AI_REJECT, LONG_AGO, NOON + HOUR) == 0
    assert collect(bot, RISK) == 0
    assert bot.ledger("*") == before


def test_two_that_collect_at_once_enter_each_row_once(bot: Bot, other: psycopg.Connection) -> None:
    for _ in range(3):
        bot.reject(NOON)
    with other.transaction():
        assert ledger.collect(other, AI_REJECT, LONG_AGO, NOON) == 3
        assert bot.ledger() == []
        bot.connection.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            collect(bot)
    assert collect(bot) == 0
    assert len(bot.ledger()) == 3


def test_more_rows_than_are_entered_at_once_are_entered_in_turn(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "COLLECTED_AT_ONCE", 2)
    ids = [bot.reject(NOON + n * SECOND) for n in (2, 0, 1)]
    assert [collect(bot) for _ in range(3)] == [2, 1, 0]
    assert bot.ledger("source_id") == [ids[1], ids[2], ids[0]], "the oldest first"


def test_an_id_that_two_tables_or_two_channels_share_is_no_double(bot: Bot) -> None:
    bot.reject(NOON)
    bot.violation(NOON)
    collect(bot)
    collect(bot, RISK)
    assert bot.ledger("source, source_id, channel") == [
        ("agent_decisions", "1", "ai-reject"),
        ("risk_audit", "1", "risk"),
    ]
    assert bot.ledger("body ->> 'idempotency_key'") == [
        "agent_decisions:1:ai-reject",
        "risk_audit:1:risk",
    ]


def test_a_row_that_no_message_can_be_made_of_is_dead_and_the_next_goes_on(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = kinds.sources_of(AI_REJECT)

    def body(connection: psycopg.Connection, row: kinds.BotRow, at: datetime) -> dict[str, Any]:
        if row["reasoning"] == "poison":
            connection.execute("SELECT 1 / 0")
        if row["reasoning"] == "odd":
            return {"reason": row["not there"]}
        return source.body(connection, row, at)

    monkeypatch.setattr(kinds, "SOURCES", [replace(source, body=body)])
    for reason in ("poison", "well", "odd", "well"):
        bot.reject(NOON, reason)
    assert collect(bot) == 4
    assert bot.ledger("state") == ["dead", "pending", "dead", "pending"]
    problems = bot.ledger("last_error", "state = 'dead'")
    assert "division by zero" in problems[0]
    assert "KeyError: 'not there'" in problems[1]
    assert collect(bot) == 0


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "12000-01-01Z"])
def test_a_time_that_python_can_not_hold_stops_nothing(bot: Bot, moment: str) -> None:
    bot.reject(NOON, created_at=moment)
    bot.reject(NOON)
    bot.violation(NOON)
    bot.insert("risk_audit", violation_type="ODD", timestamp=moment)
    bot.connection.execute(
        "INSERT INTO daily_risk_state VALUES ('2025-09-10', 0, 0, 0, %s, false, now())", [moment]
    )
    collect(bot)
    collect(bot, RISK)
    waiting = bot.ledger("source", "state = 'pending' AND occurred_at IS NOT NULL")
    assert set(waiting) >= {"agent_decisions", "risk_audit"}
    assert collect(bot) == 0
    assert collect(bot, RISK) == 0


def test_a_number_that_json_can_not_hold_stops_nothing(bot: Bot) -> None:
    for n in range(20):
        bot.connection.execute(
            "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, "
            "low_price, close_price, volume) VALUES (%s, '1m', %s, %s, %s, %s, %s, 1)",
            [BTC, NOON - (n + 1) * MINUTE, *["NaN" if n == 3 else n] * 4],
        )
    bot.reject(NOON)
    bot.reject(NOON, symbol="KRW-ETH")
    bot.trade(NOON, price="NaN")
    bot.trade(NOON)
    assert collect(bot) == 2
    assert collect(bot, TRADE) == 2
    assert bot.ledger("source", "state = 'pending'").count("agent_decisions") >= 1
    assert bot.ledger("source", "state = 'pending'").count("trading_history") >= 1


# One sender a kind.


def test_a_kind_has_one_sender_at_a_time(bot: Bot, other: psycopg.Connection) -> None:
    with ledger.sender_lock(bot.connection, AI_REJECT) as is_ours:
        assert is_ours
        with ledger.sender_lock(other, AI_REJECT) as is_theirs:
            assert not is_theirs
        with ledger.sender_lock(other, AI_REJECT) as is_theirs:
            assert not is_theirs, "the one that came to nothing freed nothing"
        with ledger.sender_lock(other, TRADE) as is_theirs:
            assert is_theirs, "another kind has its own"
    with ledger.sender_lock(other, AI_REJECT) as is_theirs:
        assert is_theirs


def test_a_sender_that_fails_frees_its_kind(bot: Bot, other: psycopg.Connection) -> None:
    with pytest.raises(KeyError), ledger.sender_lock(bot.connection, AI_REJECT):
        raise KeyError
    with ledger.sender_lock(other, AI_REJECT) as is_theirs:
        assert is_theirs


def test_a_sender_whose_connection_is_killed_frees_its_kind(
    bot_url: str, other: psycopg.Connection
) -> None:
    with psycopg.connect(bot_url, autocommit=True) as doomed:
        pid = doomed.info.backend_pid
        with ledger.sender_lock(doomed, AI_REJECT) as is_ours:
            assert is_ours
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            with ledger.sender_lock(other, AI_REJECT) as is_theirs:
                assert is_theirs, "while the first still believes that it is the sender"
            with pytest.raises(psycopg.OperationalError):
                doomed.execute("SELECT 1")
        assert doomed.closed


# Switched on and off.


def test_the_first_start_sends_nothing_older(bot: Bot) -> None:
    bot.reject(NOON - SECOND, "old")
    since = ledger.enable(bot.connection, AI_REJECT, None, NOON)
    assert since == NOON
    bot.reject(NOON, "new")
    assert collect(bot, since=since) == 1
    assert ledger.enable(bot.connection, AI_REJECT, None, NOON + HOUR) == NOON
    assert bot.ledger("body ->> 'reason', state") == [("new", "pending")]


def test_an_operator_may_say_since_when_the_first_time(bot: Bot) -> None:
    since = ledger.enable(bot.connection, AI_REJECT, NOON - HOUR, NOON)
    assert since == NOON - HOUR
    bot.reject(NOON - HOUR)
    bot.reject(NOON - HOUR - SECOND)
    assert collect(bot, since=since) == 1
    again = ledger.enable(bot.connection, AI_REJECT, NOON - 5 * HOUR, NOON)
    assert again == since, "what comes later changes nothing"


def test_each_kind_is_switched_by_itself(bot: Bot) -> None:
    ledger.enable(bot.connection, AI_REJECT, None, NOON)
    assert ledger.enable(bot.connection, TRADE, None, NOON + HOUR) == NOON + HOUR
    ledger.disable(bot.connection, TRADE)
    assert ledger.enable(bot.connection, AI_REJECT, None, NOON + 2 * HOUR) == NOON


def test_switching_off_skips_what_waits_and_on_again_sends_nothing_older(bot: Bot) -> None:
    ledger.enable(bot.connection, AI_REJECT, NOON - HOUR, NOON)
    for _ in range(3):
        bot.reject(NOON)
    bot.violation(NOON)
    collect(bot)
    collect(bot, RISK)
    delivered, retried, _ = ledger.due(bot.connection, AI_REJECT, LATER)
    attempt(bot, delivered, ACCEPTED, DeliveryState.DELIVERED)
    attempt(bot, retried, REFUSED)
    assert ledger.disable(bot.connection, AI_REJECT) == 2
    assert bot.ledger("state") == ["delivered", "skipped", "skipped", "pending"]
    assert ledger.disable(bot.connection, AI_REJECT) == 0

    bot.reject(NOON + MINUTE, "told by the bot meanwhile")
    since = ledger.enable(bot.connection, AI_REJECT, NOON - HOUR, NOON + HOUR)
    assert since == NOON + HOUR, "not what the settings say for the first start"
    bot.reject(NOON + HOUR, "new")
    assert collect(bot, since=since) == 1
    (waiting,) = ledger.due(bot.connection, AI_REJECT, LATER)
    assert waiting.body["reason"] == "new"


def test_a_kind_that_never_was_on_can_be_switched_off(bot: Bot) -> None:
    assert ledger.disable(bot.connection, AI_REJECT) == 0
    assert ledger.enable(bot.connection, AI_REJECT, NOON, LATER) == LATER, "the bot sent those"


def test_a_cooldown_until_further_notice_does_not_block_the_others(bot: Bot) -> None:
    ledger.enable(bot.connection, RISK, NOON, NOON)
    bot.connection.execute(
        "INSERT INTO daily_risk_state VALUES ('2026-11-24', 0, 3, 3, '9999-12-31 23:59:59Z', "
        "false, %s)",
        [NOON + MINUTE],
    )
    bot.violation(NOON + MINUTE)
    assert ledger.collect(bot.connection, RISK, NOON, LATER) == 2
    assert sorted(bot.ledger("source, state")) == [
        ("daily_risk_state", "dead"),
        ("risk_audit", "pending"),
    ]


def test_an_answer_to_what_was_replayed_meanwhile_does_not_close_it(bot: Bot) -> None:
    (delivery,) = waiting_rows(bot, 1)
    number = attempts.reserve(bot.connection, delivery, N8N, 30, LATER, LATER)
    assert number is not None
    ledger.replay(bot.connection, [delivery.id])
    verdict = NextState(DeliveryState.DELIVERED, LATER, N8N)
    attempts.record(bot.connection, delivery, number, ACCEPTED, verdict, LATER)
    assert bot.ledger("state, attempts") == [("pending", 0)]


def test_what_a_sender_still_holds_is_not_sent_once_it_was_switched_off_or_replayed(
    bot: Bot,
) -> None:
    off, replayed = waiting_rows(bot, 2)
    attempt(bot, replayed, AWAY)
    replayed = replace(replayed, attempts=1)
    assert ledger.replay(bot.connection, [replayed.id]) == [replayed.id]
    assert attempts.reserve(bot.connection, replayed, N8N, 30, LATER, LATER) is None
    assert ledger.disable(bot.connection, AI_REJECT) == 2
    assert attempts.reserve(bot.connection, off, N8N, 30, LATER, LATER) is None
    assert bot.ledger("state, attempts") == [("skipped", 0)] * 2
    assert bot.attempts() == [(1, "n8n", "away")]


@pytest.mark.parametrize("kind", [AI_REJECT, TRADE, RISK])
def test_of_rows_without_a_time_the_old_are_skipped_and_the_new_sent(bot: Bot, kind: str) -> None:
    insert: Callable[[None], str] = {
        AI_REJECT: bot.reject,
        TRADE: bot.trade,
        RISK: bot.violation,
    }[kind]
    old = insert(None)
    since = ledger.enable(bot.connection, kind, NOON - HOUR, NOON)
    new = insert(None)
    assert ledger.collect(bot.connection, kind, since, NOON) == 1
    assert bot.ledger() == [(old, "skipped"), (new, "pending")]


@pytest.mark.parametrize("updated_at", [NOON - MINUTE, None])
def test_a_cooldown_in_force_when_the_kind_comes_on_is_not_sent_and_a_later_one_is(
    bot: Bot, updated_at: datetime | None
) -> None:
    bot.cooldown(NOON + HOUR, updated_at)
    since = ledger.enable(bot.connection, RISK, None, NOON)
    assert ledger.collect(bot.connection, RISK, since, NOON) == 0
    bot.cooldown(NOON + HOUR, NOON + MINUTE)
    assert ledger.collect(bot.connection, RISK, since, NOON) == 0, "a trade moved updated_at"
    bot.cooldown(NOON + 5 * HOUR, NOON + 2 * HOUR)
    assert ledger.collect(bot.connection, RISK, since, NOON + 2 * HOUR) == 1
    assert bot.ledger("state") == ["skipped", "pending"]
    assert "02:00 KST" in only(bot, RISK).body["message"]


def test_a_cooldown_that_began_while_the_kind_was_off_is_not_sent(bot: Bot) -> None:
    ledger.enable(bot.connection, RISK, None, NOON - HOUR)
    ledger.disable(bot.connection, RISK)
    bot.cooldown(NOON + HOUR, NOON - MINUTE)
    since = ledger.enable(bot.connection, RISK, None, NOON)
    bot.cooldown(NOON + HOUR, NOON + MINUTE)
    assert ledger.collect(bot.connection, RISK, since, NOON) == 0


def decide_both(bot: Bot, at: datetime | None) -> None:
    bot.reject(at)
    bot.reject(at, decision="CONFIRM")


def collect_decisions(bot: Bot) -> list[tuple[str, str]]:
    """Collect as the sensors of both kinds do, the newer first; return decisions by channel."""
    for kind in (AI_DECISION, AI_REJECT):
        if since := ledger.enabled_since(bot.connection, kind):
            collect(bot, kind, since)
    return [
        (body.get("decision", "REJECT"), channel)
        for channel, body in bot.ledger("channel, body", "state = 'pending'")
    ]


@pytest.mark.parametrize(
    ("kinds_on", "told"),
    [
        ([], []),
        ([AI_REJECT], [("REJECT", "ai-reject")]),
        ([AI_DECISION], [("REJECT", "ai-decision"), ("CONFIRM", "ai-decision")]),
        ([AI_DECISION, AI_REJECT], [("CONFIRM", "ai-decision"), ("REJECT", "ai-reject")]),
    ],
    ids=["none", "ai_reject", "ai_decision", "both"],
)
def test_either_kind_of_decision_or_both_or_none(
    bot: Bot, kinds_on: list[str], told: list[tuple[str, str]]
) -> None:
    for kind in kinds_on:
        ledger.enable(bot.connection, kind, None, NOON - HOUR)
    decide_both(bot, NOON)
    assert collect_decisions(bot) == told
    assert collect_decisions(bot) == told, "and nothing again"


@pytest.mark.parametrize("at", [NOON, None])
@pytest.mark.parametrize("kinds", [(AI_REJECT, AI_DECISION), (AI_DECISION, AI_REJECT)])
def test_what_one_kind_has_told_the_other_never_tells_again(
    bot: Bot, kinds: tuple[str, str], at: datetime | None
) -> None:
    first, second = kinds
    ledger.enable(bot.connection, first, NOON - HOUR, NOON)
    bot.reject(at)
    told = collect_decisions(bot)
    assert len(told) == 1
    # `alerts.since` may name a moment before all that was told.
    ledger.enable(bot.connection, second, NOON - 5 * HOUR, NOON + HOUR)
    assert collect_decisions(bot) == told
    ledger.disable(bot.connection, first)
    collect_decisions(bot)
    assert len(bot.ledger()) == 1
    done(bot)
    now = purge_later(bot)
    bot.connection.execute("UPDATE trading_pipelines.alert_kinds SET since = %s", [LONG_AGO])
    assert ledger.collect(bot.connection, second, now - timedelta(days=30), now) == 0


def test_two_kinds_that_find_one_rejection_at_once_tell_it_once(
    bot: Bot, other: psycopg.Connection
) -> None:
    ledger.enable(bot.connection, AI_DECISION, None, NOON - HOUR)
    bot.reject(NOON)
    with other.transaction():
        assert ledger.collect(other, AI_DECISION, LONG_AGO, NOON) == 1
        bot.connection.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            collect(bot, AI_REJECT)
    assert collect(bot, AI_REJECT) == 0
    assert bot.ledger("channel") == ["ai-decision"]


def test_a_halt_in_force_when_the_kind_comes_on_is_not_sent_and_its_end_is(bot: Bot) -> None:
    bot.halt(True, NOON - MINUTE)
    since = ledger.enable(bot.connection, RISK, None, NOON)
    bot.halt(True, NOON + MINUTE)
    assert ledger.collect(bot.connection, RISK, since, NOON) == 0, "a trade moved updated_at"
    bot.halt(False, NOON + 2 * MINUTE)
    assert ledger.collect(bot.connection, RISK, since, NOON) == 1
    assert only(bot, RISK).body["type"] == "HALT_LIFTED"


# Odd text.


@pytest.mark.parametrize("odd", ["\0", "\ud800", "a\0b\udfff한"])
def test_text_that_the_database_can_not_hold_is_stored_without_it(bot: Bot, odd: str) -> None:
    body = {"message": odd, "lines": [odd], "timestamp": "t"}
    assert ledger.enter(bot.connection, RISK, "pipeline", "1", "risk", body, occurred_at=None)
    delivery = only(bot, RISK)
    attempt(bot, delivery, replace(REFUSED, text=f"n8n said {odd}"))
    assert "n8n said" in bot.ledger("last_error")[0]
    answer = replace(ACCEPTED, text=odd, message_id=f"1{odd}")
    (again,) = ledger.due(bot.connection, RISK, LATER + HOUR)
    attempt(bot, again, answer, DeliveryState.DELIVERED)
    assert bot.ledger("state") == ["delivered"]
    assert ledger.replay(bot.connection, [delivery.id], body) == [delivery.id]
    assert only(bot, RISK).body.keys() == {*body, "idempotency_key"}


# Attempts.


def test_an_attempt_is_on_record_before_it_is_made_and_after(bot: Bot) -> None:
    bot.reject(NOON)
    collect(bot)
    delivery = only(bot)
    reserved = attempts.reserve(bot.connection, delivery, N8N, 30, LATER + MINUTE, LATER)
    assert reserved is not None
    assert bot.ledger("state, attempts, next_at") == [("retrying", 1, LATER + MINUTE)]
    assert "died" in bot.ledger("last_error")[0]
    assert bot.attempts() == [(1, "n8n", None)]
    assert ledger.due(bot.connection, AI_REJECT, LATER + 59 * SECOND) == []
    assert len(ledger.due(bot.connection, AI_REJECT, LATER + MINUTE)) == 1

    verdict = NextState(DeliveryState.RETRYING, LATER + HOUR, DISCORD)
    attempts.record(bot.connection, delivery, reserved, AWAY, verdict, LATER)
    assert bot.attempts("number, via, outcome, status") == [(1, "n8n", "away", None)]
    assert bot.ledger("state, attempts, next_at, via, is_away, last_error") == [
        ("retrying", 1, LATER + HOUR, "discord", True, AWAY.text)
    ]

    again = ledger.due(bot.connection, AI_REJECT, LATER + HOUR)[0]
    attempt(bot, again, ACCEPTED, DeliveryState.DELIVERED, via=DISCORD, now=LATER + HOUR)
    assert bot.attempts()[1:] == [(2, "discord", "delivered")]
    assert bot.ledger("state, is_away, delivered_at, message_id, last_error") == [
        ("delivered", False, LATER + HOUR, "1130", None)
    ]
    assert ledger.due(bot.connection, AI_REJECT, LATER + 9 * HOUR) == []


def waiting_rows(bot: Bot, count: int) -> list[Delivery]:
    for _ in range(count):
        bot.reject(NOON)
    collect(bot)
    return ledger.due(bot.connection, AI_REJECT, LATER)


def taken(
    connections: Sequence[psycopg.Connection],
    deliveries: Sequence[Delivery],
    per_minute: int,
    moments: Sequence[float],
) -> list[float]:
    """Return at which of the moments (seconds) an attempt was allowed, the connections in turn."""
    allowed = []
    for n, (delivery, moment) in enumerate(zip(deliveries, moments, strict=True)):
        now = LATER + moment * SECOND
        connection = connections[n % len(connections)]
        if attempts.reserve(connection, delivery, N8N, per_minute, now + HOUR, now) is not None:
            allowed.append(moment)
    return allowed


def test_five_posts_in_two_seconds_over_all_processes(bot: Bot, other: psycopg.Connection) -> None:
    moments = [n / 10 for n in range(45)]
    rows = waiting_rows(bot, len(moments))
    allowed = taken([bot.connection, other], rows, 30, moments)
    assert allowed == [0.0, 0.1, 0.2, 0.3, 0.4, 2.0, 2.1, 2.2, 2.3, 2.4, 4.0, 4.1, 4.2, 4.3, 4.4]


@pytest.mark.parametrize("per_minute", [1, 4, 30])
def test_so_many_posts_a_minute_over_all_processes(
    bot: Bot, other: psycopg.Connection, per_minute: int
) -> None:
    moments = [0.5 * n for n in range(125)]
    rows = waiting_rows(bot, len(moments))
    allowed = taken([bot.connection, other], rows, per_minute, moments)
    first = allowed[:per_minute]
    assert len(first) == per_minute
    assert first[-1] < 60, "no slower than it has to be"
    for moment in allowed:
        assert sum(moment - 60 < earlier <= moment for earlier in allowed) <= per_minute
    assert allowed[per_minute] == 60


def test_other_kinds_count_and_what_reached_nobody_does_not(bot: Bot) -> None:
    rows = waiting_rows(bot, 5)
    bot.violation(NOON)
    collect(bot, RISK)
    risk = only(bot, RISK)
    for delivery in rows[:4]:
        attempt(bot, delivery, REFUSED)
    reserved = attempts.reserve(bot.connection, rows[4], N8N, 30, LATER, LATER)
    assert reserved is not None
    assert attempts.reserve(bot.connection, risk, N8N, 30, LATER, LATER) is None
    assert bot.ledger("state, attempts", "kind = 'risk'") == [("pending", 0)]
    verdict = NextState(DeliveryState.RETRYING, LATER, N8N)
    attempts.record(bot.connection, rows[4], reserved, UNREACHABLE, verdict, LATER)
    assert attempts.reserve(bot.connection, risk, N8N, 30, LATER, LATER) is not None


def test_two_processes_that_reserve_at_once_wait_for_each_other(
    bot: Bot, other: psycopg.Connection
) -> None:
    first, second = waiting_rows(bot, 2)
    bot.connection.execute("SET lock_timeout = '100ms'")
    with other.transaction():
        assert attempts.reserve(other, first, N8N, 30, LATER, LATER) is not None
        with pytest.raises(psycopg.errors.LockNotAvailable):
            attempts.reserve(bot.connection, second, N8N, 30, LATER, LATER)
    assert attempts.reserve(bot.connection, second, N8N, 30, LATER, LATER) is not None


# Digests.


def test_a_digest_closes_what_it_tells(bot: Bot) -> None:
    rows = waiting_rows(bot, 3)
    attempt(bot, rows[0], AWAY)
    waiting = ledger.waiting(bot.connection, AI_REJECT)
    assert len(waiting) == 3, "what is not due yet too"
    body = {"message": "3 alerts", "timestamp": "t"}
    ledger.enter_digest(bot.connection, AI_REJECT, waiting, body, LATER)
    digest = only(bot)
    assert (digest.source, digest.channel, digest.state) == ("digest", "risk", "pending")
    assert bot.ledger("state, digest_id")[:3] == [("digested", digest.id)] * 3
    assert ledger.waiting(bot.connection, AI_REJECT) == [], "a digest is in no digest"
    assert collect(bot) == 0


def test_a_digest_that_can_not_be_entered_closes_nothing(bot: Bot) -> None:
    waiting = waiting_rows(bot, 3)
    before = bot.ledger("*")
    bot.connection.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'full'; END $$"
    )
    for event in ("INSERT", "UPDATE"):
        bot.connection.execute(
            f"CREATE TRIGGER fail BEFORE {event} ON trading_pipelines.alert_deliveries "
            "EXECUTE FUNCTION fail()"
        )
        with pytest.raises(psycopg.errors.RaiseException):
            ledger.enter_digest(bot.connection, AI_REJECT, waiting, {"timestamp": "t"}, LATER)
        bot.connection.execute("DROP TRIGGER fail ON trading_pipelines.alert_deliveries")
        assert bot.ledger("*") == before, event
    bot.connection.execute("DROP FUNCTION fail")


# n8n away, and back.


def test_since_when_n8n_is_away(bot: Bot) -> None:
    rows = iter(waiting_rows(bot, 8))

    def after(seconds: int, answer: WebhookAnswer, via: str = N8N) -> datetime | None:
        now = LATER + seconds * SECOND
        attempt(bot, next(rows), answer, via=via, now=now)
        assert attempts.without_response(bot.connection, "trade", now) == (None, None), (
            "its own channel's"
        )
        first, last = attempts.without_response(bot.connection, "ai-reject", now)
        assert last is None or last == now or answer in {ACCEPTED, REFUSED} or via == DISCORD
        return first

    assert attempts.without_response(bot.connection, "ai-reject", LATER) == (None, None)
    assert after(0, ACCEPTED) is None
    assert after(10, AWAY) == LATER + 10 * SECOND
    assert after(20, UNREACHABLE) == LATER + 10 * SECOND
    assert after(30, ACCEPTED, DISCORD) == LATER + 10 * SECOND, "Discord says nothing of n8n"
    assert after(40, REFUSED) is None, "our workflow answers, so n8n is there"
    assert after(50, UNREACHABLE, DISCORD) is None
    assert after(60, UNREACHABLE) == LATER + 60 * SECOND


def test_what_waits_for_n8n_is_brought_forward_and_nothing_else(bot: Bot) -> None:
    rows = waiting_rows(bot, 6)
    answers = {
        "unreachable": (UNREACHABLE, N8N),
        "away": (AWAY, N8N),
        "refused": (REFUSED, N8N),
        "discord": (UNREACHABLE, DISCORD),
    }
    for n, (delivery, (answer, via)) in enumerate(zip(rows, answers.values(), strict=False)):
        attempt(bot, delivery, answer, via=via, now=LATER + 10 * n * SECOND)
    attempt(bot, rows[4], AWAY, DeliveryState.DEAD, now=LATER + MINUTE)
    assert attempts.unreached(bot.connection, AI_REJECT) == [rows[0].id]
    assert attempts.unreached(bot.connection, RISK) == []

    attempts.bring_forward(bot.connection, LATER, ids=[rows[0].id])
    assert [one.id for one in ledger.due(bot.connection, AI_REJECT, LATER)] == [
        rows[5].id,
        rows[0].id,
    ]
    attempts.bring_forward(bot.connection, LATER, channel="ai-reject")
    assert [one.id for one in ledger.due(bot.connection, AI_REJECT, LATER) if one.is_away] == [
        rows[0].id
    ], "the other was tried just now"
    attempts.bring_forward(bot.connection, LATER + MINUTE, channel="ai-reject")
    assert rows[1].id not in {
        one.id for one in ledger.due(bot.connection, AI_REJECT, LATER + MINUTE)
    }, "not before a tenth of its wait of an hour"
    waited = LATER + 8 * MINUTE
    attempts.bring_forward(bot.connection, waited, channel="trade")
    assert rows[1].id not in {one.id for one in ledger.due(bot.connection, AI_REJECT, waited)}, (
        "another channel's success says nothing of this one"
    )
    attempts.bring_forward(bot.connection, waited, channel="ai-reject")
    assert {one.id for one in ledger.due(bot.connection, AI_REJECT, waited)} == {
        rows[5].id,
        rows[0].id,
        rows[1].id,
    }
    again = next(one for one in ledger.due(bot.connection, AI_REJECT, waited) if one.attempts)
    assert again.id == rows[0].id
    attempt(bot, again, AWAY, now=waited + MINUTE)
    assert attempts.unreached(bot.connection, AI_REJECT) == [], "the last try counts"


# Replays, lists and counts.


def test_a_dead_alert_is_replayed_as_a_new_message(bot: Bot) -> None:
    bot.reject(NOON)
    collect(bot)
    delivery = only(bot)
    attempt(bot, delivery, UNREACHABLE, DeliveryState.DEAD, via=DISCORD)
    assert ledger.due(bot.connection, AI_REJECT, LATER + 9 * HOUR) == []
    assert ledger.replay(bot.connection, [delivery.id]) == [delivery.id]
    again = only(bot)
    assert (again.id, again.state, again.attempts, again.via) == (delivery.id, "pending", 0, "n8n")
    assert not again.is_away
    key = again.body.pop("idempotency_key")
    assert key.startswith(f"{delivery.body.pop('idempotency_key')}:again:")
    assert again.body == delivery.body
    assert collect(bot) == 0


def test_a_delivered_alert_is_replayed_as_a_new_message_each_time(bot: Bot) -> None:
    bot.reject(NOON)
    collect(bot)
    keys = set()
    for _ in range(3):
        delivery = only(bot)
        keys.add(delivery.body["idempotency_key"])
        attempt(bot, delivery, ACCEPTED, DeliveryState.DELIVERED)
        assert ledger.replay(bot.connection, [delivery.id]) == [delivery.id]
        assert bot.ledger("delivered_at, message_id") == [(None, None)]
    assert len(keys) == 3, keys


def test_an_alert_is_replayed_with_a_new_body(bot: Bot) -> None:
    bot.reject(NOON, "old")
    collect(bot)
    delivery = only(bot)
    new = {"reason": "new", "timestamp": "t"}
    assert ledger.replay(bot.connection, [delivery.id], new) == [delivery.id]
    assert only(bot).body.items() > new.items()
    assert "symbol" not in only(bot).body


def test_what_was_skipped_or_is_not_there_is_not_replayed(bot: Bot) -> None:
    bot.reject(None)
    ledger.enable(bot.connection, AI_REJECT, None, NOON)
    before = bot.ledger("*")
    assert ledger.replay(bot.connection, bot.ledger("id")) == []
    assert ledger.replay(bot.connection, [999]) == []
    assert ledger.replay(bot.connection, []) == []
    assert bot.ledger("*") == before


def test_a_row_that_no_message_could_be_made_of_is_tried_anew(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = kinds.sources_of(AI_REJECT)

    def body(*_: object) -> dict[str, Any]:
        raise ValueError("not yet")

    bot.reject(NOON)
    with monkeypatch.context() as patch:
        patch.setattr(kinds, "SOURCES", [replace(source, body=body)])
        collect(bot)
    ids = bot.ledger("id")
    assert bot.ledger("state") == ["dead"]
    assert ledger.replay(bot.connection, ids) == ids
    assert collect(bot) == 1
    assert only(bot).body["symbol"] == BTC


def test_the_newest_are_listed_first_by_state_and_kind(bot: Bot) -> None:
    rows = waiting_rows(bot, 3)
    bot.violation(NOON)
    collect(bot, RISK)
    attempt(bot, rows[0], REFUSED, DeliveryState.DEAD)
    since = datetime.now(UTC) - HOUR

    def ids(**wanted: Any) -> list[int]:
        return [one.id for one in ledger.listed(bot.connection, **({"since": since} | wanted))]

    every = bot.ledger("id")[::-1]
    assert ids() == every
    assert ids(limit=2) == every[:2]
    assert ids(kind=RISK) == every[:1]
    assert ids(states=[DeliveryState.DEAD]) == [rows[0].id]
    assert ids(states=[DeliveryState.DEAD, DeliveryState.PENDING]) == every
    assert ids(states=[DeliveryState.DELIVERED]) == []
    assert ids(since=LATER) == []


def test_every_kind_and_state_is_counted(bot: Bot) -> None:
    zeros = dict.fromkeys(map(str, DeliveryState), 0)
    assert ledger.counts(bot.connection) == dict.fromkeys(KINDS, zeros)
    rows = waiting_rows(bot, 3)
    attempt(bot, rows[0], REFUSED, DeliveryState.DEAD)
    attempt(bot, rows[1], REFUSED)
    assert ledger.counts(bot.connection) == dict.fromkeys(KINDS, zeros) | {
        AI_REJECT: zeros | {"dead": 1, "retrying": 1, "pending": 1}
    }


def test_what_no_sender_came_back_from_is_given_up_and_says_why(bot: Bot) -> None:
    first, second = waiting_rows(bot, 2)
    bot.violation(NOON)
    collect(bot, RISK)
    attempt(bot, first, REFUSED)
    for delivery in (replace(first, attempts=1), second, only(bot, RISK)):
        next_at = LATER + MINUTE
        assert attempts.reserve(bot.connection, delivery, N8N, 30, next_at, LATER) is not None
    assert attempts.give_up(bot.connection, AI_REJECT, 2, LATER + 59 * SECOND) == 0
    assert attempts.give_up(bot.connection, AI_REJECT, 2, LATER + MINUTE) == 1
    assert bot.ledger("state, attempts") == [("dead", 2), ("retrying", 1), ("retrying", 1)]
    assert "died" in bot.ledger("last_error")[0]


# What is forgotten. Of the most searched for: look-backs of 30 days, and twice that for the missed.

MOST = AlertSettings(look_back_days=30)
YEARS = NOON + timedelta(days=1000)
DONE_SINCE_NOON = """
UPDATE trading_pipelines.alert_deliveries
SET state = 'delivered', created_at = %(noon)s, delivered_at = %(noon)s
"""


def done(bot: Bot) -> None:
    bot.connection.execute(DONE_SINCE_NOON, {"noon": NOON})


def purge_later(bot: Bot) -> datetime:
    """Purge as early after noon as the settings allow; return when that was."""
    before = NOON + SECOND
    purge(bot.connection, before)
    schema = StrategySettings.model_json_schema()["$defs"]
    shortest = schema["HousekeepingSettings"]["properties"]["keep_alerts_days"]["minimum"]
    return before + timedelta(days=shortest)


@pytest.mark.parametrize(
    ("kind", "insert"), [(AI_REJECT, Bot.reject), (TRADE, Bot.trade), (RISK, Bot.violation)]
)
def test_what_a_purge_took_is_neither_sent_again_nor_told_as_missed(
    bot: Bot, kind: str, insert: Callable[[Bot, datetime | None], str]
) -> None:
    ledger.enable(bot.connection, kind, LONG_AGO, NOON)
    insert(bot, NOON - HOUR)
    insert(bot, NOON)
    kept = [insert(bot, at) for at in (YEARS, None)]
    assert collect(bot, kind) == 4
    done(bot)
    now = purge_later(bot)
    assert bot.ledger("source_id") == kept, "the bot's table will always offer these"
    assert ledger.collect(bot.connection, kind, now - timedelta(days=30), now) == 0
    assert missed_alerts(bot.connection, MOST, now) == []


def test_a_cooldown_that_its_row_may_still_tell_is_never_sent_again(bot: Bot) -> None:
    bot.cooldown(YEARS, NOON)
    assert collect(bot, RISK) == 1
    done(bot)
    now = purge_later(bot)
    bot.cooldown(YEARS, now)
    assert ledger.collect(bot.connection, RISK, now - timedelta(days=30), now) == 0


def test_what_was_skipped_when_its_kind_came_on_stays_skipped(bot: Bot) -> None:
    bot.reject(None)
    bot.cooldown(YEARS, NOON)
    ledger.enable(bot.connection, AI_REJECT, None, NOON + HOUR)
    ledger.enable(bot.connection, RISK, None, NOON + HOUR)
    assert bot.ledger("state") == ["skipped", "skipped"]
    bot.connection.execute("UPDATE trading_pipelines.alert_deliveries SET created_at = %s", [NOON])
    now = purge_later(bot)
    for kind in (AI_REJECT, RISK):
        assert ledger.collect(bot.connection, kind, now - timedelta(days=30), now) == 0


def test_a_report_that_was_forgotten_is_not_due_again(bot: Bot) -> None:
    ledger.enable(bot.connection, DAILY_REPORT, LONG_AGO, NOON)
    for day in due_reports(bot.connection, MOST, NOON):
        send_report(bot.connection, day, {"timestamp": NOON.isoformat()}, MOST, NOON)
    assert (told := len(bot.ledger())) > 1
    done(bot)
    now = purge_later(bot)
    assert bot.ledger() == []
    due = due_reports(bot.connection, MOST, now)
    assert not {NOON.date() - DAY * n for n in range(told)} & set(due)


def test_a_failure_that_lasts_or_has_recovered_is_not_told_anew_after_a_purge(bot: Bot) -> None:
    def tell(now: datetime, *failing: str) -> IncidentTally:
        found = [Failure(name, "RUN_FAILED", "WARNING", name, 1) for name in failing]
        return reconcile(bot.connection, found, 4 * HOUR, now)

    tell(NOON, "lasting", "over")
    done(bot)
    now = NOON + timedelta(days=61)
    tell(NOON + HOUR, "lasting")
    tell(now - HOUR, "lasting")
    bot.connection.execute(
        "UPDATE trading_pipelines.alert_deliveries "
        "SET state = 'delivered', created_at = occurred_at, delivered_at = occurred_at"
    )
    assert len(bot.ledger()) == 4
    assert purge(bot.connection, NOON + DAY) == {"alert_deliveries": 3}
    assert tell(now, "lasting") == IncidentTally(suppressed=1)


def test_only_what_is_done_is_forgotten_and_its_attempts_with_it(bot: Bot) -> None:
    rows = waiting_rows(bot, 4)
    for row, state in zip(
        rows, (DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRYING), strict=False
    ):
        attempt(bot, row, REFUSED, state)
    assert len(bot.attempts()) == 3
    assert purge(bot.connection, LATER + DAY) == {"alert_deliveries": 1}
    assert bot.ledger("state") == ["dead", "retrying", "pending"]
    assert len(bot.attempts()) == 2


def test_what_was_delivered_lately_is_kept_however_old_it_is(bot: Bot) -> None:
    (row,) = waiting_rows(bot, 1)
    attempt(bot, row, ACCEPTED, DeliveryState.DELIVERED)
    bot.connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET created_at = %s", [LONG_AGO]
    )
    assert purge(bot.connection, LATER).total() == 0
    assert purge(bot.connection, LATER + SECOND).total() == 1


def test_a_digest_is_kept_as_long_as_what_it_told(bot: Bot) -> None:
    bot.cooldown(NOON, NOON)
    bot.violation(NOON)
    collect(bot, RISK)
    rows = ledger.due(bot.connection, RISK, LATER)
    body = {"timestamp": NOON.isoformat()}
    ledger.enter_digest(bot.connection, RISK, rows, body, NOON)
    ledger.enter_digest(bot.connection, AI_REJECT, waiting_rows(bot, 2), body, NOON)
    bot.connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = 'delivered' WHERE source = 'digest'"
    )
    purge(bot.connection, LATER)
    assert bot.ledger("source, state") == [
        ("daily_risk_state", "digested"),
        ("digest", "delivered"),
    ]


def test_more_than_are_purged_at_once_are_purged_in_turn_and_what_is_locked_is_left(
    bot: Bot, other: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PURGED_AT_ONCE", 2)
    rows = waiting_rows(bot, 6)
    done(bot)
    bot.connection.execute("SET lock_timeout = '1s'")
    with other.transaction():
        assert ledger.replay(other, [rows[0].id]) == [rows[0].id]
        assert purge(bot.connection, YEARS).total() == 5
    assert purge(bot.connection, YEARS).total() == 0
    assert bot.ledger("id, state") == [(rows[0].id, "pending")]
