"""Loaded by every Python process under libfaketime, whose clock_nanosleep fails with EINVAL.

Python's time.sleep asks it for an absolute time of the monotonic clock, which is left as it is.
"""

import select
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex, /) -> None:
    select.select([], [], [], float(seconds))


time.sleep = _sleep
