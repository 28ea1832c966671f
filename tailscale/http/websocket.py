"""One WebSocket, as ASGI sees it, over wsproto's machine.

A task of its own reads, so that pings are answered while the app is busy; what the app has not yet taken is bounded,
and beyond that the client waits. No compression: a few bytes must not become many megabytes.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tailscale.http1.asgi import AsgiApp, ClientDisconnected, Message, Scope
from tailscale.http1.wire import Wire
from tailscale.http1.wrong_loop import tell_failure

log = logging.getLogger("tailscale.http")
ABNORMAL, RESTARTING = 1006, 1012
MESSAGE_COST = 256  # what an empty message counts as against the bound


class WebSocketExchange:
    """Lives as long as the connection, which carries nothing else afterwards."""

    def __init__(self, wire: Wire, request: h11.Request, scope: Scope) -> None:
        self._wire = wire
        self._scope = scope
        self._machine = WSConnection(ConnectionType.SERVER)
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        self._machine.initiate_upgrade_connection(headers, request.target.decode("latin-1"))
        asked = next(e for e in self._machine.events() if isinstance(e, Request))
        scope["subprotocols"] = list(asked.subprotocols)
        self._inbox: deque[tuple[int, Message]] = deque([(0, {"type": "websocket.connect"})])
        self._inbox_bytes = 0
        self._frames: list[Any] = []
        self._frames_size = 0
        self._is_accepted = trio.Event()
        self._is_gone = False
        self._denial: Message | None = None
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self, app: AsgiApp) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            code = CloseReason.NORMAL_CLOSURE
            try:
                await app(self._scope, self.receive, self.send)
            except ClientDisconnected:
                pass
            except Exception as error:
                code = CloseReason.INTERNAL_ERROR
                if not self._is_gone:
                    tell_failure(log, error, f"the WebSocket {self._scope['path']}")
            await self._end(code)
            nursery.cancel_scope.cancel()

    async def _end(self, code: int) -> None:
        """What the app left open is closed; what it never accepted is refused."""
        try:
            if self._machine.state is ConnectionState.OPEN:
                await self._write(CloseConnection(code=code))
            elif self._machine.state is ConnectionState.CONNECTING and not self._is_gone:
                await self._write(RejectConnection(status_code=500 if code == CloseReason.INTERNAL_ERROR else 403))
        except (ClientDisconnected, LocalProtocolError):
            self._is_gone = True

    async def close(self) -> None:
        """The server is stopping."""
        if self._machine.state is ConnectionState.OPEN:
            await self._end(RESTARTING)
            self._deliver({"type": "websocket.disconnect", "code": RESTARTING, "reason": ""})

    # From the client

    async def _read(self) -> None:
        await self._is_accepted.wait()
        try:
            early = self._wire.http.trailing_data[0]
            if early:
                self._machine.receive_data(bytes(early))
                await self._take_events()
            while self._machine.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                data = await self._wire.read_some()
                if not data:
                    raise ClientDisconnected("the client hung up without closing the WebSocket")
                self._machine.receive_data(data)
                await self._take_events()
                while self._inbox_bytes > self._wire.limits.websocket_message:
                    await self._changed.park()
        except (ClientDisconnected, LocalProtocolError):
            self._lose(ABNORMAL, "")
        except RemoteProtocolError as error:
            await self._end(CloseReason.PROTOCOL_ERROR)
            self._lose(CloseReason.PROTOCOL_ERROR, str(error))

    async def _take_events(self) -> None:
        limit = self._wire.limits.websocket_message
        for event in self._machine.events():
            if isinstance(event, TextMessage | BytesMessage):
                if not self._collect(event, limit):
                    await self._end(CloseReason.MESSAGE_TOO_BIG)
                    self._lose(CloseReason.MESSAGE_TOO_BIG, "message too big")
                    return
            elif isinstance(event, Ping):
                await self._write(event.response())
            elif isinstance(event, CloseConnection):
                if self._machine.state is ConnectionState.REMOTE_CLOSING:
                    await self._write(event.response())
                else:
                    await self._end(event.code)  # wsproto's word for frames that make no sense
                self._lose(event.code, event.reason or "")

    def _collect(self, event: TextMessage | BytesMessage, limit: int) -> bool:
        """Join the frames of a message; False when it is too long."""
        self._frames.append(event.data)
        self._frames_size += len(event.data)
        if self._frames_size > limit:
            return False
        if event.message_finished:
            frames, size = self._frames, self._frames_size
            self._frames, self._frames_size = [], 0
            is_text = isinstance(event, TextMessage)
            data = "".join(frames) if is_text else b"".join(frames)
            self._deliver({"type": "websocket.receive", "text" if is_text else "bytes": data}, size)
        return True

    def _deliver(self, message: Message, size: int = 0) -> None:
        self._inbox.append((size + MESSAGE_COST, message))
        self._inbox_bytes += size + MESSAGE_COST
        self._changed.unpark_all()

    def _lose(self, code: int, reason: str) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._deliver({"type": "websocket.disconnect", "code": int(code), "reason": reason})

    # What the app calls

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self._is_gone:
                return {"type": "websocket.disconnect", "code": ABNORMAL, "reason": ""}
            await self._changed.park()
        size, message = self._inbox.popleft()
        self._inbox_bytes -= size
        self._changed.unpark_all()
        return message

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        kind = message["type"]
        if kind == "websocket.send":
            await self._send_message(message)
        elif kind == "websocket.accept":
            headers = [(bytes(n), bytes(v)) for n, v in message.get("headers", ())]
            await self._write(AcceptConnection(subprotocol=message.get("subprotocol"), extra_headers=headers))
            self._is_accepted.set()
        elif kind == "websocket.close":
            if self._machine.state is ConnectionState.CONNECTING:
                await self._write(RejectConnection(status_code=403))
            elif self._machine.state is ConnectionState.OPEN:
                await self._write(
                    CloseConnection(
                        code=message.get("code", CloseReason.NORMAL_CLOSURE), reason=message.get("reason") or ""
                    )
                )
        elif kind == "websocket.http.response.start":
            self._denial = message
        elif kind == "websocket.http.response.body":
            await self._deny(message)
        else:
            raise RuntimeError(f"{kind!r} is not a message of a WebSocket")

    async def _send_message(self, message: Message) -> None:
        if self._is_gone or self._machine.state is not ConnectionState.OPEN:
            raise ClientDisconnected("this WebSocket is closed")
        text, data = message.get("text"), message.get("bytes")
        await self._write(TextMessage(data=text) if text is not None else BytesMessage(data=bytes(data or b"")))

    async def _deny(self, message: Message) -> None:
        """An answer of the app's own instead of a WebSocket."""
        more = message.get("more_body", False)
        if self._denial is not None:
            head, self._denial = self._denial, None
            headers = [(bytes(n), bytes(v)) for n, v in head.get("headers", ())]
            await self._write(RejectConnection(status_code=head["status"], headers=headers, has_body=True))
        await self._write(RejectData(data=bytes(message.get("body", b"")), body_finished=not more))

    async def _write(self, event: Any) -> None:
        await self._wire.write(self._machine.send(event))
