"""How much of a window may leave in one burst, so that no queue on the way sees it whole.

A token bucket filled at a little more than the congestion window per round trip. Knows neither segments nor loss.
"""

from __future__ import annotations

import math

from ts_netstack.congestion import Congestion

FLOOR = 64 << 10  # bytes that may always leave together
CEILING = 512 << 10
QUANTUM = 0.004  # seconds of sending that may leave together
SHORTEST_WAIT = 0.0005
UNPACED_ROUND_TRIP = 0.001  # below this acknowledgements alone are a fine enough clock
STARTING_GAIN, STEADY_GAIN = 2.0, 1.25


class Pacer:
    """`deadline` is when waiting for tokens ends, infinity when nothing waits."""

    __slots__ = ("_filled_at", "_tokens", "deadline")

    def __init__(self) -> None:
        self._tokens = float(FLOOR)
        self._filled_at = 0.0
        self.deadline = math.inf

    def allowance(self, congestion: Congestion, smoothed: float, now: float) -> int:
        """Bytes that may leave in this burst."""
        if smoothed < UNPACED_ROUND_TRIP:
            self._tokens, self._filled_at = float(CEILING), now
            return CEILING
        rate = pacing_rate(congestion, smoothed)
        burst = min(max(rate * QUANTUM, FLOOR), CEILING)
        self._tokens = min(self._tokens + rate * (now - self._filled_at), burst)
        self._filled_at = now
        return int(self._tokens)

    def spend(self, size: int) -> None:
        self._tokens -= size

    def wait_for(self, wanted: int, congestion: Congestion, smoothed: float, now: float) -> None:
        """More would leave but for the tokens: ask to be called when about `wanted` bytes may."""
        if smoothed < UNPACED_ROUND_TRIP:
            self.deadline = now
            return
        missing = min(float(wanted), FLOOR / 2) - self._tokens
        self.deadline = now + max(missing / pacing_rate(congestion, smoothed), SHORTEST_WAIT)


def pacing_rate(congestion: Congestion, smoothed: float) -> float:
    """Bytes a second."""
    gain = STARTING_GAIN if congestion.window < congestion.threshold else STEADY_GAIN
    return max(gain * congestion.window / smoothed, 1.0)
