"""The newest signals where the bot looks for them: two kinds of keys in Redis.

Postgres is where signals are; a key in Redis is a copy that lives as long as it is worth something,
counted from its as-of. Redis may be away, and nothing here fails for it: the next refresh writes
again. What a signal is belongs in `compute`; when to publish belongs to who calls.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import redis
from psycopg.rows import class_row
from redis.backoff import NoBackoff
from redis.retry import Retry

from trading_pipelines.korean_time import kst

CURRENT_SIGNALS = "current_signals"
SIGNALS_OVERVIEW = "signals_overview"
"""The two unpartitioned assets that show what there is."""

TIMEOUT_SECONDS = 2.0
REGIME_KEY = "market:regime:{symbol}"
VOLATILITY_KEY = "coinpilot:volatility_state"

CURRENT = """
SELECT current.symbol, regime, regime_since, regime_diff_pct, regime_as_of, regime_age,
    annualized_volatility, is_high_volatility, volatility_status, volatility_horizon,
    volatility_as_of, volatility_age, volatility_valid_until
FROM unnest(%s::text[]) WITH ORDINALITY AS wanted (symbol, place)
JOIN trading_pipelines.current_signals AS current ON current.symbol = wanted.symbol
WHERE regime_as_of IS NOT NULL OR volatility_as_of IS NOT NULL
ORDER BY place
"""


@dataclass(frozen=True)
class CurrentSignal:
    """A row of the view `current_signals`; the regime or the forecast may be missing."""

    symbol: str
    regime: str | None = None
    regime_since: datetime | None = None
    """As-of of the first label of the unbroken run that `regime` is the last of."""
    regime_diff_pct: Decimal | None = None
    regime_as_of: datetime | None = None
    """Close of the newest labelled hour."""
    regime_age: timedelta | None = None
    annualized_volatility: float | None = None
    """1 is 100 % a year; empty where the status is no number."""
    is_high_volatility: bool | None = None
    volatility_status: str | None = None
    volatility_horizon: int | None = None
    volatility_as_of: datetime | None = None
    volatility_age: timedelta | None = None
    volatility_valid_until: datetime | None = None

    def shown(self) -> dict[str, str]:
        """Return what a person reads of it, by column heading; times in Korean time."""
        diff, volatility = self.regime_diff_pct, self.annualized_volatility
        return {
            "symbol": self.symbol,
            "regime": self.regime or "-",
            "since": kst(self.regime_since),
            "fast over slow": "-" if diff is None else f"{diff:+.2f} %",
            "volatility a year": "-" if volatility is None else f"{volatility:.0%}",
            "high": {True: "yes", False: "no", None: "not known"}[self.is_high_volatility],
            "status": self.volatility_status or "-",
            "as of": kst(self.regime_as_of or self.volatility_as_of),
            "valid until": kst(self.volatility_valid_until),
        }


@dataclass(frozen=True)
class Published:
    """What became of the signals; `skipped` says in a few words why nothing could be written."""

    keys: tuple[str, ...] = ()
    stale: Mapping[str, timedelta] = field(default_factory=dict)
    """Keys not written because what they would say has expired, with its age."""
    skipped: str | None = None


@dataclass(frozen=True)
class _Entry:
    key: str
    value: str
    as_of: datetime


def current_signals(connection: psycopg.Connection, symbols: Sequence[str]) -> list[CurrentSignal]:
    """Return the newest signals in the order of `symbols`, without the symbols that have none."""
    with connection.cursor(row_factory=class_row(CurrentSignal)) as cursor:
        return cursor.execute(CURRENT, [list(symbols)]).fetchall()


def publish(
    redis_url: str,
    signals: Sequence[CurrentSignal],
    volatility_symbol: str,
    ttl_seconds: int,
    now: datetime,
) -> Published:
    """Write what the bot reads, all of it or nothing; never raises because of Redis.

    The bot has one volatility state: that of `volatility_symbol`.
    """
    ttl = timedelta(seconds=ttl_seconds)
    entries = list(_entries(signals, volatility_symbol))
    stale = {entry.key: now - entry.as_of for entry in entries if entry.as_of + ttl <= now}
    fresh = [entry for entry in entries if entry.key not in stale]
    if not fresh:
        return Published(stale=stale)
    try:
        _write(redis_url, fresh, ttl)
    # TypeError and ValueError: of the URL, a port or an option that the library does not take.
    except (redis.RedisError, OSError, TypeError, ValueError) as error:
        return Published(stale=stale, skipped=_reason(error))
    return Published(tuple(entry.key for entry in fresh), stale)


def _entries(signals: Sequence[CurrentSignal], volatility_symbol: str) -> Iterator[_Entry]:
    for signal in signals:
        if signal.regime is not None and signal.regime_as_of is not None:
            key = REGIME_KEY.format(symbol=signal.symbol)
            yield _Entry(key, signal.regime, signal.regime_as_of)
        # Without a number there is no state: a 0 would read as calm.
        volatility, as_of = signal.annualized_volatility, signal.volatility_as_of
        if signal.symbol == volatility_symbol and volatility is not None and as_of is not None:
            state = {
                "current_volatility": volatility,
                "is_high_volatility": signal.is_high_volatility,
                "timestamp": as_of.astimezone(UTC).isoformat(),
                "symbol": signal.symbol,
            }
            yield _Entry(VOLATILITY_KEY, json.dumps(state), as_of)


def _write(redis_url: str, entries: Sequence[_Entry], ttl: timedelta) -> None:
    client = redis.Redis.from_url(
        redis_url,
        socket_connect_timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),  # one attempt: the next refresh is another
        protocol=2,  # no greeting that servers before 6 do not know
    )
    with client, client.pipeline(transaction=True) as pipeline:
        for entry in entries:
            # Not SET … EXAT, which servers before 6.2 do not know.
            pipeline.set(entry.key, entry.value)
            pipeline.expireat(entry.key, entry.as_of + ttl)
        pipeline.execute()


def _reason(error: Exception) -> str:
    """Say what is wrong without the error's own words: they quote the URL, or a command."""
    if isinstance(error, redis.AuthenticationError):
        return "Redis refuses the user or the password"
    if isinstance(error, redis.TimeoutError):
        return f"Redis does not answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, redis.ConnectionError | OSError):
        cause = error.__context__ or error
        return f"Redis can't be reached ({type(cause).__name__})"
    if isinstance(error, redis.RedisError):
        return f"Redis refuses the write ({error.status_code or type(error).__name__})"
    return f"REDIS_URL can't be used ({type(error).__name__})"
