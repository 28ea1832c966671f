"""A proxy: one port that speaks SOCKS 5 and HTTP, and leads into the tailnet and out by its exits.

Owns the listeners, the clients and their end. What is said with a client is in `socks.py` and `http.py`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tailscale.proxy import doors, socks
from tailscale.proxy.attending import Attending
from tailscale.proxy.exits import NO_EXIT, Exits
from tailscale.proxy.gate import Allow, Gate
from tailscale.proxy.limits import ProxyLimits
from tailscale.proxy.outcomes import ClientGone
from tailscale.proxy.places import Places
from tailscale.proxy.relay import Relay, say_goodbye
from tailscale.proxy.service import Client, ProxyStatistics, Service
from tailscale.proxy.users import Doorkeeper, Users
from tailscale.sockets.tcp import TcpStream
from ts_base.errors import BadPacket
from ts_proxy.proxy_header import decode_proxy_header_untrusted
from ts_proxy.sniffing import SOCKS4_REFUSAL, Language, language_of

if TYPE_CHECKING:
    from tailscale.device import Device

log = logging.getLogger("tailscale.proxy")


async def serve(
    device: Device,
    listen: str | trio.abc.Listener[Any] | None = "127.0.0.1:1080",
    exits: Exits = NO_EXIT,
    *,
    users: Users | None = None,
    allow: Allow | None = None,
    limits: ProxyLimits | None = None,
    shutdown: trio.Event | None = None,
    task_status: trio.TaskStatus[Proxy] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a proxy until cancelled, or until `shutdown` is set and what is open has ended or had `limits.grace`.

    ```python forever
    await tailscale.proxy.serve(device, "tailnet:1080")
    ```

    One port speaks SOCKS 5 (TCP and UDP) and HTTP (CONNECT, and http URLs). What the tailnet has is reached over the
    tailnet; what is left goes by `exits`: `NO_EXIT` refuses it, `DIRECT` uses this machine's network, `Exits(...)` are
    exit nodes by policy.

    - `listen`: `host:port`, `tailnet:port`, or a listener; None picks a port of 127.0.0.1.
    - `users`: names and passwords, or a function of both that says whether they are right, which may be async. Beyond
      this machine and the tailnet there must be some.
    - `allow`: shown every `Request`, says whether it may be; may be async.

    Under `nursery.start` the value is a `Proxy`: its address, its `statistics()`.
    """
    limits = limits if limits is not None else ProxyLimits()
    shutdown = trio.Event() if shutdown is None else shutdown
    doorkeeper = Doorkeeper(users)
    exits = exits.on(device)
    listeners = await doors.open_doors(device, listen, has_users=doorkeeper.asks)
    try:
        proxy = Proxy(listeners, Gate(device, exits, allow, limits, listeners), doorkeeper, limits)
        with device.include("proxy", proxy):
            await proxy.run(shutdown, task_status)
    finally:
        await doors.close_all(listeners)


class Proxy:
    """A proxy that is being served."""

    def __init__(
        self, listeners: list[doors.Listener], gate: Gate, doorkeeper: Doorkeeper, limits: ProxyLimits
    ) -> None:
        self._listeners = listeners
        self._limits = limits
        self._service = Service(gate, doorkeeper, Places(limits.clients), Relay(limits.idle), limits)
        self.address: tuple[str, int] = doors.address_of(listeners[0])
        """Where it listens: an address and a port, or "tailnet" and a port."""
        self._is_stopping = False

    @property
    def host(self) -> str:
        """The address, or "tailnet"."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The port, also when 0 was asked for."""
        return self.address[1]

    def statistics(self) -> ProxyStatistics:
        """Clients, requests, failures and bytes so far."""
        return self._service.statistics()

    def __repr__(self) -> str:
        return f"<Proxy at {self.host}:{self.port}, {self._service.places.open} clients>"

    # How it runs

    @trio.lowlevel.enable_ki_protection
    async def run(self, shutdown: trio.Event, task_status: trio.TaskStatus[Proxy]) -> None:
        attending = Attending(
            self._listeners, self._attend, "the proxy", log, self._service.say_once, gone=(ClientGone,)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._service.relay.end_the_idle)
            nursery.start_soon(self._service.dials.run, nursery)
            started = partial(task_status.started, self)
            await attending.run(shutdown, self._limits.grace, started, self._service.places.close)
            nursery.cancel_scope.cancel()

    async def _attend(self, caller: doors.Caller) -> None:
        with self._service.places.one() as is_welcome:
            if is_welcome is not None:
                peer = caller.stream.peer if isinstance(caller.stream, TcpStream) else None
                await self._converse(Client(caller.stream, caller.address, caller.door, peer, is_welcome))

    async def _converse(self, client: Client) -> None:
        service = self._service
        language: Language | None = None
        asked: socks.Asked | None = None
        with service.places.quiet(trio.current_time() + self._limits.handshake):
            if self._limits.proxy_protocol:
                await _believe_header(client)
            while not client.early:
                await client.more()
            if service.relay.has_dialled(client.address):
                service.drops["proxy.looped"] += 1
                service.say_once("a connection of the proxy at port %d led back to it, and was ended", self.port)
                raise ClientGone
            language = language_of(client.early[0])
            if language is Language.SOCKS5:
                asked = await socks.negotiate(service, client)
        if asked is not None:
            await socks.fulfil(service, client, asked)
        elif language is Language.HTTP:
            from tailscale.proxy import http  # h11 is loaded for those who speak HTTP

            await http.converse(service, client)
        elif language is not None and language is not Language.SOCKS5:
            await self._refuse(client, language)

    async def _refuse(self, client: Client, language: Language) -> None:
        self._service.drops["proxy.unknown_language"] += 1
        self._service.say_once(
            "a client of the proxy at port %d speaks %s: set SOCKS 5 or HTTP in it", self.port, language.value
        )
        if language is Language.SOCKS4:
            await client.send(SOCKS4_REFUSAL)
            await say_goodbye(client.stream)


async def _believe_header(client: Client) -> None:
    """Whom a load balancer speaks for. Who begins with anything else is hung up on."""
    while True:
        try:
            header = decode_proxy_header_untrusted(bytes(client.early))
        except BadPacket as problem:
            raise ClientGone(str(problem)) from None
        if header is not None:
            break
        await client.more()
    del client.early[: header.length]
    client.address = header.source or client.address
