"""TcpStream, TcpListener and UdpSocket over two stacks in memory: trio's own conformance suite, then our promises."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable
from contextlib import suppress

import pytest
import trio
import trio.testing
from tailscale_stack_pair import stack_pair, stream_maker

import tailscale.errors as errors
from tailscale.sockets.tcp import TcpStream


async def test_stream_passes_trios_conformance_suite() -> None:
    async with stack_pair() as (a, b):
        make = stream_maker(a, b)

        async def make_clogged() -> tuple[object, object]:
            left, right = await make()
            for stream in (left, right):
                with trio.move_on_after(0.5):
                    while True:
                        await stream.send_all(bytes(1 << 20))
            return left, right

        await trio.testing.check_half_closeable_stream(make, None)


@pytest.mark.slow
async def test_a_full_window_makes_senders_wait_until_the_reader_reads() -> None:
    async with stack_pair() as (a, b):
        left, right = await stream_maker(a, b)()
        sent = 0
        with trio.move_on_after(1) as scope:
            while True:
                await left.send_all(bytes(1 << 20))
                sent += 1 << 20
        assert scope.cancelled_caught
        assert sent <= 64 << 20
        got = 0
        with trio.fail_after(5):
            while got < sent:
                got += len(await right.receive_some())


async def test_large_transfers_arrive_whole_both_ways_at_once() -> None:
    data = random.Random(1).randbytes(3 << 20)
    async with stack_pair() as (a, b):
        left, right = await stream_maker(a, b)()

        async def send(stream: trio.abc.HalfCloseableStream) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async def receive(stream: trio.abc.ReceiveStream) -> None:
            got = bytearray()
            async for chunk in stream:
                got += chunk
            assert bytes(got) == data

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for stream in (left, right):
                    nursery.start_soon(send, stream)
                    nursery.start_soon(receive, stream)


async def test_a_reset_is_both_the_builtin_and_trios_error() -> None:
    async with stack_pair() as (a, b):
        left, right = await stream_maker(a, b)()
        right.abort()
        with pytest.raises(ConnectionResetError) as caught:
            await left.receive_some()
        assert isinstance(caught.value, trio.BrokenResourceError)
        assert isinstance(caught.value, errors.TailscaleError)
        with pytest.raises(trio.BrokenResourceError):
            await left.send_all(b"x")


async def test_reader_sees_what_was_sent_before_a_reset_of_a_closed_reader() -> None:
    async with stack_pair() as (a, b):
        left, right = await stream_maker(a, b)()
        await left.send_all(b"hello")
        await left.aclose()
        assert await right.receive_some() == b"hello"
        assert await right.receive_some() == b""


async def test_addresses_are_those_of_the_connection() -> None:
    async with stack_pair() as (a, b):
        left, right = await stream_maker(a, b)()
        assert left.remote_address == right.local_address == ("100.64.0.2", 80)
        assert right.remote_address == left.local_address
        assert "100.64.0.2" in repr(left)


async def test_closing_a_listener_wakes_its_acceptors() -> None:
    async with stack_pair() as (a, _):
        listener = a.listen(80)
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await listener.accept()

            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            await listener.aclose()


async def test_a_port_is_bound_once_and_free_again_after_closing() -> None:
    async with stack_pair() as (a, _):
        listener = a.listen(80)
        with pytest.raises(OSError, match="80"):
            a.listen(80)
        await listener.aclose()
        await a.listen(80).aclose()


async def test_serve_listeners_works() -> None:
    async with stack_pair() as (a, b), trio.open_nursery() as nursery:

        async def echo(stream: trio.abc.Stream) -> None:
            async for chunk in stream:
                await stream.send_all(chunk)

        nursery.start_soon(trio.serve_listeners, echo, [b.listen(7)])
        await trio.testing.wait_all_tasks_blocked()
        stream = await a.connect(7)
        await stream.send_all(b"ping")
        assert await stream.receive_some() == b"ping"
        nursery.cancel_scope.cancel()


async def test_udp_carries_whole_datagrams_and_says_who_sent_them() -> None:
    async with stack_pair() as (a, b), a.udp(1000) as left, b.udp(2000) as right:
        for size in (0, 1, 1232, 1233, 8000):
            data = bytes(size)
            await left.send_to(data, ("100.64.0.2", 2000))
            assert await right.receive_from() == (data, ("100.64.0.1", 1000))


async def test_a_connected_udp_socket_hears_that_nobody_listens() -> None:
    async with stack_pair() as (a, _), a.udp() as left:
        await left.connect(("100.64.0.2", 9))
        await left.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError, match="UDP port 9"):
            await left.receive()


async def test_an_unread_udp_socket_drops_and_counts() -> None:
    async with stack_pair() as (a, b), a.udp() as left, b.udp(2000) as right:
        for _ in range(600):
            await left.send_to(b"x" * 1000, ("100.64.0.2", 2000))
        await trio.testing.wait_all_tasks_blocked()
        assert right.dropped > 0
        assert len((await right.receive_from())[0]) == 1000


async def test_an_unconnected_udp_socket_says_what_to_do() -> None:
    async with stack_pair() as (a, _), a.udp() as left:
        with pytest.raises(OSError, match="connect\\(\\) first"):
            await left.send(b"x")


@pytest.mark.parametrize("seed", range(40))
async def test_cancelling_anywhere_leaves_the_pair_usable(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    chance = random.Random(seed)
    async with stack_pair() as (a, b):
        listener = b.listen(80)

        async def serve() -> None:
            while True:
                stream = await listener.accept()
                async with stream:
                    with suppress(trio.BrokenResourceError):  # a cancelled client leaves bytes unread: that is a reset
                        async for chunk in stream:
                            await stream.send_all(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for _ in range(10):
                with trio.move_on_after(chance.random() * 0.05):
                    async with await a.connect(80) as stream:
                        await stream.send_all(bytes(chance.randrange(200_000)))
                        await stream.receive_some(chance.randrange(1, 5000))
                        await trio.sleep(chance.random() * 0.02)
            with trio.fail_after(60):
                async with await a.connect(80) as stream:
                    await stream.send_all(b"still here")
                    assert await stream.receive_some() == b"still here"
            nursery.cancel_scope.cancel()


def forgotten(make: Callable[[], object]) -> list[str]:
    """What Python says when what `make` returns is lost."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make()
        gc.collect()
    return [str(one.message) for one in said if one.category is ResourceWarning]


async def test_a_stream_that_is_lost_is_reset_with_a_warning(autojump_clock: trio.testing.MockClock) -> None:
    async with stack_pair() as (a, b):
        left, right = await stream_maker(a, b)()
        held = [left]
        del left
        assert forgotten(held.clear) == ["unclosed <TcpStream to 100.64.0.2 port 80>"]
        with pytest.raises(errors.ConnectionReset):
            await right.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert (len(a.stack.sockets()), len(b.stack.sockets())) == (0, 0)
        await right.aclose()


async def test_a_stream_lost_in_another_thread_is_ended_by_its_own_loop(autojump_clock: trio.testing.MockClock) -> None:
    async with stack_pair() as (a, b):
        left, right = await stream_maker(a, b)()
        held = [left]
        del left
        assert len(await trio.to_thread.run_sync(forgotten, held.clear)) == 1
        with pytest.raises(errors.ConnectionReset):
            await right.receive_some()
        await right.aclose()


async def test_a_closed_or_broken_stream_is_lost_without_a_word() -> None:
    async with stack_pair() as (a, b):
        for end in (TcpStream.shut, TcpStream.abort):
            left, right = await stream_maker(a, b)()
            end(left)
            right.abort()
            held = [left, right]
            del left, right
            assert forgotten(held.clear) == []


async def test_listeners_and_datagram_sockets_that_are_lost_give_their_ports_back() -> None:
    async with stack_pair() as (a, _):
        for make, name in ((a.listen, "TcpListener"), (a.udp, "UdpSocket")):
            held = [make(80)]
            assert forgotten(held.clear) == [f"unclosed <{name} on port 80>"]
            await trio.testing.wait_all_tasks_blocked()
            make(80).shut()
