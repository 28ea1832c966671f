"""Names that are dialled through an exit: looked up there, bounded in time, and never by anybody else."""

from __future__ import annotations

import functools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from tailnet_scripts import beside, echo_service, runtime_of, until, world
from test_resolvers_tailnet import resolver_on, settle
from trio.testing import MockClock

import tailscale
from tailscale import Device
from tailscale.testing import PlayedExit, Tailnet
from tailscale.testing.network import VirtualHost
from tailscale.testing.pipes import VirtualStream
from ts_control.gojson import encode_json
from ts_control.wire import Hostinfo, Resolver

WEB, WEB6 = "198.51.100.7", "2620:fe::7"
NAME = "www.example"


@asynccontextmanager
async def web(net: Tailnet, *addresses: str, name: str = "web") -> AsyncIterator[list[str]]:
    """A host of the world outside that echoes on port 80; yields who came."""
    visitors: list[str] = []

    async def answer(stream: VirtualStream) -> None:
        visitors.append(stream.remote_address[0])
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    listener = net.host(name, *(addresses or (WEB,))).listen_tcp(80)
    async with beside(functools.partial(trio.serve_listeners, answer, [listener])):
        yield visitors


async def talk(desk: Device, host: str, via: str) -> None:
    async with await desk.tcp_connect(host, 80, via=via, timeout=10) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


async def two_exits(net: Tailnet) -> tuple[Device, PlayedExit, PlayedExit]:
    desk = await net.device("desk")
    swiss = await net.exit_node("swiss", records={NAME: [WEB, WEB6]})
    dutch = await net.exit_node("dutch", records={NAME: ["198.51.100.8"]})
    return desk, swiss, dutch


async def test_each_exit_resolves_for_what_goes_through_it(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, swiss, dutch = await two_exits(tailnet)
    async with web(tailnet, WEB) as at_seven, web(tailnet, "198.51.100.8", name="other") as at_eight:
        await talk(desk, NAME, "swiss")
        await talk(desk, NAME, "dutch")
    hosts = [world(tailnet).network(name).address for name in ("swiss", "dutch")]
    assert (at_seven, at_eight) == (hosts[:1], hosts[1:])
    assert await desk.resolve(NAME, via="swiss") == WEB
    assert await desk.resolve_all(NAME, "AAAA", via="swiss") == [WEB6]
    assert await desk.resolve(NAME, via="dutch") == "198.51.100.8"
    assert (swiss.asked, dutch.asked) == ({NAME: 2}, {NAME: 2}), "A and AAAA, once each"


async def test_what_the_tailnet_knows_is_never_asked_at_an_exit(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, swiss, _ = await two_exits(tailnet)
    tailnet.dns(
        records=[("db.corp.example", str(swiss.device.ipv4))], split={"inner.example": [str(swiss.device.ipv4)]}
    )
    await until(lambda: runtime_of(desk).dialer.resolver.names.addresses("db.corp.example"))
    async with echo_service(swiss.device, 80):
        for name in ("swiss", "swiss.tailnet.test", "db.corp.example"):
            assert await desk.resolve(name, via="swiss") == swiss.device.ipv4
            await talk(desk, name, "swiss")
    for unknown in ("nobody", "nobody.tailnet.test", "www.inner.example"):
        with pytest.raises(tailscale.NameNotFound):
            await desk.resolve(unknown, via="swiss")
    assert not swiss.asked


async def test_both_families_are_asked_and_raced(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, swiss, _ = await two_exits(tailnet)
    swiss.records = {"six.example": [WEB6], "both.example": ["198.51.100.99", WEB6]}
    async with web(tailnet, WEB6) as visitors:
        tailnet.host("hole", "198.51.100.99")
        tailnet.block("hole", "swiss")
        await talk(desk, "six.example", "swiss")
        began = trio.current_time()
        await talk(desk, "both.example", "swiss")
        assert trio.current_time() - began < 1, "the silent family did not hold up the other"
    assert len(visitors) == 2


async def test_datagrams_to_a_name_go_where_the_exit_says(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _, _ = await two_exits(tailnet)
    port = tailnet.host("web", WEB).bind_udp(7)
    async with await desk.udp(via="swiss") as sock:
        await sock.send_to(b"hello", (NAME, 7))
        [((source, _), [data])] = await port.recv_many()
    assert (source, data) == (world(tailnet).network("swiss").address, b"hello")


async def test_answers_are_remembered_for_their_time_and_by_exit(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, swiss, dutch = await two_exits(tailnet)
    swiss.ttl = 30
    for _ in range(3):
        await desk.resolve_all(NAME, via="swiss")
    assert (swiss.asked[NAME], dutch.asked[NAME]) == (1, 0)
    await desk.resolve_all(NAME, via="dutch")
    assert (swiss.asked[NAME], dutch.asked[NAME]) == (1, 1)
    await trio.sleep(31)
    await desk.resolve_all(NAME, via="swiss")
    assert swiss.asked[NAME] == 2
    with pytest.raises(tailscale.NameNotFound) as caught:
        await desk.resolve("no.example", via="swiss")
    assert caught.value.errno == socket.EAI_NONAME
    assert not caught.value.is_temporary


def silent(exit_node: PlayedExit) -> None:
    exit_node.is_silent = True


def forbids(exit_node: PlayedExit) -> None:
    exit_node.status = 403


def fails(exit_node: PlayedExit) -> None:
    exit_node.status = 500


def says_servfail(exit_node: PlayedExit) -> None:
    exit_node.answer = lambda question: question[:2] + b"\x81\x82" + question[4:]


def says_nonsense(exit_node: PlayedExit) -> None:
    exit_node.answer = lambda question: question[:2] + b"\xff" * 40


def answers_another_question(exit_node: PlayedExit) -> None:
    def answer(question: bytes) -> bytes:
        exit_node.records["evil.example"] = ["6.6.6.6"]
        return exit_node.answer_question(question.replace(b"\x03www", b"\x04evil"))

    exit_node.answer = answer


def answers_with_another_number(exit_node: PlayedExit) -> None:
    exit_node.answer = lambda question: b"\0\0" + exit_node.answer_question(question)[2:]


DNS_FAILURES = [
    (silent, "the exit swiss did not answer within 2 s"),
    (forbids, r"the exit swiss does not look names up for us \(HTTP 403\): it must belong to the same user, or"),
    (fails, "the exit swiss answered HTTP 500"),
    (says_servfail, "the exit swiss answered with code 2"),
    (says_nonsense, "the exit swiss failed: not a DNS message"),
    (answers_another_question, "the exit swiss failed: an answer to another question"),
    (answers_with_another_number, "the exit swiss failed: not the answer to our question"),
]


@pytest.mark.parametrize(("misbehave", "reason"), DNS_FAILURES, ids=[deed.__name__ for deed, _ in DNS_FAILURES])
async def test_an_exit_whose_dns_fails_leaves_the_name_unknown_and_nobody_else_hears_of_it(
    autojump_clock: MockClock,
    tailnet: Tailnet,
    monkeypatch: pytest.MonkeyPatch,
    misbehave: Callable[[PlayedExit], None],
    reason: str,
) -> None:
    desk, swiss, dutch = await two_exits(tailnet)
    tailnet.host("resolver", "203.0.113.53").bind_udp(53)
    tailnet.dns(nameservers=["203.0.113.53", "https://203.0.113.53/dns-query"])
    await until(lambda: runtime_of(desk).directory.netmap.dns.resolvers)
    misbehave(swiss)
    sent = packets_of(tailnet, "desk", monkeypatch)
    for dial in (desk.resolve(NAME, via="swiss"), desk.tcp_connect(NAME, 80, via="swiss")):
        began = trio.current_time()
        with pytest.raises(tailscale.NameNotFound, match=reason) as caught:
            await dial
        assert caught.value.is_temporary
        assert caught.value.errno == socket.EAI_AGAIN
        assert trio.current_time() - began < 2.1
    assert not dutch.asked
    assert sent, "the tunnel was used"
    assert {host for host, _ in sent} <= {"swiss", "dutch", "relay", "control"}
    assert 53 not in {port for _, port in sent}


def packets_of(net: Tailnet, host: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Whom a machine speaks to from now on, by its own network: hosts and ports, of datagrams and connections."""
    internet = world(net).internet
    own = internet.host(host)
    sent: list[tuple[str, int]] = []
    carry, connect = internet.carry, internet.connect

    def see_datagrams(source: tuple[str, int], destination: tuple[str, int], *rest: Any) -> None:
        if source[0] == own.address:
            sent.append((internet.find(destination[0]).name, destination[1]))
        carry(source, destination, *rest)

    async def see_dial(source: VirtualHost, where: str, port: int) -> VirtualStream:
        if source is own:
            sent.append((where, port))
        return await connect(source, where, port)

    monkeypatch.setattr(internet, "carry", see_datagrams)
    monkeypatch.setattr(internet, "connect", see_dial)
    return sent


async def test_an_exit_without_a_peer_api_says_so(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, swiss, _ = await two_exits(tailnet)
    number = tailnet.id_of(swiss.device)
    tailnet.control.do(tailnet.control.server.describe, number)
    await until(lambda: runtime_of(desk).directory.netmap.peers[number].hostinfo.services == ())
    with pytest.raises(tailscale.NameNotFound, match="the exit swiss looks no names up: it has no peer API, and"):
        await desk.resolve(NAME, via="swiss")
    with pytest.raises(ValueError, match="dns='host' is neither 'exit' nor 'tailnet'"):
        await desk.tcp_connect(NAME, 80, via="swiss", dns="host")  # type: ignore[arg-type]


async def test_a_resolver_that_control_names_behind_an_exit_is_asked_through_it(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    """As with exits that are no nodes of Tailscale's, and have no peer API."""
    desk, swiss, _ = await two_exits(tailnet)
    number = tailnet.id_of(swiss.device)
    port = tailnet.host("inner", "203.0.113.53").bind_udp(53)

    async def resolve() -> None:
        while True:
            for source, questions in await port.recv_many():
                port.send_many([(source, [swiss.answer_question(question) for question in questions])])

    seen = runtime_of(desk).directory.netmap.peers[number]
    theirs = msgspec.structs.replace(
        seen, hostinfo=Hostinfo(), exit_node_dns_resolvers=(Resolver(addr="203.0.113.53"),)
    )
    tailnet.control.do(
        tailnet.control.server.send_to, tailnet.id_of(desk), {"PeersChanged": [msgspec.Raw(encode_json(theirs))]}
    )
    await until(lambda: runtime_of(desk).directory.netmap.peers[number].exit_node_dns_resolvers)
    async with beside(resolve):
        assert await desk.resolve(NAME, via="swiss") == WEB
    assert swiss.asked[NAME] == 2


async def test_the_tailnets_resolvers_may_be_asked_instead(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, swiss, dutch = await two_exits(tailnet)
    async with resolver_on(dutch.device) as server:
        server.records = {(NAME, "A"): [WEB]}
        await settle(desk, tailnet, nameservers=[str(dutch.device.ipv4)])
        async with web(tailnet), await desk.tcp_connect(NAME, 80, via="swiss", dns="tailnet") as stream:
            assert stream.exit == desk.peers["swiss"]
        assert server.asked
    assert not swiss.asked
