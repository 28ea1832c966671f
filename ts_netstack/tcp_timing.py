"""How long a round trip takes and how long to wait for an answer (RFC 6298).

Owns SRTT, RTTVAR, the timeout with its back-off and a windowed minimum. Knows no sequence numbers: who may be
sampled (Karn) is the caller's business.
"""

from __future__ import annotations

import math

INITIAL_TIMEOUT = 1.0
TIMEOUT_AFTER_LOST_SYN = 3.0  # RFC 6298 section 5.7
MINIMUM_VARIANCE = 0.2  # applied to the 4 RTTVAR term, as Linux does: steps in delay are common when paths change
MAXIMUM_TIMEOUT = 120.0
MINIMUM_WINDOW = 300.0  # how long a minimum is believed (RFC 8985 section 6.2 asks for minutes)
GRANULARITY = 0.001


class RoundTrip:
    """One connection's estimate; `smoothed` is 0.0 until the first sample."""

    __slots__ = ("_minimum_at", "_timeout", "backoff", "minimum", "smoothed", "variance")

    def __init__(self) -> None:
        self.smoothed = self.variance = 0.0
        self.minimum = math.inf
        self._minimum_at = -math.inf
        self._timeout = INITIAL_TIMEOUT
        self.backoff = 0

    def sample(self, value: float, now: float) -> None:
        if value <= self.minimum or now - self._minimum_at > MINIMUM_WINDOW:
            self.minimum, self._minimum_at = value, now
        if self.smoothed == 0.0:
            self.smoothed, self.variance = max(value, 1e-6), value / 2
        else:
            self.variance += (abs(self.smoothed - value) - self.variance) / 4
            self.smoothed += (value - self.smoothed) / 8
        self._timeout = self.smoothed + max(MINIMUM_VARIANCE, GRANULARITY, 4 * self.variance)

    @property
    def timeout(self) -> float:
        return min(self._timeout * (1 << min(self.backoff, 20)), MAXIMUM_TIMEOUT)

    def syn_was_lost(self) -> None:
        self._timeout = max(self._timeout, TIMEOUT_AFTER_LOST_SYN)
