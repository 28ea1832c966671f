"""The impairer does what it says; tsnet talks through it with tsnet, and our Device with tsnet."""

from __future__ import annotations

import pytest
import trio

from tests.interop import natlab
from tests.interop.impair import Faults, hidden_behind, impaired
from tests.interop.natlab import NODE_PORT, inside
from tests.interop.natlab.kinds import chain
from tests.interop.natlab.namespaces import nft
from tests.interop.pattern import pattern_sha256
from tests.interop.processes import PORTS, poll_until
from tests.interop.rig import Rig

WHY_NOT = natlab.why_not()


async def _send(faults: Faults, count: int) -> tuple[list[bytes], float]:
    """What arrives of `count` numbered datagrams, and how long the last took."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as far:
        far.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 1 << 20)  # holds them all until they are read
        await far.bind(("127.0.0.1", 0))
        async with impaired(far.getsockname(), faults, seed=7) as path:
            with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as near:
                began = trio.current_time()
                for n in range(count):
                    await near.sendto(n.to_bytes(4, "big"), path.address)

                async def all_read() -> bool:
                    return path.counts.received == count

                await poll_until("the path to have read them", all_read)
                due = path.counts.received - path.counts.lost + path.counts.duplicated
                with trio.fail_after(10):
                    got = [await far.recv(100) for _ in range(due)]
                return got, trio.current_time() - began


async def test_nothing_is_changed_without_faults() -> None:
    got, _ = await _send(Faults(), 100)
    assert got == [n.to_bytes(4, "big") for n in range(100)]


@pytest.mark.parametrize(
    ("faults", "at_least", "at_most"),
    [(Faults(loss=0.5), 60, 140), (Faults(duplicate=0.5), 260, 340), (Faults(cut=True), 0, 0)],
    ids=["loss", "duplication", "cut"],
)
async def test_counts_follow_the_chances(faults: Faults, at_least: int, at_most: int) -> None:
    got, _ = await _send(faults, 200)
    assert at_least <= len(got) <= at_most


async def test_delay_and_reordering() -> None:
    got, took = await _send(Faults(delay_ms=50, reorder=0.2), 100)
    assert took >= 0.05
    assert sorted(got) == [n.to_bytes(4, "big") for n in range(100)]
    assert got != sorted(got)


async def test_corruption_flips_one_bit() -> None:
    got, _ = await _send(Faults(corrupt=1.0), 50)
    for n, data in enumerate(sorted(got, key=lambda d: 0)):
        assert (int.from_bytes(data, "big") ^ n).bit_count() == 1


async def test_tsnet_through_a_bad_path(r: Rig) -> None:
    """Both hide behind an impairer: a peer whose own port is known would call past the other's."""
    ports = PORTS.take(), PORTS.take()
    faults = Faults(delay_ms=5, jitter_ms=5, loss=0.005, reorder=0.005)
    async with (
        impaired(("127.0.0.1", ports[0]), faults) as to_db,
        impaired(("127.0.0.1", ports[1]), faults) as to_worker,
        r.derper(stun=False) as relay,
        r.headscale(regions=[relay.region]) as hs,
        r.tsnet(hs, await hs.auth_key(), "db", port=ports[0], env=hidden_behind(to_db)) as db,
        r.tsnet(hs, await hs.auth_key(), "worker", port=ports[1], env=hidden_behind(to_worker)) as worker,
    ):
        await worker.wait_direct(db.ip4)
        echoed = await worker.dial(db.ip4, 7, bytes=1 << 20, end="half", read=-1)
        assert echoed["sha256"] == pattern_sha256(1 << 20)
        assert to_db.counts.lost + to_worker.counts.lost > 0


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
async def test_a_path_with_every_fault_delivers_every_byte(r: Rig) -> None:
    """The peer is heard from behind the impairer only, which stands beside it: nothing goes past it."""
    faults = Faults(delay_ms=5, jitter_ms=5, loss=0.005, reorder=0.01, duplicate=0.01, corrupt=0.005)
    size = 4 << 20
    async with natlab.lab(r) as (made, hs):
        a, b = made.site("easy"), made.site("none")
        nft(b.client, chain("inet hidden", "filter", "output", -2, f"oifname eth0 udp sport {NODE_PORT} drop"))
        key = await hs.auth_key(ephemeral=False)
        with inside(b.client):
            async with (
                impaired((b.address, NODE_PORT), faults, (b.address, 0)) as path,
                r.tsnet(hs, key, "db", namespace=b.client, port=NODE_PORT, env=hidden_behind(path)) as db,
                r.ours(hs, key, "ours", namespace=a.client, port=NODE_PORT) as us,
            ):
                await us.wait_direct(db.ip4)
                before = b.udp_bytes()
                echoed = await us.dial(db.ip4, 7, bytes=size, end="half", read=-1, timeout=60)
                assert echoed["sha256"] == pattern_sha256(size)
                answered = await db.dial(us.ip4, 7, bytes=size, end="half", read=-1, timeout=60)
                assert answered["sha256"] == pattern_sha256(size)
                moved = [now - then for now, then in zip(b.udp_bytes(), before, strict=True)]
    counts = path.counts
    print(f"every fault: {counts}")
    assert min(moved) >= 2 * size
    assert min(counts.lost, counts.reordered, counts.duplicated, counts.corrupted) > 0
