"""What the asyncio and the threaded face of a transfer share, and how what lives in the loop is entered and left."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tailscale.errors import DeviceClosed

if TYPE_CHECKING:
    from tailscale.files.transfers import Transfer as TrioTransfer
    from tailscale.files.transfers import TransferReport
    from tailscale.threads.loop_thread import LoopThread


class TransferFace:
    """Files under way, from outside the loop. How to wait for them is the face's own."""

    def __init__(self, make: Callable[[], TrioTransfer], thread: LoopThread) -> None:
        self._make = make
        self._thread = thread
        self._transfer: TrioTransfer | None = None

    def cancel(self) -> None:
        """Break it off; what has arrived is kept."""
        with contextlib.suppress(DeviceClosed):
            self._thread.call_soon(self._entered().cancel)

    @property
    def result(self) -> TransferReport:
        """What came of it, once the block was left."""
        return self._entered().result

    def _entered(self) -> TrioTransfer:
        if self._transfer is None:
            raise RuntimeError(
                "this transfer has not begun: use it inside `with` (asyncio: `async with`), or wait for it"
            )
        return self._transfer


def entering(context: Any) -> Callable[[], Awaitable[Any]]:
    """The work of entering something that belongs to the loop."""
    return lambda: context.__aenter__()


def leaving(context: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: context.__aexit__(None, None, None)


async def next_of(stream: Any) -> Any:
    """The next of what an iterator inside yields; DeviceClosed at its end, for a Future holds no StopIteration."""
    try:
        return await stream.__anext__()
    except StopAsyncIteration:
        raise DeviceClosed("this stream has ended") from None
