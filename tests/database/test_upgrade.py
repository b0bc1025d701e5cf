"""Migrations on databases of every age, and on the bot's own table."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from trading_pipelines.alerts import ledger
from trading_pipelines.candles.page import Candle
from trading_pipelines.candles.store import Written, write_candles
from trading_pipelines.database.adoption.bot_columns import NEWER
from trading_pipelines.database.connection import (
    DatabaseError,
    connect,
    migrate,
    upgrade_database,
)
from trading_pipelines.errors import OperatorError

# The bot's table as the fact sheet has it; the oldest databases lack the key.
MARKET_DATA = """
CREATE TABLE market_data (
    id bigserial NOT NULL,
    symbol varchar(20) NOT NULL,
    interval varchar(10) NOT NULL,
    open_price numeric(20, 8) NOT NULL,
    high_price numeric(20, 8) NOT NULL,
    low_price numeric(20, 8) NOT NULL,
    close_price numeric(20, 8) NOT NULL,
    volume numeric(20, 8) NOT NULL,
    timestamp timestamptz NOT NULL,
    PRIMARY KEY (timestamp, id)
)
"""
KEY = """
ALTER TABLE market_data ADD CONSTRAINT uq_market_data_symbol_interval_ts
    UNIQUE (symbol, interval, timestamp)
"""
REGIME_HISTORY = """
CREATE TABLE regime_history (
    id bigserial PRIMARY KEY,
    detected_at timestamptz,
    regime varchar(10) NOT NULL,
    ma50 numeric(20, 8),
    ma200 numeric(20, 8),
    diff_pct numeric(10, 4),
    coin_symbol varchar(10) NOT NULL
)
"""
# The tables that alerts come from, as the fact sheet has them: the oldest, without defaults.
BOT_TABLES = {
    "trading_history": """
CREATE TABLE trading_history (
    id uuid PRIMARY KEY,
    symbol varchar(20) NOT NULL,
    side varchar(10) NOT NULL,
    order_type varchar(10) NOT NULL,
    price numeric(20, 8) NOT NULL,
    quantity numeric(20, 8) NOT NULL,
    fee numeric(20, 8),
    status varchar(20) NOT NULL,
    strategy_name varchar(50),
    signal_info jsonb,
    created_at timestamptz,
    executed_at timestamptz
)
""",
    "risk_audit": """
CREATE TABLE risk_audit (
    id serial PRIMARY KEY,
    violation_type varchar(50) NOT NULL,
    description text,
    related_order_id uuid REFERENCES trading_history (id),
    timestamp timestamptz
)
""",
    "daily_risk_state": """
CREATE TABLE daily_risk_state (
    date date PRIMARY KEY,
    total_pnl numeric(20, 8) NOT NULL,
    trade_count integer NOT NULL,
    consecutive_losses integer NOT NULL,
    cooldown_until timestamptz,
    is_trading_halted boolean NOT NULL,
    updated_at timestamptz
)
""",
    "agent_decisions": """
CREATE TABLE agent_decisions (
    id bigserial PRIMARY KEY,
    symbol varchar(20) NOT NULL,
    strategy_name varchar(50) NOT NULL,
    decision varchar(20) NOT NULL,
    reasoning text,
    confidence integer,
    model_used varchar(50),
    created_at timestamptz
)
""",
}
NEWER_COLUMNS = """
ALTER TABLE trading_history ADD COLUMN regime varchar(10),
    ADD COLUMN high_water_mark numeric(20, 8), ADD COLUMN exit_reason varchar(30);
ALTER TABLE trading_history ADD COLUMN post_exit_prices jsonb;
ALTER TABLE daily_risk_state ADD COLUMN buy_count integer NOT NULL DEFAULT 0,
    ADD COLUMN sell_count integer NOT NULL DEFAULT 0;
ALTER TABLE agent_decisions ADD COLUMN price_at_decision numeric(20, 8),
    ADD COLUMN regime varchar(10)
"""
ROWS_TO_TELL = """
INSERT INTO trading_history VALUES (gen_random_uuid(), 'KRW-BTC', 'BUY', 'MARKET', 150000000, 0.001,
    NULL, 'FILLED', NULL, '{"rsi": 71}', NULL, '2025-09-10 12:00Z');
INSERT INTO risk_audit (violation_type, related_order_id)
    SELECT 'MAX_EXPOSURE', id FROM trading_history;
INSERT INTO daily_risk_state (date, total_pnl, trade_count, consecutive_losses, cooldown_until,
    is_trading_halted, updated_at)
    VALUES ('2025-09-10', -1, 3, 3, '2025-09-10 16:00Z', false, NULL);
INSERT INTO agent_decisions (symbol, strategy_name, decision) VALUES ('KRW-BTC', 'test', 'REJECT')
"""
RISK_STATES = """
INSERT INTO daily_risk_state (date, total_pnl, trade_count, consecutive_losses, cooldown_until,
    is_trading_halted, updated_at) VALUES
    ('2025-07-01', -9, 3, 3, NULL, true, '2025-07-01 12:00Z'),
    ('2025-07-02', 0, 0, 0, NULL, false, '2025-07-02 01:00Z'),
    ('2025-09-10', -1, 3, 3, '2025-09-10 16:00Z', true, '2025-09-10 14:00Z')
"""
OUR_INDEXES = {
    "agent_decisions": ["idx_agent_decisions_created_at", "idx_agent_decisions_rejects"],
    "trading_history": ["idx_trading_history_filled"],
    "risk_audit": ["idx_risk_audit_timestamp"],
}
INDEX = "CREATE INDEX its_index ON market_data (symbol, interval, timestamp DESC)"
OUR_INDEX = "idx_market_data_symbol_interval_ts"
ITS_KEY = "uq_market_data_symbol_interval_ts"
OUR_KEY = "market_data_symbol_interval_timestamp_key"
ROWS = """
INSERT INTO market_data
    (symbol, interval, open_price, high_price, low_price, close_price, volume, timestamp)
SELECT symbol, '1m', n, n, n, n, n, '2025-09-01Z'::timestamptz + interval '1 minute' * n
FROM generate_series(1, 500) AS n, (VALUES ('KRW-BTC'), ('KRW-DOGE')) AS markets (symbol)
"""


@pytest.fixture
def aged(empty_url: str) -> Iterator[psycopg.Connection]:
    """A connection to that database."""
    with connect(empty_url) as connection:
        yield connection


def described(connection: psycopg.Connection, table: str) -> list[tuple[object, ...]]:
    """Return the columns, constraints and indexes of a table, with the names of what has one."""
    columns = connection.execute(
        "SELECT attnum, attname, format_type(atttypid, atttypmod), attnotnull, "
        "pg_get_expr(adbin, adrelid) FROM pg_attribute LEFT JOIN pg_attrdef "
        "ON adrelid = attrelid AND adnum = attnum "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    keys = connection.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE conrelid = %s::regclass ORDER BY 1",
        [table],
    ).fetchall()
    indexes = connection.execute(
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass ORDER BY 1",
        [table],
    ).fetchall()
    return [*columns, *keys, *indexes]


Rows = list[tuple[object, ...]]


def everything(connection: psycopg.Connection) -> dict[str, tuple[Rows, Rows]]:
    """Return every table of the database, its shape and its rows with their versions."""
    tables = connection.execute(
        "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables "
        "WHERE table_schema IN ('public', 'trading_pipelines') AND table_type = 'BASE TABLE' "
        "ORDER BY 1"
    ).fetchall()
    return {
        name: (
            described(connection, name),
            connection.execute(
                f"SELECT (xmin, ctid, t.*)::text FROM {name} AS t ORDER BY 1"
            ).fetchall(),
        )
        for (name,) in tables
    }


def test_a_second_upgrade_changes_nothing(empty_url: str, aged: psycopg.Connection) -> None:
    upgrade_database(empty_url)
    before = everything(aged)
    assert set(before) >= {
        "public.market_data",
        "trading_pipelines.alembic_version",
        "trading_pipelines.candle_coverage",
        "trading_pipelines.candles_1h",
        "trading_pipelines.request_slots",
        "trading_pipelines.alert_kinds",
        "trading_pipelines.alert_deliveries",
        "trading_pipelines.alert_attempts",
        *(f"public.{table}" for table in BOT_TABLES),
    }
    upgrade_database(empty_url)
    assert everything(aged) == before


def test_what_is_made_for_a_bot_that_comes_later_is_what_the_bot_would_have_made(
    aged: psycopg.Connection, connection: psycopg.Connection
) -> None:
    key = KEY.replace(ITS_KEY, OUR_KEY)
    for statement in (MARKET_DATA, key, INDEX.replace("its_index", OUR_INDEX)):
        aged.execute(statement)
    # As wide as the settings' symbols: KRW-BIGTIME has eleven characters.
    aged.execute(REGIME_HISTORY.replace("coin_symbol varchar(10)", "coin_symbol varchar(20)"))
    ours = "idx_regime_history_symbol_detected_at ON regime_history"
    aged.execute(f"CREATE INDEX {ours} (coin_symbol, detected_at DESC)")
    for table in ("public.market_data", "public.regime_history"):
        assert described(connection, table) == described(aged, table)


def test_a_table_that_the_bot_has_made_stays_as_it_is(
    empty_url: str, aged: psycopg.Connection
) -> None:
    history = "INSERT INTO regime_history (regime, coin_symbol) VALUES ('BULL', 'KRW-BTC')"
    for statement in (MARKET_DATA, KEY, INDEX, ROWS, REGIME_HISTORY, history):
        aged.execute(statement)
    before = everything(aged)
    upgrade_database(empty_url)
    after = everything(aged)
    assert {table: after[table] for table in before} == before
    doubles = aged.execute("SELECT to_regclass('trading_pipelines.market_data_doubles')")
    assert doubles.fetchone() == (None,)


def test_a_view_in_the_place_of_the_bots_table_is_refused_in_words(
    empty_url: str, aged: psycopg.Connection
) -> None:
    aged.execute("CREATE VIEW market_data AS SELECT 1 AS id")
    with pytest.raises(OperatorError, match="no table: `trading-pipelines db adopt` says"):
        upgrade_database(empty_url)
    assert aged.execute("SELECT to_regclass('trading_pipelines.candle_coverage')").fetchone() == (
        None,
    )


def test_a_key_that_is_an_index_or_has_another_order_will_do(
    empty_url: str, aged: psycopg.Connection
) -> None:
    aged.execute(MARKET_DATA)
    aged.execute("CREATE UNIQUE INDEX theirs ON market_data (timestamp, symbol, interval)")
    aged.execute(ROWS)
    before = everything(aged)["public.market_data"]
    upgrade_database(empty_url)
    assert everything(aged)["public.market_data"] == before
    assert written(aged) == Written(inserted=1, repaired=1)


def written(connection: psycopg.Connection) -> Written:
    """Store one candle that is there and differs, and one that is not."""
    there, new = (datetime(2025, 9, 1, hour, 1, tzinfo=UTC) for hour in (0, 23))
    with connection.transaction():
        return write_candles(
            connection, "KRW-BTC", [Candle(at, *[Decimal(7)] * 5) for at in (there, new)]
        )


DOUBLES = """
INSERT INTO market_data
    (symbol, interval, open_price, high_price, low_price, close_price, volume, timestamp)
SELECT symbol, '1m', n + written, n + written, n + written, n + written, n,
    '2025-09-01Z'::timestamptz + interval '1 minute' * n
FROM generate_series(100, 119) AS n, generate_series(1, 2) AS written,
    (VALUES ('KRW-BTC')) AS markets (symbol)
ORDER BY written
"""


def test_the_doubles_of_the_oldest_databases_are_moved_and_the_last_written_stays(
    empty_url: str, aged: psycopg.Connection
) -> None:
    for statement in (MARKET_DATA, INDEX, ROWS, DOUBLES):
        aged.execute(statement)
    # The same times in another interval are no doubles.
    aged.execute(ROWS.replace("'1m'", "'5m'"))
    all_rows = set(aged.execute("SELECT * FROM market_data"))
    columns = described(aged, "public.market_data")
    upgrade_database(empty_url)

    kept = set(aged.execute("SELECT * FROM market_data"))
    moved = set(aged.execute("SELECT * FROM trading_pipelines.market_data_doubles"))
    assert kept | moved == all_rows, "no row is lost"
    assert not kept & moved
    assert len(moved) == 40
    last = aged.execute(
        "SELECT DISTINCT close_price - volume FROM market_data WHERE symbol = 'KRW-BTC' "
        "AND interval = '1m' AND timestamp >= '2025-09-01 01:40Z' "
        "AND timestamp < '2025-09-01 02:00Z'"
    ).fetchall()
    assert last == [(2,)]
    added = [line for line in described(aged, "public.market_data") if line not in columns]
    assert sorted(map(len, added)) == [1, 2], "the key and its index, and nothing else"
    assert ("uq_market_data_symbol_interval_ts", 'UNIQUE (symbol, "interval", "timestamp")') in (
        added
    )
    assert written(aged) == Written(inserted=1, repaired=1)

    before = everything(aged)
    upgrade_database(empty_url)
    assert everything(aged) == before


def test_an_old_database_without_doubles_only_gets_the_key(
    empty_url: str, aged: psycopg.Connection
) -> None:
    for statement in (MARKET_DATA, ROWS):
        aged.execute(statement)
    before = set(aged.execute("SELECT xmin::text, ctid::text, id FROM market_data"))
    upgrade_database(empty_url)
    assert set(aged.execute("SELECT xmin::text, ctid::text, id FROM market_data")) == before
    assert written(aged) == Written(inserted=1, repaired=1)


def test_a_bot_that_goes_on_inserting_its_way_meets_no_error(
    empty_url: str, aged: psycopg.Connection
) -> None:
    upgrade_database(empty_url)
    insert = ROWS + " ON CONFLICT (symbol, interval, timestamp) DO NOTHING"
    assert aged.execute(insert).rowcount == 1000
    assert aged.execute(insert).rowcount == 0


UPGRADE = """
import sys
from trading_pipelines.database.connection import upgrade_database

print("ready", flush=True)
sys.stdin.readline()
upgrade_database(sys.argv[1])
"""


def test_eight_upgrades_at_once_make_one(empty_url: str, aged: psycopg.Connection) -> None:
    for statement in (MARKET_DATA, ROWS, DOUBLES):
        aged.execute(statement)
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", UPGRADE, empty_url],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(8)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 8, "\n".join(errors)
    once = everything(aged)
    upgrade_database(empty_url)
    assert everything(aged) == once
    count = aged.execute("SELECT count(*) FROM trading_pipelines.market_data_doubles").fetchone()
    assert count == (40,)


def test_a_schema_of_a_newer_version_is_refused_with_what_to_do(
    market_url: str, connection: psycopg.Connection
) -> None:
    connection.execute("UPDATE trading_pipelines.alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match=r"'9999'. Where a newer version of .* take"):
        upgrade_database(market_url)


def test_upgrades_in_the_threads_of_one_process_do_not_disturb_each_other(empty_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(upgrade_database, empty_url) for _ in range(24)]:
            done.result()


def test_risk_states_keep_the_time_they_had_at_the_upgrade_and_what_was_told_stays_told(
    empty_url: str, aged: psycopg.Connection
) -> None:
    migrate(empty_url, "0007")
    aged.execute(RISK_STATES)
    cooldown = "2025-09-10 until 2025-09-10T16:00:00.000000Z"
    ledger.enter(aged, "risk", "daily_risk_state", cooldown, "risk", {}, occurred_at=None)
    upgrade_database(empty_url)
    aged.execute("UPDATE daily_risk_state SET updated_at = '2025-09-11Z'")
    log = "SELECT type, occurred_at FROM trading_pipelines.risk_log_kst ORDER BY 2, 1"
    assert aged.execute(log).fetchall() == [
        ("HALT", datetime(2025, 7, 1, 12, tzinfo=UTC)),
        ("HALT_LIFTED", datetime(2025, 7, 2, 1, tzinfo=UTC)),
        ("COOLDOWN", datetime(2025, 9, 10, 14, tzinfo=UTC)),
        ("HALT", datetime(2025, 9, 10, 14, tzinfo=UTC)),
    ]
    since = datetime(2025, 9, 10, tzinfo=UTC)
    assert ledger.collect(aged, "risk", since, since) == 1, "the halt alone"


@pytest.mark.parametrize("is_newer", [False, True], ids=["older", "newer"])
def test_the_tables_that_alerts_come_from_are_adopted_with_their_rows(
    empty_url: str, aged: psycopg.Connection, *, is_newer: bool
) -> None:
    for statement in (*BOT_TABLES.values(), ROWS_TO_TELL):
        aged.execute(statement)
    if is_newer:
        aged.execute(NEWER_COLUMNS)
    before = everything(aged)
    upgrade_database(empty_url)
    after = everything(aged)
    for table in BOT_TABLES:
        (shape, rows), (new_shape, new_rows) = before[f"public.{table}"], after[f"public.{table}"]
        ((row,),), ((new_row,),) = rows, new_rows
        assert str(new_row).startswith(str(row).removesuffix(")")), table
        added = [line for line in new_shape if line not in shape]
        assert [line for line in new_shape if line in shape] == shape
        columns = {str(line[1]) for line in added if len(line) == 5}
        assert columns == (set() if is_newer else NEWER.get(table, set()))
        indexes = [line for line in added if len(line) == 1]
        ours = OUR_INDEXES.get(table, [])
        assert len(indexes) == len(ours), indexes
        assert all(name in str(line) for name, line in zip(ours, indexes, strict=True))
    upgrade_database(empty_url)
    assert everything(aged) == after


def test_of_the_tables_that_alerts_come_from_the_missing_are_made(
    empty_url: str, aged: psycopg.Connection
) -> None:
    for table in ("trading_history", "agent_decisions"):
        aged.execute(BOT_TABLES[table])
    before = everything(aged)
    upgrade_database(empty_url)
    after = everything(aged)
    assert before.keys() <= after.keys()
    for table in BOT_TABLES:
        assert after[f"public.{table}"][1] == []
    aged.execute(ROWS_TO_TELL)
    columns = aged.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'trading_history'"
    ).fetchall()
    assert {("exit_reason",), ("post_exit_prices",)} <= set(columns)


def test_the_tables_that_are_made_have_the_columns_of_the_newest_bot(
    aged: psycopg.Connection, connection: psycopg.Connection
) -> None:
    for statement in (*BOT_TABLES.values(), NEWER_COLUMNS):
        aged.execute(statement)

    def columns(of: psycopg.Connection, table: str) -> set[object]:
        kinds = {"integer": "a number", "bigint": "a number"}  # serial or bigserial
        return {
            (name, kinds.get(str(kind), kind) if name == "id" else kind, is_needed)
            for _, name, kind, is_needed, _ in (
                line for line in described(of, f"public.{table}") if len(line) == 5
            )
        }

    def keys(of: psycopg.Connection, table: str) -> list[object]:
        found = [line for line in described(of, f"public.{table}") if len(line) == 2]
        return [line for line in found if "NOT NULL" not in str(line)]

    for table in BOT_TABLES:
        assert columns(connection, table) == columns(aged, table)
        assert keys(connection, table) == keys(aged, table)


def test_an_installation_of_the_version_before_gets_what_is_new(
    empty_url: str, aged: psycopg.Connection, connection: psycopg.Connection
) -> None:
    config = Config()
    config.set_main_option("script_location", "trading_pipelines:database/migrations")
    config.attributes["url"] = empty_url
    command.upgrade(config, "0002")
    aged.execute(ROWS)
    before = everything(aged)
    assert "trading_pipelines.alert_deliveries" not in before
    upgrade_database(empty_url)
    after = everything(aged)
    assert after.keys() == everything(connection).keys()
    changed = {table for table in before if after[table] != before[table]}
    assert changed == {
        "trading_pipelines.alembic_version",
        # 0009 gives its key a name of its own, until the bot is set up.
        "public.market_data",
        # 0004 adds columns to both.
        "trading_pipelines.candle_coverage",
        "trading_pipelines.signal_coverage",
        "trading_pipelines.request_slots",
        # And 0020.
        "trading_pipelines.volatility_forecast",
        "trading_pipelines.garch_baseline",
    }


# The bot's own set-up: what is missing, then its key, whatever is there; it stops at an error.
SETUP = [
    *(
        statement.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")
        for statement in (MARKET_DATA, *BOT_TABLES.values(), REGIME_HISTORY)
    ),
    "CREATE TABLE IF NOT EXISTS positions (symbol varchar(20) PRIMARY KEY)",
    INDEX.replace("INDEX its_index", "INDEX IF NOT EXISTS idx_market_data_symbol_interval_time"),
    KEY,
]
ITS_MIGRATIONS = [
    NEWER_COLUMNS.replace("ADD COLUMN", "ADD COLUMN IF NOT EXISTS"),
    "ALTER TABLE trading_history ALTER COLUMN strategy_name TYPE varchar(80)",
]


@pytest.mark.parametrize(
    "order", ["setup migrations ours", "setup ours migrations", "ours setup migrations ours"]
)
def test_the_bots_setup_and_migrations_run_through_before_and_after_ours(
    empty_url: str, aged: psycopg.Connection, order: str
) -> None:
    for step in order.split():
        if step == "ours":
            upgrade_database(empty_url)
        for statement in {"setup": SETUP, "migrations": ITS_MIGRATIONS}.get(step, ()):
            aged.execute(statement)
    candle = "'KRW-BTC', '1m', 1, 1, 1, 1, 1, '2025-09-01Z'"
    for _ in range(2):  # as its collector inserts
        aged.execute(
            "INSERT INTO market_data (symbol, interval, open_price, high_price, low_price, "
            f"close_price, volume, timestamp) VALUES ({candle}) "
            f"ON CONFLICT ON CONSTRAINT {ITS_KEY} DO NOTHING"
        )
    aged.execute(
        "INSERT INTO daily_risk_state (date, total_pnl, buy_count, sell_count, trade_count, "
        "consecutive_losses, is_trading_halted) VALUES ('2025-09-01', 0, 1, 0, 1, 0, false)"
    )
    assert (
        aged.execute("SELECT post_exit_prices, exit_reason FROM trading_history").fetchall() == []
    )
    keys = aged.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'market_data'::regclass "
        "AND contype = 'u'"
    ).fetchall()
    assert keys == [(ITS_KEY,)]
