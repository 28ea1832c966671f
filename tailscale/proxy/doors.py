"""Where a proxy is reached: which listeners `listen=` means, what they are called, and who may stand there.

A door beyond this machine is opened only with users: an open proxy is found within hours, and used. On the tailnet
callers are nodes, which the tailnet's policy has let in.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from tailscale.carry import Stream
from tailscale.sockets.local import LocalStream
from tailscale.sockets.tcp import TcpListener, TcpStream
from ts_base.ip import is_loopback, maybe_address

if TYPE_CHECKING:
    from tailscale.device import Device

Listener = trio.abc.Listener[Any]
Address = tuple[str, int]

TAILNET = "tailnet"
ANY_PORT_HERE = "127.0.0.1:0"
BACKLOG = 1024
NOWHERE = ("", 0)


class Caller(NamedTuple):
    """Who came through a door."""

    stream: Stream
    address: Address
    door: Address
    """Our end."""


async def open_doors(device: Device, listen: str | Listener | None, *, has_users: bool) -> list[Listener]:
    """What `serve` listens at. ValueError for what is no place, and for one that needs users."""
    if listen is None:
        listen = ANY_PORT_HERE
    if not isinstance(listen, str):
        _check_privacy([listen], has_users)
        return [listen]
    host, port = read_place(listen)
    if host == TAILNET:
        return [await device.listen(port)]
    if not has_users and not _is_private(host):
        raise ValueError(_needs_users(listen))
    listeners: list[Listener] = list(await trio.open_tcp_listeners(port, host=host or None, backlog=BACKLOG))
    try:
        _check_privacy(listeners, has_users)  # a name may lead anywhere
    except BaseException:
        await close_all(listeners)
        raise
    return listeners


async def close_all(listeners: list[Listener]) -> None:
    with trio.CancelScope(shield=True):
        for listener in listeners:
            await listener.aclose()


def read_place(text: str) -> Address:
    """`127.0.0.1:1080`, `[::1]:1080`, `tailnet:1080`; `:1080` is every address."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host) != ("[" in host):
        raise ValueError(f"{text!r} is no place to listen at: write 127.0.0.1:1080, [::1]:1080 or tailnet:1080")
    return host.strip("[]"), int(port)


def _is_private(host: str) -> bool:
    """Whether only this machine reaches it. Other names than localhost are looked up first."""
    address = maybe_address(host)
    return is_loopback(address) if address is not None else bool(host)


def _check_privacy(listeners: list[Listener], has_users: bool) -> None:
    for listener in listeners:
        if isinstance(listener, trio.SocketListener) and listener.socket.family != getattr(socket, "AF_UNIX", None):
            host, port = address_of(listener)
            if not has_users and not _is_private(host):
                raise ValueError(_needs_users(f"{host}:{port}"))


def _needs_users(where: str) -> str:
    return f"{where} can be reached by other machines, and a proxy there needs users=: give it some, or 127.0.0.1"


def address_of(listener: Listener) -> Address:
    """Address and port of a listener of any make; NOWHERE where it does not say."""
    if isinstance(listener, trio.SocketListener):
        return _of_name(listener.socket.getsockname())
    if isinstance(listener, TcpListener):
        return TAILNET, listener.port
    address: Address = getattr(listener, "address", NOWHERE)
    return address


def let_in(accepted: Any) -> Caller:
    """What a listener has accepted, as the conversations take it."""
    if isinstance(accepted, trio.SocketStream):
        here, there = accepted.socket.getsockname(), accepted.socket.getpeername()
        return Caller(LocalStream.adopt(accepted), _of_name(there), _of_name(here))
    if isinstance(accepted, TcpStream):
        return Caller(accepted, accepted.remote_address, accepted.local_address)
    return Caller(accepted, getattr(accepted, "remote_address", NOWHERE), getattr(accepted, "local_address", NOWHERE))


def _of_name(name: Any) -> Address:
    """A socket's name; that of a Unix socket is none of ours to tell."""
    return (str(name[0]).partition("%")[0], name[1]) if isinstance(name, tuple) else NOWHERE
