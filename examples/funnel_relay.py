"""A Funnel relay of one's own: carry TLS from the internet by name to nodes of the tailnet.

TS_AUTHKEY=... python funnel_relay.py 0.0.0.0:443 web.example.com=laptop "*.lab.example.com=lab"
"""

from __future__ import annotations

import sys
from functools import partial

import trio

import tailscale
from tailscale.serve import IngressLimits, ingress


async def main(listen: str, names: dict[str, str]) -> None:
    async with tailscale.Device("gate") as device, trio.open_nursery() as nursery:
        limits = IngressLimits(per_source=32)
        relay = await nursery.start(partial(ingress, port=443, limits=limits), device, listen, names)
        print(f"relay at {relay.address[0]} port {relay.port} for {', '.join(names)}", flush=True)
        while True:
            await trio.sleep(60)
            done = relay.statistics()
            print(f"{done.clients} clients, {done.carried} carried, led nowhere: {done.drops}", flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:]))
