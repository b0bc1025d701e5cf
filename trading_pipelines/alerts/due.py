"""Which KST days have a daily report to be sent, and entering it in the ledger, once.

What a report says belongs in `report`; posting it in `delivery`.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.alerts.report import window
from trading_pipelines.korean_time import KST
from trading_pipelines.settings import AlertSettings

CHANNEL = "daily-report"
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
    since = ledger.since(connection, DAILY_REPORT)
    if since is None:
        return []
    known = ledger.source_ids(connection, DAILY_REPORT)
    last = now.astimezone(KST).date() - timedelta(days=1)
    days = (last - timedelta(days=n) for n in reversed(range(settings.look_back_days)))
    return [
        day
        for day in days
        if day.isoformat() not in known and window(day).end >= since and _send_at(day) <= now
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
    """Enter the day's report unless it is in the ledger; return in words what became of it.

    Nothing older than the kind's `since`, or than the look-back, is entered: history that is
    backfilled is not news. With `resend` it is sent in any case, with the body it has now.
    """
    found = ledger.listed(connection, kind=DAILY_REPORT, source_id=day.isoformat())
    if found and resend:
        ledger.replay(connection, [found[0].id], body)
        return "sent again, as asked"
    if found:
        return f"in the ledger already, {found[0].state}"
    since = ledger.since(connection, DAILY_REPORT) if settings.daily_report else None
    oldest = now - timedelta(days=settings.look_back_days)
    is_news = since is not None and window(day).end >= max(since, oldest)
    if not (is_news or resend):
        return "not sent: older than the alerts, or switched off"
    ledger.enter(
        connection,
        DAILY_REPORT,
        DAILY_REPORT,
        day.isoformat(),
        CHANNEL,
        body,
        occurred_at=window(day).end,
        next_at=max(_send_at(day), now),
    )
    return "entered in the ledger"


def _send_at(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), SENT_FROM, KST).astimezone(UTC)
