"""Measures pairs of NATs and prints what each reached.

python -m tests.interop.natlab                      # every pair, two tsnet nodes: the baseline
python -m tests.interop.natlab --ours               # the baseline, then the same pairs with two of our Devices
python -m tests.interop.natlab easy,hard none       # only these kinds on the left, only those on the right
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

import trio

from tests.interop import build
from tests.interop.natlab import PAIRS, expected, hosts_for, lab, measure, our_patience, why_not
from tests.interop.natlab.kinds import KINDS, KINDS6
from tests.interop.natlab.pairs import Outcome
from tests.interop.rig import rig


def _choose(options: argparse.Namespace) -> list[tuple[str, str]]:
    wanted = [set(side.split(",")) if side else None for side in (options.left, options.right)]
    return [p for p in PAIRS if all(w is None or kind in w for w, kind in zip(wanted, p, strict=True))]


async def _main(options: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    worse = 0
    for left, right in _choose(options):
        async with rig("nat") as r, lab(r, hosts_for(left)) as (made, hs):
            base = await measure(made, hs, r, left, right)
            note = "" if base.path == expected(left, right) else f"   (expected {expected(left, right)})"
            print(base.row() + note, flush=True)
            outcomes.append(base)
            if options.ours:
                mine = await measure(made, hs, r, left, right, ours=True, patience=our_patience(left, right))
                bad = mine.path != base.path and mine.path != "direct"
                worse += bad
                print(mine.row() + ("   WORSE" if bad else ""), flush=True)
                outcomes.append(mine)
    if options.json:
        await trio.Path(options.json).write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    direct = sum(o.path == "direct" for o in outcomes if o.who == "tsnet")
    print(
        f"nat lab: {len(outcomes)} runs, tsnet direct on {direct} pairs"
        + (f", ours worse on {worse}" if options.ours else "")
    )
    return 1 if worse else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.natlab", description=__doc__.splitlines()[0])
    parser.add_argument("left", nargs="?", default="", help=f"kinds, comma-separated: {', '.join([*KINDS, *KINDS6])}")
    parser.add_argument("right", nargs="?", default="", help="the same, or `same LAN`")
    parser.add_argument("--ours", action="store_true", help="measure our Device on each pair too")
    parser.add_argument("--json", help="write all outcomes to this file")
    options = parser.parse_args()
    reason = why_not()
    if reason or build.missing(("headscale-0.29.2", "derper", "tsnetpeer")):
        print(f"nat lab: SKIPPED, {reason or 'peers not built (python tests/interop/build.py)'}")
        return 0
    return trio.run(_main, options)


if __name__ == "__main__":
    sys.exit(main())
