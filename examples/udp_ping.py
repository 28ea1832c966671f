"""Send datagrams to a UDP echo service of a peer and time the answers.

TS_AUTHKEY=... python udp_ping.py db 7
"""

from __future__ import annotations

import sys

import trio

import tailscale


async def main(host: str, port: int, count: int = 3) -> None:
    async with tailscale.Device("pinger") as device, await device.udp() as socket:
        await socket.connect((host, port))
        for number in range(count):
            began = trio.current_time()
            await socket.send(b"ping %d" % number)
            with trio.move_on_after(2) as patience:
                answer = await socket.receive()
                print(f"{answer.decode()}: {(trio.current_time() - began) * 1000:.1f} ms")
            if patience.cancelled_caught:
                print(f"ping {number}: lost")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], int(sys.argv[2]))
