"""One message to many peers at once, and what became of it with each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.errors import TailscaleError
from tailscale.mesh.tickets import encoded
from ts_mesh.envelope import MESSAGE

if TYPE_CHECKING:
    from tailscale.mesh.peers import MeshPeer


class BroadcastReport(NamedTuple):
    """What became of a broadcast, peer by peer."""

    delivered: tuple[MeshPeer, ...]
    failed: dict[MeshPeer, Exception]


async def broadcast(peers: Iterable[MeshPeer], namespace: str, data: object, timeout: float) -> BroadcastReport:
    """`send` to each; none waits for another. What cannot be sent at all is an error of the caller's."""
    encoded(namespace, data, MESSAGE, 0)
    delivered: list[MeshPeer] = []
    failed: dict[MeshPeer, Exception] = {}

    async def tell(peer: MeshPeer) -> None:
        try:
            await peer.send(namespace, data, timeout=timeout)
        except (TailscaleError, OSError) as problem:
            failed[peer] = problem
        else:
            delivered.append(peer)

    await trio.lowlevel.checkpoint()
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(tell, peer)
    return BroadcastReport(tuple(delivered), failed)
