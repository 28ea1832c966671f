"""All updates of one lock, forks included, and which of them are in force.

Owns: what may be added, the choice at a fork, and what one side of a conversation lacks. Refuses to know: who is asked
for updates (`tailscale/runtime/lock_keeper.py`, `ts_control/server_lock.py`) and where they are kept.
Rules: upstream's tka/tka.go and sync.go. History is never thrown away, so a branch that revokes can fork anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ts_base.errors import BadPacket
from ts_lock.state import LockState, first_state
from ts_lock.updates import Kind, Update

MAX_UPDATES = 2000  # of one lock, forks included; upstream walks no further either
MAX_ANCESTORS = 64  # named in an offer
SPARSE = 4  # every fourth ancestor is named in an offer, then ever fewer


class Chain:
    """A lock. Begin one with its first update; `add` is all or nothing."""

    def __init__(self, genesis: Update) -> None:
        state = first_state(genesis)
        self.genesis = genesis
        self._updates: dict[bytes, Update] = {genesis.hash: genesis}
        self._states: dict[bytes, LockState] = {genesis.hash: state}
        self._children: dict[bytes, list[bytes]] = {}
        self._active: list[bytes] = [genesis.hash]

    @classmethod
    def of(cls, updates: Sequence[Update]) -> Chain:
        """The chain whose `updates()` these were. BadPacket when they are not one."""
        if not updates:
            raise BadPacket("a lock without its first update")
        chain = cls(updates[0])
        chain.add(updates[1:])
        return chain

    @property
    def state(self) -> LockState:
        """What is in force."""
        return self._states[self._active[-1]]

    @property
    def head(self) -> bytes:
        return self._active[-1]

    def updates(self) -> list[Update]:
        """Everything known, parents before children."""
        return list(self._updates.values())

    def log(self) -> list[Update]:
        """What is in force, newest first."""
        return [self._updates[one] for one in reversed(self._active)]

    def __contains__(self, hashed: bytes) -> bool:
        return hashed in self._updates

    def add(self, updates: Iterable[Update]) -> None:
        """Take over what others know, parents before children; what is known already is no news.

        BadPacket leaves everything as it was: a parent that is missing, a signer that is not trusted there, too many.
        """
        new: dict[bytes, Update] = {}
        states: dict[bytes, LockState] = {}
        for update in updates:
            if update.hash in self._updates or update.hash in new:
                continue
            if len(self._updates) + len(new) >= MAX_UPDATES:
                raise BadPacket(f"a lock of more than {MAX_UPDATES} updates")
            parent = update.parent or b""
            before = states.get(parent) or self._states.get(parent)
            if before is None:
                raise BadPacket("an update whose parent nobody knows")
            states[update.hash] = before.follow(update)
            new[update.hash] = update
        if not new:
            return
        for hashed, update in new.items():
            self._children.setdefault(update.parent or b"", []).append(hashed)
        self._updates |= new
        self._states |= states
        self._active = self._choose()

    def _choose(self) -> list[bytes]:
        """From the first update on, at every fork the branch that everybody takes."""
        path = [self.genesis.hash]
        while children := self._children.get(path[-1]):
            state = self._states[path[-1]]
            path.append(min(children, key=lambda child: self._rank(state, child)))
        return path

    def _rank(self, state: LockState, hashed: bytes) -> tuple[int, bool, bytes]:
        """The most votes; then what removes a key; then the lowest hash."""
        update = self._updates[hashed]
        return -state.weight(update), update.kind != Kind.REMOVE_KEY, hashed

    # What others lack

    def ancestors(self) -> list[bytes]:
        """Some of the past for an offer, newest first and ending with the oldest: close together, then ever sparser."""
        found: list[bytes] = []
        back, step = SPARSE, SPARSE
        while back < len(self._active) - 1 and len(found) < MAX_ANCESTORS:
            found.append(self._active[-1 - back])
            step *= SPARSE
            back += step
        return [*found, self._active[0]]

    def missing(self, head: bytes, ancestors: Iterable[bytes]) -> list[Update]:
        """What somebody lacks who is at `head` and named these ancestors, oldest first. BadPacket: another lock."""
        if head == self.head:
            return []
        places = {hashed: place for place, hashed in enumerate(self._active)}
        for known in (head, *ancestors):
            place = places.get(known)
            if place is not None:
                return [self._updates[hashed] for hashed in self._active[place + 1 :]]
        raise BadPacket("the two locks have nothing in common")

    # What we want to change

    def next_update(self, kind: Kind, **parts: object) -> Update:
        """An unsigned update that follows the head."""
        return Update(kind, self.head, **parts)  # type: ignore[arg-type]
