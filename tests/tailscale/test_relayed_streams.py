"""Streams between two Devices through a relay: large packets there, ordinary ones on a direct path, every byte kept."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio
from tailnet_scripts import beside, runtime_of, until, world
from trio.testing import MockClock

from tailscale import Device, TcpStream
from tailscale.testing import Tailnet
from ts_dataplane.large_segments import RELAYED_MTU

pytestmark = pytest.mark.slow

BULK = 6_000_000
TRICKLE = 100_000
DIRECT_SEALED = 1280 + 32


class Flow:
    """Bytes from one Device to another, counted and hashed on both sides."""

    def __init__(self, sender: Device, receiver: Device) -> None:
        self.sender, self.receiver = sender, receiver
        self.sent = self.received = 0
        self._said, self._heard = hashlib.sha256(), hashlib.sha256()
        self._noise = random.Random(1).randbytes(BULK)

    async def receive(self, stream: TcpStream) -> None:
        async with stream:
            async for chunk in stream:
                self.received += len(chunk)
                self._heard.update(chunk)

    async def send(self, stream: TcpStream, size: int) -> float:
        """The mean size of the datagrams it took."""
        before = self._traffic()
        data = self._noise[:size]
        await stream.send_all(data)
        self._said.update(data)
        self.sent += size
        await until(lambda: self.received == self.sent, 60)
        packets, octets = (after - at for after, at in zip(self._traffic(), before, strict=True))
        return octets / packets

    def _traffic(self) -> tuple[int, int]:
        known = runtime_of(self.sender).endpoint.peer_statistics(self.receiver.node.id)
        return known.packets_out, known.bytes_out

    def check(self) -> None:
        assert self._heard.digest() == self._said.digest()


async def trickle_until(flow: Flow, stream: TcpStream, kind: str) -> None:
    """Keep the connection busy, so that the path changes under something that flies."""
    paths, peer = runtime_of(flow.sender).dataplane.engine.paths, flow.receiver.node.id
    with trio.fail_after(60):
        while not stream.path.startswith(kind) or len(paths[peer]) > 1:
            await flow.send(stream, TRICKLE)
            await trio.sleep(0.05)


@pytest.mark.parametrize("loss", [0.0, 0.005])
async def test_a_stream_is_large_by_relay_ordinary_when_direct_and_whole_across_every_change(
    autojump_clock: MockClock, loss: float
) -> None:
    async with Tailnet(latency=0.002) as net:
        a, b = await net.device("a"), await net.device("b")
        net.block_udp(a, b)
        net.link(a, b, loss=loss)
        flow = Flow(a, b)
        listener = await b.listen(80)

        async def serve() -> None:
            await flow.receive(await listener.accept())

        async with beside(serve), await a.tcp_connect("b", 80) as stream:
            assert await flow.send(stream, BULK) > 8_000
            assert stream.path.startswith("relay")
            for _ in range(2):
                net.unblock_udp(a, b)
                await trickle_until(flow, stream, "direct")
                assert await flow.send(stream, BULK) <= DIRECT_SEALED
                net.block_udp(a, b)
                await trickle_until(flow, stream, "relay")
                assert await flow.send(stream, BULK) > 8_000 or loss  # a window that losses keep small is not cut so
            flow.check()
        assert world(net).network("a").network.drops["too large"] == 0


async def test_packets_that_wait_for_a_session_arrive_on_whatever_path_there_is_then(
    autojump_clock: MockClock,
) -> None:
    """Cut for the relay, sealed when the path is direct already: lost there, cut smaller, sent again."""
    async with Tailnet(latency=0.002) as net:
        a, b = await net.device("a"), await net.device("b")
        net.block_udp(a, b)
        flow = Flow(a, b)
        listener = await b.listen(80)

        async def serve() -> None:
            await flow.receive(await listener.accept())

        async with beside(serve), await a.tcp_connect("b", 80) as stream:
            await flow.send(stream, BULK)
            endpoint, peer = runtime_of(a).endpoint, b.node.id
            endpoint.distrust_sessions(peer)
            net.block(a, "relay")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flow.send, stream, BULK)
                await until(lambda: endpoint.peer_statistics(peer).staged > 2)
                net.unblock_udp(a, b)
                await trio.sleep(1)
                net.unblock(a, "relay")
            flow.check()


def test_the_width_of_a_relay_is_worth_having() -> None:
    assert RELAYED_MTU > 20 * 1280
