"""The device's resolver as a DNS server: at 100.100.100.100 inside the device, and on a port of this machine."""

from __future__ import annotations

import socket
import struct
from typing import Any

import dpkt
import pytest
import trio
from test_resolvers_tailnet import resolver_on, settle
from trio.testing import MockClock

from tailscale import Device, TailscaleError
from tailscale.dns import wire
from tailscale.testing import Tailnet
from tailscale.testing.sync import Tailnet as SyncTailnet

QUAD = "100.100.100.100"


async def ask_udp(device: Device, name: str, kind: int = wire.A, host: str = QUAD) -> dpkt.dns.DNS:
    async with await device.udp() as port:
        await port.connect((host, 53))
        await port.send(wire.encode_question(name, kind, 77))
        with trio.fail_after(12):
            return dpkt.dns.DNS(await port.receive())


async def ask_tcp(device: Device, name: str, kind: int = wire.A) -> dpkt.dns.DNS:
    query = wire.encode_question(name, kind, 77)
    async with await device.tcp_connect(QUAD, 53) as stream:
        await stream.send_all(struct.pack("!H", len(query)) + query)
        received = b""
        while len(received) < 2 or len(received) < 2 + struct.unpack_from("!H", received)[0]:
            received += await stream.receive_some()
        return dpkt.dns.DNS(received[2:])


async def test_the_device_is_a_resolver_for_itself(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    for ask in (ask_udp, ask_tcp):
        for name in ("b", "B.tailnet.test"):
            reply = await ask(a, name)
            assert (reply.id, reply.rcode, [wire.format_address(r.rdata) for r in reply.an]) == (77, 0, [b.ipv4])
        assert (await ask(a, "b.tailnet.test", wire.AAAA)).an == [], "there is an IPv4 address"
        assert (await ask(a, "nobody.tailnet.test")).rcode == wire.NAME_ERROR
        assert (await ask(a, "www.example.com")).rcode == wire.SERVER_FAILURE, "there is no resolver"
    assert (await ask_udp(a, "b", host="fd7a:115c:a1e0::53")).rcode == 0


async def test_nobody_else_reaches_the_resolver(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with await a.udp(53), await a.listen(53):
        assert (await ask_udp(a, "b")).rcode == 0, "a program's own port 53 is another one"
    with pytest.raises((TailscaleError, trio.TooSlowError)):
        await ask_udp(b, "a", host=str(a.ipv4))
    with pytest.raises(TailscaleError):
        await a.tcp_connect(QUAD, 80, timeout=2)


async def test_long_answers_are_cut_over_udp_and_whole_over_tcp(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await tailnet.device("a"), await tailnet.device("dns")
    async with resolver_on(dns) as server:
        await settle(a, tailnet, nameservers=[str(dns.ipv4)])
        server.records["long.example", "A"] = [f"10.1.0.{n}" for n in range(100)]
        cut = await ask_udp(a, "long.example")
        assert (cut.tc, cut.an, cut.qd[0].name) == (1, [], "long.example")
        assert len((await ask_tcp(a, "long.example")).an) == 100
        server.records["short.example", "A"] = ["10.2.0.1"]
        server.forgeries = 20
        assert [r.rdata for r in (await ask_udp(a, "short.example")).an] == [bytes([10, 2, 0, 1])]
        server.failing = True
        assert (await ask_udp(a, "short.example")).rcode == wire.SERVER_FAILURE


async def test_the_device_answers_on_a_port_of_this_machine(tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with a.name_server() as server:
        query = wire.encode_question("b", wire.A, 9)
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as port:
            await port.connect((server.host, server.port))
            await port.send(b"\0\1junk")
            await port.send(query)
            with trio.fail_after(10):
                reply = dpkt.dns.DNS(await port.recv(512))
        assert wire.format_address(reply.an[0].rdata) == b.ipv4
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all((struct.pack("!H", len(query)) + query) * 3)
            with trio.fail_after(10):
                received = b""
                while len(received) < 3 * (2 + len(query) + 16):
                    received += await stream.receive_some()
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all(b"\xff\xff")
            with trio.fail_after(10):
                assert await stream.receive_some() == b"", "nobody asks in 64 KiB"
        with pytest.raises(OSError, match=r"cannot answer names on 127\.0\.0\.1 port"):
            await a.name_server(port=server.port)


async def test_a_number_that_tcp_has_already_is_not_taken(tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await tailnet.device("a")
    taken: list[socket.socket] = []
    kind: Any = type(udp := trio.socket.socket(type=trio.socket.SOCK_DGRAM))
    udp.close()
    bind = kind.bind

    async def bind_and_lose_the_race(self: trio.socket.SocketType, address: tuple[str, int]) -> None:
        await bind(self, address)
        if self.type == socket.SOCK_DGRAM and len(taken) < 3:
            taken.append(socket.create_server(self.getsockname()))

    with monkeypatch.context() as patch:
        patch.setattr(kind, "bind", bind_and_lose_the_race)
        async with a.name_server() as server:
            assert server.port not in {one.getsockname()[1] for one in taken}
    for one in taken:
        one.close()
    assert len(taken) == 3


def test_faces_are_dns_servers_too() -> None:
    query = wire.encode_question("a", wire.A, 9)
    with (
        SyncTailnet() as net,
        net.device("a") as device,
        device.name_server() as server,
        socket.socket(type=socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(20)
        client.sendto(query, (server.host, server.port))
        assert wire.decode_records_untrusted(client.recv(512))[1][0].body == device.ipv4
        assert device.dns_query("a").answers[0].body == device.ipv4
