"""Loaded by every Python process under libfaketime, whose clock_nanosleep fails with EINVAL.

Python's time.sleep asks it for an absolute time of the monotonic clock, which is left as it is.
"""

import select
import time


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
