"""Turns to download, over the real Postgres: each session is a run's."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import psycopg
import pytest

from trading_pipelines.candles.turns import turn
from trading_pipelines.database.connection import connect


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_next_run_asks_when_the_one_before_has_ended_in_whatever_way(
    market_url: str, *, is_killed: bool
) -> None:
    waits, has_it, said = Event(), Event(), list[str]()

    def wait_for_turn() -> None:
        with connect(market_url) as other, turn(other, waits.set, said.append):
            has_it.set()

    with connect(market_url) as connection, ThreadPoolExecutor() as threads:
        first = turn(connection)
        first.__enter__()
        second = threads.submit(wait_for_turn)
        assert waits.wait(60)
        assert not has_it.is_set()
        if is_killed:
            connection.close()
        else:
            first.__exit__(None, None, None)
        assert has_it.wait(60)
        second.result()
    assert said == ["ready; another run of a backfill downloads first"], "once"


def test_a_run_that_is_called_off_waits_no_longer(market_url: str) -> None:
    def call_off() -> None:
        raise InterruptedError

    with connect(market_url) as one, connect(market_url) as other, turn(one):
        with pytest.raises(InterruptedError), turn(other, call_off):
            pytest.fail("it is not its turn")
        with connect(market_url) as third, pytest.raises(InterruptedError), turn(third, call_off):
            pytest.fail("the turn is still the first one's")


def test_whoever_hangs_is_not_waited_for_and_keeps_what_is_his(market_url: str) -> None:
    with connect(market_url) as hung, connect(market_url) as other, turn(hung):
        with turn(other, longest_wait=0.0):
            pass
        assert locks(hung) == 1
    with connect(market_url) as connection:
        assert locks(connection) == 0


def test_a_turn_that_is_given_back_early_is_the_next_ones_alone(market_url: str) -> None:
    with connect(market_url) as one, connect(market_url) as other:
        with turn(one) as give_back:
            give_back()
            its_turn = turn(other, impatient)
            its_turn.__enter__()
            give_back()
            assert locks(one) == 1
        assert locks(one) == 1
        its_turn.__exit__(None, None, None)
        assert locks(one) == 0


def impatient() -> None:
    pytest.fail("it waits")


def locks(connection: psycopg.Connection) -> int:
    query = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
        (SELECT oid FROM pg_database WHERE datname = current_database())"""
    (number,) = connection.execute(query).fetchone() or (0,)
    return int(number)
