"""Names in full: the tailnet's own, extra records, reverse, split DNS and global resolvers reached over the tailnet."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dpkt
import pytest
import trio
from tailnet_scripts import beside, echo_service, echoed, runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale.dns.messages import decode_answer_untrusted
from tailscale.testing import Tailnet
from ts_base.errors import BadPacket

NAME_ERROR, SERVER_FAILURE = 3, 2
LONG = [f"10.1.{n >> 8}.{n & 255}" for n in range(200)]


RIGHT, WRONG = bytes([9, 9, 9, 9]), bytes([6, 6, 6, 6])


class DnsServer:
    """A resolver as a program of a peer: records by name and type; long answers only over TCP."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl = 60
        self.asked: Counter[tuple[str, str, str]] = Counter()
        self.failing = False
        self.silent_udp = False
        self.forgeries = 0  # answers with another's number, in front of each right one

    def answer(self, query: bytes, transport: str) -> bytes:
        message = dpkt.dns.DNS(query)
        (question,) = message.qd
        kinds = {1: "A", 28: "AAAA", 16: "TXT", 12: "PTR"}
        name, kind = question.name.lower(), kinds[question.type]
        self.asked[name, kind, transport] += 1
        values = self.records.get((name, kind), [])
        known = any(known == name for known, _ in self.records)
        reply = dpkt.dns.DNS(id=message.id, op=dpkt.dns.DNS_QR | dpkt.dns.DNS_RA, qd=message.qd)
        if self.failing:
            reply.rcode = SERVER_FAILURE
        elif not known:
            reply.rcode = NAME_ERROR
        elif len(values) > 20 and transport == "udp":
            reply.op |= dpkt.dns.DNS_TC
        else:
            reply.an = [self._record(question, value) for value in values]
        return bytes(reply)

    def _record(self, question: dpkt.dns.DNS.Q, value: str) -> dpkt.dns.DNS.RR:
        record = dpkt.dns.DNS.RR(name=question.name, type=question.type, cls=1, ttl=self.ttl)
        if question.type == 16:
            record.rdata = bytes([len(value)]) + value.encode()
        elif question.type == 12:
            record.rdata = b"".join(bytes([len(p)]) + p.encode() for p in value.split(".")) + b"\0"
        else:
            record.rdata = socket.inet_pton(socket.AF_INET if question.type == 1 else socket.AF_INET6, value)
        return record

    async def serve_udp(self, device: tailscale.Device) -> None:
        async with await device.udp(53) as port:
            while True:
                query, source = await port.receive_from()
                for number in range(self.forgeries):
                    forged = bytes(bit ^ (number % 255 + 1) for bit in query[:2]) + self.answer(query, "udp")[2:]
                    await port.send_to(forged.replace(RIGHT, WRONG), source)
                if not self.silent_udp:
                    await port.send_to(self.answer(query, "udp"), source)

    async def serve_tcp(self, device: tailscale.Device) -> None:
        async def talk(stream: tailscale.TcpStream) -> None:
            async with stream:
                query = await stream.receive_some()
                reply = self.answer(bytes(query)[2:], "tcp")
                await stream.send_all(len(reply).to_bytes(2, "big") + reply)

        await trio.serve_listeners(talk, [await device.listen(53)])


@asynccontextmanager
async def resolver_on(device: tailscale.Device) -> AsyncIterator[DnsServer]:
    server = DnsServer()
    async with beside(lambda: server.serve_udp(device)), beside(lambda: server.serve_tcp(device)):
        yield server


async def with_resolver(net: Tailnet) -> tuple[tailscale.Device, tailscale.Device]:
    return await net.device("a"), await net.device("dns")


async def settle(device: tailscale.Device, net: Tailnet, **settings: object) -> None:
    """Change the tailnet's DNS and wait until the device has heard of it."""
    before = runtime_of(device).directory.netmap
    net.dns(**settings)
    await until(lambda: runtime_of(device).directory.netmap is not before)


async def test_own_names_in_every_form_and_record_type(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    for name in ("b", "B.", "b.tailnet.test", "B.Tailnet.Test."):
        assert await a.resolve(name) == b.ipv4
    assert await a.resolve_all("b") == [b.ipv4]
    assert await a.resolve_all("b", "aaaa") == [b.ipv6]
    assert await a.resolve_all("b", "TXT") == []
    assert await a.resolve("a") == a.ipv4
    assert await a.resolve(str(b.ipv6)) == b.ipv6
    for reverse in (b.ipv4, b.ipv6, "2.0.64.100.in-addr.arpa"):
        assert await a.resolve_all(str(reverse), "PTR") == ["b.tailnet.test"]
    with pytest.raises(tailscale.NameNotFound) as caught:
        await a.resolve("c")
    assert caught.value.errno == socket.EAI_NONAME


async def test_extra_records_answer_and_follow_changes(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    await settle(a, tailnet, records=[("db.tailnet.test", str(b.ipv4)), ("www.corp.example", str(b.ipv4))])
    async with echo_service(b, 80):
        for name in ("db", "db.tailnet.test", "www.corp.example"):
            assert await a.resolve(name) == b.ipv4
            assert await echoed(a, name, 80) == b"hello"
    await settle(a, tailnet, records=[])
    with pytest.raises(tailscale.NameNotFound):
        await a.resolve("db")


async def test_split_dns_asks_the_right_server_over_the_tailnet(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        server.records = {
            ("db.corp.example", "A"): ["10.0.0.1"],
            ("db.corp.example", "AAAA"): ["fd00::1"],
            ("db.corp.example", "TXT"): ["hello"],
            ("1.0.0.10.in-addr.arpa", "PTR"): ["db.corp.example"],
        }
        await settle(a, tailnet, split={"corp.example": [str(dns.ipv4)], "10.in-addr.arpa": [f"[{dns.ipv6}]:53"]})
        assert await a.resolve("db.corp.example") == "10.0.0.1"
        assert await a.resolve_all("DB.corp.example.", "AAAA") == ["fd00::1"]
        assert await a.resolve_all("db.corp.example", "TXT") == ["hello"]
        assert await a.resolve_all("10.0.0.1", "PTR") == ["db.corp.example"]
        with pytest.raises(tailscale.NameNotFound):
            await a.resolve("nope.corp.example")
        asked = server.asked.total()
        with pytest.raises(tailscale.NameNotFound):
            await a.resolve("db.other.example")
        assert server.asked.total() == asked


async def test_longest_suffix_wins(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    other = await tailnet.device("other")
    async with resolver_on(dns) as wide, resolver_on(other) as narrow:
        wide.records = {("x.corp.example", "A"): ["10.0.0.1"], ("x.eu.corp.example", "A"): ["10.0.0.9"]}
        narrow.records = {("x.eu.corp.example", "A"): ["10.0.0.2"]}
        await settle(a, tailnet, split={"corp.example": [str(dns.ipv4)], "eu.corp.example": [str(other.ipv4)]})
        assert await a.resolve("x.corp.example") == "10.0.0.1"
        assert await a.resolve("x.eu.corp.example") == "10.0.0.2"


async def test_global_resolver_over_the_tailnet_never_sees_tailnet_names(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, dns = await with_resolver(tailnet)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the machine's own resolver was asked")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(trio.socket, "getaddrinfo", forbidden)
    async with resolver_on(dns) as server:
        server.records = {("www.example", "A"): ["192.0.2.1"]}
        await settle(a, tailnet, nameservers=[str(dns.ipv4)])
        assert await a.resolve("www.example") == "192.0.2.1"
        for name in ("nobody", "nobody.tailnet.test", "deep.er.tailnet.test", "100.64.9.9"):
            with pytest.raises(tailscale.NameNotFound):
                await a.resolve_all(name, "PTR" if name[0] == "1" else "A")
        with pytest.raises(tailscale.NoRoute, match=r"www\.example \(192\.0\.2\.1\)"):
            await a.tcp_connect("www.example", 80)
        assert {name for name, _, _ in server.asked} == {"www.example"}


async def test_search_domain_completes_short_names(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        server.records = {("wiki.corp.example", "A"): ["10.0.0.1"]}
        await settle(a, tailnet, split={"corp.example": [str(dns.ipv4)]}, search=["corp.example"])
        assert await a.resolve("wiki") == "10.0.0.1"
        assert await a.resolve("dns") == dns.ipv4, "a node's name comes first"
        with pytest.raises(tailscale.NameNotFound, match="'wikki'"):
            await a.resolve("wikki")


async def test_long_answers_come_over_tcp(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        server.records = {("many.corp.example", "A"): LONG}
        await settle(a, tailnet, split={"corp.example": [str(dns.ipv4)]})
        assert await a.resolve_all("many.corp.example") == LONG
        assert server.asked == {("many.corp.example", "A", "udp"): 1, ("many.corp.example", "A", "tcp"): 1}


async def test_answers_are_remembered_for_their_ttl(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        server.records = {("db.corp.example", "A"): ["10.0.0.1"]}
        await settle(a, tailnet, split={"corp.example": [str(dns.ipv4)]})
        for _ in range(5):
            assert await a.resolve_all("db.corp.example") == ["10.0.0.1"]
            with pytest.raises(tailscale.NameNotFound):
                await a.resolve_all("nope.corp.example")
        assert server.asked.total() == 2, "a name that is not there is remembered too"
        server.records = {("db.corp.example", "A"): ["10.0.0.2"]}
        await trio.sleep(59)
        assert await a.resolve_all("db.corp.example") == ["10.0.0.1"]
        await trio.sleep(2)
        assert await a.resolve_all("db.corp.example") == ["10.0.0.2"]
        server.records = {("db.corp.example", "A"): ["10.0.0.3"]}
        await settle(a, tailnet, split={"corp.example": [str(dns.ipv6)]})
        assert await a.resolve_all("db.corp.example") == ["10.0.0.3"], "other resolvers, other answers"


async def test_broken_resolver_is_said_and_the_next_is_asked(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    other = await tailnet.device("other")
    async with resolver_on(dns) as broken, resolver_on(other) as good:
        good.records = {("db.corp.example", "A"): ["10.0.0.1"]}
        broken.failing = True
        await settle(
            a, tailnet, split={"corp.example": [str(dns.ipv4), str(other.ipv4)], "bad.example": [str(dns.ipv4)]}
        )
        assert await a.resolve("db.corp.example") == "10.0.0.1"
        with pytest.raises(tailscale.NameNotFound, match=r"right now: the resolver 100\.64\.0\.2 .*code 2") as caught:
            await a.resolve("db.bad.example")
        assert caught.value.errno == socket.EAI_AGAIN
        broken.failing, broken.silent_udp = False, True
        with pytest.raises(tailscale.NameNotFound, match="no answer"):
            await a.resolve("db.bad.example")
        await settle(a, tailnet, split={"bad.example": [str(a.ipv4), "nonsense"]})
        with pytest.raises(tailscale.NameNotFound, match="right now"):
            await a.resolve("db.bad.example")


async def test_one_family_that_fails_does_not_spoil_the_other(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        server.records = {("six.corp.example", "AAAA"): ["fd00::6"]}
        await settle(a, tailnet, split={"corp.example": [str(dns.ipv4)]})
        assert await a.resolve("six.corp.example") == "fd00::6"
        assert await a.resolve_all("six.corp.example") == []


async def test_resolver_outside_the_tailnet_is_asked_over_the_hosts_network(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    a = await tailnet.device("a")
    outside = tailnet.host("outside")
    port = outside.bind_udp(53)
    server = DnsServer()
    server.records = {("www.example", "A"): ["192.0.2.1"]}
    await settle(a, tailnet, nameservers=[outside.address])

    async def serve() -> None:
        while True:
            for source, queries in await port.recv_many():
                port.send_many([(source, [server.answer(query, "udp") for query in queries])])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert await a.resolve("www.example") == "192.0.2.1"
        nursery.cancel_scope.cancel()
    ports = set(tailnet.host("a").udp)
    assert ports == {a.status().udp_port}


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "x" * 64 + ".example", "y." * 200, "\ud800.example", "ü" * 70 + ".de"]
)
async def test_impossible_names_are_not_found_and_never_sent(
    autojump_clock: MockClock, tailnet: Tailnet, name: str
) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        await settle(a, tailnet, nameservers=[str(dns.ipv4)])
        for kind in ("A", "TXT", "PTR"):
            with pytest.raises(tailscale.NameNotFound):
                await a.resolve_all(name, kind)
        with pytest.raises(tailscale.NameNotFound):
            await a.resolve(name)
        assert not server.asked


async def test_international_names_are_asked_in_their_wire_form(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        server.records = {("xn--bcher-kva.example", "A"): ["192.0.2.7"]}
        await settle(a, tailnet, nameservers=[str(dns.ipv4)])
        assert await a.resolve("bücher.example") == "192.0.2.7"


async def test_an_answer_with_another_number_is_waited_past(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, dns = await with_resolver(tailnet)
    async with resolver_on(dns) as server:
        server.records["www.example", "A"] = ["9.9.9.9"]
        server.forgeries = 20
        await settle(a, tailnet, nameservers=[str(dns.ipv4)])
        assert await a.resolve_all("www.example") == ["9.9.9.9"]
        assert server.asked.total() == 21, "asked once; each forgery was made from an answer of its own"
        server.silent_udp = True
        began = trio.current_time()
        with pytest.raises(tailscale.NameNotFound):
            await a.resolve_all("other.example")
        assert trio.current_time() - began == pytest.approx(4, abs=0.2), "two attempts, each to its end"


def test_an_address_record_of_another_size_is_no_answer() -> None:
    record = dpkt.dns.DNS.RR(name="www.example", type=1, cls=1, ttl=60, rdata=bytes(16))
    question = dpkt.dns.DNS.Q(name="www.example", type=1, cls=1)
    reply = bytes(dpkt.dns.DNS(id=7, op=dpkt.dns.DNS_QR, qd=[question], an=[record]))
    with pytest.raises(BadPacket):
        decode_answer_untrusted(reply, 7, "www.example", "A")
