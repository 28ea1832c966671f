"""The NAT lab as tests: each pair first with two tsnet nodes, then with two of ours, which may not do worse."""

from __future__ import annotations

import os

import pytest

from tests.interop import natlab
from tests.interop.natlab import PAIRS, expected, is_opened_by_ours, our_patience
from tests.interop.rig import Rig

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
DIRECT_WITHIN = 1.0  # seconds; tsnet needs five where the dialled side's router filters
PATIENCE = {"direct": 30.0, "relay": 8.0}  # for tsnet: until it is direct, or until it is clear that it never will be
# A pair takes a dozen seconds: every run does one of each kind, NATLAB=full all of them (a quarter of an hour).
EACH_KIND = [
    *[("none", "easy"), ("easy", "none"), ("easy", "easy"), ("hard", "none"), ("hard", "easy"), ("hard", "hard")],
    *[("cone", "hard"), ("one2one", "easy"), ("double", "easy"), ("easy", "blocked"), ("easy", "same LAN")],
    *[("v6", "v6"), ("v6wall", "v6wall")],
]
CHOSEN = PAIRS if os.environ.get("NATLAB") == "full" else [pair for pair in PAIRS if pair in EACH_KIND]


@pytest.mark.parametrize(("left", "right"), CHOSEN, ids=[f"{a} - {b}" for a, b in CHOSEN])
async def test_ours_is_direct_wherever_tsnet_is_and_sooner(r: Rig, left: str, right: str) -> None:
    async with natlab.lab(r, natlab.hosts_for(left)) as (made, hs):
        known = expected(left, right)
        base = await natlab.measure(made, hs, r, left, right, patience=PATIENCE[known])
        mine = await natlab.measure(made, hs, r, left, right, ours=True, patience=our_patience(left, right))
        print(base.row(), mine.row(), sep="\n")
        assert base.path == known, f"the lab is not what it was: {base.row()}"
        assert mine.path in ("direct", "relay"), mine.row()
        if is_opened_by_ours(left, right):
            assert mine.path == "direct", mine.row()
        if base.path == "direct":
            assert mine.path == "direct", f"{base.row()}\n{mine.row()}"
            for took in (mine.left_direct_s, mine.right_direct_s):
                assert took is not None, mine.row()
                assert took <= DIRECT_WITHIN, mine.row()
