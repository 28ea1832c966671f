"""Names looked up for peers by the peer API: who may ask, what is asked of whom, and what never leaves the tailnet."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from tailnet_scripts import beside, host_of, runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale import Device
from tailscale.dns import wire
from tailscale.peerapi.actor import PORT
from tailscale.testing import Tailnet
from tailscale.testing.network import VirtualHost
from ts_control.http1 import Http1Client, Reply

EVERYWHERE = ("0.0.0.0/0", "::/0")
NAME, ADDRESS = "www.example", "203.0.113.5"
QUESTION = wire.encode_question(NAME, wire.A, 0)
MESSAGE = "application/dns-message"


class Resolver:
    """A resolver of the world outside."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.is_silent = False
        self.code = 0
        self.lies = 0

    async def serve(self, host: VirtualHost) -> None:
        port = host.bind_udp(53)
        while True:
            for source, datagrams in await port.recv_many():
                for query in datagrams:
                    port.send_many([(source, self.answers(query))])

    def answers(self, query: bytes) -> list[bytes]:
        question = wire.decode_question_untrusted(query)
        self.asked[question.name] += 1
        if self.is_silent:
            return []
        right = bytes(map(int, ADDRESS.split(".")))
        records = ((wire.A, right),) if question.kind == wire.A and not self.code else ()
        honest = wire.encode_reply(question, self.code, records)
        other = wire.encode_reply(question, 0, ((wire.A, b"\6\6\6\6"),))
        elsewhere = wire.decode_question_untrusted(wire.encode_question("evil.example", wire.A, question.identifier))
        forged = [bytes([other[0] ^ number]) + other[1:] for number in range(1, self.lies + 1)]
        return [*forged, *[wire.encode_reply(elsewhere, 0)] * bool(self.lies), honest]


async def doh(client: Device, server: Device, method: str = "POST", target: str = "/dns-query", **more: Any) -> Reply:
    http, body = Http1Client(), more.pop("body", QUESTION if method == "POST" else b"")
    headers = [("Host", "peer"), ("Content-Type", more.pop("kind", MESSAGE)), ("Content-Length", str(len(body)))]
    async with await client.tcp_connect(server.ipv4, PORT) as stream:
        await stream.send_all(http.request(method, target, headers, body))
        while (reply := http.receive_untrusted(bytes(await stream.receive_some()))) is None:
            pass
        return reply


@asynccontextmanager
async def exit_with_names(net: Tailnet, **options: Any) -> AsyncIterator[tuple[Device, Device, Resolver]]:
    """A peer, an exit, and the resolver of the machine that the exit runs on."""
    resolver = Resolver()
    resolving = net.host("resolver", "198.51.100.53")
    door = await net.device("exit", advertise_routes=EVERYWHERE, **options)
    host_of(net, "exit").resolvers = ("100.100.100.100", "198.51.100.53")
    await until(lambda: net.control.server.directory.find(net.id_of(door)).advertised)
    net.approve_routes(door, *EVERYWHERE)
    peer = await net.device("peer")
    await until(lambda: [one.node.hostname for one in peer.exit_nodes] == ["exit"])
    async with beside(lambda: resolver.serve(resolving)):
        yield peer, door, resolver


def addresses(reply: Reply) -> list[str]:
    assert (reply.status, reply.headers["content-type"]) == (200, MESSAGE)
    code, records = wire.decode_records_untrusted(reply.body)
    assert code == wire.NO_ERROR
    return [record.body for record in records]


async def test_an_exit_answers_in_every_form(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exit_with_names(tailnet) as (peer, door, resolver):
        services = runtime_of(peer).directory.netmap.peers[door.node.id].hostinfo.services
        assert ("peerapi-dns-proxy", 1) in {(service.proto, service.port) for service in services}
        text = base64.urlsafe_b64encode(QUESTION).decode().rstrip("=")
        resolver.lies = 5
        assert addresses(await doh(peer, door)) == [ADDRESS], "lies about numbers and questions are not believed"
        assert addresses(await doh(peer, door, "GET", f"/dns-query?dns={text}")) == [ADDRESS]
        assert json.loads((await doh(peer, door, "GET", f"/dns-query?q={NAME}&t=a")).body) == [ADDRESS]
        assert json.loads((await doh(peer, door, "GET", f"/dns-query?q={NAME}")).body) == [ADDRESS]
        resolver.code = wire.NAME_ERROR
        assert json.loads((await doh(peer, door, "GET", f"/dns-query?q={NAME}&t=txt")).body) == {
            "Error": "DNS RCode = RCodeNameError"
        }
        assert resolver.asked == {NAME: 5}


NO_QUESTIONS: list[tuple[str, str, dict[str, Any], int]] = [
    ("PUT", "/dns-query", {}, 400),
    ("POST", "/dns-query", {"kind": "text/plain"}, 400),
    ("GET", "/dns-query?dns=***", {}, 400),
    ("GET", "/dns-query?q=x..y", {}, 400),
    ("GET", "/dns-query?q=x&t=mx", {}, 400),
    ("POST", "/dns-query", {"body": bytes((256 << 10) + 1)}, 413),
    ("POST", "/dns-query", {"body": b"junk"}, 200),
    ("POST", "/dns-query/more", {}, 404),
]


async def test_an_exit_refuses_what_is_no_question(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    for method, target, more, status in NO_QUESTIONS:
        assert (await doh(a, b, method, target, **more)).status == status, target


async def test_names_of_the_tailnet_and_filtered_ones_are_not_passed_on(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with exit_with_names(tailnet) as (peer, door, resolver):
        before = runtime_of(door).directory.netmap
        filtered = ("bad.example", ".evil.example")
        tailnet.dns(filtered=filtered)
        await until(lambda: runtime_of(door).directory.netmap is not before)
        for name, code in (
            ("bad.example", wire.REFUSED),
            ("x.evil.example", wire.REFUSED),
            ("BAD.example", wire.REFUSED),
            ("exit.tailnet.test", wire.NAME_ERROR),
            ("nobody.tailnet.test", wire.NAME_ERROR),
            ("lb._dns-sd._udp.example", wire.NAME_ERROR),
        ):
            reply = await doh(peer, door, body=wire.encode_question(name, wire.A, 0))
            assert wire.code_of(reply.body) == code, name
        assert not resolver.asked
        for name in ("notbad.example", "evil.example", "x.bad.example"):
            assert addresses(await doh(peer, door, body=wire.encode_question(name, wire.A, 0))) == [ADDRESS]


async def test_a_silent_resolver_is_said_so_in_time(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exit_with_names(tailnet) as (peer, door, resolver):
        resolver.is_silent = True
        began = trio.current_time()
        assert (await doh(peer, door)).status in (200, 500)
        assert trio.current_time() - began < 6


INTERNET = {"action": "accept", "src": ["*"], "dst": ["autogroup:internet:*"]}
NODES = {"action": "accept", "src": ["*"], "dst": ["*:443"]}
OWNERS = {"tag:server": ["amy@tailnet.test", "ben@tailnet.test"]}


@pytest.mark.parametrize(
    ("asker", "owner", "offers", "acl", "may"),
    [
        ("amy", "amy", False, NODES, True),
        ("ben", "amy", False, NODES, False),
        ("ben", "amy", True, NODES, False),
        ("ben", "amy", True, INTERNET, True),
        ("tag", "amy", False, NODES, False),
        ("tag", "amy", True, NODES, False),
        ("tag", "amy", True, INTERNET, True),
        ("tag", "tag", False, NODES, False),
        ("tag", "tag", True, INTERNET, True),
        ("amy", "tag", False, NODES, False),
    ],
)
async def test_who_may_ask_names(
    autojump_clock: MockClock, tailnet: Tailnet, asker: str, owner: str, offers: bool, acl: dict[str, Any], may: bool
) -> None:
    tailnet.policy({"acls": [acl, NODES], "tagOwners": OWNERS})

    def key(who: str) -> str:
        return tailnet.auth_key("amy" if who == "tag" else who, tags=["tag:server"] if who == "tag" else ())

    door = await tailnet.device("exit", auth_key=key(owner), advertise_routes=EVERYWHERE if offers else ())
    if offers:
        await until(lambda: tailnet.control.server.directory.find(tailnet.id_of(door)).advertised)
        tailnet.approve_routes(door, *EVERYWHERE)
    peer = await tailnet.device("peer", auth_key=key(asker))
    await until(lambda: door.node.id in {node.id for node in peer.peers.values()})
    await until(lambda: not offers or len(runtime_of(door).directory.netmap.self_node.allowed_ips or ()) == 4)
    reply = await doh(peer, door)
    assert (reply.status == 200) is may, reply
    if not may:
        assert reply.status == 403
        assert door.status().drops["peerapi.dns_denied"] == 1


# -- the other side: a device that goes out by an exit, and where its names are looked up ------------------------------


async def going_out(net: Tailnet, peer: Device) -> Resolver:
    """Let all of `peer` go by the exit; a resolver of the tailnet's is there too, behind it."""
    resolver = Resolver()
    await peer.set(exit_node="exit")
    net.dns(nameservers=["198.51.100.99"])
    await until(lambda: runtime_of(peer).directory.netmap.dns.resolvers)
    await until(lambda: runtime_of(peer).reach.routes_to(bytes([198, 51, 100, 99])))
    return resolver


async def test_names_go_to_the_exit_and_in_need_through_it(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exit_with_names(tailnet) as (peer, _, resolver):
        spare = await going_out(tailnet, peer)
        behind = tailnet.host("spare", "198.51.100.99")
        at_home = Resolver()
        async with beside(lambda: spare.serve(behind)):
            assert await peer.resolve(NAME) == ADDRESS
            assert (resolver.asked.total(), spare.asked.total(), peer.health) == (2, 0, ())
            resolver.is_silent = True
            began = trio.current_time()
            assert await peer.resolve("other.example") == ADDRESS
            assert trio.current_time() - began < 4.5
            assert spare.asked["other.example"] == 2
            (warning,) = peer.health
            assert (warning.code, "not by the exit node" in warning.sentence) == ("exit-names", True)
            explanation = await peer.explain("third.example", 80)
            assert any(
                step.outcome == "warn" and "not the exit node: the exit exit did not" in step.sentence
                for step in explanation.steps
                if step.name == "name"
            )
            resolver.is_silent = False
            assert await peer.resolve("fourth.example") == ADDRESS
            assert peer.health == ()
        assert not at_home.asked


async def test_names_are_held_back_while_the_exit_is_missing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    at_home = Resolver()
    peer = await tailnet.device("peer")
    tailnet.dns(nameservers=["198.51.100.99"])
    await until(lambda: runtime_of(peer).directory.netmap.dns.resolvers)
    async with beside(lambda: at_home.serve(tailnet.host("spare", "198.51.100.99"))):
        assert await peer.resolve(NAME) == ADDRESS
        asked = at_home.asked.total()
        await peer.set(exit_node="gone")
        with pytest.raises(tailscale.NameNotFound, match="through the exit node, which is not there"):
            await peer.resolve("secret.example")
        async with await peer.udp() as port:
            await port.send_to(wire.encode_question("secret.example", wire.A, 5), ("100.100.100.100", 53))
            assert wire.code_of(await port.receive()) == wire.SERVER_FAILURE
        assert at_home.asked.total() == asked
