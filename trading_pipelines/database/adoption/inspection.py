"""What a database that the bot already uses is like, before it is adopted; nothing is changed.

All of it is asked in one read-only transaction, so that it is one state of the database, and a role
that may only read is enough. What the migrations do to it belongs in `migrations`.
"""

from collections.abc import Sequence
from datetime import datetime

import psycopg

from trading_pipelines.database.adoption.bot_columns import MADE_BY
from trading_pipelines.database.adoption.candles import CandleInspector
from trading_pipelines.database.adoption.findings import Inspection, Level
from trading_pipelines.database.adoption.queries import NOT_OURS
from trading_pipelines.database.adoption.schema import SchemaInspector
from trading_pipelines.database.connection import DatabaseError

LOCK_TIMEOUT = "5s"


def inspect(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    now: datetime,
    storage: str,
    *,
    is_named: bool,
) -> Inspection:
    """Inspect the market database for an installation of these symbols; `now` is aware UTC.

    `storage` is the URL of Dagster's database. `db upgrade` makes it where it is missing, except
    one that `is_named` by the operator. `connection` is autocommit and not used for anything else.
    Raises DatabaseError when a table stays locked, or our schema is closed to the role.
    """
    connection.read_only = True
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            return _inspect(connection, symbols, now, storage, is_named=is_named)
    except psycopg.errors.LockNotAvailable as error:
        raise DatabaseError(f"a table is being changed ({error}): try again later") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"this role may not look at our schema ({error}): take the one of `db upgrade`"
        ) from error


def _inspect(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    now: datetime,
    storage: str,
    *,
    is_named: bool,
) -> Inspection:
    schema = SchemaInspector(connection, symbols)
    candles = CandleInspector(connection, symbols, now)
    role, readable = schema.judge(storage, is_named=is_named)
    revision = (schema.is_known and schema.revision) or ""
    if "market_data" in readable:
        candles.judge_candles(
            schema.relations["market_data"],
            has_coverage=bool(revision),
            moves_doubles=schema.adds_key,
        )
    if "regime_history" in readable:
        has_labels = revision >= MADE_BY["regime_history"]
        candles.judge_regimes(NOT_OURS if has_labels else "TRUE")
    repairs = candles.repairs()
    if candles.value("SELECT to_regclass('timescaledb_information.hypertables') IS NOT NULL"):
        candles.judge_hypertable(repairs, has_key=schema.has_key)
    levels = list(Level)
    return Inspection(
        role,
        schema.revision,
        schema.adds,
        candles.candles,
        candles.holes,
        sorted([*schema.findings, *candles.findings], key=lambda f: levels.index(f.level)),
        repairs,
    )
