"""Files under way, for those who watch the device: transfers begun here, and those that members bring or fetch.

Owns how many there are and what they carried. Refuses to know what carries them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from tailscale.status import FileTransfer

if TYPE_CHECKING:
    from tailscale.mesh.peers import MeshPeer
    from tailscale.mesh.transfers import Tally

OUT, IN = "out", "in"
Show = Callable[[Callable[[], FileTransfer]], AbstractContextManager[None]]


class Showing:
    """Of one mesh. `show` lets the device's own readers look, for as long as its block lasts."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self.open: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    @contextmanager
    def show(self, member: MeshPeer, tally: Tally, *, is_outgoing: bool) -> Iterator[None]:
        """Show it while the block lasts."""
        way = OUT if is_outgoing else IN

        def look() -> FileTransfer:
            at = tally.progress()
            return FileTransfer(at.name, member.node.hostname, is_outgoing, done=at.done, total=at.total, rate=at.rate)

        def count(size: int) -> None:
            self.bytes[way] += size

        tally.on_sent = count
        self.open[way] += 1
        try:
            with self._show(look):
                yield
        finally:
            self.open[way] -= 1
