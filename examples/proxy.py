"""A proxy on the tailnet for those of its nodes whose owner is known here: SOCKS 5 and HTTP on one port.

TS_AUTHKEY=... python proxy.py user@example.com; then on another node: curl -x socks5h://proxy:1080 http://db:8000/
"""

from __future__ import annotations

import sys

import trio

import tailscale
from tailscale.proxy import NO_EXIT, Request, serve


async def main(owners: set[str]) -> None:
    async with tailscale.Device("proxy") as device, trio.open_nursery() as nursery:

        def allow(request: Request) -> bool:
            return request.peer is not None and request.peer.user in owners

        async def run(*, task_status: trio.TaskStatus[tailscale.proxy.Proxy]) -> None:
            await serve(device, "tailnet:1080", NO_EXIT, allow=allow, task_status=task_status)

        proxy = await nursery.start(run)
        print(f"{device.name}:{proxy.port} speaks SOCKS 5 and HTTP", flush=True)


if __name__ == "__main__":
    trio.run(main, set(sys.argv[1:]))
