"""The first packet after a restart is not lost, although the peer still answers to where the last process was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from tailnet_scripts import host_of, until
from trio.testing import MockClock

import tailscale
from tailscale import Device
from tailscale.testing import Tailnet

SOON = 2.0  # seconds; WireGuard alone asks again after 5


@asynccontextmanager
async def restarted(net: Tailnet) -> AsyncIterator[tuple[Device, Device]]:
    """A device that was reached directly a moment ago, back under its keys; its peer hears of it a moment later."""
    b, state = await net.device("b"), tailscale.MemoryStore()
    async with net.device("a", state=state) as before:
        await before.ping("b")
        await before.ping("b", "icmp")
        await until(lambda: all(one.status().peers[0].path.kind == "direct" for one in (before, b)))
        await trio.sleep(3)
        net.link(b, "control", latency=0.3)
    async with Device.on(host_of(net, "a"), "a", control_url=net.control.url, state=state) as a:
        await until(lambda: "b" in a.peers)
        yield a, b


@pytest.mark.parametrize("kind", ["tsmp", "icmp"])
async def test_a_ping_right_after_a_restart_is_answered(autojump_clock: MockClock, tailnet: Tailnet, kind: str) -> None:
    async with restarted(tailnet) as (a, _):
        assert (await a.ping("b", kind, timeout=SOON)).latency < SOON


async def test_a_datagram_right_after_a_restart_arrives(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with restarted(tailnet) as (a, b), await b.udp(53) as far, await a.udp() as near:
        await near.send_to(b"first", ("b", 53))
        with trio.fail_after(SOON):
            assert (await far.receive_from())[0] == b"first"
