"""One peer's session: when to dial, which of two connections stays, when one is dead or idle.

A connection is known by a number its owner gives it. Owns no bytes and no messages: what is under way survives the
connections, in `window.py`. Refuses to know sockets, and takes chance as an argument.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

FIRST_PAUSE, LONGEST_PAUSE, SPREAD = 0.1, 30.0, 0.2
HEARTBEAT = 10.0  # of silence, then the peer is asked whether it still exists
DEAD_AFTER = 30.0
SUSPECTED = 5.0  # what is left to it once something says that the path is gone
IDLE_AFTER = 15 * 60.0


class State(enum.Enum):
    IDLE = "idle"
    DIALLING = "dialling"
    OPEN = "open"
    BACKING_OFF = "backing off"


class Dial(NamedTuple):
    """Open a connection, then say `opened` or `failed`."""


class Ping(NamedTuple):
    """Ask the peer of this connection whether it still exists."""

    connection: int


class Close(NamedTuple):
    """End this connection: why says what to tell the peer."""

    connection: int
    why: str


Act = Dial | Ping | Close
DUPLICATE, DEAD, IDLE = "duplicate", "dead", "idle"


class _Open(NamedTuple):
    connection: int
    is_ours: bool
    epoch: str


class Session:
    """Of us with one peer. `acts` are to be done by whoever owns the sockets."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self.state = State.IDLE
        self._open: _Open | None = None
        self._is_wanted = False
        self._is_dialling = False  # whatever else is open meanwhile: nobody dials twice at once
        self._failures = 0
        self._retry_at = math.inf
        self._heard = self._used = 0.0
        self._ping_at = self._dead_at = math.inf
        self._acts: list[Act] = []

    @property
    def current(self) -> int:
        """The connection in use; 0 while there is none."""
        return self._open.connection if self._open is not None else 0

    # Wishes

    def want(self, now: float, *, wanted: bool = True) -> None:
        """Something is to be sent, or the program wishes to hear of this peer."""
        self._is_wanted = wanted
        if wanted and self.state is State.IDLE:
            self._dial()

    def use(self, now: float) -> None:
        """A message passed: the session is not idle."""
        self._used = now

    def hope(self) -> None:
        """The peer came online: what failed before says nothing any more."""
        self._failures = 0
        if self.state is State.BACKING_OFF:
            self._dial()

    def suspect(self, now: float) -> None:
        """Something says that the path changed or the peer went away: ask at once."""
        if self._open is not None:
            self._ask(now)
            self._dead_at = min(self._dead_at, now + SUSPECTED)

    # Connections

    def opened(self, connection: int, *, is_ours: bool, peer_id: str, epoch: str, now: float) -> bool:
        """Hellos were exchanged. False: another one stays, and this one is to be closed.

        Two dialled at once: that of the smaller id stays. One that was dialled again by the same side replaces the
        one before, and so does one from a new process of the peer's.
        """
        if is_ours:
            self._is_dialling = False
        before = self._open
        if before is not None and before.epoch == epoch and before.is_ours is not is_ours:
            ours_stays = self._own_id < peer_id
            if before.is_ours is ours_stays:
                self.suspect(now)  # that it was dialled again may mean that this one is dead
                return False
        if before is not None:
            self._acts.append(Close(before.connection, DUPLICATE))
        self._open = _Open(connection, is_ours, epoch)
        self.state = State.OPEN
        self._failures = 0
        self._retry_at = math.inf
        self._used = now
        self.heard(now)
        return True

    def heard(self, now: float) -> None:
        """Bytes came: it lives."""
        self._heard = now
        self._ping_at, self._dead_at = now + HEARTBEAT, now + DEAD_AFTER

    def closed(self, connection: int, now: float, chance: float, *, again: bool) -> None:
        """A connection ended. `again`: it broke, so whoever dialled it dials again, whatever is to be sent."""
        if self._open is None or self._open.connection != connection:
            return
        was_ours = self._open.is_ours
        self._open = None
        self._ping_at = self._dead_at = math.inf
        if self._is_dialling:
            self.state = State.DIALLING
        elif self._is_wanted or (again and was_ours):
            self._pause(now, chance)
        else:
            self.state = State.IDLE

    def failed(self, now: float, chance: float, *, again: bool) -> None:
        """A dial of ours came to nothing."""
        self._is_dialling = False
        if self._open is not None:
            return
        if again:
            self._pause(now, chance)
        else:
            self.state = State.IDLE

    def _pause(self, now: float, chance: float) -> None:
        """`chance` is between 0 and 1."""
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 30), LONGEST_PAUSE)
        self._failures += 1
        self.state = State.BACKING_OFF
        self._retry_at = now + pause * (1 - SPREAD + 2 * SPREAD * chance)

    def _dial(self) -> None:
        self.state = State.DIALLING
        self._is_dialling = True
        self._retry_at = math.inf
        self._acts.append(Dial())

    def _ask(self, now: float) -> None:
        assert self._open is not None
        self._acts.append(Ping(self._open.connection))
        self._ping_at = now + HEARTBEAT

    # Time

    def next_timer(self) -> float:
        idle_at = self._used + IDLE_AFTER if self._open is not None and not self._is_wanted else math.inf
        return min(self._retry_at, self._ping_at, self._dead_at, idle_at)

    def handle_timer(self, now: float) -> None:
        if self._retry_at <= now:
            self._dial()
        if self._open is None:
            return
        if self._dead_at <= now:
            self._acts.append(Close(self._open.connection, DEAD))
            self._ping_at = self._dead_at = math.inf
        elif self._ping_at <= now:
            self._ask(now)
        if not self._is_wanted and self._used + IDLE_AFTER <= now:
            self._acts.append(Close(self._open.connection, IDLE))
            self._used = now

    def take_messages(self) -> list[Act]:
        """What is to be done now."""
        acts, self._acts = self._acts, []
        return acts
