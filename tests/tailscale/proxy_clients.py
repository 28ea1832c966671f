"""What the tests of the proxy share: a tailnet with a proxy on it, and clients that speak to it in raw bytes."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio
from tailnet_scripts import echo_stream

from tailscale import Device, TcpStream
from tailscale.proxy import NO_EXIT, Exits, Proxy, serve
from tailscale.testing import Tailnet

NO_LOGIN = b"\x05\x01\x00"
CHOSEN_NO_LOGIN = b"\x05\x00"
ECHO_PORT = 7


def socks_request(host: str | bytes, port: int, command: int = 1) -> bytes:
    """A request by name."""
    name = host.encode() if isinstance(host, str) else host
    return bytes((5, command, 0, 3, len(name))) + name + port.to_bytes(2, "big")


def login(user: bytes, password: bytes) -> bytes:
    return bytes((1, len(user))) + user + bytes((len(password),)) + password


@dataclass
class Scene:
    """`desk` serves the proxy on the tailnet, `web` echoes, `laptop` is the client."""

    net: Tailnet
    desk: Device
    web: Device
    laptop: Device
    proxy: Proxy
    shutdown: trio.Event
    done: trio.Event

    async def connect(self) -> TcpStream:
        return await self.laptop.tcp_connect("desk", self.proxy.port)

    async def exchange(self, *pieces: bytes, eof: bool = False) -> bytes:
        """Send the pieces one by one, then read until the proxy hangs up."""
        with trio.fail_after(120):
            async with await self.connect() as stream:
                with suppress(trio.BrokenResourceError):  # it may hang up before it has read all
                    for piece in pieces:
                        await stream.send_all(piece)
                        if len(pieces) > 1:
                            await trio.sleep(0.001)
                    if eof:
                        await stream.send_eof()
                return await read_all(stream)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """What comes until the end; a reset ends it too."""
    received = bytearray()
    try:
        while data := await stream.receive_some():
            received += data
    except trio.BrokenResourceError:
        received += b"<reset>"
    return bytes(received)


async def read_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = await stream.receive_some(count - len(received))
        assert data, f"the stream ended after {bytes(received)!r}"
        received += data
    return bytes(received)


async def read_head(stream: trio.abc.ReceiveStream) -> bytes:
    """A head of HTTP, and nothing behind it."""
    received = bytearray()
    while not received.endswith(b"\r\n\r\n"):
        received += await read_exactly(stream, 1)
    return bytes(received)


def bytewise(data: bytes, size: int = 1) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@asynccontextmanager
async def scene(net: Tailnet, exits: Exits = NO_EXIT, **options: Any) -> AsyncIterator[Scene]:
    desk, web, laptop = await net.device("desk"), await net.device("web"), await net.device("laptop")
    async with serving(desk, "tailnet:1080", exits, **options) as (proxy, shutdown, done):
        listener = await web.listen(ECHO_PORT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(trio.serve_listeners, echo_stream, [listener]))
            yield Scene(net, desk, web, laptop, proxy, shutdown, done)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(
    device: Device, listen: Any, exits: Exits = NO_EXIT, **options: Any
) -> AsyncIterator[tuple[Proxy, trio.Event, trio.Event]]:
    shutdown, done = trio.Event(), trio.Event()

    async def run(*, task_status: trio.TaskStatus[Proxy]) -> None:
        await serve(device, listen, exits, shutdown=shutdown, task_status=task_status, **options)
        done.set()

    async with trio.open_nursery() as nursery:
        yield await nursery.start(run), shutdown, done
        nursery.cancel_scope.cancel()


async def socks_open(stream: trio.abc.Stream, host: str, port: int) -> bytes:
    """Connect through the proxy; its reply."""
    await stream.send_all(NO_LOGIN)
    assert await read_exactly(stream, 2) == CHOSEN_NO_LOGIN
    await stream.send_all(socks_request(host, port))
    head = await read_exactly(stream, 4)
    return head + await read_exactly(stream, (4 if head[3] == 1 else 16) + 2)


async def echoed(stream: trio.abc.Stream, data: bytes = b"hello") -> bytes:
    await stream.send_all(data)
    return await read_exactly(stream, len(data))
