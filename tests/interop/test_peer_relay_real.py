"""Peer relays for real: a tailscaled carries datagrams between two nodes whose routers let nothing through.

Headscale hands out the capability by a policy grant; the relay runs with `--relay-server-port`. One side is our Device,
the other tsnet. Whether bytes really went through the relay is counted by its kernel, not believed.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio

import tailscale
from tests.interop import natlab
from tests.interop.natlab import Site, inside
from tests.interop.ours import converse, joined
from tests.interop.pattern import pattern, pattern_sha256
from tests.interop.rig import Headscale, Rig, Tailscaled, TsnetPeer
from tests.interop.test_paths_real import flowing, path_of, until_path

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.peers("tailscaled", "tailscale"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
RELAY_PORT = 40000
POLICY = {
    "grants": [
        {"src": ["*"], "dst": ["*"], "ip": ["*"]},
        {"src": ["*"], "dst": ["tag:relay"], "app": {"tailscale.com/cap/relay": []}},
    ],
    "tagOwners": {"tag:relay": ["alice@"]},
}
SIZE = 2 << 20


@contextlib.asynccontextmanager
async def relayed_pair(
    r: Rig, left: str, right: str
) -> AsyncIterator[tuple[tailscale.Device, TsnetPeer, Tailscaled, Site]]:
    """Our Device and tsnet at two sites, and a tailscaled with a public address that offers to carry for them."""
    async with natlab.lab(r) as (made, hs):
        await hs.user()
        await hs.set_policy(POLICY)
        a, b, public = made.site(left), made.site(right), made.site("none")
        async with _relay_server(r, hs, public) as server:
            key = await hs.auth_key(ephemeral=False)
            async with r.tsnet(hs, key, "db", namespace=b.client, port=natlab.NODE_PORT) as db:
                with inside(a.client):
                    async with joined(hs, auth_key=key, udp_port=natlab.NODE_PORT, services=True) as us:
                        yield us, db, server, public


@contextlib.asynccontextmanager
async def _relay_server(r: Rig, hs: Headscale, site: Site) -> AsyncIterator[Tailscaled]:
    key = await hs.auth_key(tags=["tag:relay"], ephemeral=False)
    async with r.tailscaled(
        "carrier", control=hs, auth_key=key, namespace=site.client, port=natlab.NODE_PORT
    ) as server:
        await server.cli("set", f"--relay-server-port={RELAY_PORT}")
        yield server


async def test_bytes_travel_through_a_peer_and_by_derp_when_it_dies(r: Rig) -> None:
    async with relayed_pair(r, "hard", "hard") as (us, db, server, site):
        began = trio.current_time()
        async with flowing(us, db.ip4) as flow:
            await flow.heard_again(10)
            took = trio.current_time() - began + await until_path(us, "peer relay", 60)
            await flow.carries()
            before = site.udp_bytes()
            echoed = await converse(await us.tcp_connect(db.ip4, 7), pattern(SIZE))
            assert echoed.sha256 == pattern_sha256(SIZE)
            answered = await db.dial(us.ipv4 or "", 7, bytes=SIZE, end="half", read=-1)
            assert answered["sha256"] == pattern_sha256(SIZE)
            carried = [now - then for now, then in zip(site.udp_bytes(), before, strict=True)]
            flow.silence()
            server.process.kill()
            await flow.heard_again(30)
            await until_path(us, "relay", 30)
            await flow.carries()
            gap = flow.silence()
        print(f"peer relay after {took:.2f} s; it carried {carried[0] >> 10} KiB in and {carried[1] >> 10} KiB out; "
              f"it died: {gap:.2f} s of silence, then {path_of(us)}")  # fmt: skip
        assert min(carried) >= 4 * SIZE
        assert gap <= 15
