"""The endpoints in trouble: Discord's webhook and each of n8n's, broken or asked to rest.

Here belong the statements about `alert_endpoints`, each committed by itself. What an answer says of
its endpoint belongs in `webhooks`, how long to wait in `delivery`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from trading_pipelines.alerts.ledger import storable
from trading_pipelines.alerts.webhooks import (
    DISCORD,
    N8N,
    EndpointTrouble,
    WebhookAnswer,
    Webhooks,
)


@dataclass(frozen=True)
class Endpoint:
    """A row of `alert_endpoints`; its times are UTC."""

    name: str
    trouble: str
    since: datetime
    next_at: datetime
    rests: int
    status: int | None
    answer: str
    advice: str
    mended_at: datetime | None


def shown_name(name: str) -> str:
    """Return an endpoint's name for a person."""
    return "Discord's webhook" if name == DISCORD else f"n8n's webhook {name.partition('/')[2]}"


def described(endpoint: Endpoint, show: Callable[[datetime], str]) -> str:
    """Say in a line what the trouble is, since when, what was answered and what to do."""
    since = f"{shown_name(endpoint.name)}: {endpoint.trouble} since {show(endpoint.since)}"
    rest = f", rests until {show(endpoint.next_at)}"
    until = rest if endpoint.trouble == EndpointTrouble.LIMITED else ""
    return f"{since}{until} ({endpoint.answer}); what to do: {endpoint.advice}"


def passed(via: str, channel: str) -> list[str]:
    """Return the names of the endpoints that a post passes; n8n posts to the same webhook."""
    return [DISCORD] if via == DISCORD else [f"{N8N}/{channel}", DISCORD]


READ = """
SELECT name, trouble, since, next_at, rests, status, answer, advice, mended_at
FROM trading_pipelines.alert_endpoints WHERE %(address)s::text IS NULL OR address = %(address)s
ORDER BY name
"""


def read(connection: psycopg.Connection, webhooks: Webhooks | None = None) -> list[Endpoint]:
    """Return the endpoints that are or were in trouble, of what is set now where that is given."""
    with connection.cursor(row_factory=class_row(Endpoint)) as cursor:
        address = webhooks and webhooks.address
        return cursor.execute(READ, {"address": address}).fetchall()


def in_trouble(
    connection: psycopg.Connection, webhooks: Webhooks | None = None
) -> dict[str, Endpoint]:
    """Return by name those that are not mended."""
    return {e.name: e for e in read(connection, webhooks) if e.mended_at is None}


def broken(connection: psycopg.Connection) -> list[Endpoint]:
    """Return those that refuse whatever is posted."""
    return [e for e in in_trouble(connection).values() if e.trouble == EndpointTrouble.BROKEN]


def claim(
    connection: psycopg.Connection, names: Sequence[str], until: datetime, now: datetime
) -> bool:
    """Let one alert ask whether the endpoints are mended, and no other before `until`.

    Returns False where another process was first.
    """
    claimed = connection.execute(
        "UPDATE trading_pipelines.alert_endpoints SET next_at = %s "
        "WHERE name = ANY(%s) AND mended_at IS NULL AND next_at <= %s",
        [until, list(names), now],
    ).rowcount
    return claimed == len(names)


def release(connection: psycopg.Connection, names: Sequence[str], now: datetime) -> None:
    """Take a claim back: nothing was posted."""
    connection.execute(
        "UPDATE trading_pipelines.alert_endpoints SET next_at = %s "
        "WHERE name = ANY(%s) AND mended_at IS NULL",
        [now, list(names)],
    )


NOTE = """
INSERT INTO trading_pipelines.alert_endpoints AS known
    (name, address, trouble, since, next_at, rests, status, answer, advice)
VALUES (%(name)s, %(address)s, %(trouble)s, %(now)s, %(next_at)s, %(rests)s, %(status)s,
    %(answer)s, %(advice)s)
ON CONFLICT (name) DO UPDATE SET
    since = CASE WHEN known.mended_at IS NULL AND known.address = excluded.address
                 AND known.trouble = excluded.trouble
            THEN known.since ELSE excluded.since END,
    address = excluded.address, trouble = excluded.trouble, next_at = excluded.next_at,
    rests = excluded.rests, status = excluded.status, answer = excluded.answer,
    advice = excluded.advice, mended_at = NULL
"""


def note(
    connection: psycopg.Connection,
    webhooks: Webhooks,
    name: str,
    answer: WebhookAnswer,
    *,
    rests: int,
    next_at: datetime,
    now: datetime,
) -> None:
    """Note an answer that says that the endpoint is in trouble, and when it is asked next."""
    connection.execute(
        NOTE,
        {
            "name": name,
            "address": webhooks.address,
            "trouble": answer.trouble,
            "now": now,
            "next_at": next_at,
            "rests": rests,
            "status": answer.status,
            "answer": storable(answer.text),
            "advice": storable(answer.advice),
        },
    )


def mend(connection: psycopg.Connection, names: Sequence[str], now: datetime) -> bool:
    """Note that the endpoints do what they have to; return whether one did not before."""
    mended = connection.execute(
        "UPDATE trading_pipelines.alert_endpoints SET mended_at = %s, rests = 0 "
        "WHERE name = ANY(%s) AND mended_at IS NULL",
        [now, list(names)],
    ).rowcount
    return mended > 0
