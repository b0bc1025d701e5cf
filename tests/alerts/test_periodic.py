"""When a KST day's report is sent, and that it is sent once."""

from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import DAILY_REPORT
from trading_pipelines.alerts.periodic import due_reports, send_report
from trading_pipelines.settings.strategy import AlertSettings

DAY = date(2026, 11, 23)
NINE = datetime(2026, 11, 24, 0, 0, tzinfo=UTC)
"""09:00 KST of the day after."""
SINCE = datetime(2026, 11, 20, tzinfo=UTC)
SETTINGS = AlertSettings(since=SINCE, look_back_days=3)
BODY = {"title": "일일 리포트", "summary": "체결 없음", "timestamp": "2026-11-24T00:00:00+00:00"}


@pytest.fixture(autouse=True)
def _on(connection: psycopg.Connection) -> None:
    """As the kind's sensor does in its first tick."""
    ledger.enable(connection, DAILY_REPORT, SINCE, NINE)


def send(connection: psycopg.Connection, day: date = DAY, *, resend: bool = False) -> str:
    return send_report(connection, day, BODY, SETTINGS, NINE, resend=resend)


def test_a_day_is_due_from_nine_in_korea_on(connection: psycopg.Connection) -> None:
    before = due_reports(connection, SETTINGS, NINE - timedelta(seconds=1))
    assert DAY not in before
    assert due_reports(connection, SETTINGS, NINE) == [DAY - timedelta(days=n) for n in (2, 1, 0)]


def test_days_that_were_missed_are_due_when_the_downtime_ends(
    connection: psycopg.Connection,
) -> None:
    send(connection)
    two_days_later = NINE + timedelta(days=2, hours=5)
    assert due_reports(connection, SETTINGS, two_days_later) == [
        date(2026, 11, 24),
        date(2026, 11, 25),
    ]


def test_what_ended_before_the_kind_came_on_is_not_due(connection: psycopg.Connection) -> None:
    ledger.disable(connection, DAILY_REPORT)
    assert due_reports(connection, SETTINGS, NINE) == [], "nor while it is off"
    ledger.enable(connection, DAILY_REPORT, None, NINE - timedelta(hours=1))
    assert due_reports(connection, SETTINGS, NINE) == []


def test_nothing_is_due_while_the_kind_is_off(connection: psycopg.Connection) -> None:
    assert due_reports(connection, AlertSettings(daily_report=False, since=SINCE), NINE) == []


def test_a_report_is_entered_once_and_not_before_nine(connection: psycopg.Connection) -> None:
    assert (
        send_report(connection, DAY, BODY, SETTINGS, NINE - timedelta(hours=5))
        == "entered in the ledger"
    )
    assert send(connection) == "in the ledger already, pending"
    (entered,) = ledger.listed(connection)
    assert (entered.channel, entered.next_at) == ("daily-report", NINE)


@pytest.mark.parametrize("day", [date(2026, 11, 18), date(2026, 11, 20)])
def test_history_that_is_backfilled_is_not_news(connection: psycopg.Connection, day: date) -> None:
    assert send(connection, day) == "not sent: older than the alerts, or switched off"
    assert ledger.listed(connection) == []


def test_a_report_is_sent_again_on_request_with_what_it_says_now(
    connection: psycopg.Connection,
) -> None:
    send(connection)
    connection.execute("UPDATE trading_pipelines.alert_deliveries SET state = 'delivered'")
    (first,) = ledger.listed(connection)
    corrected = {**BODY, "summary": "체결 1건"}
    send_report(connection, DAY, corrected, SETTINGS, NINE, resend=True)
    (again,) = ledger.listed(connection)
    assert (again.state, again.body["summary"]) == ("pending", "체결 1건")
    assert again.body["idempotency_key"] != first.body["idempotency_key"]


def test_a_day_that_was_never_sent_is_sent_on_request(connection: psycopg.Connection) -> None:
    assert send(connection, date(2026, 11, 1), resend=True) == "entered in the ledger"
