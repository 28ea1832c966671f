"""A proxy as a server: its doors, its crowd, its exits and its end. In virtual time, but where doors are real."""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from proxy_clients import (
    ECHO_PORT,
    NO_LOGIN,
    echoed,
    read_all,
    read_exactly,
    read_head,
    scene,
    serving,
    socks_open,
    socks_request,
)
from tailnet_scripts import beside, count_tasks, echo_service, echo_stream, held_by, host_of, until
from trio.testing import MockClock

from tailscale import TcpStream
from tailscale.proxy import DIRECT, NO_EXIT, Exits, Proxy, ProxyLimits, Request, serve
from tailscale.proxy.doors import read_place
from tailscale.testing import Tailnet

CONNECT = b"CONNECT web:7 HTTP/1.1\r\nHost: web\r\n\r\n"


# --- doors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "1080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:1080", "a:-1", "a:x"])
def test_place_that_is_none_is_an_error_that_shows_some(place: str) -> None:
    with pytest.raises(ValueError, match="write 127"):
        read_place(place)


async def test_proxy_beyond_this_machine_needs_users(tailnet: Tailnet) -> None:
    desk = await tailnet.device("desk")
    listener = (await trio.open_tcp_listeners(0, host="0.0.0.0"))[0]
    async with listener:
        for place in ("0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", listener):
            with pytest.raises(ValueError, match="users="):
                await serve(desk, place)
    async with serving(desk, "0.0.0.0:0", users={"a": "b"}) as (proxy, _, _):
        assert proxy.port


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", None])
async def test_one_port_of_this_machine_speaks_socks_and_http(tailnet: Tailnet, listen: str | None) -> None:
    desk, web = await tailnet.device("desk"), await tailnet.device("web")
    async with serving(desk, listen) as (proxy, _, _), echo_service(web, ECHO_PORT):
        assert proxy.host in ("127.0.0.1", "::1")
        async with await trio.open_tcp_stream(proxy.host, proxy.port) as stream:
            answer = await socks_open(stream, "web", ECHO_PORT)
            assert answer[4:8] == bytes(map(int, (desk.ipv4 or "").split(".")))
            assert await echoed(stream, bytes(100_000)) == bytes(100_000)
        async with await trio.open_tcp_stream(proxy.host, proxy.port) as stream:
            await stream.send_all(CONNECT)
            assert (await read_head(stream)).startswith(b"HTTP/1.1 200 ")
            assert await echoed(stream) == b"hello"
        assert repr(proxy) == f"<Proxy at {proxy.host}:{proxy.port}, 1 clients>"


async def test_udp_of_this_machine_is_taken_at_the_address_of_the_connection(tailnet: Tailnet) -> None:
    desk, web = await tailnet.device("desk"), await tailnet.device("web")
    async with serving(desk, None) as (proxy, _, _), await web.udp(ECHO_PORT) as server:
        async with await trio.open_tcp_stream(*proxy.address) as control:
            await control.send_all(NO_LOGIN + b"\5\3\0\1" + bytes(6))
            answer = await read_exactly(control, 12)
            assert answer[2:10] == b"\5\0\0\1\x7f\0\0\1"
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as socket:
                await socket.sendto(b"\0\0\0\3\3web\0\7hello", ("127.0.0.1", int.from_bytes(answer[10:], "big")))
                data, source = await server.receive_from()
                await server.send_to(data.upper(), source)
                assert (await socket.recv(100)).endswith(b"\0\7HELLO")


async def test_udp_leaves_by_this_machine_where_direct_says_so_and_never_to_it(tailnet: Tailnet) -> None:
    desk = await tailnet.device("desk")
    with (
        trio.socket.socket(type=trio.socket.SOCK_DGRAM) as server,
        trio.socket.socket(type=trio.socket.SOCK_DGRAM) as socket,
    ):
        await server.bind(("127.0.0.1", 0))
        where = server.getsockname()[1].to_bytes(2, "big")
        datagrams = [b"\0\0\0\1\x7f\0\0\1" + where + b"hello", b"\0\0\0\3\x09127.0.0.1" + where + b"hello"]
        for allow_local, dropped in ((False, 2), (True, 0)):
            limits = ProxyLimits(allow_local=allow_local)
            async with serving(desk, None, DIRECT, limits=limits) as (proxy, _, _):
                async with await trio.open_tcp_stream(*proxy.address) as control:
                    await control.send_all(NO_LOGIN + b"\5\3\0\1" + bytes(6))
                    answer = await read_exactly(control, 12)
                    for datagram in datagrams:
                        await socket.sendto(datagram, ("127.0.0.1", int.from_bytes(answer[10:], "big")))
                        if allow_local:
                            data, source = await server.recvfrom(100)
                            await server.sendto(data.upper(), source)
                            assert (await socket.recv(100)) == datagrams[0][:-5] + b"HELLO"
                    await until(lambda many=dropped: proxy.statistics().drops.get("proxy.udp_unreachable", 0) == many)


# --- the crowd ------------------------------------------------------------------------------------


async def test_full_proxy_says_so_in_either_language(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, limits=ProxyLimits(clients=2)) as s:
        first, second = await s.connect(), await s.connect()
        for stream in (first, second):
            await socks_open(stream, "web", ECHO_PORT)
        refused = await s.exchange(NO_LOGIN + socks_request("web", ECHO_PORT))
        assert refused[:4] == b"\5\0\5\1"
        answer = await s.exchange(CONNECT)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b"error=proxy_internal_error" in answer
        assert s.proxy.statistics().turned_away == 2
        await first.aclose()
        await until(lambda: s.proxy.statistics().open == 1)
        assert (await s.exchange(NO_LOGIN + socks_request("web", ECHO_PORT) + b"x", eof=True))[2:4] == b"\5\0"
        await second.aclose()


async def test_silent_clients_make_room_for_those_who_speak(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    """A SOCKS client that stops halfway, and an HTTP client that rests between two requests, are both silent."""

    async def answer(stream: TcpStream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        await read_all(stream)

    async with scene(tailnet, limits=ProxyLimits(clients=2)) as s:
        web = await s.web.listen(80)
        halfway, resting = await s.connect(), await s.connect()
        async with beside(partial(trio.serve_listeners, answer, [web])):
            await halfway.send_all(NO_LOGIN + b"\5")
            await read_exactly(halfway, 2)
            await resting.send_all(b"GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n")
            await read_head(resting)
            async with await s.connect() as third, await s.connect() as fourth:
                for stream in (third, fourth):
                    assert (await socks_open(stream, "web", ECHO_PORT))[1] == 0
                for stream in (halfway, resting):
                    assert await read_all(stream) in (b"", b"<reset>")
                    await stream.aclose()
            assert s.proxy.statistics().hung_up == 2


class Hall(trio.abc.Listener[Any]):
    """A listener in memory, for crowds."""

    def __init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[Any](0)

    async def connect(self) -> Any:
        here, there = trio.testing.memory_stream_pair()
        await self._put.send(there)
        return here

    async def accept(self) -> Any:
        return await self._get.receive()

    async def aclose(self) -> None:
        await self._get.aclose()


@pytest.mark.slow
async def test_ten_thousand_silent_clients_keep_nobody_out(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    desk, web = await tailnet.device("desk"), await tailnet.device("web")
    hall, limits, crowd = Hall(), ProxyLimits(), []
    async with serving(desk, hall, limits=limits) as (proxy, _, _), echo_service(web, ECHO_PORT):
        before = held_by(desk)
        for number in range(10_000):
            crowd.append(await hall.connect())
            if number % 3 == 0:
                await crowd[-1].send_all(b"\5")
        assert proxy.statistics().open <= limits.clients + 65
        stream = await hall.connect()
        assert (await socks_open(stream, "web", ECHO_PORT))[1] == 0
        assert await echoed(stream) == b"hello"
        await stream.aclose()
        await trio.sleep(limits.handshake + 1)
        assert proxy.statistics().open == 0
        assert held_by(desk)["tasks"] == before["tasks"]


@pytest.mark.slow
async def test_two_hundred_clients_carry_a_mebibyte_both_ways(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    size, count = 1 << 20, 200
    block = bytes(range(256)) * 256
    same = hashlib.sha256(block * (size // len(block))).hexdigest()
    hashes: list[str] = []
    async with scene(tailnet) as s:
        here, crowd = host_of(tailnet, "here"), host_of(tailnet, "crowd")

        async def one(proxy: Proxy) -> None:
            async with await crowd.open_tcp("here", 1080) as stream, trio.open_nursery() as nursery:
                await socks_open(stream, "web", ECHO_PORT)

                async def upload() -> None:
                    for _ in range(size // len(block)):
                        await stream.send_all(block)
                    await stream.send_eof()

                nursery.start_soon(upload)
                digest = hashlib.sha256()
                while data := await stream.receive_some():
                    digest.update(data)
                hashes.append(digest.hexdigest())

        async with serving(s.desk, here.listen_tcp(1080)) as (proxy, _, _):
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one, proxy)
            assert hashes == [same] * count
            await until(lambda: proxy.statistics().carried == proxy.statistics().open == 0)
            assert proxy.statistics().bytes_sent == proxy.statistics().bytes_received == size * count


# --- whose it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", ("192.0.2.1", 56324)),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n", ("2001:db8::1", 1)),
        (b"PROXY UNKNOWN whatever\r\n", None),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\0\7\0\x50", ("192.0.2.1", 7)),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0", None),
    ],
)
async def test_proxy_header_is_required_and_believed_where_the_operator_says_so(
    tailnet: Tailnet, autojump_clock: MockClock, header: bytes, client: tuple[str, int] | None
) -> None:
    seen: list[Request] = []
    limits = ProxyLimits(proxy_protocol=True)
    async with scene(tailnet, limits=limits, allow=lambda request: not seen.append(request)) as s:
        sent = NO_LOGIN + socks_request("web", ECHO_PORT) + b"hello"
        for pieces in ([header + sent], [header[:9], header[9:], sent]):
            assert (await s.exchange(*pieces, eof=True)).endswith(b"hello")
        for request in seen:
            assert request.client == client or (client is None and request.client[0] == s.laptop.ipv4)
        assert (await s.exchange(sent)).removesuffix(b"<reset>") == b""  # none at all


async def test_proxy_header_is_never_believed_by_itself(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        line = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
        assert b"HTTP/1.1 400 " in await s.exchange(line + CONNECT)
        assert await s.exchange(b"\r\n\r\n\0\r\nQUIT\n" + CONNECT) in (b"", b"<reset>")
        assert s.proxy.statistics().requests == {}


async def test_one_languages_refusal_is_logged_once(
    tailnet: Tailnet, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tailnet) as s:
        for _ in range(5):
            await s.exchange(b"\x16\3\1\2\0")
            await s.exchange(b"\4\1\0\x50\1\2\3\4\0")
        assert s.proxy.statistics().drops == {"proxy.unknown_language": 10}
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


# --- where it leads -------------------------------------------------------------------------------


async def test_direct_leads_out_by_this_machine_and_never_to_it(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, DIRECT) as s:
        outside = tailnet.host("outside")
        listener = outside.listen_tcp(80)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo_stream, [listener])
            async with await s.connect() as stream:
                assert (await socks_open(stream, "outside", 80))[1] == 0
                assert await echoed(stream) == b"hello"
            async with await s.connect() as stream:
                assert (await socks_open(stream, "web", ECHO_PORT))[1] == 0  # the tailnet's stay the tailnet's
            for host in ("127.0.0.1", "localhost", "x.localhost", "::1", "0.0.0.0", "169.254.169.254", "fe80::1"):
                async with await s.connect() as stream:
                    assert (await socks_open(stream, host, 80))[1] == 2, host
            nursery.cancel_scope.cancel()


async def test_direct_name_that_leads_to_this_machine_is_refused_before_a_byte_passes(tailnet: Tailnet) -> None:
    """On real sockets: `allow_local` off, and a name of this machine that does not look like one."""
    desk = await tailnet.device("desk")
    got: list[bytes] = []

    async def note(stream: trio.SocketStream) -> None:
        got.append(await read_all(stream))

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, note, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        for allow_local, code in ((False, 2), (True, 0)):
            exits, limits = _led_to(desk, "127.0.0.1"), ProxyLimits(allow_local=allow_local)
            async with serving(desk, None, exits, limits=limits) as (proxy, _, _):
                async with await trio.open_tcp_stream(*proxy.address) as stream:
                    assert (await socks_open(stream, "innocent.example", port))[1] == code
                    if not code:
                        await stream.send_all(b"hello")
                        await stream.send_eof()
                        await read_all(stream)
        await until(lambda: len(got) == 2)
        assert got == [b"<reset>", b"hello"]
        nursery.cancel_scope.cancel()


def _led_to(device: Any, address: str) -> Any:
    """Exits as DIRECT is, for a machine whose resolver has been told a lie."""

    class Misled:
        kind = "direct"

        def on(self, device: Any) -> Misled:
            return self

        async def connect_anywhere(self, host: str, port: int, *, timeout: float) -> trio.SocketStream:
            return await trio.open_tcp_stream(address, port)

    return Misled()


async def test_connection_that_leads_back_by_a_way_nobody_saw_is_ended(tailnet: Tailnet) -> None:
    desk = await tailnet.device("desk")
    exits, limits = _led_to(desk, "127.0.0.1"), ProxyLimits(allow_local=True)
    async with serving(desk, None, exits, limits=limits) as (proxy, _, _):
        async with await trio.open_tcp_stream(*proxy.address) as stream:
            assert (await socks_open(stream, "roundabout.example", proxy.port))[1] == 0
            await stream.send_all(NO_LOGIN)
            assert await read_all(stream) in (b"", b"<reset>")
        await until(lambda: proxy.statistics().drops == {"proxy.looped": 1})


async def test_exit_serves_what_the_tailnet_has_not_and_its_name_is_looked_up_there(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    out = await tailnet.exit_node("out", country_code="NL", records={"shop.example": ["198.51.100.7"]})
    shop = tailnet.host("shop", "198.51.100.7").listen_tcp(80)
    desk, laptop = await tailnet.device("desk"), await tailnet.device("laptop")
    await until(lambda: desk.exit_nodes)
    async with (
        serving(desk, "tailnet:1080", Exits(desk, country="NL")) as (proxy, _, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(trio.serve_listeners, echo_stream, [shop])
        for host, code in (("shop.example", 0), ("198.51.100.7", 0), ("none.example", 4), ("nobody", 4)):
            async with await laptop.tcp_connect("desk", 1080) as stream:
                assert (await socks_open(stream, host, 80))[1] == code, host
                if not code:
                    assert await echoed(stream) == b"hello"
        assert out.asked["shop.example"]
        assert not out.asked["nobody"]
        async with await laptop.tcp_connect("desk", 1080) as stream:
            await socks_open(stream, "shop.example", 80)
            tailnet.remove("out")
            with trio.fail_after(120):
                assert await read_all(stream) in (b"", b"<reset>")
            async with await laptop.tcp_connect("desk", 1080) as late:
                assert (await socks_open(late, "198.51.100.7", 80))[1] == 3
        await until(lambda: proxy.statistics().carried == 0)
        nursery.cancel_scope.cancel()


async def test_two_ports_of_one_device_lead_two_ways(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    nl = await tailnet.exit_node("nl", country_code="NL", records={"shop.example": ["198.51.100.7"]})
    shop = tailnet.host("shop", "198.51.100.7").listen_tcp(80)
    desk, laptop = await tailnet.device("desk"), await tailnet.device("laptop")
    await until(lambda: desk.exit_nodes)
    async with (
        serving(desk, "tailnet:1080", Exits(desk, nodes=[nl.hostname])),
        serving(desk, "tailnet:1081", NO_EXIT),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(trio.serve_listeners, echo_stream, [shop])
        for port, code in ((1080, 0), (1081, 3)):
            async with await laptop.tcp_connect("desk", port) as stream:
                assert (await socks_open(stream, "shop.example", 80))[1] == code
        nursery.cancel_scope.cancel()


# --- the end --------------------------------------------------------------------------------------


async def test_shutdown_lets_nobody_in_hangs_up_on_the_silent_and_gives_the_busy_a_while(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s, await s.connect() as silent, await s.connect() as busy, await s.connect() as stays:
        for stream in (busy, stays):
            await socks_open(stream, "web", ECHO_PORT)
        await silent.send_all(b"\5")
        await trio.sleep(0.1)
        s.shutdown.set()
        assert await read_all(silent) in (b"", b"<reset>")
        with pytest.raises(OSError, match="refused"):
            await s.connect()
        assert await echoed(busy) == b"hello"
        await busy.send_eof()
        assert await read_all(busy) == b""
        began = trio.current_time()
        assert await read_all(stays) == b"<reset>"
        assert trio.current_time() - began == pytest.approx(10, abs=1)
        await s.done.wait()


async def test_proxy_that_is_cancelled_leaves_nothing(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    desk, web, laptop = await tailnet.device("desk"), await tailnet.device("web"), await tailnet.device("laptop")
    async with echo_service(web, ECHO_PORT), trio.open_nursery() as nursery:
        before = held_by(desk)
        async with serving(desk, "tailnet:1080"):
            streams = [await laptop.tcp_connect("desk", 1080) for _ in range(3)]
            await socks_open(streams[0], "web", ECHO_PORT)
            await streams[1].send_all(NO_LOGIN + socks_request("web", 9)[:5])
            await streams[2].send_all(CONNECT)
            await read_head(streams[2])
        for stream in streams:
            assert await read_all(stream) in (b"", b"<reset>", b"\5\0", b"\5\0<reset>")
            await stream.aclose()
        await until(lambda: held_by(desk) == before, 200)
        assert count_tasks(nursery) == 0


async def test_proxy_ends_with_its_device(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    desk, leave = await tailnet.join("desk")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, desk, "tailnet:1080")
            await leave()
            nursery.cancel_scope.deadline = trio.current_time() + 15
    assert not nursery.cancel_scope.cancelled_caught
