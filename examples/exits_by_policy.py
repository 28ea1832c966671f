"""Connect to one place as several customers, each by an exit of its own that stays the same.

TS_AUTHKEY=... python exits_by_policy.py NL/ams example.com 80
"""

from __future__ import annotations

import sys

import trio

import tailscale
from tailscale.proxy import Exits, NoExit


async def main(choice: str, host: str, port: int) -> None:
    async with tailscale.Device("shopper") as device:
        exits = Exits.from_spec(device, choice)
        for session in ("shop-1", "shop-2", "shop-3"):
            try:
                async with await exits.tcp_connect(host, port, session=session) as stream:
                    print(f"{session} goes by {stream.exit.hostname}, by {stream.path}")
            except NoExit as error:
                sys.exit(f"nobody leads out: {error}")
        anybody = Exits(device)
        print(f"any: {anybody.current.node.hostname} of {len(anybody.candidates)}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
