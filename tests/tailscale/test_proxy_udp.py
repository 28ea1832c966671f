"""UDP ASSOCIATE, in virtual time: to the tailnet, by an exit, and nothing for or from anybody who has no part in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from proxy_clients import ECHO_PORT, NO_LOGIN, read_all, read_exactly, scene, serving, socks_request
from tailnet_scripts import held_by, until
from trio.testing import MockClock

from tailscale import Device, TcpStream, UdpSocket
from tailscale.proxy import Exits, ProxyLimits
from tailscale.testing import Tailnet
from ts_base.ip import MAXIMUM_DATAGRAM
from ts_proxy.socks5 import encode_datagram

ASSOCIATE = b"\5\3\0\1" + bytes(6)


def by_name(name: bytes, port: int, payload: bytes, front: bytes = b"\0\0\0") -> bytes:
    return front + bytes((3, len(name))) + name + port.to_bytes(2, "big") + payload


@dataclass
class Association:
    """A client's end: its connection, its socket, and where the proxy takes datagrams."""

    control: TcpStream
    socket: UdpSocket
    relay: tuple[str, int]

    async def send(self, datagram: bytes) -> None:
        await self.socket.send_to(datagram, self.relay)

    async def asked(self, datagram: bytes, patience: float = 5.0) -> bytes | None:
        """The next datagram that comes; None if none does."""
        await self.send(datagram)
        with trio.move_on_after(patience):
            data, source = await self.socket.receive_from()
            assert source == self.relay
            return data
        return None


@asynccontextmanager
async def associated(
    laptop: Device, port: int = 1080, request: bytes = ASSOCIATE, source: int = 0
) -> AsyncIterator[Association]:
    async with await laptop.tcp_connect("desk", port) as control, await laptop.udp(source) as socket:
        await control.send_all(NO_LOGIN + request)
        answer = await read_exactly(control, 12)
        assert answer[:6] == b"\5\0\5\0\0\1"
        yield Association(control, socket, (".".join(map(str, answer[6:10])), int.from_bytes(answer[10:12], "big")))


@asynccontextmanager
async def udp_echo(device: Device, port: int = ECHO_PORT) -> AsyncIterator[UdpSocket]:
    async with await device.udp(port) as socket, trio.open_nursery() as nursery:

        async def echo() -> None:
            while True:
                data, source = await socket.receive_from()
                await socket.send_to(data, source)

        nursery.start_soon(echo)
        yield socket
        nursery.cancel_scope.cancel()


async def test_udp_goes_to_names_and_addresses_of_the_tailnet_and_back(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s, udp_echo(s.web), associated(s.laptop) as one:
        assert one.relay[0] == s.desk.ipv4
        ipv4, ipv6 = s.web.ipv4 or "", s.web.ipv6 or ""
        assert await one.asked(by_name(b"web", ECHO_PORT, b"a")) == encode_datagram(ipv4, ECHO_PORT, b"a")
        for host in (ipv4, ipv6):
            datagram = encode_datagram(host, ECHO_PORT, b"b")
            assert await one.asked(datagram) == datagram
        large = encode_datagram(ipv4, ECHO_PORT, bytes(range(256)) * 200)
        assert await one.asked(large) == large
        statistics = s.proxy.statistics()
        assert (statistics.associations, statistics.requests) == (1, {"udp": 1})
        assert statistics.bytes_sent == statistics.bytes_received == 3 + 256 * 200
        await one.control.aclose()
        await until(lambda: s.proxy.statistics().associations == 0)


async def test_udp_address_that_a_client_announces_is_no_matter(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s, udp_echo(s.web):
        for announced in (b"\3\1" + b"0", b"\1\xc0\xa8\0\1", b"\4" + bytes(16)):
            async with associated(s.laptop, request=b"\5\3\0" + announced + b"\0\0") as one:
                assert await one.asked(by_name(b"web", ECHO_PORT, b"a"))


async def test_udp_association_ends_with_its_connection_and_leaves_nothing(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s, udp_echo(s.web):
        before = held_by(s.desk)
        async with associated(s.laptop) as one:
            assert await one.asked(by_name(b"web", ECHO_PORT, b"a"))
            one.control.abort()
            await until(lambda: s.proxy.statistics().open == 0)
            assert await one.asked(by_name(b"web", ECHO_PORT, b"a")) is None
        await until(lambda: held_by(s.desk) == before, 200)


@pytest.mark.parametrize("fixed_earlier", [False, True])
async def test_udp_hears_its_client_only(tailnet: Tailnet, autojump_clock: MockClock, fixed_earlier: bool) -> None:
    """Neither another machine, nor another port of the same once the first datagram has come, or was announced."""
    request = b"\5\3\0\1" + bytes(4) + (5555).to_bytes(2, "big") if fixed_earlier else ASSOCIATE
    async with scene(tailnet) as s, udp_echo(s.web), await s.web.udp() as other, await s.laptop.udp() as second:
        async with associated(s.laptop, request=request, source=5555) as one:
            if fixed_earlier:
                await second.send_to(by_name(b"web", ECHO_PORT, b"x"), one.relay)
            await other.send_to(by_name(b"web", ECHO_PORT, b"x"), one.relay)
            await trio.sleep(1)
            assert await one.asked(by_name(b"web", ECHO_PORT, b"a"))
            await second.send_to(by_name(b"web", ECHO_PORT, b"x"), one.relay)
            await trio.sleep(1)
            assert s.proxy.statistics().drops == {"proxy.udp_stranger": 2 + fixed_earlier}
            for nobody in (other, second):
                with trio.move_on_after(1):
                    await nobody.receive_from()
                    pytest.fail("a stranger was answered")


async def test_udp_passes_nothing_back_from_whom_the_client_has_not_spoken_to(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    """An answer from another port of the same address passes, as through most routers. Nobody else's does."""
    async with scene(tailnet) as s, await s.web.udp(ECHO_PORT) as server, await s.web.udp(77) as helper:
        third = await tailnet.device("third")
        async with associated(s.laptop) as one, await third.udp() as stranger:
            await one.send(by_name(b"web", ECHO_PORT, b"a"))
            data, at = await server.receive_from()
            assert data == b"a"
            await stranger.send_to(b"spam", at)
            await helper.send_to(b"b", at)
            got, _ = await one.socket.receive_from()
            assert got == encode_datagram(s.web.ipv4 or "", 77, b"b")
            await until(lambda: s.proxy.statistics().drops == {"proxy.udp_unasked": 1})


async def test_udp_drops_and_counts_what_is_malformed(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s, udp_echo(s.web), associated(s.laptop) as one:
        whole = by_name(b"web", ECHO_PORT, b"payload")
        malformed = [whole[:cut] for cut in range(len(whole) - len(b"payload"))]
        malformed += [b"\1\0" + whole[2:], b"\0\1" + whole[2:], whole[:3] + b"\2" + whole[4:]]
        malformed += [by_name(b"we b", 7, b""), by_name(b"web", 0, b"x"), by_name(b"", 7, b"x"), by_name(b"\0", 7, b"")]
        for datagram in malformed:
            assert await one.asked(datagram, 0.1) is None
        assert await one.asked(whole[:2] + b"\1" + whole[3:], 0.1) is None
        drops = s.proxy.statistics().drops
        assert drops == {"proxy.udp_malformed": len(malformed), "proxy.udp_fragment": 1}
        assert await one.asked(whole) is not None


async def test_udp_largest_datagram_passes_and_one_more_byte_is_dropped_on_the_way_back(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    room = MAXIMUM_DATAGRAM - len(encode_datagram("100.64.0.1", 7, b""))
    async with scene(tailnet) as s, await s.web.udp(ECHO_PORT) as server, associated(s.laptop) as one:
        await one.send(by_name(b"web", ECHO_PORT, b"a"))
        _, at = await server.receive_from()
        await server.send_to(bytes(room + 1), at)
        await until(lambda: s.proxy.statistics().drops == {"proxy.udp_too_large": 1})
        await server.send_to(bytes(room), at)
        assert len((await one.socket.receive_from())[0]) == MAXIMUM_DATAGRAM


async def test_udp_destinations_are_judged_as_connections_are(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, allow=lambda request: request.port != 13) as s, associated(s.laptop) as one:
        for datagram in (
            by_name(b"web", 13, b"x"),
            by_name(b"127.0.0.1", 53, b"x"),
            by_name(b"localhost", 53, b"x"),
            encode_datagram("169.254.169.254", 80, b"x"),
            encode_datagram("8.8.8.8", 53, b"x"),
            by_name(b"nobody", 7, b"x"),
        ):
            assert await one.asked(datagram, 1) is None
        assert s.proxy.statistics().drops == {"proxy.udp_unreachable": 6}
        assert s.proxy.statistics().failures == {
            "http_request_denied": 4,
            "destination_ip_unroutable": 1,
            "dns_error": 1,
        }


async def test_udp_association_that_is_silent_for_five_minutes_ends(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s, udp_echo(s.web), associated(s.laptop) as one:
        await trio.sleep(250)
        assert await one.asked(by_name(b"web", ECHO_PORT, b"a"))
        began = trio.current_time()
        assert await read_all(one.control) == b""
        assert trio.current_time() - began == pytest.approx(300, abs=1)
        assert s.proxy.statistics().associations == 0


async def test_udp_keeps_as_many_destinations_as_it_may(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, limits=ProxyLimits(udp_targets=2)) as s, udp_echo(s.web), associated(s.laptop) as one:
        third = await tailnet.device("third")
        async with await third.udp(ECHO_PORT) as old:
            await one.send(by_name(b"third", ECHO_PORT, b"a"))
            _, at = await old.receive_from()
            for port in (ECHO_PORT, 8):
                await one.send(by_name(b"web", port, b"a"))
            await trio.sleep(1)
            await old.send_to(b"late", at)
            await until(lambda: s.proxy.statistics().drops.get("proxy.udp_unasked") == 1)


async def test_udp_waits_for_names_within_bounds(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    """A resolver that is silent holds up its own name only, and at most 64 KiB wait for it."""
    out = await tailnet.exit_node("out", country_code="US")
    out.is_silent = True
    desk, laptop, web = await tailnet.device("desk"), await tailnet.device("laptop"), await tailnet.device("web")
    await until(lambda: desk.exit_nodes)
    async with serving(desk, "tailnet:1080", Exits(desk, nodes=["out"])) as (proxy, _, _), udp_echo(web):
        async with associated(laptop) as one:
            for _ in range(70):
                await one.send(by_name(b"slow.example", 53, bytes(1000)))
            await until(lambda: proxy.statistics().drops.get("proxy.udp_queue_full") == 5)
            assert await one.asked(by_name(b"web", ECHO_PORT, b"a"))


async def test_udp_goes_by_the_exit_and_names_are_looked_up_there(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    out = await tailnet.exit_node("out", country_code="US", records={"echo.example": ["198.51.100.7"]})
    desk, laptop = await tailnet.device("desk"), await tailnet.device("laptop")
    await until(lambda: desk.exit_nodes)
    async with serving(desk, "tailnet:1080", Exits(desk, country="US")) as (proxy, _, _):
        async with associated(laptop) as one:
            for _ in range(2):
                await one.send(by_name(b"echo.example", ECHO_PORT, b"a"))
                await one.send(encode_datagram("198.51.100.7", ECHO_PORT, b"b"))
            await until(lambda: proxy.statistics().bytes_sent == 4)
            assert out.asked["echo.example"] <= 2  # once for each family


async def test_udp_of_a_full_proxy_is_refused(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, limits=ProxyLimits(clients=1)) as s, await s.connect() as first:
        await first.send_all(NO_LOGIN + socks_request("web", ECHO_PORT))
        await read_exactly(first, 12)
        assert (await s.exchange(NO_LOGIN + ASSOCIATE))[:6] == b"\5\0\5\1\0\1"
