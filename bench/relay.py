"""Our own relay in a process of its own, described to a control server in one line of JSON on standard output.

Run: python -m bench.relay [--region 901]; it ends when its standard input does.
"""

from __future__ import annotations

import argparse
import json
import os

import trio

from tailscale.testing.servers import Relay
from tailscale.testing.worlds import LoopbackPlace


async def run(region: int) -> None:
    async with trio.open_nursery() as nursery:
        relay = Relay(LoopbackPlace(), nursery, lambda key: True)
        await relay.start()
        [described] = (relay.derp_map().regions or {}).values()
        assert described is not None
        listed = described.nodes[0]
        node = {
            "name": f"{region}a",
            "regionid": region,
            "hostname": listed.host_name,
            "ipv4": listed.ipv4,
            "ipv6": listed.ipv6,
            "derpport": listed.derp_port,
            "stunport": listed.stun_port,
            "stuntestip": listed.ipv4,
            "certname": listed.cert_name,
            "canport80": False,
        }
        said = {"regionid": region, "regioncode": f"bench{region}", "regionname": "bench", "nodes": [node]}
        print(json.dumps({"event": "up", "region": said}), flush=True)
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            async for _ in stdin:
                pass
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", type=int, default=901)
    trio.run(run, parser.parse_args().region)


if __name__ == "__main__":
    main()
