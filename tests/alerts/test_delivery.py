"""Every alert is delivered or visibly given up, and posted again only where it may have been lost.

The clock and the jitter are the tests' own; n8n, Discord and the database are real servers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.alerts.conftest import (
    BTC,
    DELIVERED,
    EMPTY,
    ETH,
    HANG,
    NOT_READY,
    PAGE,
    POSTED,
    READY,
    RESET,
    SECRET,
    TOKEN,
    Bot,
    Clock,
    Receiver,
    Reply,
    Request,
    refusal,
    usual,
)
from trading_pipelines.alerts import attempts, delivery, kinds, ledger
from trading_pipelines.alerts.delivery import Sender, Tally, digest_body
from trading_pipelines.alerts.discord import discord_message
from trading_pipelines.alerts.kinds import AI_REJECT, KINDS, RISK, TRADE
from trading_pipelines.alerts.webhooks import Webhooks
from trading_pipelines.settings.strategy import AlertSettings

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
WAITS = (0, 1, 3, 10, 30, 300, 1800, 7200, 18000, 36000, 36000)
PAST_THE_BURST = 2.5
"""Seconds after which Discord takes five more posts."""
PATIENT, HASTY = 60.0, 0.2
"""Seconds that an answer is waited for: one that comes, and one that does not."""


@dataclass
class Bench:
    """A bot, an n8n and a Discord, and what delivers from the one to the others."""

    bot: Bot
    n8n: Receiver
    discord: Receiver
    clock: Clock
    timeout: float = PATIENT
    jitter: float = 1.0

    def reject(self, reason: str = "RSI too high", **more: Any) -> str:
        return self.bot.reject(self.clock.now, reason, **more)

    def sender(
        self,
        kind: str = AI_REJECT,
        *,
        n8n: bool = True,
        discord: bool = False,
        connection: psycopg.Connection | None = None,
        **settings: Any,
    ) -> Sender:
        return Sender(
            connection or self.bot.connection,
            kind,
            AlertSettings(**settings),
            Webhooks(
                self.n8n.url if n8n else None,
                SECRET,
                f"{self.discord.url}/api/webhooks/1/{TOKEN}" if discord else None,
                self.timeout,
            ),
            self.clock,
            lambda: self.jitter,
        )

    def deliver(self, kind: str = AI_REJECT, **options: Any) -> Tally:
        tally = self.sender(kind, **options).deliver(lambda: False, watch=False)
        assert tally is not None
        return tally

    def until_done(self, kind: str = AI_REJECT, **options: Any) -> None:
        """Go on until nothing waits any more, at the times that the ledger names."""
        for _ in range(200):
            self.deliver(kind, **options)
            waiting = self.waiting()
            if not waiting:
                return
            self.clock.now = max(min(waiting), self.clock.now + PAST_THE_BURST * SECOND)
        raise AssertionError("never done")

    def waiting(self) -> list[datetime]:
        return self.bot.ledger("next_at", "state IN ('pending', 'retrying')")

    def states(self) -> list[str]:
        return self.bot.ledger("state")


@pytest.fixture
def bench(bot: Bot, n8n: Receiver, discord: Receiver) -> Bench:
    """All kinds are on since an hour, and nothing has happened yet."""
    # The ledger's own defaults are of the database's clock.
    clock = Clock(datetime.now(UTC) + HOUR)
    for kind in KINDS:
        ledger.enable(bot.connection, kind, None, clock.now - HOUR)
    return Bench(bot, n8n, discord, clock)


def always(reply: Reply) -> Callable[[Request], Reply]:
    return lambda request: reply if request.method == "POST" else usual(request)


# Delivered.


def test_an_alert_is_delivered_once(bench: Bench) -> None:
    bench.reject()
    assert str(bench.deliver()) == "1 new, 1 delivered"
    assert str(bench.deliver()) == "0 new"
    bench.clock.advance(10 * 86400)
    bench.deliver()
    (request,) = bench.n8n.posts
    assert request.path == "/webhook/ai-reject"
    assert bench.bot.ledger("state, body, message_id, via") == [
        ("delivered", request.body, "1130", "n8n")
    ]
    assert bench.discord.requests == []


@pytest.mark.parametrize(
    ("kind", "channel"), [(AI_REJECT, "ai-reject"), (TRADE, "trade"), (RISK, "risk")]
)
def test_a_kind_goes_to_its_channel_and_the_others_stay(
    bench: Bench, kind: str, channel: str
) -> None:
    now = bench.clock.now
    for insert in (bench.bot.reject, bench.bot.trade, bench.bot.violation):
        insert(now)
    bench.deliver(kind)
    assert [request.path for request in bench.n8n.posts] == [f"/webhook/{channel}"]


def test_what_happened_before_the_kind_came_on_is_not_sent(bench: Bench) -> None:
    bench.bot.reject(bench.clock.now - HOUR - SECOND)
    assert str(bench.deliver()) == "0 new"
    assert bench.n8n.posts == []


def test_what_is_older_than_the_look_back_is_not_sent(bench: Bench) -> None:
    for hours in (25, 23):
        bench.bot.reject(bench.clock.now + timedelta(days=3, hours=-hours), str(hours))
    bench.clock.advance(3 * 86400)
    bench.deliver(look_back_days=1)
    assert [request.body["reason"] for request in bench.n8n.posts] == ["23"]


def test_the_longest_due_is_sent_first(bench: Bench) -> None:
    for n in (2, 0, 1):
        bench.bot.reject(bench.clock.now - n * SECOND, str(n))
    bench.deliver()
    assert [request.body["reason"] for request in bench.n8n.posts] == ["2", "1", "0"]


def test_discords_limits_are_kept_and_what_waits_for_them_is_said(bench: Bench) -> None:
    for _ in range(8):
        bench.reject()
    assert str(bench.deliver()) == "8 new, 5 delivered, 3 waiting"
    assert str(bench.deliver()) == "0 new, 3 waiting"
    bench.clock.advance(2.0)
    assert str(bench.deliver()) == "0 new, 3 delivered"
    assert len(set(bench.n8n.keys)) == len(bench.n8n.keys) == 8


# Tried again.


@pytest.mark.parametrize("jitter", [0.0, 0.25, 1.0])
def test_it_is_tried_eleven_times_at_first_quickly_and_then_dead(
    bench: Bench, jitter: float
) -> None:
    bench.jitter = jitter
    bench.n8n.answer = always(refusal(500))
    bench.reject()
    for tried in range(1, 12):
        assert bench.deliver().sent == {"refused": 1}
        assert len(bench.n8n.posts) == tried
        if tried < 11:
            (next_at,) = bench.waiting()
            assert next_at == bench.clock.now + WAITS[tried] * jitter * SECOND
            if jitter:
                bench.clock.now = next_at - timedelta(milliseconds=1)
                bench.deliver()
                assert len(bench.n8n.posts) == tried, "not before its time"
            bench.clock.now = max(next_at, bench.clock.now + PAST_THE_BURST * SECOND)
    assert set(bench.n8n.keys) == {"agent_decisions:1:ai-reject"}, "one message for the receiver"
    assert bench.bot.ledger("state, attempts") == [("dead", 11)]
    assert [number for number, *_ in bench.bot.attempts()] == list(range(1, 12))
    bench.clock.advance(86400)
    bench.deliver()
    assert len(bench.n8n.posts) == 11


def test_the_jitter_is_full(bench: Bench) -> None:
    sender = replace(bench.sender(), jitter=Sender.jitter)
    waits = [sender._back_off(5).total_seconds() for _ in range(200)]
    assert min(waits) < 60
    assert max(waits) > 240
    assert all(0 <= wait <= 300 for wait in waits)


@pytest.mark.parametrize("fault", [PAGE, Reply(404), Reply(500), Reply(204), HANG, RESET])
def test_an_answer_that_is_nobodys_word_is_tried_again_with_the_same_key(
    bench: Bench, fault: Reply
) -> None:
    bench.timeout = HASTY if fault is HANG else PATIENT
    bench.n8n.script.append(fault)
    bench.reject()
    assert bench.deliver().sent == {"away": 1}
    bench.timeout = PATIENT
    (next_at,) = bench.waiting()
    assert next_at == bench.clock.now + SECOND
    bench.clock.now = next_at
    assert bench.deliver().sent == {"delivered": 1}
    assert bench.n8n.keys == ["agent_decisions:1:ai-reject"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400),
        refusal(413),
        Reply(400, {"delivered": False, "error": "the body lacks symbol"}),
        Reply(403, {"delivered": False}),
    ],
)
@pytest.mark.parametrize("has_discord", [False, True])
def test_what_is_refused_for_good_is_dead_at_once_and_the_next_goes_on(
    bench: Bench, answer: Reply, *, has_discord: bool
) -> None:
    bench.n8n.script.append(answer)
    for _ in range(2):
        bench.reject()
    assert str(bench.deliver(discord=has_discord)) == "2 new, 1 delivered, 1 refused, 1 dead"
    assert bench.bot.ledger("state, attempts") == [("dead", 1), ("delivered", 1)]
    assert bench.discord.posts == [], "Discord has spoken already, or would not understand either"


def test_a_row_that_no_message_can_be_made_of_does_not_hold_up_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = kinds.sources_of(AI_REJECT)

    def body(connection: psycopg.Connection, row: kinds.BotRow, at: datetime) -> dict[str, Any]:
        if row["reasoning"] == "poison":
            raise LookupError("poison")
        return source.body(connection, row, at)

    monkeypatch.setattr(kinds, "SOURCES", [replace(source, body=body)])
    for reason in ("poison", "well"):
        bench.reject(reason)
    bench.deliver()
    assert bench.states() == ["dead", "delivered"]


@pytest.mark.parametrize(
    ("jitter", "seconds", "expected"), [(0.0, 90.5, 90.5), (1.0, 90.5, 90.5), (1.0, 0.2, 1.0)]
)
@pytest.mark.parametrize("http", [502, 429])
def test_retry_after_is_the_least_wait(
    bench: Bench, http: int, jitter: float, seconds: float, expected: float
) -> None:
    bench.jitter = jitter
    bench.n8n.script.append(
        refusal(429, retry_after=seconds)
        if http == 502
        else Reply(429, "slow down", {"Retry-After": str(seconds)})
    )
    bench.reject()
    bench.deliver()
    assert bench.waiting() == [bench.clock.now + expected * SECOND]


@pytest.mark.parametrize("odd", [1e18, 1e300, float("nan"), "soon"])
def test_an_odd_retry_after_stops_nothing(bench: Bench, odd: object) -> None:
    bench.n8n.script.append(Reply(429, {"delivered": False, "retry_after": odd}))
    for _ in range(2):
        bench.reject()
    bench.deliver()
    assert bench.states() == ["retrying", "delivered"]


def test_text_that_the_database_can_not_hold_stops_nothing(bench: Bench) -> None:
    odd = "\0\ud800"
    bench.n8n.script += [
        refusal(500, error=f"Discord says {odd}"),
        Reply(200, {"delivered": True, "message_id": odd}),
    ]
    for _ in range(3):
        bench.reject()
    bench.deliver()
    assert bench.states() == ["retrying", "delivered", "delivered"]


# Killed.


def test_a_sender_that_is_killed_in_a_post_is_followed_by_another(
    bench: Bench, bot_url: str, other: psycopg.Connection
) -> None:
    with psycopg.connect(bot_url, autocommit=True) as doomed:
        pid = doomed.info.backend_pid

        def kill(_: Request) -> Reply:
            with psycopg.connect(bot_url, autocommit=True) as killer:
                killer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            bench.n8n.answer = usual
            return DELIVERED

        bench.n8n.answer = kill
        bench.reject()
        with pytest.raises(psycopg.OperationalError):
            bench.deliver(connection=doomed)
    assert bench.bot.attempts() == [(1, "n8n", None)]
    # Not while the dead one may still be waiting for its answer.
    retry_at = bench.clock.now + (bench.timeout + WAITS[1]) * SECOND
    assert bench.bot.ledger("state, next_at") == [("retrying", retry_at)]
    assert bench.deliver(connection=other).sent == {}
    bench.clock.advance(bench.timeout + WAITS[1])
    assert bench.deliver(connection=other).sent == {"delivered": 1}
    assert bench.n8n.keys == ["agent_decisions:1:ai-reject"] * 2, "n8n can tell"
    assert bench.bot.attempts() == [(1, "n8n", None), (2, "n8n", "delivered")]


def test_senders_that_die_in_every_try_come_to_an_end(bench: Bench) -> None:
    bench.reject()
    ledger.collect(bench.bot.connection, AI_REJECT, bench.clock.now - HOUR, bench.clock.now)
    for _ in WAITS:
        (alert,) = ledger.due(bench.bot.connection, AI_REJECT, bench.clock.now)
        now = bench.clock.now
        assert attempts.reserve(bench.bot.connection, alert, "n8n", 30, now + HOUR, now)
        bench.clock.advance(3600)
    bench.deliver()
    assert bench.n8n.posts == []
    assert bench.bot.ledger("state, attempts") == [("dead", 11)]
    assert "died" in bench.bot.ledger("last_error")[0]


def test_what_was_sent_before_the_database_went_away_is_on_record(
    bench: Bench, bot_url: str, other: psycopg.Connection
) -> None:
    with psycopg.connect(bot_url, autocommit=True) as doomed:
        pid = doomed.info.backend_pid

        def answer(request: Request) -> Reply:
            if request.body["reason"] == "second":
                other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            return DELIVERED

        bench.n8n.answer = answer
        for reason in ("first", "second", "third"):
            bench.reject(reason)
        with pytest.raises(psycopg.OperationalError):
            bench.deliver(connection=doomed)
    assert bench.states() == ["delivered", "retrying", "pending"]


def test_a_second_sender_of_a_kind_sends_nothing(bench: Bench, other: psycopg.Connection) -> None:
    seen = []

    def answer(_: Request) -> Reply:
        second = bench.sender(connection=other)
        seen.append(second.deliver(lambda: False, watch=True))
        return DELIVERED

    bench.n8n.answer = answer
    bench.reject()
    bench.deliver()
    assert seen == [None]
    assert len(bench.n8n.posts) == 1
    assert bench.deliver(connection=other) is not None


# Past n8n.


def test_after_a_while_without_n8n_discord_is_told_directly_and_once(bench: Bench) -> None:
    bench.n8n.stop()
    bench.reject()
    began = bench.clock.now
    options: dict[str, Any] = {"discord": True, "fallback_after": 60.0}
    for offset in (0, 5):
        (next_at,) = bench.waiting() or [bench.clock.now]
        assert next_at - began <= offset * SECOND, "not later than the fallback is due"
        bench.clock.now = began + offset * SECOND
        assert bench.discord.posts == []
        assert bench.deliver(**options).sent == {"unreachable": 1}
    (next_at,) = bench.waiting()
    assert next_at <= began + 60 * SECOND, "not later than the fallback is due"
    bench.clock.now = began + 60 * SECOND
    assert bench.deliver(**options).sent == {"delivered": 1}
    (request,) = bench.discord.posts
    (body,) = bench.bot.ledger("body")
    assert request.body == discord_message("ai-reject", body)
    assert bench.bot.ledger("state, via, message_id") == [("delivered", "discord", "1131")]

    bench.n8n.start()
    bench.clock.advance(86400)
    bench.deliver(**options)
    assert bench.n8n.posts == []
    assert len(bench.discord.posts) == 1


def test_a_new_alert_in_a_long_absence_goes_to_discord_after_one_look_at_n8n(
    bench: Bench,
) -> None:
    bench.n8n.stop()
    bench.reject("first")
    bench.deliver(discord=True)
    bench.clock.advance(3600)
    bench.reject("second")
    bench.until_done(discord=True)
    assert bench.states() == ["delivered"] * 2
    second = bench.bot.attempts("delivery_id, via, outcome")
    assert [tried for number, *tried in second if number == 2] == [
        ["n8n", "unreachable"],
        ["discord", "delivered"],
    ]
    bench.n8n.start()
    bench.reject("third")
    bench.deliver(discord=True)
    assert bench.n8n.posts == [], "known to be away a moment ago: no alert waits for its time-out"
    bench.clock.advance(61)
    bench.reject("fourth")
    bench.deliver(discord=True)
    assert [request.body["reason"] for request in bench.n8n.posts] == ["fourth"]


@pytest.mark.parametrize("status", [500, 503])
def test_what_our_workflow_refused_is_not_posted_past_it(bench: Bench, status: int) -> None:
    bench.n8n.answer = always(refusal(status))
    bench.reject()
    bench.until_done(discord=True, fallback_after=0.0)
    assert bench.states() == ["dead"]
    assert len(bench.n8n.posts) == len(WAITS)
    assert bench.discord.posts == []


@pytest.mark.parametrize("status", [302, 400, 401, 403, 410, 413, 422])
@pytest.mark.parametrize("has_discord", [False, True])
def test_what_n8n_itself_refuses_goes_to_discord_at_once_or_is_dead_or_waits_for_n8n(
    bench: Bench, status: int, *, has_discord: bool
) -> None:
    bench.n8n.answer = always(Reply(status, {"message": "Authorization data is wrong!"}))
    bench.reject()
    bench.deliver(discord=has_discord)
    bench.deliver(discord=has_discord)
    assert len(bench.n8n.posts) == 1
    assert len(bench.discord.posts) == has_discord
    of_the_message = status in {400, 413, 422}
    assert bench.states() == [
        "delivered" if has_discord else "dead" if of_the_message else "retrying"
    ]


def test_without_n8n_everything_goes_to_discord(bench: Bench) -> None:
    bench.n8n.script.append(PAGE)
    bench.reject("waits for n8n")
    bench.deliver()
    bench.reject("new")
    bench.clock.advance(5)
    bench.deliver(n8n=False, discord=True)
    assert len(bench.n8n.posts) == 1
    assert len(bench.discord.posts) == 2
    assert bench.states() == ["delivered"] * 2


def test_without_discord_what_was_on_its_way_there_goes_to_n8n(bench: Bench) -> None:
    bench.n8n.script.append(Reply(403))
    bench.reject()
    bench.deliver(discord=True)
    assert bench.bot.ledger("via") == ["discord"]
    bench.deliver()
    assert bench.states() == ["delivered"]
    assert len(bench.n8n.posts) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_discord_refuses_for_good_is_dead(bench: Bench, status: int) -> None:
    bench.discord.answer = always(Reply(status, {"message": "Unknown Webhook", "code": 10015}))
    bench.reject()
    bench.deliver(n8n=False, discord=True)
    assert bench.states() == ["dead"]
    assert bench.bot.ledger("last_error") == [f"Discord answers {status}: Unknown Webhook"]


def test_discord_is_tried_again_too(bench: Bench) -> None:
    bench.discord.script += [Reply(500), Reply(429, {"retry_after": 0.5}), RESET]
    bench.reject()
    bench.until_done(n8n=False, discord=True)
    assert bench.states() == ["delivered"]
    assert len(bench.discord.posts) == 4


def poisoned(bench: Bench, *, minutes: int, discord: bool) -> int:
    """Have n8n never take one alert and take another every 30 s; return the one's attempts."""
    bench.n8n.answer = lambda request: (
        PAGE if request.body.get("reason") == "poison" else usual(request)
    )
    bench.reject("poison")
    for _ in range(2 * minutes):
        bench.reject()
        for _ in range(6):
            bench.deliver(discord=discord)
            bench.clock.advance(5)
    return bench.bot.attempts("delivery_id").count((1,))


def test_what_n8n_never_takes_goes_to_discord_when_it_has_waited_as_long_as_for_an_absent_n8n(
    bench: Bench,
) -> None:
    """As others are taken, n8n is not away, and no time of absence adds up."""
    poisoned(bench, minutes=6, discord=True)
    assert bench.bot.ledger("state, via", "body ->> 'reason' = 'poison'") == [
        ("delivered", "discord")
    ]
    assert len(bench.discord.posts) == 1


def test_what_n8n_never_takes_does_not_spend_its_attempts_on_those_that_n8n_takes(
    bench: Bench,
) -> None:
    tries = poisoned(bench, minutes=20, discord=False)
    assert bench.bot.ledger("state", "body ->> 'reason' = 'poison'") == ["retrying"]
    assert tries <= len(WAITS) - 3


@pytest.mark.parametrize("failure", [PAGE, refusal(500)])
def test_a_failure_of_a_moment_makes_an_alert_late_by_a_moment(
    bench: Bench, failure: Reply
) -> None:
    bench.n8n.script += [failure, failure]
    began = bench.clock.now
    bench.reject()
    bench.until_done()
    assert bench.states() == ["delivered"]
    assert bench.clock.now - began <= 6 * SECOND


# n8n is back.


def test_what_waits_for_an_n8n_that_is_back_is_sent_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PROBE_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.01)
    bench.n8n.stop()
    for _ in range(3):
        bench.reject()
    bench.deliver()
    bench.deliver()
    bench.deliver()
    assert [outcome for _, _, outcome in bench.bot.attempts()] == ["unreachable"] * 3
    bench.n8n.start()
    tally = bench.sender().deliver(lambda: len(bench.n8n.posts) == 3, watch=True)
    assert tally is not None
    assert tally.sent == {"delivered": 3}
    assert bench.n8n.requests[0].path == "/healthz/readiness"
    assert bench.states() == ["delivered"] * 3


def test_a_look_without_watching_finds_that_n8n_is_back(bench: Bench) -> None:
    bench.n8n.stop()
    bench.reject()
    bench.deliver()
    bench.n8n.start()
    assert bench.deliver().sent == {"delivered": 1}


def test_an_n8n_that_is_not_ready_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PROBE_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.01)
    bench.n8n.stop()
    bench.reject()
    bench.deliver()
    bench.n8n.start()
    bench.n8n.answer = lambda request: NOT_READY if request.method == "GET" else DELIVERED
    bench.sender().deliver(lambda: len(bench.n8n.requests) == 3, watch=True)
    assert bench.n8n.posts == []
    assert bench.states() == ["retrying"]


def test_nobody_is_asked_whether_n8n_is_back_while_nothing_waits_for_it(bench: Bench) -> None:
    bench.n8n.script += [PAGE, refusal(500)]
    for _ in range(2):
        bench.reject()
    for _ in range(3):
        bench.deliver()
    assert {request.method for request in bench.n8n.requests} == {"POST"}


def test_one_that_n8n_takes_brings_the_others_of_its_channel_forward(bench: Bench) -> None:
    bench.n8n.script += [PAGE, HANG]
    for _ in range(2):
        bench.reject()
    for bench.timeout in (PATIENT, HASTY):
        bench.deliver()
    bench.timeout = PATIENT
    bench.bot.connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET next_at = next_at + interval '4 minutes'"
    )
    bench.bot.trade(bench.clock.now)
    bench.deliver(TRADE)
    bench.reject()
    bench.deliver()
    assert bench.clock.now not in bench.waiting(), "not at once: a try at each of another's"
    bench.clock.advance(31)
    bench.bot.trade(bench.clock.now)
    bench.deliver(TRADE)
    assert bench.clock.now not in bench.waiting(), "another channel says nothing of this one"
    bench.reject()
    bench.deliver()
    assert bench.waiting() == [bench.clock.now] * 2
    assert bench.deliver().sent == {"delivered": 2}


def test_while_n8n_is_away_only_one_alert_a_look_finds_out(bench: Bench) -> None:
    bench.n8n.answer = always(PAGE)
    for _ in range(4):
        bench.reject()
    for tried in (1, 2, 3):
        tally = bench.deliver()
        assert (tally.sent, tally.waiting) == ({"away": 1}, 4 - tried)
        assert len(bench.n8n.posts) == tried


# Digests.


def test_too_many_waiting_become_one_message(bench: Bench) -> None:
    for n in range(25):
        bench.bot.reject(bench.clock.now - n * SECOND, f"reason {n}", symbol=ETH if n % 5 else BTC)
    assert str(bench.deliver()) == "25 new, 1 delivered, 25 digested"
    (request,) = bench.n8n.posts
    assert request.path == "/webhook/risk"
    body = request.body
    assert (body["type"], body["level"]) == ("DIGEST", "WARNING")
    assert body["timestamp"] == bench.clock.now.isoformat()
    head, counts, _, *lines = body["message"].splitlines()
    assert "25건 (ai_reject)" in head
    assert "KST" in head
    assert counts == "KRW-ETH 20, KRW-BTC 5"
    assert [line.rpartition(" ")[2] for line in lines] == [str(n) for n in range(10)]
    assert bench.states() == ["digested"] * 25 + ["delivered"]
    bench.clock.advance(86400)
    assert str(bench.deliver()) == "0 new"
    assert len(bench.n8n.posts) == 1


def test_as_many_as_are_allowed_are_sent_one_by_one(bench: Bench) -> None:
    for _ in range(6):
        bench.reject()
    bench.until_done(digest_over=6)
    assert bench.states() == ["delivered"] * 6
    assert len(bench.n8n.posts) == 6


def test_a_digest_tells_of_those_that_were_tried_too_and_is_a_message_like_any_other(
    bench: Bench,
) -> None:
    bench.n8n.answer = always(PAGE)
    bench.reject("tried")
    bench.deliver(digest_over=2)
    for _ in range(3):
        bench.reject()
    assert bench.deliver(digest_over=2).digested == 4
    assert bench.states() == ["digested"] * 4 + ["retrying"]
    bench.n8n.answer = usual
    bench.clock.advance(5)
    bench.deliver(digest_over=2)
    assert bench.states()[-1] == "delivered"
    assert bench.n8n.keys[-1] == bench.n8n.keys[-2], "the digest has one key for all tries"


def test_digests_that_wait_are_no_reason_for_another(bench: Bench) -> None:
    bench.n8n.answer = always(PAGE)
    for _ in range(3):
        for _ in range(2):
            bench.reject()
        bench.deliver(digest_over=1)
    assert bench.bot.ledger("source").count("digest") == 3
    bench.clock.advance(400)
    bench.deliver(digest_over=1)
    assert bench.bot.ledger("source").count("digest") == 3
    bench.n8n.answer = usual
    bench.until_done(digest_over=1)
    assert set(bench.states()) == {"digested", "delivered"}


def test_a_digest_of_another_kind_is_its_own(bench: Bench) -> None:
    for _ in range(2):
        bench.reject()
        bench.bot.violation(bench.clock.now)
    bench.deliver(RISK, digest_over=1)
    assert bench.bot.ledger("kind, state") == [("risk", "digested")] * 2 + [("risk", "delivered")]


def test_a_digest_of_anything_has_room_in_discords_message(bench: Bench) -> None:
    now = bench.clock.now
    for n in range(30):
        bench.bot.reject(now, "가" * 400, symbol=f"KRW-{n:016}")
        bench.bot.trade(None if n % 2 else now, symbol=f"KRW-{n:016}")
        bench.bot.violation(None, violation_type="V" * 50, description="긴 설명 " * 500)
    for kind in (AI_REJECT, TRADE, RISK):
        ledger.collect(bench.bot.connection, kind, now - HOUR, now)
        found = ledger.waiting(bench.bot.connection, kind)
        assert len(found) == 30
        body = digest_body(kind, found, now)
        assert len(body["message"]) <= 3500
        shown = discord_message("risk", body)["embeds"][0]["description"]
        assert not shown.endswith("…"), "nothing is cut off"
        assert "None" not in body["message"]


# The tick.


def test_what_happens_during_a_tick_is_sent_in_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.01)
    looks = 0

    def is_stopping() -> bool:
        nonlocal looks
        looks += 1
        if looks == 5:
            bench.reject()
        return len(bench.n8n.posts) == 1

    tally = bench.sender().deliver(is_stopping, watch=True)
    assert tally is not None
    assert str(tally) == "1 new, 1 delivered"


def test_a_tick_ends_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "TICK_SECONDS", 0.5)
    began = time.monotonic()
    bench.sender().deliver(lambda: False, watch=True)
    assert 0.5 <= time.monotonic() - began < 30, "which is less than a tick as it is set"


def test_no_post_begins_when_the_tick_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "TICK_SECONDS", 2.5)
    bench.timeout = 2.0
    bench.discord.answer = always(HANG)
    for _ in range(5):
        bench.reject()
    began = time.monotonic()
    tally = bench.sender(n8n=False, discord=True).deliver(lambda: False, watch=True)
    assert time.monotonic() - began < 5 * bench.timeout, "not one after the other, all five"
    assert tally is not None
    tried = tally.sent["away"]
    assert tried in {1, 2}
    assert tally.waiting == 5 - tried
    bench.timeout = PATIENT
    assert bench.deliver().sent == {"delivered": 5 - tried}, "the kind is free again"


@pytest.mark.parametrize("watch", [False, True])
def test_who_is_told_to_stop_sends_nothing_more(bench: Bench, *, watch: bool) -> None:
    for _ in range(3):
        bench.reject()
    began = time.monotonic()
    tally = bench.sender().deliver(lambda: len(bench.n8n.posts) == 1, watch=watch)
    assert time.monotonic() - began < 30, "which is less than a tick as it is set"
    assert str(tally) == "3 new, 1 delivered, 2 waiting"
    assert len(bench.n8n.posts) == 1


# Whatever happens.


class World:
    """Alerts, answers and absences in any order; notes which answers each message was given."""

    def __init__(self, bench: Bench, **options: Any) -> None:
        self.bench, self.options = bench, options
        self.answers: dict[str, list[Reply]] = {}
        self.alerts = 0
        self.n8n_says, self.discord_says = DELIVERED, POSTED
        bench.n8n.answer = lambda request: self._noted(request, self.n8n_says)
        bench.discord.answer = lambda request: self._noted(request, self.discord_says)
        bench.n8n.start_again()
        bench.bot.connection.execute(EMPTY)
        for kind in KINDS:
            ledger.enable(bench.bot.connection, kind, None, bench.clock.now)

    def _noted(self, request: Request, reply: Reply) -> Reply:
        if request.method == "GET":
            return READY
        embeds = request.body.get("embeds")
        key = embeds[0]["footer"]["text"] if embeds else request.key
        self.answers.setdefault(key, []).append(reply)
        return reply

    def alert(self, count: int) -> None:
        self.alerts += count
        for n in range(count):
            insert = self.bench.bot.trade if n % 2 else self.bench.bot.reject
            insert(self.bench.clock.now)

    def n8n(self, reply: Reply) -> None:
        self.n8n_says = reply

    def discord(self, reply: Reply) -> None:
        self.discord_says = reply

    def is_there(self, is_there: object) -> None:
        (self.bench.n8n.start_again if is_there else self.bench.n8n.stop)()

    def wait(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    def jitter(self, jitter: float) -> None:
        self.bench.jitter = jitter

    def deliver(self) -> None:
        for kind in (AI_REJECT, TRADE):
            self.bench.deliver(kind, **self.options)

    def end(self) -> None:
        """All is well again until nothing waits."""
        self.n8n_says, self.discord_says = DELIVERED, POSTED
        self.bench.n8n.start_again()
        for _ in range(60):
            self.deliver()
            if not (waiting := self.bench.waiting()):
                return
            self.bench.clock.advance(PAST_THE_BURST)
            self.bench.clock.now = max(min(waiting), self.bench.clock.now)


EVENTS = st.one_of(
    st.tuples(st.just("alert"), st.integers(1, 4)),
    st.tuples(
        st.just("n8n"),
        st.sampled_from(
            [
                *(DELIVERED, DELIVERED, PAGE, RESET, Reply(404), Reply(403), Reply(204)),
                *(refusal(None), refusal(400), refusal(429, retry_after=30), refusal(500)),
                Reply(503, "busy", {"Retry-After": "120"}),
            ]
        ),
    ),
    st.tuples(
        st.just("discord"),
        st.sampled_from([POSTED, Reply(500), Reply(400), Reply(429, {"retry_after": 1.5})]),
    ),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 60.0, 400.0, 3600.0, 40000.0])),
    st.tuples(st.just("is_there"), st.booleans()),
    st.tuples(st.just("jitter"), st.floats(0, 1)),
)
OPTIONS = st.fixed_dictionaries(
    {
        "discord": st.booleans(),
        "fallback_after": st.sampled_from([0.0, 300.0, 6e5]),
        "digest_over": st.sampled_from([2, 20]),
    }
)


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(EVENTS, max_size=25), OPTIONS)
def test_every_alert_ends_and_is_posted_again_only_where_it_was_not_taken(
    bench: Bench, events: list[tuple[str, Any]], options: dict[str, Any]
) -> None:
    world = World(bench, **options)
    for event, value in events:
        getattr(world, event)(value)
        world.deliver()
        assert set(bench.states()) <= {"pending", "retrying", "delivered", "dead", "digested"}
    world.end()
    assert set(bench.states()) <= {"delivered", "dead", "digested"}
    assert len(bench.bot.ledger("id", "source <> 'digest'")) == world.alerts

    taken = set()
    for key, answers in world.answers.items():
        assert len(answers) <= len(WAITS)
        *earlier, last = answers
        assert not any(answer in (DELIVERED, POSTED) for answer in earlier), key
        if last in (DELIVERED, POSTED):
            taken.add(key)
    assert taken == set(bench.bot.ledger("body ->> 'idempotency_key'", "state = 'delivered'"))
