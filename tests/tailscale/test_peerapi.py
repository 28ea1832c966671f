"""The peer API: who gets there, which requests are believed, and what peers can make of it."""

from __future__ import annotations

from dataclasses import replace

import h11
import pytest
import trio
from tailnet_scripts import runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale import Device, TailscaleError
from tailscale.peerapi.actor import PORT
from tailscale.peerapi.callers import INGRESS, caller_at, names_of_us
from tailscale.peerapi.request import PeerRequest
from tailscale.peerapi.serving import LIMITS
from tailscale.testing import Tailnet
from ts_control.netmap import NetMap
from ts_control.wire import Node


async def ask(client: Device, server: Device, request: str, *, host: str = "peer") -> tuple[int, dict[str, str], str]:
    """Status, headers and body of a request, given as its lines without the Host."""
    first, *rest = request.split("\n")
    lines = [f"{first} HTTP/1.1", *([f"Host: {host}"] if host else []), *rest, "", ""]
    async with await client.tcp_connect(server.ipv4, PORT) as stream:
        await stream.send_all("\r\n".join(lines).encode())
        return await read_answer(stream, first.split(" ")[0])


async def read_answer(stream: trio.abc.Stream, method: str = "GET") -> tuple[int, dict[str, str], str]:
    http, body = h11.Connection(h11.CLIENT), bytearray()
    http.send(h11.Request(method=method, target="/", headers=[("host", "x"), ("connection", "close")]))
    http.send(h11.EndOfMessage())
    response = None
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return response.status_code, {n.decode(): v.decode() for n, v in response.headers}, body.decode()


async def test_peerapi_is_announced_with_the_first_map_and_answers(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    services = {s.proto: s.port for s in runtime_of(a).directory.netmap.peers[b.node.id].hostinfo.services}
    assert services == {"peerapi4": PORT, "peerapi6": PORT}
    status, headers, body = await ask(a, b, "GET /")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "on a (100.64." in body
    assert (await ask(a, b, "HEAD /"))[::2] == (200, "")
    assert (await ask(a, b, "POST /\nContent-Length: 0"))[0] == 405
    assert (await ask(a, b, "GET /v0/env"))[0] == 404


async def test_peerapi_is_reached_although_the_policy_admits_nothing(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    policy = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:443"]}]}
    tailnet.policy(policy)
    a, b = await tailnet.device("a"), await tailnet.device("b")
    assert (await ask(a, b, "GET /"))[0] == 200
    async with await b.listen(80):
        with pytest.raises(TailscaleError, match="policy"):
            await a.tcp_connect("b", 80, timeout=2)


REQUESTS = [
    ("GET /", "peer", 200),
    ("GET /", "{own}:{port}", 200),
    ("GET /", "[{own6}]:{port}", 200),
    ("GET /", "{own}:2", 403),
    ("GET /", "{own}", 403),
    ("GET /", "b", 403),
    ("GET /", "evil.example", 403),
    ("GET /", "100.64.0.77:{port}", 403),
    ("GET http://peer/", "evil.example", 200),
    ("GET http://evil.example/", "peer", 403),
    ("GET /\nOrigin: http://evil.example", "peer", 403),
    ("GET /\nOrigin:", "peer", 403),
    ("GET /\nReferer: http://evil.example/x", "peer", 403),
    ("GET /\nReferer:", "peer", 200),
    ("GET /\nHost: peer", "peer", 400),
    ("GET /", "", 400),
    ("POST /\nContent-Length: 3\nTransfer-Encoding: chunked", "peer", 400),
    ("POST /\nContent-Length: 3\nContent-Length: 3", "peer", 400),
    ("CONNECT peer:1", "peer", 501),
    ("GET /../", "peer", 404),
    ("GET /%2e", "peer", 404),
]


async def test_peerapi_believes_only_requests_that_no_page_can_make(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    for lines, host, status in REQUESTS:
        found = await ask(a, b, lines, host=host.format(own=b.ipv4, own6=b.ipv6, port=PORT))
        assert found[0] == status, (lines, host)


async def test_peerapi_keeps_browsers_from_showing_it_within_pages(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    for line in (
        "User-Agent: Mozilla/5.0",
        "Accept-Language: de",
        "Accept-Encoding: gzip, deflate",
        "User-Agent: a b c d",
    ):
        assert (await ask(a, b, f"GET /\n{line}"))[1]["x-frame-options"] == "DENY"
    assert "x-frame-options" not in (await ask(a, b, "GET /\nUser-Agent: curl/8.5.0"))[1]


async def test_peerapi_is_closed_while_shields_are_up(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    await b.set(shields_up=True)
    await until(lambda: not runtime_of(a).directory.netmap.peers[b.node.id].hostinfo.services)
    with pytest.raises(TailscaleError):
        await a.tcp_connect("b", PORT, timeout=2)
    await b.set(shields_up=False)
    await until(lambda: runtime_of(a).directory.netmap.peers[b.node.id].hostinfo.services)
    assert (await ask(a, b, "GET /"))[0] == 200


async def test_a_device_without_peerapi_offers_none(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b", peerapi=False)
    assert not runtime_of(a).directory.netmap.peers[b.node.id].hostinfo.services
    with pytest.raises(TailscaleError):
        await a.tcp_connect("b", PORT, timeout=2)
    with (
        pytest.raises(TailscaleError, match="peerapi=False"),
        b.answer_peers("/x", lambda request: request.answer(200)),
    ):
        pass


async def test_a_program_answers_paths_of_its_own(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")

    async def echo(request: PeerRequest) -> None:
        body = await request.read(1000)
        await request.answer(200, f"{request.caller.node.hostname} {request.path} {request.parameter('q')} {body!r}")

    async def fail(_request: PeerRequest) -> None:
        raise KeyError("a mistake of the program's")

    with b.answer_peers("/v0/put/", echo), b.answer_peers("/v0/put/special", fail):
        assert (await ask(a, b, "GET /v0/put/a%2Fb?q=7"))[::2] == (200, "a /v0/put/a%2Fb 7 b''")
        assert (await ask(a, b, "PUT /v0/put/x\nContent-Length: 1001"))[0] == 413
        assert (await ask(a, b, "GET /v0/put/special"))[0] == 500
        assert (await ask(a, b, "GET /v0/put"))[0] == 404
        with pytest.raises(ValueError, match="already"), b.answer_peers("/v0/put/", echo):
            pass
    assert (await ask(a, b, "GET /v0/put/x"))[0] == 404


async def test_ping_peerapi_asks_the_peer_api(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    pong = await a.ping("b", "peerapi")
    assert (pong.kind, pong.node, bool(pong.path)) == ("peerapi", a.peers["b"], True)
    await b.set(shields_up=True)
    await until(lambda: not runtime_of(a).directory.netmap.peers[b.node.id].hostinfo.services)
    with pytest.raises(tailscale.NoRoute, match="b offers no peer API"):
        await a.ping("b", "peerapi")


# -- who means no good -------------------------------------------------------------------------------------------------


async def test_one_peer_cannot_keep_the_others_out(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b, c = await tailnet.device("a"), await tailnet.device("b"), await tailnet.device("c")
    streams = []
    for _ in range(LIMITS.connections_per_peer * 3):
        streams.append(await a.tcp_connect(b.ipv4, PORT))
        await trio.sleep(0.001)
    await until(lambda: b.status().counters.levels["peerapi.connections"] <= LIMITS.connections_per_peer)
    assert (await ask(c, b, "GET /"))[0] == 200
    assert (await ask(a, b, "GET /"))[0] == 200, "its own oldest silent one made room"
    for stream in streams:
        stream.abort()
    await until(lambda: not b.status().counters.levels["peerapi.connections"])


async def test_what_has_no_end_has_one(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")

    async def swallow(request: PeerRequest) -> None:
        while await request.receive_some():
            pass
        await request.answer(200)

    async def reads_little(request: PeerRequest) -> None:
        await request.read(1000)

    with b.answer_peers("/swallow", swallow), b.answer_peers("/little", reads_little):
        async with await a.tcp_connect(b.ipv4, PORT) as flood:
            await flood.send_all(b"GET / HTTP/1.1\r\nHost: peer\r\n" + b"X: y\r\n" * 4000)
            assert b" 431 " in await flood.receive_some()
        async with await a.tcp_connect(b.ipv4, PORT) as trickle:
            await trickle.send_all(b"GET / HTTP/1.1\r\nHost:")
            assert b" 408 " in await trickle.receive_some()
        async with await a.tcp_connect(b.ipv4, PORT) as endless:
            await endless.send_all(b"PUT /swallow HTTP/1.1\r\nHost: peer\r\nContent-Length: 99\r\n\r\n")
            assert await endless.receive_some() == b"", "who sends nothing more is hung up on"
        async with await a.tcp_connect(b.ipv4, PORT) as endless:
            await endless.send_all(b"PUT /little HTTP/1.1\r\nHost: peer\r\nTransfer-Encoding: chunked\r\n\r\n")
            await endless.send_all(b"400\r\n" + bytes(1024) + b"\r\n")
            assert b" 413 " in await endless.receive_some()
    assert (await ask(a, b, "GET /"))[0] == 200
    assert b.state == "running"


US = Node(id=1, user=7, addresses=("100.64.0.1/32",))
KINDS = {
    "the same person": ({"user": 7}, True),
    "another person": ({"user": 8}, False),
    "a tagged node of the same number": ({"user": 7, "tags": ("tag:a",)}, False),
    "a node of nobody": ({"user": 0}, False),
    "an unsigned one of the same person": ({"user": 7, "unsigned_peer_api_only": True}, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_callers_are_what_control_says(kind: str) -> None:
    facts, is_same = KINDS[kind]
    peer = Node(id=2, name="p.", addresses=("100.64.0.2/32",), allowed_ips=("100.64.0.2/32", "10.0.0.0/8"), **facts)
    netmap = replace(NetMap.empty(), self_node=US, peers={2: peer})
    caller = caller_at(netmap, peer, "100.64.0.2", {INGRESS: [], "other": []})
    assert caller is not None
    assert caller.is_same_user is is_same
    unsigned = "unsigned" in kind
    assert (caller.is_unsigned, set(caller.capabilities)) == (unsigned, {INGRESS} if unsigned else {INGRESS, "other"})
    assert caller_at(netmap, peer, "10.0.0.7", {}) is None, "what it routes is not itself"
    tagged = replace(netmap, self_node=Node(id=1, user=7, tags=("tag:b",)))
    again = caller_at(tagged, peer, "100.64.0.2", {})
    assert again is not None
    assert not again.is_same_user


def test_a_peer_may_use_the_address_it_knows_us_by() -> None:
    peer = Node(id=2, self_node_v4_masq_addr_for_this_peer="100.99.9.9")
    netmap = replace(NetMap.empty(), self_node=US)
    assert names_of_us(netmap, peer, 1) == {"peer", "100.64.0.1:1", "100.99.9.9:1"}


async def test_a_program_may_have_the_port_for_itself(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b", shields_up=True)
    async with await b.listen(PORT):
        await b.set(shields_up=False)
        await trio.sleep(1)
        assert b.state == "running"
        with pytest.raises(tailscale.NoRoute):
            await a.ping("b", "peerapi")
    await b.set(advertise_routes=["10.0.0.0/8"])
    await until(lambda: runtime_of(a).directory.netmap.peers[b.node.id].hostinfo.services)
    assert (await ask(a, b, "GET /"))[0] == 200
