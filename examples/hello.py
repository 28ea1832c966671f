"""Join the tailnet, say who we are and who is there.

TS_AUTHKEY=... python hello.py
"""

from __future__ import annotations

import trio

import tailscale


async def main() -> None:
    async with tailscale.Device("hello") as device:
        print(f"I am {device.name} ({device.ipv4})")
        for node in device.peers.values():
            print(f"  {node.hostname:<16} {node.ipv4:<16} {'online' if node.online else 'offline'}")


if __name__ == "__main__":
    trio.run(main)
