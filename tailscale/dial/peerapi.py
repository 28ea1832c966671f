"""A peer's own little HTTP server, asked from here: where it is, and whether it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tailscale.errors import NoRoute
from ts_base.errors import BadPacket
from ts_base.ip import format_address
from ts_control.http1 import Http1Client

if TYPE_CHECKING:
    from tailscale.dial.by_address import AddressDialer
    from ts_control import wire

PROTOCOLS = {4: "peerapi4", 16: "peerapi6"}  # what the port is announced as, by length of address
READ_SIZE = 64 << 10


def port_of(peer: wire.Node | None, address: bytes) -> int:
    """The port on one of a peer's addresses, as it announces it now; 0 for none."""
    if peer is None:
        return 0
    wanted = PROTOCOLS[len(address)]
    return next((service.port for service in peer.hostinfo.services if service.proto == wanted), 0)


def host_header(address: bytes, port: int) -> str:
    """What a request says of where it goes."""
    host = format_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def ping_peerapi(dialer: AddressDialer, address: bytes, host: str) -> tuple[float, int]:
    """Seconds from the SYN to the answer of HEAD, and the port. Waits for ever: the caller sets the deadline."""
    netmap = dialer.directory.netmap
    number = dialer.reach.peer_for(address)
    port = port_of(netmap.peers.get(number) if netmap is not None and number is not None else None, address)
    if not port:
        raise NoRoute(f"{host} offers no peer API")
    began = trio.current_time()
    http = Http1Client()
    async with await dialer.connect(address, host, port) as stream:
        try:
            await stream.send_all(
                http.request("HEAD", "/", [("Host", host_header(address, port)), ("Connection", "close")])
            )
            while http.receive_untrusted(bytes(await stream.receive_some(READ_SIZE))) is None:
                pass
        except (BadPacket, trio.BrokenResourceError) as problem:
            raise NoRoute(f"the peer API of {host} misbehaves: {problem}") from None
        return trio.current_time() - began, port
