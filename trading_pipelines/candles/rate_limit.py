"""One rate limit for the whole installation, held in one Postgres row per exchange.

Every process reserves the moment of its next request here, so runs, backfills and schedules
together stay below the exchange's limit whatever their number. The request that a slot is for, and
its answer, belong in `exchange`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from trading_pipelines.errors import OperatorError

# 104 ms, not 100: eleven requests then span 1.04 s, and 40 ms of jitter can't bring them into one
# second. It costs 4 % of the limit.
SPACING = 1.04
# Of ten slots' time, what ten requests take at least: half of the jitter above.
LEAST = 1 - (SPACING - 1) / 2
# A slot is looked at once more before its time, so that the request itself leaves on the moment.
EARLY_SECONDS = 0.02
# What Upbit allows an address, however little of it this installation is set to take.
EXCHANGE_LIMIT = 10
# More than are ever reserved ahead of their time: 16 of each of four runs, and the live edge's.
REMEMBERED = 100
# A request that leaves later than this after its slot is noted.
LATE_SECONDS = 0.01
# A run's log says nothing of shorter waits.
LONG_WAIT_SECONDS = 10.0

RESERVE = """
UPDATE trading_pipelines.request_slots AS slots
SET next_at = slot.at + %(interval)s, recent = (array_prepend(slot.at, recent))[1:%(remembered)s]
FROM (SELECT exchange, greatest(next_at, clock_timestamp(),
          recent[%(limit)s] + %(ten_take)s) AS at
      FROM trading_pipelines.request_slots WHERE exchange = %(exchange)s FOR UPDATE) AS slot
WHERE slots.exchange = slot.exchange
RETURNING slot.at, slot.at - clock_timestamp(), blocked_until,
    blocked_until > clock_timestamp(),
    (SELECT count(*) FROM unnest(recent) AS past WHERE past > slot.at - interval '1 second')
"""
# A request that left late is close to those that follow it: the tenth after it leaves late as well,
# though it may have reserved its slot before.
NOTE_SENT = """
UPDATE trading_pipelines.request_slots
SET recent = array_replace(recent, %(reserved)s, %(sent)s) WHERE exchange = %(exchange)s
"""
# Slots are reserved ahead of their time, so that those that nobody has used yet are void too.
DEFER = """
UPDATE trading_pipelines.request_slots
SET next_at = greatest(next_at, %(until)s), held_until = greatest(held_until, %(until)s)
WHERE exchange = %(exchange)s
"""
DEFER_BY = """
UPDATE trading_pipelines.request_slots
SET next_at = greatest(next_at, now() + %(pause)s),
    held_until = greatest(held_until, now() + %(pause)s)
WHERE exchange = %(exchange)s
"""
STANDING = """
SELECT %(at)s - clock_timestamp(), blocked_until, blocked_until > clock_timestamp(),
    held_until > %(at)s, greatest(
        interval '0', recent[array_position(recent, %(at)s) + %(limit)s] + %(ten_take)s - %(at)s)
FROM trading_pipelines.request_slots WHERE exchange = %(exchange)s
"""
# Upbit's blocks grow with each offence; without a Retry-After the pause doubles from a minute to an
# hour, and a day of good behaviour starts it over. Requests that were under way together when it
# began are one offence.
BLOCK = """
UPDATE trading_pipelines.request_slots AS slots
SET blocks = grown.blocks,
    blocked_at = CASE WHEN is_same THEN slots.blocked_at ELSE clock_timestamp() END,
    blocked_until = CASE
        WHEN is_same THEN greatest(slots.blocked_until, clock_timestamp() + %(retry_after)s)
        ELSE clock_timestamp() + coalesce(%(retry_after)s, least(
            interval '1 minute' * 2 ^ least(grown.blocks - 1, 10), interval '1 hour')) END
FROM (SELECT exchange, blocked_at > %(asked_at)s AS is_same, CASE
          WHEN blocked_at > %(asked_at)s THEN blocks
          WHEN blocked_until > now() - interval '1 day' THEN blocks + 1 ELSE 1
      END AS blocks FROM trading_pipelines.request_slots WHERE exchange = %(exchange)s FOR UPDATE
     ) AS grown
WHERE slots.exchange = grown.exchange
RETURNING blocked_until
"""

LATENCY = """
SELECT extract(epoch FROM latency)::float8 FROM trading_pipelines.request_slots
WHERE exchange = %(exchange)s
"""
NOTE_LATENCY = """
UPDATE trading_pipelines.request_slots SET latency = %(latency)s WHERE exchange = %(exchange)s
"""
NOTE_CLOCK = """
INSERT INTO trading_pipelines.exchange_clocks (exchange, ahead, problem)
VALUES (%(exchange)s, %(ahead)s, %(problem)s) ON CONFLICT (exchange) DO UPDATE
SET ahead = excluded.ahead, problem = excluded.problem, read_at = clock_timestamp()
"""


class BlockedError(OperatorError):
    """The exchange has blocked this address; nothing may be asked before `until` (UTC)."""

    def __init__(self, exchange: str, until: datetime) -> None:
        super().__init__(
            f"{exchange} has blocked this address until {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} "
            "UTC; nothing is asked before then, and the schedule goes on by itself"
        )
        self.until = until


@dataclass(frozen=True)
class Clock:
    """The exchange's clock as its answers tell it."""

    ahead: timedelta | None
    """How far it is ahead of ours; None: not known, or a replayed market's own."""
    problem: str | None
    """Why it is not believed, so that ours is used."""

    def differs(self, other: "Clock") -> bool:
        """Return whether this is another clock: a Date has whole seconds, and was on its way."""
        changed = (self.ahead is None) != (other.ahead is None) or self.problem != other.problem
        drift = abs((self.ahead or timedelta()) - (other.ahead or timedelta()))
        return changed or drift > timedelta(seconds=10)


@dataclass(frozen=True)
class Slot:
    """A reserved request: its moment (UTC), and how many of ours lie in its second."""

    at: datetime
    in_last_second: int
    due: float
    """Its moment in monotonic seconds, at the earliest: it came from the database's clock."""


class RequestSlots:
    """The slots of one exchange; for any number of threads.

    `connection` is autocommit and nobody else's: what is reserved inside a transaction would hold
    every process back until its end.
    """

    def __init__(
        self, connection: psycopg.Connection, exchange: str, requests_per_second: float
    ) -> None:
        self.spacing = SPACING / requests_per_second
        """Seconds from one request of the installation to the next."""
        self._connection = connection
        self._exchange = exchange
        self._arguments: dict[str, object] = {
            "exchange": exchange,
            "interval": timedelta(seconds=self.spacing),
            "remembered": REMEMBERED,
            "limit": EXCHANGE_LIMIT,
            "ten_take": timedelta(seconds=self.spacing * EXCHANGE_LIMIT * LEAST),
        }
        connection.execute(
            "INSERT INTO trading_pipelines.request_slots (exchange) VALUES (%s) "
            "ON CONFLICT DO NOTHING",
            [exchange],
        )

    def reserve(
        self,
        say: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> Slot:
        """Reserve the next slot and sleep until it has come; raise BlockedError during a block.

        `say` is told of a long wait before it begins. A slot that has become void meanwhile, since
        the exchange has asked another request for a pause, is reserved anew.
        """
        while True:
            asked_at = time.monotonic()
            at, wait, blocked_until, blocked, used = self._row(RESERVE)
            seconds, is_void = wait.total_seconds(), False
            # The server's clock was read between the question and the answer.
            earliest, latest = asked_at + seconds, time.monotonic() + seconds
            most_left = latest - earliest + EARLY_SECONDS
            if not blocked:
                if seconds > LONG_WAIT_SECONDS:
                    say(f"waiting {seconds:.0f} s for the next request that the rate limit leaves")
                sleep(max(0.0, earliest - EARLY_SECONDS - time.monotonic()))
                asked_at = time.monotonic()
                wait, blocked_until, blocked, is_void, delay = self._row(STANDING, at=at)
                earliest = max(earliest, asked_at + wait.total_seconds())
                latest = min(latest, time.monotonic() + wait.total_seconds())
                left = min(most_left, latest - time.monotonic())
                sleep(max(0.0, left + delay.total_seconds()))
            if blocked:
                raise BlockedError(self._exchange, blocked_until)
            if not is_void:
                return Slot(at, used, earliest)

    def obey(self, remaining: int, slot: Slot) -> None:
        """Let the second of `slot` pass when the exchange says that it is used up.

        Our own requests, at full speed, also leave nothing remaining; only when they do not explain
        it does somebody else (the bot, say) share this address's limit.
        """
        if remaining <= 0 and slot.in_last_second < EXCHANGE_LIMIT:
            self._connection.execute(
                DEFER,
                self._arguments | {"until": slot.at.replace(microsecond=0) + timedelta(seconds=1)},
            )

    def note_sent(self, slot: Slot, at: float) -> None:
        """Record that the slot's request leaves late, where it does: `at`, in monotonic seconds."""
        if at - slot.due > LATE_SECONDS:
            sent = slot.at + timedelta(seconds=at - slot.due)
            self._connection.execute(
                NOTE_SENT, self._arguments | {"reserved": slot.at, "sent": sent}
            )

    def pause(self, seconds: float) -> None:
        """Hold back every process of the installation, after a refused request."""
        self._connection.execute(DEFER_BY, self._arguments | {"pause": timedelta(seconds=seconds)})

    def latency(self) -> float | None:
        """Return the seconds that an answer takes, as any run has noted last; None: not known."""
        (seconds,) = self._row(LATENCY)
        return None if seconds is None else float(seconds)

    def note_latency(self, seconds: float | None) -> None:
        """Record them for the run that asks next; None after a try that has failed."""
        latency = None if seconds is None else timedelta(seconds=seconds)
        self._connection.execute(NOTE_LATENCY, self._arguments | {"latency": latency})

    def note_clock(self, clock: Clock) -> None:
        """Record how the exchange's clock differs from ours."""
        arguments = {"ahead": clock.ahead, "problem": clock.problem}
        self._connection.execute(NOTE_CLOCK, self._arguments | arguments)

    def block(self, retry_after: timedelta | None, slot: Slot) -> BlockedError:
        """Record that the exchange has blocked this address at a request; return what to raise."""
        (until,) = self._row(BLOCK, retry_after=retry_after, asked_at=slot.at)
        return BlockedError(self._exchange, until)

    def _row(self, query: str, **arguments: object) -> tuple[Any, ...]:
        row = self._connection.execute(query, self._arguments | arguments).fetchone()
        assert row is not None, "the row of request_slots was made in __init__"
        return row


def blocked_until(connection: psycopg.Connection) -> datetime | None:
    """Return when the running block ends (UTC), or None when there is none."""
    row = connection.execute(
        "SELECT max(blocked_until) FROM trading_pipelines.request_slots "
        "WHERE blocked_until > clock_timestamp()"
    ).fetchone()
    return row[0] if row else None


def read_clock(connection: psycopg.Connection, exchange: str) -> Clock:
    """Return what was last found of the exchange's clock; nothing where it was never asked."""
    row = connection.execute(
        "SELECT ahead, problem FROM trading_pipelines.exchange_clocks WHERE exchange = %s",
        [exchange],
    ).fetchone()
    return Clock(*(row or (None, None)))
