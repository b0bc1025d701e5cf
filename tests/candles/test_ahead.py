"""Questions asked side by side: answers in order, errors in their place, nothing after the end."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

import pytest

from trading_pipelines.candles.ahead import in_order

WAIT = 30


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_answers_come_in_the_order_of_the_questions_however_long_each_takes(
    executor: ThreadPoolExecutor,
) -> None:
    answered = [threading.Event() for _ in range(9)]

    def ask(number: int, _: threading.Event) -> int:
        # Each odd one waits for the one behind it, which is under way at the same time.
        if number % 2:
            assert answered[number + 1].wait(WAIT)
        answered[number].set()
        return number

    assert list(in_order(executor, ask, range(9), lambda: 3)) == list(range(9))


def test_the_first_is_asked_alone_and_then_never_more_than_are_allowed(
    executor: ThreadPoolExecutor,
) -> None:
    lock, at_work, most = threading.Lock(), 0, 0
    full = threading.Event()

    def ask(number: int, _: threading.Event) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
            if at_work == 4:
                full.set()
        if number:
            assert full.wait(WAIT)
        else:
            assert at_work == 1
        with lock:
            at_work -= 1
        return number

    answers = in_order(executor, ask, range(20), lambda: 4)
    assert next(answers) == 0
    assert list(answers) == list(range(1, 20))
    assert most == 4


def test_an_error_is_raised_in_its_place_and_calls_off_what_follows(
    executor: ThreadPoolExecutor,
) -> None:
    ended = []

    def ask(number: int, called_off: threading.Event) -> int:
        if number == 3:
            raise ValueError(number)
        if number > 3:
            assert called_off.wait(WAIT)
            ended.append(number)
        return number

    answers = in_order(executor, ask, count(), lambda: 5)
    assert list(islice(answers, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(answers)
    executor.shutdown()
    assert set(ended) <= {4, 5, 6, 7}
