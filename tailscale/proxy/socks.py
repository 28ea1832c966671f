"""One SOCKS 5 client, from its greeting to the last byte. The bytes are `ts_proxy/socks5.py`'s. RFC 1928, RFC 1929.

No reply says that a connection is there before it is.
"""

from __future__ import annotations

import logging

from tailscale.carry import reset
from tailscale.proxy.ends import local_address
from tailscale.proxy.outcomes import ClientGone
from tailscale.proxy.relay import say_goodbye
from tailscale.proxy.requests import Request
from tailscale.proxy.service import NOBODY, Client, Service
from ts_base.errors import BadPacket
from ts_proxy.socks5 import UNSPECIFIED, Command, Credentials, Reply, Socks5Server, SocksRequest

log = logging.getLogger("tailscale.proxy")


async def converse(service: Service, client: Client, deadline: float) -> None:
    """Negotiate until `deadline`, then do what was asked for."""
    machine = Socks5Server(needs_user=service.doorkeeper.asks)
    request: Request | None = None
    with service.places.quiet(deadline):
        request = await _negotiate(service, client, machine)
    if request is None:
        return
    try:
        if request.kind == "udp":
            from tailscale.proxy.udp_relay import associate  # most clients want TCP

            await associate(service, client, machine, request)
            return
        far = await service.connect(client, request)
    except ClientGone:
        raise
    except Exception as problem:
        machine.reply(service.fail(problem, request).reply)
        await client.send(machine.transmit())
        await say_goodbye(client.stream)
        return
    machine.reply(Reply.SUCCEEDED, local_address(far) or UNSPECIFIED)
    try:
        await client.send(machine.transmit())
    except BaseException:
        await reset(far)
        raise
    await service.relay.carry(client.stream, far, client.take())


async def _negotiate(service: Service, client: Client, machine: Socks5Server) -> Request | None:
    """What the client wants; None once it has been told that it will not get it."""
    who = NOBODY
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
                return client.request(
                    "socks" if event.command is Command.CONNECT else "udp", *event.destination, who=who
                )
            await client.more()
    except BadPacket as problem:
        service.drops["proxy.socks_malformed"] += 1
        log.debug("a SOCKS client was not understood: %s", problem)
    await client.send(machine.transmit())
    await say_goodbye(client.stream)
    return None
