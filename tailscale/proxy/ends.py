"""The two ends of a stream of any make, as addresses: trio's tell them by their socket, others by attributes."""

from __future__ import annotations

from typing import Any

import trio


def remote_host(stream: Any) -> str:
    """The address at the other end of a stream of any make; "" where it does not say."""
    if isinstance(stream, trio.SocketStream):
        return str(stream.socket.getpeername()[0]).partition("%")[0]
    return str(getattr(stream, "remote_address", ("",))[0])


def local_address(stream: Any) -> tuple[str, int] | None:
    """Our end of it."""
    if isinstance(stream, trio.SocketStream):
        host, port = stream.socket.getsockname()[:2]
        return str(host).partition("%")[0], port
    address: tuple[str, int] | None = getattr(stream, "local_address", None)
    return address
