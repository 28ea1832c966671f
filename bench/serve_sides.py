"""The other two processes of `python -m bench.serve`: the device that publishes, and the web server behind it."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import trio

import tailscale
from tailscale import http
from tailscale.carry import LOST
from tailscale.http import Limits
from tailscale.serve import Serve, files, proxy

PAGE = bytes(64 << 10)
CHUNK = bytes(256 << 10)
BARE, ASGI, SERVE = 19, 80, 81
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
MANY = Limits(connections=5000, connections_per_peer=5000)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The page, from our ASGI server."""
    if scope["type"] == "http":
        headers = [(b"content-type", b"text/html"), (b"content-length", b"%d" % len(PAGE))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": PAGE})


async def behind(stream: trio.SocketStream) -> None:
    """A web server that costs as little as one can: /page, /download/N bytes, and what asks for an upgrade."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            piece = await stream.receive_some()
            if not piece:
                return
            data += piece
        head, _, data = data.partition(b"\r\n\r\n")
        path = head.split(b" ")[1]
        if b"upgrade: websocket" in head.lower():
            await stream.send_all(UPGRADED)
            await stream.receive_some()
            return
        if path.startswith(b"/download/"):
            left = int(path.rpartition(b"/")[2])
            await stream.send_all(HEAD % left)
            while left:
                await stream.send_all(CHUNK[:left])
                left -= len(CHUNK[:left])
        else:
            await stream.send_all(HEAD % len(PAGE) + PAGE)


async def guarded(stream: Any, handler: Any) -> None:
    try:
        await handler(stream)
        await stream.aclose()
    except LOST:
        return


async def generate(stream: tailscale.TcpStream) -> None:
    """As many bytes as the first line says."""
    left = int(await stream.receive_some())
    while left:
        await stream.send_all(CHUNK[:left])
        left -= len(CHUNK[:left])
    await stream.send_eof()
    await stream.receive_some()


async def serve_behind() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(partial(guarded, handler=behind), listeners)


async def publish(control: str, key: str, place: str, folder: str) -> None:
    async with (
        tailscale.Device("publisher", control_url=control, auth_key=key) as device,
        trio.open_nursery() as nursery,
    ):
        bare = await device.listen(BARE)
        nursery.start_soon(trio.serve_listeners, partial(guarded, handler=generate), [bare])
        await nursery.start(partial(http.serve, limits=MANY), app, device, ASGI)
        mounts = {"/": proxy(f"http://{place}"), "/files": files(folder), "/app": app}
        await nursery.start(Serve(device, limits=MANY).http(SERVE, mounts).run)
        print("ready", flush=True)


if __name__ == "__main__":
    trio.run(serve_behind if sys.argv[1] == "behind" else partial(publish, *sys.argv[2:]))
