"""The views in Korean time on a real Postgres, and a bot that migrates its tables as it likes."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import LiteralString

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from tests.conftest import copied
from tests.database.test_upgrade import BOT_TABLES
from trading_pipelines.alerts.kinds import sources_of
from trading_pipelines.database.connection import connect, refresh_korean_views, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer

VIEWS = {
    "trade_history_kst",
    "agent_decisions_kst",
    "risk_audit_kst",
    "daily_risk_state_kst",
    "risk_log_kst",
}
ALL = ";".join(f"SELECT * FROM trading_pipelines.{view}" for view in sorted(VIEWS))
DECISION = """
INSERT INTO agent_decisions (symbol, strategy_name, decision, created_at)
VALUES ('KRW-BTC', 'test', 'REJECT', %s)
"""
STATE = """
INSERT INTO daily_risk_state VALUES ('2025-09-16', %s, 4, 3, %s, %s, '2025-09-16 15:30Z')
"""


@contextmanager
def as_role(market_url: str, role: str) -> Iterator[psycopg.Connection]:
    with connect(market_url.replace("postgres@", f"{role}@")) as connection:
        yield connection


@pytest.fixture(scope="module")
def _url(server: EmbeddedServer, template: str) -> str:
    return copied(server, template)


@pytest.fixture
def undone(_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a fresh database: all that is done is undone, and no one else sees it."""
    with connect(_url) as connection, connection.transaction(force_rollback=True):
        yield connection


@pytest.fixture(scope="module")
def _roles(server: EmbeddedServer) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for role in ("the_bot", "ours", "a_reader"):
            connection.execute(f"CREATE ROLE {role} LOGIN")


def columns(connection: psycopg.Connection, table: str) -> list[str]:
    cursor = connection.execute(f"SELECT * FROM {table} LIMIT 0")
    return [column.name for column in cursor.description or ()]


def made(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    """Return every view and its function by their object ids: what is made anew has another."""
    return connection.execute(
        "SELECT relname, oid FROM pg_class "
        "WHERE relname ~ '_kst$' AND relname !~ '^(reject|volatility)_' "
        "UNION ALL SELECT proname, oid FROM pg_proc WHERE proname ~ '_kst_rows$' ORDER BY 1"
    ).fetchall()


def plan(connection: psycopg.Connection, query: LiteralString) -> str:
    connection.execute("SET enable_seqscan = off")
    found = connection.execute("EXPLAIN SELECT * FROM trading_pipelines." + query)
    return "\n".join(line for (line,) in found.fetchall())


@pytest.mark.parametrize(
    ("utc", "korean"),
    [
        ("2025-09-16 15:30Z", "2025-09-17 00:30"),
        ("2025-01-01 00:00Z", "2025-01-01 09:00"),
        # Seoul had summer time in 1987 and 1988, and another offset before 1961.
        ("1988-07-01 00:00Z", "1988-07-01 10:00"),
        ("1960-01-15 00:00Z", "1960-01-15 08:30"),
    ],
)
def test_a_time_is_that_of_a_clock_in_seoul(
    undone: psycopg.Connection, utc: str, korean: str
) -> None:
    undone.execute(DECISION, [utc])
    # Whatever the zone of who asks.
    undone.execute("SET timezone = 'America/New_York'")
    found = undone.execute(
        "SELECT created_at_kst, created_at = %s FROM trading_pipelines.agent_decisions_kst", [utc]
    )
    assert found.fetchone() == (datetime.fromisoformat(korean), True)


def test_every_column_is_kept_and_each_moment_has_one_more_that_names_its_zone(
    undone: psycopg.Connection,
) -> None:
    for table, view in (
        ("trading_history", "trade_history_kst"),
        ("agent_decisions", "agent_decisions_kst"),
        ("risk_audit", "risk_audit_kst"),
        ("daily_risk_state", "daily_risk_state_kst"),
    ):
        there = columns(undone, f"trading_pipelines.{view}")
        own = columns(undone, f"public.{table}")
        assert [name for name in there if not name.endswith("_kst")] == own
        moments = undone.execute(
            "SELECT attname || '_kst' FROM pg_attribute WHERE attrelid = %s::regclass "
            "AND atttypid = 'timestamptz'::regtype ORDER BY attnum",
            [f"public.{table}"],
        )
        assert [name for name in there if name.endswith("_kst")] == [n for (n,) in moments]
    comments = undone.execute(
        "SELECT col_description(attrelid, attnum) FROM pg_attribute JOIN pg_class ON "
        "pg_class.oid = attrelid WHERE relname = ANY(%s) AND attname LIKE '%%_kst'",
        [list(VIEWS)],
    ).fetchall()
    assert len(comments) == 7
    assert all("Korean time (Asia/Seoul)" in comment for (comment,) in comments)


def test_the_risk_log_tells_violations_cooldowns_and_halts_in_the_words_of_the_alerts(
    undone: psycopg.Connection,
) -> None:
    undone.execute(
        "INSERT INTO trading_history (symbol, side, order_type, price, quantity, status) "
        "VALUES ('KRW-ETH', 'BUY', 'MARKET', 1, 1, 'FILLED')"
    )
    undone.execute(
        "INSERT INTO risk_audit (violation_type, description, related_order_id, timestamp) "
        "SELECT 'MAX_EXPOSURE', 'over 30 %', id, '2025-09-16 15:00Z'::timestamptz "
        "FROM trading_history UNION ALL SELECT 'DAILY_LOSS', '', NULL, NULL"
    )
    undone.execute(STATE, ["-1200.50", "2025-09-16 21:00Z", True])
    found = undone.execute(
        "SELECT occurred_at_kst::text, source, type, level, message, symbol "
        "FROM trading_pipelines.risk_log_kst ORDER BY occurred_at, type"
    ).fetchall()
    assert found == [
        ("2025-09-17 00:00:00", "risk_audit", "MAX_EXPOSURE", "WARNING", "over 30 %", "KRW-ETH"),
        ("2025-09-17 00:30:00", "daily_risk_state", "COOLDOWN", "CRITICAL",
         "연속 손실 3회: 2025-09-17 06:00 KST까지 신규 거래 중지", None),
        ("2025-09-17 00:30:00", "daily_risk_state", "HALT", "CRITICAL",
         "거래 정지: 손익 -1200.5, 거래 4회, 연속 손실 3회", None),
        (None, "risk_audit", "DAILY_LOSS", "WARNING", "DAILY_LOSS", None),
    ]  # fmt: skip
    for source in sources_of("risk"):
        for _, at, row in undone.execute(source.rows, {"since": "2025-01-01Z"}).fetchall():
            told = source.body(undone, row, at or datetime.fromisoformat("2025-09-16T00:00Z"))
            assert (source.table, told["type"], told["level"], told["message"]) in [
                line[1:5] for line in found
            ]


MIGRATIONS = [
    "ALTER TABLE agent_decisions ALTER COLUMN confidence TYPE numeric(5, 2)",
    "ALTER TABLE agent_decisions ALTER COLUMN symbol TYPE varchar(60)",
    "ALTER TABLE agent_decisions ALTER COLUMN created_at TYPE timestamp",
    "ALTER TABLE agent_decisions ADD COLUMN asked_at timestamptz DEFAULT '2025-09-16 15:30Z'",
    "ALTER TABLE agent_decisions ADD COLUMN created_at_kst text",
    'ALTER TABLE agent_decisions ADD COLUMN "Odd ""name" integer',
    "ALTER TABLE agent_decisions DROP COLUMN model_used",
    "ALTER TABLE agent_decisions RENAME COLUMN reasoning TO why",
    "ALTER TABLE trading_history ALTER COLUMN price TYPE numeric(30, 10)",
    "ALTER TABLE trading_history DROP COLUMN exit_reason, ADD COLUMN filled_at timestamptz",
    "ALTER TABLE risk_audit ALTER COLUMN id TYPE bigint, ADD COLUMN level integer",
    "DROP TABLE agent_decisions; CREATE TABLE agent_decisions (id bigint, created_at timestamptz)",
    "ALTER TABLE daily_risk_state ALTER COLUMN total_pnl TYPE double precision",
]


@pytest.mark.parametrize("migration", MIGRATIONS)
def test_the_bot_migrates_as_if_no_view_were_there_and_the_views_follow(
    undone: psycopg.Connection, migration: LiteralString
) -> None:
    undone.execute(DECISION, ["2025-09-16 15:30Z"])
    undone.execute(migration)
    assert refresh_korean_views(undone) == []
    for table, view in (
        ("agent_decisions", "agent_decisions_kst"),
        ("trading_history", "trade_history_kst"),
        ("risk_audit", "risk_audit_kst"),
    ):
        shown = columns(undone, f"trading_pipelines.{view}")
        assert set(columns(undone, f"public.{table}")) <= set(shown)
    undone.execute(ALL)
    before = made(undone)
    assert refresh_korean_views(undone) == []
    assert made(undone) == before, "nothing has changed since"


def test_a_text_is_shown_whole_before_the_view_has_followed(undone: psycopg.Connection) -> None:
    undone.execute("ALTER TABLE agent_decisions ALTER COLUMN symbol TYPE varchar(60)")
    undone.execute(DECISION.replace("KRW-BTC", "K" * 60), [None])
    query = "SELECT symbol FROM trading_pipelines.agent_decisions_kst"
    assert undone.execute(query).fetchall() == [("K" * 60,)]


def test_a_type_of_the_bots_own_is_shown_and_can_be_dropped(
    undone: psycopg.Connection,
) -> None:
    undone.execute("CREATE TYPE verdict AS ENUM ('CONFIRM', 'REJECT')")
    undone.execute("DROP INDEX idx_agent_decisions_rejects")
    undone.execute(DECISION, [None])
    alter = "ALTER TABLE agent_decisions ALTER COLUMN decision TYPE {0} USING decision::text::{0}"
    undone.execute(alter.format("verdict"))
    refresh_korean_views(undone)
    query = "SELECT decision FROM trading_pipelines.agent_decisions_kst"
    assert undone.execute(query).fetchall() == [("REJECT",)]
    undone.execute(alter.format("varchar(20)"))
    undone.execute("DROP TYPE verdict")
    assert undone.execute(query).fetchall() == [("REJECT",)]


def test_an_upgrade_follows_a_database_of_any_age(
    connection: psycopg.Connection, market_url: str
) -> None:
    view = "trading_pipelines.agent_decisions_kst"
    connection.execute("ALTER TABLE agent_decisions DROP COLUMN price_at_decision, DROP regime")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        connection.execute(f"SELECT * FROM {view}")
    upgrade_database(market_url)
    assert "regime" not in columns(connection, view)
    connection.execute("ALTER TABLE agent_decisions ADD COLUMN regime varchar(10)")
    upgrade_database(market_url)
    assert columns(connection, view)[-1] == "regime"


def test_an_upgrade_that_changes_nothing_waits_for_no_one(
    connection: psycopg.Connection, market_url: str
) -> None:
    before = made(connection)
    with connect(market_url) as other, other.transaction():
        # As a migration of the bot's, and a reader of a dashboard that went to lunch.
        other.execute("LOCK TABLE agent_decisions, trading_history IN ACCESS EXCLUSIVE MODE")
        other.execute("SELECT * FROM trading_pipelines.risk_log_kst LIMIT 0")
        connection.execute("SET lock_timeout = 1")
        assert refresh_korean_views(connection) == []
    assert made(connection) == before


def test_a_view_follows_while_the_bot_holds_its_table(
    connection: psycopg.Connection, market_url: str
) -> None:
    connection.execute("ALTER TABLE agent_decisions ADD COLUMN later text")
    with connect(market_url) as other, other.transaction():
        other.execute("LOCK TABLE agent_decisions IN ACCESS EXCLUSIVE MODE")
        assert refresh_korean_views(connection) == []
    assert "later" in columns(connection, "trading_pipelines.agent_decisions_kst")


def test_whoever_reads_a_view_for_long_keeps_it_and_the_upgrade_goes_on(
    connection: psycopg.Connection, market_url: str
) -> None:
    connection.execute("ALTER TABLE agent_decisions ADD COLUMN later text")
    connection.execute("ALTER TABLE risk_audit ADD COLUMN later text")
    with connect(market_url) as other, other.transaction():
        other.execute("SELECT * FROM trading_pipelines.agent_decisions_kst")
        (said,) = refresh_korean_views(connection)
        assert said.startswith("agent_decisions_kst stays as it was: canceling")
        assert "later" in columns(connection, "trading_pipelines.risk_audit_kst")
    assert refresh_korean_views(connection) == []
    assert "later" in columns(connection, "trading_pipelines.agent_decisions_kst")


def test_a_view_of_a_persons_own_on_ours_is_left_alone_and_stops_no_upgrade(
    connection: psycopg.Connection, market_url: str
) -> None:
    connection.execute(
        "CREATE VIEW mine AS SELECT decision FROM trading_pipelines.agent_decisions_kst"
    )
    connection.execute("ALTER TABLE agent_decisions ADD COLUMN later text")
    upgrade_database(market_url)
    (said,) = refresh_korean_views(connection)
    assert said.startswith("agent_decisions_kst stays as it was: cannot drop")
    connection.execute("SELECT * FROM mine")
    connection.execute("SELECT * FROM trading_pipelines.agent_decisions_kst")


@pytest.mark.usefixtures("_roles")
def test_who_may_read_a_view_may_read_the_one_that_takes_its_place(
    connection: psycopg.Connection, market_url: str
) -> None:
    connection.execute("GRANT USAGE ON SCHEMA trading_pipelines TO a_reader")
    connection.execute("GRANT SELECT ON agent_decisions TO a_reader")
    connection.execute("GRANT SELECT ON trading_pipelines.agent_decisions_kst TO a_reader")
    connection.execute("ALTER TABLE agent_decisions ADD COLUMN later text")
    assert refresh_korean_views(connection) == []
    with as_role(market_url, "a_reader") as reader:
        assert "later" in columns(reader, "trading_pipelines.agent_decisions_kst")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT * FROM trading_pipelines.trade_history_kst")


@pytest.mark.usefixtures("_roles")
def test_a_role_that_does_not_own_the_bots_tables_makes_the_views_and_the_bot_migrates(
    server: EmbeddedServer,
) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE shared_with_bot OWNER ours")
    url = server.url("shared_with_bot")
    with connect(url) as connection:
        connection.execute("GRANT CREATE ON SCHEMA public TO the_bot, ours")
        connection.execute("SET ROLE the_bot")
        for table in BOT_TABLES.values():
            connection.execute(table)
        connection.execute("GRANT SELECT, REFERENCES ON ALL TABLES IN SCHEMA public TO ours")
    own = url.replace("postgres@", "ours@")
    upgrade_database(own)
    with as_role(url, "the_bot") as bot, as_role(url, "ours") as ours:
        bot.execute(DECISION, ["2025-09-16 15:30Z"])
        bot.execute("ALTER TABLE agent_decisions ALTER COLUMN symbol TYPE text, "
                    "DROP COLUMN strategy_name, ADD COLUMN regime text")  # fmt: skip
        upgrade_database(own)
        assert columns(ours, "trading_pipelines.agent_decisions_kst") == [
            "id", "symbol", "decision", "reasoning", "confidence", "model_used", "created_at",
            "created_at_kst", "regime",
        ]  # fmt: skip
        rows = ours.execute("SELECT symbol FROM trading_pipelines.agent_decisions_kst").fetchall()
        assert rows == [("KRW-BTC",)]


def test_of_two_upgrades_at_once_one_makes_the_views(
    connection: psycopg.Connection, market_url: str
) -> None:
    connection.execute("ALTER TABLE agent_decisions ADD COLUMN later text")
    with connect(market_url) as other, other.transaction():
        assert refresh_korean_views(other) == []
        assert refresh_korean_views(connection) == [], "left to the other"
        other_made = made(other)
    assert refresh_korean_views(connection) == []
    assert made(connection) == other_made


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("agent_decisions_kst WHERE decision = 'REJECT' AND created_at >= '2025-09-16Z'",
         "idx_agent_decisions_rejects"),
        ("trade_history_kst WHERE status = 'FILLED' AND coalesce(executed_at, created_at) >= now()",
         "idx_trading_history_filled"),
        ("risk_log_kst WHERE occurred_at >= '2025-09-16Z'", "idx_risk_audit_timestamp"),
        ("agent_decisions_kst WHERE id = 7", "agent_decisions_pkey"),
    ],
)  # fmt: skip
def test_a_condition_on_a_view_finds_the_index_of_its_table(
    undone: psycopg.Connection, query: LiteralString, index: str
) -> None:
    assert index in plan(undone, query)


def test_there_is_a_way_back_and_forth(connection: psycopg.Connection, market_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", "trading_pipelines:database/migrations")
    config.attributes["url"] = market_url
    command.downgrade(config, "0004")
    assert made(connection) == []
    assert connection.execute("SELECT to_regproc('refresh_korean_views')").fetchone() == (None,)
    upgrade_database(market_url)
    assert {name for name, _ in made(connection)} == VIEWS | {f"{view}_rows" for view in VIEWS}
