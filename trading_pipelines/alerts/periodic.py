"""Which KST days have a daily report to be sent; entering it and the weekly messages, once.

What they say belongs in `daily_report/`, `reject_summary` and `scorecard/`; posting it in
`delivery`.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.daily_report.figures import report_window
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.korean_time import KST
from trading_pipelines.settings.strategy import AlertSettings
from trading_pipelines.signals.rejections.summary import week_interval

SENT_FROM = time(9)
"""KST, on the day after the report's."""


def due_reports(
    connection: psycopg.Connection, settings: AlertSettings, now: datetime
) -> list[date]:
    """Return the KST days of the look-back whose report is not in the ledger, from 09:00 KST on.

    None before the kind's sensor has had its first tick with somewhere to post to.
    """
    if not settings.daily_report:
        return []
    since = ledger.enabled_since(connection, DAILY_REPORT)
    if since is None:
        return []
    entered = ledger.source_ids(connection, DAILY_REPORT)
    last = now.astimezone(KST).date() - timedelta(days=1)
    days = (last - timedelta(days=n) for n in reversed(range(settings.look_back_days)))
    return [
        day
        for day in days
        if day.isoformat() not in entered
        and report_window(day).end >= since
        and _send_at(day) <= now
    ]


def send_report(
    connection: psycopg.Connection,
    day: date,
    body: dict[str, Any],
    settings: AlertSettings,
    now: datetime,
    *,
    resend: bool = False,
) -> str:
    """Enter the KST day's report unless it is in the ledger; return in words what became of it."""
    end = report_window(day).end
    notification = Notification(
        DAILY_REPORT, "daily-report", day, end, end, max(_send_at(day), now)
    )
    return _enter_once(connection, notification, body, settings, now, resend=resend)


def send_weekly(
    connection: psycopg.Connection,
    kind: str,
    week: date,
    known_at: datetime,
    body: dict[str, Any],
    settings: AlertSettings,
    now: datetime,
    *,
    resend: bool = False,
) -> str:
    """Do the same with the kind's message about the Korean week that begins with this Monday."""
    end = week_interval(week).end
    notification = Notification(kind, "risk", week, end, known_at, now)
    return _enter_once(connection, notification, body, settings, now, resend=resend)


@dataclass(frozen=True)
class Notification:
    """A message about an interval of time, sent once; times in UTC."""

    kind: str
    channel: str
    first_day: date
    end: datetime
    known_at: datetime
    """When all that it tells of was known."""
    send_at: datetime


def _enter_once(
    connection: psycopg.Connection,
    notification: Notification,
    body: dict[str, Any],
    settings: AlertSettings,
    now: datetime,
    *,
    resend: bool,
) -> str:
    """Enter it unless it is in the ledger; return in words what became of it.

    Nothing older than the kind's `since`, or than the look-back, is entered: history that is
    backfilled is not news. With `resend` it is sent in any case, with the body it has now.
    """
    kind, source_id = notification.kind, notification.first_day.isoformat()
    entered = ledger.listed(connection, kind=kind, source_id=source_id)
    if entered and resend:
        ledger.replay(connection, [entered[0].id], body)
        return "sent again, as asked"
    if entered:
        return f"in the ledger already, {entered[0].state}"
    since = ledger.enabled_since(connection, kind) if settings.is_on(kind) else None
    oldest = now - timedelta(days=settings.look_back_days)
    is_news = since is not None and notification.end >= since and notification.known_at >= oldest
    if not (is_news or resend):
        return "not sent: older than the alerts, or switched off"
    ledger.enter(
        connection,
        kind,
        kind,
        source_id,
        notification.channel,
        body,
        occurred_at=notification.end,
        next_at=notification.send_at,
    )
    return "entered in the ledger"


def _send_at(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), SENT_FROM, KST).astimezone(UTC)
