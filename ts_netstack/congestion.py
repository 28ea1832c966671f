"""How much may be in flight: the small interface a connection needs, and CUBIC with HyStart++ behind it.

Windows are bytes outside, segments and float seconds inside: nothing can overflow. Knows no packets and no timers.
RFC 9438 (CUBIC), RFC 9406 (HyStart++), RFC 6928 (initial window).
"""

from __future__ import annotations

import math
from typing import Protocol

INITIAL_SEGMENTS = 10
MINIMUM_SEGMENTS = 2
C = 0.4
BETA = 0.7
ALPHA = 3 * (1 - BETA) / (1 + BETA)

MIN_RTT_THRESH, MAX_RTT_THRESH = 0.004, 0.016
MIN_RTT_DIVISOR = 8
N_RTT_SAMPLE = 8
CSS_GROWTH_DIVISOR = 4
CSS_ROUNDS = 5


class Congestion(Protocol):
    """What a connection asks of a congestion controller; all sizes in bytes."""

    window: int
    threshold: float

    def on_acknowledged(self, size: int, una: int, nxt: int, rtt: float, smoothed: float, now: float) -> None: ...

    def on_loss(self) -> None: ...

    def on_timeout(self) -> None: ...

    def on_idle(self) -> None: ...

    def on_limited_by_application(self, duration: float) -> None: ...

    def set_segment_size(self, size: int) -> None: ...

    def save(self) -> tuple[float, ...]: ...

    def undo(self, saved: tuple[float, ...]) -> None: ...


class Cubic:
    """One connection's window."""

    __slots__ = (
        "_before_loss",
        "_css_baseline",
        "_css_rounds",
        "_epoch",
        "_friendly",
        "_k",
        "_maximum",
        "_mss",
        "_round_end",
        "_round_minimum",
        "_round_minimum_before",
        "_round_samples",
        "threshold",
        "window",
    )

    def __init__(self, mss: int) -> None:
        self._mss = mss
        self.window = min(INITIAL_SEGMENTS * mss, max(2 * mss, 14600))
        self.threshold = math.inf
        self._maximum = 0.0  # W_max, in segments
        self._before_loss = 0.0  # cwnd_prior
        self._epoch = -1.0
        self._k = 0.0
        self._friendly = 0.0  # W_est
        self._round_end = 0
        self._round_minimum = self._round_minimum_before = math.inf
        self._round_samples = 0
        self._css_rounds = -1  # -1: not in conservative slow start
        self._css_baseline = math.inf

    def set_segment_size(self, size: int) -> None:
        self._mss = size

    def on_acknowledged(self, size: int, una: int, nxt: int, rtt: float, smoothed: float, now: float) -> None:
        """`size` bytes arrived while the window was in full use; `rtt` is 0 when this round trip may not be timed."""
        if self.window < self.threshold:
            self._slow_start(size, una, nxt, rtt)
        else:
            self._avoid_congestion(size, smoothed, now)

    def _slow_start(self, size: int, una: int, nxt: int, rtt: float) -> None:
        if una >= self._round_end:
            self._round_minimum_before, self._round_minimum = self._round_minimum, math.inf
            self._round_samples, self._round_end = 0, nxt
            if self._css_rounds >= 0:
                self._css_rounds += 1
                if self._css_rounds >= CSS_ROUNDS:
                    self.threshold = self.window
                    return
        if rtt > 0:
            self._round_samples += 1
            self._round_minimum = min(self._round_minimum, rtt)
            if self._round_samples >= N_RTT_SAMPLE:
                self._judge_delay()
        # Bursts are paced, so every acknowledged byte counts (RFC 9406 section 4.2: L is infinite).
        self.window += size if self._css_rounds < 0 else size // CSS_GROWTH_DIVISOR

    def _judge_delay(self) -> None:
        if self._css_rounds < 0:
            before = self._round_minimum_before
            if before == math.inf:
                return
            if self._round_minimum >= before + max(MIN_RTT_THRESH, min(before / MIN_RTT_DIVISOR, MAX_RTT_THRESH)):
                self._css_baseline, self._css_rounds = self._round_minimum, 0
        elif self._round_minimum < self._css_baseline:
            self._css_baseline, self._css_rounds = math.inf, -1

    def _avoid_congestion(self, size: int, smoothed: float, now: float) -> None:
        window = self.window / self._mss
        if self._epoch < 0:
            self._epoch = now
            self._friendly = window
            if window < self._maximum:
                self._k = ((self._maximum - window) / C) ** (1 / 3)
            else:
                self._k, self._maximum = 0.0, window
        acked = size / self._mss
        elapsed = now - self._epoch - self._k
        cubic_now = C * elapsed**3 + self._maximum
        target = min(max(C * (elapsed + smoothed) ** 3 + self._maximum, window), 1.5 * window)
        alpha = 1.0 if self._friendly >= self._before_loss else ALPHA
        self._friendly += alpha * acked / window
        if cubic_now < self._friendly:
            window = max(window, self._friendly)
        else:
            window += (target - window) / window * acked
        self.window = int(window * self._mss)

    def _back_off(self) -> None:
        window = self.window / self._mss
        # Fast convergence (RFC 9438 section 4.7): losing below the last maximum means somebody new wants a share.
        self._maximum = window * (1 + BETA) / 2 if window < self._maximum else window
        self._before_loss = window
        self._epoch = -1.0
        self._css_rounds = -1
        # The window and not what is in flight: growth stops while it is not used, so it is never stale by much.
        self.threshold = max(int(self.window * BETA), MINIMUM_SEGMENTS * self._mss)

    def on_loss(self) -> None:
        self._back_off()
        self.window = int(self.threshold)

    def on_timeout(self) -> None:
        self._back_off()
        self.window = self._mss

    def on_idle(self) -> None:
        """Nothing was sent for longer than a timeout: what we knew of the path is stale (RFC 5681 section 4.1)."""
        self.window = min(self.window, INITIAL_SEGMENTS * self._mss)
        self._epoch = -1.0

    def on_limited_by_application(self, duration: float) -> None:
        """Time without use does not count as time for growth (RFC 9438 section 5.8)."""
        if self._epoch >= 0:
            self._epoch += duration

    def save(self) -> tuple[float, ...]:
        return self.window, self.threshold, self._maximum, self._before_loss

    def undo(self, saved: tuple[float, ...]) -> None:
        """The loss was none: go back to what `save` returned, never below what has been reached since."""
        self.window = max(self.window, int(saved[0]))
        _, self.threshold, self._maximum, self._before_loss = saved
        self._epoch = -1.0
