"""The way to places outside, control or not: TCP, the environment's proxy, TLS, and one HTTP request at a time.

Owns: whose fault it is when nothing answers. Refuses to know: what is asked, and of whom.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Protocol
from urllib.parse import urlsplit

import trio

from ts_base.errors import BadPacket
from ts_control.connection import BROKEN, READ_SIZE, reason_of
from ts_control.errors import ControlLost, NotControl
from ts_control.http1 import Http1Client, Reply
from ts_control.key_making import Ask
from ts_control.location import ControlAddress, Proxy, maybe_proxy, parse_url

DIAL_TIMEOUT = 5.0


class Dialer(Protocol):
    """What is asked of the machine's network."""

    async def open_tcp(self, host: str, port: int) -> trio.abc.HalfCloseableStream: ...
    def wall_clock(self) -> float: ...
    def entropy(self, length: int) -> bytes: ...


class Outside:
    """How this device reaches anybody by TCP."""

    def __init__(
        self, network: Dialer, *, tls: ssl.SSLContext | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._network = network
        self._tls = tls
        self._environment = environment or {}

    async def fetch(self, ask: Ask, timeout: float) -> Reply:
        """One request on a connection of its own, and its answer whatever it is: nothing is followed. Raises
        ControlLost, NotControl for a certificate nobody vouches for, or BadPacket; none of them shows the request.
        """
        parts = urlsplit(ask.url)
        where = parse_url(f"{parts.scheme}://{parts.netloc}")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [("Host", where.authority), *ask.headers, ("User-Agent", "pytailscale"), ("Connection", "close")]
        if ask.method != "GET":
            headers.append(("Content-Length", str(len(ask.body))))
        with trio.move_on_after(timeout) as patience:
            stream = await self.dial(where)
            try:
                return await exchange(stream, Http1Client(), ask.method, path, headers, ask.body)
            except BROKEN as problem:
                raise ControlLost(f"{where.host_and_port} broke off: {reason_of(problem)}") from None
            finally:
                await trio.aclose_forcefully(stream)
        assert patience.cancelled_caught
        raise ControlLost(f"{where.host_and_port} did not answer within {timeout:.0f} s")

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[KeptConnection]:
        """Several requests to one place, one after the other, on as few connections as it allows."""
        kept = KeptConnection(self)
        try:
            yield kept
        finally:
            await kept.drop()

    async def dial(self, where: ControlAddress, address: str = "") -> trio.abc.Stream:
        """`address` is where to find `where.host`, if it must not be looked up again."""
        proxy = maybe_proxy(where, self._environment)
        entry = proxy.location if proxy else ControlAddress(address or where.host, where.port, where.is_tls)
        try:
            with trio.fail_after(DIAL_TIMEOUT):
                stream: trio.abc.Stream = await self._network.open_tcp(entry.host, entry.port)
                try:
                    return await self._climb(stream, where, proxy)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
        except trio.TooSlowError:
            raise ControlLost(f"{entry.host_and_port} did not answer within {DIAL_TIMEOUT:.0f} s") from None
        except BROKEN as problem:
            sentence = f"cannot connect to {entry.host_and_port}: {reason_of(problem)}"
            if isinstance(problem.__cause__, ssl.SSLCertVerificationError):
                raise NotControl(sentence) from problem  # somebody answers, and waiting will not change who
            raise ControlLost(sentence) from problem

    async def _climb(self, stream: trio.abc.Stream, where: ControlAddress, proxy: Proxy | None) -> trio.abc.Stream:
        """Proxy and TLS on a fresh TCP stream."""
        if proxy:
            if proxy.location.is_tls:
                stream = self._wrap_tls(stream, proxy.location.host)
            headers = [("Host", where.host_and_port)]
            if proxy.authorization:
                headers.append(("Proxy-Authorization", proxy.authorization))
            try:
                reply = await exchange(stream, Http1Client(), "CONNECT", where.host_and_port, headers)
            except BadPacket as problem:
                raise ControlLost(f"the proxy {proxy.location.host_and_port} misbehaves: {problem}") from None
            if not 200 <= reply.status < 300:
                raise ControlLost(f"the proxy {proxy.location.host_and_port} answered CONNECT with {reply.status}")
        if where.is_tls:
            tls = self._wrap_tls(stream, where.host)
            await tls.do_handshake()
            return tls
        return stream

    def _wrap_tls(self, stream: trio.abc.Stream, host: str) -> trio.SSLStream[trio.abc.Stream]:
        if self._tls is None:
            self._tls = ssl.create_default_context()  # honours SSL_CERT_FILE; read once, it is slow
        return trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)


class KeptConnection:
    """A connection that carries the next request too, if it goes to the same place and the last answer allowed it."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._where: ControlAddress | None = None
        self._open: tuple[trio.abc.Stream, Http1Client] | None = None

    async def fetch(self, ask: Ask, timeout: float) -> Reply:
        """As `Outside.fetch`. A connection that was open and is dead by now is not the answer: a new one asks again."""
        parts = urlsplit(ask.url)
        where = parse_url(f"{parts.scheme}://{parts.netloc}")
        if where != self._where:
            await self.drop()
            self._where = where
        with trio.move_on_after(timeout) as patience:
            if self._open is not None:
                with suppress(*BROKEN, BadPacket):
                    return await self._exchange(ask, *self._open)
            try:
                stream = await self._outside.dial(where)
                return await self._exchange(ask, stream, Http1Client())
            except BROKEN as problem:
                raise ControlLost(f"{where.host_and_port} broke off: {reason_of(problem)}") from None
        assert patience.cancelled_caught
        raise ControlLost(f"{where.host_and_port} did not answer within {timeout:.0f} s")

    async def _exchange(self, ask: Ask, stream: trio.abc.Stream, http: Http1Client) -> Reply:
        assert self._where is not None
        parts = urlsplit(ask.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [("Host", self._where.authority), *ask.headers, ("User-Agent", "pytailscale")]
        if ask.method not in {"GET", "HEAD"}:
            headers.append(("Content-Length", str(len(ask.body))))
        self._open = stream, http
        try:
            reply = await exchange(stream, http, ask.method, path, headers, ask.body)
        except BaseException:
            await self.drop()
            raise
        if not reply.can_continue:
            await self.drop()
        return reply

    async def drop(self) -> None:
        """Nothing is told the other side: what was asked was answered."""
        opened, self._open = self._open, None
        if opened is not None:
            await trio.aclose_forcefully(opened[0])


async def exchange(
    stream: trio.abc.Stream,
    http: Http1Client,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes = b"",
) -> Reply:
    """One request and its whole answer on a stream that may carry more of them."""
    await stream.send_all(http.request(method, target, headers, body))
    while True:
        data = await stream.receive_some(READ_SIZE)
        try:
            reply = http.receive_untrusted(bytes(data))
        except BadPacket as problem:
            if data:
                raise
            raise trio.BrokenResourceError(str(problem)) from None
        if reply is not None:
            return reply
