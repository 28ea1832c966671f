"""Fetch a page from a peer by its tailnet name, with httpx.

TS_AUTHKEY=... python http_client.py http://web/
"""

from __future__ import annotations

import sys

import httpx
import trio

import tailscale
from tailscale.http import AsyncTransport


async def main(url: str) -> None:
    async with (
        tailscale.Device("fetcher") as device,
        httpx.AsyncClient(transport=AsyncTransport(device)) as client,
    ):
        response = await client.get(url)
        print(response.status_code, response.text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1])
