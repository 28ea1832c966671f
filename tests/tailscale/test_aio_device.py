"""The asyncio face: streams, servers and sockets between two devices of a tailnet on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme
from thread_scripts import is_busy, our_threads, reaches

from tailscale import ConnectionRefused, ControlUnreachable, DeviceClosed, NameNotFound, aio, sync
from tailscale.http import AsyncTransport
from tailscale.testing.threaded import TailnetThread

Device = aio.Device
Test = Callable[[Device, Device], Awaitable[None]]


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


def run(net: TailnetThread, test: Test, *, debug: bool = True) -> None:
    """A fresh pair of devices under asyncio's debug mode; nothing may be left behind."""
    before = our_threads()

    async def main() -> None:
        async with (
            asyncio.timeout(20),
            Device("left", **net.options()) as left,
            Device("right", **net.options()) as right,
        ):
            await meet(left, right)
            await test(left, right)

    asyncio.run(main(), debug=debug)
    assert our_threads() == before


async def meet(left: Device, right: Device) -> None:
    for asking, asked in ((left, right), (right, left)):
        while True:
            try:
                await asking.ping(asked.hostname)
                break
            except OSError:
                await asyncio.sleep(0.005)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def test_streams_carry_bytes_and_half_closes(net: TailnetThread) -> None:
    async def test(left: Device, right: Device) -> None:
        callers = []

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            callers.append(writer.get_extra_info("peername"))
            writer.write(str(len(await reader.read())).encode())
            writer.close()

        server = await right.start_server(count, 80)
        reader, writer = await left.open_connection("right", 80, timeout=5)
        assert writer.get_extra_info("peername") == (right.ipv4, 80)
        for _ in range(20):
            writer.write(bytes(1 << 18))
            await writer.drain()
        writer.write_eof()
        assert await reader.read() == b"5242880"
        assert callers[0][0] == left.ipv4
        assert (await right.whois(callers[0])).node.hostname == "left"
        writer.close()
        server.close()

    run(net, test)


def test_questions_and_their_typed_errors(net: TailnetThread) -> None:
    async def test(left: Device, right: Device) -> None:
        assert (left.name, left.hostname, left.ipv6) == ("left.tailnet.test", "left", left.node.ipv6)
        assert await left.resolve("right") == right.ipv4
        assert await left.resolve_all("right", "AAAA") == [right.ipv6]
        assert left.peers["right"].name == right.name
        assert (await left.ping("right", "icmp")).latency > 0
        assert (await left.status()).node == left.node
        assert isinstance(left.health, tuple)
        assert (await left.netcheck()).home
        assert await left.way_to("right") == (True, "right")
        await left.set(shields_up=False)
        with pytest.raises(NameNotFound):
            await left.open_connection("nobody", 80)
        with pytest.raises(ConnectionRefused):
            await left.open_connection("right", 9, timeout=5)

    run(net, test)


def test_datagrams(net: TailnetThread) -> None:
    async def test(left: Device, right: Device) -> None:
        async with await right.udp(53) as server, await left.udp() as client:
            await client.send_to(b"ping", ("right", 53))
            data, source = await server.receive_from()
            assert (data, source) == (b"ping", (left.ipv4, client.local_address[1]))
            await server.connect(source)
            await server.send(b"pong")
            assert await client.receive() == b"pong"

    run(net, test)


def test_cancelled_call_ends_in_the_thread_too(net: TailnetThread) -> None:
    async def test(left: Device, right: Device) -> None:
        async with await right.udp(0) as udp:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(udp.receive_from(), 0.05)
            async with await left.udp() as client:
                await client.send_to(b"x", ("right", udp.local_address[1]))
            assert await asyncio.wait_for(udp.receive(), 5) == b"x"
        dials = [asyncio.ensure_future(left.socket("right", 9 + i % 3)) for i in range(20)]
        await asyncio.sleep(0.001)
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        async with asyncio.timeout(5):
            while is_busy(left):  # noqa: ASYNC110 - the other thread ends them when it can
                await asyncio.sleep(0.005)

    run(net, test)


def test_busy_event_loop_drops_no_peer(net: TailnetThread) -> None:
    async def test(left: Device, right: Device) -> None:
        server = await right.start_server(echo, 80)
        reader, writer = await left.open_connection("right", 80)
        with sync.Device("watcher", **net.options()) as watcher:
            while not reaches(watcher, "left"):  # noqa: ASYNC110 - the map arrives when it does
                await asyncio.sleep(0.005)
            replies: list[float] = []
            pinging = threading.Thread(target=lambda: replies.append(watcher.ping("left", "icmp", timeout=5).latency))
            pinging.start()
            pinging.join()  # until then the event loop stands still, which is the point
            assert replies
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()
        server.close()

    run(net, test, debug=False)


def test_reset_and_abort(net: TailnetThread) -> None:
    async def test(left: Device, right: Device) -> None:
        async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.close()

        server = await right.start_server(slam, 80)
        reader, writer = await left.open_connection("right", 80)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        server.close()

    run(net, test)


@pytest.mark.slow
def test_reader_that_does_not_read_holds_the_writer_back(net: TailnetThread) -> None:
    async def test(left: Device, right: Device) -> None:
        release = asyncio.Event()

        async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.close()

        server = await right.start_server(stuck, 80)
        _, writer = await left.open_connection("right", 80)
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    writer.write(bytes(1 << 18))
                    sent += 1 << 18
                    await writer.drain()
        assert sent < 64 << 20
        release.set()
        writer.transport.abort()
        server.close()

    run(net, test)


def test_tls_both_ways(net: TailnetThread) -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("right").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async def test(left: Device, right: Device) -> None:
        server = await right.start_server(echo, 443, ssl=server_side)
        reader, writer = await left.open_connection("right", 443, ssl=client_side)
        writer.write(b"secret")
        assert await reader.readexactly(6) == b"secret"
        writer.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await left.open_connection("right.tailnet.test", 443, ssl=client_side)
        server.close()

    run(net, test, debug=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_httpx_under_asyncio(net: TailnetThread, name: str) -> None:
    library = pytest.importorskip(name)
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("right").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def test(left: Device, right: Device) -> None:
        servers = [
            await right.start_server(answer, 80),
            await right.start_server(answer, 443, ssl=server_side),
            await right.start_server(stall, 81),
        ]
        async with library.AsyncClient(transport=AsyncTransport(left, verify=client_side)) as client:
            for _ in range(3):
                assert (await client.get("http://right/")).text == "ok"
                await asyncio.sleep(0.1)
                assert (await client.get("https://right/")).text == "ok"
                await asyncio.sleep(0.1)
            with pytest.raises(library.ReadTimeout):
                await client.get("http://right:81/", timeout=0.1)
            with pytest.raises(library.ConnectError, match="refused"):
                await client.get("http://right:9/")
            with pytest.raises(library.ConnectError):
                await client.get("https://right.tailnet.test/")
            with pytest.raises(library.ConnectError):
                await client.get("http://127.0.0.1:9/")
        for server in servers:
            server.close()

    run(net, test, debug=False)


def test_protocols_and_forwards(net: TailnetThread, tmp_path: Any) -> None:
    class Upper(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data.upper())

    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            self.answer.set_result(data)

    async def test(left: Device, right: Device) -> None:
        server = await right.create_server(Upper, 80)
        transport, client = await left.create_connection(Client, "right", 80)
        transport.write(b"abc")
        assert await client.answer == b"ABC"
        transport.close()
        with await left.forward("right", 80) as way:
            reader, writer = await asyncio.open_connection(way.host, way.port)
            writer.write(b"def")
            assert await reader.readexactly(3) == b"DEF"
            writer.close()
        async with left.forward("right", 80, path=tmp_path / "door") as way:
            reader, writer = await asyncio.open_unix_connection(way.host)
            writer.write(b"ghi")
            assert await reader.readexactly(3) == b"GHI"
            writer.close()
        server.close()

    run(net, test)


def test_events_arrive_and_end(net: TailnetThread) -> None:
    async def main() -> None:
        device = Device("listener", **net.options())
        names: list[str] = []
        async with device:
            events = device.events()  # from now on, whenever they are read
            async with Device("late", **net.options()) as late:
                await meet(device, late)

            async def listen() -> None:
                async for event in events:
                    names.append(type(event).__name__)  # noqa: PERF401 - one by one is the point

            listening = asyncio.create_task(listen())
            async with asyncio.timeout(5):
                while "PeerUp" not in names:  # noqa: ASYNC110 - likewise
                    await asyncio.sleep(0.01)
        await asyncio.wait_for(listening, 5)

    asyncio.run(main())


def test_callables_run_in_the_programs_event_loop(net: TailnetThread) -> None:
    options = net.options()
    key, seen = options.pop("auth_key"), []

    async def fetch_key() -> str:
        seen.append(asyncio.get_running_loop())
        return str(key)

    async def main() -> None:
        async with Device("keyed", auth_key=fetch_key, **options) as device:
            assert device.name == "keyed.tailnet.test"
            assert seen == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_end_of_the_loop_ends_the_thread(net: TailnetThread) -> None:
    before = our_threads()

    async def main() -> None:
        async with Device("brief", **net.options()) as device:
            asyncio.get_running_loop().call_later(0.05, asyncio.current_task().cancel)  # type: ignore[union-attr]
            await (await device.udp()).receive()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert our_threads() == before


@pytest.mark.slow
def test_cancelled_and_failed_starts_leave_nothing(net: TailnetThread) -> None:
    before = our_threads()

    async def main() -> None:
        with pytest.raises(ControlUnreachable):
            async with Device(control_url="http://127.0.0.1:9", ready_timeout=0.2):
                pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), Device(control_url="http://127.0.0.1:9", ready_timeout=30):
                pass
        device = Device("once", **net.options())
        async with device:
            pass
        with pytest.raises(DeviceClosed):
            await device.ping("right")
        with pytest.raises(DeviceClosed):
            _ = device.name
        with pytest.raises(DeviceClosed):
            async with device:
                pass

    asyncio.run(main())
    assert our_threads() == before


def test_cancelled_at_every_turn_of_joining_a_device_leaves_no_thread() -> None:
    before = our_threads()

    async def main() -> None:
        for turns in range(12):
            device = Device("gone", control_url="http://127.0.0.1:9", auth_key="x")
            joining = asyncio.create_task(device.__aenter__())
            for _ in range(turns):
                await asyncio.sleep(0)
            joining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await joining
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0), Device("gone", control_url="http://127.0.0.1:9", auth_key="x"):
                raise AssertionError("it was entered")

    asyncio.run(main())
    assert our_threads() == before
