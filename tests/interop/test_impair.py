"""The impairer does what it says, and two tsnet peers still talk through it."""

from __future__ import annotations

import pytest
import trio

from tests.interop.impair import Faults, Impairer, impaired
from tests.interop.pattern import pattern_sha256
from tests.interop.processes import PORTS, poll_until
from tests.interop.rig import Rig


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
        r.tsnet(hs, await hs.auth_key(), "db", port=ports[0], env=_hidden_behind(to_db)) as db,
        r.tsnet(hs, await hs.auth_key(), "worker", port=ports[1], env=_hidden_behind(to_worker)) as worker,
    ):
        await worker.wait_direct(db.ip4)
        echoed = await worker.dial(db.ip4, 7, bytes=1 << 20, end="half", read=-1)
        assert echoed["sha256"] == pattern_sha256(1 << 20)
        assert to_db.counts.lost + to_worker.counts.lost > 0


def _hidden_behind(path: Impairer) -> dict[str, str]:
    return {"TS_DEBUG_OMIT_LOCAL_ADDRS": "1", "TS_DEBUG_PRETENDPOINT": "{}:{}".format(*path.address)}
