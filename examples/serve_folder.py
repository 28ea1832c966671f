"""A folder and a web server of this machine for the tailnet, the second for some people only.

TS_AUTHKEY=... python serve_folder.py
"""

from __future__ import annotations

import trio

import tailscale
from tailscale.serve import Serve, files, proxy, text


async def main() -> None:
    async with tailscale.Device("publisher") as device, trio.open_nursery() as nursery:
        web = Serve(device)
        web.http(80, {"/": text("look at /files\n"), "/files": files(".")})
        inner = Serve(device).http(8080, {"/": proxy("http://127.0.0.1:3000")})
        inner.allow(users=[device.node.user], capability="example.com/cap/dashboard")
        for serve in (web, inner):
            (url,) = await nursery.start(serve.run)
            print(f"serving {url}", flush=True)


if __name__ == "__main__":
    trio.run(main)
