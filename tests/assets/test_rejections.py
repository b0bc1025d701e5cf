"""The rejections as Dagster runs them: outcomes by symbol × day, and the week they add up to."""

import base64
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import psycopg
import pytest

from tests.assets.conftest import Dagster, metadata
from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS, copied
from tests.schedules.test_schedules import tick
from tests.signals.rejections.test_outcomes import SETTINGS
from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import AI_SCORECARD
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.scorecard import weekly
from trading_pipelines.signals.catalogue import REJECT_OUTCOMES
from trading_pipelines.signals.registry import compute
from trading_pipelines.signals.rejections.summary import REJECT_SUMMARY, week_interval

WEEK = date(2025, 9, 8)
AT = datetime(2025, 9, 10, 3, 0, 30, tzinfo=UTC)
ON = SETTINGS.model_copy(
    update={
        "alerts": SETTINGS.alerts.model_copy(
            # The week of the recording is long over.
            update={"reject_summary": True, "look_back_days": 30}
        )
    }
)


@pytest.fixture
def connection(
    server: EmbeddedServer, computed_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """The recording with its signals, and twenty rejections of KRW-BTC, five minutes apart."""
    url = copied(server, computed_template)
    monkeypatch.setenv("DATABASE_URL", url)
    with connect(url) as connection:
        connection.execute(
            "INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, model_used, "
            "created_at, regime) SELECT 'KRW-BTC', 'test', 'REJECT', '거래량 부족', 'sonnet', "
            "%s + n * interval '5 minutes', 'SIDEWAYS' FROM generate_series(0, 19) AS n",
            [AT],
        )
        yield connection


@pytest.fixture
def dagster(connection: psycopg.Connection) -> Iterator[Dagster]:
    """An instance beside that database."""
    assert not connection.closed
    with dg.instance_for_test() as instance:
        yield Dagster(instance, ON)


def made(dagster: Dagster, asset: str, *, resend: bool = False) -> dict[str, object]:
    """Make the weekly asset; return what its partition says."""
    asked = {"ops": {asset: {"config": {"resend": resend}}}}
    result = dagster.run(f"{asset}_job", WEEK, WEEK, [], run_config=asked)
    assert result.success
    return metadata(result, asset)[f"{WEEK}"]


def summed(dagster: Dagster, *, resend: bool = False) -> dict[str, object]:
    return made(dagster, REJECT_SUMMARY, resend=resend)


def test_each_day_tells_what_its_rejections_saved_and_the_week_shows_it_in_a_picture(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    result = dagster.run("update_reject_outcomes_job", AT.date(), AT.date(), ["KRW-BTC"])
    assert result.success
    (figures,) = metadata(result, "reject_outcomes").values()
    (saved, cost) = connection.execute(
        "SELECT coalesce(-sum(result_krw) FILTER (WHERE result_krw < 0), 0), "
        "coalesce(sum(result_krw) FILTER (WHERE result_krw > 0), 0) "
        "FROM trading_pipelines.reject_outcomes"
    ).fetchone() or (None, None)
    assert saved + cost
    assert (figures["rejections"], figures["completed"]) == (20, 20)
    assert (figures["saved_krw"], figures["cost_krw"]) == (saved, cost)
    said = summed(dagster)
    assert (said["rejections"], said["net_krw"]) == (20, saved - cost)
    picture = str(said["picture"]).partition("base64,")[2].rstrip(")")
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert {record.data["name"] for record in said["totals"].records} == {  # type: ignore[attr-defined]
        "all", "KRW-BTC", "SIDEWAYS", "sonnet", "volume"
    }  # fmt: skip


def test_a_week_is_told_once_where_that_is_switched_on_and_again_when_asked(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    dagster.run("update_reject_outcomes_job", AT.date(), AT.date(), ["KRW-BTC"])
    assert summed(dagster)["sending"] == "not sent: older than the alerts, or switched off"
    sent = summed(dagster, resend=True)
    assert sent["sending"] == "entered in the ledger"
    (alert,) = ledger.listed(connection, kind=REJECT_SUMMARY)
    assert (alert.channel, alert.source_id) == ("risk", "2025-09-08")
    assert alert.body["type"] == "REJECT_SUMMARY"
    assert alert.body["level"] == "INFO"
    assert alert.body["message"].startswith("2025-09-08 ~ 2025-09-14 (KST), 거절 20건: ")
    assert "사유 volume: " in alert.body["message"]
    assert summed(dagster)["sending"] == "in the ledger already, pending"
    assert summed(dagster, resend=True)["sending"] == "sent again, as asked"


def test_the_schedule_asks_for_settled_weeks_and_not_for_those_in_flight(
    dagster: Dagster, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [FIRST_DAY + timedelta(days=n) for n in range((LAST_DAY - FIRST_DAY).days + 1)]
    compute(connection, REJECT_OUTCOMES, SYMBOLS, days, ON, "run")

    class Now(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            assert tz is UTC
            return datetime(2025, 9, 23, tzinfo=UTC)

    monkeypatch.setattr("trading_pipelines.schedules.reports.datetime", Now)

    def asked() -> list[str] | str:
        found = tick(dagster.instance, "make_reject_summary", ON)
        return found if isinstance(found, str) else [str(one.partition_key) for one in found]

    # In the weeks before and after nothing was refused.
    others = ["2025-09-01", "2025-09-15"]
    assert asked() == [others[0], f"{WEEK}", others[1]]
    run = dg.DagsterRun(
        job_name="reject_summary_job",
        tags={"dagster/partition": "2025-09-08"},
        status=dg.DagsterRunStatus.STARTED,
    )
    dagster.instance.add_run(run)
    assert asked() == others
    dagster.instance.delete_run(run.run_id)
    assert summed(dagster)["rejections"] == 20
    assert asked() == others


def scored(dagster: Dagster, *, resend: bool = False) -> dict[str, object]:
    return made(dagster, AI_SCORECARD, resend=resend)


def test_the_scorecard_of_a_week_has_both_decisions_a_picture_and_is_told_when_asked(
    dagster: Dagster, connection: psycopg.Connection
) -> None:
    connection.execute(
        "INSERT INTO agent_decisions (symbol, strategy_name, decision, confidence, created_at, "
        "regime) SELECT 'KRW-BTC', 'test', 'CONFIRM', 80, %s + n * interval '7 minutes', 'BULL' "
        "FROM generate_series(0, 4) AS n",
        [AT],
    )
    assert dagster.run("update_reject_outcomes_job", AT.date(), AT.date(), ["KRW-BTC"]).success
    settled = datetime(2025, 9, 23, tzinfo=UTC)
    assert WEEK in weekly.due_weeks(connection, ON, settled)
    said = scored(dagster)
    assert str(said["verdict"]).startswith("Cannot be told yet (1 of ")
    assert "25 decisions, 25 judged" in str(said["decisions"])
    picture = str(said["picture"]).partition("base64,")[2].rstrip(")")
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert said["sending"] == "not sent: older than the alerts, or switched off"

    def stored() -> list[tuple[str]]:
        return connection.execute(
            "SELECT row::text FROM trading_pipelines.ai_scorecard AS row ORDER BY 1"
        ).fetchall()

    (whole,) = connection.execute(
        "SELECT taken, refused, taken_krw, refused_krw, every_krw, saved_krw, verdict "
        "FROM trading_pipelines.ai_scorecard WHERE grouping = 'all'"
    ).fetchall()
    (made,) = connection.execute(
        "SELECT sum(result_krw) FILTER (WHERE decision = 'CONFIRM'), "
        "sum(result_krw) FILTER (WHERE decision = 'REJECT') "
        "FROM trading_pipelines.decision_outcomes"
    ).fetchall()
    assert whole == (5, 20, *made, sum(made), -made[1], "cannot be told yet")
    first = stored()
    assert scored(dagster, resend=True)["sending"] == "entered in the ledger"
    assert stored() == first, "the same rows again"
    (alert,) = ledger.listed(connection, kind=AI_SCORECARD)
    assert (alert.channel, alert.body["type"]) == ("risk", "AI_SCORECARD")
    assert "아직 판단할 수 없음" in alert.body["message"]

    assert WEEK not in weekly.due_weeks(connection, ON, settled)
    connection.execute("UPDATE agent_decisions SET confidence = 60 WHERE decision = 'CONFIRM'")
    assert WEEK in weekly.due_weeks(connection, ON, settled), "a confidence has changed"
    scored(dagster)
    connection.execute(
        "INSERT INTO trading_history (id, symbol, side, order_type, price, quantity, status, "
        "executed_at) VALUES (gen_random_uuid(), 'KRW-BTC', 'BUY', 'MARKET', 1, 1, 'FILLED', %s)",
        [AT],
    )
    assert WEEK in weekly.due_weeks(connection, ON, settled), "a trade has come"
    connection.execute(
        "INSERT INTO agent_decisions (symbol, strategy_name, decision, created_at) "
        "VALUES ('KRW-ETH', 'test', 'CONFIRM', %s)",
        [AT],
    )
    end = week_interval(WEEK).end
    assert WEEK not in weekly.due_weeks(connection, ON, end + timedelta(days=2)), "it is open"
