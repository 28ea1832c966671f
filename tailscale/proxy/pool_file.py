"""The pool of exits between runs: `exits.json`, written whole, and never in the way.

Owns the file. One that cannot be understood is put aside under another name and the pool begins empty; one that cannot
be written is told of once, and the pool lives in memory.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import trio

from tailscale._private_files import CAREFULLY, replace_file
from ts_base.errors import BadPacket
from ts_proxy.sticky import LONGEST_FILE, decode_pool_untrusted, encode_pool

FILE_NAME, QUARANTINE = "exits.json", ".unreadable"

log = logging.getLogger("tailscale.proxy")


class PoolFile:
    """One policy's file. `path` may name it, or the directory that it stands in."""

    # One writer at a time, whoever else has the same file: the last chance may come while a thread still writes.
    _at_files: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        chosen = Path(path).expanduser()
        is_file = chosen.is_file() or (not chosen.exists() and bool(chosen.suffix))
        self.path = chosen if is_file else chosen / FILE_NAME
        self._fingerprint = fingerprint
        self._is_failing = False
        self._wanted: Sequence[str] = ()
        self._written: Sequence[str] | None = None

    async def load(self) -> tuple[str, ...]:
        """The pool that a policy like this one left; nothing if there is none."""
        return await trio.to_thread.run_sync(self._load)

    async def save(self, keys: Sequence[str]) -> None:
        """Replace the file."""
        self._wanted = keys
        await trio.to_thread.run_sync(self._write)

    def _load(self) -> tuple[str, ...]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | CAREFULLY)
            with os.fdopen(descriptor, "rb") as file:
                text = file.read(LONGEST_FILE + 1)
            fingerprint, keys = decode_pool_untrusted(text)
        except FileNotFoundError:
            return ()
        except BadPacket as problem:
            self._put_aside(str(problem))
            return ()
        except OSError as problem:
            log.warning("the exits used last cannot be read from %s: %s", self.path, problem.strerror or problem)
            return ()
        return keys if fingerprint == self._fingerprint else ()

    def _put_aside(self, reason: str) -> None:
        aside = self.path.with_name(self.path.name + QUARANTINE)
        try:
            os.replace(self.path, aside)
        except OSError as problem:
            log.warning("%s cannot be used: %s; nor moved away: %s", self.path, reason, problem.strerror or problem)
        else:
            log.warning(
                "%s cannot be used: %s. It is %s now, and the pool of exits begins empty", self.path, reason, aside
            )

    def save_now(self, keys: Sequence[str]) -> None:
        """The last chance, when the event loop is about to end."""
        self._wanted = keys
        self._write()

    def _write(self) -> None:
        """Whatever is newest by now, once."""
        with self._at_files:
            wanted = self._wanted
            if wanted != self._written and self._replace(wanted):
                self._written = wanted

    def _replace(self, keys: Sequence[str]) -> bool:
        try:
            replace_file(self.path, encode_pool(self._fingerprint, keys))
        except OSError as problem:
            if not self._is_failing:
                reason = problem.strerror or problem
                log.warning(
                    "the exits used last cannot be kept in %s: %s. They are forgotten at exit", self.path, reason
                )
            self._is_failing = True
        else:
            self._is_failing = False
        return not self._is_failing
