"""A web app on the tailnet that greets whoever is calling. Any ASGI framework works; this one is Starlette.

pip install starlette; TS_AUTHKEY=... python http_serve.py
"""

from __future__ import annotations

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import tailscale
from tailscale import http


async def hello(request: Request) -> JSONResponse:
    caller = request.scope["extensions"]["tailscale"]
    return JSONResponse({"hello": caller["hostname"], "user": caller["user"], "tags": caller["tags"]})


app = Starlette(routes=[Route("/", hello)])


async def main() -> None:
    async with tailscale.Device("greeter") as device, trio.open_nursery() as nursery:
        url = await nursery.start(http.serve, app, device)
        print(f"serving {url}", flush=True)


if __name__ == "__main__":
    trio.run(main)
