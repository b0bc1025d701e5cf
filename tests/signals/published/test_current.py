"""What the bot finds in Redis, and that nothing breaks when Redis does; against a real server."""

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
import redis

from trading_pipelines.signals.published.bot_redis import TIMEOUT_SECONDS, publish
from trading_pipelines.signals.published.current import (
    CurrentSignal,
    Published,
    read_current_signals,
)
from trading_pipelines.signals.published.flags import FlagShare, read_flag_shares

TTL = 3900
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
NOW = datetime.now(UTC).replace(microsecond=0)
"""Real: Redis expires by its own clock. The labels and forecasts are as of a while before."""
BTC = CurrentSignal(
    "KRW-BTC",
    regime="BULL",
    regime_as_of=NOW - 10 * MINUTE,
    annualized_volatility=0.625,
    is_high_volatility=True,
    volatility_as_of=NOW - 30 * MINUTE,
)
ETH = CurrentSignal(
    "KRW-ETH",
    regime="UNKNOWN",
    regime_as_of=NOW - 20 * MINUTE,
    annualized_volatility=0.875,
    is_high_volatility=False,
    volatility_as_of=NOW - 20 * MINUTE,
)
BTC_KEY, ETH_KEY = "market:regime:KRW-BTC", "market:regime:KRW-ETH"
STATE_KEY = "coinpilot:volatility_state"


@dataclass
class Server:
    """A running redis-server, with a client that sees what the bot would."""

    process: subprocess.Popen[str]
    url: str
    client: redis.Redis

    def keys(self) -> set[str]:
        return {str(key) for key in self.client.scan_iter()}

    def expires_at(self, key: str) -> datetime:
        return datetime.fromtimestamp(self.client.pexpiretime(key) / 1000, UTC)


@contextmanager
def running(*options: str) -> Iterator[Server]:
    """Run a server on a socket of its own, which persists nothing."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed: apt-get install redis-server")
    folder = Path(tempfile.mkdtemp(prefix="tpr"))  # a socket's path is short
    path = folder / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(
        [program, *arguments, *options], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            log = []
            for line in process.stdout:
                log.append(line)
                if "ready to accept connections" in line.lower():
                    break
            else:
                pytest.fail(f"redis-server does not start:\n{''.join(log)}")
            with redis.Redis(unix_socket_path=str(path), decode_responses=True) as client:
                yield Server(process, f"unix://{path}", client)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder)


@pytest.fixture(scope="session")
def session_store() -> Iterator[Server]:
    with running() as store:
        assert store.client.ping()
        yield store


@pytest.fixture
def store(session_store: Server) -> Server:
    """A server without keys."""
    session_store.client.flushall()
    return session_store


def test_the_bot_finds_each_label_as_text_and_the_state_of_one_symbol_as_json(
    store: Server,
) -> None:
    published = publish(store.url, [ETH, BTC], "KRW-BTC", TTL, NOW)
    assert set(published.keys) == store.keys() == {BTC_KEY, ETH_KEY, STATE_KEY}
    assert (published.stale, published.skipped) == ({}, None)
    assert store.client.get(BTC_KEY) == "BULL"
    assert store.client.get(ETH_KEY) == "UNKNOWN"
    assert json.loads(store.client.get(STATE_KEY) or "") == {
        "current_volatility": 0.625,
        "is_high_volatility": True,
        "timestamp": (NOW - 30 * MINUTE).strftime("%Y-%m-%dT%H:%M:%S+00:00"),
        "symbol": "KRW-BTC",
    }


def test_a_state_without_a_threshold_says_null(store: Server) -> None:
    publish(store.url, [replace(BTC, is_high_volatility=None)], "KRW-BTC", TTL, NOW)
    assert '"is_high_volatility": null' in str(store.client.get(STATE_KEY))


def test_keys_expire_by_the_as_of_of_what_they_say(store: Server) -> None:
    publish(store.url, [BTC, ETH], "KRW-BTC", TTL, NOW)
    ttl = timedelta(seconds=TTL)
    assert store.expires_at(BTC_KEY) == NOW - 10 * MINUTE + ttl
    assert store.expires_at(ETH_KEY) == NOW - 20 * MINUTE + ttl
    assert store.expires_at(STATE_KEY) == NOW - 30 * MINUTE + ttl
    assert 0 < store.client.ttl(BTC_KEY) <= TTL - 600


def test_publishing_again_replaces_the_value_and_the_expiry(store: Server) -> None:
    publish(store.url, [BTC], "KRW-BTC", TTL, NOW)
    newer = replace(BTC, regime="BEAR", regime_as_of=NOW)
    publish(store.url, [newer], "KRW-BTC", TTL, NOW)
    assert store.client.get(BTC_KEY) == "BEAR"
    assert store.expires_at(BTC_KEY) == NOW + timedelta(seconds=TTL)


def test_what_has_expired_is_reported_with_its_age_and_not_written(store: Server) -> None:
    ttl = timedelta(seconds=TTL)
    old = replace(BTC, regime_as_of=NOW - ttl, volatility_as_of=NOW - 2 * ttl)
    published = publish(store.url, [old, ETH], "KRW-BTC", TTL, NOW)
    assert published == Published((ETH_KEY,), {BTC_KEY: ttl, STATE_KEY: 2 * ttl})
    assert store.keys() == {ETH_KEY}
    a_second_younger = replace(old, regime_as_of=NOW - ttl + timedelta(seconds=1))
    assert publish(store.url, [a_second_younger], "KRW-BTC", TTL, NOW).keys == (BTC_KEY,)


def test_without_a_number_there_is_no_state_and_an_older_one_stays_until_it_expires(
    store: Server,
) -> None:
    none = replace(BTC, annualized_volatility=None, is_high_volatility=None)
    assert publish(store.url, [none], "KRW-BTC", TTL, NOW) == Published((BTC_KEY,))
    assert store.keys() == {BTC_KEY}
    publish(store.url, [BTC], "KRW-BTC", TTL, NOW)
    before = store.client.get(STATE_KEY), store.expires_at(STATE_KEY)
    publish(store.url, [replace(none, volatility_as_of=NOW)], "KRW-BTC", TTL, NOW)
    assert (store.client.get(STATE_KEY), store.expires_at(STATE_KEY)) == before


def test_no_other_symbol_stands_in_for_the_one_whose_state_is_asked_for(store: Server) -> None:
    assert publish(store.url, [ETH], "KRW-BTC", TTL, NOW) == Published((ETH_KEY,))
    assert store.keys() == {ETH_KEY}


def test_a_symbol_without_a_label_has_no_label(store: Server) -> None:
    unlabelled = replace(BTC, regime=None, regime_as_of=None)
    assert publish(store.url, [unlabelled], "KRW-BTC", TTL, NOW) == Published((STATE_KEY,))
    assert store.keys() == {STATE_KEY}


def test_the_database_of_the_url_is_used(store: Server) -> None:
    publish(f"{store.url}?db=3", [BTC], "KRW-BTC", TTL, NOW)
    assert store.keys() == set()
    with redis.Redis.from_url(f"{store.url}?db=3") as client:
        assert client.dbsize() == 2


def test_a_killed_redis_is_reported_and_what_is_stale_still_is() -> None:
    old = replace(ETH, regime_as_of=NOW - 2 * HOUR)
    with running() as server:
        assert publish(server.url, [BTC], "KRW-BTC", TTL, NOW).skipped is None
        server.process.kill()
        server.process.wait()
        published = publish(server.url, [BTC, old], "KRW-BTC", TTL, NOW)
    reason = "Redis can't be reached (ConnectionRefusedError)"
    assert published == Published((), {ETH_KEY: 2 * HOUR}, reason)


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("redis://:s3cret@127.0.0.1:1/0", "ConnectionRefusedError"),
        ("unix:///nowhere/redis.sock?password=s3cret", "FileNotFoundError"),
    ],
)
def test_no_redis_is_reported_without_the_url(url: str, cause: str) -> None:
    unreachable = Published(skipped=f"Redis can't be reached ({cause})")
    assert publish(url, [BTC], "KRW-BTC", TTL, NOW) == unreachable


def test_a_wrong_password_is_reported_without_it() -> None:
    with running("--requirepass", "s3cret") as server:
        right = f"{server.url}?password=s3cret"
        refused = Published(skipped="Redis refuses the user or the password")
        assert publish(server.url, [BTC], "KRW-BTC", TTL, NOW) == refused
        assert publish(f"{right}-not", [BTC], "KRW-BTC", TTL, NOW) == refused
        assert publish(right, [BTC], "KRW-BTC", TTL, NOW).keys == (BTC_KEY, STATE_KEY)


def test_a_redis_that_refuses_one_write_is_reported_and_has_none_of_them() -> None:
    with running() as server:
        server.client.acl_setuser(
            "bot", enabled=True, passwords=["+s3cret"], keys=["market:*"], categories=["+@all"]
        )
        url = f"{server.url}?username=bot&password=s3cret"
        published = publish(url, [BTC, ETH], "KRW-BTC", TTL, NOW)
        assert published == Published(skipped="Redis refuses the write (NOPERM)")
        assert server.keys() == set()
        assert publish(url, [BTC, ETH], "KRW-XRP", TTL, NOW).keys == (BTC_KEY, ETH_KEY)


def test_a_url_that_the_library_does_not_take_is_reported_without_it() -> None:
    for url in ("redis://:s3cret@cache:99999", "redis://cache?s3cret=1", "s3cret"):
        published = publish(url, [BTC], "KRW-BTC", TTL, NOW)
        assert str(published.skipped).startswith("REDIS_URL can't be used (")
        assert "s3cret" not in repr(published)


def test_a_hanging_redis_is_given_up_after_one_time_out() -> None:
    with running() as server:
        server.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        published = publish(server.url, [BTC], "KRW-BTC", TTL, NOW)
        took = time.monotonic() - started
        server.process.send_signal(signal.SIGCONT)
        assert published == Published(skipped="Redis does not answer within 2 s")
        assert TIMEOUT_SECONDS <= took < 2 * TIMEOUT_SECONDS
        assert publish(server.url, [BTC], "KRW-BTC", TTL, NOW).skipped is None


def test_nothing_to_say_needs_no_redis() -> None:
    assert publish("unix:///nowhere", [], "KRW-BTC", TTL, NOW) == Published()


THIS_HOUR = NOW.replace(minute=0, second=0)


def cover(connection: psycopg.Connection, *symbols: str) -> None:
    """Make the symbols known to the view, as a computed day of labels does."""
    for symbol in symbols:
        connection.execute(
            "INSERT INTO trading_pipelines.signal_coverage (asset, symbol, day, run_id) "
            "VALUES ('regime_labels', %s, %s, 'run')",
            [symbol, THIS_HOUR.date()],
        )


def label(connection: psycopg.Connection, symbol: str, **closed_ago: str) -> None:
    """Store labels of the hours that closed `h1`, `h2`, … hours before this one began."""
    for ago, regime in closed_ago.items():
        hour = THIS_HOUR - (int(ago.removeprefix("h")) + 1) * HOUR
        connection.execute(
            "INSERT INTO trading_pipelines.regime_labels (symbol, hour, label, diff_pct, candles, "
            "empty_hours, hysteresis_label) VALUES (%s, %s, %s, 2.5, 200, 0, %s)",
            [symbol, hour, regime, regime],
        )


def forecast(
    connection: psycopg.Connection,
    symbol: str,
    as_of: datetime,
    horizon: int,
    volatility: float | None,
    status: str = "OK",
) -> None:
    connection.execute(
        "INSERT INTO trading_pipelines.volatility_forecast (symbol, as_of, horizon, valid_until, "
        "model_day, status, annualized_volatility, is_high_volatility) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [symbol, as_of, horizon, as_of + horizon * HOUR, as_of.date(), status, volatility,
         None if volatility is None else volatility > 0.5],
    )  # fmt: skip


def test_the_reader_finds_the_newest_label_and_the_longest_of_the_newest_forecasts(
    connection: psycopg.Connection,
) -> None:
    cover(connection, "KRW-BTC")
    label(connection, "KRW-BTC", h0="BULL", h1="SIDEWAYS")
    forecast(connection, "KRW-BTC", THIS_HOUR - HOUR, 24, 0.125)
    forecast(connection, "KRW-BTC", THIS_HOUR, 1, 0.25)
    forecast(connection, "KRW-BTC", THIS_HOUR, 24, 0.75)
    before = datetime.now(UTC)
    (found,) = read_current_signals(connection, ["KRW-BTC"])
    after = datetime.now(UTC)
    assert found.regime_age is not None
    assert found.volatility_age is not None
    assert before - THIS_HOUR <= found.regime_age <= after - THIS_HOUR
    assert found.volatility_age == found.regime_age
    assert replace(found, regime_age=None, volatility_age=None) == CurrentSignal(
        "KRW-BTC",
        regime="BULL",
        regime_since=THIS_HOUR,
        regime_diff_pct=Decimal("2.5"),
        regime_as_of=THIS_HOUR,
        annualized_volatility=0.75,
        is_high_volatility=True,
        volatility_status="OK",
        volatility_horizon=24,
        volatility_as_of=THIS_HOUR,
        volatility_valid_until=THIS_HOUR + 24 * HOUR,
    )


@pytest.mark.parametrize(
    ("labels", "hours"),
    [
        ({"h0": "BULL"}, 0),
        ({"h3": "BULL", "h2": "BULL", "h1": "BULL", "h0": "BULL"}, 3),
        ({"h3": "BULL", "h2": "BEAR", "h1": "BULL", "h0": "BULL"}, 1),
        ({"h3": "BULL", "h2": "BULL", "h1": "UNKNOWN", "h0": "BULL"}, 0),
    ],
)
def test_a_regime_is_since_the_first_label_of_its_unbroken_run(
    connection: psycopg.Connection, labels: dict[str, str], hours: int
) -> None:
    cover(connection, "KRW-BTC")
    label(connection, "KRW-BTC", **labels)
    label(connection, "KRW-ETH", h0="BEAR", h1="BEAR")  # no business of the other's
    (found,) = read_current_signals(connection, ["KRW-BTC"])
    assert found.regime_since == THIS_HOUR - hours * HOUR
    assert found.regime_as_of == THIS_HOUR


def test_the_reader_keeps_the_order_and_leaves_out_symbols_without_any_signal(
    connection: psycopg.Connection,
) -> None:
    cover(connection, "KRW-BTC", "KRW-ETH", "KRW-SOL", "KRW-XRP")
    label(connection, "KRW-BTC", h0="BULL")
    label(connection, "KRW-XRP", h0="BEAR")
    forecast(connection, "KRW-SOL", THIS_HOUR, 24, None, "DEGENERATE")
    found = read_current_signals(
        connection, ["KRW-XRP", "KRW-ETH", "KRW-SOL", "KRW-DOGE", "KRW-BTC"]
    )
    assert [(one.symbol, one.regime, one.volatility_status) for one in found] == [
        ("KRW-XRP", "BEAR", None),
        ("KRW-SOL", None, "DEGENERATE"),
        ("KRW-BTC", "BULL", None),
    ]
    assert read_current_signals(connection, []) == []


def test_the_bot_finds_the_flag_of_the_horizon_that_is_published(
    connection: psycopg.Connection, store: Server
) -> None:
    cover(connection, "KRW-BTC")
    forecast(connection, "KRW-BTC", THIS_HOUR - HOUR, 6, 0.25)
    forecast(connection, "KRW-BTC", THIS_HOUR, 1, 0.125)
    forecast(connection, "KRW-BTC", THIS_HOUR, 24, 0.75)
    for horizon, volatility, is_high, as_of in (
        (None, 0.75, True, THIS_HOUR),
        (24, 0.75, True, THIS_HOUR),
        (1, 0.125, False, THIS_HOUR),
        (6, 0.25, False, THIS_HOUR - HOUR),
    ):
        signals = read_current_signals(connection, ["KRW-BTC"], horizon)
        publish(store.url, signals, "KRW-BTC", 48 * 3600, NOW)
        assert json.loads(store.client.get(STATE_KEY) or "") == {
            "current_volatility": volatility,
            "is_high_volatility": is_high,
            "timestamp": as_of.isoformat(),
            "symbol": "KRW-BTC",
        }
    store.client.flushall()
    signals = read_current_signals(connection, ["KRW-BTC"], 72)
    assert publish(store.url, signals, "KRW-BTC", 48 * 3600, NOW).keys == (), "no forecast, no flag"


def test_the_share_of_the_time_is_of_the_hours_with_a_forecast_in_30_days(
    connection: psycopg.Connection,
) -> None:
    for hours, volatility in ((0, 0.75), (1, 0.25), (2, 0.75), (3, None), (720, 0.75)):
        forecast(connection, "KRW-BTC", THIS_HOUR - hours * HOUR, 24, volatility)
    forecast(connection, "KRW-BTC", THIS_HOUR, 1, 0.25)
    forecast(connection, "KRW-BTC", THIS_HOUR + HOUR, 1, 0.75)
    forecast(connection, "KRW-ETH", THIS_HOUR, 1, 0.75)
    assert read_flag_shares(connection, "KRW-BTC", [24, 1, 6], THIS_HOUR) == [
        FlagShare(24, hours=4, hours_up=2),
        FlagShare(1, hours=1, hours_up=0),
        FlagShare(6, hours=0, hours_up=0),
    ]


def test_what_was_computed_arrives_at_the_bot(
    connection: psycopg.Connection, store: Server
) -> None:
    cover(connection, "KRW-BTC", "KRW-ETH")
    label(connection, "KRW-BTC", h0="SIDEWAYS")
    label(connection, "KRW-ETH", h48="BEAR")
    forecast(connection, "KRW-BTC", THIS_HOUR, 24, 0.25)
    signals = read_current_signals(connection, ["KRW-BTC", "KRW-ETH"])
    published = publish(store.url, signals, "KRW-BTC", 48 * 3600, NOW)
    assert published == Published((BTC_KEY, STATE_KEY), {ETH_KEY: NOW - THIS_HOUR + 48 * HOUR})
    assert store.client.get(BTC_KEY) == "SIDEWAYS"
    assert json.loads(store.client.get(STATE_KEY) or "") == {
        "current_volatility": 0.25,
        "is_high_volatility": False,
        "timestamp": THIS_HOUR.isoformat(),
        "symbol": "KRW-BTC",
    }
