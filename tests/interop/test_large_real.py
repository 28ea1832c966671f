"""Large packets on real links: two machines with jumbo frames and a router between them, as the kernel counts it."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

from tests.interop import natlab
from tests.interop.natlab import NODE_PORT, Lab, Site, inside
from tests.interop.natlab.kinds import chain
from tests.interop.natlab.namespaces import nft, run
from tests.interop.pattern import pattern_sha256
from tests.interop.rig import Rig, TsnetPeer

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
JUMBO, USUAL = 9000, 1500
BULK = 24 << 20
# UDP lengths, its header included: what every node sends at most, and what the links carry.
USUAL_LENGTH, JUMBO_LENGTH = 1340, JUMBO - 20


@dataclass
class Ends:
    made: Lab
    sites: tuple[Site, Site]
    near: TsnetPeer
    far: TsnetPeer

    def link(self, mtu: int) -> None:
        for site in self.sites:
            run("ip", "-n", self.made.inet, "link", "set", f"v{site.number}", "mtu", str(mtu))

    def sent(self) -> dict[str, int]:
        """Datagrams of the near client at the router: all, large ones, those too large for the links, and fragments."""
        text = run("ip", "netns", "exec", self.made.inet, "nft", "list", "table", "inet", "sizes")
        return {name: int(count) for name, count in re.findall(r"counter (\w+) \{[^}]*?packets (\d+)", text)}

    async def transfer(self, count: int = BULK) -> None:
        echoed = await self.near.dial(self.far.ip4, 7, bytes=count, end="half", read=-1, timeout=60)
        assert echoed["sha256"] == pattern_sha256(count)


@contextlib.asynccontextmanager
async def ends(r: Rig, far: str = "ours", mtu: int = JUMBO) -> AsyncIterator[Ends]:
    async with natlab.lab(r) as (made, hs):
        sites = made.site("none"), made.site("none")
        for site in sites:
            # Without segmentation by the device the router sees each datagram, and not what the kernel sends as one.
            run("ip", "-n", site.client, "link", "set", "eth0", "mtu", str(JUMBO), "gso_max_segs", "1")
        counters = {
            "datagrams": "",
            "large": f"udp length > {USUAL_LENGTH + 60}",
            "too_large": f"udp length > {JUMBO_LENGTH}",
        }
        rules = "add table inet sizes\n" + "".join(
            f"add counter inet sizes {name}\n" for name in (*counters, "fragments")
        )
        link = f"iifname v{sites[0].number}"
        where = f"{link} meta l4proto udp"
        rules += chain(
            "inet sizes",
            "filter",
            "prerouting",
            -500,
            *(f"{where} {match} counter name {name}" for name, match in counters.items()),
            f"{link} ip frag-off & 0x3fff != 0 counter name fragments",
        )
        nft(made.inet, rules)
        key = await hs.auth_key(ephemeral=False)
        start = r.ours if far == "ours" else r.tsnet
        async with (
            start(hs, key, "far", namespace=sites[1].client, port=NODE_PORT, timeout=40) as there,
            r.ours(hs, key, "near", namespace=sites[0].client, port=NODE_PORT, timeout=40) as here,
        ):
            found = Ends(made, sites, here, there)
            found.link(mtu)
            await here.wait_direct(there.ip4)
            yield found


async def test_two_of_ours_fill_jumbo_frames_and_cut_none(r: Rig) -> None:
    async with ends(r) as pair:
        await pair.transfer()
        sent = pair.sent()
        print(sent)
        assert sent["large"] * 8000 > BULK * 0.8
        assert sent["too_large"] == sent["fragments"] == 0


async def test_tsnet_is_sent_what_it_is_sent_everywhere(r: Rig) -> None:
    async with ends(r, "tsnet") as pair:
        await pair.transfer()
        sent = pair.sent()
        print(sent)
        assert sent["datagrams"] > BULK // 1340
        assert sent["large"] == 0


async def test_links_that_carry_the_usual_size_only_cost_a_few_pings(r: Rig) -> None:
    async with ends(r, mtu=USUAL) as pair:
        await pair.transfer()
        sent = pair.sent()
        print(sent)
        assert sent["large"] <= 4
        assert sent["fragments"] == 0


async def test_a_router_that_eats_large_datagrams_only_changes_nothing(r: Rig) -> None:
    async with ends(r) as pair:
        nft(pair.made.inet, chain("inet eater", "filter", "forward", 0, "meta l4proto udp udp length > 1500 drop"))
        await pair.transfer()
        assert pair.sent()["large"] <= 4


async def test_a_link_that_shrinks_in_flight_loses_no_byte(r: Rig) -> None:
    async with ends(r) as pair:
        await pair.transfer()
        before = pair.sent()["large"]
        assert before
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.transfer, 2 * BULK)
            await trio.sleep(0.05)
            pair.link(USUAL)
        await pair.transfer()


async def test_forged_messages_of_icmp_lower_nothing(r: Rig) -> None:
    """ "Fragmentation needed, 576 bytes" for the very flow, as anybody can send it."""
    async with ends(r) as pair:
        await pair.transfer()
        near, far = (socket.inet_aton(site.address) for site in pair.sites)
        quoted = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 8960, 1, 0x4000, 64, 17, 0, near, far)
        quoted += struct.pack(">HHHH", NODE_PORT, NODE_PORT, 8940, 0)
        message = struct.pack(">BBHHH", 3, 4, 0, 0, 576) + quoted
        message = message[:2] + _checksum(message) + message[4:]
        with inside(pair.made.inet), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            for _ in range(5):
                raw.sendto(message, (pair.sites[0].address, 0))
        before = pair.sent()
        await pair.transfer()
        after = pair.sent()
        assert (after["large"] - before["large"]) * 8000 > BULK * 0.8
        assert after["fragments"] == 0


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    return struct.pack(">H", ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF)
