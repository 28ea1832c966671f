"""The way to a control server: dials, asks for its key, upgrades, and hands out a connection that is ready.

Owns: which ports to try, and whose fault it is when nothing answers. Refuses to know: TCP, TLS and proxies
(`outside.py`), what is asked over the connection (`connection.py`), when to register or to poll again (`session.py`).
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from ts_base.errors import BadPacket
from ts_base.ip import maybe_address
from ts_base.keys import MachinePrivate, MachinePublic
from ts_control.connection import BROKEN, READ_SIZE, ControlConnection, reason_of
from ts_control.errors import ControlLost, NotControl
from ts_control.gojson import decode_json_untrusted
from ts_control.handshake import Initiator
from ts_control.http1 import Http1Client, check_upgrade_untrusted, is_web_page, upgrade_headers, words_of
from ts_control.location import (
    ControlAddress,
    answer_target_untrusted,
    base_path,
    is_local,
    parse_url,
    upgrade_locations,
)
from ts_control.outside import Dialer, Outside, exchange
from ts_control.record import ClientTransport
from ts_control.wire import CAPABILITY_VERSION
from ts_control.wire_register import ServerKeys

CONNECT_TIMEOUT = 9.0  # key, upgrade and handshake together; with the longest pause it keeps a reconnect under 30 s
PING_TIMEOUT = 15.0


class ControlClient:
    """How to reach one control server as one machine. Makes connections; holds none."""

    def __init__(
        self,
        url: str,
        network: Dialer,
        machine: MachinePrivate,
        *,
        tls: ssl.SSLContext | None = None,
        environment: Mapping[str, str] | None = None,
        version: int = CAPABILITY_VERSION,
    ) -> None:
        self.url = url
        self.version = version
        self._first = parse_url(url)
        self._base = base_path(url)
        self._network = network
        self._machine = machine
        self._outside = Outside(network, tls=tls, environment=environment)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ControlConnection]:
        """One connection, ready for requests. Raises ControlLost or NotControl."""
        with trio.move_on_after(CONNECT_TIMEOUT) as opening:
            stream, transport, rest = await self._open()
        if opening.cancelled_caught:
            raise ControlLost(f"the control server {self.url} did not answer within {CONNECT_TIMEOUT:.0f} s")
        connection = ControlConnection(stream, transport, self._first.authority, rest)
        problem: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.read)
                nursery.start_soon(connection.write)
                try:
                    yield connection
                except Exception as error:  # carried around the nursery, which would wrap it in a group
                    problem = error
                nursery.cancel_scope.cancel()
        finally:
            connection.fail("the connection was closed")
            with trio.CancelScope(shield=True):  # a cancellation must not take the place of what was raised
                await trio.aclose_forcefully(stream)
        if problem is not None:
            raise problem

    async def answer_ping(self, url: str, body: bytes | None = None) -> None:
        """Outside the control channel: `HEAD url`, the simplest answer to a ping request, or POST of a body."""
        where, path = answer_target_untrusted(url)
        with trio.fail_after(PING_TIMEOUT):
            stream = await self._outside.dial(where, await self._address_outside(where))
            try:
                headers = [("Host", where.authority), ("Connection", "close")]
                if body is not None:
                    headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
                method = "HEAD" if body is None else "POST"
                await exchange(stream, Http1Client(), method, path, headers, body or b"")
            finally:
                await trio.aclose_forcefully(stream)

    async def _address_outside(self, where: ControlAddress) -> str:
        """Where to dial for control's sake: at the machine it is on, or at a public address.

        Anywhere else it would have us knock at doors that are open to this machine and not to control. A name is
        looked up once and its address dialled, so that it cannot turn into another in between.
        """
        if where.host == self._first.host:
            return where.host
        addresses = await _addresses_of(where.host)
        if any(is_local(address) for address in addresses):
            if not set(addresses) <= set(await _addresses_of(self._first.host)):
                raise BadPacket(f"a ping request for {where.host_and_port}, which is none of control's business")
        return addresses[0]

    async def _open(self) -> tuple[trio.abc.Stream, ClientTransport, bytes]:
        stream = await self._outside.dial(self._first)
        try:
            http = Http1Client()
            key, can_continue = await self._fetch_key(stream, http)
            if can_continue:
                try:
                    return await self._upgrade(stream, http, self._first, key)
                except (ControlLost, BadPacket, *BROKEN) as problem:
                    first_problem: Exception = problem
            else:
                first_problem = ControlLost("the server keeps no connection alive")
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        await trio.aclose_forcefully(stream)
        return await self._open_again(key, first_problem)

    async def _open_again(
        self, key: MachinePublic, problem: Exception
    ) -> tuple[trio.abc.Stream, ClientTransport, bytes]:
        """The upgrade on connections of its own, everywhere it may work."""
        for where in upgrade_locations(self._first):
            try:
                stream = await self._outside.dial(where)
                try:
                    return await self._upgrade(stream, Http1Client(), where, key)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
            except (ControlLost, BadPacket, *BROKEN) as another:
                # The first way in says most about what is wrong.
                problem = problem if isinstance(problem, BadPacket) else another
        if isinstance(problem, BadPacket):
            raise NotControl(f"{self.url} does not speak the control protocol: {problem}") from None
        raise ControlLost(f"the control server {self.url} broke off: {problem}") from None

    async def _fetch_key(self, stream: trio.abc.Stream, http: Http1Client) -> tuple[MachinePublic, bool]:
        target = f"{self._base}/key?v={self.version}"
        try:
            try:
                reply = await exchange(stream, http, "GET", target, [("Host", self._first.authority)])
            except BROKEN as problem:
                raise ControlLost(f"{self.url} broke off when asked for its key: {reason_of(problem)}") from None
            if reply.status >= 500:
                raise ControlLost(f"{self.url} answered the key request with HTTP {reply.status}")
            if is_web_page(reply):
                raise NotControl(
                    f"a web server answered at {self.url}, not a control server (HTTP {reply.status} for its key)"
                )
            if reply.status != 200:
                raise NotControl(f"{self.url} answered the key request with HTTP {reply.status}{words_of(reply)}")
            keys = decode_json_untrusted(ServerKeys, reply.body)
        except BadPacket as problem:
            raise NotControl(f"{self.url} is not a coordination server: {problem}") from None
        if keys.public_key.is_zero:
            raise NotControl(f"{self.url} is too old: it has no key for this protocol")
        return keys.public_key, reply.can_continue

    async def _upgrade(
        self, stream: trio.abc.Stream, http: Http1Client, where: ControlAddress, key: MachinePublic
    ) -> tuple[trio.abc.Stream, ClientTransport, bytes]:
        initiator = Initiator(self._machine, key, self.version, entropy=self._network.entropy)
        handshake = base64.b64encode(initiator.initiation).decode()
        headers = upgrade_headers(where.authority, handshake)
        reply = await exchange(stream, http, "POST", f"{self._base}/ts2021", headers)
        check_upgrade_untrusted(reply)
        transport = ClientTransport(initiator)
        rest = transport.receive_untrusted(reply.rest)
        while not transport.is_established:
            data = await stream.receive_some(READ_SIZE)
            if not data:
                raise ControlLost("the server hung up in the middle of the handshake")
            rest += transport.receive_untrusted(bytes(data))
        return stream, transport, rest


async def _addresses_of(host: str) -> list[str]:
    if maybe_address(host) is not None:
        return [host]
    try:
        answers = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        raise ControlLost(f"{host} cannot be resolved: {problem}") from None
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))
