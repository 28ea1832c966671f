"""Files under way, for those who watch the device: those that leave and those that come, whoever began.

Owns how many there are and what they carried. Refuses to know what carries them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from tailscale.status import FileTransfer

if TYPE_CHECKING:
    from tailscale.files.transfers import Tally

OUT, IN = "out", "in"
Show = Callable[[Callable[[], FileTransfer]], AbstractContextManager[None]]


class Showing:
    """Of one mesh, or of Taildrop. `show` lets the device's own readers look, for as long as its block lasts."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self.open: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    @contextmanager
    def show(self, peer: str, tally: Tally, *, is_outgoing: bool) -> Iterator[None]:
        """Show it while the block lasts."""
        way = OUT if is_outgoing else IN

        def look() -> FileTransfer:
            at = tally.progress()
            return FileTransfer(at.name, peer, is_outgoing, done=at.done, total=at.total, rate=at.rate)

        def count(size: int) -> None:
            self.bytes[way] += size

        tally.tell_of_sent(count)
        self.open[way] += 1
        try:
            with self._show(look):
                yield
        finally:
            self.open[way] -= 1
