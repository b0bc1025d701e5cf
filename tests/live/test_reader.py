"""The reader's process beside the replay exchange with a stream and the real Postgres."""

import json
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg

from tests.candles.conftest import RecordedRows, differences, stored_rows
from tests.conftest import SYMBOLS
from tests.live.conftest import DAY, Exchange, Start, edge_row, until, wanted_rows
from trading_pipelines.candles import coverage

Seen = dict[tuple[str, datetime], set[tuple[Decimal, ...]]]


def at(hour: int, minute: int = 0, second: float = 0) -> datetime:
    return datetime(2025, 9, 3, hour, minute, tzinfo=UTC) + timedelta(seconds=second)


def newest(connection: psycopg.Connection) -> datetime | None:
    row = connection.execute("SELECT max(timestamp) FROM market_data").fetchone()
    return row[0] if row else None


def reaches(connection: psycopg.Connection, end: datetime) -> bool:
    """Whether every symbol's minutes are there and REST's until `end`."""
    return all(
        known.fetched_until >= end for known in coverage.read(connection, SYMBOLS, [end.date()])
    )


def watched(url: str, stop: threading.Event, seen: Seen) -> None:
    """Read the newest rows as the bot does, again and again, and keep each that was seen."""
    with psycopg.connect(url, autocommit=True) as bot:
        while not stop.is_set():
            for symbol in SYMBOLS:
                for start, *values in bot.execute(
                    "SELECT timestamp, open_price, high_price, low_price, close_price, volume "
                    "FROM market_data WHERE symbol = %s ORDER BY timestamp DESC LIMIT 3", [symbol],
                ):  # fmt: skip
                    seen.setdefault((symbol, start), set()).add(tuple(values))
            time.sleep(0.02)


def test_an_hours_last_minute_is_there_at_once_and_the_hour_when_rest_has_confirmed_it(
    exchange: Exchange,
    start: Start,
    connection: psycopg.Connection,
    recorded_rows: RecordedRows,
    market_url: str,
) -> None:
    exchange.replay.set_clock(at(11, 59, 50))
    stop, seen = threading.Event(), Seen()
    bot = threading.Thread(target=watched, args=(market_url, stop, seen))
    bot.start()
    reader = start()
    until(lambda: newest(connection) == at(11, 59), reader.said)
    lag = exchange.now() - at(12)
    assert timedelta(seconds=2) <= lag < timedelta(seconds=4), lag
    known = coverage.read(connection, SYMBOLS, [DAY])
    assert {day.provisional_until for day in known if day.streamed} == {at(12)}
    assert {day.status for day in known} == {"partial"}
    assert all(day.fetched_until < at(12) for day in known)

    hours = "SELECT count(DISTINCT symbol) FROM trading_pipelines.candles_1h WHERE timestamp = %s"
    until(lambda: connection.execute(hours, [at(11)]).fetchone() == (5,), reader.said)
    assert exchange.now() - at(12) < timedelta(seconds=15)
    rows = recorded_rows(SYMBOLS, [DAY])
    assert differences(stored_rows(connection), wanted_rows(rows, at(12))) == []
    known = coverage.read(connection, SYMBOLS, [DAY])
    assert {(day.fetched_until, day.complete, day.hours_current) for day in known} == {
        (at(12), False, True)
    }
    stop.set()
    bot.join()
    # What the bot saw of a minute was the whole minute, and nothing else, ever.
    assert {key: {rows[key]} for key in seen} == seen
    edge = edge_row(connection)
    assert (edge["problem"], edge["reconnects"]) == (None, 0)
    assert edge["connected_since"] < edge["last_message_at"] <= edge["updated_at"]
    assert reader.kill(signal.SIGTERM) == 0


def test_a_reader_that_is_killed_and_started_again_leaves_the_recording(
    exchange: Exchange, start: Start, connection: psycopg.Connection, recorded_rows: RecordedRows
) -> None:
    exchange.replay.set_clock(at(3, 9, 45))
    reader = start()
    until(lambda: newest(connection) is not None, reader.said)
    reader.kill()
    exchange.replay.set_clock(at(3, 14, 50))
    reader.start()
    until(lambda: newest(connection) == at(3, 14), reader.said)
    reader.kill()
    reader.start()
    until(lambda: reaches(connection, at(3, 15)), reader.said)
    wanted = wanted_rows(recorded_rows(SYMBOLS, [DAY]), at(3, 15))
    assert differences(stored_rows(connection), wanted) == []


def test_cuts_doubles_garbage_and_other_markets_leave_the_recording(
    exchange: Exchange, start: Start, connection: psycopg.Connection, recorded_rows: RecordedRows
) -> None:
    count = 0

    def spoil(message: dict[str, Any]) -> list[str | bytes]:
        nonlocal count
        count += 1
        text = json.dumps(message)
        if count % 40 == 0:
            exchange.cut()
        impossible = message | {"low_price": message["high_price"] * 2}
        return [
            text[: len(text) // 2], b"\xff\xfe", text, text.encode(),
            json.dumps(message | {"code": "KRW-NONE"}), json.dumps(impossible),
            '{"status":"UP"}', json.dumps(message | {"type": "trade"}),
        ]  # fmt: skip

    exchange.spoil = spoil
    exchange.replay.set_clock(at(5, 19, 45))
    reader = start()
    until(lambda: reaches(connection, at(5, 20)), reader.said, 60)
    assert exchange.opened > 2
    wanted = wanted_rows(recorded_rows(SYMBOLS, [DAY]), at(5, 20))
    stored = {key: row for key, row in stored_rows(connection).items() if key[1] < at(5, 20)}
    assert differences(stored, wanted) == []


def test_an_exchange_without_a_stream_is_asked_by_rest_each_minute_and_said_once(
    exchange: Exchange, start: Start, connection: psycopg.Connection, recorded_rows: RecordedRows
) -> None:
    exchange.has_stream = False
    exchange.replay.set_clock(at(7, 0, 50))
    reader = start()
    until(lambda: reaches(connection, at(7, 1)), reader.said, 40)
    wanted = wanted_rows(recorded_rows(SYMBOLS, [DAY]), at(7, 1))
    assert differences(stored_rows(connection), wanted) == []
    assert [line for line in reader.said() if "404" in line] == reader.said()
    assert len(reader.said()) == 1
    assert "HTTP 404" in edge_row(connection)["problem"]


def test_silence_is_a_reason_to_connect_again(
    exchange: Exchange, start: Start, connection: psycopg.Connection
) -> None:
    exchange.replay.set_clock(at(9, 0, 5))
    reader = start(settings="live: {silence_seconds: 5}\n")
    until(lambda: exchange.opened == 1 and edge_row(connection).get("last_message_at"), reader.said)
    exchange.is_silent = True
    until(lambda: exchange.opened > 1, reader.said)
    exchange.is_silent = False
    until(lambda: edge_row(connection)["reconnects"] >= 1, reader.said)
    assert any("no trade of any symbol was shown for 5 s" in line for line in reader.said())


def test_a_database_that_was_away_gets_the_minute(
    exchange: Exchange, start: Start, connection: psycopg.Connection
) -> None:
    exchange.replay.set_clock(at(10, 2, 40))
    reader = start()
    until(lambda: reaches(connection, at(10, 2)), reader.said)
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    until(lambda: newest(connection) == at(10, 2), reader.said, 40)
    assert reader.process.poll() is None


def test_a_second_reader_waits_until_the_first_has_ended(
    exchange: Exchange, start: Start, connection: psycopg.Connection
) -> None:
    exchange.replay.set_clock(at(13, 0, 20))
    first = start("first")
    until(lambda: edge_row(connection).get("connected_since"), first.said)
    second = start("second")
    until(second.said, "the second says nothing")
    assert "waiting: another live works on the database of DATABASE_URL" in second.said()[0]
    assert exchange.opened == 1
    first.kill()
    until(lambda: exchange.opened == 2, second.said)


def test_switched_off_it_reads_nothing_and_says_so(
    exchange: Exchange, start: Start, connection: psycopg.Connection
) -> None:
    reader = start(settings="live: {enabled: false}\n")
    until(lambda: edge_row(connection), reader.said)
    assert edge_row(connection)["problem"] == "switched off by the settings"
    assert exchange.opened == 0
