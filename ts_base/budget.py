"""A token bucket: the one way every room bounds what others may make it do. Knows no clock: `now` decides."""

from __future__ import annotations

import math


class Budget:
    """`burst` at once, `rate` per second in the long run. Begins full; a clock that stands still refills nothing."""

    __slots__ = ("_burst", "_filled_at", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled_at = -math.inf

    def take(self, now: float) -> bool:
        """Spend one token, if there is one."""
        if now > self._filled_at:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def is_full(self, now: float) -> bool:
        """Whether nobody has spent anything lately: such a bucket may be forgotten."""
        return self._tokens + (now - self._filled_at) * self._rate >= self._burst
