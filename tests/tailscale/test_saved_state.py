"""What the device keeps, on its way to a store that is slow."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tailscale.runtime.saved_state import SavedState
from tailscale.state_file import State


class SlowStore:
    """Does `meanwhile` in the middle of its first write; notes what it was told, and by how many at once."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile: Callable[[], None] | None = meanwhile
        self.written: list[tuple[str, bytes]] = []
        self.is_entered_twice = False
        self._writers = 0

    def lock(self) -> threading.Lock:
        return threading.Lock()

    def read(self, name: str) -> None: ...
    def delete(self, name: str) -> None: ...

    def write(self, name: str, data: bytes) -> None:
        self._writers += 1
        self.is_entered_twice |= self._writers > 1
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        self.written.append((name, data))
        self._writers -= 1


async def test_the_last_chance_waits_for_the_write_under_way_and_the_newest_stays() -> None:
    def say_goodbye() -> None:
        saved.keep("entry", b"newer")
        goodbye.start()
        goodbye.join(0.05)  # it would be done by now if it did not wait

    store = SlowStore(say_goodbye)
    saved = SavedState(store, State.generate(bytes, "https://control.test"))
    goodbye = threading.Thread(target=saved.write_now)
    saved.keep("entry", b"older")
    await saved.write()
    goodbye.join()
    assert not store.is_entered_twice
    assert [data for name, data in store.written if name == "entry"][-1] == b"newer"
