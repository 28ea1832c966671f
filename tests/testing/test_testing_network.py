"""The virtual internet: streams with TCP's manners, datagrams with delay and loss, all repeatable."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tailscale.testing.network import VirtualNetwork
from tailscale.testing.pipes import VirtualStream


async def stream_pair() -> tuple[VirtualStream, VirtualStream]:
    network = VirtualNetwork()
    listener = network.host("b").listen_tcp(80)
    left = await network.host("a").open_tcp("b", 80)
    return left, await listener.accept()


async def clogged_stream_pair() -> tuple[VirtualStream, VirtualStream]:
    left, right = await stream_pair()
    for stream in (left, right):
        with trio.move_on_after(0.05):
            while True:
                await stream.send_all(bytes(65536))
    return left, right


@pytest.mark.slow
async def test_virtual_stream_behaves_like_a_stream() -> None:
    await trio.testing.check_half_closeable_stream(stream_pair, clogged_stream_pair)


async def test_virtual_stream_takes_the_latency_of_its_link(autojump_clock: MockClock) -> None:
    network = VirtualNetwork(latency=0.25)
    listener = network.host("b").listen_tcp(80)
    began = trio.current_time()
    stream = await network.host("a").open_tcp("b", 80)
    assert trio.current_time() - began == pytest.approx(0.5)
    accepted = await listener.accept()
    await stream.send_all(b"hello")
    assert await accepted.receive_some() == b"hello"
    assert trio.current_time() - began == pytest.approx(0.75)


async def test_virtual_tcp_is_refused_where_nothing_listens() -> None:
    network = VirtualNetwork()
    network.host("b")
    with pytest.raises(ConnectionRefusedError):
        await network.host("a").open_tcp("b", 81)
    with pytest.raises(OSError, match="no host"):
        await network.host("a").open_tcp("nowhere", 80)


async def test_blocked_link_holds_bytes_until_it_is_open_again(autojump_clock: MockClock) -> None:
    network = VirtualNetwork()
    listener = network.host("b").listen_tcp(80)
    stream = await network.host("a").open_tcp("b", 80)
    accepted = await listener.accept()
    network.change("a", "b", tcp_blocked=True)
    await stream.send_all(b"x")
    with trio.move_on_after(10) as waiting:
        await accepted.receive_some()
    assert waiting.cancelled_caught
    network.change("a", "b", tcp_blocked=False)
    assert await accepted.receive_some() == b"x"


async def test_reset_reaches_both_ends() -> None:
    network = VirtualNetwork()
    listener = network.host("b").listen_tcp(80)
    stream = await network.host("a").open_tcp("b", 80)
    accepted = await listener.accept()
    network.host("b").reset_streams()
    for end in (stream, accepted):
        with pytest.raises(trio.BrokenResourceError):
            await end.receive_some()


async def lossy_numbers(seed: int) -> list[int]:
    network = VirtualNetwork(seed=seed, loss=0.3, latency=0.01)
    sender, receiver = network.host("a").bind_udp(), network.host("b").bind_udp(7)
    for number in range(100):
        sender.send_many([((network.host("b").address, 7), [bytes([number])])])
    await trio.sleep(1)
    return [datagram[0] for _, run in await receiver.recv_many() for datagram in run]


async def test_same_seed_loses_the_same_datagrams(autojump_clock: MockClock) -> None:
    first = await lossy_numbers(1)
    assert first == await lossy_numbers(1)
    assert first != await lossy_numbers(2)
    assert 50 < len(first) < 90


async def test_virtual_udp_blocks_delays_and_counts(autojump_clock: MockClock) -> None:
    network = VirtualNetwork()
    a, b = network.host("a").bind_udp(), network.host("b").bind_udp(7)
    to_b = (network.host("b").address, 7)
    network.change("a", "b", udp_blocked=True)
    a.send_many([(to_b, [b"lost"])])
    assert network.drops["network.blocked"] == 1
    network.change("a", "b", udp_blocked=False, latency=0.1)
    a.send_many([(to_b, [b"1", b"2"])])
    assert await b.recv_many() == [((network.host("a").address, a.local_port), [b"1", b"2"])]
    assert trio.current_time() == pytest.approx(0.1)
    b.close()
    a.send_many([(to_b, [b"late"])])
    assert a.drops["underlay.port_closed"] == 1


async def test_entropy_and_addresses_repeat() -> None:
    first, second = (VirtualNetwork(seed=4).host("a") for _ in range(2))
    assert first.entropy(32) == second.entropy(32)
    assert first.entropy(32) != first.entropy(32)
    assert first.interface_addresses() == second.interface_addresses()
