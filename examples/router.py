"""Let the tailnet reach the networks of this machine, in user space: no root, no routing table.

TS_AUTHKEY=... python router.py 192.168.7.0/24            # a subnet router
TS_AUTHKEY=... python router.py --exit-node               # an exit node
"""

from __future__ import annotations

import sys

import trio

import tailscale


async def main(subnets: list[str], is_exit: bool) -> None:
    async with tailscale.Device("router", advertise_routes=subnets, advertise_exit_node=is_exit) as device:
        told = ""
        while True:
            now = device.forwarding
            waiting = f", waiting for approval: {', '.join(now.missing)}" if now.missing else ""
            said = f"carrying for {', '.join(now.approved) or 'nothing'}{waiting}"
            if said != told:
                print(said, flush=True)
                told = said
            await trio.sleep(1)


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words:
        sys.exit(__doc__)
    trio.run(main, [word for word in words if word != "--exit-node"], "--exit-node" in words)
