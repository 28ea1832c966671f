"""The other process of `python -m bench.libraries`: uvicorn and aiohttp at a device and on loopback, and a database."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvicorn
from aiohttp import web

from tailscale import aio

PAGE = bytes(64)
FILE = bytes(1 << 20)
UVICORN, AIOHTTP, POSTGRES = 80, 81, 5432


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/file` is a MiB, all else a page."""
    if scope["type"] == "http":
        body = FILE if scope["path"] == "/file" else PAGE
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def page(request: web.Request) -> web.Response:
    return web.Response(body=FILE if request.path == "/file" else PAGE)


async def main(control: str, key: str, database: int) -> None:
    async with aio.Device("serves", control_url=control, auth_key=key) as device:
        config = uvicorn.Config(app, log_level="error", lifespan="off")
        local = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio looks there for NODELAY
        local.bind(("127.0.0.1", 0))
        doors = [await device.listen(UVICORN), local]
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=doors))
        runner = web.AppRunner(web.Application())
        runner.app.router.add_get("/{name}", page)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.server is not None
        await device.create_server(runner.server, AIOHTTP)
        async with device.expose(POSTGRES, local_port=database):
            print(local.getsockname()[1], runner.addresses[0][1], flush=True)
            await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
