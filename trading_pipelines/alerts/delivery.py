"""Sending what the ledger holds: when to attempt, when to give up, when to go round n8n.

A sensor's tick is one call of `deliver`. The statements belong in `ledger` and `attempts`, the POST
and the meaning of its answer in `webhooks`.
"""

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from trading_pipelines.alerts import attempts, endpoints, ledger
from trading_pipelines.alerts.attempts import NextState
from trading_pipelines.alerts.endpoints import Endpoint
from trading_pipelines.alerts.kinds import CHANNELS, cut
from trading_pipelines.alerts.ledger import Delivery, DeliveryState
from trading_pipelines.alerts.webhooks import (
    DISCORD,
    N8N,
    TRANSPORT_FAILURES,
    EndpointTrouble,
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
# Retries and what a person replays can wait a second; new alerts can not.
RETRY_POLL_SECONDS = 1.0
PROBE_EVERY_SECONDS = 5.0
ASK_N8N_AGAIN = timedelta(minutes=1)
# What has waited is to be told within two minutes of the endpoint's mending.
ASK_BROKEN_AGAIN = timedelta(seconds=90)
# Of a 429 that does not say for how long; doubled each time.
SHORTEST_REST, LONGEST_REST = timedelta(minutes=1), timedelta(minutes=30)
# What has waited so long for an endpoint is told in one message with the others.
OLD = timedelta(hours=1)
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
    """Alerts that were due and had to wait for Discord's limits, for n8n or an endpoint."""

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [
            f"{self.entered} new",
            *(f"{number} {outcome}" for outcome, number in sorted(self.sent.items())),
            *(f"{number} {name}" for name, number in (
                ("dead", self.dead), ("digested", self.digested), ("waiting", self.waiting)
            ) if number),
        ]  # fmt: skip
        return ", ".join(parts)


@dataclass(frozen=True)
class Sender:
    """Delivers the alerts of one kind over one connection."""

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
        """Attempt each due alert once; more than `digest_over` of them become one message."""
        attempts_allowed = len(self.settings.retry_waits) + 1
        tally.dead += attempts.give_up(self.connection, self.kind, attempts_allowed, self.clock())
        seen = endpoints.read(self.connection, self.webhooks)
        troubles = {endpoint.name: endpoint for endpoint in seen if endpoint.mended_at is None}
        tally.dead += self._give_up_waiting(troubles)
        due = ledger.due(self.connection, self.kind, self.clock())
        # While Discord takes nothing, more may come: one digest when it is mended, not one a look.
        if DISCORD not in troubles and self._is_for_a_digest(due, seen):
            tally.digested += self._digest()
            due = ledger.due(self.connection, self.kind, self.clock())
        is_n8n_away = is_limited = False
        tally.waiting = 0
        for delivery in due:
            via = self._open_route(delivery, troubles)
            # While n8n is away the others need not all find out by themselves.
            if via is None or is_limited or is_over() or (via == N8N and is_n8n_away):
                tally.waiting += 1
                continue
            outcome = self._attempt(delivery, via, troubles, tally)
            is_limited = outcome is None
            is_n8n_away |= via == N8N and outcome in TRANSPORT_FAILURES
            tally.waiting += is_limited
            before, troubles = troubles, endpoints.in_trouble(self.connection, self.webhooks)
            if DISCORD in before and DISCORD not in troubles:
                self._send_due(tally, is_over)  # what has waited may be a digest's
                return

    def _give_up_waiting(self, troubles: Mapping[str, Endpoint]) -> int:
        """Close what has waited for an endpoint as long as `look_back_days`; return how many."""
        before = self.clock() - timedelta(days=self.settings.look_back_days)
        closed = {name for name, endpoint in troubles.items() if endpoint.since < before}
        if self.webhooks.discord_url:
            closed &= {DISCORD}  # round n8n
        channels = [channel for channel in CHANNELS if closed & set(endpoints.passed(N8N, channel))]
        if not channels:
            return 0
        return attempts.give_up_waiting(self.connection, self.kind, channels, before)

    def _is_for_a_digest(self, due: Sequence[Delivery], seen: Sequence[Endpoint]) -> bool:
        """Whether what is due is too many, or several have waited for an endpoint for too long."""
        candidates = [delivery for delivery in due if delivery.can_be_digested]
        mended = [e.mended_at for e in seen if e.mended_at and e.mended_at - e.since >= OLD]
        old = [
            delivery
            for delivery in candidates
            if any(
                delivery.next_at < at and (delivery.occurred_at or delivery.next_at) < at - OLD
                for at in mended
            )
        ]
        return len(candidates) > self.settings.digest_over or len(old) > 1

    def _open_route(self, delivery: Delivery, troubles: Mapping[str, Endpoint]) -> str | None:
        """Return by which way the alert can be posted now, None where it has to wait.

        Of an endpoint in trouble one alert at a time asks whether it is mended.
        """
        routes = [self._choose_route(delivery)]
        n8n_trouble = troubles.get(f"{N8N}/{delivery.channel}")
        if (
            routes == [N8N]
            and self.webhooks.discord_url
            and n8n_trouble
            and n8n_trouble.trouble == EndpointTrouble.BROKEN
        ):
            routes.append(DISCORD)
        now = self.clock()
        return next(
            (
                via
                for via in routes
                if all(
                    troubles[name].next_at <= now
                    for name in endpoints.passed(via, delivery.channel)
                    if name in troubles
                )
            ),
            None,
        )

    def _choose_route(self, delivery: Delivery) -> str:
        """Return N8N or DISCORD; while n8n is away too long, one alert a minute asks it again."""
        if not (self.webhooks.n8n_url and self.webhooks.discord_url):
            return N8N if self.webhooks.n8n_url else DISCORD
        if delivery.via == DISCORD:
            return DISCORD
        now = self.clock()
        away_since, last_asked = attempts.without_response(self.connection, delivery.channel, now)
        if away_since is None or last_asked is None:
            return N8N
        is_away_too_long = away_since + self._fallback_after <= now
        was_just_asked = now < last_asked + ASK_N8N_AGAIN
        return DISCORD if is_away_too_long and was_just_asked else N8N

    def _attempt(
        self, delivery: Delivery, via: str, troubles: Mapping[str, Endpoint], tally: Tally
    ) -> PostOutcome | None:
        """Attempt one alert; None where Discord's limits do not allow it now, or it has changed."""
        now = self.clock()
        passed = endpoints.passed(via, delivery.channel)
        asked = [name for name in passed if name in troubles]
        if not endpoints.claim(self.connection, asked, now + ASK_BROKEN_AGAIN, now):
            return None
        attempt_id = attempts.reserve(
            self.connection,
            delivery,
            via,
            self.settings.messages_per_minute,
            now + timedelta(seconds=self.webhooks.timeout) + self._back_off(delivery.attempts + 1),
            now,
        )
        if attempt_id is None:
            endpoints.release(self.connection, asked, now)
            return None
        answer = self.webhooks.post(via, delivery.channel, delivery.body)
        rest = self._note_endpoints(delivery, answer, passed, troubles)
        next_state = self._next_state(delivery, via, answer, rest)
        attempts.record(self.connection, delivery, attempt_id, answer, next_state, self.clock())
        tally.sent[answer.outcome] += 1
        tally.dead += next_state.state is DeliveryState.DEAD
        if via == N8N and next_state.state is DeliveryState.DELIVERED:
            attempts.bring_forward(self.connection, self.clock(), channel=delivery.channel)
        return answer.outcome

    def _note_endpoints(
        self,
        delivery: Delivery,
        answer: WebhookAnswer,
        passed: Sequence[str],
        troubles: Mapping[str, Endpoint],
    ) -> timedelta:
        """Note what the answer says of the endpoints; return how long the one in trouble rests."""
        now = self.clock()
        name = DISCORD if answer.of == DISCORD else f"{N8N}/{delivery.channel}"
        # Their rests are over, or nothing would have been posted.
        limited = {e.name for e in troubles.values() if e.trouble == EndpointTrouble.LIMITED}
        rested = [
            other for other in passed if other in limited and not (answer.trouble and other == name)
        ]
        endpoints.mend(self.connection, rested, now)
        if answer.trouble is None:
            # What Discord has read, even to refuse it, has come through.
            is_read = answer.outcome is PostOutcome.REFUSED and answer.is_final and answer.status
            if answer.outcome is PostOutcome.DELIVERED or is_read:
                endpoints.mend(self.connection, passed, now)
            return timedelta(0)
        if answer.of == DISCORD:
            endpoints.mend(self.connection, [other for other in passed if other != name], now)
        rests, rest = 0, ASK_BROKEN_AGAIN
        if answer.trouble is EndpointTrouble.LIMITED:
            rests_before = troubles[name].rests if name in troubles else 0
            rests = 0 if answer.retry_after else rests_before + 1
            rest = timedelta(seconds=answer.retry_after or 0) or min(
                SHORTEST_REST * 2 ** min(rests_before, 10), LONGEST_REST
            )
        endpoints.note(
            self.connection, self.webhooks, name, answer, rests=rests, next_at=now + rest, now=now
        )
        return rest

    def _next_state(
        self, delivery: Delivery, via: str, answer: WebhookAnswer, rest: timedelta
    ) -> NextState:
        """Return what becomes of the alert: delivered, dead, or retried then and by that route.

        What is its endpoint's fault spends none of its tries.
        """
        now, attempt = self.clock(), delivery.attempts + 1
        if answer.outcome is PostOutcome.DELIVERED:
            return NextState(DeliveryState.DELIVERED, now, via)
        if answer.trouble is EndpointTrouble.BROKEN:
            is_round = answer.of == N8N and self.webhooks.discord_url
            next_at = min(delivery.next_at, now)
            return NextState(
                DeliveryState.RETRYING, next_at, DISCORD if is_round else via, spends_a_try=False
            )
        is_limited = answer.trouble is EndpointTrouble.LIMITED
        attempts_left = len(self.settings.retry_waits) + 1 - attempt + is_limited
        not_before = now + (rest or timedelta(seconds=answer.retry_after or 0))
        retry_at = max(now + self._back_off(attempt), not_before)
        has_n8n_failed = via == N8N and answer.outcome in TRANSPORT_FAILURES
        if has_n8n_failed and self.webhooks.discord_url and attempts_left > 0:
            away_since, _ = attempts.without_response(self.connection, delivery.channel, now)
            # n8n may answer others and never this one.
            began = attempts.began(self.connection, delivery.id)
            fallback_at = min(away_since or now, began or now) + self._fallback_after
            if answer.is_final or fallback_at <= now or attempts_left == 1:
                return NextState(DeliveryState.RETRYING, now, DISCORD)
            retry_at = max(min(retry_at, fallback_at), not_before)
        if answer.is_final or attempts_left <= 0:
            return NextState(DeliveryState.DEAD, now, via)
        return NextState(DeliveryState.RETRYING, retry_at, via, spends_a_try=not is_limited)

    @property
    def _fallback_after(self) -> timedelta:
        return timedelta(seconds=self.settings.fallback_after)

    def _back_off(self, attempt: int) -> timedelta:
        """Return a random part of the wait after an attempt, counted from 1 (AWS's full jitter)."""
        waits = self.settings.retry_waits
        return timedelta(seconds=waits[min(attempt, len(waits)) - 1] * self.jitter())

    def _probe(self) -> None:
        """Make due now what waits for an n8n that is back."""
        unreached = attempts.unreached(self.connection, self.kind)
        if unreached and self.webhooks.is_n8n_ready():
            attempts.bring_forward(self.connection, self.clock(), ids=unreached)

    def _digest(self) -> int:
        waiting = ledger.waiting(self.connection, self.kind)
        body = digest_body(self.kind, waiting, self.clock())
        ledger.enter_digest(self.connection, self.kind, waiting, body, self.clock())
        return len(waiting)


def digest_body(kind: str, digested: Sequence[Delivery], now: datetime) -> dict[str, Any]:
    """Return one message, for the channel `risk`, in place of many alerts of a kind."""
    times = [delivery.occurred_at for delivery in digested if delivery.occurred_at]
    span = f"{kst(min(times))} ~ {kst(max(times))}" if times else "시각 미상"
    by_subject = Counter(map(_subject, digested))
    counts = ", ".join(f"{subject} {number}" for subject, number in by_subject.most_common(15))
    newest = itertools.islice(reversed(digested), DIGEST_LINES)
    lines = [
        f"• {kst(delivery.occurred_at)} {_subject(delivery)}: {cut(_detail(delivery), 200)}"
        for delivery in newest
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
