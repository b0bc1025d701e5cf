"""Whose turn it is to download, where several runs bring history: one after the other.

Together they would be no faster, for they share one line; they would all end at the same moment,
and while they compute nobody asks for anything. How fast is asked belongs in `rate_limit`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

# Whoever hangs has had it for too long: the others go on, and share the line with him.
LONGEST_WAIT_SECONDS = 900.0
# Half of what lies between two requests.
ASK_SECONDS = 0.05
TAKE = "SELECT pg_try_advisory_lock(hashtextextended('trading_pipelines.download', 0))"
GIVE_BACK = "SELECT pg_advisory_unlock(hashtextextended('trading_pipelines.download', 0))"


@contextmanager
def turn(
    connection: psycopg.Connection,
    while_waiting: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
    longest_wait: float = LONGEST_WAIT_SECONDS,
) -> Iterator[Callable[[], None]]:
    """Wait until no other run of history downloads, or for `longest_wait` seconds; keep it so long.

    Yields what gives the turn to the next, for whoever asks for nothing more and waits for his last
    answers. `while_waiting` may end the wait by raising; `say` is told of it before it begins.
    Whoever ends in whatever way gives his turn to the next: it is his session's. `connection` is
    autocommit.
    """
    deadline = time.monotonic() + longest_wait
    has_said = False
    while not (is_ours := _ask(connection, TAKE)) and time.monotonic() < deadline:
        if not has_said:
            say("ready; another run of a backfill downloads first")
            has_said = True
        while_waiting()
        time.sleep(ASK_SECONDS)

    def give_back() -> None:
        nonlocal is_ours
        if is_ours and not connection.closed:
            is_ours = not _ask(connection, GIVE_BACK)

    try:
        yield give_back
    finally:
        give_back()


def _ask(connection: psycopg.Connection, query: str) -> bool:
    return connection.execute(query).fetchone() == (True,)
