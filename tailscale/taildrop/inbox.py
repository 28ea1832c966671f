"""The inbox: files that peers send, one after the other as they are whole.

Owns what a program sees of it, and its life beside a Device. Refuses to know requests and disks.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import trio

from tailscale._private_files import make_folder
from tailscale.errors import TailscaleError
from tailscale.files.folders import HAS_OPENAT
from tailscale.files.showing import IN, Showing
from tailscale.taildrop.arriving import Arriving, Judge, ReceivedFile, Wishes
from tailscale.taildrop.wire import PATH

if TYPE_CHECKING:
    from types import TracebackType

    from tailscale.device import Device
    from tailscale.files.parts import Exists

UNREAD = 4096  # files that the program has not taken: further ones lie in the folder, and are counted
SWEEP_EVERY = 600.0


class InboxStatistics(NamedTuple):
    """`waiting`: files the program has not taken yet; `open`: files on their way; `files`: those that have come."""

    waiting: int
    files: int
    open: dict[str, int]
    bytes: dict[str, int]
    drops: dict[str, int]


class Inbox:
    """Takes the files that other devices of the tailnet send by Taildrop, while the block lasts.

    ```python
    async with taildrop.Inbox(device, folder, accept=True) as inbox:
        async for file in inbox:
            print(file.name, file.size, file.path, file.sender.hostname)
            break
    ```

    What it yields is whole and on the disk. Those may send who own this device, where neither side has tags, and those
    whom the policy grants `https://tailscale.com/cap/file-send`. Nothing is written outside of `folder`, files are
    for nobody else to read, and what broke off is kept for an hour so that its sender can go on.

    - `accept`: True, or a callable (sync or async) that looks at the `Offer`; nothing arrives by default.
    - `largest`: bytes of one file; None for what the disk has room for.
    - `exists`: a file whose name is taken becomes `name (1)`, or replaces the other at once when it is whole, or is
      refused. One that is there already, byte for byte, is not stored twice.
    - `quota`: bytes of all files in the folder; None for no bound but the disk's.
    """

    def __init__(
        self,
        device: Device,
        folder: str | os.PathLike[str],
        accept: bool | Judge = False,
        largest: int | None = None,
        exists: Exists = "rename",
        *,
        quota: int | None = None,
    ) -> None:
        if exists not in ("refuse", "replace", "rename"):
            raise ValueError(f"exists={exists!r}: it is refuse, replace or rename")
        self.folder = Path(folder).expanduser().absolute()
        self._device = device
        self._showing = Showing(device.show_transfer)
        self._arriving = Arriving(device, Wishes(self.folder, accept, largest, exists, quota), self._showing, self._put)
        self._files: deque[ReceivedFile] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._stack = ExitStack()
        self._life: trio.CancelScope | None = None
        self._is_over = False

    def __repr__(self) -> str:
        return f"<taildrop.Inbox {os.fspath(self.folder)!r}>"

    def statistics(self) -> InboxStatistics:
        """Counts so far."""
        arriving = self._arriving
        open_now, received = {IN: len(arriving)}, {IN: self._showing.bytes[IN]}
        return InboxStatistics(len(self._files), arriving.files, open_now, received, dict(arriving.drops))

    async def __aenter__(self) -> Self:
        if self._life is not None:
            raise RuntimeError("an Inbox is entered once: make another")
        if not HAS_OPENAT:
            raise TailscaleError("this system cannot open files below a folder safely: Taildrop is not for Windows yet")
        await trio.to_thread.run_sync(make_folder, self.folder)
        with ExitStack() as stack:
            stack.enter_context(self._device.answer_peers(PATH, self._arriving.answer))
            stack.enter_context(self._device.include("taildrop", self))
            self._stack = stack.pop_all()
        self._life = trio.CancelScope()
        self._device.spawn(self._live, self._life)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._life is not None:
            self._life.cancel()
        self._end()
        with trio.CancelScope(shield=True):
            await self._arriving.close()

    async def _live(self, life: trio.CancelScope) -> None:
        """Beside the device, and not longer."""
        try:
            with life:
                while True:
                    await self._arriving.sweep()
                    await trio.sleep(SWEEP_EVERY)
        finally:
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._lot.unpark_all()

    def _put(self, file: ReceivedFile) -> None:
        if len(self._files) >= UNREAD:
            self._arriving.drops["taildrop.unread"] += 1
            return
        self._files.append(file)
        self._lot.unpark_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReceivedFile:
        """The next file. Ends with the block, or with the device."""
        await trio.lowlevel.checkpoint()
        while not self._files:
            if self._is_over:
                raise StopAsyncIteration
            await self._lot.park()
        return self._files.popleft()
