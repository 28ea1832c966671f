"""A tailnet for tests without an event loop: the devices are `tailscale.sync.Device`.

```python sync
from tailscale.testing.sync import Tailnet

with Tailnet() as net:
    a, b = net.device("a"), net.device("b")
    with b.listen(80) as listener, a.connect("b", 80) as sock:
        accepted, address = listener.accept()
        accepted.close()
```
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from tailscale import sync
from tailscale.testing.threaded import TailnetThread, knows, patience

if TYPE_CHECKING:
    from types import TracebackType


class Tailnet(TailnetThread):
    """Control server and relay on loopback, devices in threads of their own; all gone when the block ends."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._devices: list[sync.Device] = []

    def __enter__(self) -> Self:
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ExitStack() as ending:
            ending.callback(super().__exit__, kind, error, traceback)
            for device in self._devices:
                ending.callback(device.close)

    def device(self, hostname: str, **options: Any) -> sync.Device:
        """A device that has joined and lives as long as the tailnet, or as long as its own `with` block."""
        device = sync.Device(hostname, **self.options(**options)).open()
        self._introduce(device)
        self._devices.append(device)
        return device

    def _introduce(self, device: sync.Device) -> None:
        """Wait until it and those it may meet know each other, so that tests need not."""
        may_meet, has_time = self.who_may_meet(device), patience()
        for other in [one for one in self._devices if one.is_open and one.node.id in may_meet]:
            while not (knows(device.status().peers, other) and knows(other.status().peers, device)) and has_time():
                time.sleep(0.002)
