"""The faults that people meet most, each made in the virtual world: a script, where to look, and what must be said.

`test_explain.py` asks `device.explain`, `test_doctor.py` the doctor; both must name the same fault and the same remedy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio
from tailnet_scripts import echo_service, host_of, until

import tailscale
from tailscale import Device
from tailscale.testing import Tailnet

PORT = 80


@dataclass(frozen=True)
class Scene:
    """Who asks, and for what."""

    device: Device
    host: str = "b"
    port: int = PORT


Script = Callable[[Tailnet], AbstractAsyncContextManager[Scene]]


async def warned(device: Device, code: str) -> None:
    """Until the device itself says so, which takes some of these minutes."""
    with trio.fail_after(600):
        while code not in {warning.code for warning in device.health}:  # noqa: ASYNC110 - a fact of any kind
            await trio.sleep(1)


@asynccontextmanager
async def pair(net: Tailnet) -> AsyncIterator[tuple[Device, Device]]:
    """Two devices, with an echo service on the second."""
    a, b = await net.device("a"), await net.device("b")
    async with echo_service(b, PORT):
        yield a, b


@asynccontextmanager
async def healthy(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, _):
        yield Scene(a)


@asynccontextmanager
async def control_unreachable(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, _):
        await net.control.stop()
        await warned(a, "control-unreachable")
        yield Scene(a)


@asynccontextmanager
async def clock_wrong(net: Tailnet) -> AsyncIterator[Scene]:
    """A peer remembers when this key last said hello; after a restart the hello comes from before that."""
    b, state = await net.device("b"), tailscale.MemoryStore()
    async with echo_service(b, PORT):
        async with net.device("a", state=state) as before:
            await before.ping("b", "tsmp")
        net.set_clock("a", ahead=-7200)
        a = await net.device("a", state=state, auth_key="")
        yield Scene(a)


@asynccontextmanager
async def key_expired(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, _):
        net.expire(a)
        await until(lambda: a.status().state == "expired")
        yield Scene(a)


@asynccontextmanager
async def approval_needed(net: Tailnet) -> AsyncIterator[Scene]:
    """It was approved, and then an administrator took that back."""
    async with pair(net) as (a, _):
        net.control.do(net.control.server.authorize, net.id_of(a), approved=False)
        await until(lambda: a.status().state == "needs_approval")
        yield Scene(a)


@asynccontextmanager
async def udp_blocked(net: Tailnet) -> AsyncIterator[Scene]:
    for name in ("a", "b"):
        net.host(name)
    for other in ("relay", "b"):
        net.block_udp("a", other)
    async with pair(net) as (a, _):
        yield Scene(a)


@asynccontextmanager
async def relay_unreachable(net: Tailnet) -> AsyncIterator[Scene]:
    """It was there, or the device could not have joined; and nothing goes directly."""
    async with pair(net) as (a, _):
        net.block_udp(a, "b")
        net.block(a, "relay")
        await warned(a, "relay-home-unreachable")
        yield Scene(a)


@asynccontextmanager
async def name_not_found(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, _):
        await net.device("database")
        yield Scene(a, "databse")


@asynccontextmanager
async def peer_offline(net: Tailnet) -> AsyncIterator[Scene]:
    a = await net.device("a")
    async with net.device("b", ephemeral=False):
        pass
    await until(lambda: a.peers["b"].online is False)
    yield Scene(a)


@asynccontextmanager
async def peer_key_expired(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, b):
        net.expire(b)
        await until(lambda: a.peers["b"].expired)
        yield Scene(a)


@asynccontextmanager
async def peer_silent(net: Tailnet) -> AsyncIterator[Scene]:
    """Its cable is pulled, and control has not noticed."""
    async with pair(net) as (a, b):
        for other in (a, "relay"):
            net.block(b, other)
        yield Scene(a)


@asynccontextmanager
async def policy_here(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (_, b):
        await b.set(shields_up=True)
        await trio.sleep(1)
        yield Scene(b, "b")


@asynccontextmanager
async def policy_there(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, _):
        net.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]})
        await trio.sleep(1)
        yield Scene(a)


@asynccontextmanager
async def port_closed(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, _):
        yield Scene(a, port=81)


@asynccontextmanager
async def black_hole(net: Tailnet) -> AsyncIterator[Scene]:
    """Some tunnel between the two swallows what is large."""
    host_of(net, "a"), host_of(net, "b")
    net.link("a", "b", largest=1000)
    async with pair(net) as (a, _):
        await a.ping("b")
        await trio.sleep(15)
        yield Scene(a)


@asynccontextmanager
async def black_hole_just_begun(net: Tailnet) -> AsyncIterator[Scene]:
    """The same, before the device itself has noticed."""
    async with pair(net) as (a, _):
        await a.ping("b")
        await trio.sleep(2)
        net.link("a", "b", largest=1000)
        yield Scene(a)


@asynccontextmanager
async def route_not_approved(net: Tailnet) -> AsyncIterator[Scene]:
    a = await net.device("a")
    await net.device("router", advertise_routes=["192.168.7.0/24"])
    await trio.sleep(1)
    yield Scene(a, "192.168.7.9")


@asynccontextmanager
async def routes_not_accepted(net: Tailnet) -> AsyncIterator[Scene]:
    a = await net.device("a", accept_routes=False)
    router = await net.device("router", advertise_routes=["192.168.7.0/24"])
    net.approve_routes(router, "192.168.7.0/24")
    await trio.sleep(1)
    yield Scene(a, "192.168.7.9")


@asynccontextmanager
async def exit_missing(net: Tailnet) -> AsyncIterator[Scene]:
    async with pair(net) as (a, _):
        await a.set(exit_node="exit-nl")
        await until(lambda: a.health)
        yield Scene(a, "198.51.100.7")


SCRIPTS: dict[str, tuple[Script, str]] = {
    "control-unreachable": (control_unreachable, r"b port 80 can be reached.*but the control server cannot be used"),
    "clock-wrong": (clock_wrong, r"no encrypted session .*clock is 2 hours behind the control server's.*set it"),
    "key-expired": (key_expired, r"our own key has expired.*device\.login"),
    "approval-needed": (approval_needed, r"waits for an administrator's approval"),
    "udp-blocked": (udp_blocked, r"b port 80 can be reached, by relay test.*but UDP is blocked here"),
    "relay-home-unreachable": (relay_unreachable, r"no encrypted session.*No relay can be reached from here.*TCP 443"),
    "name-not-found": (name_not_found, r"no node or record is called 'databse'; did you mean 'database'\?"),
    "peer-offline": (peer_offline, r"b is offline .*did not answer within 10 s: start it"),
    "peer-key-expired": (peer_key_expired, r"the key of b expired.*log in on that machine"),
    "peer-silent": (peer_silent, r"b did not answer within 10 s: no encrypted session.*Is its tailscale running\?"),
    "policy-here": (policy_here, r"shields_up=True lets no peer open port 80 of this device"),
    "policy-there": (policy_there, r"b port 80 refused the connection: its tailnet policy does not let us in"),
    "port-closed": (port_closed, r"b port 81 refused the connection: the machine is there, but nothing listens"),
    "black-hole": (black_hole, r"b port 80 can be reached.*small packets pass by direct .*, full ones vanish there"),
    "route-not-approved": (route_not_approved, r"nobody routes 192\.168\.7\.9: router offers .*which is not approved"),
    "routes-not-accepted": (
        routes_not_accepted,
        r"router does by 192\.168\.7\.0/24, but this device accepts no routes",
    ),
    "exit-node-missing": (exit_missing, r"198\.51\.100\.7 goes by the exit node 'exit-nl', which is not there"),
}
"""The fault's code; how it is made; what the verdict says."""
