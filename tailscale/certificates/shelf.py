"""What is kept of certificates between runs: the ACME account's key, and a chain with its key for each name.

Owns names and forms: beside a state that is a folder, files as upstream's in `certs/`; else entries of the store. Holds
a name against other processes while it is ordered. Refuses to know what is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from tailscale._private_files import (
    CAREFULLY,
    give_lock_back,
    keep_lock,
    make_folder,
    open_mounted,
    replace_file,
    try_lock,
)
from tailscale.errors import StateCorrupt
from tailscale.state_file import FILE_NAME, FileStore, MemoryStore, NamedStore

FOLDER, ACCOUNT = "certs", "acme-account.key.pem"
LARGEST_FILE = 128 << 10
LOCK_PAUSE = 0.2


class Shelf(Protocol):
    """Keys and chains by name. Raises StateCorrupt."""

    @property
    def forgets(self) -> bool:
        """Whether all of it is gone with the process."""

    def account(self) -> bytes | None: ...
    def keep_account(self, key_pem: bytes) -> None: ...
    def pair(self, name: str) -> tuple[bytes, bytes] | None:
        """Chain and key."""

    def keep_pair(self, name: str, chain_pem: bytes, key_pem: bytes) -> None: ...
    def ordering(self, name: str) -> AbstractAsyncContextManager[None]:
        """Nobody else orders that name, in any process that keeps its things here, while the block lasts."""


def shelf_of(store: NamedStore) -> Shelf:
    """Where certificates stand beside this state."""
    if isinstance(store, FileStore) and store.path.name == FILE_NAME:
        return FolderShelf(store.path.parent / FOLDER)
    return EntryShelf(store)


class FolderShelf:
    """Files as tailscaled keeps them: `NAME.crt` for everybody, `NAME.key` and the account's key for us alone."""

    forgets = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"FolderShelf({os.fspath(self._folder)!r})"

    def account(self) -> bytes | None:
        return self._read(ACCOUNT)

    def keep_account(self, key_pem: bytes) -> None:
        self._write(ACCOUNT, key_pem)

    def pair(self, name: str) -> tuple[bytes, bytes] | None:
        chain, key = self._read(f"{_file(name)}.crt"), self._read(f"{_file(name)}.key")
        return (chain, key) if chain is not None and key is not None else None

    def keep_pair(self, name: str, chain_pem: bytes, key_pem: bytes) -> None:
        """The key first: a chain without its key is of no use to anybody."""
        self._write(f"{_file(name)}.key", key_pem)
        self._write(f"{_file(name)}.crt", chain_pem)
        os.chmod(self._folder / f"{_file(name)}.crt", 0o644)

    @asynccontextmanager
    async def ordering(self, name: str) -> AsyncIterator[None]:
        descriptor = await trio.to_thread.run_sync(self._open_lock, name)
        keep_lock(descriptor)
        try:
            while not try_lock(descriptor):  # noqa: ASYNC110 - another process tells nobody
                await trio.sleep(LOCK_PAUSE)
            yield
        finally:
            give_lock_back(descriptor)

    def _open_lock(self, name: str) -> int:
        try:
            make_folder(self._folder)
            path = self._folder / f"{_file(name)}.lock"
            return os.open(path, os.O_RDWR | os.O_CREAT | CAREFULLY, 0o600)
        except OSError as error:
            raise self._broken("lock", error) from None

    def _read(self, file: str) -> bytes | None:
        try:
            descriptor = open_mounted(self._folder / file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._broken("read", error) from None
        with os.fdopen(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            is_open = file.endswith((".key", ".pem")) and os.name == "posix" and status.st_mode & 0o077
            if not stat.S_ISREG(status.st_mode) or is_open:
                raise StateCorrupt(
                    f"{self._folder / file} is not a file that only we may read: if its key is not known to others, "
                    "chmod 600 it; else delete it"
                )
            return opened.read(LARGEST_FILE)

    def _write(self, file: str, data: bytes) -> None:
        try:
            replace_file(self._folder / file, data)
        except OSError as error:
            raise self._broken("write", error) from None

    def _broken(self, deed: str, error: OSError) -> StateCorrupt:
        return StateCorrupt(f"cannot {deed} what is kept of certificates in {self._folder}: {error.strerror or error}")


class EntryShelf:
    """Entries of a store that is no folder of files."""

    def __init__(self, store: NamedStore) -> None:
        self._store = store
        self._locks: dict[str, trio.Lock] = {}

    @property
    def forgets(self) -> bool:
        return isinstance(self._store, MemoryStore) or bool(getattr(self._store, "forgets_entries", False))

    def account(self) -> bytes | None:
        found = _unpacked(self._store.read("acme-account"))
        return found[0] if found else None

    def keep_account(self, key_pem: bytes) -> None:
        self._store.write("acme-account", _packed([key_pem]))

    def pair(self, name: str) -> tuple[bytes, bytes] | None:
        found = _unpacked(self._store.read(_entry(name)))
        return (found[0], found[1]) if found is not None and len(found) == 2 else None

    def keep_pair(self, name: str, chain_pem: bytes, key_pem: bytes) -> None:
        self._store.write(_entry(name), _packed([chain_pem, key_pem]))

    @asynccontextmanager
    async def ordering(self, name: str) -> AsyncIterator[None]:
        """The store is locked as a whole while a Device lives."""
        async with self._locks.setdefault(name, trio.Lock()):
            yield


def _file(name: str) -> str:
    """Upstream's name for a wildcard's files."""
    return f"wildcard_{name[1:]}" if name.startswith("*.") else name


def _entry(name: str) -> str:
    """Short enough for every store."""
    return f"certificate-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _packed(texts: Iterable[bytes]) -> bytes:
    """One JSON object, as every entry is."""
    return json.dumps({"pem": [text.decode("ascii") for text in texts]}).encode()


def _unpacked(data: bytes | None) -> list[bytes] | None:
    try:
        texts = json.loads(data)["pem"] if data is not None else None
        return [text.encode("ascii") for text in texts] if texts is not None else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
