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
    """What one call of `tell` did, in fingerprints."""

    new: int = 0
    repeated: int = 0
    recovered: int = 0
    suppressed: int = 0
    """Failing and not told now: it was told a while ago, or waits to be sent."""


@dataclass(frozen=True)
class _KnownIncident:
    """The newest alert of a fingerprint in the ledger that told of the failure."""

    fingerprint: str
    source_id: str
    body: dict[str, Any]
    state: str
    """Of the digest, where one told it."""
    told_at: datetime
    """When it was accepted; of what was not, when it was entered."""
    has_recovered: bool

    @property
    def is_open(self) -> bool:
        """Whether the failure was told and not yet that it is over."""
        return self.state in ACCEPTED and not self.has_recovered

    def has_told(self, at: datetime | None) -> bool:
        """Whether it told of what happened then: that is not news again, what lasts is."""
        told_of = self.body.get("happened_at")
        is_known = at and told_of and at <= datetime.fromisoformat(told_of)
        return bool(is_known) and self.state in ACCEPTED

    def may_recover(self, now: datetime) -> bool:
        """Whether it was told and is over, if it is not failing now.

        Rows that were missed stay missed: they only grow too old to be counted. And of a run that
        failed a day ago nobody knows any more.
        """
        at = self.body.get("happened_at")
        is_unknown = (
            self.body["type"] == RUN_FAILED
            and at is not None
            and now - datetime.fromisoformat(at) > RUNS_KNOWN
        )
        return self.is_open and not is_unknown and self.body["type"] != ALERT_MISSED


# The recovery has the failure's key with a word more, so it is found, and entered, once.
KNOWN = """
SELECT DISTINCT ON (told.body ->> 'fingerprint')
    told.body ->> 'fingerprint' AS fingerprint, told.source_id, told.body,
    coalesce(digest.state, told.state) AS state,
    coalesce(digest.delivered_at, told.delivered_at, told.occurred_at) AS told_at,
    EXISTS (SELECT FROM trading_pipelines.alert_deliveries AS recovery
        WHERE recovery.source = told.source AND recovery.channel = told.channel
          AND recovery.source_id = told.source_id || ' recovered') AS has_recovered
FROM trading_pipelines.alert_deliveries AS told
LEFT JOIN trading_pipelines.alert_deliveries AS digest ON digest.id = told.digest_id
WHERE told.source = %s AND told.occurred_at >= %s AND told.body ->> 'type' <> %s
ORDER BY told.body ->> 'fingerprint', told.id DESC
"""


def reconcile(
    connection: psycopg.Connection,
    failures: Sequence[Failure],
    repeat_after: timedelta,
    now: datetime,
) -> IncidentTally:
    """Enter what is to be told of all that is failing at `now`, and of what no longer is.

    A window opens when the message was accepted, and only a failure's own message opens one: what
    comes and goes is told once a window. What waits to be sent is told by what waits.
    """
    told = IncidentTally()
    # All or nothing, and one at a time: a killed daemon's tick may still be at it.
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('trading_pipelines.alerts.tell', 0))"
        )
        with connection.cursor(row_factory=class_row(_KnownIncident)) as cursor:
            cursor.execute(KNOWN, [SOURCE, now - LOOK_BACK, RECOVERED])
            known_of = {known.fingerprint: known for known in cursor}
        for failure in filter(lambda failure: failure.is_news, failures):
            known = known_of.get(failure.fingerprint)
            happened_at = failure.at.isoformat() if failure.at else None
            if known and (
                known.state in WAITING
                or now - known.told_at < repeat_after
                or known.has_told(failure.at)
            ):
                told.suppressed += 1
                continue
            before = known.body if known and known.is_open else {}
            note = _since_told(failure.count, before["count"]) if before else ""
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
            told.new += is_new and not before
            told.repeated += is_new and bool(before)
        failing = {failure.fingerprint for failure in failures}
        for known in known_of.values():
            if known.fingerprint not in failing and known.may_recover(now):
                told.recovered += _enter(
                    connection, f"{known.source_id} recovered", _recovery(known, now), now
                )
    return told


def _enter(
    connection: psycopg.Connection, source_id: str, body: dict[str, Any], now: datetime
) -> bool:
    timed = {**body, "timestamp": now.isoformat()}
    return ledger.enter(
        connection, PIPELINE_FAILURE, SOURCE, source_id, CHANNEL, timed, occurred_at=now
    )


def _since_told(count: int, before: int) -> str:
    """Say how often it has happened again; a count that fell began anew in between."""
    if count == before:
        return "\n이전 알림 이후에도 계속됨"
    more = count - before if count > before else count
    return f"\n그 사이 {more}건 더 발생 (이전 알림 이후 생략됨)"


def _recovery(known: _KnownIncident, now: datetime) -> dict[str, Any]:
    since = datetime.fromisoformat(known.body["failing_since"])
    name, _, _ = known.body["message"].partition("\n")
    return {
        "type": RECOVERED,
        "level": INFO,
        "message": cut_message(
            f"더 이상 실패 상태가 아님: {name}",
            f"{duration(now - since)} 지속 ({kst(since)} ~ {kst(now)})",
        ),
        "fingerprint": known.fingerprint,
        "count": known.body["count"],
    }
