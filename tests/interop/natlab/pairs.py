"""Two nodes at two sites: what tsnet is known to reach, and what they reach now.

When the first byte arrived, when each side was direct, and how many bytes really travelled by UDP between
the two, counted by the kernel on both sides (neither side's word is trusted).
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass

import trio

from tests.interop.natlab.kinds import KINDS, KINDS6, NODE_PORT
from tests.interop.natlab.sites import Lab
from tests.interop.pattern import pattern_sha256
from tests.interop.processes import RigError, poll_until
from tests.interop.rig import Headscale, Rig, TsnetPeer

SIZE = 1 << 20
OUR_PATIENCE = 4.0
OPENING_PATIENCE = 20.0
PATIENCE = 8.0  # tsnet needs 5.05 s where the dialled side filters
PAIRS = [
    *itertools.product(KINDS, KINDS),
    *[("easy", "same LAN"), ("hard", "same LAN")],
    *itertools.product(KINDS6, KINDS6),
]


def expected(left: str, right: str) -> str:
    """What two tsnet nodes were measured to reach; `natlab` measures it again in each run."""
    kinds = {left, right}
    if "blocked" in kinds:
        return "relay"
    hard = [k for k in (left, right) if k == "hard"]
    if len(hard) == 2 or (hard and kinds & {"easy", "double"}):
        return "relay"
    return "direct"


def is_opened_by_ours(left: str, right: str) -> bool:
    """Whether two of our nodes reach each other directly where two tsnet nodes stay on the relay."""
    return "hard" in (left, right) and expected(left, right) == "relay" and not {left, right} <= {"hard", "blocked"}


def our_patience(left: str, right: str) -> float:
    """How long two of ours are watched: opening a hard NAT takes seconds, everything else well below one."""
    return OPENING_PATIENCE if is_opened_by_ours(left, right) else OUR_PATIENCE


@dataclass
class Outcome:
    """What one pair of nodes reached."""

    left: str
    right: str
    who: str
    path: str
    first_byte_ms: float
    left_direct_s: float | None
    right_direct_s: float | None
    left_udp_bytes: int
    right_udp_bytes: int
    join_ms: tuple[float, float]
    probes: tuple[int, int]
    """Datagrams that left each side beside the relay until both were direct."""

    def row(self) -> str:
        times = [f"{t:5.2f} s" if t is not None else "   -   " for t in (self.left_direct_s, self.right_direct_s)]
        return (
            f"{self.left:>8} - {self.right:<8} {self.who:<5} {self.path:<7} first byte {self.first_byte_ms:6.1f} ms"
            f"  direct after {times[0]} / {times[1]}"
            f"  after {self.probes[0]:4} / {self.probes[1]:4} datagrams"
            f"  udp {self.left_udp_bytes >> 10:5} / {self.right_udp_bytes >> 10:5} KiB"
        )


async def measure(
    made: Lab,
    hs: Headscale,
    r: Rig,
    left: str,
    right: str,
    *,
    ours: bool | tuple[bool, bool] = False,
    patience: float = PATIENCE,
) -> Outcome:
    """Joins two nodes at fresh sites of these kinds, lets the left call the right, and watches the path."""
    a_site = made.site(left)
    b_site = made.neighbour(a_site) if right == "same LAN" else made.site(right)
    key = await hs.auth_key(ephemeral=False)
    name = f"{left}-{right}".replace(" ", "").lower()
    is_ours = ours if isinstance(ours, tuple) else (ours, ours)
    start_a, start_b = (r.ours if mine else r.tsnet for mine in is_ours)
    async with (
        start_b(hs, key, f"{name}-b{b_site.number}", namespace=b_site.client, port=NODE_PORT, timeout=40) as b,
        start_a(hs, key, f"{name}-a{a_site.number}", namespace=a_site.client, port=NODE_PORT, timeout=40) as a,
    ):
        await _sees(a, b)
        began = trio.current_time()
        first = await a.dial(b.ip4, 7, bytes=1, end="half", read=-1, timeout=20)
        times: dict[str, float | None] = {"a": None, "b": None}

        async def watch(which: str, peer: TsnetPeer, other: TsnetPeer) -> None:
            # Only looking: asking for a ping would make the peer try again sooner than it does by itself.
            while times[which] is None:
                if (await peer.path_to(other.ip4)).get("CurAddr"):
                    times[which] = trio.current_time() - began
                await trio.sleep(0.02)

        async def trickle() -> None:
            while True:
                await a.ask("udp", check=False, host=b.ip4, port=7, bytes=100, timeout=2)
                await trio.sleep(0.1)

        with trio.move_on_after(patience):
            async with trio.open_nursery() as traffic:
                traffic.start_soon(trickle)
                async with trio.open_nursery() as watchers:
                    watchers.start_soon(watch, "a", a, b)
                    watchers.start_soon(watch, "b", b, a)
                traffic.cancel_scope.cancel()
        probes = (a_site.udp_datagrams()[1], b_site.udp_datagrams()[1])
        before = (a_site.udp_bytes(), b_site.udp_bytes())
        echoed = await a.dial(b.ip4, 7, bytes=SIZE, end="half", read=-1, timeout=30)
        if echoed["sha256"] != pattern_sha256(SIZE):
            raise RigError(f"{left} - {right}: bytes were lost")
        after = (a_site.udp_bytes(), b_site.udp_bytes())
        moved = [min(n[0] - m[0], n[1] - m[1]) for m, n in zip(before, after, strict=True)]
        path = "direct" if min(moved) >= SIZE else "relay" if max(moved) < SIZE // 8 else "one way"
        return Outcome(
            left, right, ("tsnet", "mixed", "ours")[sum(is_ours)], path, first["first_byte_ms"], times["a"], times["b"],
            moved[0], moved[1], (a.join_ms, b.join_ms), probes,
        )  # fmt: skip


async def _sees(peer: TsnetPeer, other: TsnetPeer) -> None:
    async def probe() -> bool:
        with contextlib.suppress(RigError):
            return bool(await peer.path_to(other.ip4))
        return False

    await poll_until(f"{peer.name} to know {other.name}", probe, 20)
