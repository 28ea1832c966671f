"""A DNS server for the containers of this machine: the tailnet's names, and what its resolvers know.

TS_AUTHKEY=... python name_server.py 172.17.0.1 53      # docker run --dns 172.17.0.1 ...
"""

from __future__ import annotations

import sys

import trio

import tailscale


async def main(host: str, port: int) -> None:
    async with tailscale.Device("names") as device, device.name_server(host, port) as server:
        reply = await device.dns_query(device.name)
        print(f"{device.name} is {reply.answers[0].body}; ask {server.host} port {server.port}", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("python name_server.py HOST PORT")
    trio.run(main, sys.argv[1], int(sys.argv[2]))
