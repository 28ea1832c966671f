"""What the sockets of one Stack tell it: who has something to send, who changed, who is finished, what was dropped.

Owns what all sockets have in common, and no behaviour beyond counting: it is how sockets stay ignorant of the stack
that holds them, and the stack of who holds them.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from ts_base.budget import Budget
from ts_base.who import Hop, Lanes, PeerId
from ts_netstack.tcp_states import State

CHALLENGES_PER_SECOND = 1000
GROWTH_LIMIT = 256 << 20  # bytes of receive window that all connections together may add to their initial ones


class Owner(Protocol):
    """Who holds a socket, as the packet loop knows it."""

    def wake(self) -> None:
        """The socket changed: look again."""

    def shut(self) -> None:
        """The stack ends: nothing will ever change again."""


class Socket:
    """`owner` is the holder's slot; sockets never look at it. Whoever takes the stack's messages wakes it."""

    __slots__ = ("owner",)

    def __init__(self) -> None:
        self.owner: Owner | None = None


class Sender(Protocol):
    """What the stack asks of a connection that has something to send or has ended."""

    key: bytes
    hop: Hop
    state: State

    @property
    def has_bulk(self) -> bool: ...
    def set_large(self, mss: int) -> None: ...
    @property
    def is_worth_dividing(self) -> bool: ...
    def emit(self, now: float) -> list[bytes]: ...
    def emit_by(self, lanes: Lanes, now: float) -> list[bytes]: ...
    def deadline(self) -> float: ...
    def last_numbers(self) -> tuple[int, int, int | None]: ...


RESENT_LIMIT = 256  # destinations


class Ledger:
    """Shared by a Stack and its sockets. Dicts stand for ordered sets, so that a replay is the same byte for byte."""

    __slots__ = (
        *("challenges", "changed", "closed", "dirty", "drops", "exits"),
        *("finished", "growth_left", "resent", "retransmitted", "strays", "verify"),
    )

    def __init__(self, verify: bool) -> None:
        self.verify = verify  # check inbound checksums: off when an AEAD vouches for every byte
        self.drops: Counter[str] = Counter()
        self.dirty: dict[Sender, None] = {}
        self.changed: dict[Socket, None] = {}
        self.finished: dict[Sender, None] = {}
        self.closed: list[Socket] = []  # whose ports are free again
        self.strays: list[bytes] = []  # packets a connection got by its ports that are not whole segments
        self.challenges = Budget(CHALLENGES_PER_SECOND, CHALLENGES_PER_SECOND)
        self.growth_left = GROWTH_LIMIT
        self.resent: dict[bytes, int] = {}
        self.retransmitted = 0  # segments, of all connections that ever were
        self.exits: Counter[PeerId] = Counter()  # how much of what lives was opened through each peer by name

    def note_resent(self, remote: bytes, count: int) -> None:
        """Bytes had to be sent again; where nobody asks for it, to so many places and no more."""
        self.retransmitted += 1
        if remote in self.resent or len(self.resent) < RESENT_LIMIT:
            self.resent[remote] = self.resent.get(remote, 0) + count

    def enter_exit(self, via: PeerId) -> None:
        """Something was opened through `via`, if that is anybody."""
        if via:
            self.exits[via] += 1

    def leave_exit(self, via: PeerId) -> None:
        """It will say and hear nothing more: once for each `enter_exit`."""
        if via:
            self.exits[via] -= 1
            if not self.exits[via]:
                del self.exits[via]
