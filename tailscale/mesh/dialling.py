"""Opening a connection to a member: over it both have said hello, each after the other is who it says.

Owns the bound of how many sessions there may be, as far as we begin them. Refuses to know what becomes of a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tailscale.mesh.errors import TooManySessions
from tailscale.mesh.links import TRY_LATER, Link

if TYPE_CHECKING:
    from tailscale.mesh.lines import Line
    from ts_mesh.hello import Hello

DIAL_PATIENCE = 30.0


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
