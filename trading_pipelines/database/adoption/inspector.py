"""What both halves of an inspection share: questions to the database, and a list of findings."""

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from trading_pipelines.database.adoption.findings import AdoptionFinding, Level

LONGEST_LIST = 5


class Inspector:
    """Asks the market database for an installation of these symbols, and collects findings."""

    def __init__(self, connection: psycopg.Connection, symbols: Sequence[str]) -> None:
        self._connection = connection
        self._symbols = list(symbols)
        self.findings: list[AdoptionFinding] = []

    def rows(self, query: str | sql.Composed, arguments: Any = None) -> list[Any]:  # noqa: ANN401
        """Return the rows of a query as named tuples."""
        with self._connection.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(query, arguments).fetchall()

    def value(self, query: str) -> Any:  # noqa: ANN401
        """Return the one value of a query."""
        ((value,),) = self.rows(query)
        return value

    def find(self, level: Level, about: str, what: str, advice: str = "") -> None:
        """Add a finding."""
        self.findings.append(AdoptionFinding(level, about, what, advice))

    def mend(self, about: str, what: str, advice: str) -> None:
        """Add a finding that the operator has to mend before the database can be adopted."""
        self.find(Level.MEND, about, what, advice)

    def note(self, about: str, what: str, advice: str = "") -> None:
        """Add a finding that asks nothing of anybody."""
        self.find(Level.NOTE, about, what, advice)


def listed(names: Iterable[object]) -> str:
    """Return the names in a list, and how many more there are where the list is long."""
    all_names = [str(name) for name in names]
    more = len(all_names) - LONGEST_LIST
    return ", ".join(all_names[:LONGEST_LIST]) + (f" and {more:,} more" if more > 0 else "")
