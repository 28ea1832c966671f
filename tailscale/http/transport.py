"""httpx over the tailnet: `httpx.AsyncClient(transport=AsyncTransport(device))`.

One pool of httpcore connections whose network is the device. The same transport serves httpx and httpx2: which of the
two asks is seen from the request. Owns the translation between the two layers' words, nothing else.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, cast

import httpx

from tailscale.errors import WrongFace
from tailscale.http.backend import TailnetBackend
from tailscale.http.sync_backend import SyncTailnetBackend

if TYPE_CHECKING:
    from typing import Unpack

    from tailscale.aio import Device as AioDevice
    from tailscale.device import Device
    from tailscale.sync import Device as SyncDevice

DEFAULT_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)


class _Library:
    """httpx over httpcore, or httpx2 over httpcore2."""

    def __init__(self, name: str) -> None:
        self.httpx: Any = import_module(name)
        self.httpcore: Any = import_module(name.replace("httpx", "httpcore"))
        self.async_stream = type("TailnetByteStream", (_AsyncBody, self.httpx.AsyncByteStream), {})
        self.sync_stream = type("TailnetByteStream", (_Body, self.httpx.SyncByteStream), {})

    @contextmanager
    def errors(self) -> Iterator[None]:
        """httpcore's exceptions become those of the same name in httpx."""
        try:
            yield
        except Exception as error:
            for kind in type(error).__mro__:
                theirs = getattr(self.httpx, kind.__name__, None)
                if kind.__module__.startswith(self.httpcore.__name__) and theirs is not None:
                    cause = error.__cause__ or error.__context__  # the pool hides it with `from None`
                    raise theirs(str(error)) from (cause if isinstance(cause, OSError) else error)
            raise

    def request(self, request: Any) -> Any:
        url = request.url
        return self.httpcore.Request(
            method=request.method,
            url=self.httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )

    def response(self, response: Any, stream: Any) -> Any:
        return self.httpx.Response(
            status_code=response.status, headers=response.headers, stream=stream, extensions=response.extensions
        )


class _AsyncBody:
    def __init__(self, stream: Any, library: _Library) -> None:
        self._stream, self._library = stream, library

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._library.errors():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        with self._library.errors():
            await self._stream.aclose()


class _Body:
    def __init__(self, stream: Any, library: _Library) -> None:
        self._stream, self._library = stream, library

    def __iter__(self) -> Iterator[bytes]:
        with self._library.errors():
            yield from self._stream

    def close(self) -> None:
        with self._library.errors():
            self._stream.close()


@cache
def _library(name: str) -> _Library:
    return _Library(name)


def _library_of(request: object) -> _Library:
    return _library(type(request).__module__.partition(".")[0])


class PoolOptions(TypedDict, total=False):
    """What both transports take, with the meaning it has in httpx's own."""

    verify: ssl.SSLContext | bool
    """True unless given: certificates are checked as httpx does."""
    http1: bool
    """True unless given."""
    http2: bool
    """False unless given."""
    limits: httpx.Limits
    """100 connections, 20 of them kept alive, unless given."""
    retries: int
    """0 unless given: how often a failed dial is tried again."""


class _Pools:
    """The pools of one transport: usually one."""

    def __init__(
        self,
        backend: Any,
        pool: str,
        device: object,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = DEFAULT_LIMITS,
        retries: int = 0,
    ) -> None:
        self._make_backend = backend
        self._pool_class = pool
        self._device = device
        self._options = {
            "ssl_context": verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify),
            "max_connections": limits.max_connections,
            "max_keepalive_connections": limits.max_keepalive_connections,
            "keepalive_expiry": limits.keepalive_expiry,
            "http1": http1,
            "http2": http2,
            "retries": retries,
        }
        self._open: dict[_Library, Any] = {}

    def of(self, library: _Library) -> Any:
        if library not in self._open:
            backend = self._make_backend(self._device, library.httpcore)
            pool = getattr(library.httpcore, self._pool_class)
            self._open[library] = pool(network_backend=backend, **self._options)
        return self._open[library]

    def take_all(self) -> list[Any]:
        pools, self._open = list(self._open.values()), {}
        return pools


def _asyncio_backend() -> Any:
    from tailscale.http.aio_backend import AsyncioTailnetBackend  # only asyncio programs pay for asyncio

    return AsyncioTailnetBackend


def _check_device(device: object, is_blocking: bool, takes: str) -> None:
    """Now, rather than by what is missing in the middle of a request. Only the Device for threads has `connect`."""
    if not hasattr(device, "tcp_connect") or hasattr(device, "connect") is not is_blocking:
        given = f"{type(device).__module__}.{type(device).__qualname__}"
        raise WrongFace(f"{takes}, not a {given}: AsyncTransport is for httpx.AsyncClient, Transport for httpx.Client")


class AsyncTransport(httpx.AsyncBaseTransport):
    """Let an httpx (or httpx2) client reach the tailnet: under trio, or under asyncio with a `tailscale.aio.Device`.

    ```python
    async with httpx.AsyncClient(transport=AsyncTransport(device)) as client:
        response = await client.get("http://db:8000/")
    ```

    Names and addresses the tailnet knows or routes go through it; others use the machine's own network, unless an exit
    node is set. Proxy settings of the environment do not apply.
    """

    def __init__(self, device: Device | AioDevice, **options: Unpack[PoolOptions]) -> None:
        _check_device(device, False, "AsyncTransport takes a tailscale.Device or tailscale.aio.Device")
        backend = _asyncio_backend() if hasattr(device, "open_connection") else TailnetBackend
        self._pools = _Pools(backend, "AsyncConnectionPool", device, **options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        library = _library_of(request)
        with library.errors():
            response = await self._pools.of(library).handle_async_request(library.request(request))
        return cast("httpx.Response", library.response(response, library.async_stream(response.stream, library)))

    async def aclose(self) -> None:
        for pool in self._pools.take_all():
            await pool.aclose()

    def __enter__(self) -> NoReturn:
        raise WrongFace(
            "httpx.Client takes a Transport over a tailscale.sync.Device; AsyncTransport is for httpx.AsyncClient"
        )

    def handle_request(self, request: httpx.Request) -> NoReturn:
        self.__enter__()


class Transport(httpx.BaseTransport):
    """The same for `httpx.Client` in plain threads, over a `tailscale.sync.Device`."""

    def __init__(self, device: SyncDevice, **options: Unpack[PoolOptions]) -> None:
        _check_device(device, True, "Transport takes a tailscale.sync.Device")
        self._pools = _Pools(SyncTailnetBackend, "ConnectionPool", device, **options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        library = _library_of(request)
        with library.errors():
            response = self._pools.of(library).handle_request(library.request(request))
        return cast("httpx.Response", library.response(response, library.sync_stream(response.stream, library)))

    def close(self) -> None:
        for pool in self._pools.take_all():
            pool.close()

    async def __aenter__(self) -> NoReturn:
        raise WrongFace("httpx.AsyncClient takes an AsyncTransport; Transport is for httpx.Client")

    async def handle_async_request(self, request: httpx.Request) -> NoReturn:
        await self.__aenter__()
