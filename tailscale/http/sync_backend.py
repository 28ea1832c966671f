"""Plain sockets of a `tailscale.sync.Device` in the shape httpcore's threaded pools want."""

from __future__ import annotations

import selectors
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailscale.sync import Device


@contextmanager
def _mapped(slow: type[Exception], broken: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise slow(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error


class SocketNetworkStream:
    """One connection of the pool."""

    def __init__(self, sock: socket.socket, library: Any) -> None:
        self._socket = sock
        self._library = library

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(self._library.ReadTimeout, self._library.ReadError):
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped(self._library.WriteTimeout, self._library.WriteError):
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> SocketNetworkStream:
        try:
            with _mapped(self._library.ConnectTimeout, self._library.ConnectError):
                self._socket.settimeout(timeout)
                return SocketNetworkStream(
                    ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._library
                )
        except Exception:
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        if info == "is_readable":
            return self._is_readable()
        return {
            "socket": lambda: self._socket,
            "client_addr": self._socket.getsockname,
            "server_addr": self._socket.getpeername,
        }.get(info, lambda: None)()

    def _is_readable(self) -> bool:
        if self._socket.fileno() < 0:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(0))


class SyncTailnetBackend:
    """What httpcore's threaded pools dial with."""

    def __init__(self, device: Device, library: Any) -> None:
        self._device = device
        self._library = library

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **of_kernel_sockets: Any
    ) -> SocketNetworkStream:
        with _mapped(self._library.ConnectTimeout, self._library.ConnectError):
            return SocketNetworkStream(self._device.connect_anywhere(host, port, timeout=timeout), self._library)
