"""What a database that the bot already uses is like, before it is adopted; nothing is changed.

All of it is asked in one read-only transaction, so it is one state of the database, and a role that
may only read will do. What the migrations do to it belongs in `migrations`, what a backfill would
change, by the exchange's word, in `candles/compare`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from trading_pipelines.database.adoption.contract import (
    ALERTS,
    CONTRACT,
    INDEXES_ON_THEIRS,
    KEY,
    MADE_BY,
    MOMENT,
    NEWER,
    VARCHAR,
    WRITTEN,
    fits,
)
from trading_pipelines.database.adoption.findings import (
    AdoptionFinding,
    Hole,
    Inspection,
    Level,
    Repair,
    StoredCandles,
)
from trading_pipelines.database.adoption.queries import (
    COLUMNS,
    COMPRESSED,
    DAYS,
    DOUBLES,
    HOLES,
    HYPERTABLE,
    KEYS,
    MAY,
    MISSING,
    NOT_OURS,
    OURS,
    REGIMES,
    ROLE,
    SETTLED,
    STRAYS,
    TOTALS,
)
from trading_pipelines.database.connection import (
    SCHEMA,
    DatabaseError,
    newest_schema,
    probe_database,
)
from trading_pipelines.database.url import PostgresUrl

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
WRITTEN_AT = ("created_at", "inserted_at")


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
            return _Inspector(connection, symbols, now).inspect(storage, is_named=is_named)
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
        self._findings: list[AdoptionFinding] = []
        self._days: dict[str, set[date]] = {}
        self._relations: dict[str, list[Any]] = {}
        for column in self._rows(COLUMNS, [list(CONTRACT)]):
            self._relations.setdefault(column.relation, []).append(column)
        self._adds: list[str] = []

    def inspect(self, storage: str, *, is_named: bool) -> Inspection:
        (role,) = self._rows(ROLE, [PostgresUrl.parse(storage).database])
        revision, is_ours = self._revision()
        has_key = "market_data" in self._relations and self._has_key()
        if is_ours:
            self._compare(revision, has_key=has_key)
        self._judge_role(role, is_current=revision == newest_schema())
        self._judge_storage(storage, role, is_named=is_named)
        readable = {name for name in self._relations if self._judge_table(name, role.name)}
        candles, holes = [], []
        if "market_data" in readable and self._are_in_time():
            settled = set()
            if is_ours and revision:
                settled = {(symbol, day) for symbol, day in self._rows(SETTLED)}
            candles = [StoredCandles(*row) for row in self._rows(TOTALS)]
            self._judge_totals(candles, moves_doubles=f"constraint public.{KEY}" in self._adds)
            holes = [one for hole in (Hole(*row) for row in self._rows(HOLES, [self._symbols]))
                     for one in _unsettled(hole, settled)]  # fmt: skip
            self._judge_holes(holes)
            self._judge_days(settled)
        if "regime_history" in readable:
            has_labels = is_ours and (revision or "") >= MADE_BY["regime_history"]
            self._judge_regimes(NOT_OURS if has_labels else "TRUE")
        repairs = self._repairs()
        if self._one("SELECT to_regclass('timescaledb_information.hypertables') IS NOT NULL"):
            self._judge_hypertable(repairs, has_key=has_key)
        findings = sorted(self._findings, key=lambda one: list(Level).index(one.level))
        return Inspection(role.name, revision, self._adds, candles, holes, findings, repairs)

    def _rows(self, query: str | sql.Composed, arguments: Any = None) -> list[Any]:  # noqa: ANN401
        with self._connection.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(query, arguments).fetchall()

    def _one(self, query: str) -> Any:  # noqa: ANN401
        ((value,),) = self._rows(query)
        return value

    def _find(self, level: Level, about: str, what: str, advice: str = "") -> None:
        self._findings.append(AdoptionFinding(level, about, what, advice))

    def _mend(self, about: str, what: str, advice: str) -> None:
        self._find(Level.MEND, about, what, advice)

    def _note(self, about: str, what: str, advice: str = "") -> None:
        self._find(Level.NOTE, about, what, advice)

    def _revision(self) -> tuple[str | None, bool]:
        """Return the revision of our schema, and whether it is one that this version knows."""
        there, revision = [name for (name,) in self._rows(OURS)], None
        if "alembic_version" in there:
            revision = self._one("SELECT min(version_num) FROM trading_pipelines.alembic_version")
            there.remove("alembic_version")
        if revision is None and there:
            self._mend(SCHEMA, f"the schema holds {_listed(there)}, and no record of our "
                       "migrations", f"if nobody needs it: ALTER SCHEMA {SCHEMA} RENAME TO "
                       f"{SCHEMA}_before;")  # fmt: skip
        is_newer = (revision or "") > (newest_schema() or "")
        if is_newer:
            self._mend(SCHEMA, f"a newer version of this project ({revision}) is at work here",
                       "take that version")  # fmt: skip
        return revision, not is_newer

    def _has_key(self) -> bool:
        keys = self._rows(KEYS, ["market_data", ["interval", "symbol", "timestamp"]])
        if keys and not keys[0].is_usable:
            self._mend("market_data", f"its unique key {keys[0].name} is deferrable or invalid: "
                       "candles can't be repaired by it, and `db upgrade` takes it for one that "
                       "can", f"drop the constraint or index {keys[0].name}; `db upgrade` then "
                       f"makes {KEY}")  # fmt: skip
        return bool(keys)

    def _compare(self, revision: str | None, *, has_key: bool) -> None:
        """Note our schema, and each object in `public`, that the migrations add or change."""
        relations, adds, head = self._relations, self._adds, newest_schema()
        if revision != head:
            adds.append(f"schema {SCHEMA}{f' from {revision} to {head}' if revision else ''}")
        for table in (one for one in CONTRACT if one not in relations):
            if (revision or "") < MADE_BY.get(table, ALERTS):
                adds.append(f"table public.{table}")
            else:
                self._mend(table, "it is gone, and `db upgrade` does not make it again",
                           "restore it from a backup")  # fmt: skip
        if "market_data" in relations and not has_key:
            if revision is None:
                adds.append(f"constraint public.{KEY}")
            else:
                self._mend("market_data", "its unique key is gone: no candle can be stored",
                           f"ALTER TABLE public.market_data ADD CONSTRAINT {KEY} "
                           "UNIQUE (symbol, interval, timestamp);")  # fmt: skip
        # One statement makes them all, or none.
        theirs = INDEXES_ON_THEIRS.keys() & relations.keys()
        names = self._rows(MISSING, [[INDEXES_ON_THEIRS[table] for table in theirs]])
        indexes = [f"public.{name}" for (name,) in names]
        foreign = sorted(table for table in theirs if not relations[table][0].is_owner)
        if indexes and (foreign or (revision or "") >= ALERTS):
            why = f"{_listed(foreign)} belong to another role" if foreign else "they are gone"
            self._note("indexes", f"{why}, so {_listed(indexes)} are not added: the alerts' "
                       "questions are slower")  # fmt: skip
        else:
            adds += [f"index {index}" for index in indexes]

    def _judge_storage(self, url: str, role: Any, *, is_named: bool) -> None:  # noqa: ANN401
        name = PostgresUrl.parse(url).database
        if is_named:
            try:
                with probe_database(url):
                    return
            except DatabaseError as error:
                self._mend("DAGSTER_POSTGRES_URL", str(error),
                           f'where it is not there: CREATE DATABASE "{name}";')  # fmt: skip
        elif not role.has_storage:
            self._adds.append(f"database {name}")
            if not role.creates_databases:
                self._mend(f"role {role.name}", f"may not create the database {name}",
                           f'CREATE DATABASE "{name}" OWNER {role.name}; or set '
                           "DAGSTER_POSTGRES_URL")  # fmt: skip

    def _judge_role(self, role: Any, *, is_current: bool) -> None:  # noqa: ANN401
        about = f"role {role.name}"
        if role.owns_ours is None and not role.creates_schemas:
            self._mend(about, f"may not create the schema {SCHEMA}",
                       f"GRANT CREATE ON DATABASE {role.database} TO {role.name};")  # fmt: skip
        if role.owns_ours is False and not is_current:
            self._mend(about, f"does not own the schema {SCHEMA}, which has to be migrated",
                       "take the role that owns it and its tables")  # fmt: skip
        if not role.creates_in_public and any(one.startswith("table ") for one in self._adds):
            self._mend(about, "may not create the missing tables in public",
                       f"GRANT CREATE ON SCHEMA public TO {role.name};")  # fmt: skip
        makes_key = f"constraint public.{KEY}" in self._adds
        if makes_key and not self._relations["market_data"][0].is_owner:
            self._mend(about, "does not own market_data, which has no unique key",
                       "run `db upgrade` once as the role that owns it; or, where there are no "
                       f"doubles, as that role: ALTER TABLE public.market_data ADD CONSTRAINT "
                       f"{KEY} UNIQUE (symbol, interval, timestamp);")  # fmt: skip

    def _judge_table(self, table: str, role: str) -> bool:
        """Judge one contract table; return whether its rows can be read."""
        columns = self._relations[table]
        if columns[0].kind not in {"r", "p"}:
            self._mend(table, "it is no table", "rename it, and `db upgrade` makes the table")
            return False
        found = {column.name: column for column in columns}
        newer = NEWER.get(table, set())
        if lacking := sorted(newer - found.keys()):
            self._note(table, f"older than the newest bot: no {_listed(lacking)}; what is told "
                       "goes without")  # fmt: skip
        wrong = [fault for name in CONTRACT[table] if name in found or name not in newer
                 if (fault := self._column_fault(table, name, found.get(name)))]  # fmt: skip
        for what, advice in wrong:
            self._mend(table, what, f"ALTER TABLE public.{table} {advice}")
        rights = ["SELECT"]
        if table in WRITTEN:
            self._judge_writing(table, found)
            rights += ["INSERT", "UPDATE"]
        if table == "trading_history" and "table public.risk_audit" in self._adds:
            rights.append("REFERENCES")
            if not any(key.is_usable for key in self._rows(KEYS, [table, ["id"]])):
                self._mend(table, "id has no unique key, and risk_audit is made with a reference "
                           "to it", f"ALTER TABLE public.{table} ADD UNIQUE (id);")  # fmt: skip
        return self._judge_rights(table, role, rights) and not wrong

    def _column_fault(self, table: str, name: str, column: Any) -> tuple[str, str] | None:  # noqa: ANN401
        """Return what is wrong with a column, and what ALTER TABLE would have to say."""
        wanted = CONTRACT[table][name].rstrip("*")
        if column is None:
            return f"no column {name}", f"ADD COLUMN {name} {wanted};"
        if not fits(column.type, wanted, exactly=table in WRITTEN or name == "id"):
            using = f"{name}::{wanted};"
            if wanted == MOMENT and column.type.endswith("without time zone"):
                using = f"{name} AT TIME ZONE 'UTC'; if the bot wrote UTC; else its zone"
            return (f"{name} is {column.type}, not {wanted}",
                    f"ALTER COLUMN {name} TYPE {wanted} USING {using}")  # fmt: skip
        if table in WRITTEN and CONTRACT[table][name] != wanted and not column.is_needed:
            return f"{name} may be NULL", f"ALTER COLUMN {name} SET NOT NULL;"
        if column.type != wanted and name != "id":  # serial or bigserial, by the bot's age
            self._note(table, f"{name} is {column.type}, not {wanted}, which will do")
        return None

    def _judge_writing(self, table: str, found: Mapping[str, Any]) -> None:
        alter = f"ALTER TABLE public.{table} ALTER COLUMN"
        left = WRITTEN[table] | (found.keys() - CONTRACT[table].keys())
        for name in sorted(left & found.keys()):
            if found[name].is_needed and not found[name].is_filled:
                self._mend(table, f"{name} is NOT NULL without a default, and our rows do not name "
                           "it", f"{alter} {name} DROP NOT NULL; or give it a default")  # fmt: skip
        longest = max(self._symbols, key=len)
        for name in {"symbol", "coin_symbol"} & found.keys():
            length = re.search(r"\((\d+)\)", found[name].type)
            if length and int(length[1]) < len(longest):
                self._mend(table, f"{name} is too short for {longest}",
                           f"{alter} {name} TYPE {VARCHAR}(20);")  # fmt: skip

    def _judge_rights(self, table: str, role: str, privileges: Sequence[str]) -> bool:
        """Tell what the role lacks; return whether it may read."""
        rights = self._rows(MAY, {"table": table, "privileges": privileges})
        lacks = [right.privilege for right in rights if not right.is_granted]
        if lacks:
            grants = [f"GRANT {name if ' ON ' in name else f'{name} ON public.{table}'} TO {role};"
                      for name in lacks]  # fmt: skip
            self._mend(table, f"the role has no {', '.join(lacks)}", " ".join(grants))
        return "SELECT" not in lacks

    def _are_in_time(self) -> bool:
        strays = self._rows(STRAYS)
        for symbol, rows in strays:
            self._mend(symbol, f"{rows:,} candles outside the years 2000 to 2100", "look at them, "
                       "then: DELETE FROM public.market_data "
                       "WHERE timestamp NOT BETWEEN '2000-01-01Z' AND '2100-01-01Z';")  # fmt: skip
        return not strays

    def _judge_totals(self, candles: Sequence[StoredCandles], *, moves_doubles: bool) -> None:
        if moves_doubles:
            self._note(
                "market_data", f"no unique key: `db upgrade` moves {self._one(DOUBLES):,} doubles "
                f"to {SCHEMA}.market_data_doubles, of each the row written last stays, and adds "
                f"{KEY}", "stop the bot meanwhile: nobody can write while "
                f"{sum(one.rows for one in candles):,} rows get the key",
            )  # fmt: skip
        for one in candles:
            if one.interval != "1m":
                self._note(one.symbol, f"{one.rows:,} rows of interval {one.interval}: left alone")
            elif one.symbol not in self._symbols:
                self._note(one.symbol, f"{one.rows:,} candles of a symbol that is not in the "
                           "settings: left alone")  # fmt: skip
        stored = {one.symbol for one in candles if one.interval == "1m"}
        for symbol in self._symbols:
            if symbol not in stored:
                self._note(symbol, "no candles yet")

    def _judge_holes(self, holes: Sequence[Hole]) -> None:
        for symbol in self._symbols:
            of_symbol = [hole for hole in holes if hole.symbol == symbol]
            minutes = [hole.minutes for hole in of_symbol]
            if minutes:
                self._find(
                    Level.REPAIR, symbol, f"{sum(minutes):,} minutes missing in {len(minutes):,} "
                    f"stretches, the longest of {max(minutes):,}; the exchange alone can tell a "
                    "hole from minutes without a trade",
                )  # fmt: skip
            for hole in of_symbol:
                self._days.setdefault(symbol, set()).update(_days(hole))

    def _judge_days(self, settled: set[tuple[str, date]]) -> None:
        names = {column.name for column in self._relations["market_data"] if column.type == MOMENT}
        written_at = next((name for name in WRITTEN_AT if name in names), None)
        early: sql.Composable = sql.SQL("false")
        if written_at:
            early = sql.SQL("{} < timestamp + interval '1 minute'").format(
                sql.Identifier(written_at)
            )
        days = self._rows(sql.SQL(DAYS).format(early=early), [self._symbols])
        unsure = [day for day in days if (day.symbol, day.day) not in settled]
        torn = [day for day in unsure if day.is_torn and day.pairs >= SUSPECT_PAIRS]
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
                self._find(level, symbol, f"{sum(with_it.values()):,} {what}; {_listed(with_it)} "
                           "(UTC)", advice.format(symbol=symbol))  # fmt: skip
                if level is Level.REPAIR:
                    self._days.setdefault(symbol, set()).update(with_it)

    def _judge_regimes(self, theirs: str) -> None:
        for row in self._rows(sql.SQL(REGIMES).format(theirs=sql.SQL(theirs))):
            if row.minutes:
                self._note(row.symbol, f"{row.minutes:,} minutes with more than one row of "
                           "regime_history: left, the bot reads the newest")  # fmt: skip
            if row.timeless:
                self._note(row.symbol, f"{row.timeless:,} rows of regime_history without a time: "
                           "ORDER BY detected_at DESC puts them first", "look at them: SELECT * "
                           "FROM public.regime_history WHERE detected_at IS NULL;")  # fmt: skip

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
            self._note(
                "market_data", f"a hypertable of TimescaleDB {table.version}, {len(chunks)} chunks "
                f"compressed, policy: {table.compress_after or 'none'}; this project was never run "
                "on one",
            )  # fmt: skip
            if not has_key and table.is_compressing and version < UNIQUE_SINCE:
                self._mend(
                    "market_data", "no unique key, and this TimescaleDB adds none while "
                    "compression is on",
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


def _joined(days: Iterable[date]) -> list[tuple[date, date]]:
    """Return the first and last day of each stretch, with less than JOINED between two of it."""
    stretches: list[list[date]] = []
    for day in sorted(days):
        if not stretches or day - stretches[-1][-1] >= JOINED:
            stretches.append([])
        stretches[-1].append(day)
    return [(stretch[0], stretch[-1]) for stretch in stretches]


def _listed(names: Iterable[object]) -> str:
    all_names = [str(name) for name in names]
    more = len(all_names) - LONGEST_LIST
    return ", ".join(all_names[:LONGEST_LIST]) + (f" and {more:,} more" if more > 0 else "")
