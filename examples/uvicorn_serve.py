"""An ASGI app that wants asyncio, served on the tailnet by uvicorn: it is given a listening socket.

pip install uvicorn; TS_AUTHKEY=... python uvicorn_serve.py
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn

from tailscale import aio


class Greeter:
    """Any ASGI app. It asks the device who is behind the address that uvicorn tells."""

    def __init__(self, device: aio.Device) -> None:
        self._device = device

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        identity = await self._device.whois(tuple(scope["client"]))
        body = f"hello {identity.node.hostname}\n".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


async def main() -> None:
    async with aio.Device("greeter2") as device:
        config = uvicorn.Config(Greeter(device), lifespan="off", log_level="warning")
        door = await device.forward_listen(80)
        print(f"serving http://{device.name}", flush=True)
        await uvicorn.Server(config).serve(sockets=[door])


if __name__ == "__main__":
    asyncio.run(main())
