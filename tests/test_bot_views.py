"""The bot's tables as a person reads them, from a real Postgres."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.alerts.conftest import Bot
from tests.conftest import copied
from trading_pipelines import bot_views
from trading_pipelines.assets.bot_tables import BOT_TABLES
from trading_pipelines.bot_views import DECISIONS, FOLLOWED, RISK, TRADES, Newest, Seen, read
from trading_pipelines.database.connection import connect, refresh_korean_views
from trading_pipelines.database.embedded import EmbeddedServer

AT = datetime(2025, 9, 16, 15, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def _url(server: EmbeddedServer, template: str) -> str:
    return copied(server, template)


@pytest.fixture
def bot(_url: str) -> Iterator[Bot]:
    """The bot at work; all it does is undone, and no one else sees it."""
    with connect(_url) as connection, connection.transaction(force_rollback=True):
        yield Bot(connection)


def reasons(rows: list[bot_views.BotRow]) -> list[object]:
    return [row["reasoning"] for row in rows]


def test_the_newest_come_first_and_those_without_a_time_last_whatever_is_asked(bot: Bot) -> None:
    bot.reject(AT, "second")
    bot.reject(None, "without")
    bot.reject(AT + MINUTE, "first")
    bot.reject(AT - MINUTE, "third")
    bot.reject(AT, "of the same moment, but later")
    connection = bot.connection
    assert reasons(read(connection, DECISIONS)) == [
        "first", "of the same moment, but later", "second", "third", "without"
    ]  # fmt: skip
    assert reasons(read(connection, DECISIONS, since=AT))[2:] == ["second", "without"]
    assert reasons(read(connection, DECISIONS, limit=1)) == ["first"]


def test_rows_of_one_symbol_alone_are_read(bot: Bot) -> None:
    bot.reject(AT)
    bot.reject(None, symbol="KRW-ETH")
    bot.violation(AT, related_order_id=bot.trade(AT, symbol="KRW-ETH"))
    bot.violation(AT, related_order_id=bot.trade(AT))
    bot.cooldown(AT + MINUTE, AT)
    for view in (DECISIONS, TRADES, RISK):
        found = read(bot.connection, view, symbol="KRW-ETH")
        assert [row["symbol"] for row in found] == ["KRW-ETH"]
        assert read(bot.connection, view, symbol="KRW-'; DROP TABLE x") == []


def test_an_order_happened_when_it_was_filled_else_when_it_was_made(bot: Bot) -> None:
    bot.trade(AT, executed_at=AT + 2 * MINUTE)
    bot.trade(AT + MINUTE, executed_at=None, status="PENDING")
    found = read(bot.connection, TRADES, since=AT + MINUTE)
    assert [TRADES.happened(row) for row in found] == [AT + 2 * MINUTE, AT + MINUTE]


def test_a_person_reads_korean_time_and_money_with_separators(bot: Bot) -> None:
    bot.trade(AT, fee="79.5", exit_reason="TAKE_PROFIT", regime="BULL")
    (row,) = read(bot.connection, TRADES)
    assert bot_views.shown_trade(row) == {
        "happened": "2025-09-17 00:30 KST",
        "symbol": "KRW-BTC",
        "order": "BUY MARKET FILLED, MeanReversion, BULL, TAKE_PROFIT",
        "price (KRW)": "150,000,000",
        "quantity": "0.00125",
        "fee (KRW)": "79.5",
    }
    bot.reject(None, None, confidence=0, model_used="claude")
    (row,) = read(bot.connection, DECISIONS)
    shown = bot_views.shown_decision(row)
    assert (shown["happened"], shown["reason"]) == ("-", "-")
    assert shown["decision"] == "REJECT 0 %, MeanReversion, claude"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "-"), (Decimal(0), "0"), (Decimal("0E-8"), "0"), (Decimal("1E+3"), "1,000"),
        (Decimal("-1234567.50000000"), "-1,234,567.5"), (Decimal("0.00000001"), "0.00000001"),
        (Decimal("NaN"), "NaN"), (Decimal(100), "100"),
    ],
)  # fmt: skip
def test_a_number_loses_no_digit_and_no_zero_that_counts(number: Decimal, shown: str) -> None:
    assert bot_views.amount(number) == shown


def test_json_has_the_bots_own_columns_in_utc_and_exact_numbers_as_text(bot: Bot) -> None:
    bot.trade(AT, quantity="0.00000010", signal_info={"이유": "과매도"})
    (row,) = read(bot.connection, TRADES)
    line = bot_views.json_line(row)
    assert "과매도" in line
    found: dict[str, Any] = json.loads(line)
    assert found["executed_at"] == "2025-09-16T15:30:00+00:00"
    assert found["quantity"] == "0.00000010"
    assert not [name for name in found if name.endswith("_kst")]
    assert found.keys() == row.keys() - {"created_at_kst", "executed_at_kst"}


def test_an_older_database_is_read_too(bot: Bot) -> None:
    bot.connection.execute("ALTER TABLE agent_decisions DROP COLUMN price_at_decision")
    bot.connection.execute("ALTER TABLE trading_history DROP COLUMN exit_reason")
    refresh_korean_views(bot.connection)
    bot.reject(AT)
    bot.trade(AT)
    (decision,), (trade,) = (read(bot.connection, view) for view in (DECISIONS, TRADES))
    assert bot_views.shown_decision(decision)["price (KRW)"] == "-"
    assert bot_views.shown_trade(trade)["order"] == "BUY MARKET FILLED, MeanReversion"


def unseen(bot: Bot, seen: dict[str, Seen], now: datetime) -> dict[str, Newest]:
    """Return what is unseen, and remember it as seen."""
    found = bot_views.unseen(bot.connection, seen, now)
    seen |= {name: Seen(one.version, now) for name, one in found.items()}
    return found


def test_every_table_of_the_bots_is_followed() -> None:
    assert FOLLOWED.keys() == BOT_TABLES.keys()


def test_a_table_is_unseen_when_a_row_comes_changes_or_goes_and_only_then(bot: Bot) -> None:
    seen: dict[str, Seen] = {}
    now = AT
    assert unseen(bot, seen, now) == {}, "an empty table has nothing to show"

    order = bot.trade(AT, executed_at=None, status="PENDING")
    for change in (
        "UPDATE trading_history SET status = 'CANCELLED'",
        "UPDATE trading_history SET executed_at = created_at",
        "DELETE FROM trading_history",
    ):
        now += bot_views.OBSERVED_EVERY
        assert list(unseen(bot, seen, now)) == ["trading_history"], change
        now += bot_views.OBSERVED_EVERY
        assert unseen(bot, seen, now) == {}
        bot.connection.execute(change)
    found = unseen(bot, seen, now + bot_views.OBSERVED_EVERY)
    assert [one.count for one in found.values()] == [0]
    assert order not in str(found)


def test_a_table_is_observed_once_in_five_minutes_and_the_last_change_is_not_lost(
    bot: Bot,
) -> None:
    seen: dict[str, Seen] = {}
    bot.reject(AT)
    assert list(unseen(bot, seen, AT)) == ["agent_decisions"]
    bot.reject(AT + MINUTE)
    bot.violation(AT)
    assert list(unseen(bot, seen, AT + 4 * MINUTE)) == ["risk_audit"]
    assert list(unseen(bot, seen, AT + 5 * MINUTE)) == ["agent_decisions"]
    # The clock was an hour ahead, and is set right.
    bot.reject(AT + 2 * MINUTE)
    assert list(unseen(bot, seen, AT - 60 * MINUTE)) == ["agent_decisions"]


def test_what_is_observed_is_the_newest_fifty_rows_in_korean_time(bot: Bot) -> None:
    long = "가" * 1000
    for n in range(60):
        bot.reject(AT + n * MINUTE, f"{n} {long}", price_at_decision="158000000")
    one = bot_views.newest(bot.connection, "agent_decisions")
    assert (one.count, len(one.rows), one.happened) == (60, 50, AT + 59 * MINUTE)
    assert one.rows[0]["created_at (KST)"] == "2025-09-17 01:29:00"
    assert one.rows[0]["price_at_decision"] == "158,000,000"
    assert one.rows[0]["reasoning"] == f"59 {long}"[: bot_views.LONGEST_TEXT]
    assert one.rows[0].keys() & {"created_at", "created_at_kst"} == set()
