"""The embedded coordination server on real or virtual streams.

Owns tasks, timers and the HTTP/1.1 front (`/key`, `/health`, `/ts2021`, the login page). What is said and decided is
`ts_control.server`'s; this file only moves bytes and time.
"""

from __future__ import annotations

import base64
import binascii
import html
from collections.abc import Callable

import trio

from tailscale.testing.http_front import READ_SIZE, Answer, Request, Upgrade, serve_http
from tailscale.testing.timekeeper import Timekeeper
from ts_base.errors import TailscaleError
from ts_control.server import ControlServer
from ts_control.server_connection import ServedConnection

PROTOCOL = "tailscale-control-protocol"
HANDSHAKE_HEADER = "x-tailscale-handshake"


class ControlService:
    """Serves one ControlServer. After calling any of the server's own methods, call `poke()`."""

    def __init__(self, server: ControlServer, *, entropy: Callable[[int], bytes]) -> None:
        self.server = server
        self._entropy = entropy
        self._wake: dict[ServedConnection, trio.Event] = {}
        self._timekeeper = Timekeeper(self.server, self.poke)

    @property
    def connections(self) -> int:
        return len(self._wake)

    def poke(self) -> None:
        """Let every connection with something to say say it, and look at the clock again."""
        for owner in self.server.take_ready():
            if isinstance(owner, ServedConnection) and owner in self._wake:
                self._wake[owner].set()
        self._timekeeper.look_again()

    async def run_timers(self) -> None:
        """Runs until cancelled."""
        await self._timekeeper.run()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """One client, from the first byte to the last."""
        await serve_http(stream, self._route)

    def _route(self, request: Request) -> Answer | Upgrade:
        if request.path == "/ts2021":
            return self._begin(request)
        if request.path == "/key":
            if not request.query.removeprefix("v=").isdigit():
                return Answer(400, b"the key request needs ?v=<version>")
            return Answer(200, self.server.keys_json(), "application/json")
        if request.path == "/health":
            return Answer(200, b'{"status":"pass"}', "application/json")
        if request.path == "/machine/ping-response":
            known = self.server.answer_ping(request.query.removeprefix("id="), b"", trio.current_time())
            return Answer(200 if known else 404)
        if request.path.startswith("/register/"):
            return self._login_page(request)
        return Answer(404, b"not found")

    def _begin(self, request: Request) -> Answer | Upgrade:
        if request.headers.get("upgrade", "").lower() != PROTOCOL:
            return Answer(400, b"missing or unknown next protocol")
        try:
            initiation = base64.b64decode(request.headers.get(HANDSHAKE_HEADER, ""), validate=True)
        except (binascii.Error, ValueError):
            initiation = b""
        if not initiation:
            return Answer(400, b"missing Tailscale handshake header")
        connection = ServedConnection(self.server, initiation, entropy=self._entropy)

        async def take_over(stream: trio.abc.Stream, first: bytes) -> None:
            await self._speak(stream, connection, first)

        return Upgrade(PROTOCOL, take_over)

    def _login_page(self, request: Request) -> Answer:
        """What a person sees who opens a login URL. The id in it cannot be guessed, which is all the door there is."""
        login_id = request.path.rpartition("/")[2]
        waiting = [login for login in self.server.pending_logins if login.id == login_id]
        if not waiting:
            return Answer(404, b"no such login is waiting")
        if request.method == "POST":
            try:
                self.server.approve_login(login_id, trio.current_time())
            except TailscaleError as problem:
                return Answer(409, str(problem).encode())
            self.poke()
            return Answer(200, b"Welcome. You may close this page.")
        info = waiting[0].request.hostinfo
        name = html.escape(info.hostname if info else "a device")
        page = f"<h1>Let {name} into the tailnet?</h1><form method=post><button>Yes</button></form>"
        return Answer(200, page.encode(), "text/html; charset=utf-8")

    async def _speak(self, stream: trio.abc.Stream, connection: ServedConnection, first: bytes) -> None:
        self._wake[connection] = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, stream, connection)
                data = first
                while not connection.closed:
                    if data:
                        connection.receive(data, trio.current_time())
                        self._wake[connection].set()
                        self.poke()
                    data = bytes(await stream.receive_some(READ_SIZE))
                    if not data:
                        break
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone; `finally` says so to the server
        finally:
            del self._wake[connection]
            connection.close(trio.current_time())
            self.poke()

    async def _write(self, stream: trio.abc.Stream, connection: ServedConnection) -> None:
        while True:
            data = connection.transmit(trio.current_time())
            if data:
                await stream.send_all(data)
                continue
            if connection.closed:
                await stream.aclose()  # wakes the reader
                return
            await self._wake[connection].wait()
            self._wake[connection] = trio.Event()
