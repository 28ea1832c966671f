"""The ways of a mesh, as its files need them: words by the lines to its members, connections to their ports."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tailscale.mesh.errors import NobodyListens, TransferRefused
from tailscale.mesh.events import TransferDone
from tailscale.mesh.files import Files

if TYPE_CHECKING:
    from pathlib import Path

    from tailscale.device import Device
    from tailscale.mesh.lines import Line
    from tailscale.mesh.peers import MeshPeer
    from tailscale.mesh.shared import Shared
    from tailscale.mesh.transfers import Inbox
    from tailscale.sockets.tcp import TcpStream
    from tailscale.status import FileTransfer

HASHES = "hashes.sqlite"  # in the directory of the state
WORD_PATIENCE = 60.0  # until a member's process has a word
DIAL_PATIENCE = 30.0


class MeshWays:
    """`line_of` finds the line to a member, or raises PeerGone; `start` runs a task of the mesh."""

    def __init__(self, device: Device, line_of: Callable[[MeshPeer], Line], start: Callable[..., None]) -> None:
        self._device = device
        self._line_of = line_of
        self._start = start

    async def tell(self, member: MeshPeer, word: str, payload: object) -> None:
        """Raises as a send does, and TransferRefused where nobody speaks of files."""
        try:
            await self._line_of(member).say(member, word, payload, timeout=WORD_PATIENCE)
        except NobodyListens:
            raise TransferRefused("unsupported", member.name) from None
        if member.connected and "files" not in member.features:  # it hears words of no use to it in silence
            raise TransferRefused("unsupported", member.name)

    async def dial(self, member: MeshPeer) -> TcpStream:
        return await self._line_of(member).connect_port(timeout=DIAL_PATIENCE)

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        self._start(work)

    def show(self, look: Callable[[], FileTransfer]) -> AbstractContextManager[None]:
        return self._device.show_transfer(look)

    def token(self) -> str:
        return secrets.token_hex(16)


def files_of(
    shared: Shared,
    line_of: Callable[[MeshPeer], Line],
    inbox: Inbox | None,
    share: Mapping[str, Path] | None,
    folder: Path | None,
) -> Files:
    """Who sends and takes files in a mesh, which keeps in `folder` what it has hashed."""
    return Files(
        MeshWays(shared.device, line_of, shared.start),
        inbox=inbox,
        share=share,
        cache=folder / HASHES if folder is not None else None,
        limits=shared.limits,
        drops=shared.drops,
        on_done=lambda peer, name, problem: shared.readers.put(TransferDone(peer, name, problem)),
    )
