"""Answer for every address of a subnet that does not exist: a program that takes the flows itself.

TS_AUTHKEY=... python answer_for_a_subnet.py 192.168.77.0/24
"""

from __future__ import annotations

import sys
from functools import partial

import trio

import tailscale


async def greet(flow: tailscale.IncomingFlow, stream: tailscale.TcpStream) -> None:
    caller = flow.caller.hostname if flow.caller else "somebody"
    await stream.send_all(f"{flow.destination[0]} says hello to {caller}\n".encode())
    await stream.send_eof()


def on_flow(flow: tailscale.IncomingFlow) -> object:
    """Port 80 of any address is ours; nothing else is carried, and nothing reaches this machine's network."""
    if flow.protocol == "tcp" and flow.destination[1] == 80:
        return partial(greet, flow)
    return tailscale.REFUSE


async def main(subnet: str) -> None:
    async with tailscale.Device("oracle", advertise_routes=[subnet], on_flow=on_flow):
        print(f"answering for {subnet}, once it is approved", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1])
