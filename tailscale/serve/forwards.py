"""TCP ports that lead to servers of this machine: dialled when a caller is there, told who it is where asked.

Owns one connection at a time. Each end of one side is passed on while the other way lives on (stock nodes end both).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from tailscale.carry import LOST, Carried, Splice, Stream, TlsEnd, reset
from tailscale.local_ports import DIAL_PATIENCE, UNREACHED, Target
from tailscale.sockets.local import LocalStream
from ts_proxy.proxy_header import encode_proxy_header

if TYPE_CHECKING:
    import ssl

    from tailscale.device import Device
    from tailscale.http.arrival import Arrival
    from tailscale.serve.config import Json

log = logging.getLogger("tailscale.serve")
UNIX = "unix:"
HANDSHAKE_PATIENCE = 20.0  # with a caller


async def forward(
    device: Device, handler: Json, stream: Stream, tls: ssl.SSLContext | None, arrival: Arrival, carried: Carried
) -> None:
    """One caller, to its end. Nothing that either side does is raised."""
    to: str = handler["TCPForward"]
    try:
        if tls is not None:
            secure = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            with trio.fail_after(HANDSHAKE_PATIENCE):
                await secure.do_handshake()
            stream = TlsEnd(secure)
        server = await _dial(device, to, arrival)
    except (*UNREACHED, *LOST) as problem:
        log.warning("a caller of port %d could not be brought to %s: %s", arrival.local_address[1], to, problem)
        with trio.CancelScope(shield=True):
            await reset(stream)
        return
    try:
        if version := handler.get("ProxyProtocol") or 0:
            await server.send_all(_introduction(device, version, arrival, to))
        await Splice(server, stream, carried).run()
    except LOST as problem:
        log.debug("a connection to %s broke: %s", to, problem)


async def _dial(device: Device, to: str, arrival: Arrival) -> LocalStream:
    if to.startswith(UNIX):
        with trio.fail_after(DIAL_PATIENCE):
            return LocalStream.adopt(await trio.open_unix_socket(to.removeprefix(UNIX)))
    host, _, port = to.rpartition(":")
    return await Target(host.strip("[]"), int(port), device).dial(arrival if arrival.is_tailnets else None)


def _introduction(device: Device, version: int, arrival: Arrival, to: str) -> bytes:
    """A PROXY header as stock nodes write it: to our address of the caller's family, but to the server's own port."""
    is_v6 = ":" in arrival.remote_address[0]
    own = device.ipv6 if is_v6 else device.ipv4
    target = (own or ("::1" if is_v6 else "127.0.0.1"), int(to.rpartition(":")[2]))
    return encode_proxy_header(version, arrival.remote_address, target)
