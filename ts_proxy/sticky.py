"""What outlives a choice: the exits used last, and which session goes by which.

Owns their bounds, and the text in which the pool is kept between runs. Refuses to know whether an exit works.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from ts_base.errors import BadPacket

VERSION = 1
SESSIONS = 4096  # remembered, the least recently used are forgotten; they come out of the same hash again
LONGEST_KEY = 128
MOST_KEYS = 64
LONGEST_FILE = 64 << 10


class Pool:
    """A few exits, the most recently used first."""

    def __init__(self, limit: int, keys: Iterable[str] = ()) -> None:
        self._limit = limit
        self.keys: tuple[str, ...] = tuple(dict.fromkeys(keys))[:limit]

    def use(self, key: str) -> bool:
        """It was used just now. True if that changes the pool."""
        before = self.keys
        self.keys = (key, *(other for other in before if other != key))[: self._limit]
        return self.keys != before

    def add(self, key: str, dispensable: Iterable[str] = ()) -> bool:
        """It belongs to the pool too, without being first; a full pool gives up a dispensable one, or nobody."""
        if key in self.keys:
            return False
        keys = list(self.keys)
        if len(keys) >= self._limit:
            for other in dispensable:
                if other in keys:
                    keys.remove(other)
                    break
            else:
                return False
        self.keys = (*keys, key)
        return True


class Sessions:
    """Which exit each session goes by. A session that is new, or forgotten, is hashed: the same pool, the same exit."""

    def __init__(self, limit: int = SESSIONS) -> None:
        self._limit = limit
        self._exits: dict[str, str] = {}
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._exits)

    def exit_of(self, session: str) -> str:
        """The exit it went by last; empty if it has none."""
        return self._exits.get(session, "")

    def assign(self, session: str, key: str) -> None:
        self._exits.pop(session, None)
        self._exits[session] = key
        if len(self._exits) > self._limit:
            del self._exits[next(iter(self._exits))]
            self.forgotten += 1


def rendezvous(session: str, keys: Sequence[str]) -> str:
    """The key with the highest hash beside the session (Thaler and Ravishankar): of n, each takes an nth part, and who
    goes moves only its own.
    """
    return max(keys, key=lambda key: blake2b(f"{session}\0{key}".encode(), digest_size=8).digest(), default="")


def encode_pool(fingerprint: str, keys: Sequence[str]) -> bytes:
    fields = {"version": VERSION, "fingerprint": fingerprint, "pool": list(keys)}
    return json.dumps(fields, indent=1).encode() + b"\n"


def decode_pool_untrusted(text: bytes) -> tuple[str, tuple[str, ...]]:
    """The fingerprint and the pool of an earlier run."""
    if len(text) > LONGEST_FILE:
        raise BadPacket("it is far larger than any file of exits")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise BadPacket("it is not the JSON that was written: cut short or overwritten") from None
    if not isinstance(fields, dict) or type(fields.get("version")) is not int:
        raise BadPacket("it is not a file of exits")
    if fields["version"] != VERSION:
        raise BadPacket(f"it has version {fields['version']} and this program knows version {VERSION}")
    fingerprint, keys = fields.get("fingerprint"), fields.get("pool")
    if type(fingerprint) is not str or type(keys) is not list or len(keys) > MOST_KEYS:
        raise BadPacket("its fields are missing or of the wrong type")
    if not all(type(key) is str and 0 < len(key) <= LONGEST_KEY and key.isprintable() for key in keys):
        raise BadPacket("what is in its pool are no exits")
    return fingerprint, tuple(keys)
