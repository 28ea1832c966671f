"""A hostile peer at our router and exit node, on the machine's real network: whole packets, sealed by hand.

The router is a process in a namespace with a LAN and an internet behind it; the hostile peer is a Device of ours whose
filters, routes and manners are passed by.
"""

from __future__ import annotations

import contextlib
import ipaddress
import statistics
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import tailscale
from tests.interop import natlab
from tests.interop.natlab import inside
from tests.interop.natlab.namespaces import run
from tests.interop.ours import joined
from tests.interop.processes import poll_until
from tests.interop.rig import Rig
from tests.interop.test_router_real import HOST, POLICY, PUBLIC, calling, calls, networks_behind, our_router
from ts_base.ip_headers import SYN, ip_packet
from ts_netstack.wire import tcp_packet, udp_payload

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
PORT = 8099
OWN_LAN = "10.77.0.1"  # of the router, in the subnet that it advertises: named, so reached
TARGETS = [
    *("127.0.0.1", "127.0.0.53", "0.0.0.0", "198.51.100.1", "198.51.100.2", "198.51.100.255", "169.254.169.254"),
    *("255.255.255.255", "224.0.0.1", "100.100.100.100", "::1", "::", "::ffff:127.0.0.1", "::ffff:10.77.0.1"),
    *("::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1", "ff02::1"),
    *("fd7a:115c:a1e0:b1a:0:7:7f00:1", "fd7a:115c:a1e0:b1a:0:7:0:0"),
]


class Raw:
    """A Device that sends whatever it is told to."""

    def __init__(self, device: tailscale.Device, router: str) -> None:
        self.device = device
        self._runtime: Any = vars(device)["_runtime"]
        self._router = device.peers[router].id

    def own(self, target: bytes) -> bytes:
        text = self.device.ipv4 if len(target) == 4 else self.device.ipv6
        return ipaddress.ip_address(text or "").packed

    def send(self, packets: list[bytes]) -> None:
        now = trio.current_time()
        self._runtime.endpoint.send([(self._router, packets)], now)
        self._runtime.dataplane.flush(now)

    def call(self, text: str, port: int) -> None:
        """A SYN and a datagram."""
        target = ipaddress.ip_address(text).packed
        ends = (self.own(target), port), (target, PORT)
        self.send([tcp_packet(*ends, 7, 0, SYN, 65535), ip_packet(ends[0][0], target, 17, udp_payload(*ends, b"?"))])


@contextlib.asynccontextmanager
async def listening(namespace: str, heard: Counter[str]) -> AsyncIterator[None]:
    """Whatever reaches any address of that machine is noted."""
    with inside(namespace):
        listeners = await trio.open_tcp_listeners(PORT)
        udp = trio.socket.socket(trio.socket.AF_INET6, trio.socket.SOCK_DGRAM)
        udp.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 0)
        await udp.bind(("::", PORT))

    async def note(stream: trio.SocketStream) -> None:
        heard[f"tcp {stream.socket.getsockname()[0]}"] += 1
        await stream.aclose()

    async def note_datagrams() -> None:
        while True:
            _, source = await udp.recvfrom(100)
            heard[f"udp from {source[0]}"] += 1

    with udp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, note, listeners)
            nursery.start_soon(note_datagrams)
            yield
            nursery.cancel_scope.cancel()


async def test_nothing_of_the_routers_own_machine_is_reached(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs):
        await hs.set_policy(POLICY)
        home, evil = made.site("none"), made.site("none")
        heard: Counter[str] = Counter()
        async with networks_behind(made, home), our_router(r, hs, home) as router, listening(home.client, heard):
            with inside(evil.client):
                async with joined(hs, "hostile", auth_key=await hs.auth_key()) as device:
                    await device.set(exit_node="router")

                    async def is_router() -> bool:
                        said = (await router.ask("forwarding"))["forwarding"]
                        return len(said["approved"]) == 3 and "router" in device.peers

                    await poll_until("the routes to be approved", is_router, 30)
                    hostile = Raw(device, "router")
                    await device.ping("router")
                    own = [home.address]
                    for port, text in enumerate([*TARGETS, *own], 2000):
                        hostile.call(text, port)
                        await trio.sleep(0.05)
                    hostile.call(OWN_LAN, 3000)
                    await poll_until("what was named to be reached", lambda: reached(heard), 10)
                    await trio.sleep(3)
            said = (await router.ask("forwarding"))["forwarding"]
            print(f"heard {dict(heard)}; refused {said['refused']}")
            assert set(heard) == {f"tcp ::ffff:{OWN_LAN}", f"udp from ::ffff:{OWN_LAN}"} or set(heard) == {
                f"tcp {OWN_LAN}",
                f"udp from ::ffff:{OWN_LAN}",
            }
            assert set(heard.values()) == {1}


async def reached(heard: Counter[str]) -> bool:
    await trio.lowlevel.checkpoint()
    return len(heard) >= 2


async def test_an_interface_that_comes_closes_what_only_the_exit_led_to(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs):
        await hs.set_policy(POLICY)
        home, away = made.site("none"), made.site("none")
        async with networks_behind(made, home), our_router(r, hs, home), calling(r, hs, away):
            call = f"who:{PUBLIC}:9"
            assert (await calls(away, call))[call]["end"] == "ok"
            run("ip", "-n", home.client, "addr", "add", "203.0.113.77/24", "dev", "inet0")

            async def is_closed() -> bool:
                return (await calls(away, call))[call]["end"] != "ok"

            await poll_until("the joined network to be closed", is_closed, 40)
            run("ip", "-n", home.client, "addr", "del", "203.0.113.77/24", "dev", "inet0")

            async def is_open() -> bool:
                return (await calls(away, call))[call]["end"] == "ok"

            await poll_until("the network that was left to be open again", is_open, 40)


async def test_a_flood_of_syns_takes_no_more_than_a_tenth_of_anothers_rate(r: Rig) -> None:
    """Rates in turns: alone, and while 2,000 SYNs go into a black hole. The bound leaves the machine some room."""
    async with natlab.lab(r) as (made, hs):
        await hs.set_policy(POLICY)
        home, away, evil = made.site("none"), made.site("none"), made.site("none")
        async with (
            networks_behind(made, home),
            our_router(r, hs, home) as router,
            r.tsnet(hs, await hs.auth_key(ephemeral=False), "caller", namespace=away.client) as caller,
        ):
            await caller.ask("accept-routes")

            async def answers() -> bool:
                return bool((await caller.dial(HOST, 7, bytes=1, end="half", read=-1, timeout=3))["received"] == 1)

            await poll_until("the host to be reached", answers, 30)
            with inside(evil.client):
                async with joined(hs, "hostile", auth_key=await hs.auth_key()) as device:
                    await device.ping("router")
                    hostile = Raw(device, "router")
                    ratios = [await one_round(caller, hostile, number) for number in range(3)]
            said = (await router.ask("forwarding"))["forwarding"]
            print(f"of the rate alone: {ratios}; refused {said['refused']}, dials {said['dials']}")
            assert statistics.median(ratios) > 0.7


async def one_round(caller: Any, hostile: Raw, number: int) -> float:
    alone = await rate(caller)
    flooded = 0.0

    async def measure() -> None:
        nonlocal flooded
        flooded = await rate(caller)

    hole = ipaddress.ip_address("10.77.0.99").packed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        for burst in range(20):
            first = 1000 + 2000 * number + 100 * burst
            hostile.send([tcp_packet((hostile.own(hole), first + n), (hole, 80), 7, 0, SYN, 65535) for n in range(100)])
            await trio.sleep(0.05)
    return round(flooded / alone, 2)


async def rate(caller: Any) -> float:
    """Bytes a second to an echo behind the router and back, in 64 MiB."""
    began = trio.current_time()
    said = await caller.dial(HOST, 7, bytes=64 << 20, end="half", read=-1, timeout=60)
    assert said["received"] == 64 << 20
    return (64 << 20) / (trio.current_time() - began)
