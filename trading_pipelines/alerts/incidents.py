"""Incidents: which failures are new, which go on, and which have ended, as messages of the ledger.

Which failures there are belongs in `failures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import class_row

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.failures import (
    ACCEPTED,
    ALERT_MISSED,
    CHANNEL,
    INFO,
    LONGEST_MESSAGE,
    RECOVERED,
    RUN_FAILED,
    SOURCE,
    WAITING,
    Failure,
    cut_message,
    duration,
)
from trading_pipelines.alerts.kinds import PIPELINE_FAILURE, cut
from trading_pipelines.korean_time import kst

LOOK_BACK = timedelta(days=30)
# Runs are asked for a day back: of one that is older nobody knows whether it is still failing.
RUNS_KNOWN = timedelta(hours=23)


@dataclass
class IncidentTally:
    """What one call of `reconcile` did, in fingerprints."""

    new: int = 0
    repeated: int = 0
    recovered: int = 0
    suppressed: int = 0
    """Failing and not news now: the last message was sent a while ago, or waits to be sent."""


@dataclass(frozen=True)
class _KnownIncident:
    """The newest alert about a failure in the ledger, by fingerprint."""

    fingerprint: str
    source_id: str
    body: dict[str, Any]
    state: str
    """Of the digest, where the alert is part of one."""
    sent_at: datetime
    """When it was accepted; of what was not, when it was entered."""
    has_recovered: bool

    @property
    def is_open(self) -> bool:
        """Whether the failure was sent, and not yet that it is over."""
        return self.state in ACCEPTED and not self.has_recovered

    def includes(self, at: datetime | None) -> bool:
        """Whether it was sent and is about this event or a later one: that is not news again."""
        happened_at = self.body.get("happened_at")
        is_included = at and happened_at and at <= datetime.fromisoformat(happened_at)
        return bool(is_included) and self.state in ACCEPTED

    def may_recover(self, now: datetime) -> bool:
        """Whether it was sent and is over, given that it is not among the failures now.

        Rows that were missed stay missed: they only grow too old to be counted. And whether a run
        that failed a day ago still fails, nobody knows any more.
        """
        at = self.body.get("happened_at")
        is_unknown = (
            self.body["type"] == RUN_FAILED
            and at is not None
            and now - datetime.fromisoformat(at) > RUNS_KNOWN
        )
        return self.is_open and not is_unknown and self.body["type"] != ALERT_MISSED


# The recovery has the failure's key with a word more, so it is found, and entered, once.
KNOWN_INCIDENTS = """
SELECT DISTINCT ON (alert.body ->> 'fingerprint')
    alert.body ->> 'fingerprint' AS fingerprint, alert.source_id, alert.body,
    coalesce(digest.state, alert.state) AS state,
    coalesce(digest.delivered_at, alert.delivered_at, alert.occurred_at) AS sent_at,
    EXISTS (SELECT FROM trading_pipelines.alert_deliveries AS recovery
        WHERE recovery.source = alert.source AND recovery.channel = alert.channel
          AND recovery.source_id = alert.source_id || ' recovered') AS has_recovered
FROM trading_pipelines.alert_deliveries AS alert
LEFT JOIN trading_pipelines.alert_deliveries AS digest ON digest.id = alert.digest_id
WHERE alert.source = %s AND alert.occurred_at >= %s AND alert.body ->> 'type' <> %s
ORDER BY alert.body ->> 'fingerprint', alert.id DESC
"""


def reconcile(
    connection: psycopg.Connection,
    failures: Sequence[Failure],
    repeat_after: timedelta,
    now: datetime,
) -> IncidentTally:
    """Enter the messages about all that is failing at `now`, and about what no longer is.

    A window of `repeat_after` opens when a message was accepted, and only a failure's own message
    opens one: a failure that comes and goes is sent once a window. While a message waits to be sent
    no other is entered for its failure.
    """
    tally = IncidentTally()
    # All or nothing, and one at a time: a killed daemon's tick may still be at it.
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('trading_pipelines.alerts.tell', 0))"
        )
        with connection.cursor(row_factory=class_row(_KnownIncident)) as cursor:
            cursor.execute(KNOWN_INCIDENTS, [SOURCE, now - LOOK_BACK, RECOVERED])
            incidents = {incident.fingerprint: incident for incident in cursor}
        for failure in filter(lambda failure: failure.is_news, failures):
            incident = incidents.get(failure.fingerprint)
            happened_at = failure.at.isoformat() if failure.at else None
            if incident and (
                incident.state in WAITING
                or now - incident.sent_at < repeat_after
                or incident.includes(failure.at)
            ):
                tally.suppressed += 1
                continue
            before = incident.body if incident and incident.is_open else {}
            note = _since_sent(failure.count, before["count"]) if before else ""
            is_new = _enter(
                connection,
                f"{failure.fingerprint} {now.isoformat()}",
                {
                    "type": failure.type,
                    "level": failure.level,
                    "message": cut(failure.message, LONGEST_MESSAGE - len(note)) + note,
                    "fingerprint": failure.fingerprint,
                    "count": failure.count,
                    "failing_since": before.get("failing_since", now.isoformat()),
                    "happened_at": happened_at,
                },
                now,
            )
            tally.new += is_new and not before
            tally.repeated += is_new and bool(before)
        failing = {failure.fingerprint for failure in failures}
        for incident in incidents.values():
            if incident.fingerprint not in failing and incident.may_recover(now):
                tally.recovered += _enter(
                    connection, f"{incident.source_id} recovered", _recovery(incident, now), now
                )
    return tally


def _enter(
    connection: psycopg.Connection, source_id: str, body: dict[str, Any], now: datetime
) -> bool:
    timed = {**body, "timestamp": now.isoformat()}
    return ledger.enter(
        connection, PIPELINE_FAILURE, SOURCE, source_id, CHANNEL, timed, occurred_at=now
    )


def _since_sent(count: int, before: int) -> str:
    """Say how often it has happened again; a count that has fallen was started anew."""
    if count == before:
        return "\n이전 알림 이후에도 계속됨"
    more = count - before if count > before else count
    return f"\n그 사이 {more}건 더 발생 (이전 알림 이후 생략됨)"


def _recovery(incident: _KnownIncident, now: datetime) -> dict[str, Any]:
    since = datetime.fromisoformat(incident.body["failing_since"])
    name, _, _ = incident.body["message"].partition("\n")
    return {
        "type": RECOVERED,
        "level": INFO,
        "message": cut_message(
            f"더 이상 실패 상태가 아님: {name}",
            f"{duration(now - since)} 지속 ({kst(since)} ~ {kst(now)})",
        ),
        "fingerprint": incident.fingerprint,
        "count": incident.body["count"],
    }
