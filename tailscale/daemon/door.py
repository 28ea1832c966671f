"""The daemon's socket: connections, who may ask, and requests one after the other.

Owns the connections and their bounds. Parsing and answering is that of `tailscale.http`; what changes to another
protocol leaves HTTP here, with its bytes. Refuses what a browser sends, and hosts that are not this machine. Knows no
route.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

import h11
import trio

from tailscale.daemon.answering import Refused, Routes, status_of
from tailscale.daemon.transport import Asker, Transport
from tailscale.errors import TailscaleError
from tailscale.http1 import framing
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.exchange import HttpExchange
from tailscale.http1.limits import Limits
from tailscale.http1.requests import headers_of, next_request
from tailscale.http1.wire import Wire

log = logging.getLogger("tailscale.daemon")
CONNECTIONS = 512  # at once; more wait in the backlog of the socket
LIMITS = Limits(head=32 << 10, head_timeout=10.0, idle_timeout=300.0, stall_timeout=600.0)
FROM_BROWSERS = (b"origin", b"referer", b"sec-fetch-site")


class Changed(NamedTuple):
    """A connection that has left HTTP."""

    stream: trio.SocketStream
    first: bytes
    """What was sent ahead."""
    headers: dict[bytes, bytes]
    query: dict[str, str]
    switch: Callable[[dict[str, str]], Awaitable[None]]
    """Send 101 with these headers; nothing but bytes of the new protocol follows."""


Upgrade = Callable[[Changed], Awaitable[None]]
"""Takes over a connection. What it raises before it has switched is answered in HTTP."""


class DoorStatistics(NamedTuple):
    """What came in at the socket."""

    open: int
    requests: int
    refused: int


class Door:
    """One socket of a daemon."""

    def __init__(self, transport: Transport, routes: Routes) -> None:
        self._transport = transport
        self._routes = routes
        self._upgrades: dict[tuple[str, bytes], Upgrade] = {}
        self._places = trio.CapacityLimiter(CONNECTIONS)
        self._requests = self._refused = 0

    def add_upgrade(self, path: str, protocol: str, upgrade: Upgrade) -> None:
        """A POST that changes the protocol; only for writers."""
        self._upgrades[path, protocol.encode()] = upgrade

    def statistics(self) -> DoorStatistics:
        return DoorStatistics(int(self._places.borrowed_tokens), self._requests, self._refused)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        async with await self._transport.listen() as listener, trio.open_nursery() as nursery:
            try:
                task_status.started()
                while True:
                    await self._places.acquire_on_behalf_of(place := object())
                    try:
                        stream = await listener.accept()
                    except BaseException:
                        self._places.release_on_behalf_of(place)
                        raise
                    nursery.start_soon(self._serve, stream, place)
            finally:
                self._transport.leave()

    async def _serve(self, stream: trio.SocketStream, place: object) -> None:
        wire = Wire(_Abortable(stream), LIMITS)
        try:
            while (request := await next_request(wire, set())) is not None:
                self._requests += 1
                if not await self._answer(wire, stream, request):
                    await wire.finish()
                    return
                wire.http.start_next_cycle()
        except (
            ClientDisconnected,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            h11.RemoteProtocolError,
        ) as gone:
            log.debug("a client of the daemon: %r", gone)
        except Exception:
            log.exception("a connection to the daemon failed")
        finally:
            self._places.release_on_behalf_of(place)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _answer(self, wire: Wire, stream: trio.SocketStream, request: h11.Request) -> bool:
        """Whether the connection can carry another request."""
        target = framing.read_target(request.method, request.target)
        assert target is not None, "a request without one was refused"
        headers = dict(headers_of(request, target))
        try:
            asker = self._admit(stream, headers)
        except Refused as error:
            self._refused += 1
            await wire.refuse(error.status, str(error), has_body=request.method != b"HEAD")
            return False
        path = unquote(target.path.decode("latin-1"))
        upgrade = self._upgrades.get((path, headers.get(b"upgrade", b"").lower()))
        if upgrade is not None and request.method == b"POST":
            await self._change(wire, stream, headers, target.query, asker, upgrade)
            return False
        scope = {
            "type": "http",
            "method": request.method.decode(),
            "path": path,
            "query_string": target.query,
            "headers": headers,
            "asker": asker,
        }
        return await HttpExchange(wire, request, scope).run(self._routes)

    def _admit(self, stream: trio.SocketStream, headers: dict[bytes, bytes]) -> Asker:
        """Before anything is looked up: no page in a browser may ask, whatever name it was led here by."""
        if any(name in headers for name in FROM_BROWSERS):
            raise Refused(403, "this is not for browsers")
        if not self._transport.is_host(headers.get(b"host", b"").lower()):
            raise Refused(403, "the Host header names another machine")
        asker = self._transport.asker(stream, headers)
        if asker is None:
            raise Refused(401, "the token is missing or wrong")
        return asker

    async def _change(
        self,
        wire: Wire,
        stream: trio.SocketStream,
        headers: dict[bytes, bytes],
        query: bytes,
        asker: Asker,
        upgrade: Upgrade,
    ) -> None:
        has_changed = False

        async def switch(more: dict[str, str]) -> None:
            nonlocal has_changed
            has_changed = True
            answer = [("upgrade", headers[b"upgrade"].decode()), ("connection", "upgrade"), *more.items()]
            await wire.write(wire.http.send(h11.InformationalResponse(status_code=101, headers=answer)) or b"")

        if not asker.may_write:
            await wire.refuse(403, f"user {asker.uid} may not do that: the daemon belongs to another user")
            return
        while isinstance(event := await wire.next_event(LIMITS.head_timeout), h11.Data):
            pass  # a body would be of no use here
        assert isinstance(event, h11.EndOfMessage)
        asked = dict(parse_qsl(query.decode("latin-1")))
        try:
            await upgrade(Changed(stream, wire.http.trailing_data[0], headers, asked, switch))
        except (TailscaleError, OSError, ValueError) as error:
            if has_changed:
                raise ClientDisconnected(str(error)) from error
            await wire.refuse(status_of(error), str(error))


class _Abortable(trio.abc.Stream):
    """A socket that can be reset, which is how half an answer is told from a whole one."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        self._stream.socket.close()
