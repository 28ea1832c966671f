"""What the tests of `tailscale.serve` share: a device that publishes, one that calls, servers of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
import httpx
import trio

from tailscale import Device, TcpStream
from tailscale.http import AsyncTransport
from tailscale.http.arrival import Arrival
from tailscale.http.choice import ByApp, scope_of, upgraded
from tailscale.http.connections import Connections
from tailscale.http1.limits import Limits
from tailscale.http1.visits import Visits
from tailscale.serve import Serve
from tailscale.sockets.local import LocalStream
from tailscale.testing import Tailnet


@dataclass
class Published:
    """A Serve on `device`, and `client` on `caller`."""

    web: Serve
    caller: Device
    device: Device
    client: httpx.AsyncClient

    async def connect(self, port: int = 80) -> TcpStream:
        return await self.caller.tcp_connect(self.device.hostname, port)

    async def exchange(self, request: bytes, port: int = 80) -> bytes:
        """Send raw bytes, read until the server hangs up."""
        received = bytearray()
        with trio.move_on_after(60):
            async with await self.connect(port) as stream:
                await stream.send_all(request)
                while data := await stream.receive_some():
                    received += data
                return bytes(received)
        raise AssertionError(f"the answer to {request[:90]!r} has no end: {bytes(received[-200:])!r}")


@asynccontextmanager
async def published(net: Tailnet, say: Callable[[Serve], object], **options: Any) -> AsyncIterator[Published]:
    caller, device = await net.device("caller"), await net.device("web")
    web = Serve(device, **options)
    say(web)
    async with trio.open_nursery() as nursery:
        await nursery.start(web.run)
        transport = AsyncTransport(caller)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{device.name}", timeout=30) as client:
            yield Published(web, caller, device, client)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp_server(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """A server of this machine: `127.0.0.1:PORT`."""

    async def attend(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await handle(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, attend, listeners))
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def web_server(app: Any) -> AsyncIterator[str]:
    """A web server of this machine that believes all it is told: its URL."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_anybody, app, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def serve_anybody(app: Any, listeners: list[trio.SocketListener]) -> None:
    async def choose(request: h11.Request, arrival: Arrival) -> ByApp:
        await trio.lowlevel.checkpoint()
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        return ByApp(app, upgraded(request, {**scope_of(request, arrival, None, {}), "headers": headers}))

    limits = Limits()
    connections = Connections(None, limits, Visits(), choose)

    async def attend(stream: trio.SocketStream) -> None:
        visit = connections.admit("", lambda: None)
        assert visit is not None
        await connections.attend(LocalStream.adopt(stream), None, Arrival(("127.0.0.1", 1), ("127.0.0.1", 2)), visit)

    await trio.serve_listeners(attend, listeners)


class Echo:
    """A web server that answers with what it was asked, and keeps it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        query = scope["query_string"]
        said = scope["method"].encode() + b" " + scope["raw_path"] + (b"?" + query if query else b"") + b" " + body
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})

    def headers(self) -> dict[bytes, bytes]:
        """Those of the last request, each of which came once."""
        found = dict(self.asked[-1]["headers"])
        assert len(found) == len(self.asked[-1]["headers"])
        return found
