"""The command line as a person meets it, where nothing has to run for it."""

import json
from datetime import UTC, datetime

import psycopg
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from trading_pipelines import cli
from trading_pipelines.alerts import ledger


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--symbols", "BTC", "--start", "2025-09-01", "--end", "2025-09-01"], "symbols"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2025-09-01"], "after"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2099-09-01"], "future"),
        (["--symbols", "KRW-BTC", "--start", "2016-09-02", "--end", "2025-09-01"], "start_date"),
        (["--symbols", "KRW-BTC", "--start", "yesterday", "--end", "2025-09-01"], "yesterday"),
        (["--symbols", "KRW-BTC"], "--start"),
    ],
)
def test_wrong_usage_is_exit_status_2_and_says_what_is_wrong(
    arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(cli.app, ["backfill", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr


COMMANDS = [
    *("up", "backfill", "demo", "status", "health", "signals", "replay", "inbox", "env"),
    *("alerts list", "alerts show", "alerts replay", "alerts test", "n8n import", "n8n check"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = CliRunner().invoke(cli.app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert f"trading-pipelines {command}" in done.stdout


@pytest.fixture
def ledgered(
    connection: psycopg.Connection, market_url: str, monkeypatch: pytest.MonkeyPatch
) -> psycopg.Connection:
    """A ledger with a delivered alert (1), a dead one (2), and one no body could be made of (3)."""
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setattr(cli, "out", Console(width=160))
    body = {
        "symbol": "KRW-BTC",
        "reason": "[대괄호] 이유",
        "timestamp": "2026-11-24T00:00:00+00:00",
    }
    at = datetime(2026, 11, 24, tzinfo=UTC)
    for number in ("1", "2"):
        ledger.enter(
            connection, "ai_reject", "agent_decisions", number, "ai-reject", body, occurred_at=at
        )
    connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET state = CASE id WHEN 1 THEN 'delivered' "
        "ELSE 'dead' END, message_id = CASE id WHEN 1 THEN '1300' END, "
        "last_error = CASE id WHEN 2 THEN 'n8n answers 403 [no]' END"
    )
    ledger.enter(
        connection, "trade", "trading_history", "3", "trade", {}, occurred_at=at, problem="odd row"
    )
    return connection


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["alerts", *arguments])


def test_alerts_are_listed_in_korean_time_with_what_became_of_them(
    ledgered: psycopg.Connection,
) -> None:
    del ledgered
    shown = run("list").stdout
    assert "2026-11-24 09:00 KST" in shown
    assert all(words in shown for words in ("delivered", "1300", "n8n answers 403 [no]", "odd row"))
    assert [json.loads(line)["id"] for line in run("list", "--json").stdout.splitlines()] == [
        3,
        2,
        1,
    ]


def test_a_list_can_be_narrowed_down(ledgered: psycopg.Connection) -> None:
    del ledgered
    dead = run("list", "--json", "--state", "dead", "--kind", "ai_reject").stdout
    assert [json.loads(line)["id"] for line in dead.splitlines()] == [2]
    assert run("list", "--kind", "reject").exit_code == 2
    assert run("list", "--since", "yesterday").exit_code == 2


def test_an_alert_is_shown_with_its_tries(ledgered: psycopg.Connection) -> None:
    ledgered.execute(
        "INSERT INTO trading_pipelines.alert_attempts "
        "(delivery_id, number, started_at, via, outcome, status, answer, seconds) VALUES "
        "(2, 1, '2026-11-24 00:00:01Z', 'n8n', 'away', 403, 'n8n answers 403 [no]', 0.25)"
    )
    shown = run("show", "2").stdout
    assert "[대괄호] 이유" in shown
    assert "1. 2026-11-24 09:00 KST via n8n: 0.25 s, n8n answers 403 [no]" in shown
    assert run("show", "99").exit_code == 1


def test_dead_alerts_are_sent_again_and_the_others_left_alone(
    ledgered: psycopg.Connection,
) -> None:
    assert "2 will be sent again" in run("replay", "--dead").stdout
    states = ledgered.execute("SELECT id, state FROM trading_pipelines.alert_deliveries")
    # The third has no body: it is entered anew when the bot's table is next looked at.
    assert sorted(states.fetchall()) == [(1, "delivered"), (2, "pending")]


def test_a_replay_says_what_it_could_not_send(ledgered: psycopg.Connection) -> None:
    del ledgered
    done = run("replay", "1", "99")
    assert (done.exit_code, "1 will be sent again, but not 99" in done.stderr) == (1, True)
    assert run("replay").exit_code == 2
