"""The command line as a person meets it, where nothing has to run for it."""

import json
import signal
import socket
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest
import regex
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from docs import reference
from tests.alerts.conftest import Bot
from trading_pipelines.alerts import ledger
from trading_pipelines.cli import options, render, simulate
from trading_pipelines.cli.main import app, main
from trading_pipelines.database.connection import prepare_database
from trading_pipelines.errors import OperatorError
from trading_pipelines.runtime.backfill import BackfillTarget
from trading_pipelines.settings.environment import Environment, load_environment
from trading_pipelines.settings.errors import SettingsError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--symbols", "BTC", "--start", "2025-09-01", "--end", "2025-09-01"], "symbols"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2025-09-01"], "after"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2099-09-01"], "future"),
        (["--symbols", "KRW-BTC", "--start", "2016-09-02", "--end", "2025-09-01"], "start_date"),
        (["--symbols", "KRW-BTC", "--start", "yesterday", "--end", "2025-09-01"], "yesterday"),
        *[
            (["--symbols", tampered, "--start", "2025-09-01", "--end", "2025-09-01"], "symbols")
            for tampered in ("KRW-BTC'; DROP TABLE x", "KRW-BTC|2025-09-01", "../KRW-BTC", "", "--")
        ],
        (["--symbols", "KRW-BTC", "--start", "2025-09-01'--", "--end", "2025-09-01"], "--start"),
    ],
)
def test_wrong_usage_is_exit_status_2_and_says_what_is_wrong(
    arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(app, ["backfill", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_backfill_is_of_the_settings_symbols_and_days_where_none_are_given(
    tmp_path: Path,
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text("symbols: [KRW-XRP]\ndata: {start_date: 2025-09-01}")
    environment = Environment(trading_pipelines_config=config)
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    target = options.backfill_target(environment, None, None, None)
    assert target == BackfillTarget(("KRW-XRP",), date(2025, 9, 1), yesterday)
    config.unlink()
    first, last = (datetime(2025, 9, n, tzinfo=UTC) for n in (2, 3))
    given = options.backfill_target(environment, "KRW-BTC", first, last)
    assert given == BackfillTarget(("KRW-BTC",), date(2025, 9, 2), date(2025, 9, 3))


def test_health_judges_what_it_is_asked_for_alone(
    market_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", market_url)
    done = CliRunner().invoke(app, ["health", "--json", "--only", "disk", "--only", "daemons"])
    checks = {check["name"]: check["good"] for check in json.loads(done.stdout)["checks"]}
    assert checks == {"daemons": None, "disk": True}
    assert done.exit_code == 1, "what is not known is not good"
    disk = CliRunner().invoke(app, ["health", "--only", "disk"])
    assert disk.exit_code == 0, disk.stdout
    wrong = CliRunner().invoke(app, ["health", "--only", "disks"])
    assert (wrong.exit_code, "one of database, daemons" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("command", "context"), [pytest.param(*c, id=c[1].command_path) for c in reference.walk()]
)
def test_help_has_an_example_of_one_line(command: Any, context: Any) -> None:
    _, _, example = command.help.partition("Example: ")
    assert context.command_path in example
    assert len(example.strip().splitlines()) == 1
    done = CliRunner().invoke(app, [*context.command_path.split()[1:], "--help"])
    assert (done.exit_code, "Example: " in done.stdout) == (0, True)


def test_each_argument_and_option_has_a_help_text() -> None:
    assert reference.without_help() == []


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout.strip()) == (0, version("trading-pipelines"))


def test_a_market_to_replay_has_the_default_symbols_where_no_settings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRADING_PIPELINES_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulate, "await_interrupt", lambda: None)
    alone = CliRunner().invoke(app, ["replay", "--port", "0"])
    assert (alone.exit_code, "generated market" in alone.stdout) == (0, True), alone.exception
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "strategy.yaml").write_text("symbols: []")
    assert isinstance(CliRunner().invoke(app, ["replay", "--port", "0"]).exception, SettingsError)
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(tmp_path / "none.yaml"))
    named = CliRunner().invoke(app, ["replay", "--port", "0"])
    assert isinstance(named.exception, SettingsError), "a file that is named has to be there"


A_SYMBOL = "KRW- and 1 to 10 capital letters or digits, such as KRW-BTC"
TOO_EARLY = (
    '--start (data.start_date) is "2016-01-01"; allowed: a day like 2024-01-01, not before '
    "2017-10-01 (Upbit's first)"
)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("backfill --symbols krw-btc", f'--symbols is the text "krw-btc"; allowed: {A_SYMBOL}'),
        ("backfill --symbols KRW-BTC --start 2016-01-01", TOO_EARLY),
        (
            "db adopt --compare --symbols KRW-BTC,btc --start 2016-01-01",
            f'--symbols is the text "btc"; allowed: {A_SYMBOL}. {TOO_EARLY}',
        ),
        ("backfill --symbols ,", "--symbols is []; allowed: a list of at least one symbol"),
        ("backfill --symbols KRW-BTC,KRW-BTC", "--symbols lists KRW-BTC again; allowed: each"),
        ("trades --symbol btc", '--symbol is the text "btc"; allowed: KRW- and 1 to 10 capital'),
    ],
)
def test_a_wrong_option_is_refused_in_the_words_of_the_settings_file(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text("{}")
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(config))
    done = CliRunner().invoke(app, command.split(), env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert f"Invalid value: {said}" in " ".join(done.stderr.split())


@pytest.fixture
def ledgered(
    connection: psycopg.Connection, market_url: str, monkeypatch: pytest.MonkeyPatch
) -> psycopg.Connection:
    """A ledger with a delivered alert (1), a dead one (2), and one no body could be made of (3)."""
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setattr(render.out, "width", 160)
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
    return CliRunner().invoke(app, ["alerts", *arguments])


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


AT = datetime(2025, 9, 16, 15, 30, tzinfo=UTC)


@pytest.fixture
def bot(connection: psycopg.Connection, market_url: str, monkeypatch: pytest.MonkeyPatch) -> Bot:
    monkeypatch.setenv("DATABASE_URL", market_url)
    monkeypatch.setattr(render.out, "width", 80)
    return Bot(connection)


def shown(command: str) -> list[str]:
    """Return the rows of a table that is 80 columns wide, their cells without borders and folds."""
    done = CliRunner().invoke(app, [*command.split(), "--since", "9999d"])
    assert done.exit_code == 0, done.stderr
    title, *lines = done.stdout.splitlines()
    assert "now 20" in title
    assert {cell_len(line) for line in lines} == {80}
    assert "…" not in done.stdout
    rows: list[list[str]] = []
    for line in lines[3:-1]:
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if cells[0].startswith(("20", "-")):
            rows.append([""] * len(cells))
        rows[-1] = [f"{a}{b}" for a, b in zip(rows[-1], cells, strict=True)]
    return ["|".join(row).replace(" ", "") for row in rows]


def test_trades_are_shown_in_korean_time_and_80_columns(bot: Bot) -> None:
    bot.trade(AT, quantity="12345.12345678", fee="79.5", exit_reason="TRAILING_STOP")
    bot.trade(None, executed_at=None, price="0.001")
    order = "BUYMARKETFILLED,MeanReversion"
    assert shown("trades") == [
        f"2025-09-1700:30KST|KRW-BTC|{order},TRAILING_STOP|150,000,000|12,345.12345678|79.5",
        f"-|KRW-BTC|{order}|0.001|0.00125|-",
    ]


def test_decisions_are_shown_with_their_whole_reason(bot: Bot) -> None:
    reason = "RSI는 낮지만 거래량이 받쳐주지 않아 진입을 보류합니다. " * 8
    bot.reject(AT, reason, confidence=71, price_at_decision="158000000", model_used="claude-opus-5")
    assert shown("decisions") == [
        "2025-09-1700:30KST|KRW-BTC|REJECT71%,MeanReversion,claude-opus-5|158,000,000|"
        + reason.replace(" ", "")
    ]


def test_the_risk_log_is_shown(bot: Bot) -> None:
    bot.violation(AT, related_order_id=bot.trade(AT))
    bot.cooldown(AT + timedelta(hours=6), AT - timedelta(hours=1))
    assert shown("risk") == [
        "2025-09-1700:30KST|MAX_EXPOSURE|WARNING|KRW-BTC|over30%",
        "2025-09-1623:30KST|COOLDOWN|CRITICAL|-|연속손실3회:2025-09-1706:30KST까지신규거래중지",
    ]


def test_the_share_of_the_time_is_shown_that_each_horizons_flag_was_up(
    bot: Bot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text("volatility: {horizons: [1, 6, 24], published_horizon: 1}")
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", str(config))
    for hours, is_high in ((2, True), (3, False), (4, False), (5, False)):
        as_of = datetime.now(UTC) - timedelta(hours=hours)
        bot.connection.execute(
            "INSERT INTO trading_pipelines.volatility_forecast (symbol, as_of, horizon, "
            "valid_until, model_day, status, is_high_volatility) "
            "VALUES ('KRW-BTC', %s, 24, %s, %s, 'OK', %s)",
            [as_of, as_of, as_of.date(), is_high],
        )
    done = CliRunner().invoke(app, ["flags"])
    assert done.exit_code == 0, done.stderr
    shown = done.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    assert [row for row in rows if row] == [
        ["1 h", "0", "no forecasts", "yes"],
        ["6 h", "0", "no forecasts", "no"],
        ["24 h", "4", "25.0%", "no"],
    ]
    assert "is_high_volatility of KRW-BTC" in shown


def test_what_became_of_a_rejection_is_shown(bot: Bot) -> None:
    bot.connection.execute(
        "INSERT INTO trading_pipelines.reject_outcomes (symbol, day, decision_id, decided_at, "
        "regime, reason_family, state, price, exit_at, exit_reason, result_krw, verdict, note) "
        "VALUES ('KRW-BTC', '2025-09-16', 1, %s, 'BEAR', 'volume', 'completed', 158000000, %s, "
        "'stop_loss', -21000, 'saved', NULL), ('KRW-ETH', '2025-09-16', 2, %s, 'BULL', 'other', "
        "'pending', NULL, NULL, NULL, NULL, NULL, 'regimes.BULL is not in the settings')",
        [AT, AT + timedelta(hours=3), AT - timedelta(hours=1)],
    )
    assert shown("rejections") == [
        "2025-09-1700:30KST|KRW-BTC|BEAR,volume|158,000,000|stop_loss2025-09-1703:30KST|saved21,000KRW",
        "2025-09-1623:30KST|KRW-ETH|BULL,other|-|regimes.BULLisnotinthesettings|pending",
    ]


def test_whether_the_ai_is_worth_its_money_is_shown_and_is_json(
    bot: Bot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "strategy.yaml"
    config.write_text(
        "regimes:\n  BULL: {exit: {take_profit_pct: 0.05, stop_loss_pct: 0.03, max_hours: 72}}\n"
    )
    monkeypatch.setenv("TRADING_PIPELINES_CONFIG", f"{config}")
    nothing = CliRunner().invoke(app, ["ai", "--since", "30d"])
    assert (nothing.exit_code, nothing.stdout) == (0, "no decisions with an outcome in 30d\n")
    for decision, krw in (("confirm", 49_000), ("reject", -31_000)):
        bot.connection.execute(
            f"INSERT INTO trading_pipelines.{decision}_outcomes (symbol, day, decision_id, "
            "decided_at, regime, reason_family, state, exit_at, result_krw) "
            "VALUES ('KRW-BTC', '2025-09-16', 1, %s, 'BULL', 'volume', 'completed', %s, %s)",
            [AT, AT + timedelta(hours=3), krw],
        )
    done = CliRunner().invoke(app, ["ai", "--since", "9999d"])
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Cannot be told yet (1 of the 40 days with an entry that each side needs): " in text
    assert "refusing saved 31,000 KRW (+3.10 %)" in text
    assert "2 decisions, 2 judged" in text
    lines = CliRunner().invoke(app, ["ai", "--since", "9999d", "--json"]).stdout.splitlines()
    whole = json.loads(lines[0])
    assert (whole["taken_krw"], whole["refused_krw"], whole["saved_krw"]) == (49000, -31000, 31000)
    assert (whole["grouping"], whole["days_needed"]) == ("all", 40)
    assert {json.loads(line)["grouping"] for line in lines} == {
        "all", "model", "regime", "symbol", "reason", "confidence", "flag"
    }  # fmt: skip
    assert CliRunner().invoke(app, ["ai", "--since", "3"]).exit_code == 2


def test_what_a_model_wrote_does_nothing_to_the_terminal(bot: Bot) -> None:
    bot.reject(AT, "\x1b[2J\x9b31m[bold]끝[/] [/x] :warning:\u202e\r\n[link=x]한")
    (row,) = shown("decisions")
    assert row.endswith("|[2J31m[bold]끝[/][/x]:warning:[link=x]한")
    done = CliRunner().invoke(app, ["decisions", "--since", "9999d"])
    assert not regex.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.stdout)


def test_rows_are_one_object_a_line_as_the_bot_has_them_in_utc(bot: Bot) -> None:
    bot.trade(AT, fee="0.00000001")
    bot.trade(AT - timedelta(days=1), symbol="KRW-ETH")
    bot.reject(AT, "이유")
    arguments = ["trades", "--json", "--since", "9999d", "--limit", "1"]
    (line,) = CliRunner().invoke(app, arguments).stdout.splitlines()
    found = json.loads(line)
    assert (found["executed_at"], found["fee"]) == ("2025-09-16T15:30:00+00:00", "0.00000001")
    done = CliRunner().invoke(app, ["decisions", "--json", "--since", "9999d"])
    assert '"이유"' in done.stdout
    assert CliRunner().invoke(app, ["trades", "--json", "--since", "1d"]).stdout == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trades", "no trades in 7d"),
        ("decisions --symbol KRW-NEWCOIN --since 3d", "no decisions of KRW-NEWCOIN in 3d"),
        ("risk --since 24h", "no risk events in 24h"),
    ],
)
def test_where_there_is_nothing_it_is_said_in_words(bot: Bot, command: str, said: str) -> None:
    bot.reject(AT)
    done = CliRunner().invoke(app, command.split())
    assert (done.exit_code, done.stdout.strip()) == (0, said)


def test_an_upgrade_that_could_not_make_a_view_follow_says_so(bot: Bot) -> None:
    assert "up to date" in CliRunner().invoke(app, ["db", "upgrade"]).stdout
    bot.connection.execute("CREATE VIEW mine AS SELECT id FROM trading_pipelines.risk_audit_kst")
    bot.connection.execute("ALTER TABLE risk_audit ADD COLUMN later text")
    done = CliRunner().invoke(app, ["db", "upgrade"])
    assert (done.exit_code, "risk_audit_kst stays as it was" in done.stderr) == (1, True)


def test_what_waits_for_the_databases_ends_when_they_are_migrated(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_url)
    monkeypatch.setenv("TRADING_PIPELINES_HOME", str(tmp_path))
    command = [sys.executable, "-m", "trading_pipelines.cli.main", "db", "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert any("there is no schema" in line for line in waiting.stdout)
        prepare_database(load_environment())
        assert any("Dagster's storage has no tables" in line for line in waiting.stdout)
        assert CliRunner().invoke(app, ["db", "upgrade"]).exit_code == 0
        assert [*waiting.stdout][-1] == "the databases are up to date\n"
        assert waiting.wait(60) == 0


@pytest.mark.parametrize("wrong", ["--symbol BTC", "--symbol krw-btc", "--since 3", "--limit 0"])
@pytest.mark.parametrize("command", ["trades", "decisions", "risk", "rejections"])
def test_what_is_asked_wrongly_is_wrong_usage(command: str, wrong: str) -> None:
    assert CliRunner().invoke(app, [command, *wrong.split()]).exit_code == 2


@pytest.mark.parametrize(
    "command", ["up --port 65536", "replay --port -1", "replay --rate -1", "inbox --port 65536"]
)
def test_a_number_that_can_not_be_is_wrong_usage(command: str) -> None:
    assert CliRunner().invoke(app, command.split()).exit_code == 2


@pytest.mark.parametrize("command", ["replay", "inbox"])
def test_a_port_that_is_taken_is_named(command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = f"{taken.getsockname()[1]}"
        done = CliRunner().invoke(app, [command, "--port", port])
    assert isinstance(done.exception, OperatorError)
    assert str(done.exception).startswith(f"port {port}: ")


def test_a_folder_that_can_not_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["trading-pipelines", "init", "/proc/none"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 1
    assert capsys.readouterr().err == "failed: /proc/none: No such file or directory\n"
