"""Our Device as a subnet router in the NAT lab: stock peers reach a plain host that only we can reach.

The host shares our LAN behind a NAT and knows nothing of Tailscale. The peers live elsewhere on the internet, which
has no route to that LAN. Headscale approves the route.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

import tailscale
from tests.interop import natlab
from tests.interop.natlab import Site, inside
from tests.interop.ours import echo, guarded, hash_all, joined
from tests.interop.pattern import pattern, pattern_sha256
from tests.interop.processes import RigError, finished, poll_until
from tests.interop.rig import Headscale, Rig, TsnetPeer

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
SIZE = 1 << 20
CLOSED_PORT = 81


async def page(stream: trio.SocketStream) -> None:
    """1 MiB of the pattern for whoever asks by HTTP."""
    asked = b""
    while b"\r\n\r\n" not in asked:
        asked += await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % SIZE)
    await stream.send_all(pattern(SIZE))


async def echo_datagrams(socket: trio.socket.SocketType) -> None:
    while True:
        data, source = await socket.recvfrom(65_535)
        await socket.sendto(data, source)


@contextlib.asynccontextmanager
async def plain_host(site: Site) -> AsyncIterator[None]:
    """Servers on a machine of the lab that is in no tailnet: their sockets are made there, and stay there."""
    with inside(site.client):
        listeners = {
            server: await trio.open_tcp_listeners(port, host=site.address)
            for server, port in ((echo, 7), (hash_all, 9), (page, 80))
        }
        udp = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await udp.bind((site.address, 7))
    with udp:
        async with trio.open_nursery() as nursery:
            for server, few in listeners.items():
                nursery.start_soon(functools.partial(trio.serve_listeners, guarded(server), few))
            nursery.start_soon(echo_datagrams, udp)
            yield
            nursery.cancel_scope.cancel()


@dataclass
class Subnet:
    """What a test needs of the lab."""

    hs: Headscale
    us: tailscale.Device
    key: str
    outside: Site  # where a stock peer lives
    host: str  # the plain host behind us


@contextlib.asynccontextmanager
async def subnet(r: Rig) -> AsyncIterator[Subnet]:
    """Our Device, routing for its LAN, with the route approved."""
    async with natlab.lab(r) as (made, hs):
        home, outside = made.site("easy"), made.site("none")
        behind = made.neighbour(home)
        route, key = f"192.168.{home.number}.0/24", await hs.auth_key(ephemeral=False)
        async with plain_host(behind):
            with inside(home.client):
                async with joined(hs, "router", auth_key=key, advertise_routes=[route]) as us:
                    await hs.approve_routes("router", [route])
                    yield Subnet(hs, us, key, outside, behind.address)


async def until_routed(peer: TsnetPeer, host: str) -> None:
    async def answers() -> bool:
        return bool((await peer.dial(host, 7, bytes=1, end="half", read=-1, timeout=3))["received"] == 1)

    await poll_until(f"{peer.name} to reach {host} through us", answers, 20)


async def test_tsnet_reaches_a_host_behind_us_by_tcp_and_udp(r: Rig) -> None:
    async with subnet(r) as lan, r.tsnet(lan.hs, lan.key, "db", namespace=lan.outside.client) as db:
        await db.ask("accept-routes")
        await until_routed(db, lan.host)
        echoed = await db.dial(lan.host, 7, bytes=SIZE, end="half", read=-1, timeout=30)
        assert (echoed["received"], echoed["sha256"]) == (SIZE, pattern_sha256(SIZE))
        hashed = await db.dial(lan.host, 9, bytes=SIZE, end="half", read=-1, timeout=30)
        assert hashed["head"] == f"{SIZE} {pattern_sha256(SIZE)}\n".encode()
        with pytest.raises(RigError, match="refused"):
            await db.dial(lan.host, CLOSED_PORT, timeout=10)
        for size in (1, 1200):
            said = await db.ask("udp", host=lan.host, port=7, bytes=size, count=5, timeout=10)
            assert said["same"] >= 4, said  # datagrams; one may be lost
        counted = lan.us.status().drops
        print(f"forwarded for tsnet: {SIZE >> 20} MiB both ways and 1 MiB out, hashes agree; drops {counted}")
        assert counted["forward.refused"] == 1


async def test_tailscaled_reaches_a_host_behind_us_while_the_route_is_approved(r: Rig) -> None:
    async with (
        subnet(r) as lan,
        r.tailscaled("desk", control=lan.hs, auth_key=lan.key, arguments=["--accept-routes"],
                     namespace=lan.outside.client) as desk,
    ):  # fmt: skip

        async def fetched(port: int) -> subprocess.CompletedProcess[bytes]:
            command = ["ip", "netns", "exec", lan.outside.client, "curl", "-s", "--max-time", "15"]
            command += ["--socks5", f"127.0.0.1:{desk.socks_port}", f"http://{lan.host}:{port}/"]
            return await finished(command)

        async def answers() -> bytes | None:
            done = await fetched(80)
            return done.stdout if done.returncode == 0 else None

        body = await poll_until("tailscaled to reach the host through us", answers, 30)
        assert hashlib.sha256(body).hexdigest() == pattern_sha256(SIZE)
        assert (await fetched(CLOSED_PORT)).returncode != 0
        assert lan.us.status().drops["forward.refused"] >= 1
        await lan.hs.approve_routes("router", [])

        async def told() -> bool:
            return any(warning.code == "routes-not-approved" for warning in lan.us.health)

        await poll_until("our user to be told that the route is no longer approved", told, 40)
        assert (await fetched(80)).returncode != 0
