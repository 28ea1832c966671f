"""What files need of a mesh: its members, words to them, and a connection to where they listen.

The seam between files and messages: neither knows the other's insides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tailscale.mesh.peers import MeshPeer
    from tailscale.sockets.tcp import TcpStream
    from tailscale.status import FileTransfer


class Ways(Protocol):
    """How files reach a member."""

    async def tell(self, member: MeshPeer, word: str, payload: object) -> None:
        """A word of the namespace `_f` and what becomes its JSON; returns when the member's process has it."""

    async def dial(self, member: MeshPeer) -> TcpStream:
        """A connection to its mesh port."""

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """A task of the mesh."""

    def show(self, look: Callable[[], FileTransfer]) -> AbstractContextManager[None]:
        """Let those who watch the device see a transfer, inside."""

    def token(self) -> str:
        """128 bits of chance, as 32 hexadecimal digits."""
