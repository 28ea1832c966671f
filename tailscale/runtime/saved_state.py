"""What the device keeps, between memory and its store: changed at once, written soon, off the event loop.

Owns: what is not yet written. Refuses to know: what entries mean but the State, and where a store keeps them.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from tailscale.errors import StateCorrupt
from tailscale.runtime.health import Health
from tailscale.state_file import DEVICE, MAX_ENTRY_LENGTH, MemoryStore, encode_state

if TYPE_CHECKING:
    from tailscale.state_file import NamedStore, State

log = logging.getLogger("tailscale.state")

RETRY_PAUSE = 10.0


class SavedState:
    """The newest State and entries, and the task that keeps the store up with them."""

    def __init__(self, store: NamedStore, state: State) -> None:
        self.state = state
        self._store = store
        self._unsaved: dict[str, bytes] = {}
        self._under_way: dict[str, bytes] = {}  # given to a thread; whoever has the store takes them
        self._at_store = threading.Lock()
        self._writing = trio.Lock()
        self._changed = trio.Event()
        if not state.registered:
            self.keep(DEVICE, encode_state(state))  # made in memory a moment ago, for all we know

    def change(self, **fields: Any) -> None:
        """The State has these values from now on."""
        changed = replace(self.state, **fields)
        if changed != self.state:
            self.state = changed
            self.keep(DEVICE, encode_state(changed))

    def keep(self, name: str, data: bytes) -> None:
        """The entry holds this from now on."""
        self._unsaved[name] = data
        self._changed.set()

    def keep_if_small(self, name: str, data: bytes) -> bool:
        """The same for an entry that only saves time: False where the store has no room for so much."""
        fits = len(data) <= getattr(self._store, "largest_entry", MAX_ENTRY_LENGTH)
        if fits:
            self.keep(name, data)
        return fits

    def read(self, name: str) -> bytes | None:
        """An entry other than the State, as the last run left it; None where it cannot be had: it saves time only."""
        try:
            return self._unsaved.get(name) or self._store.read(name)
        except StateCorrupt as problem:
            log.info("%s", problem)
            return None

    async def write(self) -> None:
        """Return once the store has all that is newest. Raises StateCorrupt."""
        async with self._writing:
            if not self._unsaved:
                return
            self._changed = trio.Event()
            self._under_way, self._unsaved = self._unsaved, {}
            try:
                if isinstance(self._store, MemoryStore):
                    self._write()
                else:
                    await trio.to_thread.run_sync(self._write)
            except BaseException:
                self._unsaved = {**self._under_way, **self._unsaved}
                self._changed.set()
                raise
            finally:
                self._under_way = {}

    def write_now(self) -> None:
        """The last chance, when the event loop is about to end. What a thread is about to write is older, and ours."""
        with self._at_store:
            entries = {**self._under_way, **self._unsaved}
            self._under_way, self._unsaved = {}, {}
            try:
                for name, data in entries.items():
                    self._store.write(name, data)
            except StateCorrupt as problem:
                log.warning("%s", problem)

    def _write(self) -> None:
        with self._at_store:
            for name, data in self._under_way.items():
                self._store.write(name, data)

    @trio.lowlevel.enable_ki_protection
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
