"""Exit nodes for tests of who goes through them: devices that offer the internet, and echo in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from tailnet_scripts import echo_stream, runtime_of, until

from tailscale import Device, TcpStream
from tailscale.testing import Tailnet
from ts_netstack.forwarder import ForwardedFlow, Knock
from ts_netstack.tcp import TcpConnection

EVERYWHERE = ("0.0.0.0/0", "::/0")
WEB, WEB6 = "9.9.9.9", "2620:fe::9"


class Everything:
    """The routes of somebody who forwards for the whole internet."""

    def covers(self, address: bytes) -> bool:
        return True


class Internet:
    """All that lies behind an exit: every TCP port but 81 echoes, and every UDP port. Remembers who came."""

    def __init__(self, device: Device, nursery: trio.Nursery) -> None:
        runtime = runtime_of(device)
        self.device = device
        self.connections: list[TcpConnection] = []
        self.visitors: list[bytes] = []  # their addresses
        self.forwarder, self._home, self._nursery = runtime.stack.forwarder, runtime.dialer, nursery
        self._flows: list[ForwardedFlow] = []
        self.forwarder.owner = self
        self.forwarder.set_routes(Everything())

    def wake(self) -> None:
        now = self._home.now()
        for news in self.forwarder.take_news():
            if isinstance(news, ForwardedFlow):
                news.owner = self
                self._flows.append(news)
            elif news.local[1] == 81:
                self.forwarder.refuse(news, now, is_reachable=True)
            else:
                self._admit(news, now)
        for flow in self._flows:
            while (item := flow.receive()) is not None:
                flow.reply(item[0], now)
        self._home.kick()

    def _admit(self, knock: Knock, now: float) -> None:
        self.visitors.append(knock.remote[0])
        connection = self.forwarder.admit(knock, now)
        if connection is not None:
            self.connections.append(connection)
            self._nursery.start_soon(echo_stream, TcpStream(connection, self._home))

    def shut(self) -> None:
        """The stack ends."""


@asynccontextmanager
async def exits(net: Tailnet, *names: str) -> AsyncIterator[tuple[Device, list[Internet]]]:
    """A desk, and what lies behind each of these exits, which are approved and known to it."""
    desk = await net.device("desk")
    async with trio.open_nursery() as nursery:
        made = [await exit_node(net, name) for name in names]
        internets = [Internet(device, nursery) for device in made]
        await until(lambda: len(desk.exit_nodes) == len(names))
        yield desk, internets
        nursery.cancel_scope.cancel()


async def exit_node(net: Tailnet, name: str) -> Device:
    """A device that offers to be an exit, and may."""
    device = await net.device(name, advertise_routes=EVERYWHERE)
    await until(lambda: net.control.server.directory.find(net.id_of(device)).advertised)
    net.approve_routes(device, *EVERYWHERE)
    return device
