"""`tailscale.taildrop` for plain threads, over a `tailscale.sync.Device`.

```python no-run: two devices
from tailscale.sync import taildrop

with tailscale.sync.Device("laptop") as device:
    taildrop.send(device, "phone", "a.jpg").wait()
```
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Self

import trio

from tailscale.errors import DeviceClosed
from tailscale.files.faces import next_of
from tailscale.files.sync_transfer import Transfer
from tailscale.taildrop.faces import InboxFace
from tailscale.taildrop.recipients import targets as targets_of
from tailscale.taildrop.sending import send as begin
from tailscale.threads.face import as_work, thread_of

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.taildrop.arriving import Offer, ReceivedFile
    from tailscale.threads.face import DeviceFace


class Inbox(InboxFace):
    """`tailscale.taildrop.Inbox` for plain threads. An `accept` that is a function is called in a thread."""

    def __enter__(self) -> Self:
        accept = self._accept

        async def judge(offer: Offer) -> bool:
            assert callable(accept)
            return bool(await trio.to_thread.run_sync(accept, offer, abandon_on_cancel=True))

        self._thread.submit(lambda: self._enter(judge if callable(accept) else None)).wait()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(DeviceClosed):
            self._thread.submit(self._leave).wait()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReceivedFile:
        try:
            file: ReceivedFile = self._thread.submit(lambda: next_of(self._inside())).wait()
        except DeviceClosed:
            raise StopIteration from None
        return file


def targets(device: DeviceFace) -> tuple[Node, ...]:
    """As `tailscale.taildrop.targets`."""
    thread = thread_of(device)
    return thread.submit(as_work(lambda: targets_of(thread.device))).wait()


def send(
    device: DeviceFace, to: str | Node, *files: str | os.PathLike[str], name: str | None = None, resume: bool = True
) -> Transfer:
    """As `tailscale.taildrop.send`, of paths: `report = send(...).wait()`, or `with` and `for`."""
    thread = thread_of(device)
    return Transfer(lambda: begin(thread.device, to, *files, name=name, resume=resume), thread)


taildrop = sys.modules[__name__]  # what `tailscale.sync` shows of this
