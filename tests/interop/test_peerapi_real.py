"""The peer API and names against stock tailscaled: who answers whom, how, and with what.

A resolver of the test's own listens on a loopback address at port 53, which only root may open; without root those
tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator

import h11
import pytest
import trio

import tailscale
from tailscale.dns import wire
from tailscale.peerapi.actor import PORT
from tailscale.runtime.network import HostNetwork
from tests.interop.ours import PATHS, environment, joined, tailnet, tls_for
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig, Tailscaled

pytestmark = [pytest.mark.slow, pytest.mark.peers("tailscaled", "tailscale")]
RESOLVER, LOOKED_UP = "127.0.0.77", "203.0.113.5"
EVERYWHERE = ["0.0.0.0/0", "::/0"]
PATIENCE = 20


class PlainResolver:
    """Knows every name but those that begin with `no`: an address, a text, a mail server, a long list."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def answer(self, query: bytes, *, over_udp: bool) -> bytes:
        question = wire.decode_question_untrusted(query)
        self.asked[question.name] += 1
        if question.name.startswith("no"):
            return wire.encode_failure(question, wire.NAME_ERROR)
        if question.name.startswith("refuse"):
            return wire.encode_failure(question, wire.REFUSED)
        known = {
            wire.A: [(wire.A, bytes(map(int, LOOKED_UP.split("."))))],
            wire.AAAA: [(wire.AAAA, bytes([0x20, 1, 0xD, 0xB8, *bytes(11), 5]))],
            wire.TXT: [(wire.TXT, b"\5hello\5world")],
            wire.MX: [(wire.MX, b"\0\x0a" + wire.encode_name("mail.corp.example"))],
            wire.SRV: [(wire.SRV, b"\0\1\0\2\1\xbb" + wire.encode_name("srv.corp.example"))],
            wire.NS: [(wire.NS, wire.encode_name("ns.corp.example"))],
            wire.PTR: [(wire.PTR, wire.encode_name("back.corp.example"))],
        }
        records = known.get(question.kind, [])
        if question.name.startswith("long"):
            records = [(wire.A, bytes([10, 0, 0, number])) for number in range(200)] if question.kind == wire.A else []
        reply = wire.encode_reply(question, wire.NO_ERROR, records)
        return wire.fitted(reply, question, question.size) if over_udp else reply

    async def serve_udp(self, port: trio.socket.SocketType) -> None:
        while True:
            query, source = await port.recvfrom(4096)
            await port.sendto(self.answer(query, over_udp=True), source)

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        async with stream:
            query = b""
            while len(query) < 2 or len(query) < 2 + struct.unpack_from("!H", query)[0]:
                query += await stream.receive_some()
            reply = self.answer(query[2:], over_udp=False)
            await stream.send_all(struct.pack("!H", len(reply)) + reply)


@contextlib.asynccontextmanager
async def resolver() -> AsyncIterator[PlainResolver]:
    made = PlainResolver()
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        await port.bind((RESOLVER, 53))
        listeners = await trio.open_tcp_listeners(53, host=RESOLVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve_udp, port)
            nursery.start_soon(trio.serve_listeners, made.serve_tcp, listeners)
            yield made
            nursery.cancel_scope.cancel()


class WithResolver(HostNetwork):
    """This machine, with another resolv.conf."""

    def nameservers(self) -> tuple[str, ...]:
        return (RESOLVER,)


async def ask(stream: trio.abc.Stream, method: str, target: str, lines: list[str]) -> tuple[int, dict[str, str], bytes]:
    """One request with exactly these header lines."""
    http, body = h11.Connection(h11.CLIENT), b""
    http.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    async with stream:
        with trio.fail_after(PATIENCE):
            await stream.send_all("\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode())
            head: h11.Response | None = None
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(bytes(await stream.receive_some()))
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    assert head is not None
                    return head.status_code, {k.decode(): v.decode() for k, v in head.headers}, body


def place_of(device: tailscale.Device, name: str) -> tuple[str, int]:
    """Where a stock peer's API is, as our device sees it announced."""
    netmap = device.netmap
    assert netmap is not None
    node = next(peer for peer in netmap.peers.values() if peer.name.startswith(f"{name}."))
    port = next(service.port for service in node.hostinfo.services if service.proto == "peerapi4")
    return next(a.partition("/")[0] for a in node.addresses if ":" not in a), port


async def until_announced(device: tailscale.Device, name: str) -> tuple[str, int]:
    async def probe() -> tuple[str, int] | None:
        try:
            return place_of(device, name)
        except StopIteration:
            return None

    found = await poll_until(f"{name} to announce its peer API", probe, PATIENCE)
    assert isinstance(found, tuple)
    return found


async def test_pings_of_the_peer_api_go_both_ways(r: Rig) -> None:
    async with tailnet(r) as hs, joined(hs) as us, r.tailscaled("db", control=hs, auth_key=await hs.auth_key()) as db:
        await until_announced(us, "db")
        assert (await us.ping("db", "peerapi")).latency < PATIENCE
        told = await db.cli("ping", "--peerapi", "-c", "1", "ours")
        assert f"hit peerapi of {us.ipv4} (ours.rig.test.) at http://{us.ipv4}:{PORT}" in told
        told = await db.cli("ping", "--tsmp", "-c", "1", "ours")
        assert "via TSMP" in told
        assert str(PORT) in told, "the pong carries the port"


VARIATIONS = [
    ("GET", "/", ["Host: peer"]),
    ("HEAD", "/", ["Host: peer"]),
    ("GET", "/", ["Host: {ip}:{port}"]),
    ("GET", "/", ["Host: {ip}"]),
    ("GET", "/", ["Host: evil.example"]),
    ("GET", "/", ["Host: peer:{port}"]),
    ("GET", "/", ["Host: peer", "Origin: http://evil.example"]),
    ("GET", "/", ["Host: peer", "Origin:"]),
    ("GET", "/", ["Host: peer", "Referer: http://evil.example/"]),
    ("GET", "/", ["Host: peer", "Referer:"]),
    ("GET", "/", ["Host: peer", "User-Agent: Mozilla/5.0"]),
    ("GET", "/nothing", ["Host: peer"]),
    ("GET", "/v0/env", ["Host: peer"]),
    ("GET", "/dns-query?q=www.corp.example&t=mx", ["Host: peer"]),
    ("PUT", "/dns-query", ["Host: peer", "Content-Length: 0"]),
    ("POST", "/dns-query", ["Host: peer", "Content-Type: text/plain", "Content-Length: 0"]),
]
OTHER = {
    ("GET", "Origin:"): (200, 403),  # no browser sends that, and nobody needs it answered
    ("GET", "/v0/env"): (403, 404),  # they have it, and deny it; we have none
    ("GET", "/dns-query?q=www.corp.example&t=mx"): (200, 400),  # they say in JSON that it is no type
}


async def test_requests_are_judged_as_stock_judges_them(r: Rig) -> None:
    async with tailnet(r) as hs, joined(hs) as us, r.tailscaled("db", control=hs, auth_key=await hs.auth_key()) as db:
        their_ip, their_port = await until_announced(us, "db")
        for method, target, lines in VARIATIONS:
            theirs = await ask(
                await us.tcp_connect(their_ip, their_port),
                method,
                target,
                [line.format(ip=their_ip, port=their_port) for line in lines],
            )
            ours = await ask(
                await db.connect(str(us.ipv4), PORT),
                method,
                target,
                [line.format(ip=us.ipv4, port=PORT) for line in lines],
            )
            print(method, target, lines, theirs[0], ours[0])
            expected = OTHER.get((method, target), OTHER.get((method, lines[-1])))
            if expected is not None:
                assert (theirs[0], ours[0]) == expected or theirs[0] == ours[0], (target, lines)
            else:
                assert theirs[0] == ours[0], (target, lines)
            assert ("x-frame-options" in theirs[1]) == ("x-frame-options" in ours[1]), lines
        assert us.status().drops["peerapi.invalid_request"] == 6, us.status().drops


async def test_only_the_owner_may_ask_names_of_a_node_that_is_no_exit(r: Rig) -> None:
    question = wire.encode_question("www.corp.example", wire.A, 0)
    async with contextlib.AsyncExitStack() as stack:
        hs = await stack.enter_async_context(tailnet(r))
        await hs.user("bob")
        await hs.set_policy(
            {"tagOwners": {"tag:t": ["alice@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}
        )
        us = await stack.enter_async_context(joined(hs))
        for name, key, may in (
            ("amy", await hs.auth_key(), True),
            ("ben", await hs.auth_key("bob"), False),
            ("tom", await hs.auth_key(tags=["tag:t"]), False),
        ):
            peer = await stack.enter_async_context(r.tailscaled(name, control=hs, auth_key=key))
            lines = ["Host: peer", "Content-Type: application/dns-message", f"Content-Length: {len(question)}", "", ""]
            stream = await peer.connect(str(us.ipv4), PORT)
            async with stream:
                await stream.send_all("\r\n".join(["POST /dns-query HTTP/1.1", *lines]).encode() + question)
                with trio.fail_after(PATIENCE):
                    head = await stream.receive_some()
            assert head.startswith(b"HTTP/1.1 200" if may else b"HTTP/1.1 403"), (name, head)
            assert (await ask(await peer.connect(str(us.ipv4), PORT), "GET", "/", ["Host: peer"]))[0] == 200


async def test_stock_clients_use_our_exit_names(r: Rig) -> None:
    async with tailnet(r) as hs, resolver() as names:
        async with environment(PATHS["direct"]):
            us = tailscale.Device.on(
                WithResolver(),
                "ours",
                control_url=hs.url,
                tls=tls_for(hs),
                auth_key=await hs.auth_key(),
                advertise_exit_node=True,
            )
        async with us, r.tailscaled("client", control=hs, auth_key=await hs.auth_key()) as client:
            await hs.approve_routes("ours", EVERYWHERE)

            async def is_offered() -> bool:
                return "ours" in await client.cli("exit-node", "list", check=False)

            await poll_until("our exit to be offered", is_offered, PATIENCE)
            await client.cli("set", "--accept-dns=true", f"--exit-node={us.ipv4}")

            async def answers() -> bool:
                told = json.loads(await client.cli("dns", "query", "--json", "www.lab.example"))
                return bool(told["ResponseCode"] == "RCodeSuccess")

            await poll_until("names through our exit", answers, PATIENCE)
            told = json.loads(await client.cli("dns", "query", "--json", "www.lab.example"))
            assert [one["Body"] for one in told["Answers"]] == [LOOKED_UP]
            assert any("dns-query" in one["Addr"] for one in told["Resolvers"]), told
            assert names.asked["www.lab.example"] >= 1
            told = json.loads(await client.cli("dns", "query", "--json", "nowhere.lab.example"))
            assert told["ResponseCode"] == "RCodeNameError"
            told = json.loads(await client.cli("dns", "query", "--json", "www.lab.example", "TXT"))
            assert [one["Body"] for one in told["Answers"]] == ['["hello" "world"]']


async def test_we_use_a_stock_exits_names(r: Rig) -> None:
    async with tailnet(r) as hs, joined(hs) as us:
        async with r.tailscaled("exit", control=hs, auth_key=await hs.auth_key(), arguments=["--advertise-exit-node"]):
            await hs.approve_routes("exit", EVERYWHERE)

            async def is_offered() -> bool:
                return [one.node.hostname for one in us.exit_nodes] == ["exit"]

            await poll_until("the stock exit to be offered", is_offered, PATIENCE)
            await us.set(exit_node="exit")
            reply = await us.dns_query("nobody.invalid")
            print(reply, us.health)
            assert reply.resolvers == ("exit node exit",)
            assert reply.code in ("NameError", "ServerFailure")  # as its machine's resolver has it


QUESTIONS = [
    *(("db.rig.test", kind) for kind in ("A", "AAAA", "TXT", "MX", "SRV", "CNAME", "NS", "SOA", "PTR")),
    *(("DB.Rig.Test", "A"), ("db.rig.test.", "A"), ("ours.rig.test", "A"), ("x.db.rig.test", "A")),
    *(("nobody.rig.test", kind) for kind in ("A", "AAAA", "TXT")),
    *(("extra.example", kind) for kind in ("A", "AAAA", "TXT")),
    *(("six.example", kind) for kind in ("A", "AAAA")),
    *(("www.corp.example", kind) for kind in ("A", "AAAA", "TXT", "MX", "SRV", "NS")),
    *(("no.corp.example", "A"), ("refuse.corp.example", "A"), ("long.corp.example", "A"), ("corp.example", "A")),
    *(("www.elsewhere.example", "A"), ("x.onion", "A"), ("onion", "A")),
    *(("10-1-2-3-via-7.x.ts.net", "AAAA"), ("10-1-2-3-via-7.x.ts.net", "A"), ("10-1-2-3-via-7.www.example", "AAAA")),
    *(("magicdns.localhost-tailscale-daemon", "A"), ("magicdns.localhost-tailscale-daemon", "AAAA")),
    *(("100.100.100.100.in-addr.arpa", "PTR"), ("{db}.in-addr.arpa", "PTR"), ("99.99.64.100.in-addr.arpa", "PTR")),
    ("lb._dns-sd._udp.0.0.64.100.in-addr.arpa", "PTR"),
    ("8.8.8.8.in-addr.arpa", "PTR"),
]
ON_PURPOSE = {
    ("onion", "A"): "a name of one label that no node has is asked of nobody: NameError, where upstream gives up",
    (
        "db.rig.test",
        "PTR",
    ): "a name of the tailnet that is no address: there is no such record, where upstream gives up",
}


async def test_names_are_answered_as_stock_answers_them(r: Rig) -> None:
    settings = {"dns.nameservers.split": {"corp.example": [RESOLVER]}}
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(resolver())
        hs: Headscale = await stack.enter_async_context(tailnet(r, settings=settings))
        hs.set_extra_records(
            [
                {"name": "extra.example", "type": "A", "value": "10.9.8.7"},
                {"name": "six.example", "type": "AAAA", "value": "fd00::7"},
            ]
        )
        us = await stack.enter_async_context(joined(hs))
        db: Tailscaled = await stack.enter_async_context(r.tailscaled("db", control=hs, auth_key=await hs.auth_key()))
        await db.cli("set", "--accept-dns=true")
        await until_announced(us, "db")
        differences = []
        for name, kind in QUESTIONS:
            asked = name.format(db=".".join(reversed(db.ip4.split("."))))
            theirs = json.loads(await db.cli("dns", "query", "--json", asked, kind))
            ours = (await us.dns_query(asked, kind)).to_dict()
            said = [
                (
                    one["ResponseCode"],
                    sorted((a["Type"], a["TTL"], _plain(a["Body"])) for a in one.get("Answers") or []),
                )
                for one in (theirs, ours)
            ]
            if said[0] != said[1] and (asked, kind) not in ON_PURPOSE:
                differences.append(f"{asked} {kind}: stock {said[0]}, ours {said[1]}")
        assert len(QUESTIONS) >= 40
        assert not differences, "\n".join(differences)


def _plain(body: str) -> str:
    """Texts as `["a" "b"]` or `"a" "b"`."""
    return body.strip("[]")


async def test_our_name_server_answers_dig(r: Rig) -> None:
    """Or, where there is none, the same questions by hand."""
    settings = {"dns.nameservers.split": {"corp.example": [RESOLVER]}}
    async with resolver(), tailnet(r, settings=settings) as hs, joined(hs) as us, us.name_server() as server:
        for words, expected in (
            (["ours.rig.test"], [str(us.ipv4)]),
            (["+tcp", "ours.rig.test"], [str(us.ipv4)]),
            (["+bufsize=4096", "long.corp.example"], 200),
            (["+noedns", "+ignore", "long.corp.example"], 0),
            (["+noedns", "long.corp.example"], 200),
            (["-x", str(us.ipv4)], ["ours.rig.test."]),
        ):
            if shutil.which("dig") is None:
                if "ours.rig.test" in words:
                    assert (
                        await by_hand(server.host, server.port, "ours.rig.test", over_tcp="+tcp" in words) == expected
                    )
                continue
            command = ["dig", "+short", "+tries=1", "+time=8", f"@{server.host}", "-p", str(server.port), *words]
            done = await trio.run_process(command, capture_stdout=True)
            found = done.stdout.decode().split()
            assert (len(found) if isinstance(expected, int) else found) == expected, words


async def by_hand(host: str, port: int, name: str, *, over_tcp: bool) -> list[str]:
    query = wire.encode_question(name, wire.A, 5)
    with trio.fail_after(PATIENCE):
        if over_tcp:
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(struct.pack("!H", len(query)) + query)
                reply = (await stream.receive_some())[2:]
        else:
            with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                await udp.connect((host, port))
                await udp.send(query)
                reply = await udp.recv(4096)
    return [record.body for record in wire.decode_records_untrusted(reply)[1]]


async def test_an_unsigned_peer_may_greet_us_and_nothing_else(r: Rig) -> None:
    """Control marks the node as one that the tailnet lock does not vouch for."""
    async with (
        r.derper() as relay,
        r.testcontrol(regions=[relay.region], same_user=True) as control,
        joined(control, auth_key="key") as us,
    ):
        async with r.tailscaled("db", control=control, auth_key="key") as db:
            await until_announced(us, "db")
            nodes = (await control.admin("nodes"))["nodes"]
            (theirs,) = [node for node in nodes if (node.get("Hostinfo") or {}).get("Hostname") == "db"]
            changed = {"PeersChanged": [theirs | {"UnsignedPeerAPIOnly": True}]}
            await control.admin("raw", {"node": "ours", "response": changed})

            async def is_marked() -> bool:
                netmap = us.netmap
                return netmap is not None and any(peer.unsigned_peer_api_only for peer in netmap.peers.values())

            await poll_until("the mark", is_marked, PATIENCE)
            assert (await ask(await db.connect(str(us.ipv4), PORT), "GET", "/", ["Host: peer"]))[0] == 200
            asked = ["Host: peer", "Content-Length: 0", "Content-Type: application/dns-message"]
            assert (await ask(await db.connect(str(us.ipv4), PORT), "POST", "/dns-query", asked))[0] == 403
            async with await us.listen(80):
                with pytest.raises(ConnectionRefusedError):
                    await db.connect(str(us.ipv4), 80)
