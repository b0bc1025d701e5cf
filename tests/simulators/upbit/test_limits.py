"""The request limit, judged by times alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading_pipelines.simulators.upbit.limits import RateLimit


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=300), st.sampled_from([1, 3.0, 10.0]))
def test_no_rolling_second_holds_more_than_the_rate(gaps: list[float], rate: float) -> None:
    limit, now, admitted = RateLimit(rate), 0.0, list[float]()
    for gap in gaps:
        now += gap
        recent = [at for at in admitted if at > now - 1]
        verdict = limit.admit("me", now)
        if verdict.status == 200:
            admitted.append(now)
            assert verdict.remaining == rate - len(recent) - 1
            assert len(recent) < rate
        else:
            assert verdict.status == 418 or len(recent) == rate


def test_clients_do_not_share_a_limit() -> None:
    limit = RateLimit(1)
    assert [limit.admit(client, 0).status for client in "aab"] == [200, 429, 200]


def test_going_on_after_429_blocks_and_each_block_is_twice_as_long() -> None:
    limit = RateLimit(1)
    statuses = [limit.admit("me", 0.01 * n).status for n in range(8)]
    assert statuses == [200, 429, 429, 429, 429, 429, 418, 418]
    assert limit.admit("me", 1.05).status == 418
    assert limit.admit("me", 1.07).status == 200
    assert [limit.admit("me", 1.1).status for _ in range(6)][-1] == 418
    assert limit.admit("me", 3.0) == (418, 0, 1)
    assert limit.admit("me", 3.11).status == 200


def test_a_client_that_waits_between_refusals_is_not_blocked() -> None:
    limit = RateLimit(0.05)
    assert [limit.admit("me", 1.1 * n).status for n in range(12)] == [200] + [429] * 11


def test_no_rate_lets_everything_through() -> None:
    limit = RateLimit(None)
    assert {limit.admit("me", 0) for _ in range(100)} == {(200, 9, 0)}


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        RateLimit(rate)


def test_a_window_may_be_longer_than_a_second() -> None:
    limit = RateLimit(100 / 60, 60)
    assert {limit.admit("me", 0.5 * n).status for n in range(100)} == {200}
    assert limit.admit("me", 50).status == 429
    assert limit.admit("me", 60).status == 200
