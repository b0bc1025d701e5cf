"""Attempts to send the ledger's alerts: begun within Discord's limits, closed with an answer.

Here belong the statements about `alert_attempts` and what an attempt changes of its alert, each
committed by itself. Alerts are entered and listed in `ledger`; sending, and how long to wait after
a failure, belong in `delivery`. Nothing here speaks HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row

from trading_pipelines.alerts.ledger import Delivery, DeliveryState, storable
from trading_pipelines.alerts.webhooks import TRANSPORT_FAILURES, WebhookAnswer
from trading_pipelines.candles.windows import DAY, MINUTE

# Of a webhook; the messages a minute, of a channel, are a setting. Discord documents only that such
# limits exist (https://discord.com/developers/docs/topics/rate-limits); its staff named both, 5 in
# 2 s and 30 in 60 s, in https://github.com/discord/discord-api-docs/issues/367.
BURST, BURST_WINDOW = 5, timedelta(seconds=2)
# An alert that n8n never takes must not spend an attempt each time that n8n takes another: it waits
# at least as long, and this part of its own wait. By the first alone four minutes made it dead.
JUST, PART = timedelta(seconds=30), 0.1


@dataclass(frozen=True)
class NextState:
    """What becomes of an alert after an attempt."""

    state: DeliveryState
    next_at: datetime
    via: str
    spends_a_try: bool = True
    """False where the endpoint was at fault, and not the alert."""


@dataclass(frozen=True)
class Attempt:
    """A row of `alert_attempts`, as a person wants to see it."""

    number: int
    started_at: datetime
    via: str
    outcome: str | None
    status: int | None
    answer: str | None
    seconds: float | None


def reserve(
    connection: psycopg.Connection,
    delivery: Delivery,
    via: str,
    per_minute: int,
    retry_at: datetime,
    now: datetime,
) -> int | None:
    """Begin an attempt and return its id, or None where Discord's limits do not allow one now.

    None as well where the alert has changed since it was read: switched off, replayed or digested.
    The limits are over all kinds and processes. If the sender dies now, the alert is tried again at
    `retry_at`.
    """
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('trading_pipelines.discord', 0))"
        )
        recent = [
            row[0]
            for row in connection.execute(
                "SELECT started_at FROM trading_pipelines.alert_attempts "
                "WHERE started_at > %s AND outcome IS DISTINCT FROM 'unreachable' "
                "ORDER BY started_at DESC LIMIT %s",
                [now - MINUTE, max(per_minute, BURST)],
            )
        ]
        for count, window in ((per_minute, MINUTE), (BURST, BURST_WINDOW)):
            if len(recent) >= count and recent[count - 1] > now - window:
                return None
        is_ours = connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = 'retrying', "
            "attempts = attempts + 1, next_at = %s, last_error = 'no answer on record: the sender "
            "died, or is waiting for it' "
            "WHERE id = %s AND attempts = %s AND state IN ('pending', 'retrying')",
            [retry_at, delivery.id, delivery.attempts],
        ).rowcount
        if not is_ours:
            return None
        row = connection.execute(
            "INSERT INTO trading_pipelines.alert_attempts (delivery_id, number, started_at, via) "
            "VALUES (%s, %s, %s, %s) RETURNING id",
            [delivery.id, delivery.attempts + 1, now, via],
        ).fetchone()
    assert row is not None
    return int(row[0])


def record(
    connection: psycopg.Connection,
    delivery: Delivery,
    attempt_id: int,
    answer: WebhookAnswer,
    next_state: NextState,
    now: datetime,
) -> None:
    """Close an attempt and put its alert into the next state."""
    is_delivered = next_state.state is DeliveryState.DELIVERED
    text = storable(answer.text)
    with connection.transaction():
        connection.execute(
            "UPDATE trading_pipelines.alert_attempts "
            "SET outcome = %s, status = %s, answer = %s, seconds = %s WHERE id = %s",
            [answer.outcome, answer.status, text, answer.seconds, attempt_id],
        )
        connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = %s, next_at = %s, via = %s, "
            "is_away = %s, delivered_at = %s, message_id = %s, last_error = %s, "
            "attempts = attempts - %s "
            # Unless it was replayed meanwhile, which starts anew.
            "WHERE id = %s AND attempts = %s",
            [
                next_state.state,
                next_state.next_at,
                next_state.via,
                answer.outcome in TRANSPORT_FAILURES,
                now if is_delivered else None,
                storable(answer.message_id),
                None if is_delivered else text,
                0 if next_state.spends_a_try else 1,
                delivery.id,
                delivery.attempts + 1,
            ],
        )


def give_up(connection: psycopg.Connection, kind: str, attempts: int, now: datetime) -> int:
    """Close the alerts whose sender died in the last of their attempts; return how many."""
    return connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = 'dead' "
        "WHERE kind = %s AND state = 'retrying' AND attempts >= %s AND next_at <= %s",
        [kind, attempts, now],
    ).rowcount


def give_up_waiting(
    connection: psycopg.Connection, kind: str, channels: Sequence[str], before: datetime
) -> int:
    """Close the kind's alerts of the channels that wait since before then; return how many."""
    return connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = 'dead', last_error = concat_ws("
        "'; ', 'its endpoint was in trouble for as long as alerts.look_back_days', last_error) "
        "WHERE kind = %s AND state IN ('pending', 'retrying') AND channel = ANY(%s) "
        "AND created_at < %s",
        [kind, list(channels), before],
    ).rowcount


WITHOUT_RESPONSE = """
WITH attempt AS (
    SELECT started_at, outcome FROM trading_pipelines.alert_attempts
    JOIN trading_pipelines.alert_deliveries ON alert_deliveries.id = delivery_id
    WHERE alert_attempts.via = 'n8n' AND channel = %s AND started_at > %s)
SELECT min(started_at), max(started_at) FROM attempt
WHERE outcome IN ('away', 'unreachable') AND started_at > coalesce(
    (SELECT max(started_at) FROM attempt WHERE outcome IN ('delivered', 'refused')), '-infinity')
"""


def began(connection: psycopg.Connection, delivery_id: int) -> datetime | None:
    """Return when the first attempt of an alert was begun (UTC), since it was last sent anew."""
    row = connection.execute(
        "SELECT max(started_at) FROM trading_pipelines.alert_attempts "
        "WHERE delivery_id = %s AND number = 1",
        [delivery_id],
    ).fetchone()
    return row[0] if row else None


def without_response(
    connection: psycopg.Connection, channel: str, now: datetime
) -> tuple[datetime, datetime] | tuple[None, None]:
    """Return the first and last attempt (UTC) that found no n8n since the channel last answered.

    Nones where it answers, or where there was no attempt for a week.
    """
    return connection.execute(WITHOUT_RESPONSE, [channel, now - 7 * DAY]).fetchone() or (None, None)


UNREACHED = """
SELECT id FROM trading_pipelines.alert_deliveries AS waiting
WHERE kind = %s AND state = 'retrying' AND via = 'n8n' AND is_away AND 'unreachable' =
    (SELECT outcome FROM trading_pipelines.alert_attempts AS attempt
     WHERE attempt.delivery_id = waiting.id ORDER BY attempt.id DESC LIMIT 1)
"""


def unreached(connection: psycopg.Connection, kind: str) -> list[int]:
    """Return the ids of what waits because no connection to n8n could be made."""
    return [row[0] for row in connection.execute(UNREACHED, [kind])]


def bring_forward(
    connection: psycopg.Connection,
    now: datetime,
    *,
    ids: Sequence[int] = (),
    channel: str | None = None,
) -> None:
    """Make what waits because n8n was away due now: these ids, or a channel's old ones."""
    connection.execute(
        "UPDATE trading_pipelines.alert_deliveries AS waiting SET next_at = %(now)s "
        "WHERE state = 'retrying' AND via = 'n8n' AND is_away AND next_at > %(now)s "
        "AND (id = ANY(%(ids)s::bigint[]) OR channel = %(channel)s AND NOT EXISTS ("
        " SELECT FROM trading_pipelines.alert_attempts AS attempt"
        " WHERE attempt.delivery_id = waiting.id AND started_at > %(now)s - greatest(%(just)s,"
        "  %(part)s * (waiting.next_at - started_at))))",
        {"now": now, "ids": list(ids), "channel": channel, "just": JUST, "part": PART},
    )


def read(connection: psycopg.Connection, delivery_id: int) -> list[Attempt]:
    """Return the attempts of an alert in the order they were made."""
    with connection.cursor(row_factory=class_row(Attempt)) as cursor:
        return cursor.execute(
            "SELECT number, started_at, via, outcome, status, answer, seconds "
            "FROM trading_pipelines.alert_attempts WHERE delivery_id = %s ORDER BY id",
            [delivery_id],
        ).fetchall()
