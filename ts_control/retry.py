"""When to try again: upstream's back-off, `Retry-After`, and a bound on attempts that successes cannot reset.

Owns: the pauses. Refuses to know: what is being tried. Randomness is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from ts_control.errors import RequestRefused

UNIT = 0.010
LONGEST_PAUSE = 20.0  # with one connect deadline on top, a recovered server is found within 30 s
AT_LEAST = 1.0  # of a longer pause, after an attempt that itself took as long
BURST = 8  # attempts that may come faster than one per second
RETRY_AFTER_LIMIT = 3600.0
NO_SUCH_HASTE = (5.0, 10.0)  # after a 429 that names no time


class Backoff:
    """Pauses of n squared times 10 ms, spread by half, and never more than one attempt per second for long.

    A pause counts from the start of the attempt: one that took ten seconds to fail has waited ten seconds already.
    """

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._failures = 0
        self._started_at: float | None = None
        self._budget_at = 0.0  # each attempt moves it one second; it may run BURST seconds ahead of the clock

    def failed(self, now: float, retry_after: float | None = None) -> float:
        """When the next attempt may start."""
        self._failures += 1
        if retry_after is not None:
            return now + retry_after
        pause = min(self._failures**2 * UNIT * (0.5 + self._fraction()), LONGEST_PAUSE)
        began = now if self._started_at is None else self._started_at
        return max(began + pause, now + min(pause, AT_LEAST), self._budget_at - BURST)

    def started(self, now: float) -> None:
        """An attempt begins now."""
        self._started_at = now
        self._budget_at = max(self._budget_at, now) + 1.0

    def succeeded(self) -> None:
        self._failures = 0

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._fraction()

    def _fraction(self) -> float:
        return int.from_bytes(self._entropy(4), "big") / 2**32


def pause_from_retry_after(text: str, wall_now: float, fallback: float) -> float:
    """The pause a `Retry-After` header asks for, in seconds or as a date; `fallback` when it asks for nothing sane."""
    text = text.strip()
    pause = -1.0
    if text.isascii() and text.isdigit() and len(text) < 8:
        pause = float(text)
    elif text:
        try:
            pause = datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp() - wall_now
        except ValueError:
            return fallback
    return pause if 0 <= pause <= RETRY_AFTER_LIMIT else fallback


def pause_asked_for(problem: RequestRefused, wall_now: float, backoff: Backoff) -> float | None:
    """How long a refusal asks us to wait: a 429 always does (RFC 6585 section 4), a 5xx with `Retry-After` (RFC 9110
    section 10.2.3); None when that is ours to choose.
    """
    if problem.status == 429:
        return pause_from_retry_after(problem.retry_after, wall_now, backoff.between(*NO_SUCH_HASTE))
    asked = pause_from_retry_after(problem.retry_after, wall_now, -1.0) if problem.status >= 500 else -1.0
    return asked if asked >= 0 else None
