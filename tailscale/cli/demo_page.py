"""The demo's web page: served by one device, fetched by the other, over the tailnet only."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11
import trio

from tailscale.testing.http_front import Answer, Request, serve_http

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.sockets import TcpStream

WEB_PORT = 80


async def serve_page(device: Device, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Greet every caller by name until cancelled."""

    async def converse(stream: TcpStream) -> None:
        caller = await device.whois(stream.remote_address)

        def greet(request: Request) -> Answer:
            return Answer(200, f"hello {caller.node.hostname}, you belong to {caller.user}".encode())

        await serve_http(stream, greet)

    listener = await device.listen(WEB_PORT)
    task_status.started()
    await trio.serve_listeners(converse, [listener])


async def fetch_page(device: Device, url: str) -> str:
    """GET by tailnet name."""
    parts = urlsplit(url)
    host, body = parts.hostname or "", b""
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=parts.path, headers=[("host", host), ("connection", "close")])
    async with await device.tcp_connect(host, parts.port or WEB_PORT) as stream:
        await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return body.decode()
