"""TcpStream between two living devices: trio's conformance suite, by the direct path and by the relay."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet

Pair = tuple[tailscale.TcpStream, tailscale.TcpStream]


@pytest.mark.parametrize("way", ["direct", "relay"])
async def test_stream_passes_trios_conformance_suite(autojump_clock: MockClock, tailnet: Tailnet, way: str) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    if way == "relay":
        tailnet.block_udp(a, b)
    assert (await a.ping("b")).path.startswith(way)
    listener = await b.listen(80)

    async def make() -> Pair:
        stream = await a.tcp_connect("b", 80)
        return stream, await listener.accept()

    async def make_clogged() -> Pair:
        pair = await make()
        for stream in pair:
            with trio.move_on_after(1):
                while True:
                    await stream.send_all(bytes(1 << 20))
        return pair

    await trio.testing.check_half_closeable_stream(make, make_clogged)
    await listener.aclose()


async def test_half_close_and_reset_both_ways(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    listener = await b.listen(80)
    for turned in (False, True):
        pair = (await a.tcp_connect("b", 80), await listener.accept())
        left, right = reversed(pair) if turned else pair
        await left.send_all(b"question")
        await left.send_eof()
        assert await right.receive_some() == b"question"
        assert await right.receive_some() == b""
        await right.send_all(b"answer")
        assert await left.receive_some() == b"answer"
        right.abort()
        with pytest.raises(tailscale.ConnectionReset):
            await left.receive_some()
        await left.aclose()
    await listener.aclose()


async def test_keepalive_notices_a_peer_that_is_gone(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    listener = await b.listen(80)
    async with await a.tcp_connect("b", 80) as stream, await listener.accept():
        stream.set_nodelay(False)
        stream.set_keepalive(10, 5, 3)
        with trio.move_on_after(100) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught, "an answered probe is no reason to give up"
        for other in (a, "relay"):
            tailnet.block(b, other)
        with pytest.raises(tailscale.ConnectionReset, match="stopped answering"), trio.fail_after(60):
            await stream.receive_some()
    await listener.aclose()
