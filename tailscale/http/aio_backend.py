"""asyncio streams of a `tailscale.aio.Device` in the shape httpcore wants, when httpx runs under asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tailscale._faces import nor_here

if TYPE_CHECKING:
    from tailscale.aio import Device


@asynccontextmanager
async def _mapped(timeout: float | None, slow: type[Exception], broken: type[Exception]) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise slow(str(error) or f"nothing happened within {timeout:g} s") from error
    except OSError as error:
        raise broken(str(error)) from error


class AsyncioNetworkStream:
    """One connection of the pool."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, library: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._library = library

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        async with _mapped(timeout, self._library.ReadTimeout, self._library.ReadError):
            return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        async with _mapped(timeout, self._library.WriteTimeout, self._library.WriteError):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncioNetworkStream:
        try:
            async with _mapped(timeout, self._library.ConnectTimeout, self._library.ConnectError):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._writer.get_extra_info(names.get(info, info))


class AsyncioTailnetBackend:
    """What httpcore's pools dial with under asyncio."""

    def __init__(self, device: Device, library: Any) -> None:
        self._device = device
        self._library = library

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **of_kernel_sockets: Any
    ) -> AsyncioNetworkStream:
        async with _mapped(timeout, self._library.ConnectTimeout, self._library.ConnectError):
            is_tailnet, destination = await self._device.way_to(host)
            if is_tailnet:
                return AsyncioNetworkStream(*await self._device.open_connection(destination, port), self._library)
            try:
                return AsyncioNetworkStream(*await asyncio.open_connection(destination, port), self._library)
            except socket.gaierror as error:
                raise nor_here(host, self._device.peers) or error from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
