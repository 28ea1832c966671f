"""What tests of exits by policy share: a desk, exits at their places, and a host outside that says who came."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from tailnet_scripts import beside, until, world

from tailscale import Device
from tailscale.proxy import Exits
from tailscale.testing import PlayedExit, Tailnet
from tailscale.testing.pipes import VirtualStream

WEB, WEB6, OTHER = "198.51.100.7", "2620:fe::7", "198.51.100.8"
NAME = "www.example"
RECORDS = {NAME: [WEB]}


class Outside:
    """A host of the internet that echoes on port 80, refuses on every other, and remembers who came."""

    def __init__(self, net: Tailnet) -> None:
        self._net = net
        self._addresses: list[str] = []

    @property
    def visitors(self) -> list[str]:
        """The machines that they came from."""
        return [world(self._net).internet.find(address).name for address in self._addresses]

    async def answer(self, stream: VirtualStream) -> None:
        self._addresses.append(stream.remote_address[0])
        async with stream:
            try:
                async for chunk in stream:
                    await stream.send_all(chunk)
            except trio.BrokenResourceError:
                return


@asynccontextmanager
async def outside(net: Tailnet, *addresses: str, name: str = "web") -> AsyncIterator[Outside]:
    """That host, while the block runs."""
    host = Outside(net)
    listener = net.host(name, *(addresses or (WEB,))).listen_tcp(80)
    async with beside(functools.partial(trio.serve_listeners, host.answer, [listener])):
        yield host


async def desk_and_exits(net: Tailnet, *names: str, **options: object) -> tuple[Device, list[PlayedExit]]:
    """A desk, and exits that know the one name there is."""
    desk = await net.device("desk")
    made = [await net.exit_node(name, records=RECORDS, **options) for name in names]
    await until(lambda: len(desk.exit_nodes) == len(names))
    return desk, made


def cut(net: Tailnet, *exits: str) -> None:
    """The cable of an exit is pulled: to everybody."""
    for name in exits:
        for other in ("desk", "relay", "control"):
            net.block(name, other)


def mend(net: Tailnet, *exits: str) -> None:
    for name in exits:
        for other in ("desk", "relay", "control"):
            net.unblock(name, other)


async def echoed_by(chosen: Exits, host: str = WEB, session: str = "", timeout: float | None = None) -> str:
    """One round trip; the exit it went through."""
    async with await chosen.tcp_connect(host, 80, session=session, timeout=timeout) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        assert stream.exit is not None
        return stream.exit.hostname


async def timed(chosen: Exits, host: str = WEB, session: str = "") -> tuple[str, float]:
    """The exit it went through, and the seconds that took."""
    began = trio.current_time()
    return await echoed_by(chosen, host, session), trio.current_time() - began
