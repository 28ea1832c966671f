"""Dialling a relay node: TCP in both families, proxy, TLS, and the HTTP upgrade up to the first DERP byte.

Owns the streams up to there. Refuses to know who is believed (`trust.py`), frames, regions' fail-over and when to come
back. Rules: derp/derphttp/derphttp_client.go. TLS runs over memory buffers: trio's own stream hands out one
16 KiB record per task switch, this one all there are.
"""

from __future__ import annotations

import base64
import os
import ssl
import urllib.parse
from typing import Protocol

import h11
import trio

from ts_base.ip import format_address, maybe_address
from ts_derp.errors import RelayUnreachable
from ts_derp.regions import DEFAULT_HTTP_PORT, DEFAULT_PORT, RelayNode
from ts_derp.trust import Trust

DIAL_TIMEOUT = 1.5  # one node's TCP
FAMILY_STAGGER = 0.2
READ_SIZE = 256 << 10
RECORD_SIZE = 16 << 10


class Dialer(Protocol):
    """What of the outside world this file needs."""

    async def open_tcp(self, host: str, port: int) -> trio.abc.HalfCloseableStream: ...
    def wall_clock(self) -> float: ...


class ByteStream(Protocol):
    async def receive_some(self) -> bytes: ...
    async def send_all(self, data: bytes) -> None: ...
    async def aclose(self) -> None: ...


class PlainStream:
    """A raw stream read in large pieces."""

    def __init__(self, transport: trio.abc.Stream) -> None:
        self._transport = transport

    async def receive_some(self) -> bytes:
        return bytes(await self._transport.receive_some(READ_SIZE))

    async def send_all(self, data: bytes) -> None:
        await self._transport.send_all(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._transport)


class TlsStream:
    """TLS over memory buffers: one large read or write of the transport carries many records.

    Without a host name to expect it is the server's side.
    """

    def __init__(self, transport: PlainStream, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self._transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )

    async def do_handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return

    def certificate(self) -> bytes:
        return self._tls.getpeercert(binary_form=True) or b""

    async def receive_some(self) -> bytes:
        while not (data := self._drain()):
            if not await self._fill():
                return self._drain()
        return data

    def _drain(self) -> bytes:
        """Every record that is complete."""
        pieces: list[bytes] = []
        read = self._tls.read
        try:
            while piece := read(RECORD_SIZE):
                pieces.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        return b"".join(pieces)

    async def _fill(self) -> bool:
        data = await self._transport.receive_some()
        if not data:
            self._incoming.write_eof()
            return False
        self._incoming.write(data)
        return True

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._transport.send_all(self._outgoing.read())

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        await self._flush()

    async def aclose(self) -> None:
        await self._transport.aclose()


async def open_node(
    dialer: Dialer, node: RelayNode, trust: Trust, *, over_http: bool = False, proxy: str | None = None
) -> ByteStream:
    """TCP and TLS to one node, ready for HTTP. Raises OSError."""
    port = node.derp_port or (DEFAULT_HTTP_PORT if over_http else DEFAULT_PORT)
    with trio.move_on_after(DIAL_TIMEOUT) as dialling:
        transport = await _open_tcp(dialer, node, port, proxy)
    if dialling.cancelled_caught:
        raise RelayUnreachable(f"relay {node.host_name}:{port} did not answer within {DIAL_TIMEOUT} s")
    try:
        plain = PlainStream(transport)
        if proxy is not None:
            await _connect_through_proxy(plain, proxy, node.host_name, port)
        if over_http:
            return plain
        stream = TlsStream(plain, trust.context(node), node.host_name)
        await stream.do_handshake()
        trust.check(node, stream.certificate(), dialer.wall_clock())
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    return stream


async def _open_tcp(dialer: Dialer, node: RelayNode, port: int, proxy: str | None) -> trio.abc.HalfCloseableStream:
    if proxy is not None:
        target = urllib.parse.urlsplit(proxy)
        return await dialer.open_tcp(target.hostname or "", target.port or 80)
    hosts: list[str] = []
    for text in (node.ipv4, node.ipv6):
        address = maybe_address(text)
        if address is not None:
            hosts.append(format_address(address))
        elif not text and node.host_name not in hosts:
            hosts.append(node.host_name)
    if not hosts:
        raise RelayUnreachable(f"relay {node.host_name} has both address families switched off")
    return await _open_first(dialer, hosts, port)


async def _open_first(dialer: Dialer, hosts: list[str], port: int) -> trio.abc.HalfCloseableStream:
    """The first address that answers; the next one is tried after a while or as soon as one fails."""
    streams: list[trio.abc.HalfCloseableStream] = []
    errors: list[OSError] = []

    @trio.lowlevel.enable_ki_protection
    async def attempt(host: str, failed: trio.Event) -> None:
        try:
            stream = await dialer.open_tcp(host, port)
        except OSError as error:
            errors.append(error)
            failed.set()
        else:
            streams.append(stream)
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for host in hosts:
                failed = trio.Event()
                nursery.start_soon(attempt, host, failed)
                with trio.move_on_after(FAMILY_STAGGER):
                    await failed.wait()
    except BaseException:
        for stream in streams:
            await trio.aclose_forcefully(stream)
        raise
    for loser in streams[1:]:
        await trio.aclose_forcefully(loser)
    if not streams:
        raise errors[0]
    return streams[0]


async def _exchange(stream: ByteStream, request: h11.Request) -> tuple[h11.Response | h11.InformationalResponse, bytes]:
    """One HTTP request; returns the answer's head and what was read behind it."""
    http = h11.Connection(h11.CLIENT)
    await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some())
        elif isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            continue
        elif isinstance(event, h11.Response | h11.InformationalResponse):
            return event, http.trailing_data[0]
        else:
            raise RelayUnreachable("the relay hung up before it answered")


async def _connect_through_proxy(stream: ByteStream, proxy: str, host: str, port: int) -> None:
    target = urllib.parse.urlsplit(proxy)
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("Host", authority)]
    if target.username is not None:
        login = f"{urllib.parse.unquote(target.username)}:{urllib.parse.unquote(target.password or '')}"
        headers.append(("Proxy-Authorization", "Basic " + base64.b64encode(login.encode()).decode()))
    response, early = await _exchange(stream, h11.Request(method="CONNECT", target=authority, headers=headers))
    # We speak first on what is tunnelled, so anything already read did not come from the relay.
    if not 200 <= response.status_code < 300 or early:
        raise RelayUnreachable(f"proxy {target.hostname} answered CONNECT with {response.status_code}")


async def upgrade(stream: ByteStream, node: RelayNode, ideal_node: str = "") -> bytes:
    """Turn an HTTP stream into a DERP stream; returns the DERP bytes that were read with the answer."""
    headers = [("Host", node.host_name), ("Upgrade", "DERP"), ("Connection", "Upgrade")]
    if ideal_node:
        headers.append(("Ideal-Node", ideal_node))
    response, early = await _exchange(stream, h11.Request(method="GET", target="/derp", headers=headers))
    if response.status_code != 101:
        raise RelayUnreachable(f"relay {node.host_name} answered the upgrade with {response.status_code}")
    return early


def proxy_for(host: str) -> str | None:
    """The proxy the environment wants for TLS to `host` ($HTTPS_PROXY, $NO_PROXY)."""
    if not any(name.lower() == "https_proxy" for name in os.environ):
        return None
    import urllib.request  # with all of email and http.client: few environments name a proxy

    proxy = urllib.request.getproxies_environment().get("https")
    if not proxy or urllib.request.proxy_bypass_environment(host):  # type: ignore[attr-defined]
        return None
    return proxy if "://" in proxy else "http://" + proxy
