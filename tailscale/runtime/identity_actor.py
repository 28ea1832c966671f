"""Hands a new node key of ours to everything that speaks under it: the tunnel, the relays and the path finder."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import NodeKeyChanged
from ts_base.keys import NodePrivate


@trio.lowlevel.enable_ki_protection
async def run_identity(
    bus: Bus,
    adopt: Callable[[NodePrivate], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Follow key rotation. Owns: nothing. Hears: NodeKeyChanged. Says: nothing."""
    with bus.subscribe(NodeKeyChanged, name="identity") as inbox:
        task_status.started()
        while True:
            message = await inbox.receive()
            if isinstance(message, NodeKeyChanged):
                adopt(message.key)
