"""The device's State between memory and its store: changed at once, written soon, off the event loop.

Owns: what is not yet written. Refuses to know: what the fields mean, and where a store keeps them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from tailscale.errors import StateCorrupt
from tailscale.runtime.health import Health
from tailscale.state_file import MemoryStore

if TYPE_CHECKING:
    from tailscale.state_file import State, Store

log = logging.getLogger("tailscale.state")

RETRY_PAUSE = 10.0


class SavedState:
    """The newest State, and the task that keeps the store up with it."""

    def __init__(self, store: Store, state: State) -> None:
        self.state = state
        self._store = store
        self._writing = trio.Lock()
        self._changed = trio.Event()
        if not state.registered:
            self._changed.set()  # made in memory a moment ago, for all we know

    def change(self, **fields: Any) -> None:
        changed = replace(self.state, **fields)
        if changed != self.state:
            self.state = changed
            self._changed.set()

    async def write(self) -> None:
        """Return once the store has the newest State. Raises StateCorrupt."""
        async with self._writing:
            if not self._changed.is_set():
                return
            self._changed = trio.Event()
            try:
                if isinstance(self._store, MemoryStore):
                    self._store.save(self.state)
                else:
                    await trio.to_thread.run_sync(self._store.save, self.state)
            except BaseException:
                self._changed.set()
                raise

    def write_now(self) -> None:
        """The last chance, when the event loop is about to end."""
        if self._changed.is_set():
            try:
                self._store.save(self.state)
            except StateCorrupt as problem:
                log.warning("%s", problem)

    async def run(self, health: Health) -> None:
        """Write after every change; a full disk is a warning, and tried again."""
        while True:
            await self._changed.wait()
            try:
                await self.write()
                health.clear("state-not-saved")
            except StateCorrupt as problem:
                health.show("state-not-saved", str(problem), "make room, or make the file writable")
                await trio.sleep(RETRY_PAUSE)
