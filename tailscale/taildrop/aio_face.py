"""`tailscale.taildrop` for asyncio, over a `tailscale.aio.Device`.

```python no-run: two devices
from tailscale.aio import taildrop

async with tailscale.aio.Device("laptop") as device:
    await taildrop.send(device, "phone", "a.jpg")
```
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Self

from tailscale.errors import DeviceClosed
from tailscale.files.aio_transfer import Transfer
from tailscale.files.faces import next_of
from tailscale.taildrop.faces import InboxFace
from tailscale.taildrop.recipients import targets as targets_of
from tailscale.taildrop.sending import send as begin
from tailscale.threads.awaiting import finished, in_loop
from tailscale.threads.face import as_work, thread_of

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.taildrop.arriving import ReceivedFile
    from tailscale.threads.face import DeviceFace


class Inbox(InboxFace):
    """`tailscale.taildrop.Inbox` for asyncio. An `accept` that is a function is called in this event loop."""

    async def __aenter__(self) -> Self:
        judge = in_loop(asyncio.get_running_loop(), self._accept) if callable(self._accept) else None
        await finished(self._thread.submit(lambda: self._enter(judge)))
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(DeviceClosed):
            await finished(self._thread.submit(self._leave))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReceivedFile:
        try:
            file: ReceivedFile = await finished(self._thread.submit(lambda: next_of(self._inside())))
        except DeviceClosed:
            raise StopAsyncIteration from None
        return file


async def targets(device: DeviceFace) -> tuple[Node, ...]:
    """As `tailscale.taildrop.targets`."""
    thread = thread_of(device)
    return await finished(thread.submit(as_work(lambda: targets_of(thread.device))))


def send(
    device: DeviceFace, to: str | Node, *files: str | os.PathLike[str], name: str | None = None, resume: bool = True
) -> Transfer:
    """As `tailscale.taildrop.send`, of paths: `report = await send(...)`, or `async with` and `async for`."""
    thread = thread_of(device)
    return Transfer(lambda: begin(thread.device, to, *files, name=name, resume=resume), thread)


taildrop = sys.modules[__name__]  # what `tailscale.aio` shows of this
