"""When an exit is not trusted any more: a breaker that blames a silent tunnel, and never a target.

Owns one exit's failures, and when it may be tried again. Refuses to know which exit that is, and what a connection is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

SILENCE, TARGETS = "its tunnel is silent", "its way out is silent: too many targets in a row timed out"

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """How much an exit may fail before it is left alone for a while.

    - `failures`: dials in a row during which its tunnel gave no authenticated packet at all.
    - `targets`, `window`: so many different targets timed out within so many seconds, and nothing worked between.
    - `open_for`, `longest`: seconds it is then left alone; doubled each time a trial fails, up to the longest.

    What a target says, a refusal, a reset, no such name, is never counted, nor one target that is silent.
    """

    failures: int = 3
    targets: int = 3
    window: float = 30.0
    open_for: float = 10.0
    longest: float = 300.0

    def __post_init__(self) -> None:
        if self.failures < 1 or self.targets < 1:
            raise ValueError("failures= and targets= of a Breaker are counts: at least 1")
        if not self.window > 0 or not 0 < self.open_for <= self.longest < math.inf:
            raise ValueError("window=, open_for= and longest= of a Breaker are seconds, and open_for= is the shorter")


USUAL = Breaker()


class ExitBreaker:
    """One exit's. Closed it lets everybody pass, open nobody; half-open, once its time is over, one at a time."""

    __slots__ = ("_cause", "_limits", "_silent", "_timed_out", "_trial", "openings", "until")

    def __init__(self, limits: Breaker) -> None:
        self._limits = limits
        self._silent = 0  # failures of the tunnel since it last spoke
        self._timed_out: dict[str, float] = {}  # targets, and when; fewer than `targets`, for that many open it
        self._trial = False
        self._cause = ""
        self.openings = 0  # since something worked
        self.until = -math.inf  # while open; what the clock says is never before the beginning

    def state(self, now: float) -> State:
        if not self._cause:
            return "closed"
        return "half-open" if now >= self.until else "open"

    @property
    def cause(self) -> str:
        """Why it is not closed; empty when it is."""
        return self._cause

    @property
    def failures(self) -> int:
        """Counted against the exit, and not yet enough to open."""
        return self._silent + len(self._timed_out)

    def may_pass(self, now: float) -> bool:
        return not self._cause or (now >= self.until and not self._trial)

    def begin(self, now: float) -> bool:
        """Somebody dials. True if that is the one trial of a half-open breaker, which one of the verbs below ends."""
        if not self._cause:
            return False
        is_trial = now >= self.until and not self._trial
        self._trial = self._trial or is_trial
        return is_trial

    def let_go(self) -> None:
        """A trial ended, and nothing was learnt of the exit: the next one may try."""
        self._trial = False

    def heard(self) -> bool:
        """The tunnel spoke. True if that closes it."""
        self._silent = 0
        return self._close() if self._cause == SILENCE else False

    def succeeded(self) -> bool:
        """A connection was made. True if that closes it."""
        self._silent, self.openings = 0, 0
        self._timed_out.clear()
        return self._close()

    def fell_silent(self, now: float, *, is_trial: bool = False) -> bool:
        """A dial failed, and the tunnel gave nothing meanwhile. True if that opens it."""
        self._silent += 1
        return self._open(SILENCE, now, is_trial, self._silent >= self._limits.failures)

    def timed_out(self, target: str, now: float, *, is_trial: bool = False) -> bool:
        """A target did not answer, though the tunnel spoke. True if that opens it."""
        oldest = now - self._limits.window
        self._timed_out = {name: at for name, at in self._timed_out.items() if at > oldest} | {target: now}
        return self._open(TARGETS, now, is_trial, len(self._timed_out) >= self._limits.targets)

    def _open(self, cause: str, now: float, is_trial: bool, is_enough: bool) -> bool:
        """One failed trial is enough. A dial that began before it opened is no news."""
        if not is_trial and (self._cause or not is_enough):
            return False
        self._cause, self._trial = cause, False
        self.until = now + min(self._limits.open_for * 2 ** min(self.openings, 32), self._limits.longest)
        self.openings += 1
        self._timed_out.clear()
        self._silent = 0
        return True

    def _close(self) -> bool:
        was_open, self._cause, self._trial = bool(self._cause), "", False
        return was_open
