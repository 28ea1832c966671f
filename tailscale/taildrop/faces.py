"""What the asyncio and the threaded face of an inbox share: where it lives, and how it is entered and left."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailscale.taildrop.inbox import Inbox as TrioInbox
from tailscale.threads.face import Face, thread_of

if TYPE_CHECKING:
    from tailscale.files.parts import Exists
    from tailscale.taildrop.arriving import Offer
    from tailscale.taildrop.inbox import InboxStatistics
    from tailscale.threads.face import DeviceFace


class InboxFace(Face[TrioInbox]):
    """Stands outside the loop for an inbox inside it."""

    def __init__(
        self,
        device: DeviceFace,
        folder: str | os.PathLike[str],
        accept: bool | Callable[[Offer], Any] = False,
        largest: int | None = None,
        exists: Exists = "rename",
        *,
        quota: int | None = None,
    ) -> None:
        self._thread = thread_of(device)
        self._accept = accept
        self._options: dict[str, Any] = {"largest": largest, "exists": exists, "quota": quota}
        self._inbox: TrioInbox | None = None
        self.folder = Path(folder).expanduser().absolute()

    def _inside(self) -> TrioInbox:
        if self._inbox is None:
            raise RuntimeError("this Inbox has not been entered: use it inside `with`")
        return self._inbox

    async def _enter(self, judge: Callable[[Offer], Awaitable[Any]] | None) -> None:
        """Inside the loop; `judge` asks the program's own `accept`, where that runs."""
        accept = judge if judge is not None else bool(self._accept)
        self._inbox = TrioInbox(self._thread.device, self.folder, accept, **self._options)
        await self._inbox.__aenter__()

    async def _leave(self) -> None:
        await self._inside().__aexit__(None, None, None)

    def statistics(self) -> InboxStatistics:
        """Counts so far."""
        return self._inside().statistics()
