"""One request of HTTP/2 and its answer, as ASGI sees them; trailers are the extension `http.response.trailers`.

The app runs in the stream's own task. https://asgi.readthedocs.io/en/latest/extensions.html#http-trailers
"""

from __future__ import annotations

import logging
import math
from email.utils import formatdate

import trio

from tailscale.http1.asgi import AsgiApp, ClientDisconnected, Message, Scope
from tailscale.http1.exchange import DISCONNECT
from tailscale.http1.limits import Limits
from tailscale.http1.wrong_loop import tell_failure
from tailscale.http2.link import Channel
from tailscale.http2.machine import Body, Ended, Headers

log = logging.getLogger("tailscale.http")
CONNECTIONS_OWN = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
}  # RFC 9113, 8.2.2


class StreamExchange:
    """Lives for one request."""

    def __init__(self, channel: Channel, scope: Scope, limits: Limits) -> None:
        self._channel = channel
        self._scope = scope
        self._limits = limits
        self._is_head = scope["method"] == "HEAD"
        self._start: Message | None = None
        self._is_begun = self._is_complete = self._is_body_read = False
        self._awaits_trailers = False
        self._receiving = trio.Lock()
        self._listening: trio.CancelScope | None = None

    async def run(self, app: AsgiApp) -> None:
        """Never raises for what a client or an app does."""
        try:
            await app(self._scope, self.receive, self.send)
        except ClientDisconnected:
            return
        except Exception as error:
            if not self._channel.is_gone:
                tell_failure(log, error, f"{self._scope['method']} {self._scope['path']}")
        if not self._is_complete and not self._is_begun and not self._channel.is_gone:
            await refuse(self._channel, 500, "Internal Server Error", self._limits)

    async def receive(self) -> Message:
        async with self._receiving:
            await trio.lowlevel.checkpoint()
            try:
                while not self._is_body_read:
                    event = await self._channel.next_event(self._limits.stall_timeout)
                    if isinstance(event, Body):
                        return {"type": "http.request", "body": event.data, "more_body": True}
                    if isinstance(event, Ended):
                        self._is_body_read = True
                        return {"type": "http.request", "body": b"", "more_body": False}
                if not self._is_complete:
                    with trio.CancelScope() as self._listening:
                        await self._channel.next_event(math.inf)
            except ClientDisconnected:
                pass
            return DISCONNECT

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            if self._start is not None:
                raise RuntimeError("http.response.start was sent twice")
            self._start = message
            self._awaits_trailers = bool(message.get("trailers"))
            await trio.lowlevel.checkpoint()
        elif kind == "http.response.body":
            await self._send_body(bytes(message.get("body", b"")), more=message.get("more_body", False))
        elif kind == "http.response.trailers":
            await self._send_trailers(message)
        else:
            raise RuntimeError(f"{kind!r} is not a message of an HTTP answer")

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._start is None:
            raise RuntimeError("http.response.body came before http.response.start")
        if self._is_complete:
            raise RuntimeError("the answer is already complete")
        if self._is_head or self._start["status"] in (204, 304):
            body = b""
        is_last = not more and not self._awaits_trailers
        if not self._is_begun:
            self._is_begun = True
            await self._channel.answer(head_of(self._start), ends=is_last and not body)
            if is_last and not body:
                self._finish()
                return
        if body or is_last:
            await self._channel.send(body, self._limits.stall_timeout, ends=is_last)
        if is_last:
            self._finish()

    async def _send_trailers(self, message: Message) -> None:
        if not self._is_begun or not self._awaits_trailers or self._is_complete:
            raise RuntimeError("http.response.trailers come behind a body, where `trailers` was said at its start")
        if message.get("more_trailers", False):
            raise RuntimeError("trailers are sent in one message here")
        headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
        await (self._channel.answer(headers, ends=True) if headers else self._channel.send(b"", 0.0, ends=True))
        self._finish()

    def _finish(self) -> None:
        self._is_complete = True
        if self._listening is not None:
            self._listening.cancel()


def head_of(start: Message) -> Headers:
    """The head of an answer; what concerns a connection of HTTP/1.1 has no place in it."""
    came = [(bytes(name).lower(), bytes(value)) for name, value in start.get("headers", ())]
    headers = [(b":status", b"%d" % start["status"]), *(one for one in came if one[0] not in CONNECTIONS_OWN)]
    if not any(name == b"date" for name, _ in headers):
        headers.append((b"date", formatdate(usegmt=True).encode()))
    return headers


async def refuse(channel: Channel, status: int, sentence: str, limits: Limits) -> None:
    """A short answer in place of another; none where the client is gone."""
    body = f"{sentence}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    try:
        await channel.answer(head_of({"status": status, "headers": headers}))
        await channel.send(body, limits.stall_timeout, ends=True)
    except ClientDisconnected:
        return
