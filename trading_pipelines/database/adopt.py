"""What a database that the bot already uses is like, before it is adopted; nothing is changed.

All of it is asked in one read-only transaction, so it is one state of the database, and a role that
may only read will do. What the migrations do to it belongs in `migrations`, what a backfill would
change, by the exchange's word, in `candles/compare`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from trading_pipelines.database import SCHEMA, DatabaseError, newest_schema

VARCHAR, NUMBER, MOMENT = "character varying", "numeric(20,8)", "timestamp with time zone"
# As the bot makes them, `*` for NOT NULL. Those that older databases lack are in NEWER.
CONTRACT: Mapping[str, Mapping[str, str]] = {
    "market_data": {
        "id": "bigint*", "symbol": f"{VARCHAR}(20)*", "interval": f"{VARCHAR}(10)*",
        "open_price": f"{NUMBER}*", "high_price": f"{NUMBER}*", "low_price": f"{NUMBER}*",
        "close_price": f"{NUMBER}*", "volume": f"{NUMBER}*", "timestamp": f"{MOMENT}*",
    },
    "regime_history": {
        "id": "bigint*", "detected_at": MOMENT, "regime": f"{VARCHAR}(10)*", "ma50": NUMBER,
        "ma200": NUMBER, "diff_pct": "numeric(10,4)", "coin_symbol": f"{VARCHAR}(10)*",
    },
    "trading_history": {
        "id": "uuid*", "symbol": f"{VARCHAR}(20)*", "side": f"{VARCHAR}(10)*",
        "order_type": f"{VARCHAR}(10)*", "price": f"{NUMBER}*", "quantity": f"{NUMBER}*",
        "fee": NUMBER, "status": f"{VARCHAR}(20)*", "strategy_name": f"{VARCHAR}(50)",
        "signal_info": "jsonb", "regime": f"{VARCHAR}(10)", "high_water_mark": NUMBER,
        "exit_reason": f"{VARCHAR}(30)", "created_at": MOMENT, "executed_at": MOMENT,
    },
    "risk_audit": {
        "id": "bigint*", "violation_type": f"{VARCHAR}(50)*", "description": "text",
        "related_order_id": "uuid", "timestamp": MOMENT,
    },
    "daily_risk_state": {
        "date": "date*", "total_pnl": f"{NUMBER}*", "trade_count": "integer*",
        "consecutive_losses": "integer*", "cooldown_until": MOMENT,
        "is_trading_halted": "boolean*", "updated_at": MOMENT,
    },
    "agent_decisions": {
        "id": "bigint*", "symbol": f"{VARCHAR}(20)*", "strategy_name": f"{VARCHAR}(50)*",
        "decision": f"{VARCHAR}(20)*", "reasoning": "text", "confidence": "integer",
        "model_used": f"{VARCHAR}(50)", "created_at": MOMENT, "price_at_decision": NUMBER,
        "regime": f"{VARCHAR}(10)",
    },
}  # fmt: skip
NEWER = {
    "trading_history": {"regime", "high_water_mark", "exit_reason"},
    "agent_decisions": {"price_at_decision", "regime"},
}
# What we write to, and the columns that an INSERT of ours leaves to the table.
WRITTEN = {"market_data": {"id"}, "regime_history": {"id"}}
FAMILIES = {
    VARCHAR: "text", "text": "text", "character": "text", "json": "json", "jsonb": "json",
    "numeric": "number", "double precision": "number", "real": "number",
    "bigint": "integer", "integer": "integer", "smallint": "integer",
}  # fmt: skip

# What the migrations make, compared by a test with what they did make.
OUR_TABLES = (
    "alembic_version", "candle_coverage", "candles_1h", "request_slots", "signal_coverage",
    "regime_labels", "realized_volatility", "volatility_model", "volatility_forecast",
    "garch_baseline", "volatility_score", "alert_kinds", "alert_deliveries", "alert_attempts",
    "look_backs", "database_sizes", "reject_outcomes", "reject_summary",
)  # fmt: skip
FOLLOWING_VIEWS = ("trade_history_kst", "agent_decisions_kst", "risk_audit_kst",
                   "daily_risk_state_kst", "risk_log_kst")  # fmt: skip
OUR_VIEWS = ("input_versions", "current_signals", "volatility_score_30d", "reject_outcomes_kst",
             *FOLLOWING_VIEWS)  # fmt: skip
OUR_FUNCTIONS = ("refresh_korean_views", "rejections", "rejection_versions",
                 *(f"{view}_rows" for view in FOLLOWING_VIEWS))  # fmt: skip
LATER_COLUMNS = {
    "candle_coverage": ("left_failed", "left_at", "trouble", "tries"),
    "signal_coverage": ("left_failed", "failed_inputs"),
}
INDEXES_ON_THEIRS = {
    "agent_decisions": "idx_agent_decisions_rejects",
    "trading_history": "idx_trading_history_filled",
    "risk_audit": "idx_risk_audit_timestamp",
}
KEY = "uq_market_data_symbol_interval_ts"
# The revision that makes what is missing of the bot's, once.
ALERTS = "0003"
MADE_BY = {"market_data": "0001", "regime_history": "0002"}

# In the 105 recorded days of whole candles the sum of the steps from a close to the next minute's
# open was 0.22 to 0.75 of the sum of the moves inside the candles; cut at the half of their minute
# the same candles come to 1.05 to 1.8.
SUSPECT_PAIRS = 60
# Repairs of one symbol that are less than this apart are asked for as one.
JOINED = timedelta(days=7)
LOCK_TIMEOUT = "5s"
# From these on TimescaleDB takes an upsert, and a new unique key, where chunks are compressed.
UPSERT_SINCE, UNIQUE_SINCE = (2, 11), (2, 20)
LONGEST_LIST = 5


class Level(StrEnum):
    """What a finding asks for."""

    MEND = "mend"
    """Of the operator, before anything else."""
    REPAIR = "repair"
    """Of a backfill."""
    NOTE = "note"
    """Of nobody, but good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing found about a table, a symbol or the role; `advice` says what to do, if needed."""

    level: Level
    about: str
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Hole:
    """A stretch [start, end) UTC in which no minute of a symbol is stored."""

    symbol: str
    start: datetime
    end: datetime

    @property
    def minutes(self) -> int:
        """How many candles would fit."""
        return (self.end - self.start) // timedelta(minutes=1)


@dataclass(frozen=True)
class Repair:
    """UTC days, first to last inclusive, that a backfill of these symbols should ask for."""

    symbols: tuple[str, ...]
    first: date
    last: date

    @property
    def command(self) -> str:
        """What the operator runs after `db upgrade`."""
        return (f"trading-pipelines backfill --symbols {','.join(self.symbols)} "
                f"--start {self.first} --end {self.last}")  # fmt: skip


@dataclass(frozen=True)
class Candles:
    """What is stored of one symbol's interval; times UTC."""

    symbol: str
    interval: str
    rows: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Inspection:
    """All that was found; `adds` is what `db upgrade` would add, by kind and name."""

    role: str
    revision: str | None
    tables: dict[str, bool]
    adds: list[str]
    candles: list[Candles]
    holes: list[Hole]
    findings: list[Finding]
    repairs: list[Repair]

    @property
    def can_be_adopted(self) -> bool:
        """Whether nothing has to be mended first."""
        return all(one.level is not Level.MEND for one in self.findings)


COLUMNS = """
SELECT relation, relkind::text AS kind, pg_has_role(relowner, 'USAGE') AS is_owner,
    attname::text AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS is_needed,
    atthasdef OR attidentity <> '' AS is_filled
FROM unnest(%s::text[]) AS relation
JOIN pg_class ON pg_class.oid = to_regclass('public.' || relation)
LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
"""
# As 0001 looks for it; a deferrable or invalid one is of no use to ON CONFLICT.
KEYS = """
SELECT indexrelid::regclass::text AS name, indimmediate AND indisvalid AS is_usable
FROM pg_index WHERE indrelid = 'public.market_data'::regclass AND indisunique AND indpred IS NULL
    AND (SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute
         WHERE attrelid = indrelid AND attnum = ANY (indkey)) = '{interval,symbol,timestamp}'
ORDER BY 2 DESC
"""
OURS = """
SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('trading_pipelines')
UNION SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace('trading_pipelines')
UNION SELECT relname || '.' || attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = to_regnamespace('trading_pipelines') AND relkind = 'r' AND attnum > 0
UNION SELECT 'public.' || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
"""
ROLE = """
SELECT quote_ident(current_user) AS name, quote_ident(current_database()) AS database,
    has_database_privilege(current_database(), 'CREATE') AS creates_schemas,
    has_schema_privilege('public', 'CREATE') AS creates_in_public,
    (SELECT has_schema_privilege(oid, 'CREATE') AND pg_has_role(nspowner, 'USAGE')
     FROM pg_namespace WHERE nspname = 'trading_pipelines') AS owns_ours,
    (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user)
        OR EXISTS (SELECT FROM pg_database WHERE datname = %s) AS has_storage
"""
MAY = """
SELECT privilege, has_table_privilege('public.' || %(table)s, privilege) AS is_granted
FROM unnest(%(privileges)s::text[]) AS privilege
UNION ALL
SELECT 'USAGE ON SEQUENCE ' || sequence, has_sequence_privilege(sequence, 'USAGE')
FROM pg_attribute, LATERAL (SELECT CASE WHEN 'INSERT' = ANY (%(privileges)s)
    THEN pg_get_serial_sequence('public.' || %(table)s, 'id') END) AS numbers (sequence)
WHERE attrelid = to_regclass('public.' || %(table)s) AND attname = 'id' AND attidentity = ''
    AND sequence IS NOT NULL
"""
TOTALS = """
SELECT symbol, interval, count(*), min(timestamp), max(timestamp) FROM public.market_data
GROUP BY 1, 2 ORDER BY 1, 2
"""
DOUBLES = """
SELECT coalesce(sum(rows - 1), 0)::bigint FROM (
    SELECT count(*) AS rows FROM public.market_data GROUP BY symbol, interval, timestamp
    HAVING count(*) > 1) AS doubled
"""
HOLES = """
SELECT symbol, at + interval '1 minute', next_at FROM (
    SELECT symbol, timestamp AS at,
        lead(timestamp) OVER (PARTITION BY symbol ORDER BY timestamp) AS next_at
    FROM public.market_data
    WHERE interval = '1m' AND symbol = ANY(%s) AND timestamp = date_trunc('minute', timestamp)
) AS minutes
WHERE next_at > at + interval '1 minute' ORDER BY 1, 2
"""
# NaN, which numeric can hold, is above every number.
DAYS = """
SELECT symbol, (at AT TIME ZONE 'UTC')::date AS day,
    count(*) FILTER (WHERE NOT is_aligned) AS misaligned,
    count(*) FILTER (WHERE NOT is_possible) AS impossible,
    count(*) FILTER (WHERE is_early) AS early,
    count(*) FILTER (WHERE is_joined) AS pairs,
    sum(abs(next_open - close_price)) FILTER (WHERE is_joined)
        > sum(abs(close_price - open_price)) FILTER (WHERE is_joined) AS is_torn
FROM (
    SELECT *, is_possible AND next_at = at + interval '1 minute' AND next_open < 'NaN' AS is_joined
    FROM (
        SELECT symbol, timestamp AS at, open_price, close_price,
            timestamp = date_trunc('minute', timestamp) AS is_aligned,
            0 < low_price AND low_price <= least(open_price, close_price)
                AND greatest(open_price, close_price) <= high_price AND high_price < 'NaN'
                AND 0 <= volume AND volume < 'NaN' AS is_possible,
            {early} AS is_early,
            lead(timestamp) OVER coming AS next_at, lead(open_price) OVER coming AS next_open
        FROM public.market_data WHERE interval = '1m' AND symbol = ANY(%s)
        WINDOW coming AS (PARTITION BY symbol ORDER BY timestamp)
    ) AS candles
) AS followed
GROUP BY 1, 2 ORDER BY 1, 2
"""
# Asked for whole after the day had closed: what is missing there is quiet, what is there is whole.
SETTLED = """
SELECT symbol, day FROM trading_pipelines.candle_coverage
WHERE interval = '1m' AND status = 'complete'
"""
WRITTEN_AT = ("created_at", "inserted_at")
# Ours are at the full hour, beside the bot's own of that minute.
REGIMES = """
SELECT coin_symbol AS symbol, count(*) FILTER (WHERE rows > 1) AS minutes,
    sum(rows) FILTER (WHERE moment IS NULL) AS timeless
FROM (
    SELECT coin_symbol, date_trunc('minute', detected_at) AS moment, count(*) AS rows
    FROM public.regime_history WHERE {theirs} GROUP BY 1, 2
) AS minutes GROUP BY 1 ORDER BY 1
"""
NOT_OURS = "id NOT IN (SELECT history_id FROM trading_pipelines.regime_labels WHERE history_id > 0)"
HYPERTABLE = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS version,
    compression_enabled AS is_compressing,
    (SELECT max(config->>'compress_after') FROM timescaledb_information.jobs
     WHERE hypertable_schema = 'public' AND hypertable_name = 'market_data'
        AND config ? 'compress_after') AS compress_after
FROM timescaledb_information.hypertables
WHERE hypertable_schema = 'public' AND hypertable_name = 'market_data'
"""
COMPRESSED = """
SELECT format('%I.%I', chunk_schema, chunk_name), range_start, range_end
FROM timescaledb_information.chunks
WHERE hypertable_schema = 'public' AND hypertable_name = 'market_data' AND is_compressed
ORDER BY 2
"""


def inspect(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    now: datetime,
    dagster_database: str | None = None,
) -> Inspection:
    """Inspect the market database for an installation of these symbols; `now` is aware UTC.

    `dagster_database` is the storage that `db upgrade` makes where it is missing; None where the
    operator names one. `connection` is autocommit and not used for anything else. Raises
    DatabaseError when a table stays locked, or our schema is closed to the role.
    """
    connection.read_only = True
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            return _Inspector(connection, symbols, now).inspect(dagster_database)
    except psycopg.errors.LockNotAvailable as error:
        raise DatabaseError(f"a table is being changed ({error}): try again later") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(f"this role may not look at our schema ({error}): take the one of `db "
                            "upgrade`") from error  # fmt: skip


class _Inspector:
    def __init__(
        self, connection: psycopg.Connection, symbols: Sequence[str], now: datetime
    ) -> None:
        self._connection = connection
        self._symbols = list(symbols)
        self._today = now.astimezone(UTC).date()
        self._findings: list[Finding] = []
        self._days: dict[str, set[date]] = {}

    def inspect(self, dagster_database: str | None) -> Inspection:
        (role,) = self._rows(ROLE, [dagster_database])
        there = {name for (name,) in self._rows(OURS)}
        relations: dict[str, list[Any]] = {}
        for column in self._rows(COLUMNS, [list(CONTRACT)]):
            relations.setdefault(column.relation, []).append(column)
        revision = None
        if "alembic_version" in there:
            ((revision,),) = self._rows("SELECT version_num FROM trading_pipelines.alembic_version")
        has_key = "market_data" in relations and self._has_key()
        adds = self._adds(there, relations, role, revision, has_key=has_key)
        self._judge_revision(revision, there)
        self._judge_role(role, relations, adds, dagster_database)
        readable = {name for name, columns in relations.items()
                    if self._judge_table(name, columns, role.name)}  # fmt: skip
        candles, holes = [], []
        if "market_data" in readable:
            settled = set()
            if "candle_coverage" in there:
                settled = {(symbol, day) for symbol, day in self._rows(SETTLED)}
            candles = [Candles(*row) for row in self._rows(TOTALS)]
            self._judge_totals(candles, moves_doubles=f"constraint public.{KEY}" in adds)
            holes = [one for hole in (Hole(*row) for row in self._rows(HOLES, [self._symbols]))
                     for one in _unsettled(hole, settled)]  # fmt: skip
            self._judge_holes(holes)
            self._judge_days(relations["market_data"], settled)
        if "regime_history" in readable:
            self._judge_regimes("TRUE" if "regime_labels" not in there else NOT_OURS)
        repairs = self._repairs()
        if self._one("SELECT to_regclass('timescaledb_information.hypertables') IS NOT NULL"):
            self._judge_hypertable(repairs, has_key=has_key)
        return Inspection(
            role.name,
            revision,
            {name: name in relations for name in CONTRACT},
            adds,
            candles,
            holes,
            sorted(self._findings, key=lambda one: list(Level).index(one.level)),
            repairs,
        )

    def _rows(self, query: str | sql.Composed, arguments: Any = None) -> list[Any]:  # noqa: ANN401
        with self._connection.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(query, arguments).fetchall()

    def _one(self, query: str) -> Any:  # noqa: ANN401
        ((value,),) = self._rows(query)
        return value

    def _find(self, level: Level, about: str, what: str, advice: str = "") -> None:
        self._findings.append(Finding(level, about, what, advice))

    def _has_key(self) -> bool:
        keys = self._rows(KEYS)
        for key in keys:
            if not key.is_usable:
                self._find(
                    Level.MEND if key is keys[0] else Level.NOTE, "market_data",
                    f"its unique key {key.name} is deferrable or invalid: candles can't be "
                    "repaired by it, and `db upgrade` takes it for one that can",
                    f"drop the constraint or index {key.name}; `db upgrade` then makes {KEY}",
                )  # fmt: skip
        return bool(keys)

    def _adds(
        self,
        there: set[str],
        relations: Mapping[str, Any],
        role: Any,  # noqa: ANN401
        revision: str | None,
        *,
        has_key: bool,
    ) -> list[str]:
        adds = [f"schema {SCHEMA}"] if role.owns_ours is None else []
        for table in (one for one in CONTRACT if one not in relations):
            if (revision or "") < MADE_BY.get(table, ALERTS):
                adds.append(f"table public.{table}")
            else:
                self._find(Level.MEND, table, "it is gone, and `db upgrade` does not make it again",
                           "restore it from a backup")  # fmt: skip
        if "market_data" in relations and not has_key:
            if (revision or "") < MADE_BY["market_data"]:
                adds += [f"constraint public.{KEY}", f"table {SCHEMA}.market_data_doubles"]
            else:
                self._find(Level.MEND, "market_data", "its unique key is gone: no candle can be "
                           "stored", f"ALTER TABLE public.market_data ADD CONSTRAINT {KEY} "
                           "UNIQUE (symbol, interval, timestamp);")  # fmt: skip
        # One statement makes them all, or none.
        indexes = {f"public.{index}" for index in INDEXES_ON_THEIRS.values()} - there
        foreign = [one for one in INDEXES_ON_THEIRS if one in relations
                   and not relations[one][0].is_owner]  # fmt: skip
        if indexes and (foreign or (revision or "") >= ALERTS):
            why = f"{_listed(foreign)} belong to another role" if foreign else "they are gone"
            self._find(Level.NOTE, "indexes", f"{why}, so {_listed(sorted(indexes))} are not "
                       "added: the alerts' questions are slower")  # fmt: skip
        else:
            adds += [f"index {index}" for index in sorted(indexes)]
        columns = [f"{table}.{column}" for table, later in LATER_COLUMNS.items()
                   if table in there for column in later]  # fmt: skip
        ours = {"table": OUR_TABLES, "view": OUR_VIEWS, "function": OUR_FUNCTIONS,
                "column": columns}  # fmt: skip
        for kind, names in ours.items():
            adds += [f"{kind} {SCHEMA}.{name}" for name in names if name not in there]
        return adds

    def _judge_revision(self, revision: str | None, there: set[str]) -> None:
        if revision is not None and revision > (newest_schema() or ""):
            self._find(
                Level.MEND, SCHEMA, f"a newer version of this project ({revision}) is at work here",
                "take that version",
            )  # fmt: skip
        if revision is None and (taken := there & {*OUR_TABLES, *OUR_VIEWS, *OUR_FUNCTIONS}):
            self._find(
                Level.MEND, SCHEMA,
                f"the schema holds {_listed(sorted(taken))}, and no record of our migrations",
                f"if nobody needs it: ALTER SCHEMA {SCHEMA} RENAME TO {SCHEMA}_before;",
            )  # fmt: skip

    def _judge_role(
        self,
        role: Any,  # noqa: ANN401
        relations: Mapping[str, Any],
        adds: Sequence[str],
        dagster_database: str | None,
    ) -> None:
        def lacks(what: str, advice: str) -> None:
            self._find(Level.MEND, f"role {role.name}", what, advice)

        if role.owns_ours is None and not role.creates_schemas:
            lacks(f"may not create the schema {SCHEMA}",
                  f"GRANT CREATE ON DATABASE {role.database} TO {role.name};")  # fmt: skip
        if role.owns_ours is False and adds:
            lacks(f"does not own the schema {SCHEMA}, which has to be migrated",
                  "take the role that owns it and its tables")  # fmt: skip
        if not role.creates_in_public and any(one.startswith("table public.") for one in adds):
            lacks("may not create the missing tables in public",
                  f"GRANT CREATE ON SCHEMA public TO {role.name};")  # fmt: skip
        if f"constraint public.{KEY}" in adds and not relations["market_data"][0].is_owner:
            lacks("does not own market_data, which has no unique key",
                  "run `db upgrade` once as the role that owns it; or, where there are no doubles, "
                  f"as that role: ALTER TABLE public.market_data ADD CONSTRAINT {KEY} "
                  "UNIQUE (symbol, interval, timestamp);")  # fmt: skip
        if dagster_database and not role.has_storage:
            lacks(f"may not create the database {dagster_database}",
                  f'CREATE DATABASE "{dagster_database}" OWNER {role.name}; or set '
                  "DAGSTER_POSTGRES_URL")  # fmt: skip

    def _judge_table(self, table: str, columns: Sequence[Any], role: str) -> bool:
        """Judge one contract table; return whether its rows can be read."""
        if columns[0].kind not in {"r", "p"}:
            self._find(Level.MEND, table, "it is no table",
                       "rename it, and `db upgrade` makes the table")  # fmt: skip
            return False
        found = {column.name: column for column in columns}
        newer, rewrites = NEWER.get(table, set()), table in WRITTEN
        missing = {name: wanted for name, wanted in CONTRACT[table].items() if name not in found}
        if lacking := sorted(missing.keys() & newer):
            self._find(Level.NOTE, table, f"older than the newest bot: no {_listed(lacking)}; "
                       "what is told goes without")  # fmt: skip
        for name, wanted in missing.items():
            if name not in newer:
                self._find(Level.MEND, table, f"no column {name}",
                           f"ALTER TABLE public.{table} ADD COLUMN {name} "
                           f"{wanted.rstrip('*')};")  # fmt: skip
        for name, wanted in CONTRACT[table].items():
            if name not in found or found[name].type == wanted.rstrip("*"):
                continue
            if name == "id" and FAMILIES.get(found[name].type) == "integer":
                continue  # serial or bigserial, by the bot's age
            fits = _fits(found[name].type, wanted.rstrip("*"), exactly=rewrites)
            self._find(
                Level.NOTE if fits else Level.MEND, table,
                f"{name} is {found[name].type}, not {wanted.rstrip('*')}"
                f"{', which will do' if fits else ''}",
                "" if fits else f"ALTER TABLE public.{table} ALTER COLUMN {name} "
                f"TYPE {wanted.rstrip('*')};",
            )  # fmt: skip
        if rewrites:
            self._judge_writing(table, found)
        return self._judge_rights(table, role, missing.keys() - newer)

    def _judge_writing(self, table: str, found: Mapping[str, Any]) -> None:
        left = WRITTEN[table] | (found.keys() - CONTRACT[table].keys())
        for name in sorted(left & found.keys()):
            if found[name].is_needed and not found[name].is_filled:
                self._find(Level.MEND, table, f"{name} is NOT NULL without a default, and our rows "
                           "do not name it", f"ALTER TABLE public.{table} ALTER COLUMN {name} DROP "
                           "NOT NULL; or give it a default")  # fmt: skip
        for name in {"symbol", "coin_symbol"} & found.keys():
            length = re.search(r"\((\d+)\)", found[name].type)
            longest = max(self._symbols, key=len)
            if length and int(length[1]) < len(longest):
                self._find(Level.MEND, table, f"{name} is too short for {longest}",
                           f"ALTER TABLE public.{table} ALTER COLUMN {name} "
                           f"TYPE {VARCHAR}(20);")  # fmt: skip

    def _judge_rights(self, table: str, role: str, missing: Iterable[str]) -> bool:
        privileges = ["SELECT", *(["INSERT", "UPDATE"] if table in WRITTEN else [])]
        lacks = [
            right.privilege
            for right in self._rows(MAY, {"table": table, "privileges": privileges})
            if not right.is_granted
        ]
        if lacks:
            grants = [f"GRANT {name if ' ON ' in name else f'{name} ON public.{table}'} TO {role};"
                      for name in lacks]  # fmt: skip
            self._find(Level.MEND, table, f"the role has no {', '.join(lacks)}", " ".join(grants))
        return "SELECT" not in lacks and not [*missing]

    def _judge_totals(self, candles: Sequence[Candles], *, moves_doubles: bool) -> None:
        rows = sum(one.rows for one in candles)
        if moves_doubles:
            doubles = self._one(DOUBLES)
            self._find(
                Level.NOTE, "market_data",
                f"no unique key: `db upgrade` moves {doubles:,} doubles to "
                f"{SCHEMA}.market_data_doubles, of each the row written last stays, and adds {KEY}",
                f"stop the bot meanwhile: nobody can write while {rows:,} rows get the key",
            )  # fmt: skip
        for one in candles:
            if one.interval != "1m":
                self._find(Level.NOTE, one.symbol, f"{one.rows:,} rows of interval {one.interval}: "
                           "left alone")  # fmt: skip
            elif one.symbol not in self._symbols:
                self._find(Level.NOTE, one.symbol, f"{one.rows:,} candles of a symbol that is not "
                           "in the settings: left alone")  # fmt: skip
        stored = {one.symbol for one in candles if one.interval == "1m"}
        for symbol in self._symbols:
            if symbol not in stored:
                self._find(Level.NOTE, symbol, "no candles yet")

    def _judge_holes(self, holes: Sequence[Hole]) -> None:
        for symbol in self._symbols:
            of_symbol = [hole for hole in holes if hole.symbol == symbol]
            if of_symbol:
                self._find(
                    Level.REPAIR, symbol,
                    f"{sum(hole.minutes for hole in of_symbol):,} minutes missing in "
                    f"{len(of_symbol):,} stretches, the longest of "
                    f"{max(hole.minutes for hole in of_symbol):,}; the exchange alone can tell a "
                    "hole from minutes without a trade",
                )  # fmt: skip
            for hole in of_symbol:
                self._days.setdefault(symbol, set()).update(_days(hole))

    def _judge_days(self, columns: Sequence[Any], settled: set[tuple[str, date]]) -> None:
        names = {column.name for column in columns if column.type == MOMENT}
        written_at = next((name for name in WRITTEN_AT if name in names), None)
        early: sql.Composable = sql.SQL("false")
        if written_at:
            early = sql.SQL("{} < timestamp + interval '1 minute'").format(
                sql.Identifier(written_at)
            )
        days = self._rows(sql.SQL(DAYS).format(early=early), [self._symbols])
        unsure = [day for day in days if (day.symbol, day.day) not in settled]
        self._judge_faults(
            Level.MEND, days, "misaligned", "candles do not start on the minute",
            "no backfill replaces them, and their days stay red. Look at them, then: DELETE FROM "
            "public.market_data WHERE interval = '1m' AND symbol = '{symbol}' "
            "AND timestamp <> date_trunc('minute', timestamp);",
        )  # fmt: skip
        self._judge_faults(Level.REPAIR, days, "impossible", "candles with prices or a volume that "
                           "can't be")  # fmt: skip
        self._judge_faults(Level.REPAIR, unsure, "early", f"candles were written ({written_at}) "
                           "before their minute had closed: frozen")  # fmt: skip
        torn = [day for day in unsure if day.is_torn and day.pairs >= SUSPECT_PAIRS]
        self._judge_faults(
            Level.REPAIR, torn, "pairs", "candles of days in which closes do not meet the next "
            "open: frozen while they formed, or a market with a trade a minute",
        )  # fmt: skip

    def _judge_faults(
        self, level: Level, days: Sequence[Any], fault: str, what: str, advice: str = ""
    ) -> None:
        for symbol in self._symbols:
            with_it = {day.day: getattr(day, fault) for day in days
                       if day.symbol == symbol and getattr(day, fault)}  # fmt: skip
            if with_it:
                self._find(
                    level, symbol, f"{sum(with_it.values()):,} {what}; {_listed(with_it)} (UTC)",
                    advice.format(symbol=symbol),
                )  # fmt: skip
                if level is Level.REPAIR:
                    self._days.setdefault(symbol, set()).update(with_it)

    def _judge_regimes(self, theirs: str) -> None:
        for row in self._rows(sql.SQL(REGIMES).format(theirs=sql.SQL(theirs))):
            if row.minutes:
                self._find(Level.NOTE, row.symbol, f"{row.minutes:,} minutes with more than one "
                           "row of regime_history: left, the bot reads the newest")  # fmt: skip
            if row.timeless:
                self._find(Level.NOTE, row.symbol, f"{row.timeless:,} rows of regime_history "
                           "without a time: ORDER BY detected_at DESC puts them first",
                           "look at them: SELECT * FROM public.regime_history "
                           "WHERE detected_at IS NULL;")  # fmt: skip

    def _repairs(self) -> list[Repair]:
        by_days: dict[tuple[date, date], list[str]] = {}
        for symbol in self._symbols:
            # Today is still open: the schedule sees to it.
            days = (day for day in self._days.get(symbol, ()) if day < self._today)
            for stretch in _joined(days):
                by_days.setdefault(stretch, []).append(symbol)
        return [Repair(tuple(symbols), *days) for days, symbols in sorted(by_days.items())]

    def _judge_hypertable(self, repairs: Sequence[Repair], *, has_key: bool) -> None:
        for table in self._rows(HYPERTABLE):
            version = tuple(map(int, re.findall(r"\d+", table.version or "")[:2]))
            chunks = self._rows(COMPRESSED)
            self._find(
                Level.NOTE, "market_data",
                f"a hypertable of TimescaleDB {table.version}, {len(chunks)} chunks compressed, "
                f"policy: {table.compress_after or 'none'}; this project was never run on one",
            )  # fmt: skip
            if not has_key and table.is_compressing and version < UNIQUE_SINCE:
                self._find(
                    Level.MEND, "market_data", "no unique key, and this TimescaleDB adds none "
                    "while compression is on",
                    f"{UNPACK}ALTER TABLE public.market_data SET (timescaledb.compress = false); "
                    "then `db upgrade`, then switch compression and its policy on again",
                )  # fmt: skip
            touched = [name for name, start, end in chunks if any(
                start < _midnight(one.last) + timedelta(days=1) and _midnight(one.first) < end
                for one in repairs)]  # fmt: skip
            if touched:
                is_old = version < UPSERT_SINCE
                self._find(
                    Level.MEND if is_old else Level.NOTE, "market_data",
                    f"the repair writes to compressed chunks ({_listed(touched)}), which this "
                    f"TimescaleDB {'refuses' if is_old else 'unpacks in parts as it goes'}",
                    f"{'before' if is_old else 'the sure way, before'} a repair: {UNPACK}"
                    "the policy, added again afterwards, compresses them anew",
                )  # fmt: skip


UNPACK = (
    "SELECT remove_compression_policy('public.market_data', if_exists => true); SELECT "
    "decompress_chunk(chunk, true) FROM show_chunks('public.market_data') AS chunk; "
)


def _fits(found: str, wanted: str, *, exactly: bool) -> bool:
    """Return whether a column of one type does for another; `exactly`: whatever we write fits."""
    base, *limits = re.split(r"[(,)]+", found)
    wanted_base, *wanted_limits = re.split(r"[(,)]+", wanted)
    family, wanted_family = (FAMILIES.get(one, one) for one in (base, wanted_base))
    if family != wanted_family and (exactly or {family, wanted_family} != {"number", "integer"}):
        return False
    if not exactly or not limits or not wanted_limits:
        return True
    size, scale = (
        [int(limit or 0) for limit in (*one, "0")][:2] for one in (limits, wanted_limits)
    )
    return size[0] - size[1] >= scale[0] - scale[1] and size[1] >= scale[1]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _days(hole: Hole) -> Iterator[date]:
    day = hole.start.date()
    while _midnight(day) < hole.end:
        yield day
        day += timedelta(days=1)


def _unsettled(hole: Hole, settled: set[tuple[str, date]]) -> Iterator[Hole]:
    """Yield what is left of a hole outside the days that are complete."""
    start = hole.start
    for day in _days(hole):
        if (hole.symbol, day) in settled:
            if start < _midnight(day):
                yield Hole(hole.symbol, start, _midnight(day))
            start = _midnight(day) + timedelta(days=1)
    if start < hole.end:
        yield Hole(hole.symbol, start, hole.end)


def _joined(days: Iterable[date]) -> Iterator[tuple[date, date]]:
    """Yield the first and last day of each stretch, with less than JOINED between two of it."""
    stretch: tuple[date, date] | None = None
    for day in sorted(days):
        if stretch is None or day - stretch[1] >= JOINED:
            if stretch:
                yield stretch
            stretch = (day, day)
        stretch = (stretch[0], day)
    if stretch:
        yield stretch


def _listed(names: Iterable[object]) -> str:
    all_names = [str(name) for name in names]
    more = len(all_names) - LONGEST_LIST
    return ", ".join(all_names[:LONGEST_LIST]) + (f" and {more:,} more" if more > 0 else "")
