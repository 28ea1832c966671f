"""What a mesh keeps between runs: its id, who was found to be no member, and the values of its stores.

Owns the entries of one store of bytes, held while the mesh lives. Files are written in threads, all or nothing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from tailscale.errors import StateCorrupt
from tailscale.state_file import FileStore, MemoryStore

if TYPE_CHECKING:
    from tailscale.state_file import NamedStore
    from ts_mesh.slices import Own

ENTRY = "mesh"
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LONGEST_ID = 64
REMEMBERED = 3600.0
MOST_ASKED = 256


class _Entry(msgspec.Struct):
    id: str
    asked: dict[str, tuple[int, bool]] = {}


class Saved:
    """Of one app, in a directory or in memory."""

    def __init__(self, where: str | os.PathLike[str] | NamedStore | None, app: str) -> None:
        if isinstance(where, str | os.PathLike):
            where = FileStore(Path(where) / f"mesh-{app}")
        self._store: NamedStore = where if where is not None else MemoryStore()
        self._is_slow = not isinstance(self._store, MemoryStore)
        self.id = ""
        self.asked: dict[str, tuple[int, bool]] = {}
        """Nodes that were asked whether they are members: when (Unix seconds), and whether they are."""

    def recently_asked(self) -> dict[str, bool]:
        """Nodes asked within the hour, and whether they are members. Clocks may step back."""
        now = time.time()
        return {number: is_member for number, (at, is_member) in self.asked.items() if 0 <= now - at < REMEMBERED}

    def remember(self, number: str, *, is_member: bool) -> None:
        """A node was asked just now. The oldest are forgotten."""
        self.asked[number] = int(time.time()), is_member
        for old in sorted(self.asked, key=lambda each: self.asked[each][0])[: max(0, len(self.asked) - MOST_ASKED)]:
            del self.asked[old]

    def lock(self) -> AbstractContextManager[object]:
        """Hold it. Raises StateLocked."""
        return self._store.lock()

    async def load(self) -> None:
        """Read the id, or make a new one. Raises StateCorrupt."""
        text = await self._read(ENTRY)
        if text is None:
            self.id = new_mesh_id()
            await self.save()
            return
        try:
            entry = msgspec.json.decode(text, type=_Entry)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise StateCorrupt(f"the mesh's state in {self._store!r} is not what was written; remove it") from None
        if not 0 < len(entry.id.encode()) <= LONGEST_ID:
            raise StateCorrupt(f"the mesh's state in {self._store!r} has no id; remove it")
        self.id, self.asked = entry.id, entry.asked

    async def save(self) -> None:
        text = msgspec.json.encode(_Entry(self.id, self.asked))
        await self._write(ENTRY, text)

    async def load_slice(self, name: str) -> Own | None:
        """Our own value in a store."""
        from ts_mesh.slices import decode_own_untrusted  # who has stores

        text = await self._read(_entry_of(name))
        return decode_own_untrusted(text) if text is not None else None

    async def save_slice(self, name: str, own: Own) -> None:
        from ts_mesh.slices import encode_own

        await self._write(_entry_of(name), encode_own(own))

    async def forget_slice(self, name: str) -> None:
        if self._is_slow:
            await trio.to_thread.run_sync(self._store.delete, _entry_of(name))
        else:
            self._store.delete(_entry_of(name))

    async def _read(self, entry: str) -> bytes | None:
        return await trio.to_thread.run_sync(self._store.read, entry) if self._is_slow else self._store.read(entry)

    async def _write(self, entry: str, data: bytes) -> None:
        if self._is_slow:
            await trio.to_thread.run_sync(self._store.write, entry, data)
        else:
            self._store.write(entry, data)


def _entry_of(name: str) -> str:
    """Any name, as one that a file may have."""
    return "slice-" + hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def new_mesh_id() -> str:
    """In the form of a ULID: when it was made, then chance."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
