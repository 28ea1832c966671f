"""Opening a connection to a member: over it both have said hello, each after the other is who it says.

Owns the bound of how many sessions there may be, as far as we begin them. Refuses to know what becomes of a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from tailscale.mesh.errors import TooManySessions
from tailscale.mesh.parting import TRY_LATER

if TYPE_CHECKING:
    from tailscale.mesh.links import Link
    from tailscale.mesh.shared import Shared
    from tailscale.nodes import Node
    from tailscale.sockets.tcp import TcpStream
    from ts_mesh.hello import Hello

DIAL_PATIENCE = 30.0


class Line(Protocol):
    """Whom a connection is to lead to, and what is to be said to it."""

    shared: Shared
    node: Node

    @property
    def is_connected(self) -> bool: ...

    async def connect_port(self, *, timeout: float | None = None) -> TcpStream:
        """A bare connection to the peer's mesh port."""

    def greeting(self) -> str:
        """Our hello, as it stands now."""

    def objection(self, hello: Hello, caller: Node | None) -> tuple[int, str] | None:
        """Why a session with who sent this cannot be."""


async def open_link(line: Line) -> tuple[Link, Hello]:
    """A connection of ours to whoever a line leads to. Raises what a dial does, LinkLost, TooManySessions."""
    shared = line.shared
    if shared.sessions + shared.dials >= shared.limits.sessions:
        raise TooManySessions(line.node.hostname, shared.limits.sessions)
    shared.dials += 1
    try:
        link, hello = await _greeted(line)
    finally:
        shared.dials -= 1
    if shared.is_full and not line.is_connected:  # others came in meanwhile
        await link.refuse(TRY_LATER, "as many sessions as this app allows are open")
    return link, hello


async def _greeted(line: Line) -> tuple[Link, Hello]:
    from tailscale.mesh.links import Link  # with the first session

    limits = line.shared.limits
    stream = await line.connect_port(timeout=DIAL_PATIENCE)
    try:
        with trio.fail_after(2 * limits.hello_time):
            link = await Link.connect(stream, line.node.hostname)
            await link.say_hello(line.greeting())
            hello = await link.hear_hello(limits)
            if (problem := line.objection(hello, stream.peer)) is not None:
                await link.refuse(*problem)
            return link, hello
    except BaseException:
        stream.abort()
        raise
