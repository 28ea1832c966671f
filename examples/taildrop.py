"""Files to and from phones and laptops, as `tailscale file` and the apps send them.

TS_AUTHKEY=... python taildrop.py targets
TS_AUTHKEY=... python taildrop.py send NODE FILE...
TS_AUTHKEY=... python taildrop.py receive FOLDER
"""

from __future__ import annotations

import sys

import trio

import tailscale
from tailscale import taildrop


def list_targets(device: tailscale.Device) -> None:
    for node in taildrop.targets(device):
        print(f"{node.hostname:20} {node.os or '-':10} {node.presence}")


async def send(device: tailscale.Device, node: str, *files: str) -> None:
    async with taildrop.send(device, node, *files) as transfer:
        async for progress in transfer:
            print(f"{progress.fraction:4.0%}  {progress.name!r}")


async def receive(device: tailscale.Device, folder: str) -> None:
    async with taildrop.Inbox(device, folder, accept=True) as inbox:
        print(f"files sent to {device.hostname} land in {folder}", flush=True)
        async for file in inbox:
            print(f"{file.path}: {file.size} bytes from {file.sender.hostname}")


async def main(deed: str, *arguments: str) -> None:
    async with tailscale.Device("dropper") as device:
        if deed == "send":
            await send(device, *arguments)
        elif deed == "receive":
            await receive(device, *arguments)
        else:
            list_targets(device)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python taildrop.py targets | send NODE FILE... | receive FOLDER")
    trio.run(main, *sys.argv[1:])
