"""Where files meet messages: what a service of files is given by the mesh, and what it gives.

The mesh carries its words (namespace `_f`, between verified members only, numbered and acknowledged as messages are)
and hands it the HTTP requests on `/f/{ticket}/{n}`. It owns tickets, names and disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from tailscale.http1.wire import Wire
    from tailscale.mesh.peers import MeshPeer
    from tailscale.mesh.transfers import Transfer
    from tailscale.nodes import Node


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A request on `/f/{ticket}/{n}` whose head has been read and found well-formed; its body has not.

    `caller` is who is connected, by the tailnet's word: compare it with whom the ticket was given to.
    Read the body with `await wire.next_event(timeout)`: `h11.Data` pieces, then `h11.EndOfMessage` with the trailers
    (send 100 first where `wire.http.they_are_waiting_for_100_continue`). Answer with `await wire.write(
    wire.http.send(h11.Response(...)))` and so on, or `await wire.refuse(status, reason)`. `wire.stream` is the bare
    stream. A broken connection is `tailscale.http1.asgi.ClientDisconnected`, bytes that are no HTTP are
    `h11.RemoteProtocolError`: both may be left to the caller of `answer`.
    """

    caller: Node
    method: str
    ticket: str
    number: str
    headers: Sequence[tuple[bytes, bytes]]
    """Names are lower-case."""
    wire: Wire


class FileService(Protocol):
    """One mesh's files."""

    def hear(self, peer: MeshPeer, word: str, payload: Any) -> None:
        """A word of `_f` from a member: `offer`, `accept`, `reject`, ... with its decoded JSON.

        Called in order, by the task that reads the session: return at once, start what takes time elsewhere. What it
        raises is counted and logged, and ends nothing.
        """

    def knows(self, ticket: str) -> bool:
        """Whether this mesh gave that ticket: several meshes of one device share the port."""

    async def answer(self, request: FileRequest) -> None:
        """Answer one request completely. The connection carries the next one where h11 allows it.

        Cancelled when the connection has to end. What it raises ends this connection only.
        """

    def push(self, member: MeshPeer, paths: Sequence[Path], into: str = "", *, resume: bool = True) -> Transfer:
        """Files and folders to a member's inbox."""

    def pull(self, member: MeshPeer, path: str, into: Path, *, resume: bool = True) -> Transfer:
        """A file or folder that a member shares, into a folder here."""


# What the mesh gives to the service: `mesh.carry_files(service)` before the mesh is entered, then
#
#   line = mesh.line_of(peer)
#   await line.say(peer, word, payload, timeout=...)   a word of `_f`: returns when the peer's service has heard it.
#                                                      Raises as `send` does: PeerGone, NobodyListens (no service
#                                                      there), ConnectionTimedOut, a dial's error.
#   await line.connect_port(timeout=...)               a TcpStream to the peer's mesh port, for PUT and GET.
#   mesh.start(task, *arguments)                       a task that ends with the mesh, and ends nothing but itself.
#   mesh.drops["mesh.reason"] += 1                     what was dropped, and why.
