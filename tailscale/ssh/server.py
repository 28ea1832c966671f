"""The SSH server in the device's loop: connections of the tailnet in and out, limits, and rules that change meanwhile.

Owns who is connected. A connection's bytes cross to the thread that speaks SSH by a pair of sockets; what goes wrong
with one ends it and nothing else. Refuses to know the protocol.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.carry import LOST, reset
from tailscale.sockets.local import CHUNK, LocalStream
from tailscale.ssh.admission import Admission, Users
from tailscale.ssh.channels import Connection, Program, speak
from tailscale.ssh.host_keys import HostKey
from tailscale.ssh.loop import SshLoop

if TYPE_CHECKING:
    from tailscale.runtime.ssh_ground import SshGround
    from tailscale.sockets.tcp import TcpListener, TcpStream

log = logging.getLogger("tailscale.ssh")
CONNECTIONS_LIMIT, PEER_LIMIT = 256, 64  # in sum, and of one node: no node takes the places of all
STRANGERS_LIMIT, PEER_STRANGERS_LIMIT = 64, 16  # connections that have not logged in
GREETING_PATIENCE = 30.0  # until somebody tries to log in
PASSWORD_PATIENCE = 120.0  # from being let in until the password that a client wanted to be asked for
UNHEARD_LIMIT = 256 << 10  # bytes of a client that has not logged in: what comes waits for the login to be decided
FAREWELL = 30.0
KEEPALIVE = 72 * 3600.0
REVOKED = "Access revoked: the tailnet's policy no longer allows this session."
CONNECTIONS_FULL, STRANGERS_FULL = "ssh.connections_full", "ssh.logins_full"
PEER_FULL, PEER_STRANGERS_FULL = "ssh.peer_connections_full", "ssh.peer_logins_full"
NOT_OF_THE_TAILNET, SILENT, CHATTY = "ssh.not_of_the_tailnet", "ssh.no_login_in_time", "ssh.too_much_before_login"


class SshStatistics(NamedTuple):
    connections: int
    sessions: int
    drops: dict[str, int]


class Guest(NamedTuple):
    """Whose connection it is, and who decides about it."""

    node: int
    admission: Admission


class SshServer:
    """One per device and port."""

    def __init__(self, ground: SshGround, loop: SshLoop, key: HostKey, program: Program, users: Users) -> None:
        self._ground = ground
        self._loop = loop
        self._key = key
        self._program = program
        self._users = users
        self._served: dict[Connection, Guest] = {}
        self.drops: Counter[str] = Counter()

    def statistics(self) -> SshStatistics:
        sessions = sum(len(connection.sessions) for connection in self._served)
        return SshStatistics(len(self._served), sessions, dict(self.drops))

    async def run(self, listener: TcpListener, nursery: trio.Nursery) -> None:
        """Until cancelled."""
        nursery.start_soon(self._watch_rules)
        while True:
            stream = await listener.accept()
            found = self._ground.caller(stream.remote_address[0])
            reason = NOT_OF_THE_TAILNET if found is None else self._reason_against(found[0].number)
            if found is None or reason:
                self.drops[reason] += 1
                stream.abort()
                continue
            admission = Admission(self._ground, stream.remote_address, stream.local_address, self._users)
            connection = Connection(self._loop, nursery, admission, self._program, self.drops)
            self._served[connection] = Guest(found[0].number, admission)
            nursery.start_soon(self._serve, stream, connection)

    def _reason_against(self, node: int) -> str:
        """Why one more connection of that node has no place; "" where it has."""
        own = [connection for connection, guest in self._served.items() if guest.node == node]
        if len(own) >= PEER_LIMIT:
            return PEER_FULL
        if sum(not connection.has_logged_in for connection in own) >= PEER_STRANGERS_LIMIT:
            return PEER_STRANGERS_FULL
        if len(self._served) >= CONNECTIONS_LIMIT:
            return CONNECTIONS_FULL
        strangers = sum(not connection.has_logged_in for connection in self._served)
        return STRANGERS_FULL if strangers >= STRANGERS_LIMIT else ""

    async def _serve(self, stream: TcpStream, connection: Connection) -> None:
        stream.set_keepalive(KEEPALIVE)
        near, far = socket.socketpair()
        local = LocalStream(near)
        try:
            far.setblocking(False)
            async with trio.open_nursery() as both:
                both.start_soon(self._watch_login, connection, both.cancel_scope)
                both.start_soon(self._carry_in, stream, local, connection, both.cancel_scope)
                both.start_soon(self._carry_out, stream, local, both.cancel_scope)
                await self._loop.run(lambda: speak(far, self._key, connection))
                both.cancel_scope.deadline = trio.current_time() + FAREWELL  # for what it said last to be taken
        except Exception as problem:
            log.warning("an SSH connection failed: %r", problem)
        finally:
            del self._served[connection]
            local.abort()
            with trio.CancelScope(shield=True):
                await reset(stream)

    async def _watch_login(self, connection: Connection, both: trio.CancelScope) -> None:
        """A login that is held has a patience of its own; everything before and after it is the client's to do."""
        await trio.sleep(GREETING_PATIENCE)
        if connection.has_begun:
            await connection.is_decided.wait()
            await trio.sleep(PASSWORD_PATIENCE)
        if not connection.has_logged_in:
            self.drops[SILENT] += 1
            both.cancel()

    async def _carry_in(
        self, stream: TcpStream, local: LocalStream, connection: Connection, both: trio.CancelScope
    ) -> None:
        unheard = 0
        try:
            while data := await stream.receive_some(CHUNK):
                if not connection.has_logged_in:
                    unheard += len(data)
                    if unheard > UNHEARD_LIMIT:
                        self.drops[CHATTY] += 1
                        both.cancel()
                        return
                try:
                    await local.send_all(data)
                except LOST:
                    return  # we have hung up: what was said last is still on its way out
            with contextlib.suppress(*LOST):
                await local.send_eof()
        except LOST:
            both.cancel()

    async def _carry_out(self, stream: TcpStream, local: LocalStream, both: trio.CancelScope) -> None:
        with contextlib.suppress(*LOST):
            while data := await local.receive_some(CHUNK):
                await stream.send_all(data)
            await stream.aclose()
        both.cancel()

    async def _watch_rules(self) -> None:
        """Sessions that the rules no longer allow are ended, and so are logins that were decided by older ones."""
        async for _ in self._ground.changes():
            self._ground.show_usability()
            for connection, guest in list(self._served.items()):
                who = connection.who
                if who is not None and not guest.admission.is_still_valid(who.local_user):
                    self._loop.call_soon(connection.terminate, REVOKED)
