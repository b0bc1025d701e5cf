"""The ledger: one row per (source, source id, channel), which decides what is still to be sent.

Here belong its states, its attempts and every statement that changes them, each committed by
itself. Which rows of the bot become alerts belongs in `kinds`; sending, and how long to wait after
a failure, in `delivery`. Nothing here speaks HTTP or Dagster.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, LiteralString, cast

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from trading_pipelines.alerts.kinds import KINDS, Source, sources_of
from trading_pipelines.alerts.webhooks import TRANSPORT_FAILURES, WebhookAnswer
from trading_pipelines.candles.windows import DAY, MINUTE

COLLECTED_AT_ONCE = 500
# Discord: about 5 requests per 2 s and webhook; the messages a minute are a setting.
BURST, BURST_WINDOW = 5, timedelta(seconds=2)
# An alert that n8n never takes, while it takes others, must not spend a try at each of theirs.
JUST = timedelta(seconds=30)


class DeliveryState(StrEnum):
    """What became of an alert."""

    PENDING = "pending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    DEAD = "dead"
    DIGESTED = "digested"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class NextState:
    """What becomes of an alert after an attempt."""

    state: DeliveryState
    next_at: datetime
    via: str


@dataclass(frozen=True)
class Delivery:
    """A row of `alert_deliveries`."""

    id: int
    kind: str
    source: str
    source_id: str
    channel: str
    state: str
    body: dict[str, Any]
    occurred_at: datetime | None
    created_at: datetime
    next_at: datetime
    via: str
    attempts: int
    is_away: bool
    delivered_at: datetime | None
    message_id: str | None
    last_error: str | None
    digest_id: int | None

    @property
    def can_be_digested(self) -> bool:
        """Whether it may be told with others: not a digest itself, and not asked for by name."""
        return self.source != "digest" and ":again:" not in self.body["idempotency_key"]


@contextmanager
def sender_lock(connection: psycopg.Connection, kind: str) -> Iterator[bool]:
    """Yield whether this connection is the kind's only sender; its end, or its death, frees it.

    A daemon that was killed leaves its tick running in the code server: two senders of one row
    would post it twice.
    """
    key = f"trading_pipelines.alerts.{kind}"
    found = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [key])
    is_ours = bool((found.fetchone() or [False])[0])
    try:
        yield is_ours
    finally:
        if is_ours and not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [key])


SWITCH_ON = """
INSERT INTO trading_pipelines.alert_kinds AS known (kind, is_on, since) VALUES (%s, true, %s)
ON CONFLICT (kind) DO UPDATE SET is_on = true, since = %s WHERE NOT known.is_on
RETURNING since
"""
SKIP_OLD: LiteralString = """
INSERT INTO trading_pipelines.alert_deliveries
    (kind, source, source_id, channel, state, body, occurred_at)
SELECT %(kind)s, %(table)s, source_id, %(channel)s, 'skipped', '{{}}', occurred_at
FROM ({rows}) AS found WHERE occurred_at IS NULL OR (%(in_place)s AND occurred_at < %(now_since)s)
ON CONFLICT DO NOTHING
"""


def enable(
    connection: psycopg.Connection, kind: str, first_since: datetime | None, now: datetime
) -> datetime:
    """Return since when alerts of the kind are sent: the moment it was last switched on (UTC).

    `first_since` is that moment the first time, where the operator has set one. What can't be told
    from older rows by its time (none on record, or a row that is updated in place) is skipped then.
    """
    known = enabled_since(connection, kind)
    if known:
        return known
    with connection.transaction():
        first = first_since or now
        fresh = connection.execute(SWITCH_ON, [kind, first, now]).fetchone()
        if fresh:
            for source in sources_of(kind):
                connection.execute(
                    SKIP_OLD.format(rows=source.rows),
                    {
                        "kind": kind,
                        "table": source.table,
                        "channel": source.channel,
                        "in_place": source.is_updated_in_place,
                        "since": datetime.min.replace(tzinfo=UTC),
                        "now_since": fresh[0],
                    },
                )
    return cast(datetime, fresh[0]) if fresh else enable(connection, kind, first_since, now)


def enabled_since(connection: psycopg.Connection, kind: str) -> datetime | None:
    """Return since when alerts of the kind are sent (UTC); None while it is off or was never on."""
    found = connection.execute(
        "SELECT since FROM trading_pipelines.alert_kinds WHERE kind = %s AND is_on", [kind]
    ).fetchone()
    return found[0] if found else None


def disable(connection: psycopg.Connection, kind: str) -> int:
    """Note that the kind is off, and skip what waits; return how many alerts that were."""
    with connection.transaction():
        connection.execute(
            "INSERT INTO trading_pipelines.alert_kinds AS known VALUES (%s, false, now()) "
            "ON CONFLICT (kind) DO UPDATE SET is_on = false WHERE known.is_on",
            [kind],
        )
        return connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = 'skipped' "
            "WHERE kind = %s AND state IN ('pending', 'retrying')",
            [kind],
        ).rowcount


# A time that Python can't hold (infinity) is none.
UNDELIVERED: LiteralString = """
SELECT source_id, CASE WHEN occurred_at < '9999-12-31' THEN occurred_at END AS occurred_at, row
FROM ({rows}) AS found
WHERE NOT EXISTS (SELECT FROM trading_pipelines.alert_deliveries AS known
    WHERE known.source = %(table)s AND known.source_id = found.source_id
      AND known.channel = %(channel)s)
ORDER BY occurred_at NULLS LAST LIMIT %(limit)s
"""


def collect(connection: psycopg.Connection, kind: str, since: datetime, now: datetime) -> int:
    """Enter the bot's rows that the ledger does not hold; return how many.

    By anti-join, never by a greatest id: a serial number is taken before its transaction commits,
    so a lower one may appear later. A row that no body can be made of is entered as dead.
    """
    entered = 0
    for source in sources_of(kind):
        rows = connection.execute(
            UNDELIVERED.format(rows=source.rows),
            {
                "table": source.table,
                "channel": source.channel,
                "since": since,
                "limit": COLLECTED_AT_ONCE,
            },
        ).fetchall()
        for source_id, occurred_at, row in rows:
            body, problem = _body(connection, source, row, occurred_at or now)
            entered += enter(
                connection,
                kind,
                source.table,
                source_id,
                source.channel,
                body,
                occurred_at=occurred_at,
                problem=problem,
            )
    return entered


def _body(
    connection: psycopg.Connection, source: Source, row: dict[str, Any], at: datetime
) -> tuple[dict[str, Any], str | None]:
    try:
        return source.body(connection, row, at), None
    except psycopg.OperationalError:
        raise
    # Whatever a row holds (a cooldown until the year 9999 overflows in KST), the others go on.
    except Exception as error:  # noqa: BLE001
        return {}, f"no message can be made of the row: {type(error).__name__}: {error}"


ENTER = """
INSERT INTO trading_pipelines.alert_deliveries
    (kind, source, source_id, channel, state, body, occurred_at, next_at, last_error)
VALUES (%s, %s, %s, %s, %s, %s, %s, coalesce(%s, clock_timestamp()), %s)
ON CONFLICT (source, source_id, channel) DO NOTHING
"""


def enter(
    connection: psycopg.Connection,
    kind: str,
    source: str,
    source_id: str,
    channel: str,
    body: dict[str, Any],
    *,
    occurred_at: datetime | None,
    next_at: datetime | None = None,
    problem: str | None = None,
) -> bool:
    """Enter one alert unless the ledger holds it already; return whether it is new.

    A body with a `problem` is dead from the start.
    """
    state = DeliveryState.DEAD if problem else DeliveryState.PENDING
    key = f"{source}:{source_id}:{channel}"
    keyed = Jsonb(_storable({**body, "idempotency_key": key}))
    values = [kind, source, source_id, channel, state, keyed, occurred_at, next_at, problem]
    return connection.execute(ENTER, values).rowcount == 1


def _storable(value: Any) -> Any:  # noqa: ANN401
    """Return JSON without what Postgres can't store: NUL, half a surrogate pair, NaN."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


DUE = """
SELECT * FROM trading_pipelines.alert_deliveries
WHERE kind = %s AND state IN ('pending', 'retrying') AND next_at <= %s
ORDER BY next_at, id LIMIT %s
"""


def due(
    connection: psycopg.Connection, kind: str, now: datetime, limit: int = COLLECTED_AT_ONCE
) -> list[Delivery]:
    """Return the alerts of the kind to be tried now, the longest due first."""
    with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        return cursor.execute(DUE, [kind, now, limit]).fetchall()


def waiting(connection: psycopg.Connection, kind: str) -> list[Delivery]:
    """Return the alerts of the kind that wait and may be told by a digest, the oldest first."""
    with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        cursor.execute(
            "SELECT * FROM trading_pipelines.alert_deliveries "
            "WHERE kind = %s AND state IN ('pending', 'retrying') "
            "ORDER BY occurred_at NULLS LAST, id",
            [kind],
        )
        return [one for one in cursor if one.can_be_digested]


def enter_digest(
    connection: psycopg.Connection,
    kind: str,
    digested: Sequence[Delivery],
    body: dict[str, Any],
    now: datetime,
) -> None:
    """Enter one message for many alerts, and close those, all or nothing."""
    ids = [one.id for one in digested]
    source_id = f"{kind} {min(ids)}-{max(ids)} {now.isoformat()}"
    with connection.transaction():
        enter(connection, kind, "digest", source_id, "risk", body, occurred_at=now)
        connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = 'digested', digest_id = "
            "(SELECT id FROM trading_pipelines.alert_deliveries "
            " WHERE source = 'digest' AND source_id = %s) WHERE id = ANY(%s)",
            [source_id, ids],
        )


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
    verdict: NextState,
    now: datetime,
) -> None:
    """Close an attempt, and say what becomes of its alert."""
    is_delivered = verdict.state is DeliveryState.DELIVERED
    text = _storable(answer.text)
    with connection.transaction():
        connection.execute(
            "UPDATE trading_pipelines.alert_attempts "
            "SET outcome = %s, status = %s, answer = %s, seconds = %s WHERE id = %s",
            [answer.outcome, answer.status, text, answer.seconds, attempt_id],
        )
        connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = %s, next_at = %s, via = %s, "
            "is_away = %s, delivered_at = %s, message_id = %s, last_error = %s "
            # Unless it was replayed meanwhile, which starts anew.
            "WHERE id = %s AND attempts = %s",
            [
                verdict.state,
                verdict.next_at,
                verdict.via,
                answer.outcome in TRANSPORT_FAILURES,
                now if is_delivered else None,
                _storable(answer.message_id),
                None if is_delivered else text,
                delivery.id,
                delivery.attempts + 1,
            ],
        )


def give_up(connection: psycopg.Connection, kind: str, tries: int, now: datetime) -> int:
    """Close the alerts whose sender died in the last of their tries; return how many."""
    return connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = 'dead' "
        "WHERE kind = %s AND state = 'retrying' AND attempts >= %s AND next_at <= %s",
        [kind, tries, now],
    ).rowcount


WITHOUT_RESPONSE = """
WITH tried AS (
    SELECT started_at, outcome FROM trading_pipelines.alert_attempts
    JOIN trading_pipelines.alert_deliveries ON alert_deliveries.id = delivery_id
    WHERE alert_attempts.via = 'n8n' AND channel = %s AND started_at > %s)
SELECT min(started_at), max(started_at) FROM tried
WHERE outcome IN ('away', 'unreachable') AND started_at > coalesce(
    (SELECT max(started_at) FROM tried WHERE outcome IN ('delivered', 'refused')), '-infinity')
"""


def without_response(
    connection: psycopg.Connection, channel: str, now: datetime
) -> tuple[datetime, datetime] | tuple[None, None]:
    """Return the first and last attempt (UTC) that found no n8n since the channel last answered.

    Nones where it answers, or was not tried for a week.
    """
    return connection.execute(WITHOUT_RESPONSE, [channel, now - 7 * DAY]).fetchone() or (None, None)


UNREACHED = """
SELECT id FROM trading_pipelines.alert_deliveries AS waiting
WHERE kind = %s AND state = 'retrying' AND via = 'n8n' AND is_away AND 'unreachable' =
    (SELECT outcome FROM trading_pipelines.alert_attempts AS tried
     WHERE tried.delivery_id = waiting.id ORDER BY tried.id DESC LIMIT 1)
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
        " SELECT FROM trading_pipelines.alert_attempts AS tried"
        " WHERE tried.delivery_id = waiting.id AND started_at > %(just)s))",
        {"now": now, "ids": list(ids), "channel": channel, "just": now - JUST},
    )


LISTED = """
SELECT * FROM trading_pipelines.alert_deliveries
WHERE (%(states)s::text[] IS NULL OR state = ANY(%(states)s))
  AND (%(kind)s::text IS NULL OR kind = %(kind)s)
  AND (%(source_id)s::text IS NULL OR source_id = %(source_id)s)
  AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
ORDER BY id DESC LIMIT %(limit)s
"""


def listed(
    connection: psycopg.Connection,
    *,
    since: datetime | None = None,
    states: Sequence[DeliveryState] | None = None,
    kind: str | None = None,
    source_id: str | None = None,
    ids: Sequence[int] | None = None,
    limit: int | None = None,
) -> list[Delivery]:
    """Return the alerts that were entered since (UTC) and are as asked, the newest first."""
    wanted = {
        "states": list(states) if states else None,
        "ids": list(ids) if ids else None,
        "kind": kind,
        "source_id": source_id,
        "since": since,
        "limit": limit,
    }
    with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        return cursor.execute(LISTED, wanted).fetchall()


def source_ids(connection: psycopg.Connection, source: str) -> set[str]:
    """Return what the ledger holds of a source, whatever became of it."""
    rows = connection.execute(
        "SELECT source_id FROM trading_pipelines.alert_deliveries WHERE source = %s", [source]
    )
    return {row[0] for row in rows}


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


def attempts(connection: psycopg.Connection, delivery_id: int) -> list[Attempt]:
    """Return the tries of an alert in the order they were made."""
    with connection.cursor(row_factory=class_row(Attempt)) as cursor:
        return cursor.execute(
            "SELECT number, started_at, via, outcome, status, answer, seconds "
            "FROM trading_pipelines.alert_attempts WHERE delivery_id = %s ORDER BY id",
            [delivery_id],
        ).fetchall()


REPLAY = """
UPDATE trading_pipelines.alert_deliveries SET state = 'pending', attempts = 0, via = 'n8n',
    is_away = false, next_at = clock_timestamp(), delivered_at = NULL, message_id = NULL,
    last_error = NULL, digest_id = NULL,
    body = coalesce(%(body)s, body) || jsonb_build_object('idempotency_key',
        concat_ws(':', source, source_id, channel, 'again', to_char(
            clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))
WHERE id = ANY(%(ids)s) AND body ? 'timestamp' RETURNING id
"""


def replay(
    connection: psycopg.Connection, ids: Sequence[int], body: dict[str, Any] | None = None
) -> list[int]:
    """Send alerts anew, whatever became of them, as a new message each; return their ids.

    A new `body` replaces the old one. A dead alert whose row no body could be made of is taken out,
    so that the next look at the bot's table tries again. What was skipped as old stays.
    """
    wanted = {"ids": list(ids), "body": None if body is None else Jsonb(_storable(body))}
    with connection.transaction():
        again = [row[0] for row in connection.execute(REPLAY, wanted)]
        again += [
            row[0]
            for row in connection.execute(
                "DELETE FROM trading_pipelines.alert_deliveries "
                "WHERE id = ANY(%s) AND state = 'dead' AND NOT body ? 'timestamp' RETURNING id",
                [list(ids)],
            )
        ]
    return again


def last_delivered(connection: psycopg.Connection) -> datetime | None:
    """Return when (UTC) the newest alert was delivered."""
    row = connection.execute(
        "SELECT max(delivered_at) FROM trading_pipelines.alert_deliveries"
    ).fetchone()
    return row[0] if row else None


def counts(connection: psycopg.Connection) -> dict[str, dict[str, int]]:
    """Return how many alerts of each kind are in each state; a kind without any has zeros."""
    found = {kind: dict.fromkeys(map(str, DeliveryState), 0) for kind in KINDS}
    for kind, state, number in connection.execute(
        "SELECT kind, state, count(*) FROM trading_pipelines.alert_deliveries GROUP BY kind, state"
    ):
        found.setdefault(kind, dict.fromkeys(map(str, DeliveryState), 0))[state] = number
    return found
