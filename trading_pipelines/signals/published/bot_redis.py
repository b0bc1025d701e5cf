"""The newest signals where the bot looks for them: two kinds of keys in Redis.

Signals are kept in Postgres; a key in Redis is a copy that expires some time after its as-of. Redis
may be away, and nothing here fails for that: the next refresh writes again. When to publish belongs
in `assets/published_signals`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from trading_pipelines.signals.published.current import CurrentSignal, Published

TIMEOUT_SECONDS = 2.0
REGIME_KEY = "market:regime:{symbol}"
VOLATILITY_KEY = "coinpilot:volatility_state"


@dataclass(frozen=True)
class _Entry:
    key: str
    value: str
    as_of: datetime


def publish(
    redis_url: str,
    signals: Sequence[CurrentSignal],
    volatility_symbol: str,
    ttl_seconds: int,
    now: datetime,
) -> Published:
    """Write what the bot reads, all of it or nothing; never raises because of Redis.

    The bot has one volatility state: that of `volatility_symbol`. It refuses every entry, in every
    regime, while `is_high_volatility` there is true.
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
