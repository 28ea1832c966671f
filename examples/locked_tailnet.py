"""Who is locked out of this tailnet, and why; with names, sign those nodes, where this device's key is trusted.

TS_AUTHKEY=... python locked_tailnet.py [NAME ...]
"""

from __future__ import annotations

import sys

import trio

import tailscale


async def main(names: list[str]) -> None:
    async with tailscale.Device("locksmith") as device:
        for name in names:
            await device.lock.sign(name)
        print(device.lock)


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1:])
    except tailscale.LockError as problem:
        sys.exit(str(problem))
