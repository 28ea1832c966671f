"""One request and its answer, as ASGI sees them.

The app runs in the connection's own task: `receive` reads the stream when asked, `send` writes it, so that
back-pressure is the stream's own. https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import logging
from email.utils import formatdate
from typing import Any

import h11
import trio

from tailscale.http1.asgi import AsgiApp, ClientDisconnected, Message, Scope
from tailscale.http1.wire import Wire
from tailscale.http1.wrong_loop import tell_failure

log = logging.getLogger("tailscale.http")
PIPELINED = 64 << 10  # bytes of later requests we take while still answering
UNREAD_BODY = 64 << 10  # an app may ignore this much of a request without losing the connection
DISCONNECT: Message = {"type": "http.disconnect"}


class HttpExchange:
    """Lives for one request; `run` returns whether the connection can carry another."""

    def __init__(self, wire: Wire, request: h11.Request, scope: Scope) -> None:
        self._wire = wire
        self._scope = scope
        self._is_head = request.method == b"HEAD"
        self._response: h11.Response | None = None
        self._head_sent = False
        self._is_complete = False
        self._is_body_read = False
        self._is_client_gone = False
        self._is_taken_over = False
        self._receiving = trio.Lock()
        self._sending = trio.Lock()
        self._listening: trio.CancelScope | None = None

    async def run(self, app: AsgiApp) -> bool:
        try:
            await app(self._scope, self.receive, self.send)
        except ClientDisconnected:
            return False
        except Exception as error:
            if not self._is_client_gone:
                tell_failure(log, error, f"{self._scope['method']} {self._scope['path']}")
            if not self._is_complete:  # else it failed behind its answer, which is whole: frameworks answer and raise
                return await self._give_up()
        if not self._is_complete:
            if not self._is_client_gone:
                log.error("the app left %s %s without an answer", self._scope["method"], self._scope["path"])
            return await self._give_up()
        return await self._is_reusable()

    async def _give_up(self) -> bool:
        """An answer if none began; else break the connection off, so that nobody takes the half for a whole."""
        if self._head_sent and not self._is_complete:
            abort(self._wire.stream)
            return False
        await self._wire.refuse(500, "Internal Server Error", has_body=not self._is_head)
        return False

    async def _is_reusable(self) -> bool:
        """Read away the little that may be left of the request; True if the next one can follow."""
        http, left = self._wire.http, UNREAD_BODY
        if http.our_state is not h11.DONE or self._is_client_gone or self._is_taken_over:
            return False
        try:
            while http.their_state is h11.SEND_BODY and not http.they_are_waiting_for_100_continue:
                event = await self._wire.next_event(self._wire.limits.stall_timeout)
                left -= len(event.data) if isinstance(event, h11.Data) else 0
                if left < 0:
                    return False
        except (ClientDisconnected, h11.RemoteProtocolError):
            return False
        return http.their_state is h11.DONE

    async def take_over(self, head: bytes) -> bytes:
        """The connection is no HTTP after `head`. What had been read already of what follows the request."""
        if self._response is not None or not self._is_body_read:
            raise RuntimeError("a connection is taken over in place of an answer, when its request is read")
        self._is_complete = self._is_taken_over = True
        await self._wire.write(head)
        return bytes(self._wire.http.trailing_data[0])

    # What the app calls

    async def receive(self) -> Message:
        async with self._receiving:
            await trio.lowlevel.checkpoint()
            if self._is_complete or self._is_client_gone:
                return DISCONNECT
            try:
                if not self._is_body_read:
                    return await self._receive_body()
                with trio.CancelScope() as self._listening:
                    await self._until_gone()
            except ClientDisconnected:
                self._is_client_gone = True
            except h11.RemoteProtocolError as error:
                self._is_client_gone = True
                if not self._head_sent:
                    await self._wire.refuse(error.error_status_hint, str(error))
            return DISCONNECT

    async def _receive_body(self) -> Message:
        wire = self._wire
        if wire.http.they_are_waiting_for_100_continue and not self._head_sent:
            await wire.write(wire.http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        event = await wire.next_event(wire.limits.stall_timeout)
        if isinstance(event, h11.Data):
            return {"type": "http.request", "body": bytes(event.data), "more_body": True}
        self._is_body_read = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _until_gone(self) -> None:
        """The client may hang up, finish sending, or send ahead; whatever it sends ahead waits its turn."""
        wire = self._wire
        while not wire.http.trailing_data[1]:
            if len(wire.http.trailing_data[0]) > PIPELINED:
                await trio.sleep_forever()
            wire.http.receive_data(await wire.read_some())

    async def send(self, message: Message) -> None:
        async with self._sending:
            kind = message["type"]
            if kind == "http.response.start":
                if self._response is not None:
                    raise RuntimeError("http.response.start was sent twice")
                self._response = h11.Response(status_code=message["status"], headers=_headers(message))
                await trio.lowlevel.checkpoint()
            elif kind == "http.response.body":
                await self._send_body(message.get("body", b""), message.get("more_body", False))
            else:
                raise RuntimeError(f"{kind!r} is not a message of an HTTP answer")

    async def _send_body(self, body: Any, more: bool) -> None:
        if self._response is None:
            raise RuntimeError("http.response.body came before http.response.start")
        if self._is_complete:
            raise RuntimeError("the answer is already complete")
        if self._is_client_gone:
            raise ClientDisconnected("the client went away")
        http, out = self._wire.http, []
        if not self._head_sent:
            out.append(http.send(self._response) or b"")
            self._head_sent = True
        if body and not self._is_head and self._response.status_code not in (204, 304):
            out += http.send_with_data_passthrough(h11.Data(data=body)) or []
        if not more:
            out.append(http.send(h11.EndOfMessage()) or b"")
        try:
            await self._wire.write(out[0] if len(out) == 1 else b"".join(out))
        except ClientDisconnected:
            self._is_client_gone = True
            raise
        if not more:
            self._is_complete = True
            if self._listening is not None:
                self._listening.cancel()


def _headers(message: Message) -> list[tuple[bytes, bytes]]:
    headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
    if not any(name.lower() == b"date" for name, _ in headers):
        headers.append((b"date", formatdate(usegmt=True).encode()))
    return headers


def abort(stream: Any) -> None:
    """Reset the connection under whatever wraps it."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    stream.abort()
