"""The ledger: one row per (source, source id, channel), which decides what is still to be sent.

Here belong the alerts' states, how alerts are entered, listed and sent again, and which kinds are
on; each change is committed by itself. Attempts to send them belong in `attempts`; which rows of
the bot become alerts in `kinds`; how long to wait after a failure in `delivery`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, LiteralString, cast

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from trading_pipelines.alerts.kinds import KINDS, Source, sources_of

COLLECTED_AT_ONCE = 500


class DeliveryState(StrEnum):
    """What became of an alert."""

    PENDING = "pending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    DEAD = "dead"
    DIGESTED = "digested"
    SKIPPED = "skipped"


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
        """Whether a digest may tell of it: it is none itself, and nobody asked for it by name."""
        return self.source != "digest" and ":again:" not in self.body["idempotency_key"]


@contextmanager
def sender_lock(connection: psycopg.Connection, kind: str) -> Iterator[bool]:
    """Yield whether this connection is the kind's only sender; its end, or its death, frees it.

    A daemon that was killed leaves its tick running in the code server: two senders of one row
    would post it twice.
    """
    key = f"trading_pipelines.alerts.{kind}"
    row = connection.execute(
        "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [key]
    ).fetchone()
    is_ours = bool(row and row[0])
    try:
        yield is_ours
    finally:
        if is_ours and not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [key])


ENABLE_KIND = """
INSERT INTO trading_pipelines.alert_kinds AS known (kind, is_on, since) VALUES (%s, true, %s)
ON CONFLICT (kind) DO UPDATE SET is_on = true, since = %s WHERE NOT known.is_on
RETURNING since
"""
SKIP_OLD: LiteralString = """
INSERT INTO trading_pipelines.alert_deliveries
    (kind, source, source_id, channel, state, body, occurred_at)
SELECT %(kind)s, %(table)s, source_id, %(channel)s, 'skipped', '{{}}', occurred_at
FROM ({rows}) AS source_row
WHERE occurred_at IS NULL OR (%(in_place)s AND occurred_at < %(now_since)s)
ON CONFLICT DO NOTHING
"""


def enable(
    connection: psycopg.Connection, kind: str, first_since: datetime | None, now: datetime
) -> datetime:
    """Return since when alerts of the kind are sent: the moment it was last switched on (UTC).

    `first_since` is that moment the first time, where the operator has set one. What is older and
    can't be told from later rows by its time (no time, or a row updated in place) is skipped then.
    """
    since = enabled_since(connection, kind)
    if since:
        return since
    with connection.transaction():
        observe(connection, kind)
        first = first_since or now
        enabled = connection.execute(ENABLE_KIND, [kind, first, now]).fetchone()
        if enabled:
            for source in sources_of(kind):
                connection.execute(
                    SKIP_OLD.format(rows=source.rows),
                    {
                        "kind": kind,
                        "table": source.table,
                        "channel": source.channel,
                        "in_place": source.observe is not None,
                        "since": datetime.min.replace(tzinfo=UTC),
                        "now_since": enabled[0],
                    },
                )
    # None: another process has enabled it meanwhile.
    return cast(datetime, enabled[0]) if enabled else enable(connection, kind, first_since, now)


def enabled_since(connection: psycopg.Connection, kind: str) -> datetime | None:
    """Return since when alerts of the kind are sent (UTC); None while it is off or was never on."""
    row = connection.execute(
        "SELECT since FROM trading_pipelines.alert_kinds WHERE kind = %s AND is_on", [kind]
    ).fetchone()
    return row[0] if row else None


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


# A time that Python can't hold (infinity) counts as no time. Entered is entered, whatever the
# channel: a rejection that one kind has told is not told by the other.
UNDELIVERED: LiteralString = """
SELECT source_id, CASE WHEN occurred_at < '9999-12-31' THEN occurred_at END AS occurred_at, row
FROM ({rows}) AS source_row
WHERE NOT EXISTS (SELECT FROM trading_pipelines.alert_deliveries AS entered
    WHERE entered.source = %(table)s AND entered.source_id = source_row.source_id)
ORDER BY occurred_at NULLS LAST LIMIT %(limit)s
"""


def collect(connection: psycopg.Connection, kind: str, since: datetime, now: datetime) -> int:
    """Enter the bot's rows that the ledger does not hold; return how many.

    By anti-join, never by a greatest id: a serial number is taken before its transaction commits,
    so a lower one may appear later. A row that no body can be made of is entered as dead.
    """
    observe(connection, kind)
    entered = 0
    for source in sources_of(kind):
        rows = connection.execute(
            UNDELIVERED.format(rows=source.rows),
            {
                "table": source.table,
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


def observe(connection: psycopg.Connection, kind: str) -> None:
    """Note what the bot's rows say that are updated in place: the next update moves their time."""
    for source in sources_of(kind):
        if source.observe:
            connection.execute(source.observe)


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
    keyed = Jsonb(storable({**body, "idempotency_key": key}))
    values = [kind, source, source_id, channel, state, keyed, occurred_at, next_at, problem]
    return connection.execute(ENTER, values).rowcount == 1


def storable(value: Any) -> Any:  # noqa: ANN401
    """Return JSON without what Postgres can't store: NUL, half a surrogate pair, NaN."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


DUE = """
SELECT * FROM trading_pipelines.alert_deliveries
WHERE kind = %s AND state IN ('pending', 'retrying') AND next_at <= %s
ORDER BY next_at, id LIMIT %s
"""


def due(
    connection: psycopg.Connection, kind: str, now: datetime, limit: int = COLLECTED_AT_ONCE
) -> list[Delivery]:
    """Return the alerts of the kind to be sent now, the longest due first."""
    with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        return cursor.execute(DUE, [kind, now, limit]).fetchall()


def waiting(connection: psycopg.Connection, kind: str) -> list[Delivery]:
    """Return the waiting alerts of the kind that a digest may tell of, the oldest first."""
    with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        cursor.execute(
            "SELECT * FROM trading_pipelines.alert_deliveries "
            "WHERE kind = %s AND state IN ('pending', 'retrying') "
            "ORDER BY occurred_at NULLS LAST, id",
            [kind],
        )
        return [delivery for delivery in cursor if delivery.can_be_digested]


def enter_digest(
    connection: psycopg.Connection,
    kind: str,
    digested: Sequence[Delivery],
    body: dict[str, Any],
    now: datetime,
) -> None:
    """Enter one message for many alerts, and close those, all or nothing."""
    ids = [delivery.id for delivery in digested]
    source_id = f"{kind} {min(ids)}-{max(ids)} {now.isoformat()}"
    with connection.transaction():
        enter(connection, kind, "digest", source_id, "risk", body, occurred_at=now)
        connection.execute(
            "UPDATE trading_pipelines.alert_deliveries SET state = 'digested', digest_id = "
            "(SELECT id FROM trading_pipelines.alert_deliveries "
            " WHERE source = 'digest' AND source_id = %s) WHERE id = ANY(%s)",
            [source_id, ids],
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
    arguments = {
        "states": list(states) if states else None,
        "ids": list(ids) if ids else None,
        "kind": kind,
        "source_id": source_id,
        "since": since,
        "limit": limit,
    }
    with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        return cursor.execute(LISTED, arguments).fetchall()


def source_ids(connection: psycopg.Connection, source: str) -> set[str]:
    """Return what the ledger holds of a source, whatever became of it."""
    rows = connection.execute(
        "SELECT source_id FROM trading_pipelines.alert_deliveries WHERE source = %s", [source]
    )
    return {row[0] for row in rows}


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
    arguments = {"ids": list(ids), "body": None if body is None else Jsonb(storable(body))}
    with connection.transaction():
        again = [row[0] for row in connection.execute(REPLAY, arguments)]
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
    counts_of = {kind: dict.fromkeys(map(str, DeliveryState), 0) for kind in KINDS}
    for kind, state, number in connection.execute(
        "SELECT kind, state, count(*) FROM trading_pipelines.alert_deliveries GROUP BY kind, state"
    ):
        counts_of.setdefault(kind, dict.fromkeys(map(str, DeliveryState), 0))[state] = number
    return counts_of
