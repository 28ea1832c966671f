"""The tailnet that examples and snippets of the docs run in: on loopback, in a thread of its own, with a few peers.

Owns the peers and what they serve. Programs join by `TS_CONTROL_URL` and `TS_AUTHKEY`, as they would anywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from docs_postgres import speak_postgres

import tailscale.http
from tailscale import Device, TcpStream
from tailscale.certificates.control import DIRECTORY_VARIABLE
from tailscale.runtime.network import HostNetwork
from tailscale.testing import PlayedExit, Tailnet
from tailscale.testing.exits import EVERYWHERE
from ts_control.wire import Location, Service

ECHO_PORTS = {"db": (7, 5432), "web": (7,), "cache": (), "laptop": (7,)}
EXIT = "exit-nl"
AMSTERDAM = Location(country="Netherlands", country_code="NL", city="Amsterdam", city_code="ams")
REDIS = {
    b"PING": b"+PONG",
    b"SET": b"+OK",
    b"GET": b"$5\r\nhello",
    b"HELLO": b"%1\r\n+proto\r\n:3",
    b"CLIENT": b"+OK",
}
SSL_REQUEST = bytes.fromhex("0000000804d2162f")


@dataclass(frozen=True)
class World:
    """What a program needs to join, and what a test may do to the tailnet meanwhile."""

    control_url: str
    auth_key: str
    net: Tailnet
    token: trio.lowlevel.TrioToken

    @property
    def environment(self) -> dict[str, str]:
        directory = self.net.certificates.directory
        return {"TS_CONTROL_URL": self.control_url, "TS_AUTHKEY": self.auth_key, DIRECTORY_VARIABLE: directory}

    def ask(self, question: Callable[[Tailnet], Any]) -> Any:
        """Call something in the world's own thread."""
        return trio.from_thread.run_sync(question, self.net, trio_token=self.token)


@contextmanager
def running_world() -> Iterator[World]:
    """The world, until the block ends."""
    made: list[World] = []
    failures: list[BaseException] = []
    is_up, is_over = threading.Event(), trio.Event()

    def run() -> None:
        try:
            trio.run(_live, made, is_up, is_over)
        except BaseException as error:
            failures.append(error)
        finally:
            is_up.set()

    thread = threading.Thread(target=run, name="docs-world")
    thread.start()
    is_up.wait()
    if failures:
        raise failures[0]
    try:
        yield made[0]
    finally:
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(is_over.set, trio_token=made[0].token)
        thread.join()
        if failures:
            raise failures[0]


async def _live(made: list[World], is_up: threading.Event, is_over: trio.Event) -> None:
    async with Tailnet(real=True, certificates=True) as net, trio.open_nursery() as nursery:
        for name, ports in ECHO_PORTS.items():
            await _serve(nursery, await net.device(name), ports)
        await nursery.start(_offer_exit, net)
        key = net.auth_key(reusable=True, ephemeral=True, lifetime=0.0)
        made.append(World(net.control.url, key, net, trio.lowlevel.current_trio_token()))
        is_up.set()
        await is_over.wait()
        nursery.cancel_scope.cancel()


async def _serve(nursery: trio.Nursery, device: Device, ports: tuple[int, ...]) -> None:
    for port in ports:
        nursery.start_soon(trio.serve_listeners, _echo, [await device.listen(port)])
    nursery.start_soon(trio.serve_listeners, _redis, [await device.listen(6379)])
    nursery.start_soon(_echo_datagrams, await device.udp(7))
    for port in (80, 8000):
        await nursery.start(partial(tailscale.http.serve, _page, device, port))


class EchoingInternet(HostNetwork):
    """Loopback, and in place of the internet a server that echoes whatever port it is asked for."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def open_tcp(self, host: str, port: int) -> trio.SocketStream:
        return await super().open_tcp(*((host, port) if host.startswith("127.") else ("127.0.0.1", self._port)))


async def _offer_exit(net: Tailnet, *, task_status: trio.TaskStatus[None]) -> None:
    """An exit node in Amsterdam, behind which everything echoes, and which knows the name example.com."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    network = EchoingInternet(listeners[0].socket.getsockname()[1])
    options = {
        "control_url": net.control.url,
        "auth_key": net.auth_key(),
        "advertise_routes": EVERYWHERE,
        "peerapi": False,
    }
    async with Device.on(network, EXIT, **options) as device, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, _echo, listeners)
        port = await nursery.start(PlayedExit(device, {"example.com": ["198.51.100.7"]}).serve_dns)
        number = net.id_of(device)
        while not net.control.server.directory.find(number).advertised:  # noqa: ASYNC110 - control's own fact
            await trio.sleep(0.01)
        services = (Service("peerapi4", port), Service("peerapi6", port))
        net.control.do(net.control.server.describe, number, location=AMSTERDAM, services=services)
        net.approve_routes(device, *EVERYWHERE)
        task_status.started()
        await trio.sleep_forever()


async def _echo(stream: TcpStream | trio.SocketStream) -> None:
    """An echo, unless it is spoken to in PostgreSQL."""
    async with stream:
        with suppress(trio.BrokenResourceError):
            await _converse(stream)


async def _converse(stream: TcpStream | trio.SocketStream) -> None:
    async for data in stream:
        if data[:8] == SSL_REQUEST or data[4:6] == b"\0\3":
            await speak_postgres(stream, bytes(data))
            return
        await stream.send_all(data)


async def _echo_datagrams(socket: Any) -> None:
    async with socket:
        while True:
            data, address = await socket.receive_from()
            await socket.send_to(data, address)


async def _redis(stream: TcpStream) -> None:
    """As much of Redis as a snippet needs: the words of a command stand on lines of their own."""
    async with stream:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await _answer_redis(stream, data)


async def _answer_redis(stream: TcpStream, data: bytes) -> None:
    for word in data.upper().split(b"\r\n"):
        if word in REDIS:
            await stream.send_all(REDIS[word] + b"\r\n")


async def _page(scope: Any, receive: Any, send: Any) -> None:
    """Says who is calling."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = f"hello {scope['extensions']['tailscale']['hostname']}".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
