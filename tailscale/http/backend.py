"""Our streams in the shape httpcore wants, for httpcore and httpcore2 alike: they share the shape, not the exceptions.

`is_readable` is what tells the pool that an idle connection was closed by its server; without it every reuse after that
would fail.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from tailscale.sockets.tcp import TcpStream

if TYPE_CHECKING:
    from tailscale.device import Device

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@contextmanager
def _mapped(timeout: float | None, slow: type[Exception], broken: type[Exception]) -> Iterator[None]:
    try:
        with trio.fail_after(math.inf if timeout is None else timeout):
            yield
    except (trio.TooSlowError, TimeoutError) as error:
        raise slow(str(error) or f"nothing happened within {timeout:g} s") from error
    except BROKEN as error:
        raise broken(str(error)) from error


class TailnetNetworkStream:
    """One connection of the pool."""

    def __init__(self, stream: trio.abc.Stream, library: Any) -> None:
        self._stream = stream
        self._library = library

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(timeout, self._library.ReadTimeout, self._library.ReadError):
            return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _mapped(timeout, self._library.WriteTimeout, self._library.WriteError):
                await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> TailnetNetworkStream:
        stream = trio.SSLStream(self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True)
        try:
            with _mapped(timeout, self._library.ConnectTimeout, self._library.ConnectError):
                await stream.do_handshake()
        except Exception:
            await trio.aclose_forcefully(stream)
            raise
        return TailnetNetworkStream(stream, self._library)

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return getattr(self._stream, "_ssl_object", None)  # trio has no public name for it
        transport: Any = self._stream
        while isinstance(transport, trio.SSLStream):
            transport = transport.transport_stream
        if isinstance(transport, TcpStream):
            answers = {
                "client_addr": transport.local_address,
                "server_addr": transport.remote_address,
                "is_readable": transport.is_readable,
            }
            return answers.get(info)
        return _host_socket_info(getattr(transport, "socket", None), info)


def _host_socket_info(socket: Any, info: str) -> Any:
    if socket is None:
        return None
    if info == "socket":
        return socket
    if info == "is_readable":
        return socket.is_readable()
    names = {"client_addr": "getsockname", "server_addr": "getpeername"}
    return getattr(socket, names[info])() if info in names else None


class TailnetBackend:
    """What httpcore's pools dial with."""

    def __init__(self, device: Device, library: Any) -> None:
        self._device = device
        self._library = library

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **of_kernel_sockets: Any
    ) -> TailnetNetworkStream:
        with _mapped(timeout, self._library.ConnectTimeout, self._library.ConnectError):
            return TailnetNetworkStream(await self._device.connect_anywhere(host, port), self._library)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
