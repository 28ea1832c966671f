"""asyncio's contract of transports and servers, over connections of the tailnet, in asyncio's own loop and uvloop."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme
from thread_scripts import is_busy, our_threads

from tailscale import aio
from tailscale.testing.threaded import TailnetThread

Test = Callable[[aio.Device, aio.Device], Awaitable[None]]
LOOPS = ("asyncio", "uvloop")
PATIENCE = 20
MIB = 1 << 20


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


def run(net: TailnetThread, test: Test, loop: str = "asyncio") -> None:
    """Two devices in one loop; no thread is left behind, and no connection in theirs."""
    before = our_threads()
    factory = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip(loop).new_event_loop

    async def main() -> None:
        left, right = (aio.Device(name, **net.options()) for name in ("left", "right"))
        async with asyncio.timeout(PATIENCE), left, right:
            for asking, asked in ((left, right), (right, left)):
                while True:
                    try:
                        await asking.ping(asked.hostname)
                        break
                    except OSError:
                        await asyncio.sleep(0.005)
            await test(left, right)
            for device in (left, right):
                while is_busy(device):  # noqa: ASYNC110 - the other thread ends them when it can
                    await asyncio.sleep(0.005)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert our_threads() == before


class Recorder(asyncio.Protocol):
    """Remembers what it was told, and can be waited for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.data = bytearray()
        self.told: list[str] = []
        self.made: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()
        self.keeps_open = True
        self._more = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")
        self.transport = transport
        self.made.set_result(None)

    def data_received(self, data: bytes) -> None:
        assert self.told[0] == "made"
        assert "lost" not in self.told
        self.data += data
        self._more.set()

    def eof_received(self) -> bool:
        self.told.append("eof")
        self.ended.set_result(None)
        return self.keeps_open

    def connection_lost(self, exc: BaseException | None) -> None:
        self.told.append("lost")
        self.lost.set_result(exc)  # a second time would raise

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    async def has(self, size: int) -> bytes:
        while len(self.data) < size:
            self._more.clear()
            await self._more.wait()
        return bytes(self.data)


class Buffered(Recorder, asyncio.BufferedProtocol):
    """The same, with a buffer of its own that is smaller than what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._buffer[:nbytes]))


async def pair(
    left: aio.Device, right: aio.Device, kind: type[Recorder] = Recorder
) -> tuple[Recorder, Recorder, asyncio.Server]:
    """Two ends of one connection."""
    servers: list[Recorder] = []

    def accepted() -> Recorder:
        servers.append(kind())
        return servers[0]

    server = await right.create_server(accepted, 80)
    _, client = await left.create_connection(kind, "right", 80)
    while not servers:  # noqa: ASYNC110 - it is accepted when it is
        await asyncio.sleep(0.001)
    await servers[0].made
    return client, servers[0], server


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", [Recorder, Buffered])
def test_bytes_arrive_whole_and_in_order_whoever_pauses(net: TailnetThread, loop: str, kind: type[Recorder]) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right, kind)
        dice, sent = random.Random(1), bytearray()
        for number in range(60):
            piece = dice.randbytes(dice.choice((1, 100, 5_000, 200_000)))
            sent += piece
            client.transport.write(piece if number % 2 else bytearray(piece))
            if number % 7 == 0:
                server.transport.pause_reading()
                assert not server.transport.is_reading()
                await asyncio.sleep(0)
                server.transport.resume_reading()
            await asyncio.sleep(0)
        client.transport.write_eof()
        await server.ended
        assert hashlib.sha256(server.data).digest() == hashlib.sha256(sent).digest()
        server.transport.writelines([b"half ", b"open"])
        assert await client.has(9) == b"half open"
        server.transport.close()
        assert await server.lost is None
        await client.ended
        client.transport.close()
        assert await client.lost is None
        assert (client.told[-2:], server.told[-2:]) == (["eof", "lost"], ["eof", "lost"])
        door.close()

    run(net, test, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_slow_reader_holds_the_writer_back_and_gets_all_of_it(net: TailnetThread, loop: str) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        client.transport.set_write_buffer_limits(100_000, 50_000)
        assert client.transport.get_write_buffer_limits() == (50_000, 100_000)
        server.transport.pause_reading()
        sent = 64 * MIB  # more than any window
        client.transport.write(bytes(sent))
        assert client.told[-1] == "pause"
        waiting = 0
        while waiting != client.transport.get_write_buffer_size():
            waiting = client.transport.get_write_buffer_size()
            await asyncio.sleep(0.05)
        assert not server.data
        assert waiting > 32 * MIB
        assert client.told[-1] == "pause"
        server.transport.resume_reading()
        await server.has(sent)
        while client.told[-1] != "resume":  # noqa: ASYNC110 - it is told when it is
            await asyncio.sleep(0.001)
        assert client.transport.get_write_buffer_size() <= 50_000
        client.transport.abort()
        assert await client.lost is None
        assert isinstance(await server.lost, ConnectionResetError)
        door.close()

    run(net, test, loop)


def test_writer_that_waits_hears_of_a_reset_though_nobody_reads(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        server.transport.pause_reading()
        client.transport.pause_reading()
        client.transport.write(bytes(64 * MIB))
        assert client.told[-1] == "pause"
        server.transport.abort()
        assert isinstance(await client.lost, ConnectionResetError)
        client.transport.write(b"too late")
        client.transport.close()
        door.close()

    run(net, test)


def test_close_sends_what_was_written_and_drops_what_comes(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        client.transport.write(bytes(8 * MIB))
        client.transport.close()
        assert client.transport.is_closing()
        client.transport.close()
        client.transport.write(b"never")
        await server.ended
        assert len(server.data) == 8 * MIB
        assert await client.lost is None
        server.keeps_open = False
        server.transport.close()
        await server.lost
        door.close()

    run(net, test)


def test_unread_bytes_make_closing_a_reset(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        server.transport.pause_reading()
        client.transport.write(b"unread")
        await left.ping("right", "icmp")  # which travels behind it
        server.transport.close()
        assert isinstance(await client.lost, ConnectionResetError)
        door.close()

    run(net, test)


def test_protocol_that_fails_loses_its_connection_and_says_why(net: TailnetThread) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError("no")

    async def test(left: aio.Device, right: aio.Device) -> None:
        said: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        client, server, door = await pair(left, right, Failing)
        client.transport.write(b"x")
        assert isinstance(await server.lost, ValueError)
        assert isinstance(await client.lost, ConnectionResetError)
        assert [str(context["exception"]) for context in said] == ["no"]
        with pytest.raises(TypeError, match="bytes-like"):
            client.transport.write("text")
        door.close()

    run(net, test)


def test_what_a_transport_tells_of_itself(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        near, far = client.transport.get_extra_info("sockname"), client.transport.get_extra_info("peername")
        assert (near[0], far) == (left.ipv4, (right.ipv4, 80))
        assert server.transport.get_extra_info("peername") == near
        end = server.transport.get_extra_info("socket")
        assert (end.getpeername(), end.getsockname(), end.family, end.fileno()) == (near, far, socket.AF_INET, -1)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        assert door.sockets[0].getsockname() == far
        who = right.caller_at(near, far)
        assert who is not None
        assert who.node.hostname == "left"
        client.transport.close()
        await server.ended
        server.transport.close()
        await server.lost
        while right.caller_at(near, far) is not None:  # noqa: ASYNC110 - the other thread forgets when it can
            await asyncio.sleep(0.001)
        door.close()

    run(net, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_may_begin_in_the_middle(net: TailnetThread, loop: str) -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("right").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.drain()
        await writer.start_tls(server_side)
        writer.write((await reader.readexactly(MIB))[::-1])
        await writer.drain()
        writer.close()

    async def test(left: aio.Device, right: aio.Device) -> None:
        async with await right.start_server(serve, 80), await right.start_server(serve, 443, ssl=server_side):
            reader, writer = await left.open_connection("right", 80)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(client_side, server_hostname="right")
            secret = random.Random(2).randbytes(MIB)
            writer.write(secret)
            assert await reader.readexactly(MIB) == secret[::-1]
            assert writer.get_extra_info("peercert")
            writer.close()
            with pytest.raises(ssl.SSLCertVerificationError):
                await left.open_connection("right.tailnet.test", 443, ssl=client_side)

    run(net, test, loop)


def test_files_are_sent(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        content = random.Random(3).randbytes(MIB)
        assert await asyncio.get_running_loop().sendfile(server.transport, io.BytesIO(content)) == MIB
        assert await client.has(MIB) == content
        client.transport.abort()
        await server.lost
        door.close()

    run(net, test)


def test_server_goes_by_asyncios_rules(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        assert isinstance(door, asyncio.Server)
        assert door.is_serving()
        forever = asyncio.ensure_future(door.serve_forever())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already"):
            await door.serve_forever()
        door.close_clients()
        await server.lost
        client.transport.close()
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        await door.wait_closed()
        assert (door.is_serving(), door.sockets) == (False, ())
        again = await right.create_server(Recorder, 80)  # the port is free
        again.close()
        await right.status()  # whose answer comes after the closing
        with pytest.raises(ConnectionRefusedError):
            await left.open_connection("right", 80, timeout=5)

    run(net, test)


def test_a_device_that_closes_sends_what_was_written_and_breaks_the_rest(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        client, server, door = await pair(left, right)
        client.transport.write(bytes(MIB))
        await left.close()
        assert isinstance(await client.lost, ConnectionResetError)
        await server.ended
        assert len(server.data) == MIB
        client.transport.write(b"gone")
        client.transport.abort()
        server.transport.abort()
        await server.lost
        door.close()

    run(net, test)


def test_dials_that_are_given_up_at_any_moment_leave_nothing(net: TailnetThread) -> None:
    async def test(left: aio.Device, right: aio.Device) -> None:
        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read()
            finally:
                writer.close()

        async with await right.start_server(swallow, 80):
            for turns in range(40):
                dialling = asyncio.ensure_future(left.open_connection("right", 80))
                for _ in range(turns):
                    await asyncio.sleep(0.0001 * (turns % 4))
                dialling.cancel()
                done = await asyncio.gather(dialling, return_exceptions=True)
                if isinstance(done[0], tuple):
                    done[0][1].close()

    run(net, test)
