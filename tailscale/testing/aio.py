"""A tailnet for asyncio tests: the devices are `tailscale.aio.Device`.

```python asyncio
from tailscale.testing.aio import Tailnet

with Tailnet() as net:
    a, b = await net.device("a"), await net.device("b")
    pong = await a.ping("b")
```
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Self

from tailscale import aio
from tailscale.testing.threaded import TailnetThread, knows, patience
from tailscale.threads.face import thread_of

if TYPE_CHECKING:
    from types import TracebackType


class Joining:
    """`await` it for a device that lives as long as the tailnet, or `async with` it for one that leaves earlier."""

    def __init__(self, net: Tailnet, hostname: str, options: Mapping[str, Any]) -> None:
        self._net = net
        self._device = aio.Device(hostname, **options)

    def __await__(self) -> Generator[Any, Any, aio.Device]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> aio.Device:
        await self._device.__aenter__()
        await self._net.introduce(self._device)
        return self._device

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._device.__aexit__(kind, error, traceback)


class Tailnet(TailnetThread):
    """Control server and relay on loopback, devices in threads of their own; all gone when the block ends."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._devices: list[aio.Device] = []

    def __enter__(self) -> Self:
        return super().__enter__()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close_devices()
        super().__exit__(kind, error, traceback)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Also where the test's own loop runs, or has ended: the devices are closed in another."""
        closing = threading.Thread(target=asyncio.run, args=(self._close_devices(),))
        closing.start()
        closing.join()
        super().__exit__(kind, error, traceback)

    async def _close_devices(self) -> None:
        for device in self._devices:
            if device.is_open:
                with contextlib.suppress(Exception):  # what a device failed of was the test's to see
                    await device.__aexit__(None, None, None)

    def device(self, hostname: str, **options: Any) -> Joining:
        """Let a device join."""
        return Joining(self, hostname, self.options(**options))

    async def introduce(self, device: aio.Device) -> None:
        """Wait until it and those it may meet know each other, so that tests need not."""
        may_meet, has_time = self.who_may_meet(device), patience()
        for other in [one for one in self._devices if one.is_open and one.node.id in may_meet]:
            while not (knows((await device.status()).peers, other) and knows((await other.status()).peers, device)):
                if not has_time():
                    break
                await asyncio.sleep(0.002)
        self._devices.append(device)
        thread_of(device).attend()  # a test's loop may end before the fixture does
