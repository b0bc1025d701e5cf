"""Sending what the ledger holds: when to try, when to give up, when n8n is passed by.

One call of `deliver` is what a sensor's tick does. The statements belong in `ledger`, the POST and
the meaning of its answer in `webhooks`.
"""

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import cut
from trading_pipelines.alerts.ledger import Delivery, DeliveryState, NextState
from trading_pipelines.alerts.webhooks import (
    DISCORD,
    N8N,
    TRANSPORT_FAILURES,
    PostOutcome,
    WebhookAnswer,
    Webhooks,
)
from trading_pipelines.korean_time import kst
from trading_pipelines.settings.strategy import AlertSettings

# Dagster ends a tick at 60 s, and a post may start as late as this and take 3 s to connect and
# `timeout_seconds`, 20 at most. Its loop turns every 5 s: a tick that is over just before a turn is
# followed at once by the next; one of 35 s left 4.5 s in between, in which nothing was sent.
TICK_SECONDS = 33.0
POLL_SECONDS = 0.2
# Retries and what a person replays can wait a second; what is new can not.
RETRY_POLL_SECONDS = 1.0
PROBE_EVERY_SECONDS = 5.0
ASK_AGAIN = timedelta(minutes=1)
DIGEST_LINES = 10
LONGEST_DIGEST = 3500


@dataclass
class Tally:
    """What one call of `deliver` did."""

    entered: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    """Attempts by outcome."""
    dead: int = 0
    digested: int = 0
    waiting: int = 0
    """Alerts that were due and had to wait for Discord's limits or for n8n."""

    def __str__(self) -> str:
        """Say it in one line."""
        said = [
            f"{self.entered} new",
            *(f"{number} {outcome}" for outcome, number in sorted(self.sent.items())),
            *(f"{number} {name}" for name, number in (
                ("dead", self.dead), ("digested", self.digested), ("waiting", self.waiting)
            ) if number),
        ]  # fmt: skip
        return ", ".join(said)


@dataclass(frozen=True)
class Sender:
    """What delivers one kind over one connection."""

    connection: psycopg.Connection
    kind: str
    settings: AlertSettings
    webhooks: Webhooks
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    jitter: Callable[[], float] = random.random

    def deliver(self, is_stopping: Callable[[], bool], *, watch: bool) -> Tally | None:
        """Enter and send what is due; with `watch`, go on looking until the tick is over.

        Returns None where another process is sending this kind. One message's failure is its own;
        raises psycopg.Error when the database goes away, and what was sent before is on record.
        """
        until = time.monotonic() + TICK_SECONDS
        with ledger.sender_lock(self.connection, self.kind) as is_ours:
            if not is_ours:
                return None
            tally, probe_at, retry_at = Tally(), 0.0, 0.0
            since = ledger.enable(self.connection, self.kind, self.settings.since, self.clock())
            while True:
                if time.monotonic() >= probe_at:
                    probe_at = time.monotonic() + PROBE_EVERY_SECONDS
                    self._probe()
                oldest = max(since, self.clock() - timedelta(days=self.settings.look_back_days))
                entered = ledger.collect(self.connection, self.kind, oldest, self.clock())
                tally.entered += entered
                if entered or time.monotonic() >= retry_at:
                    retry_at = time.monotonic() + RETRY_POLL_SECONDS
                    self._send_due(tally, lambda: time.monotonic() >= until or is_stopping())
                if not watch or time.monotonic() >= until or is_stopping():
                    return tally
                time.sleep(POLL_SECONDS)

    def _send_due(self, tally: Tally, is_over: Callable[[], bool]) -> None:
        """Try once what is due; more than `digest_over` of it become one message."""
        tries = len(self.settings.retry_waits) + 1
        tally.dead += ledger.give_up(self.connection, self.kind, tries, self.clock())
        due = ledger.due(self.connection, self.kind, self.clock())
        if sum(one.can_be_digested for one in due) > self.settings.digest_over:
            tally.digested += self._digest()
            due = ledger.due(self.connection, self.kind, self.clock())
        is_away = is_limited = False
        tally.waiting = 0
        for delivery in due:
            via = self._way(delivery)
            # While n8n is away the others need not all find out by themselves.
            if is_limited or is_over() or (via == N8N and is_away):
                tally.waiting += 1
                continue
            outcome = self._send(delivery, via, tally)
            is_limited = outcome is None
            is_away |= via == N8N and outcome in TRANSPORT_FAILURES
            tally.waiting += is_limited

    def _send(self, delivery: Delivery, via: str, tally: Tally) -> PostOutcome | None:
        """Try one alert; None where Discord's limits do not allow it now, or it has changed."""
        now = self.clock()
        reserved = ledger.reserve(
            self.connection,
            delivery,
            via,
            self.settings.messages_per_minute,
            now + timedelta(seconds=self.webhooks.timeout) + self._wait(delivery.attempts + 1),
            now,
        )
        if reserved is None:
            return None
        answer = self.webhooks.post(via, delivery.channel, delivery.body)
        verdict = self._verdict(delivery, via, answer)
        ledger.record(self.connection, delivery, reserved, answer, verdict, self.clock())
        tally.sent[answer.outcome] += 1
        tally.dead += verdict.state is DeliveryState.DEAD
        if via == N8N and verdict.state is DeliveryState.DELIVERED:
            ledger.bring_forward(self.connection, self.clock(), channel=delivery.channel)
        return answer.outcome

    def _way(self, delivery: Delivery) -> str:
        """Return where it goes; while n8n is away too long, one alert a minute asks it again."""
        if not (self.webhooks.n8n_url and self.webhooks.discord_url):
            return N8N if self.webhooks.n8n_url else DISCORD
        if delivery.via == DISCORD:
            return DISCORD
        now = self.clock()
        first, last = ledger.without_response(self.connection, delivery.channel, now)
        is_known = first and last and first + self._fallback_after <= now < last + ASK_AGAIN
        return DISCORD if is_known else N8N

    def _verdict(self, delivery: Delivery, via: str, answer: WebhookAnswer) -> NextState:
        now, tried = self.clock(), delivery.attempts + 1
        if answer.outcome is PostOutcome.DELIVERED:
            return NextState(DeliveryState.DELIVERED, now, via)
        is_last = tried > len(self.settings.retry_waits)
        asked_for = now + timedelta(seconds=answer.retry_after or 0)
        next_at = max(now + self._wait(tried), asked_for)
        if (
            via == N8N
            and answer.outcome in TRANSPORT_FAILURES
            and self.webhooks.discord_url
            and not is_last
        ):
            first, _ = ledger.without_response(self.connection, delivery.channel, now)
            passed_by = (first or now) + self._fallback_after
            # n8n may answer others and never this one: the last try is Discord's.
            is_last_but_one = tried == len(self.settings.retry_waits)
            if answer.is_final or passed_by <= now or is_last_but_one:
                return NextState(DeliveryState.RETRYING, now, DISCORD)
            next_at = max(min(next_at, passed_by), asked_for)
        if answer.is_final or is_last:
            return NextState(DeliveryState.DEAD, now, via)
        return NextState(DeliveryState.RETRYING, next_at, via)

    @property
    def _fallback_after(self) -> timedelta:
        return timedelta(seconds=self.settings.fallback_after)

    def _wait(self, tried: int) -> timedelta:
        """Return a random part of the wait after so many tries (AWS's full jitter)."""
        waits = self.settings.retry_waits
        return timedelta(seconds=waits[min(tried, len(waits)) - 1] * self.jitter())

    def _probe(self) -> None:
        """Bring forward what waits for an n8n that is back."""
        unreached = ledger.unreached(self.connection, self.kind)
        if unreached and self.webhooks.is_n8n_ready():
            ledger.bring_forward(self.connection, self.clock(), ids=unreached)

    def _digest(self) -> int:
        waiting = ledger.waiting(self.connection, self.kind)
        body = digest_body(self.kind, waiting, self.clock())
        ledger.enter_digest(self.connection, self.kind, waiting, body, self.clock())
        return len(waiting)


def digest_body(kind: str, digested: Sequence[Delivery], now: datetime) -> dict[str, Any]:
    """Return the one message, for the channel `risk`, that tells of many alerts of a kind."""
    times = [one.occurred_at for one in digested if one.occurred_at]
    span = f"{kst(min(times))} ~ {kst(max(times))}" if times else "시각 미상"
    by_subject = Counter(_subject(one) for one in digested)
    counts = ", ".join(f"{subject} {number}" for subject, number in by_subject.most_common(15))
    newest = itertools.islice(reversed(digested), DIGEST_LINES)
    lines = [
        f"• {kst(one.occurred_at)} {_subject(one)}: {cut(_detail(one), 200)}" for one in newest
    ]
    message = "\n".join(
        [f"밀린 알림 {len(digested)}건 ({kind}), {span}", counts, "최근 알림:", *lines]
    )
    return {
        "type": "DIGEST",
        "level": "WARNING",
        "message": cut(message, LONGEST_DIGEST),
        "timestamp": now.isoformat(),
    }


def _subject(delivery: Delivery) -> str:
    return str(delivery.body.get("symbol") or delivery.body.get("type") or delivery.source_id)


def _detail(delivery: Delivery) -> str:
    body = delivery.body
    if "side" in body:
        return f"{body['side']} {body.get('quantity')} @ {body.get('price')}"
    return str(body.get("reason") or body.get("message") or "-")
