"""Hard NATs, opened: real routers by nft, two of ours, and one of ours with a stock tsnet node on the other side."""

from __future__ import annotations

import os

import pytest

from tests.interop import natlab
from tests.interop.natlab.pairs import OPENING_PATIENCE
from tests.interop.rig import Rig

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
WITHIN = 15.0
RUNS = 20 if os.environ.get("NATLAB") == "full" else 2

# Left dials. Who is ours, and how many of twenty must be direct: both ours, or the hard one.
OPENED = [
    ("hard", "easy", (True, True), 19),
    ("easy", "hard", (True, True), 19),
    ("hard", "easy", (True, False), 15),
    ("easy", "hard", (False, True), 15),
]
# A stock node behind the hard router has one socket, so one open port of 64,512, and is never asked for more.
LEFT_ALONE = [("hard", "easy", (False, True)), ("easy", "hard", (True, False)), ("hard", "hard", (True, True))]


def words(left: str, right: str, ours: tuple[bool, bool]) -> str:
    return " - ".join(f"{'our' if mine else 'stock'} {kind}" for kind, mine in zip((left, right), ours, strict=True))


@pytest.mark.parametrize(("left", "right", "ours", "of_twenty"), OPENED, ids=[words(*row[:3]) for row in OPENED])
async def test_a_hard_nat_is_opened(r: Rig, left: str, right: str, ours: tuple[bool, bool], of_twenty: int) -> None:
    async with natlab.lab(r, natlab.hosts_for(left)) as (made, hs):
        in_time = 0
        for _ in range(RUNS):
            found = await natlab.measure(made, hs, r, left, right, ours=ours, patience=OPENING_PATIENCE)
            print(found.row())
            times = found.left_direct_s, found.right_direct_s
            in_time += all(took is not None and took <= WITHIN for took in times)
        print(f"{words(left, right, ours)}: {in_time} of {RUNS} direct within {WITHIN:g} s")
        assert in_time >= RUNS * of_twenty // 20 - (RUNS < 20)


@pytest.mark.parametrize(("left", "right", "ours"), LEFT_ALONE, ids=[words(*row) for row in LEFT_ALONE])
async def test_what_cannot_be_opened_stays_on_the_relay_quietly(
    r: Rig, left: str, right: str, ours: tuple[bool, bool]
) -> None:
    async with natlab.lab(r, natlab.hosts_for(left)) as (made, hs):
        found = await natlab.measure(made, hs, r, left, right, ours=ours, patience=OPENING_PATIENCE)
        print(found.row())
        assert found.path == "relay"
        assert sum(found.probes) < 1500
