"""`python -m bench.large`: one stream between two of ours, and two of tsnet, on paths that carry large packets.

    python -m bench.large                  # over loopback, and between namespaces whose links have an MTU of 9,000
    python -m bench.large --rounds 1 --seconds 1

The second needs root, iproute2 and nftables; a router lies between, as in a data centre. The bytes are read and thrown
away; the ratio is ours to tsnet's of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from bench.between import bench, in_turn, our_node, place
from bench.results import Report, Row
from tests.interop import build
from tests.interop.natlab import NODE_PORT, lab, why_not
from tests.interop.natlab.namespaces import run
from tests.interop.natlab.sites import Lab
from tests.interop.rig import Rig, TsnetPeer, rig

BASE, OURS = "tsnet to tsnet", "ours to ours"
JUMBO = 9000
AIMS = {"loopback": 3.0, "MTU 9,000": 2.0}
PEERS = ("headscale-0.29.2", "derper", "tsnetpeer")
Nodes = dict[str, TsnetPeer]


class Ends:
    """Two nodes of each kind; what `in_turn` needs of a place."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    def pair(self, name: str) -> tuple[TsnetPeer, TsnetPeer]:
        kind = name.partition(" to ")[0]
        return self.nodes[f"{kind} a"], self.nodes[f"{kind} b"]


def widen(made: Lab, number: int, client: str, mtu: int) -> None:
    """The link of a site without a router, both ends."""
    run("ip", "-n", client, "link", "set", "eth0", "mtu", str(mtu))
    run("ip", "-n", made.inet, "link", "set", f"v{number}", "mtu", str(mtu))


@contextlib.asynccontextmanager
async def jumbo(r: Rig) -> AsyncIterator[Ends]:
    """Two machines of a data centre, a router between them."""
    async with lab(r) as (made, hs), contextlib.AsyncExitStack() as stack:
        key = await hs.auth_key()
        nodes: Nodes = {}
        for side in "ab":
            site = made.site("none")
            widen(made, site.number, site.client, JUMBO)
            go = r.tsnet(hs, key, f"go-{side}", verbose=False, namespace=site.client, port=NODE_PORT)
            nodes[f"tsnet {side}"] = await stack.enter_async_context(go)
            mine = our_node(r, hs, key, f"py-{side}", namespace=site.client, port=NODE_PORT + 1)
            nodes[f"ours {side}"] = await stack.enter_async_context(mine)
        for kind in ("tsnet", "ours"):
            caller, callee = nodes[f"{kind} a"], nodes[f"{kind} b"]
            await caller.wait_direct(callee.ip4)
            await caller.dial(callee.ip4, 7, bytes=1, read=1)
        yield Ends(nodes)


async def rows(name: str, where: Ends, rounds: int, seconds: float) -> AsyncIterator[Row]:
    aim = AIMS[name]
    await in_turn(where, 1, bench("down", "mbit_s", min(seconds, 1.0)), (BASE, OURS))  # type: ignore[arg-type]
    samples = await in_turn(where, rounds, bench("down", "mbit_s", seconds), (BASE, OURS))  # type: ignore[arg-type]
    yield Row(f"{name}: one stream", "Mbit/s", samples, OURS, BASE, aim=aim, floor=aim)


async def measure(report: Report, rounds: int, seconds: float) -> None:
    async with rig("bench") as r, place(r, "direct") as where:
        async for row in rows("loopback", Ends(where.nodes), rounds, seconds):
            report.add(row)
    if reason := why_not():
        report.skip("MTU 9,000", reason)
        return
    async with rig("bench") as r, jumbo(r) as ends:
        async for row in rows("MTU 9,000", ends, rounds, seconds):
            report.add(row)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="samples per side")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one sample")
    parser.add_argument("--json", type=Path, help="where the figures go (default: bench/results/<date>.json)")
    options = parser.parse_args()
    if missing := build.missing(PEERS):
        print(f"bench.large: SKIPPED, peers not built: {missing} (python tests/interop/build.py)")
        return 0
    report = Report({"rows": list(AIMS), "rounds": options.rounds, "seconds": options.seconds})
    report.start()
    try:
        trio.run(measure, report, options.rounds, options.seconds)
    finally:
        print(f"\nfigures: {report.save(options.json)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
