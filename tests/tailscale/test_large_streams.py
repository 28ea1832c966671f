"""Streams between two Devices over links of several sizes: what leaves, and what a link that shrinks costs."""

from __future__ import annotations

import pytest
import trio
from tailnet_scripts import until

from tailscale.metrics import exposition
from tailscale.testing import Tailnet

MIB = 1 << 20
UDP_HEADERS = 28


async def deliver(sender, receiver, count: int, halfway=lambda: None) -> float:
    """`count` bytes through a new stream; the mean size of the sender's datagrams meanwhile."""
    listener = await receiver.listen(0)
    got = 0

    async def take() -> None:
        nonlocal got
        async with await listener.accept() as stream:
            async for chunk in stream:
                got += len(chunk)
            await stream.send_all(b".")

    before = sender.status().counters.sent["direct_ipv4"]
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async with await sender.tcp_connect(receiver.ipv4, listener.port) as stream:
            for part in range(16):
                await stream.send_all(bytes(count // 16))
                if part == 8:
                    halfway()
            await stream.send_eof()
            assert await stream.receive_some(1) == b"."
    assert got == count // 16 * 16
    after = sender.status().counters.sent["direct_ipv4"]
    return (after.bytes - before.bytes) / (after.datagrams - before.datagrams)


@pytest.mark.parametrize(("link", "least", "most"), [(1500, 500, 1312), (9000, 5000, 8972), (65_535, 12_000, 65_507)])
async def test_datagrams_are_as_large_as_the_link_carries(
    link: int, least: int, most: int, autojump_clock: object
) -> None:
    async with Tailnet(latency=0.001) as net:
        a, b = await net.device("a"), await net.device("b")
        net.link(a, b, largest=link - UDP_HEADERS)
        await a.ping("b")
        await until(lambda: a.peer_status("b").path.kind == "direct")
        await deliver(a, b, MIB)  # measures on the way
        mean = await deliver(a, b, 2 * MIB)
        assert least < mean <= most
        is_raised = 'pytailscale_path_mtu_changes_total{change="raised"} 0' not in exposition(a)
        assert is_raised == (link > 1500)


async def test_a_link_that_shrinks_costs_no_byte_and_little_time(autojump_clock: object) -> None:
    async with Tailnet(latency=0.001) as net:
        a, b = await net.device("a"), await net.device("b")
        net.link(a, b, largest=9000 - UDP_HEADERS)
        await a.ping("b")
        await until(lambda: a.peer_status("b").path.kind == "direct")
        await deliver(a, b, MIB)
        began = trio.current_time()
        await deliver(a, b, 2 * MIB, halfway=lambda: net.link(a, b, largest=1472))
        assert trio.current_time() - began < 5.0
        assert a.peer_status("b").path.kind == "direct"
