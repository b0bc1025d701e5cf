"""Upbit's request limit: who is let through, who is told to slow down, and who is blocked.

Here belongs the decision by time alone; what the refusals look like belongs to `faults`.
"""

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

_PATIENCE = 5  # refused requests within a second of one another, before a block
_FIRST_BLOCK_SECONDS = 1.0


class RateLimitDecision(NamedTuple):
    """`status` 200, 429 or 418; requests left in this second; seconds to wait out a block."""

    status: int
    remaining: int
    retry_after: int = 0


@dataclass
class _Client:
    admitted: deque[float] = field(default_factory=deque)
    refused: int = 0
    refused_at: float = -math.inf
    blocked_until: float = -math.inf
    next_block: float = _FIRST_BLOCK_SECONDS


class RateLimit:
    """A strict rolling window per client address; not thread-safe.

    A refused request does not count against the window. More than five refused in a row, each
    within a second of the one before, block the client; every further block lasts twice as long.
    """

    def __init__(self, rate: float | None, seconds: float = 1.0) -> None:
        """`rate` in requests a second, which must be positive; None lets everything through.

        The window has `seconds`, or as many more as one request needs.
        """
        if rate is not None and not 0 < rate < math.inf:
            message = f"rate {rate} requests a second; give a positive number, or None for no limit"
            raise ValueError(message)
        self._allowed = max(1, int(rate * seconds)) if rate else 0
        self._window = self._allowed / rate if rate else 0.0
        self._clients: defaultdict[str, _Client] = defaultdict(_Client)

    def admit(self, client: str, now: float) -> RateLimitDecision:
        """Decide on a request that arrives at `now` (monotonic seconds, never backwards)."""
        if not self._allowed:
            return RateLimitDecision(200, 9)
        state = self._clients[client]
        if now < state.blocked_until:
            return RateLimitDecision(418, 0, math.ceil(state.blocked_until - now))
        while state.admitted and state.admitted[0] <= now - self._window:
            state.admitted.popleft()
        if len(state.admitted) < self._allowed:
            state.admitted.append(now)
            return RateLimitDecision(200, self._allowed - len(state.admitted))
        state.refused = state.refused + 1 if now - state.refused_at <= 1 else 1
        state.refused_at = now
        if state.refused <= _PATIENCE:
            return RateLimitDecision(429, 0)
        state.refused = 0
        state.blocked_until = now + state.next_block
        state.next_block *= 2
        return RateLimitDecision(418, 0, math.ceil(state.blocked_until - now))
