"""What the HTTP tests share: two devices, an app served on one of them, a client on the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from tailscale import Device, TcpStream
from tailscale.http import AsyncTransport, serve
from tailscale.testing import Tailnet


@dataclass
class Site:
    """An app on `server`, and how to reach it from `caller`."""

    net: Tailnet
    caller: Device
    server: Device
    client: httpx.AsyncClient
    url: str
    shutdown: trio.Event
    done: trio.Event

    async def connect(self) -> TcpStream:
        return await self.caller.tcp_connect(self.server.hostname, 80)

    async def exchange(self, request: bytes) -> bytes:
        """Send raw bytes, read until the server hangs up."""
        with trio.fail_after(10):
            async with await self.connect() as stream:
                await stream.send_all(request)
                return await read_all(stream)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


@asynccontextmanager
async def site(net: Tailnet, app: Any, **options: Any) -> AsyncIterator[Site]:
    caller, server = await net.device("caller"), await net.device("web")
    shutdown, done = trio.Event(), trio.Event()

    async def run(*, task_status: trio.TaskStatus[str]) -> None:
        try:
            await serve(app, server, 80, shutdown=shutdown, task_status=task_status, **options)
        finally:
            done.set()

    async with trio.open_nursery() as nursery:
        url = await nursery.start(run)
        async with httpx.AsyncClient(transport=AsyncTransport(caller), base_url=url, timeout=10) as client:
            yield Site(net, caller, server, client, url, shutdown, done)
        nursery.cancel_scope.cancel()
