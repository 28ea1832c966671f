"""What a lock is after an update: who may sign, and what turns it off.

Owns: whether an update may follow (its signers must be trusted where it does) and what it changes. Refuses to know:
which of several updates comes next (`chain.py`). Rules: upstream's tka/state.go and tka.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ts_base.errors import BadPacket
from ts_lock.keys import is_signed_by
from ts_lock.updates import MAX_KEYS, Checkpoint, Key, Kind, Update


@dataclass(frozen=True)
class LockState:
    """The lock at one update."""

    head: bytes
    keys: Mapping[bytes, Key]
    disablement_values: tuple[bytes, ...]
    state_ids: tuple[int, int]

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.disablement_values, tuple(self.keys.values()), self.state_ids)

    def weight(self, update: Update) -> int:
        """The votes behind an update: each signer counts once."""
        signers = {who for who, _ in update.signatures}
        return sum(self.keys[who].votes for who in signers if who in self.keys)

    def follow(self, update: Update) -> LockState:
        """The state after `update`, which must be signed by those trusted now. BadPacket when it may not follow."""
        if update.parent != self.head:
            raise BadPacket("an update that follows another one")
        _check_signatures(update, self.keys)
        return replace(self._after(update), head=update.hash)

    def _after(self, update: Update) -> LockState:
        if update.kind == Kind.ADD_KEY and update.key is not None:
            if update.key.public in self.keys:
                raise BadPacket("an update that adds a key which is trusted already")
            if len(self.keys) >= MAX_KEYS:
                raise BadPacket(f"an update that adds a key to {MAX_KEYS}")
            return replace(self, keys={**self.keys, update.key.public: update.key})
        if update.kind == Kind.REMOVE_KEY:
            self._known(update.key_id)
            if len(self.keys) == 1:
                raise BadPacket("an update that removes the last key")
            return replace(self, keys={who: key for who, key in self.keys.items() if who != update.key_id})
        if update.kind == Kind.UPDATE_KEY:
            key = self._known(update.key_id)
            if update.votes is not None:
                key = replace(key, votes=update.votes)
            if update.meta:
                key = replace(key, meta=update.meta)
            key.check()
            return replace(self, keys={**self.keys, key.public: key})
        if update.kind == Kind.CHECKPOINT and update.state is not None:
            if update.state.state_ids != self.state_ids:
                raise BadPacket("a checkpoint of another lock")
            return _state_of(update, update.state)
        return self  # NO_OP, and kinds of the future, which must not change what older nodes enforce

    def _known(self, key_id: bytes | None) -> Key:
        key = self.keys.get(key_id or b"")
        if key is None:
            raise BadPacket("an update of a key that is not trusted")
        return key


def first_state(genesis: Update) -> LockState:
    """The state where our knowledge begins: a checkpoint signed by keys that it itself names."""
    if genesis.kind != Kind.CHECKPOINT or genesis.state is None:
        raise BadPacket("a lock that does not begin with a checkpoint")
    state = _state_of(genesis, genesis.state)
    _check_signatures(genesis, state.keys)
    return state


def _state_of(update: Update, named: Checkpoint) -> LockState:
    keys = {key.public: key for key in named.keys}
    return LockState(update.hash, keys, named.disablement_values, named.state_ids)


def _check_signatures(update: Update, trusted: Mapping[bytes, Key]) -> None:
    if not update.signatures:
        raise BadPacket("an update that nobody signed")
    for who, what in update.signatures:
        if who not in trusted:
            raise BadPacket("an update signed by a key that is not trusted")
        if not is_signed_by(who, what, update.signed_hash):
            raise BadPacket("an update whose signature is wrong")
