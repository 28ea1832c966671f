"""One change of a lock, signed: a key added, removed or changed, or everything at once (a checkpoint).

Owns: its fields, its bytes, its hash and its static form (upstream's tka/aum.go calls it an AUM). Refuses to know:
whether its signers are trusted (`state.py`) and what it follows (`chain.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

from ts_base.errors import BadPacket
from ts_base.keys import KEY_LENGTH
from ts_lock import cbor
from ts_lock.keys import SIGNATURE_LENGTH, LockPrivate, digest

HASH_LENGTH = 32
VALUE_LENGTH = 32  # of what is stored of a disablement secret
MAX_KEYS = 512
MAX_VALUES = 32
MAX_VOTES = 4096
MAX_META = 512  # bytes, all names and texts of one key
ED25519 = 1

_KIND, _PARENT, _KEY, _KEY_ID, _STATE, _VOTES, _META, _SIGNATURES = 1, 2, 3, 4, 5, 6, 7, 23


class Kind(IntEnum):
    ADD_KEY = 1
    REMOVE_KEY = 2
    NO_OP = 3
    UPDATE_KEY = 4
    CHECKPOINT = 5


_NAMES = {
    Kind.ADD_KEY: "add-key",
    Kind.REMOVE_KEY: "remove-key",
    Kind.NO_OP: "no-op",
    Kind.UPDATE_KEY: "update-key",
    Kind.CHECKPOINT: "checkpoint",
}


def kind_name(kind: int) -> str:
    """As upstream's tools write it; a kind of the future is its number."""
    return _NAMES[Kind(kind)] if kind in _FIELDS else str(kind)


# Which fields each kind has, beside its parent and its signatures.
_FIELDS = {
    Kind.ADD_KEY: {"key"},
    Kind.REMOVE_KEY: {"key_id"},
    Kind.NO_OP: set[str](),
    Kind.UPDATE_KEY: {"key_id", "votes", "meta"},
    Kind.CHECKPOINT: {"state"},
}


def hash_text(hashed: bytes) -> str:
    """52 letters and digits: base32 without padding."""
    return base64.b32encode(hashed).decode().rstrip("=")


def parse_hash_untrusted(text: str) -> bytes:
    """The other way; BadPacket on anything that `hash_text` does not write."""
    try:
        hashed = base64.b32decode(text + "====") if len(text) == 52 else b""
    except (ValueError, TypeError):
        hashed = b""
    if len(hashed) != HASH_LENGTH or hash_text(hashed) != text:
        raise BadPacket("not the hash of a lock's update")
    return hashed


@dataclass(frozen=True)
class Key:
    """Somebody who may sign, and how much that weighs."""

    public: bytes
    votes: int = 1
    meta: Mapping[str, str] = field(default_factory=dict)

    def to_value(self) -> dict[int, Any]:
        value: dict[int, Any] = {1: ED25519, 2: self.votes, 3: self.public}
        if self.meta:
            value[12] = dict(self.meta)
        return value

    @classmethod
    def from_value(cls, value: Any) -> Key:
        fields = cbor.Fields(value, "a lock's key")
        if fields.number(1) != ED25519:
            raise BadPacket("a lock's key that is not of Ed25519")
        key = cls(votes=fields.number(2, MAX_VOTES), public=fields.octets(3, KEY_LENGTH), meta=fields.some_texts(12))
        fields.end()
        key.check()
        return key

    def check(self) -> None:
        if not 1 <= self.votes <= MAX_VOTES:
            raise BadPacket(f"a lock's key with {self.votes} votes, not 1 to {MAX_VOTES}")
        if sum(len(name.encode()) + len(text.encode()) for name, text in self.meta.items()) > MAX_META:
            raise BadPacket(f"a lock's key with more than {MAX_META} bytes beside it")


@dataclass(frozen=True)
class Checkpoint:
    """All that the lock is at one moment."""

    disablement_values: tuple[bytes, ...]
    keys: tuple[Key, ...]
    state_ids: tuple[int, int] = (0, 0)

    def to_value(self) -> dict[int, Any]:
        keys = [key.to_value() for key in self.keys]
        value: dict[int, Any] = {1: None, 2: list(self.disablement_values), 3: keys}
        value |= {number: part for number, part in zip((4, 5), self.state_ids, strict=True) if part}
        return value

    @classmethod
    def from_value(cls, value: Any) -> Checkpoint:
        fields = cbor.Fields(value, "a lock's checkpoint")
        if fields.null_or_octets(1, HASH_LENGTH) is not None:
            raise BadPacket("a checkpoint that names an update before itself")
        values = tuple(fields.items(2))
        keys = tuple(Key.from_value(key) for key in fields.items(3))
        first, second = fields.some_number(4), fields.some_number(5)
        fields.end()
        if 0 in (first, second):
            raise BadPacket("a checkpoint that writes a zero out")
        found = cls(values, keys, (first or 0, second or 0))
        found.check()
        return found

    def check(self) -> None:
        values = self.disablement_values
        if not 1 <= len(values) <= MAX_VALUES or len(set(values)) != len(values):
            raise BadPacket(f"a checkpoint needs 1 to {MAX_VALUES} different disablement values")
        if not all(isinstance(value, bytes) and len(value) == VALUE_LENGTH for value in values):
            raise BadPacket("a disablement value of the wrong length")
        if not 1 <= len(self.keys) <= MAX_KEYS or len({key.public for key in self.keys}) != len(self.keys):
            raise BadPacket(f"a checkpoint needs 1 to {MAX_KEYS} different keys")
        for key in self.keys:
            key.check()


@dataclass(frozen=True)
class Update:
    """One link of the chain."""

    kind: int
    parent: bytes | None = None
    key: Key | None = None
    key_id: bytes | None = None
    state: Checkpoint | None = None
    votes: int | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    signatures: tuple[tuple[bytes, bytes], ...] = ()  # (who, what)

    @cached_property
    def data(self) -> bytes:
        """What travels and is stored."""
        return cbor.encode(self._to_value(is_signed=True))

    @cached_property
    def hash(self) -> bytes:
        return digest(self.data)

    @cached_property
    def signed_hash(self) -> bytes:
        """What the signatures are over: all but themselves."""
        return digest(cbor.encode(self._to_value(is_signed=False)))

    def signed_by(self, private: LockPrivate) -> Update:
        """The update with one more signature."""
        signature = (private.public, private.sign(self.signed_hash))
        return replace(self, signatures=(*self.signatures, signature))

    def _to_value(self, *, is_signed: bool) -> dict[int, Any]:
        value: dict[int, Any] = {_KIND: self.kind, _PARENT: self.parent}
        optional = {
            _KEY: self.key.to_value() if self.key is not None else None,
            _KEY_ID: self.key_id,
            _STATE: self.state.to_value() if self.state is not None else None,
            _VOTES: self.votes,
            _META: dict(self.meta) or None,
            _SIGNATURES: [{1: who, 2: what} for who, what in self.signatures] or None if is_signed else None,
        }
        return value | {number: part for number, part in optional.items() if part is not None}

    def check(self) -> None:
        """The static form; kinds of the future have none that we could know."""
        if self.kind not in _FIELDS:
            return
        present = {name for name in ("key", "key_id", "state") if getattr(self, name) is not None}
        present |= {"votes"} if self.votes is not None else set()
        present |= {"meta"} if self.meta else set()
        allowed = _FIELDS[Kind(self.kind)]
        missing = allowed - present - {"votes", "meta"}
        is_empty = self.kind == Kind.UPDATE_KEY and not present & {"votes", "meta"}
        if missing or is_empty or not present <= allowed:
            raise BadPacket(f"an update of kind {self.kind} with the wrong fields")


def decode_update_untrusted(data: bytes) -> Update:
    """One update, exactly as `Update.data` writes it; BadPacket otherwise."""
    fields = cbor.Fields(cbor.decode_untrusted(data), "a lock's update")
    kind = fields.number(_KIND, 255)
    if kind == 0:
        raise BadPacket("an update of no kind")
    parent = fields.null_or_octets(_PARENT, HASH_LENGTH)
    key, state = fields.some_value(_KEY), fields.some_value(_STATE)
    update = Update(
        kind,
        parent,
        key=Key.from_value(key) if key is not None else None,
        key_id=fields.some_octets(_KEY_ID),
        state=Checkpoint.from_value(state) if state is not None else None,
        votes=fields.some_number(_VOTES),
        meta=fields.some_texts(_META),
        signatures=tuple(_signature_from(each) for each in fields.some_items(_SIGNATURES)),
    )
    fields.end()
    update.check()
    if update.data != data:
        raise BadPacket("an update that is not written in the one way there is")
    return update


def _signature_from(value: Any) -> tuple[bytes, bytes]:
    fields = cbor.Fields(value, "a signature")
    found = fields.octets(1, KEY_LENGTH), fields.octets(2, SIGNATURE_LENGTH)
    fields.end()
    return found
