"""One SOCKS 5 client, from its greeting to the last byte. The bytes are `ts_proxy/socks5.py`'s. RFC 1928, RFC 1929.

No reply says that a connection is there before it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import trio

from tailscale.carry import Stream, reset
from tailscale.proxy.datagrams import Datagrams, open_near
from tailscale.proxy.ends import local_address
from tailscale.proxy.outcomes import ClientGone
from tailscale.proxy.relay import say_goodbye
from tailscale.proxy.requests import Kind, Request
from tailscale.proxy.service import NOBODY, Client, Service
from tailscale.proxy.udp_relay import associate
from ts_base.errors import BadPacket
from ts_proxy.socks5 import UNSPECIFIED, Command, Credentials, Reply, Socks5Server, SocksRequest

T = TypeVar("T")

log = logging.getLogger("tailscale.proxy")


class Asked(NamedTuple):
    """What a client wants, and where the reply to that is made."""

    machine: Socks5Server
    request: Request


async def fulfil(service: Service, client: Client, asked: Asked) -> None:
    """Do what was asked for, to its end."""
    machine, request = asked
    if request.kind == "udp":
        near = await _or_told(service, client, asked, open_association)
        if near is not None:
            await _associate(service, client, machine, request, near)
    else:
        far = await _or_told(service, client, asked, Service.connect)
        if far is not None:
            await _carry(service, client, machine, far)


async def _or_told(
    service: Service, client: Client, asked: Asked, opening: Callable[[Service, Client, Request], Awaitable[T]]
) -> T | None:
    """What it opens; None once the client has been told why that failed."""
    machine, request = asked
    try:
        return await opening(service, client, request)
    except ClientGone:
        raise
    except Exception as problem:
        machine.reply(service.fail(problem, request).reply)
    await client.send(machine.transmit())
    await say_goodbye(client.stream)
    return None


async def open_association(service: Service, client: Client, request: Request) -> Datagrams:
    """The socket that its datagrams are taken at."""
    service.admit(client, request)
    return await open_near(service.gate, client)


async def _carry(service: Service, client: Client, machine: Socks5Server, far: Stream) -> None:
    machine.reply(Reply.SUCCEEDED, local_address(far) or UNSPECIFIED)
    try:
        await client.send(machine.transmit())
    except BaseException:
        await reset(far)
        raise
    await service.relay.carry(client.stream, far, client.take())


async def _associate(
    service: Service, client: Client, machine: Socks5Server, request: Request, near: Datagrams
) -> None:
    try:
        machine.reply(Reply.SUCCEEDED, near.local_address)
        await client.send(machine.transmit())
        await associate(service, client, request, near)
    finally:
        with trio.CancelScope(shield=True):
            await near.aclose()


async def negotiate(service: Service, client: Client) -> Asked | None:
    """What the client wants; None once it has been told that it will not get it."""
    machine, who = Socks5Server(needs_user=service.doorkeeper.asks), NOBODY
    try:
        while True:
            event = machine.receive(client.take())
            if isinstance(event, Credentials):
                known = await service.doorkeeper.let_in(*event)
                if known is None:
                    machine.reject()
                    break
                who = known
                machine.accept()
                event = machine.receive(b"")
            if out := machine.transmit():
                await client.send(out)
            if isinstance(event, SocksRequest):
                client.early += machine.take_rest()
                kind: Kind = "socks" if event.command is Command.CONNECT else "udp"
                return Asked(machine, client.request(kind, *event.destination, who=who))
            await client.more()
    except BadPacket as problem:
        service.drops["proxy.socks_malformed"] += 1
        log.debug("a SOCKS client was not understood: %s", problem)
    await client.send(machine.transmit())
    await say_goodbye(client.stream)
    return None
