"""A bot's database before it is adopted: what is wrong in it is found, and nothing is changed."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import LiteralString

import pandas as pd
import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from typer.testing import CliRunner

from tests.candles.conftest import Bench
from tests.conftest import SYMBOLS, copied, copy_minutes, new_database
from tests.database.test_upgrade import (
    BOT_TABLES,
    KEY,
    MARKET_DATA,
    REGIME_HISTORY,
    described,
    everything,
)
from trading_pipelines.candles.resample import resample
from trading_pipelines.cli import render
from trading_pipelines.cli.main import app
from trading_pipelines.database.adoption import candles, inspection
from trading_pipelines.database.adoption.bot_columns import CONTRACT, NEWER, WIDER
from trading_pipelines.database.adoption.findings import Hole, Inspection, Level
from trading_pipelines.database.connection import DatabaseError, connect, upgrade_database
from trading_pipelines.database.embedded import EmbeddedServer, binaries
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

NOW = datetime(2025, 9, 22, 3, tzinfo=UTC)


def inspect(
    url: str,
    symbols: list[str] = SYMBOLS,
    storage: str = "postgresql+psycopg2:///postgres",
    *,
    is_named: bool = False,
) -> Inspection:
    with connect(url) as connection:
        return inspection.inspect(connection, symbols, NOW, storage, is_named=is_named)


def found(inspection: Inspection) -> set[tuple[Level, str, str]]:
    return {(one.level, one.about, one.what) for one in inspection.findings}


@pytest.fixture(scope="module")
def bot_template(server: EmbeddedServer, recorded: pd.DataFrame) -> str:
    """The name of a database as the bot makes it, with the recorded candles."""
    with connect(new_database(server, "template_bot")) as connection:
        for statement in (MARKET_DATA, KEY, REGIME_HISTORY, *BOT_TABLES.values()):
            connection.execute(statement)
        copy_minutes(connection, recorded)
    return "template_bot"


@pytest.fixture(scope="module")
def clean(server: EmbeddedServer, bot_template: str) -> Inspection:
    """What is found in it."""
    return inspect(server.url(bot_template))


@pytest.fixture
def bot_url(server: EmbeddedServer, bot_template: str) -> str:
    """The URL of a fresh copy of it."""
    return copied(server, bot_template)


@pytest.fixture
def bot(bot_url: str) -> Iterator[psycopg.Connection]:
    """A connection to the copy."""
    with connect(bot_url) as connection:
        yield connection


def missing(recorded: pd.DataFrame) -> list[Hole]:
    """Return the minutes without a row, in stretches, counted plainly."""
    minute = timedelta(minutes=1)
    holes = []
    for symbol, rows in recorded.groupby("symbol"):
        times = [at.replace(tzinfo=UTC) for at in rows.timestamp_utc.dt.to_pydatetime()]
        pairs = itertools.pairwise(times)
        holes += [Hole(str(symbol), a + minute, b) for a, b in pairs if b - a > minute]
    return sorted(holes, key=lambda hole: (hole.symbol, hole.start))


def test_in_whole_candles_nothing_is_found_but_minutes_without_one(
    clean: Inspection, recorded: pd.DataFrame
) -> None:
    holes = missing(recorded)
    assert clean.holes == holes
    assert {one.about for one in clean.findings} == {hole.symbol for hole in holes}
    assert all("minutes missing" in one.what for one in clean.findings)
    assert clean.can_be_adopted
    assert [(one.symbol, one.rows) for one in clean.candles] == list(
        recorded.groupby("symbol").size().items()
    )


FROZEN = """
UPDATE market_data SET close_price = open_price + round((close_price - open_price) * 0.4, 8),
    high_price = greatest(open_price, open_price + round((close_price - open_price) * 0.4, 8)),
    low_price = least(open_price, open_price + round((close_price - open_price) * 0.4, 8)),
    volume = round(volume * 0.4, 8)
WHERE symbol = 'KRW-ETH' AND timestamp >= '2025-09-05Z' AND timestamp < '2025-09-06Z'
"""
WRITTEN_LATE = """
ALTER TABLE market_data ADD COLUMN created_at timestamptz;
UPDATE market_data SET created_at = timestamp + interval '75 s';
UPDATE market_data SET created_at = timestamp + interval '59 s'
WHERE symbol = 'KRW-BTC' AND timestamp IN ('2025-09-03 04:00Z', '2025-09-03 04:01Z',
    '2025-09-20 00:00Z')
"""
DOUBLES = """
ALTER TABLE market_data DROP CONSTRAINT uq_market_data_symbol_interval_ts;
INSERT INTO market_data
    (symbol, interval, open_price, high_price, low_price, close_price, volume, timestamp)
SELECT symbol, interval, open_price, high_price, low_price, close_price, volume, timestamp
FROM market_data WHERE symbol = 'KRW-SOL' AND timestamp < '2025-09-01 00:10Z'
"""
REGIMES = """
INSERT INTO regime_history (detected_at, regime, coin_symbol) VALUES
    ('2025-09-03 04:00:01Z', 'BULL', 'KRW-BTC'), ('2025-09-03 04:00:31Z', 'BEAR', 'KRW-BTC'),
    ('2025-09-03 05:00:01Z', 'BULL', 'KRW-BTC'), ('2025-09-03 04:00:01Z', 'BULL', 'KRW-ETH'),
    (NULL, 'BULL', 'KRW-ETH')
"""
MEND, REPAIR, NOTE = Level
NO_KEY = (
    NOTE,
    "market_data",
    (
        "no unique key: `db upgrade` moves {} doubles to trading_pipelines.market_data_doubles, of "
        "each the row written last stays, and adds uq_market_data_symbol_interval_ts"
    ),
)
UNUSABLE = "is deferrable or invalid: candles can't be repaired by it, and `db upgrade` takes it"
FAULTS: dict[str, tuple[LiteralString, list[tuple[Level, str, str]]]] = {
    "a misaligned candle": (
        ("UPDATE market_data SET timestamp = timestamp + interval '7 s' "
        "WHERE symbol = 'KRW-BTC' AND timestamp = '2025-09-03 04:00Z'"),
        [
            (MEND, "KRW-BTC", "1 candles do not start on the minute; 2025-09-03 (UTC)"),
            (REPAIR, "KRW-BTC", "{btc} minutes missing"),
        ],
    ),
    "an impossible candle": (
        ("UPDATE market_data SET high_price = low_price - 1 "
        "WHERE symbol = 'KRW-BTC' AND timestamp = '2025-09-03 04:00Z'"),
        [(REPAIR, "KRW-BTC", "1 candles with prices or a volume that can't be; 2025-09-03 (UTC)")],
    ),
    "a volume that is no number": (
        ("UPDATE market_data SET volume = 'NaN' "
        "WHERE symbol = 'KRW-XRP' AND timestamp = '2025-09-03 04:00Z'"),
        [(REPAIR, "KRW-XRP", "1 candles with prices or a volume that can't be; 2025-09-03 (UTC)")],
    ),
    "a day of frozen candles": (
        FROZEN,
        [(REPAIR, "KRW-ETH", "candles of days in which closes do not meet the next open")],
    ),
    "candles written before their end": (
        WRITTEN_LATE,
        [(REPAIR, "KRW-BTC", ("3 candles were written (created_at) before their minute had closed: "
          "frozen; 2025-09-03, 2025-09-20 (UTC)"))],
    ),
    "rows of another interval": (
        ("UPDATE market_data SET interval = '5m' "
        "WHERE symbol = 'KRW-BTC' AND timestamp < '2025-09-01 00:03Z'"),
        [(NOTE, "KRW-BTC", "3 rows of interval 5m: left alone")],
    ),
    "a symbol that is not in the settings": (
        ("INSERT INTO market_data (symbol, interval, open_price, high_price, low_price, "
        "close_price, volume, timestamp) VALUES ('KRW-ADA', '1m', 1, 1, 1, 1, 1, '2025-09-01Z')"),
        [(NOTE, "KRW-ADA", "1 candles of a symbol that is not in the settings: left alone")],
    ),
    "a symbol without candles": (
        "DELETE FROM market_data WHERE symbol = 'KRW-BTC'", [(NOTE, "KRW-BTC", "no candles yet")],
    ),
    "doubles": (DOUBLES, [(*NO_KEY[:2], NO_KEY[2].format(10))]),
    "a key that ON CONFLICT can't use": (
        (f"ALTER TABLE market_data DROP CONSTRAINT uq_market_data_symbol_interval_ts; "
        f"{KEY} DEFERRABLE"),
        [(MEND, "market_data", f"uq_market_data_symbol_interval_ts {UNUSABLE}")],
    ),
    "regimes": (
        REGIMES,
        [(NOTE, "KRW-BTC", ("1 minutes with more than one row of regime_history: left, the bot "
          "reads the newest")),
         (NOTE, "KRW-ETH", ("1 rows of regime_history without a time: ORDER BY detected_at DESC "
          "puts them first"))],
    ),
    "a column too few": (
        "ALTER TABLE trading_history DROP COLUMN fee", [(MEND, "trading_history", "no column fee")],
    ),
    "a type that does": (
        "ALTER TABLE agent_decisions ALTER COLUMN symbol TYPE text",
        [(NOTE, "agent_decisions", "symbol is text, not character varying(20), which will do")],
    ),
    "candles out of time": (
        ("UPDATE market_data SET timestamp = 'infinity' "
        "WHERE symbol = 'KRW-BTC' AND timestamp = '2025-09-03 04:00Z'; "
        "UPDATE market_data SET timestamp = '57600-01-01Z' "
        "WHERE symbol = 'KRW-ETH' AND timestamp = '2025-09-03 04:00Z'; "
        "UPDATE market_data SET timestamp = '-infinity' "
        "WHERE symbol = 'KRW-ETH' AND timestamp = '2025-09-03 04:01Z'"),
        [(MEND, "KRW-BTC", "1 candles outside the years 2000 to 2100"),
         (MEND, "KRW-ETH", "2 candles outside the years 2000 to 2100")],
    ),
    "candles without a zone": (
        "ALTER TABLE market_data ALTER COLUMN timestamp TYPE timestamp",
        [(MEND, "market_data", ("timestamp is timestamp without time zone, not timestamp with time "
          "zone"))],
    ),
    "prices that are words": (
        "ALTER TABLE market_data ALTER COLUMN open_price TYPE text",
        [(MEND, "market_data", "open_price is text, not numeric(20,8)")],
    ),
    "prices that lose won": (
        ("ALTER TABLE market_data ALTER COLUMN close_price TYPE real; "
        "ALTER TABLE regime_history ALTER COLUMN ma50 TYPE double precision"),
        [(MEND, "market_data", "close_price is real, not numeric(20,8)"),
         (MEND, "regime_history", "ma50 is double precision, not numeric(20,8)")],
    ),
    "fractions that are only read": (
        "ALTER TABLE trading_history ALTER COLUMN fee TYPE double precision",
        [(NOTE, "trading_history", "fee is double precision, not numeric(20,8), which will do")],
    ),
    "a symbol that may be missing": (
        "ALTER TABLE market_data ALTER COLUMN symbol DROP NOT NULL",
        [(MEND, "market_data", "symbol may be NULL")],
    ),
    "a number where an order's uuid should be": (
        ("ALTER TABLE risk_audit DROP COLUMN related_order_id, ADD related_order_id uuid; "
        "ALTER TABLE trading_history DROP COLUMN id, ADD id bigserial PRIMARY KEY"),
        [(MEND, "trading_history", "id is bigint, not uuid")],
    ),
    "an order that can't be referred to": (
        ("DROP TABLE risk_audit; ALTER TABLE trading_history DROP CONSTRAINT trading_history_pkey, "
        "ADD UNIQUE (id) DEFERRABLE"),
        [(MEND, "trading_history", ("id has no unique key, and risk_audit is made with a reference "
          "to it"))],
    ),
    "a type too narrow": (
        "ALTER TABLE market_data ALTER COLUMN volume TYPE numeric(20, 4)",
        [(MEND, "market_data", "volume is numeric(20,4), not numeric(20,8)")],
    ),
    "another type": (
        "ALTER TABLE risk_audit ALTER COLUMN timestamp TYPE timestamp",
        [(MEND, "risk_audit", ("timestamp is timestamp without time zone, not timestamp with time "
          "zone"))],
    ),
    "a regime that does not fit": (
        "ALTER TABLE regime_history ALTER COLUMN regime TYPE varchar(5)",
        [(MEND, "regime_history", "regime is character varying(5), not character varying(10)")],
    ),
    "a column that we do not fill": (
        "ALTER TABLE regime_history ADD COLUMN who text NOT NULL",
        [(MEND, "regime_history", ("who is NOT NULL without a default, and our rows do not name "
          "it"))],
    ),
    "no table": (
        "ALTER TABLE risk_audit RENAME TO audit; CREATE VIEW risk_audit AS SELECT * FROM audit",
        [(MEND, "risk_audit", "it is no table")],
    ),
    "a foreign table": (
        ("CREATE FOREIGN DATA WRAPPER away; CREATE SERVER other FOREIGN DATA WRAPPER away; "
        "ALTER TABLE regime_history RENAME TO before; "
        "CREATE FOREIGN TABLE regime_history (id bigint) SERVER other"),
        [(MEND, "regime_history", "it is no table but a foreign table")],
    ),
    "a materialized view": (
        ("ALTER TABLE market_data RENAME TO before; "
        "CREATE MATERIALIZED VIEW market_data AS SELECT * FROM before LIMIT 1"),
        [(MEND, "market_data", "it is no table but a materialized view")],
    ),
    "a table that others inherit from": (
        "CREATE TABLE market_data_2024 () INHERITS (market_data)",
        [(MEND, "market_data", "other tables inherit from it: no key spans their rows")],
    ),
    "a rule": (
        'CREATE RULE "r 1" AS ON INSERT TO market_data DO ALSO NOTIFY candles',
        [(MEND, "market_data", 'its rules ("r 1") do not go with an upsert')],
    ),
    "a trigger": (
        ("CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER seen BEFORE INSERT ON market_data FOR EACH ROW EXECUTE FUNCTION seen()"),
        [(NOTE, "market_data", "triggers run at each of our writes: seen")],
    ),
    "a schema of somebody else's": (
        "CREATE SCHEMA trading_pipelines; CREATE TABLE trading_pipelines.candles_1h (id int)",
        [(MEND, "trading_pipelines", ("the schema holds candles_1h, and no record of our "
          "migrations"))],
    ),
    "a newer version": (
        ("CREATE SCHEMA trading_pipelines; CREATE TABLE trading_pipelines.alembic_version "
        "(version_num text); INSERT INTO trading_pipelines.alembic_version VALUES ('9999')"),
        [(MEND, "trading_pipelines", "a newer version of this project (9999) is at work here"),
         *((NOTE, table, "older than the newest bot: no ") for table in NEWER)],
    ),
    "an empty record of our migrations": (
        ("CREATE SCHEMA trading_pipelines; CREATE TABLE trading_pipelines.alembic_version "
        "(version_num text); CREATE TABLE trading_pipelines.candle_coverage (id int)"),
        [(MEND, "trading_pipelines", ("the schema holds candle_coverage, and no record of our "
          "migrations"))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_no_other(
    bot: psycopg.Connection, bot_url: str, clean: Inspection, fault: str
) -> None:
    planted, expected = FAULTS[fault]
    bot.execute(planted)
    inspection = inspect(bot_url)
    btc = 1 + sum(hole.minutes for hole in clean.holes if hole.symbol == "KRW-BTC")
    new = found(inspection) - found(clean)
    assert len(new) == len(expected), new
    for level, about, what in expected:
        wanted = what.format(btc=btc) if "{btc}" in what else what
        assert [one for one in new if one[:2] == (level, about) and wanted in one[2]], new
    assert inspection.can_be_adopted == all(level is not MEND for level, *_ in expected)
    for one in inspection.findings:
        assert one.advice or one.level is not MEND


HOURS_OF_DAYS = """
INSERT INTO market_data (symbol, interval, open_price, high_price, low_price, close_price, volume,
    timestamp)
SELECT 'KRW-NEW', '1m', 1, 1, 1, 1, (%(shares)s::numeric[])[hour + 1] * (1 + day %% 3),
    '2025-09-01Z'::timestamptz + make_interval(days => day, hours => hour + %(ahead)s)
FROM generate_series(0, %(days)s - 1) AS day, generate_series(0, 23) AS hour
"""


@pytest.mark.parametrize(("ahead", "days"), [(9, 15), (9, 6), (0, 15), (5, 15), (9, 3)])
def test_days_whose_busy_hours_lie_nine_hours_late_are_told_and_repaired(
    bot: psycopg.Connection, bot_url: str, ahead: int, days: int
) -> None:
    bot.execute("TRUNCATE market_data")
    planted = {"shares": candles.USUAL_SHARES, "ahead": ahead, "days": days}
    bot.execute(HOURS_OF_DAYS, planted)
    inspection = inspect(bot_url, ["KRW-NEW"])
    told = [one for one in inspection.findings if "Korean time stored as UTC" in one.what]
    assert bool(told) == (ahead == 9 and days > 4)
    assert inspection.can_be_adopted
    for one in told:
        assert (one.level, one.about) == (REPAIR, "KRW-NEW")
        assert "db adopt --compare --symbols KRW-NEW --start 2025-09-" in one.advice


def test_candles_after_now_are_told_with_their_likely_cause(
    bot: psycopg.Connection, bot_url: str
) -> None:
    moved = "UPDATE market_data SET timestamp = timestamp + interval '12 hours' "
    bot.execute(f"{moved} WHERE symbol = 'KRW-XRP' AND timestamp >= '2025-09-21 12:00Z'")
    inspection = inspect(bot_url)
    (told,) = [one for one in inspection.findings if one.level is MEND]
    after = "SELECT count(*) FROM market_data WHERE timestamp > '2025-09-22 03:02Z'"
    ((rows,),) = bot.execute(after).fetchall()
    assert told.about == "KRW-XRP"
    assert told.what.startswith(
        f"{rows} candles start after now, up to 2025-09-22 11:59 UTC: Korean"
    )
    assert "db adopt --compare" in told.advice
    delete = told.advice.partition("then: ")[2].partition(";")[0]
    assert bot.execute(delete.encode()).rowcount == rows
    assert inspect(bot_url).can_be_adopted


PARTITIONED = {
    "range": (
        "PARTITION BY RANGE (timestamp)",
        "FOR VALUES FROM ('2025-09-05Z') TO ('2025-09-06Z')",
    ),
    "list": ("PARTITION BY LIST (symbol)", "DEFAULT"),
}


@pytest.mark.parametrize("kind", PARTITIONED)
def test_a_partitioned_table_is_adopted_and_filled_repaired_and_resampled(
    empty_url: str, recorded_market: Recording, kind: str
) -> None:
    by, bounds = PARTITIONED[kind]
    table = MARKET_DATA.replace(
        "PRIMARY KEY (timestamp, id)", "PRIMARY KEY (timestamp, id, symbol)"
    )
    days = [date(2025, 9, 5)]
    with connect(empty_url) as connection:
        connection.execute(f"{table.rstrip()} {by}".encode())
        connection.execute(KEY.encode())
        connection.execute(f"CREATE TABLE part PARTITION OF market_data {bounds}".encode())
        inspection = inspect(empty_url)
        assert inspection.can_be_adopted
        noted = {one.what for one in inspection.findings if one.about == "market_data"}
        assert any("no default partition" in what for what in noted) == (kind == "range")
        upgrade_database(empty_url)
        with ReplayExchange(recorded_market, rate=None) as replay:
            bench = Bench(connection, replay)
            assert bench.download(["KRW-BTC"], days) == []
            connection.execute("UPDATE market_data SET volume = volume + 1 WHERE id % 100 = 0")
            spoiled = connection.execute("SELECT FROM market_data WHERE id % 100 = 0").rowcount
            assert bench.download(["KRW-BTC"], days, "again") == []
            (day,) = bench.coverage(["KRW-BTC"], days)
            assert (day.status, day.repaired) == ("complete", spoiled)
            (hours,) = resample(connection, ["KRW-BTC"], days, "run")
            assert (hours.rows, hours.repaired) == (24, 0)
            if kind == "range":
                failed = bench.download(["KRW-BTC"], [date(2025, 9, 6), date(2025, 9, 7)], "on")
                assert all("no partition of relation" in one.error for one in failed)
                assert len(failed) == 2


@pytest.mark.parametrize("by", ["RANGE (date_trunc('day', timestamp, 'UTC'))", "HASH (id)"])
def test_partitions_that_no_key_can_span_are_refused_in_words(empty_url: str, by: str) -> None:
    with connect(empty_url) as connection:
        table = MARKET_DATA.replace("PRIMARY KEY (timestamp, id)", "CHECK (id > 0)")
        connection.execute(f"{table.rstrip()} PARTITION BY {by}".encode())
    inspection = inspect(empty_url)
    assert not inspection.can_be_adopted
    assert any("there can be no unique key" in one.what for one in inspection.findings)
    with pytest.raises(DatabaseError, match=r"can't be migrated: .*`db adopt` says"):
        upgrade_database(empty_url)


def test_rows_that_are_hidden_from_the_role_are_told(bot: psycopg.Connection, bot_url: str) -> None:
    bot.execute(
        "DROP ROLE IF EXISTS seer; CREATE ROLE seer LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA "
        "public TO seer; ALTER TABLE trading_history ENABLE ROW LEVEL SECURITY"
    )
    try:
        inspection = inspect(bot_url.replace("postgres@", "seer@"))
        assert (
            MEND,
            "trading_history",
            "row-level security hides rows from seer, or may",
        ) in found(inspection)
    finally:
        bot.execute("DROP OWNED BY seer; DROP ROLE seer")


def test_a_hole_is_found_with_its_ends_and_the_command_that_fills_it(
    bot: psycopg.Connection, bot_url: str, recorded: pd.DataFrame
) -> None:
    gone = ("2025-09-03 22:10Z", "2025-09-05 01:20Z")
    bot.execute("DELETE FROM market_data WHERE symbol IN ('KRW-BTC', 'KRW-ETH') "
                "AND timestamp >= %s AND timestamp < %s", gone)  # fmt: skip
    start, end = (datetime.fromisoformat(moment) for moment in gone)
    times = recorded.timestamp_utc
    two = ["KRW-BTC", "KRW-ETH"]
    kept = recorded[recorded.symbol.isin(two) & ~((times >= start) & (times < end))]
    inspection, holes = inspect(bot_url, two), missing(kept)
    assert inspection.holes == holes
    assert Hole("KRW-BTC", start, end) in holes
    # From the first of its holes to the last: ours, and in generated minutes some of one minute.
    eth = [hole for hole in holes if hole.symbol == "KRW-ETH"]
    days = f"--start {eth[0].start.date()} --end {eth[-1].end.date()} --again"
    assert f"trading-pipelines backfill --symbols KRW-ETH {days}" in [
        one.command for one in inspection.repairs
    ]


MINUTES_OF_ONE = """
INSERT INTO market_data (symbol, interval, open_price, high_price, low_price, close_price, volume,
    timestamp)
SELECT symbol, '1m', 1, 1, 1, 1, CASE WHEN at = ANY (%s::timestamptz[]) THEN -1 ELSE 1 END, at
FROM generate_series('2025-09-01Z'::timestamptz, '2025-09-22 02:00Z', '1 minute') AS at,
    (VALUES ('KRW-BTC'), ('KRW-ETH')) AS markets (symbol)
"""


def test_repairs_a_week_apart_are_asked_for_apart_and_of_an_open_day_not_at_all(
    bot: psycopg.Connection, bot_url: str
) -> None:
    bot.execute("DELETE FROM market_data")
    days = ("2025-09-01", "2025-09-07", "2025-09-14", "2025-09-22")
    bot.execute(MINUTES_OF_ONE, [[f"{day} 01:00Z" for day in days]])
    assert [one.command for one in inspect(bot_url).repairs] == [
        f"trading-pipelines backfill --symbols KRW-BTC,KRW-ETH --start {first} --end {last} --again"
        for first, last in (("2025-09-01", "2025-09-07"), ("2025-09-14", "2025-09-14"))
    ]


def dump(url: str) -> str:
    """Return the whole database as SQL, without the line that differs each time."""
    done = subprocess.run([binaries() / "pg_dump", url], capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stdout.splitlines() if "restrict " not in line)


def test_nothing_is_changed(
    bot: psycopg.Connection, bot_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for planted in (FROZEN, DOUBLES, REGIMES):
        bot.execute(planted)
    before = dump(bot_url), everything(bot)
    assert len(before[0]) > 1_000_000
    monkeypatch.setenv("DATABASE_URL", bot_url)
    done = CliRunner().invoke(app, ["db", "adopt"])
    assert done.exit_code == 0, done.output
    assert (dump(bot_url), everything(bot)) == before


@pytest.fixture(scope="module")
def _roles(server: EmbeddedServer) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE onlooker LOGIN; CREATE ROLE newcomer LOGIN")


@pytest.mark.usefixtures("_roles")
def test_a_role_that_may_only_read_sees_as_much_and_is_told_what_it_lacks(
    bot: psycopg.Connection, bot_url: str, clean: Inspection
) -> None:
    bot.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO onlooker; "
                "ALTER ROLE onlooker SET default_transaction_read_only = on")  # fmt: skip
    url = bot_url.replace("postgres@", "onlooker@")
    inspection = inspect(url, storage="postgresql:///not_there")
    assert inspection.holes == clean.holes
    name = bot.info.dbname
    assert {(one.about, one.advice) for one in inspection.findings if one.level is MEND} == {
        ("role onlooker", f"GRANT CREATE ON DATABASE {name} TO onlooker;"),
        ("role onlooker", ('CREATE DATABASE "not_there" OWNER onlooker; or set '
         "DAGSTER_POSTGRES_URL")),
        ("market_data", ("GRANT INSERT ON public.market_data TO onlooker; GRANT UPDATE ON "
         "public.market_data TO onlooker; GRANT USAGE ON SEQUENCE public.market_data_id_seq TO "
         "onlooker;")),
        ("regime_history", ("GRANT INSERT ON public.regime_history TO onlooker; GRANT UPDATE ON "
         "public.regime_history TO onlooker; GRANT USAGE ON SEQUENCE public.regime_history_id_seq "
         "TO onlooker;")),
    }  # fmt: skip


@pytest.mark.usefixtures("_roles")
def test_a_role_that_has_done_as_it_is_told_can_upgrade_and_write(
    bot: psycopg.Connection, bot_url: str
) -> None:
    url = bot_url.replace("postgres@", "newcomer@")
    bot.execute("DROP TABLE risk_audit")
    unread = [one for one in inspect(url).findings if one.level is MEND]
    assert {one.about for one in unread} == {
        "role newcomer", "market_data", "regime_history", *(BOT_TABLES.keys() - {"risk_audit"})
    }  # fmt: skip
    for one in unread:
        bot.execute(one.advice)
    assert inspect(url).can_be_adopted
    upgrade_database(url)
    again = inspect(url)
    assert again.can_be_adopted
    assert again.adds == []
    assert (NOTE, "indexes") in {one[:2] for one in found(again)}
    with connect(url) as connection:
        connection.execute("INSERT INTO regime_history (regime, coin_symbol) VALUES ('BULL', 'x')")
        connection.execute("UPDATE market_data SET volume = 1 WHERE volume = 2")


@pytest.mark.usefixtures("_roles")
def test_a_role_that_may_not_add_the_missing_key_is_told_so(
    bot: psycopg.Connection, bot_url: str
) -> None:
    bot.execute(DOUBLES)
    bot.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO newcomer")
    told = found(inspect(bot_url.replace("postgres@", "newcomer@")))
    assert (MEND, "role newcomer", "does not own market_data, which has no unique key") in told


# With the table that each comes with. That a column may not be NULL comes with the column.
OBJECTS = """
SELECT CASE relkind WHEN 'v' THEN 'view ' WHEN 'i' THEN 'index ' ELSE 'table ' END
    || 'public.' || relname, coalesce(indrelid, pg_class.oid)
FROM pg_class LEFT JOIN pg_index ON indexrelid = pg_class.oid
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'i')
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = pg_class.oid AND contype <> 'f')
UNION SELECT 'constraint public.' || conname, conrelid FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
UNION SELECT 'column public.' || relname || '.' || attname, attrelid
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid AND relkind = 'r'
    WHERE relnamespace = 'public'::regnamespace AND attnum > 0
UNION SELECT 'function public.' || proname, 0 FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
"""
CONFIG = Config()
CONFIG.set_main_option("script_location", "trading_pipelines:database/migrations")
KEYS = "uq_market_data_symbol_interval_ts|market_data_symbol_interval_timestamp_key"
REVISIONS = sorted(one.revision for one in ScriptDirectory.from_config(CONFIG).walk_revisions())


def objects(url: str) -> set[tuple[str, int]]:
    with connect(url) as connection:
        return {(name, table) for name, table in connection.execute(OBJECTS)}


@pytest.mark.parametrize("age", ["nothing", "oldest", "newest", *REVISIONS])
def test_what_is_said_to_be_added_is_what_an_upgrade_adds(empty_url: str, age: str) -> None:
    with connect(empty_url) as connection:
        if age in {"oldest", "newest"}:
            connection.execute(MARKET_DATA)
        if age == "newest":
            for statement in (KEY, REGIME_HISTORY, *BOT_TABLES.values()):
                connection.execute(statement)
    schema = ["schema trading_pipelines"]
    if age in REVISIONS:
        CONFIG.attributes["url"] = empty_url
        command.upgrade(CONFIG, age)
        schema = [f"schema trading_pipelines from {age} to {REVISIONS[-1]}"]
    if age == REVISIONS[-1]:
        schema = []
    before, inspection = objects(empty_url), inspect(empty_url)
    upgrade_database(empty_url)
    after = objects(empty_url)
    if age in REVISIONS:  # what is ours gets a name of its own, until the bot is set up
        before, after = (
            {one for one in of if not re.search(KEYS, one[0])} for of in (before, after)
        )
    assert before <= after, "nothing is taken away or changed"
    added = after - before
    tables = {table for name, table in added if name.startswith("table ")}
    # The columns, keys and indexes of a table that is new come with it.
    assert sorted(inspection.adds) == sorted(
        [name for name, table in added if table not in tables or name.startswith("table ")] + schema
    )
    assert inspection.can_be_adopted
    assert inspect(empty_url).adds == []


def test_a_database_for_dagster_is_named_where_it_is_missing_and_wanted_where_it_is_named(
    empty_url: str, server: EmbeddedServer
) -> None:
    adds = [*inspect(empty_url).adds, "database not_there"]
    url = server.url("not_there").replace("postgresql://", "postgresql+psycopg2://")
    inspection = inspect(empty_url, storage=url)
    assert (inspection.adds, inspection.can_be_adopted) == (adds, True)
    inspection = inspect(empty_url, storage=url, is_named=True)
    assert inspection.adds == adds[:-1]
    (told,) = (one for one in inspection.findings if one.level is MEND)
    assert (told.about, told.advice) == (
        "DAGSTER_POSTGRES_URL",
        'where it is not there: CREATE DATABASE "not_there" OWNER "postgres";',
    )
    assert "not_there" in told.what
    there = url.replace("not_there", "postgres")
    assert inspect(empty_url, storage=there, is_named=True).can_be_adopted


@pytest.mark.usefixtures("_roles")
def test_a_database_for_dagster_in_which_the_role_may_create_nothing_is_to_be_mended(
    empty_url: str, server: EmbeddedServer
) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute("CREATE TABLE public.job_ticks ()")
    url = server.url("postgres").replace("postgres@", "newcomer@")
    for is_named in (True, False):
        inspection = inspect(empty_url, storage=url, is_named=is_named)
        assert not inspection.can_be_adopted
        assert "GRANT CREATE ON SCHEMA public TO newcomer; (in the database postgres)" in {
            finding.advice for finding in inspection.findings
        }
    # Where its tables are there, nothing has to be created.
    there = empty_url.replace("postgres@", "newcomer@")
    assert inspect(empty_url, storage=there, is_named=True).can_be_adopted


@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul"])
def test_what_is_told_of_a_time_without_a_zone_moves_no_candle(
    bot: psycopg.Connection, bot_url: str, clean: Inspection, zone: str
) -> None:
    bot.execute("ALTER TABLE market_data ALTER COLUMN timestamp TYPE timestamp")
    (told,) = (one for one in inspect(bot_url).findings if one.level is MEND)
    statement, asks, _ = told.advice.partition(";")
    assert asks
    bot.execute("SELECT set_config('timezone', %s, false)", [zone])
    bot.execute(statement)
    assert inspect(bot_url).candles == clean.candles


def test_what_is_gone_since_is_not_said_to_come_back(
    market_url: str, connection: psycopg.Connection
) -> None:
    connection.execute("DROP TABLE risk_audit; DROP INDEX idx_trading_history_filled; ALTER TABLE "
                       "market_data DROP CONSTRAINT market_data_symbol_interval_timestamp_key"
    )  # fmt: skip
    before = objects(market_url)
    inspection = inspect(market_url)
    assert inspection.adds == []
    upgrade_database(market_url)
    assert objects(market_url) == before
    assert {one[:2] for one in found(inspection) if one[2] != "no candles yet"} == {
        (MEND, "risk_audit"), (MEND, "market_data"), (NOTE, "indexes")
    }  # fmt: skip


def test_the_contract_is_what_the_migrations_make(connection: psycopg.Connection) -> None:
    for table, columns in CONTRACT.items():
        made = {line[1]: f"{line[2]}{'*' if line[3] else ''}"
                for line in described(connection, f"public.{table}") if len(line) == 5}  # fmt: skip
        assert made == {**columns, **WIDER.get(table, {})}, table


def test_in_days_that_are_complete_nothing_is_found(recorded_url: str, clean: Inspection) -> None:
    with connect(recorded_url) as connection:
        connection.execute(FROZEN)
        inspection = inspect(recorded_url)
        assert clean.holes
        assert inspection.holes == []
        assert found(inspection) == set()
        connection.execute("UPDATE trading_pipelines.candle_coverage SET status = 'partial' "
                           "WHERE symbol = 'KRW-ETH' AND day = '2025-09-05'")  # fmt: skip
        assert len(found(inspect(recorded_url))) == 1


# What is asked of TimescaleDB's views, which can't be installed here; see decisions/0023.
TIMESCALE = """
CREATE SCHEMA timescaledb_information;
CREATE TABLE timescaledb_information.hypertables (hypertable_schema name, hypertable_name name,
    compression_enabled boolean);
CREATE TABLE timescaledb_information.jobs (hypertable_schema name, hypertable_name name,
    config jsonb);
CREATE TABLE timescaledb_information.chunks (hypertable_schema name, hypertable_name name,
    chunk_schema name, chunk_name name, range_start timestamptz, range_end timestamptz,
    is_compressed boolean);
INSERT INTO timescaledb_information.hypertables VALUES ('public', 'market_data', true);
INSERT INTO timescaledb_information.jobs VALUES
    ('public', 'market_data', '{"compress_after": "7 days"}'), ('public', 'market_data', NULL);
INSERT INTO timescaledb_information.chunks VALUES
    ('public', 'market_data', '_timescaledb_internal', '_hyper_1_1_chunk', '2025-08-28Z',
     '2025-09-04Z', true),
    ('public', 'market_data', '_timescaledb_internal', '_hyper_1_2_chunk', '2025-09-04Z',
     '2025-09-11Z', true),
    ('public', 'market_data', '_timescaledb_internal', '_hyper_1_3_chunk', '2025-09-11Z',
     '2025-09-18Z', false);
SET allow_system_table_mods = on;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
SELECT 999999, 'timescaledb', 10, 'public'::regnamespace, false, '{}';
"""


@pytest.mark.parametrize(
    ("version", "has_key", "stumbles"),
    [("2.10.3", True, {"repair"}), ("2.19.3", True, set()), ("2.19.3", False, {"key"}),
     ("2.23.1", False, set())],
)  # fmt: skip
def test_compressed_chunks_that_a_repair_would_write_to_are_named(
    bot: psycopg.Connection, bot_url: str, version: str, *, has_key: bool, stumbles: set[str]
) -> None:
    bot.execute(TIMESCALE.replace("'{}'", f"'{version}'"))
    bot.execute("UPDATE market_data SET volume = -1 WHERE timestamp = '2025-09-05 01:00Z'")
    bot.execute("DELETE FROM market_data WHERE timestamp < '2025-09-04Z' "
                "OR timestamp > '2025-09-12Z' OR symbol <> 'KRW-ETH'")  # fmt: skip
    if not has_key:
        bot.execute("ALTER TABLE market_data DROP CONSTRAINT uq_market_data_symbol_interval_ts")
    told = {what: level for level, about, what in found(inspect(bot_url, ["KRW-ETH"]))
            if about == "market_data"}  # fmt: skip
    assert (f"a hypertable of TimescaleDB {version}, 2 chunks compressed, policy: 7 days; "
            "this project was never run on one") in told  # fmt: skip
    (writes,) = (what for what in told if "compressed chunks" in what)
    assert "(_timescaledb_internal._hyper_1_2_chunk)" in writes, "not the one without a repair"
    assert told[writes] is (MEND if "repair" in stumbles else NOTE)
    assert any("this TimescaleDB adds none" in what for what in told) == ("key" in stumbles)


def test_a_plain_table_beside_timescaledb_is_as_any_other(
    bot: psycopg.Connection, bot_url: str, clean: Inspection
) -> None:
    bot.execute(TIMESCALE)
    bot.execute("DELETE FROM timescaledb_information.hypertables")
    assert found(inspect(bot_url)) == found(clean)


def test_the_command_says_it_in_words_and_in_json(
    bot: psycopg.Connection, bot_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", bot_url)
    monkeypatch.setattr(render.out, "width", 160)
    done = CliRunner().invoke(app, ["db", "adopt", "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["can_be_adopted"]) == (0, True)
    assert said["adds"][0] == "schema trading_pipelines"
    assert said["commands"]
    bot.execute("ALTER TABLE trading_history DROP COLUMN fee")
    done = CliRunner().invoke(app, ["db", "adopt"])
    assert done.exit_code == 1
    assert "ALTER TABLE public.trading_history ADD COLUMN fee" in " ".join(done.stdout.split())
    assert f"afterwards: {said['commands'][0]}" in done.stdout


@pytest.mark.parametrize("arguments", [["--start", "2025-09-01"], ["--symbols", "KRW-BTC"]])
def test_what_is_asked_of_the_exchange_alone_wants_a_comparison(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["db", "adopt", *arguments])
    assert done.exit_code == 2
    assert "go with --compare" in done.stderr
