"""One store's values: a slice per owner, and which of two versions of a slice is the newer.

An owner writes only its own. Newer is (epoch, version): the epoch outlives a restart together with the value, or is the
moment a store in memory was opened. What a new process of the owner says first is newer than anything that the one
before had said, whatever their clocks: they may have stepped back between the two.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from ts_mesh.hello import Number

UPDATE, FULL, REQUEST, CLEAR = "update", "full", "request", "clear"
PREFIX = "ss:"
NULL = msgspec.Raw(b"null")


class SliceMessage(msgspec.Struct, omit_defaults=True):
    """Truffle's words about a store; `type` repeats the msg_type, as its peers expect. They know no epoch."""

    type: str = ""
    device_id: str = ""
    data: msgspec.Raw = NULL
    version: Number = 0
    updated_at: Number = 0
    epoch: Number = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of one slice."""

    data: msgspec.Raw
    epoch: int
    version: int
    updated_at: int
    process: object = None
    """Of its owner, by whatever tells one from the next."""


class Verdict(NamedTuple):
    """What a message changed: nothing, a slice, or (`kept` is None) that there is one."""

    is_changed: bool
    kept: Kept | None = None


UNCHANGED = Verdict(is_changed=False)


class Slices:
    """The slices of others, by whatever proves their owners."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._of: dict[str, Kept] = {}
        self.drops: Counter[str] = Counter()

    def get(self, owner: str) -> Kept | None:
        return self._of.get(owner)

    def owners(self) -> list[str]:
        return list(self._of)

    def receive(self, owner: str, device_id: str, kind: str, message: SliceMessage, process: object = None) -> Verdict:
        """A message of this owner, whose hello gave this device_id."""
        if message.device_id != device_id:
            self.drops["mesh.slice_of_another"] += 1
            return UNCHANGED
        if kind == CLEAR:
            return Verdict(is_changed=self.forget(owner))
        if kind not in (UPDATE, FULL):
            self.drops["mesh.unknown_word"] += 1
            return UNCHANGED
        if len(bytes(message.data)) > self._largest:
            self.drops["mesh.slice_too_large"] += 1
            return UNCHANGED
        known = self._of.get(owner)
        new = Kept(msgspec.Raw(bytes(message.data)), message.epoch, message.version, message.updated_at, process)
        if known is not None and not _is_newer(new, known):
            self.drops["mesh.slice_old"] += 1
            return UNCHANGED
        self._of[owner] = new
        return Verdict(is_changed=True, kept=new)

    def forget(self, owner: str) -> bool:
        """Its slice is gone. False: there was none."""
        return self._of.pop(owner, None) is not None


def _is_newer(new: Kept, known: Kept) -> bool:
    if new.process != known.process:
        return True
    if new.epoch == known.epoch == 0:  # an owner that forgets its version when it restarts, and knows no epoch
        return new.version > known.version or new.updated_at > known.updated_at
    return (new.epoch, new.version) > (known.epoch, known.version)


class Own(NamedTuple):
    """Our own slice as it is kept between runs."""

    epoch: int
    version: int
    updated_at: int
    data: msgspec.Raw


class _Kept(msgspec.Struct):
    epoch: Number
    version: Number
    updated_at: Number
    data: msgspec.Raw


_own = msgspec.json.Decoder(_Kept)


def encode_own(own: Own) -> bytes:
    return msgspec.json.encode(_Kept(*own))


def decode_own_untrusted(text: bytes) -> Own | None:
    """What was kept; None for what cannot be read, which costs no more than the value."""
    try:
        kept = _own.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return Own(kept.epoch, kept.version, kept.updated_at, msgspec.Raw(bytes(kept.data)))
