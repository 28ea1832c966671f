"""aiohttp over the tailnet: `aiohttp.ClientSession(connector=AiohttpConnector(device))`.

Only where connections come from is ours: TLS, pools, timeouts and WebSockets stay aiohttp's. Uses what aiohttp
documents: `_create_connection` is for subclasses, and a resolver and a socket factory may be given. What was dialled is
found by these two in the context of the task that asked for it.
"""

from __future__ import annotations

import asyncio
import socket
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import aiohttp
import aiohttp.abc
from aiohttp.client_exceptions import ClientConnectorDNSError

from tailscale._faces import nor_here
from tailscale.errors import DeviceClosed, NameNotFound, WrongFace

if TYPE_CHECKING:
    from tailscale.aio import Device

_dialled: ContextVar[socket.socket | None] = ContextVar("_dialled", default=None)


class AiohttpConnector(aiohttp.TCPConnector):
    """Reaches the tailnet over a `tailscale.aio.Device`; other names go the machine's own way.

    ```python
    import aiohttp

    async with aiohttp.ClientSession(connector=AiohttpConnector(device)) as session:
        async with session.get("http://db:8000/") as answer:
            print(await answer.text())
    ```

    `options` are those of `aiohttp.TCPConnector`. A failure is aiohttp's own, and says what the device says.
    """

    def __init__(self, device: Device, **options: Any) -> None:
        if not hasattr(device, "open_connection"):
            given = f"{type(device).__module__}.{type(device).__qualname__}"
            raise WrongFace(f"AiohttpConnector takes a tailscale.aio.Device, not a {given}")
        self._device = device
        resolver = options.pop("resolver", None) or aiohttp.DefaultResolver()
        factory = options.pop("socket_factory", None)
        options.setdefault("use_dns_cache", False)  # whose a name is may change
        super().__init__(resolver=_Resolver(resolver), socket_factory=_socket_factory(factory), **options)

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        sock = await self._dial(req, timeout)
        if sock is None:
            return await self._create_other(req, traces, timeout)
        token = _dialled.set(sock)
        try:
            return await super()._create_connection(req, traces, timeout)
        except BaseException:
            sock.close()
            raise
        finally:
            _dialled.reset(token)

    async def _dial(self, req: Any, timeout: Any) -> socket.socket | None:
        """Connected across the tailnet; None for what is not there."""
        place = req.proxy or req.url
        try:
            is_tailnet, destination = await self._device.way_to(place.raw_host)
            if not is_tailnet:
                return None
            async with asyncio.timeout(timeout.sock_connect):
                return await self._device.socket(destination, place.port)
        except NameNotFound as unknown:
            raise ClientConnectorDNSError(req.connection_key, unknown) from unknown
        except OSError as problem:
            if problem.errno is None:  # asyncio's timeout, which aiohttp has a word for
                raise
            raise aiohttp.ClientConnectorError(req.connection_key, problem) from problem
        except DeviceClosed as closed:
            raise aiohttp.ClientConnectionError(str(closed)) from closed

    async def _create_other(self, req: Any, traces: Any, timeout: Any) -> Any:
        try:
            return await super()._create_connection(req, traces, timeout)
        except ClientConnectorDNSError as error:
            close = nor_here(error.host or "", self._device.peers)
            if close is None:
                raise
            raise ClientConnectorDNSError(req.connection_key, close) from error


class _Resolver(aiohttp.abc.AbstractResolver):
    """What was dialled needs no other address; other names are another resolver's."""

    def __init__(self, others: aiohttp.abc.AbstractResolver) -> None:
        self._others = others

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        sock = _dialled.get()
        if sock is None:
            return await self._others.resolve(host, port, family)
        address = sock.getpeername()[0]
        found = {"hostname": host, "host": address, "port": port, "family": family, "proto": 0}
        return [{**found, "flags": socket.AI_NUMERICHOST}]

    async def close(self) -> None:
        await self._others.close()


def _socket_factory(others: Any) -> Any:
    def make(info: Any) -> socket.socket:
        sock = _dialled.get()
        if sock is not None:
            return sock
        made: socket.socket = others(info) if others is not None else socket.socket(*info[:3])
        return made

    return make
