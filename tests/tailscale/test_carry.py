"""Two streams joined: what passes, how ends and resets travel, and that nothing is left wherever it is cancelled."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
import trio
import trio.testing
from tailscale_stack_pair import stack_pair, stream_maker
from test_cancel_anywhere import cancelled_after

import tailscale
from tailscale.carry import Carried, Splice
from tailscale.sockets.local import LocalStream
from tailscale.sockets.tcp import TcpStream
from tailscale.threads.loopback import loopback_pair


async def all_of(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def test_bytes_pass_both_ways_and_an_end_leaves_the_other_way_alive() -> None:
    async with stack_pair() as (a, b):
        here, near = await stream_maker(a, b, 80)()
        far, there = await stream_maker(b, a, 81)()
        blob = bytes(range(256)) * 4000
        carried = Carried()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Splice(near, far, carried).run)
            nursery.start_soon(here.send_all, blob)
            got = bytearray()
            while len(got) < len(blob):
                got += await there.receive_some()
            await here.send_eof()
            assert await there.receive_some() == b""
            await there.send_all(blob)
            await there.send_eof()
            assert await all_of(here) == bytes(got) == blob
        assert carried == Carried(len(blob), len(blob))
        assert repr(near).endswith("closed>")
        assert repr(far).endswith("closed>")
        await here.aclose()
        await there.aclose()


async def test_a_reset_on_one_side_is_a_reset_on_the_other_and_is_raised() -> None:
    async with stack_pair() as (a, b):
        here, near = await stream_maker(a, b, 80)()
        far, there = await stream_maker(b, a, 81)()
        here.abort()
        with pytest.raises(tailscale.ConnectionReset):
            await tailscale.splice(near, far)
        with pytest.raises(tailscale.ConnectionReset):
            await there.receive_some()


async def test_trios_own_streams_are_reset_too() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    async with stack_pair() as (a, b), listener:
        here, near = await stream_maker(a, b)()
        local = await trio.open_tcp_stream("127.0.0.1", port)
        async with await listener.accept() as server:
            here.abort()
            with pytest.raises(tailscale.ConnectionReset):
                await tailscale.splice(near, local)
            with pytest.raises(trio.BrokenResourceError):
                await server.receive_some()


@pytest.mark.slow
async def test_a_slow_reader_holds_the_writer_back() -> None:
    async with stack_pair() as (a, b):
        here, near = await stream_maker(a, b, 80)()
        far, there = await stream_maker(b, a, 81)()
        carried = Carried()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Splice(near, far, carried).run)
            with trio.move_on_after(1):
                while True:
                    await here.send_all(bytes(1 << 16))
            held = carried.sent
            assert 0 < held < 16 << 20
            with trio.move_on_after(1) as waiting:
                await here.wait_send_all_might_not_block()
            assert waiting.cancelled_caught
            assert carried.sent == held
            nursery.cancel_scope.cancel()
        here.abort()
        there.abort()


@pytest.mark.parametrize("steps", range(1, 25))
async def test_cancelled_anywhere_both_sides_are_reset_and_nothing_stays(
    steps: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with stack_pair() as (a, b):
        here, near = await stream_maker(a, b, 80)()
        far, there = await stream_maker(b, a, 81)()

        async def echo() -> None:
            with suppress(trio.BrokenResourceError):
                async for data in there:
                    await there.send_all(data)
            await there.aclose()

        async def talk() -> None:
            with suppress(trio.BrokenResourceError):
                for _ in range(3):
                    await here.send_all(b"x" * 1000)
                    await here.receive_some()
                await here.send_eof()
                await all_of(here)
            await here.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            nursery.start_soon(talk)
            await cancelled_after(steps, lambda: tailscale.splice(near, far))
            assert repr(near).endswith("closed>")
            assert repr(far).endswith("closed>")
        await trio.sleep(120)
        assert a.stack.sockets() == b.stack.sockets() == []


async def test_finishing_takes_what_was_written_and_then_resets_the_program() -> None:
    async with stack_pair() as (a, b):
        far, there = await stream_maker(a, b)()
        ours, theirs = loopback_pair()
        with theirs:
            joined = Splice(LocalStream(ours), far)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(joined.run)
                await trio.testing.wait_all_tasks_blocked()
                theirs.sendall(b"last words")
                joined.finish()
                assert await all_of(there) == b"last words"
            with pytest.raises(ConnectionResetError):
                theirs.recv(1)
        await there.aclose()


async def test_a_program_that_is_gone_is_noticed_although_nobody_sends(autojump_clock: trio.testing.MockClock) -> None:
    left, right = socket.socketpair()
    local = LocalStream(left)
    right.close()
    assert await local.receive_some() == b""
    with pytest.raises(BrokenPipeError):
        await local.wait_gone()
    await local.aclose()


def test_the_splice_is_public() -> None:
    assert tailscale.splice.__module__ == "tailscale.carry"
    assert TcpStream.__mro__[1].__name__ == "Closable"
