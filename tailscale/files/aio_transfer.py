"""Files under way, for asyncio: a Transfer in the thread of a Device."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Self

from tailscale.errors import DeviceClosed
from tailscale.files.errors import TransferFailed
from tailscale.files.faces import TransferFace, entering, leaving, next_of
from tailscale.threads.awaiting import finished
from tailscale.threads.face import as_work

if TYPE_CHECKING:
    from tailscale.files.transfers import Progress, TransferReport


class Transfer(TransferFace):
    """Files under way to or from one peer: `report = await transfer`, or `async with` and `async for`.

    ```python no-run: two devices
    async with notes.push("bob", "thesis/") as transfer:
        async for progress in transfer:
            print(f"{progress.fraction:.0%} at {progress.name}")
    print(transfer.result.files)
    ```
    """

    async def __aenter__(self) -> Self:
        transfer = self._transfer = await finished(self._thread.submit(as_work(self._make)))
        await finished(self._thread.submit(entering(transfer)))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await finished(self._thread.submit(leaving(self._transfer)))
            return
        self.cancel()
        with contextlib.suppress(TransferFailed, DeviceClosed):
            await finished(self._thread.submit(leaving(self._transfer)))

    def __await__(self) -> Generator[Any, Any, TransferReport]:
        return self._finished().__await__()

    async def _finished(self) -> TransferReport:
        async with self:
            pass
        return self.result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Progress:
        try:
            progress: Progress = await finished(self._thread.submit(lambda: next_of(self._entered())))
        except DeviceClosed:
            raise StopAsyncIteration from None
        return progress
