"""Several exits at once, for real: two stock exit nodes in network namespaces, and one Device that uses both.

What left by which exit is not believed: a plain web server outside the tailnet says from which address it was asked.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

import tailscale
from tests.interop import natlab
from tests.interop.natlab import NODE_PORT, Lab, Site, inside
from tests.interop.natlab.namespaces import run
from tests.interop.ours import joined
from tests.interop.pattern import pattern, pattern_sha256
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig

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


@contextlib.asynccontextmanager
async def exit_nodes(r: Rig, made: Lab, hs: Headscale, key: str) -> AsyncIterator[dict[str, Site]]:
    """Two stock tailscaled, each at a public address of its own, that offer to be exit nodes and may."""
    sites = {name: made.site("none") for name in EXITS}
    async with contextlib.AsyncExitStack() as daemons:
        for name, site in sites.items():
            daemon = r.tailscaled(
                name,
                control=hs,
                auth_key=key,
                namespace=site.client,
                port=NODE_PORT,
                arguments=["--advertise-exit-node"],
            )
            await daemons.enter_async_context(daemon)
            await hs.approve_routes(name, ROUTES)
        yield sites


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
        async with web_server(made) as port, exit_nodes(r, made, hs, key) as sites:
            with inside(made.site("easy").client):
                async with joined(hs, auth_key=key) as us:

                    async def both_offered() -> bool:
                        return [one.node.hostname for one in us.exit_nodes] == list(EXITS)

                    await poll_until("both exits to be offered", both_offered, 30)
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
    for name, site in sites.items():
        assert seen[name] == Seen(site.address, pattern_sha256(SIZE))
    assert not drops.get("tcp.wrong_peer")
    assert not drops.get("filter.not_owner")
