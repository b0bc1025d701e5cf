"""Asking for several things side by side and taking the answers in order.

What is asked, and how many are worth it, belongs in `exchange`.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from threading import Event
from typing import TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


def in_order(
    executor: Executor,
    ask: Callable[[Q, Event], A],
    questions: Iterable[Q],
    how_many: Callable[[], int],
    at_first: int = 1,
) -> Generator[A, None, None]:
    """Yield the answer to each question in order, with up to `how_many()` asked side by side.

    Until the first was answered that is `at_first`: of an unknown end, only an answer says that
    more are worth asking. An error is raised where its answer would have come. When the iterator
    ends, for whatever reason, what is still being asked finds its event set, and its answer is
    lost.
    """
    waiting: deque[Future[A]] = deque()
    remaining = iter(questions)
    called_off = Event()
    side_by_side = at_first
    try:
        while True:
            while len(waiting) < side_by_side:
                try:
                    question = next(remaining)
                except StopIteration:
                    break
                waiting.append(executor.submit(ask, question, called_off))
            if not waiting:
                return
            yield waiting.popleft().result()
            side_by_side = how_many()
    finally:
        called_off.set()
        for future in waiting:
            future.cancel()
