"""Both ends of a scenario under one face: our Device here, and over there tsnet, tailscaled or another Device."""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

import tailscale
from tests.interop.pattern import pattern
from tests.interop.processes import PORTS
from tests.interop.rig import Headscale, Rig, Tailscaled, Testcontrol, TsnetPeer

CHUNK = 1 << 16
SERVICES = {"echo": 7, "hash": 9, "reset": 11, "generate": 19}
# name of a path -> (environment of Go peers and ours alike)
PATHS = {
    "direct": {},
    "derper tls": {"TS_DEBUG_NEVER_DIRECT_UDP": "1"},
    "derper http": {"TS_DEBUG_NEVER_DIRECT_UDP": "1", "TS_DEBUG_USE_DERP_HTTP": "1"},
    "embedded": {"TS_DEBUG_NEVER_DIRECT_UDP": "1", "TS_DEBUG_USE_DERP_HTTP": "1"},
}


# --- the services every end offers ----------------------------------------------------------------


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    """Returns every byte; after the caller's FIN it sends its own."""
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.send_eof()


async def hash_all(stream: trio.abc.HalfCloseableStream) -> None:
    """At the caller's FIN answers `<count> <sha256>` and closes."""
    h, count = hashlib.sha256(), 0
    async for chunk in stream:
        h.update(chunk)
        count += len(chunk)
    await stream.send_all(f"{count} {h.hexdigest()}\n".encode())
    await stream.send_eof()


async def generate(stream: trio.abc.HalfCloseableStream) -> None:
    """Answers each `N` line with N bytes of the pattern."""
    waiting = b""
    async for chunk in stream:
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            await stream.send_all(pattern(int(line)))


async def reset_after_line(stream: Any) -> None:
    """Reads one line, then aborts."""
    await stream.receive_some(1)
    stream.abort()


Handler = Callable[[Any], Awaitable[None]]


def guarded(handler: Handler) -> Handler:
    async def handle(stream: Any) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            async with stream:
                await handler(stream)

    return handle


async def serve(device: tailscale.Device, nursery: trio.Nursery) -> None:
    """Our services on their usual ports of a Device."""
    handlers: dict[str, Handler] = {
        "echo": echo,
        "hash": hash_all,
        "generate": generate,
        "reset": reset_after_line,
    }
    for name, handler in handlers.items():
        listener = await device.listen(SERVICES[name])
        nursery.start_soon(trio.serve_listeners, guarded(handler), [listener])
    for host in (device.ipv4, device.ipv6):
        if host:
            nursery.start_soon(_udp_echo, await device.udp(7, host=host))


async def _udp_echo(socket: tailscale.UdpSocket) -> None:
    async with socket:
        while True:
            data, source = await socket.receive_from()
            await socket.send_to(data, source)


# --- our end --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def environment(values: dict[str, str]) -> AsyncIterator[None]:
    """These variables while the body runs; a Device reads them when it is made."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def tls_for(control: Headscale | Testcontrol) -> ssl.SSLContext | None:
    ca = getattr(control, "ca", None)
    return ssl.create_default_context(cafile=str(ca)) if ca else None


async def make_device(
    control: Headscale | Testcontrol, name: str = "ours", *, path: str = "direct", **options: Any
) -> tailscale.Device:
    """A Device that is not entered yet."""
    if "auth_key" not in options and isinstance(control, Headscale):
        options["auth_key"] = await control.auth_key()
    async with environment(PATHS[path]):
        return tailscale.Device(name, control_url=control.url, tls=tls_for(control), **options)


@contextlib.asynccontextmanager
async def joined(
    control: Headscale | Testcontrol,
    name: str = "ours",
    *,
    path: str = "direct",
    services: bool = False,
    **options: Any,
) -> AsyncIterator[tailscale.Device]:
    """A Device that has joined; with `services` it offers what tsnet peers offer."""
    device = await make_device(control, name, path=path, **options)
    async with device:
        if not services:
            yield device
            return
        async with trio.open_nursery() as nursery:
            await serve(device, nursery)
            yield device
            nursery.cancel_scope.cancel()


@dataclass
class Answer:
    """What came back on a connection: how much, its hash, and its beginning."""

    received: int
    sha256: str
    head: bytes


async def converse(stream: Any, data: bytes, *, end: str = "half", read: int = -1) -> Answer:
    """Sends `data`, ends our side as asked ("half", "reset" or ""), reads `read` bytes (-1: to EOF)."""
    h, head, count = hashlib.sha256(), b"", 0

    async def send() -> None:
        await stream.send_all(data)
        if end == "half":
            await stream.send_eof()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while read < 0 or count < read:
            chunk = await stream.receive_some(CHUNK if read < 0 else min(CHUNK, read - count))
            if not chunk:
                break
            h.update(chunk)
            count += len(chunk)
            head = (head + chunk)[:4096] if len(head) < 4096 else head
        if end == "reset":
            stream.abort()
    return Answer(count, h.hexdigest(), head)


# --- the far end ----------------------------------------------------------------------------------


class Far:
    """The other end. `port(service)` is where it offers a service; `dial` makes it call us."""

    name: str
    ip4: str
    ip6: str

    can_half_close = True

    def port(self, service: str) -> int:
        return SERVICES[service]

    async def dial(self, host: str, port: int, count: int = 0, *, data: bytes = b"", read: int = -1) -> Answer:
        raise NotImplementedError


class FarTsnet(Far):
    def __init__(self, peer: TsnetPeer) -> None:
        self.peer, self.name, self.ip4, self.ip6 = peer, peer.name, peer.ip4, peer.ip6

    async def dial(self, host: str, port: int, count: int = 0, *, data: bytes = b"", read: int = -1) -> Answer:
        said = await self.peer.dial(host, port, bytes=count, data=data or None, end="half", read=read, timeout=60)
        return Answer(said["received"], said["sha256"], said["head"])


class FarTailscaled(Far):
    """A daemon hands tailnet connections to 127.0.0.1, so its services are sockets of ours.

    What it dials goes through its SOCKS proxy, which closes both directions at the first FIN: so an answer
    to our FIN never comes back, and only as many bytes as were sent are waited for.
    """

    can_half_close = False

    def __init__(self, daemon: Tailscaled, ports: dict[str, int]) -> None:
        self.daemon, self.name, self.ip4, self.ip6, self._ports = daemon, daemon.name, daemon.ip4, daemon.ip6, ports

    def port(self, service: str) -> int:
        return self._ports[service]

    async def dial(self, host: str, port: int, count: int = 0, *, data: bytes = b"", read: int = -1) -> Answer:
        data = data or pattern(count)
        return await converse(await self.daemon.connect(host, port), data, end="", read=len(data) if read < 0 else read)


class FarDevice(Far):
    def __init__(self, device: tailscale.Device) -> None:
        self.device, self.name = device, device.hostname
        self.ip4, self.ip6 = device.ipv4 or "", device.ipv6 or ""

    async def dial(self, host: str, port: int, count: int = 0, *, data: bytes = b"", read: int = -1) -> Answer:
        return await converse(await self.device.tcp_connect(host, port), data or pattern(count), read=read)


@contextlib.asynccontextmanager
async def far_end(
    r: Rig, control: Headscale, kind: str, name: str = "db", *, path: str = "direct"
) -> AsyncIterator[Far]:
    """A peer of this kind: "tsnet", "tailscaled", "old tailscaled" or "ours"."""
    key = await control.auth_key()
    if kind == "ours":
        async with joined(control, name, path=path, services=True) as device:
            yield FarDevice(device)
    elif kind == "tsnet":
        async with r.tsnet(control, key, name, env=PATHS[path]) as peer:
            yield FarTsnet(peer)
    else:
        ports = {service: PORTS.take() for service in ("echo", "hash", "generate")}
        async with trio.open_nursery() as nursery:
            for service, handler in (("echo", echo), ("hash", hash_all), ("generate", generate)):
                listeners = await trio.open_tcp_listeners(ports[service], host="127.0.0.1")
                nursery.start_soon(trio.serve_listeners, guarded(handler), listeners)
            old = kind.startswith("old")
            async with r.tailscaled(name, control=control, auth_key=key, old=old, env=PATHS[path]) as daemon:
                yield FarTailscaled(daemon, ports)
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def tailnet(r: Rig, path: str = "direct", **options: Any) -> AsyncIterator[Headscale]:
    """Control and relay for this path."""
    http = path in ("derper http", "embedded")
    async with r.derper(tls=not http) as relay:
        regions = [] if path == "embedded" else [relay.region]
        async with r.headscale(regions=regions, embedded_derp=path == "embedded", **options) as hs:
            yield hs
