"""What the asyncio and the threaded face of exits share: whose they are, and everything that needs no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from tailscale.proxy.exits import NO_EXIT
from tailscale.proxy.exits import Exits as TrioExits
from tailscale.threads.face import Face

if TYPE_CHECKING:
    from typing import Unpack

    from tailscale.proxy.exits import ExitsOptions
    from tailscale.threads.face import DeviceFace


class ExitsFace(Face[TrioExits]):
    """Stands outside the loop for the exits of a device inside it."""

    def __init__(self, device: DeviceFace, **options: Unpack[ExitsOptions]) -> None:
        self._thread = device._thread
        self._exits = TrioExits(self._thread.device, **options)

    def _inside(self) -> TrioExits:
        return self._exits

    @classmethod
    def from_spec(cls, device: DeviceFace, text: str) -> Self:
        """What `--exit` says in one word: `NL`, `NL/ams`, `node:hq,hq-backup`, `tag:exit`, `any`, `none`."""
        made = cls.__new__(cls)
        made._thread = device._thread
        made._exits = TrioExits.from_spec(made._thread.device, text)
        return made

    def __repr__(self) -> str:
        return repr(self._exits)


def way_of(exits: ExitsFace | TrioExits | None) -> TrioExits:
    """The exits inside the loop that are meant; None is nobody."""
    return exits._inside() if isinstance(exits, ExitsFace) else exits or NO_EXIT
