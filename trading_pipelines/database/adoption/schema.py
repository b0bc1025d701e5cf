"""The first half of an inspection: our schema, the bot's tables, and the rights of the role.

What is in the tables belongs in `candles`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from trading_pipelines.database.adoption.bot_columns import (
    ALERTS,
    BOT_OF_TODAY,
    CONTRACT,
    INDEXES_ON_THEIRS,
    KEY,
    MADE_BY,
    MOMENT,
    NEWER,
    VARCHAR,
    WIDER,
    WRITTEN,
    fits,
)
from trading_pipelines.database.adoption.inspector import Inspector, listed
from trading_pipelines.database.adoption.queries import (
    COLUMNS,
    KEYS,
    MAY,
    MISSING,
    OURS,
    ROLE,
    STORAGE,
)
from trading_pipelines.database.connection import (
    SCHEMA,
    DatabaseError,
    newest_schema,
    storage_fault,
)
from trading_pipelines.database.url import PostgresUrl

KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


class SchemaInspector(Inspector):
    """Judges schema, tables and role; `adds` is what `db upgrade` would add."""

    def __init__(self, connection: psycopg.Connection, symbols: Sequence[str]) -> None:
        super().__init__(connection, symbols)
        self.adds: list[str] = []
        self.relations: dict[str, list[Any]] = {}
        for column in self.rows(COLUMNS, [list(CONTRACT)]):
            self.relations.setdefault(column.relation, []).append(column)
        self.revision, self.is_known = self._revision()
        self.has_key = "market_data" in self.relations and self._has_key()

    @property
    def adds_key(self) -> bool:
        """Whether `db upgrade` adds the unique key of market_data."""
        return f"constraint public.{KEY}" in self.adds

    def judge(self, storage: str, *, is_named: bool) -> tuple[str, set[str]]:
        """Judge all of it; return the role's name and the tables whose rows can be read."""
        role = self._judge_rights_to_add(storage, is_named=is_named)
        readable = {name for name in self.relations if self._judge_table(name, role.name)}
        return role.name, readable

    def missing_rights(self, storage: str, *, is_named: bool) -> list[str]:
        """Return what the role may not do that `db upgrade` does, each with the command for it."""
        about = f"role {self._judge_rights_to_add(storage, is_named=is_named).name}"
        lacking = [finding for finding in self.findings if finding.about == about]
        return [f"{about} {finding.what}: {finding.advice}" for finding in lacking]

    def _judge_rights_to_add(self, storage: str, *, is_named: bool) -> Any:  # noqa: ANN401
        (role,) = self.rows(ROLE, [PostgresUrl.parse(storage).database])
        if self.is_known:
            self._compare()
        self._judge_role(role)
        self._judge_storage(storage, role, is_named=is_named)
        return role

    def _revision(self) -> tuple[str | None, bool]:
        """Return the revision of our schema, and whether it is one that this version knows."""
        tables, revision = [name for (name,) in self.rows(OURS)], None
        if "alembic_version" in tables:
            revision = self.value("SELECT min(version_num) FROM trading_pipelines.alembic_version")
            tables.remove("alembic_version")
        if revision is None and tables:
            self.mend(
                about=SCHEMA,
                what=f"the schema holds {listed(tables)}, and no record of our migrations",
                advice=f"if nobody needs it: ALTER SCHEMA {SCHEMA} RENAME TO {SCHEMA}_before;",
            )
        is_newer = (revision or "") > newest_schema()
        if is_newer:
            self.mend(
                about=SCHEMA,
                what=f"a newer version of this project ({revision}) is at work here",
                advice="take that version",
            )
        return revision, not is_newer

    def _has_key(self) -> bool:
        keys = self.rows(KEYS, ["market_data", ["interval", "symbol", "timestamp"]])
        if keys and not keys[0].is_usable:
            self.mend(
                about="market_data",
                what=f"its unique key {keys[0].name} is deferrable or invalid: candles can't be "
                "repaired by it, and `db upgrade` takes it for one that can",
                advice=f"drop the constraint or index {keys[0].name}; `db upgrade` then makes "
                f"{KEY}",
            )
        return bool(keys)

    def _compare(self) -> None:
        """Add what the migrations add or change: our schema, and objects in `public`."""
        relations, adds, head = self.relations, self.adds, newest_schema()
        revision = self.revision
        if revision != head:
            adds.append(f"schema {SCHEMA}{f' from {revision} to {head}' if revision else ''}")
        for table in (table for table in CONTRACT if table not in relations):
            if (revision or "") < MADE_BY.get(table, ALERTS):
                adds.append(f"table public.{table}")
            else:
                self.mend(
                    about=table,
                    what="it is gone, and `db upgrade` does not make it again",
                    advice="restore it from a backup",
                )
        for table in NEWER.keys() & relations.keys():
            columns = relations[table]
            if columns[0].is_owner and (revision or "") < BOT_OF_TODAY:
                lacking = NEWER[table] - {column.name for column in columns}
                adds += [f"column public.{table}.{name}" for name in sorted(lacking)]
        if "market_data" in relations and not self.has_key:
            if revision is None:
                adds.append(f"constraint public.{KEY}")
            else:
                self.mend(
                    about="market_data",
                    what="its unique key is gone: no candle can be stored",
                    advice=f"ALTER TABLE public.market_data ADD CONSTRAINT {KEY} "
                    "UNIQUE (symbol, interval, timestamp);",
                )
        for made_by, tables in INDEXES_ON_THEIRS.items():
            indexed = {name: table for name, table in tables.items() if table in relations}
            indexes = [f"public.{name}" for (name,) in self.rows(MISSING, [list(indexed)])]
            foreign = sorted(t for t in indexed.values() if not relations[t][0].is_owner)
            if indexes and (foreign or (revision or "") >= made_by):
                why = f"{listed(foreign)} belong to another role" if foreign else "they are gone"
                self.note(
                    about="indexes",
                    what=f"{why}, so {listed(indexes)} are not added: the alerts' questions are "
                    "slower",
                )
            else:
                adds += [f"index {index}" for index in indexes]

    def _judge_storage(self, url: str, role: Any, *, is_named: bool) -> None:  # noqa: ANN401
        target = PostgresUrl.parse(url)
        name, owner = target.database, target.parameters.get("user")
        if not is_named and not role.has_storage:
            self.adds.append(f"database {name}")
            if not role.creates_databases:
                self.mend(
                    about=f"role {role.name}",
                    what=f"may not create the database {name}",
                    advice=f'CREATE DATABASE "{name}" OWNER {role.name}; or set '
                    "DAGSTER_POSTGRES_URL",
                )
            return
        try:
            if fault := storage_fault(url):
                self.mend(f"role {role.name}", *fault)
        except DatabaseError as error:
            if is_named:
                owned = f' OWNER "{owner}"' if owner else ""
                self.mend(
                    about="DAGSTER_POSTGRES_URL",
                    what=str(error),
                    advice=f'where it is not there: CREATE DATABASE "{name}"{owned};',
                )

    def _judge_role(self, role: Any) -> None:  # noqa: ANN401
        about = f"role {role.name}"
        if role.owns_ours is None and not role.creates_schemas:
            self.mend(
                about=about,
                what=f"may not create the schema {SCHEMA}",
                advice=f"GRANT CREATE ON DATABASE {role.database} TO {role.name};",
            )
        if role.owns_ours is False and self.revision != newest_schema():
            self.mend(
                about=about,
                what=f"does not own the schema {SCHEMA}, which has to be migrated",
                advice="take the role that owns it and its tables",
            )
        if not role.creates_in_public and any(added.startswith("table ") for added in self.adds):
            self.mend(
                about=about,
                what="may not create the missing tables in public",
                advice=f"GRANT CREATE ON SCHEMA public TO {role.name};",
            )
        if self.adds_key and not self.relations["market_data"][0].is_owner:
            self.mend(
                about=about,
                what="does not own market_data, which has no unique key",
                advice="run `db upgrade` once as the role that owns it; or, where there are no "
                f"doubles, as that role: ALTER TABLE public.market_data ADD CONSTRAINT {KEY} "
                "UNIQUE (symbol, interval, timestamp);",
            )

    def _judge_table(self, table: str, role: str) -> bool:
        """Judge one table of the contract; return whether its rows can be read."""
        relation = self.relations[table]
        if relation[0].kind not in {"r", "p"}:
            self.mend(
                about=table,
                what=f"it is no table but {KINDS.get(relation[0].kind, 'something else')}: nothing "
                "can be stored in it, and no index made",
                advice="rename it, and `db upgrade` makes the table; or keep the bot's own here",
            )
            return False
        columns = {column.name: column for column in relation}
        newer = NEWER.get(table, set())
        lacking = sorted(newer - columns.keys())
        if lacking and f"column public.{table}.{lacking[0]}" not in self.adds:
            self.note(
                about=table,
                what=f"older than the newest bot: no {listed(lacking)}; what is told goes without",
            )
        wrong = [
            fault
            for name in CONTRACT[table]
            if name in columns or name not in newer
            if (fault := self._column_fault(table, name, columns.get(name)))
        ]
        for problem, advice in wrong:
            self.mend(table, problem, f"ALTER TABLE public.{table} {advice}")
        self._judge_storage_of(table, role)
        rights = ["SELECT"]
        if table in WRITTEN:
            self._judge_writing(table, columns)
            rights += ["INSERT", "UPDATE"]
        if table == "trading_history" and "table public.risk_audit" in self.adds:
            rights.append("REFERENCES")
            if not any(key.is_usable for key in self.rows(KEYS, [table, ["id"]])):
                self.mend(
                    about=table,
                    what="id has no unique key, and risk_audit is made with a reference to it",
                    advice=f"ALTER TABLE public.{table} ADD UNIQUE (id);",
                )
        return self._judge_rights(table, role, rights) and not wrong

    def _column_fault(self, table: str, name: str, column: Any) -> tuple[str, str] | None:  # noqa: ANN401
        """Return what is wrong with a column, and the ALTER TABLE that mends it."""
        contract_type = CONTRACT[table][name].rstrip("*")
        if column is None:
            return f"no column {name}", f"ADD COLUMN {name} {contract_type};"
        if not fits(column.type, contract_type, exactly=table in WRITTEN or name == "id"):
            using = f"{name}::{contract_type};"
            if contract_type == MOMENT and column.type.endswith("without time zone"):
                using = f"{name} AT TIME ZONE 'UTC'; if the bot wrote UTC; else its zone"
            return (
                f"{name} is {column.type}, not {contract_type}",
                f"ALTER COLUMN {name} TYPE {contract_type} USING {using}",
            )
        if table in WRITTEN and CONTRACT[table][name] != contract_type and not column.is_needed:
            return f"{name} may be NULL", f"ALTER COLUMN {name} SET NOT NULL;"
        # `id` is serial or bigserial, by the bot's age.
        expected = {contract_type, WIDER.get(table, {}).get(name, "").rstrip("*")}
        if column.type not in expected and name != "id":
            self.note(table, f"{name} is {column.type}, not {contract_type}, which will do")
        return None

    def _judge_writing(self, table: str, columns: Mapping[str, Any]) -> None:
        alter = f"ALTER TABLE public.{table} ALTER COLUMN"
        not_inserted = WRITTEN[table] | (columns.keys() - CONTRACT[table].keys())
        for name in sorted(not_inserted & columns.keys()):
            if columns[name].is_needed and not columns[name].is_filled:
                self.mend(
                    about=table,
                    what=f"{name} is NOT NULL without a default, and our rows do not name it",
                    advice=f"{alter} {name} DROP NOT NULL; or give it a default",
                )
        longest = max(self._symbols, key=len)
        for name in {"symbol", "coin_symbol"} & columns.keys():
            length = re.search(r"\((\d+)\)", columns[name].type)
            if length and int(length[1]) < len(longest):
                self.mend(
                    about=table,
                    what=f"{name} is too short for {longest}",
                    advice=f"{alter} {name} TYPE {VARCHAR}(20);",
                )

    def _judge_storage_of(self, table: str, role: str) -> None:
        """Judge what stands between our reads and writes and the table's rows."""
        (storage,) = self.rows(STORAGE, [table])
        if storage.hides_rows:
            self.mend(
                about=table,
                what=f"row-level security hides rows from {role}, or may",
                advice=f"ALTER ROLE {role} BYPASSRLS; or take the role that owns the table",
            )
        if storage.has_heirs:
            self.mend(
                about=table,
                what="other tables inherit from it: no key spans their rows",
                advice="move the rows to one table, or to one with declarative partitions",
            )
        if table not in WRITTEN:
            return
        if storage.rules:
            self.mend(
                about=table,
                what=f"its rules ({listed(storage.rules)}) do not go with an upsert",
                advice=" ".join(f"DROP RULE {rule} ON public.{table};" for rule in storage.rules),
            )
        if storage.triggers:
            self.note(
                about=table,
                what=f"triggers run at each of our writes: {listed(storage.triggers)}; what one "
                "refuses, drops or changes is a failure of its day",
            )
        if table == "market_data" and storage.is_partitioned:
            self._judge_partitions(storage)

    def _judge_partitions(self, storage: Any) -> None:  # noqa: ANN401
        if not self.has_key and (storage.is_keyless or storage.has_foreign_parts):
            why = "foreign tables" if storage.has_foreign_parts else "other columns than its key's"
            self.mend(
                about="market_data",
                what=f"it is partitioned by {why}: there can be no unique key on symbol, interval "
                "and timestamp",
                advice="partition it by timestamp or symbol, in tables of this database",
            )
        if storage.lacks_default:
            self.note(
                about="market_data",
                what="it has no default partition: a day that no partition is for fails, alone",
                advice="before a backfill make the partitions of its days; or: CREATE TABLE "
                "public.market_data_default PARTITION OF public.market_data DEFAULT;",
            )

    def _judge_rights(self, table: str, role: str, privileges: Sequence[str]) -> bool:
        """Judge the role's rights on a table; return whether it may read it."""
        rights = self.rows(MAY, {"table": table, "privileges": privileges})
        lacks = [right.privilege for right in rights if not right.is_granted]
        if lacks:
            grants = [
                f"GRANT {name if ' ON ' in name else f'{name} ON public.{table}'} TO {role};"
                for name in lacks
            ]
            self.mend(table, f"the role has no {', '.join(lacks)}", " ".join(grants))
        return "SELECT" not in lacks
