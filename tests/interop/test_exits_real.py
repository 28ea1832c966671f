"""Several exits at once, for real: two stock exit nodes in network namespaces, and one Device that uses both.

What left by which exit is not believed: a plain server outside the tailnet says from which address it was asked, and
so does the resolver that the stock exits forward names to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import dpkt
import pytest
import trio

import tailscale
from tailscale.proxy import DIRECT, Exits
from tests.interop import natlab
from tests.interop.natlab import NODE_PORT, Lab, Site, inside
from tests.interop.natlab.namespaces import run
from tests.interop.ours import joined
from tests.interop.pattern import pattern, pattern_sha256
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig, Tailscaled

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.peers("tailscaled", "tailscale"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
WEB = "198.51.100.7"  # outside every private range: an exit node offers none of those
ROUTES = ["0.0.0.0/0", "::/0"]
EXITS = ("exit-a", "exit-b")
SIZE = 1 << 20
NAME = "www.lab.example"
POLICY = {
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*", "autogroup:internet:*"]}],
    "autoApprovers": {"exitNode": ["alice@"]},
}


@dataclass
class Seen:
    """What the web server says of one request."""

    source: str
    sha256: str


async def answer(stream: trio.SocketStream) -> None:
    """One HTTP/1.1 request with a body: who asked in a header, and the body back."""
    async with stream:
        source = stream.socket.getpeername()[0]
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some(65536)
        _, body = received.split(b"\r\n\r\n", 1)
        while len(body) < SIZE:
            body += await stream.receive_some(1 << 16)
        said = json.dumps({"source": source, "sha256": hashlib.sha256(body).hexdigest()})
        await stream.send_all(
            f"HTTP/1.1 200 OK\r\nX-Seen: {said}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )


async def ask(device: tailscale.Device, port: int, via: str, both_open: Rendezvous) -> Seen:
    """One mebibyte there and back through `via`, begun only when every other exit has a connection open too."""
    async with await device.tcp_connect(WEB, port, via=via) as stream:
        assert stream.exit is not None
        assert stream.exit.hostname == via
        await both_open.wait()
        await stream.send_all(f"POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, pattern(SIZE))
            received = b""
            async for chunk in stream:
                received += chunk
        head, body = received.split(b"\r\n\r\n", 1)
        assert hashlib.sha256(body).hexdigest() == pattern_sha256(SIZE)
        return Seen(**json.loads(head.partition(b"X-Seen: ")[2].partition(b"\r\n")[0]))


class Rendezvous:
    """Everybody waits until all are there."""

    def __init__(self, parties: int) -> None:
        self._missing, self._complete = parties, trio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._complete.set()
        await self._complete.wait()


@dataclass
class StockExit:
    """A tailscaled that is an exit node, and where it stands."""

    site: Site
    daemon: Tailscaled


@contextlib.asynccontextmanager
async def exit_nodes(r: Rig, made: Lab, hs: Headscale, key: str) -> AsyncIterator[dict[str, StockExit]]:
    """Two stock tailscaled, each at a public address of its own, that offer to be exit nodes and may."""
    exits: dict[str, StockExit] = {}
    async with contextlib.AsyncExitStack() as daemons:
        for name in EXITS:
            site = made.site("none")
            daemon = r.tailscaled(
                name,
                control=hs,
                auth_key=key,
                namespace=site.client,
                port=NODE_PORT,
                arguments=["--advertise-exit-node"],
            )
            exits[name] = StockExit(site, await daemons.enter_async_context(daemon))
            await hs.approve_routes(name, ROUTES)
        yield exits


async def both_offered(us: tailscale.Device) -> None:
    async def probe() -> bool:
        return [one.node.hostname for one in us.exit_nodes] == list(EXITS)

    await poll_until("both exits to be offered", probe, 30)


@contextlib.asynccontextmanager
async def web_server(made: Lab) -> AsyncIterator[int]:
    """The web server on the lab's internet; yields its port."""
    run("ip", "-n", made.inet, "addr", "add", f"{WEB}/32", "dev", "lo")
    with inside(made.inet):
        listeners = await trio.open_tcp_listeners(0, host=WEB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(trio.serve_listeners, answer, listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_two_stock_exits_at_once_each_connection_is_seen_from_its_own(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs):
        key = await hs.auth_key()
        async with web_server(made) as port, exit_nodes(r, made, hs, key) as exits:
            with inside(made.site("easy").client):
                async with joined(hs, auth_key=key) as us:
                    await both_offered(us)
                    seen: dict[str, Seen] = {}
                    both_open = Rendezvous(len(EXITS))

                    async def use(name: str) -> None:
                        seen[name] = await ask(us, port, name, both_open)

                    with trio.fail_after(60):
                        async with trio.open_nursery() as nursery:
                            for name in EXITS:
                                nursery.start_soon(use, name)
                    drops = us.status().drops
    print(", ".join(f"via {name}: seen from {seen[name].source}, sha256 {seen[name].sha256[:12]}" for name in EXITS))
    for name, stock in exits.items():
        assert seen[name] == Seen(stock.site.address, pattern_sha256(SIZE))
    assert not drops.get("tcp.wrong_peer")
    assert not drops.get("filter.not_owner")


# --- exits by policy ----------------------------------------------------------------------------------------------


async def tell_source(stream: trio.SocketStream) -> None:
    """To whoever connects; then it waits until they have gone."""
    async with stream:
        await stream.send_all(stream.socket.getpeername()[0].encode())
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(1)


@contextlib.asynccontextmanager
async def source_teller(made: Lab) -> AsyncIterator[int]:
    """A server on the lab's internet that says where a connection comes from; yields its port."""
    run("ip", "-n", made.inet, "addr", "add", f"{WEB}/32", "dev", "lo")
    with inside(made.inet):
        listeners = await trio.open_tcp_listeners(0, host=WEB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(trio.serve_listeners, tell_source, listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def resolver(made: Lab) -> AsyncIterator[Counter[str]]:
    """Where this machine's resolv.conf points, and so the exits ask: knows NAME, and counts who asked for it."""
    address = first_nameserver()
    run("ip", "-n", made.inet, "addr", "add", f"{address}/32", "dev", "lo")
    asked: Counter[str] = Counter()
    with inside(made.inet):
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await sock.bind((address, 53))

    async def serve() -> None:
        while True:
            question, source = await sock.recvfrom(2048)
            message = dpkt.dns.DNS(question)
            (wanted,) = message.qd
            asked[source[0]] += wanted.name == NAME
            reply = dpkt.dns.DNS(id=message.id, op=dpkt.dns.DNS_QR | dpkt.dns.DNS_RA, qd=message.qd)
            if wanted.name != NAME:
                reply.rcode = dpkt.dns.DNS_RCODE_NXDOMAIN
            elif wanted.type == dpkt.dns.DNS_A:
                record = dpkt.dns.DNS.RR(name=NAME, type=dpkt.dns.DNS_A, cls=1, ttl=1)
                record.rdata = bytes(map(int, WEB.split(".")))
                reply.an = [record]
            await sock.sendto(bytes(reply), source)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield asked
        nursery.cancel_scope.cancel()
        sock.close()


def first_nameserver() -> str:
    """The address that stock exits send names to: read by tailscaled too, for a namespace has no file of its own."""
    lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]]
    if not found or found[0].startswith("127."):
        pytest.skip("this machine's first nameserver is not one that a lab can play")
    return found[0]


async def source_of(exits: Exits, host: str, port: int) -> tuple[str, float]:
    """As the server sees a new connection, and the seconds until it was made."""
    began = trio.current_time()
    async with await exits.connect_anywhere(host, port, timeout=20) as stream:
        took = trio.current_time() - began
        return (await stream.receive_some(100)).decode(), took


async def test_two_policies_and_the_direct_way_are_seen_from_three_addresses(r: Rig) -> None:
    """At once, and by a name that each stock exit looks up for itself."""
    async with natlab.lab(r) as (made, hs):
        await hs.set_policy(POLICY)
        key = await hs.auth_key()
        async with source_teller(made) as port, resolver(made) as asked, exit_nodes(r, made, hs, key) as stock:
            ours = made.site("easy")
            with inside(ours.client):
                async with joined(hs, auth_key=key) as us:
                    await both_offered(us)
                    seen: dict[str, str] = {}

                    async def use(name: str, exits: Exits, host: str) -> None:
                        seen[name], _ = await source_of(exits, host, port)

                    with trio.fail_after(60):
                        async with trio.open_nursery() as nursery:
                            for name in EXITS:
                                nursery.start_soon(use, name, Exits(us, nodes=[name]), NAME)
                            nursery.start_soon(use, "direct", DIRECT.on(us), WEB)
                    assert await us.resolve(NAME, via="exit-a") == WEB
                    with pytest.raises(tailscale.NameNotFound):
                        await us.resolve("no.lab.example", via="exit-a")
                    with pytest.raises(tailscale.ConnectionRefused) as refused:  # an exit offers no private networks
                        await us.tcp_connect("172.16.0.9", 80, via="exit-a", timeout=10)
                    assert refused.value.by_policy
    addresses = {name: stock[name].site.address for name in EXITS}
    print(f"seen from {seen}; the resolver was asked by {dict(asked)}")
    assert seen == addresses | {"direct": f"10.99.{ours.number}.2"}
    assert set(asked) == set(addresses.values()), "and by nobody else"


async def test_a_dead_exit_is_left_within_a_second_and_a_half_and_taken_back_after_three_answers(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs):
        await hs.set_policy(POLICY)
        key = await hs.auth_key()
        async with source_teller(made) as port, exit_nodes(r, made, hs, key) as stock:
            first, second = (stock[name].site for name in EXITS)
            with inside(made.site("easy").client):
                async with joined(hs, auth_key=key) as us:
                    await both_offered(us)
                    exits = Exits(us, nodes=EXITS)
                    for name in EXITS:
                        await us.ping(name)
                    assert (await source_of(exits, WEB, port))[0] == first.address
                    open_one = await exits.tcp_connect(WEB, port)
                    await open_one.receive_some(100)
                    first.pull_cable(True)
                    moved = await source_of(exits, WEB, port)
                    after = [await source_of(exits, WEB, port) for _ in range(5)]
                    with trio.fail_after(30), pytest.raises(tailscale.ConnectionReset):
                        while await open_one.receive_some(100):
                            pass
                    await open_one.aclose()
                    first.pull_cable(False)
                    mended_at = trio.current_time()
                    with trio.fail_after(90):
                        while (await source_of(exits, WEB, port))[0] != first.address:  # noqa: ASYNC110 - it asks
                            await trio.sleep(0.5)
                    back = trio.current_time() - mended_at
                    stock["exit-a"].daemon.process.kill()
                    killed = await source_of(exits, WEB, port)
    print(f"cable pulled: {moved[1]:.2f} s, then {max(took for _, took in after):.3f} s at most;")
    print(f"back after {back:.1f} s; killed: {killed[1]:.2f} s")
    assert moved[0] == killed[0] == second.address
    assert moved[1] <= 1.5
    assert killed[1] <= 1.5
    assert {source for source, _ in after} == {second.address}
    assert max(took for _, took in after) < 0.5
    assert 20 <= back <= 45, "three answers, ten seconds apart"
