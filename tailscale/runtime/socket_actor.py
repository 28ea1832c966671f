"""Many UDP sockets for a moment, where a hard NAT has to be opened: made, read and closed as the path finder wants.

Owns their tasks. Which of them becomes a path, and what is sent, is `ts_dataplane/hard_nats.py`'s business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import SocketsAsked, SocketsReturned
from tailscale.runtime.network import DirectRuns, UdpUnderlay
from ts_base.who import PathRun

SHARE = 4  # of the sockets that the system lets the program have at all, one part of so many


@trio.lowlevel.enable_ki_protection
async def run_sockets(
    bus: Bus,
    udp: UdpUnderlay,
    limit: int,
    deliver: Callable[[Sequence[PathRun]], None],
    ready: Callable[[Sequence[str], float], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Owns: the sockets beside the first. Hears: SocketsAsked, SocketsReturned. Says: nothing; `ready` hears names."""
    with bus.subscribe(SocketsAsked, SocketsReturned, name="sockets") as inbox:
        async with trio.open_nursery() as nursery:
            task_status.started()
            try:
                while True:
                    match await inbox.receive():
                        case SocketsAsked(count):
                            made = udp.open_more(min(count, limit // SHARE))
                            for more in made.values():
                                nursery.start_soon(_until_closed, partial(_read, more.recv_many, deliver))
                                nursery.start_soon(_until_closed, more.run_writer)
                            ready(list(made), trio.current_time())
                        case SocketsReturned(names):
                            udp.close_more(names)
            finally:
                udp.close_more(None)


async def _read(read: Callable[[], Awaitable[DirectRuns]], deliver: Callable[[Sequence[PathRun]], None]) -> None:
    while True:
        deliver(await read())


async def _until_closed(run: Callable[[], Awaitable[object]]) -> None:
    try:
        await run()
    except trio.ClosedResourceError:
        return
