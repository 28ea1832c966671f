"""An ASGI app under uvicorn, served on the tailnet: uvicorn is given a listening socket, the app who is calling.

pip install uvicorn; TS_AUTHKEY=... python uvicorn_serve.py
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn

from tailscale import aio
from tailscale.http import IdentityMiddleware


async def greet(scope: Any, receive: Any, send: Any) -> None:
    """Any ASGI app."""
    body = f"hello {scope['extensions']['tailscale']['hostname']}\n".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def main() -> None:
    async with aio.Device("greeter2") as device:
        app = IdentityMiddleware(greet, device)
        config = uvicorn.Config(app, lifespan="off", log_level="warning", proxy_headers=False)
        door = await device.forward_listen(80)
        print(f"serving http://{device.name}", flush=True)
        await uvicorn.Server(config).serve(sockets=[door])


if __name__ == "__main__":
    asyncio.run(main())
