"""A van with two uplinks and a machine at home: what tests of failover share."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from tailnet_scripts import beside, until, world

from tailscale import Device, PathChanged, TcpStream
from tailscale.testing import Tailnet
from tailscale.testing.network import VirtualNetwork

UPLINKS = ("wlan0", "wwan0")
PIECE, PAUSE = 20_000, 0.02  # a megabyte a second


@dataclass
class Van:
    """Two devices, and how the links between them are changed."""

    net: Tailnet
    van: Device
    nas: Device
    internet: VirtualNetwork
    changes: list[PathChanged] = field(default_factory=list)

    def change(self, uplink: str, **changes: Any) -> None:
        self.internet.change(f"van%{uplink}", "nas", **changes)

    def block(self, uplink: str, *, blocked: bool = True) -> None:
        self.change(uplink, udp_blocked=blocked)

    @property
    def used(self) -> list[str]:
        """The uplinks by which datagrams to the machine at home go now; relays are ""."""
        return [way.uplink for way in self.van.paths("nas") if way.in_use]

    async def follow(self) -> None:
        async for event in self.van.events():
            if isinstance(event, PathChanged):
                self.changes.append(event)

    async def settle(self) -> None:
        """Until there is a proven path through each uplink."""
        await self.van.ping("nas")

        def proven() -> bool:
            good = {way.uplink for way in self.van.paths("nas") if way.kind == "direct" and way.state == "good"}
            return good == set(UPLINKS)

        await until(proven, 30)


@asynccontextmanager
async def a_van(seed: int = 0, near: float = 0.01, far: float = 0.03, **options: Any) -> AsyncIterator[Van]:
    """`near` and `far`: one-way delays by the first and the second uplink."""
    async with Tailnet(latency=near, seed=seed) as net:
        internet = world(net).internet
        internet.host("van", uplinks=UPLINKS)
        van = await net.device("van", **{"uplinks": UPLINKS, **options})
        nas = await net.device("nas")
        made = Van(net, van, nas, internet)
        made.change("wwan0", latency=far)
        async with beside(made.follow):
            yield made


@dataclass
class Flow:
    """A stream of numbered bytes, and when they arrived."""

    arrivals: list[float] = field(default_factory=list)
    received: int = 0
    wrong: int = 0

    def take(self, data: bytes) -> None:
        if data != pattern(self.received, len(data)):
            self.wrong += 1
        self.received += len(data)
        self.arrivals.append(trio.current_time())

    def longest_gap(self, since: float) -> float:
        times = [at for at in self.arrivals if at >= since - 1]
        return max(b - a for a, b in itertools.pairwise(times))


REPEATED = bytes(range(251)) * 400


def pattern(at: int, size: int) -> bytes:
    start = at % 251
    return (REPEATED * (2 + size // len(REPEATED)))[start : start + size]


async def send_steadily(stream: TcpStream) -> None:
    at = 0
    while True:
        await stream.send_all(pattern(at, PIECE))
        at += PIECE
        await trio.sleep(PAUSE)


async def take_all(stream: TcpStream, flow: Flow) -> None:
    async for chunk in stream:
        flow.take(bytes(chunk))


@asynccontextmanager
async def a_flow(made: Van, upward: bool) -> AsyncIterator[Flow]:
    """A megabyte a second from the van to home, or the other way."""
    flow = Flow()
    listener = await made.nas.listen(9)

    async def serve(stream: TcpStream) -> None:
        async with stream:
            await (take_all(stream, flow) if upward else send_steadily(stream))

    async with (
        beside(functools.partial(trio.serve_listeners, serve, [listener])),
        await made.van.tcp_connect("nas", 9) as stream,
    ):
        work = functools.partial(send_steadily, stream) if upward else functools.partial(take_all, stream, flow)
        async with beside(work):
            yield flow
