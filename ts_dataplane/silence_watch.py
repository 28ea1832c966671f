"""When nothing comes from a peer that should: rules (a) and (b) of `path_states.py`.

Owns the moments of asking and the patience with each. Says that it is quiet; what follows is decided in `peer_ways.py`.
"""

from __future__ import annotations

import math

from ts_dataplane.heard_log import HeardOfPeer
from ts_dataplane.path_records import Record

SILENCE = 0.2  # (a): the least time for which nothing answers what asks for an answer
QUIET = 0.1  # (b): a stream that stops is asked about so soon ...
STREAM_RUNS = 3  # ... if so much of it came within the same time before
ONE_WAY_SPACING = 0.5  # (b): pings while we send and hear nothing at all
ROUNDING = 1e-6  # a timer set for exactly then may be early by that


class SilenceWatch:
    """One peer's."""

    __slots__ = (
        "_asked_since",
        "_heard",
        "_is_stream",
        "_quiet_asked_at",
        "_quiet_check_at",
        "_runs_at_check",
        "_sent_at",
    )

    def __init__(self, heard: HeardOfPeer) -> None:
        self._heard = heard
        self._asked_since = math.inf  # the first thing that asks for an answer since the peer was last heard
        self._sent_at = self._quiet_asked_at = -math.inf
        self._quiet_check_at = math.inf
        self._runs_at_check = 0
        self._is_stream = False  # much came within one look since it was last quiet

    def on_sent(self, record: Record | None, now: float, *, asks: bool) -> float | None:
        """User data left; `asks` where the peer's system answers it. Returns since when what was answered had been out.

        None where nothing was waited for, or it still is.
        """
        self._sent_at = now
        answered = None
        if asks:
            answered = self.take_answered()
            if self._asked_since == math.inf:
                self._asked_since = now
        if self._quiet_check_at == math.inf:
            self._check_at(now + self._quiet_patience(record))
        return answered

    def take_answered(self) -> float | None:
        """When that was sent which has been answered meanwhile."""
        if self._asked_since > self._heard.at:
            return None
        answered, self._asked_since = self._asked_since, math.inf
        return answered

    def stop(self) -> None:
        self._asked_since = self._quiet_check_at = math.inf

    def is_silent(self, record: Record | None, now: float) -> bool:
        """(a): what asks for an answer got none. Said once."""
        if now < self._silent_at(record):
            return False
        self._asked_since = math.inf
        return True

    def _silent_at(self, record: Record | None) -> float:
        return math.inf if record is None else self._asked_since + record.patience(SILENCE, 2.0, 4.0)

    @staticmethod
    def _quiet_patience(record: Record | None) -> float:
        return QUIET if record is None else record.patience(QUIET, 2.0, 4.0)

    def _check_at(self, at: float) -> None:
        self._quiet_check_at, self._runs_at_check = at, self._heard.runs

    def wants_ping(self, record: Record | None, now: float) -> bool:
        """(b): is the path to be asked, since nothing comes?"""
        if now < self._quiet_check_at:
            return False
        heard_at, patience = self._heard.at, self._quiet_patience(record)
        if now < heard_at + patience - ROUNDING:
            # While a stream flows this is all that happens, at most ten times a second.
            self._is_stream |= self._heard.runs - self._runs_at_check >= STREAM_RUNS
            self._check_at(heard_at + patience)
            return False
        is_sending = now - self._sent_at < ONE_WAY_SPACING
        again = max(heard_at, self._quiet_asked_at) + ONE_WAY_SPACING
        asks = self._is_stream or (is_sending and now >= again - ROUNDING)
        if asks:
            self._quiet_asked_at, again = now, now + ONE_WAY_SPACING
        self._is_stream = False
        self._check_at(max(again, now + patience) if is_sending else math.inf)
        return asks

    def next_timer(self, record: Record | None) -> float:
        return min(self._silent_at(record), self._quiet_check_at)
