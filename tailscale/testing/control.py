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

from tailscale.testing.http_front import Answer, Request, Upgrade, serve_http
from tailscale.testing.served_streams import ServedStreams
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
        self._streams = ServedStreams(server)

    @property
    def connections(self) -> int:
        return len(self._streams)

    def poke(self) -> None:
        """Let every connection with something to say say it, and look at the clock again."""
        self._streams.poke()

    async def run_timers(self) -> None:
        """Runs until cancelled."""
        await self._streams.run_timers()

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
            await self._streams.serve(stream, connection, connection, first)

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
