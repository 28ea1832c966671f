"""What tests of meshes share: devices of one app in a tailnet of their own, and a word with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from tailscale.mesh import Lagged, Mesh, Message, Subscription
from tailscale.testing import Tailnet

APP = "notes"


@asynccontextmanager
async def meshes(net: Tailnet, *names: str, app: str = APP, **options: Any) -> AsyncIterator[list[Mesh]]:
    """A mesh on each of these devices; every one knows every other."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(Mesh(await net.device(name), app, **options)) for name in names]
        for mesh in found:
            await until_met(mesh, len(names) - 1)
        yield found


async def until_met(mesh: Mesh, count: int) -> None:
    """Wait until a mesh has so many members besides us."""
    with trio.fail_after(10):
        while len(mesh.peers) < count:  # noqa: ASYNC110 - a fact
            await trio.sleep(0.01)


async def next_of(inbox: Subscription[Any], timeout: float = 10) -> Message[Any]:
    """The next message, which is no `Lagged`."""
    with trio.fail_after(timeout):
        message = await inbox.__anext__()
    assert not isinstance(message, Lagged)
    return message
