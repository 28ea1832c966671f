"""Pass requests on to a web server of this machine that shall know who calls: a proxy in front of it.

Owns the way to that server and what is added to heads and taken out of them. What passes is `passing.py`'s. Nothing
that a client says of itself arrives: neither a name of the tailnet's, nor an address or host that was forwarded.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import h11
import trio

from tailscale.carry import LOST, Splice, Stream, TlsEnd, reset
from tailscale.http.caller import OURS, identity_headers, plain_name
from tailscale.http.passing import Ending, Exchange, Upstream, WireClient
from tailscale.http1.asgi import ClientDisconnected, Headers, Scope
from tailscale.local_ports import DIAL_PATIENCE, UNREACHED, Target
from ts_proxy import http_rules

if TYPE_CHECKING:
    from tailscale.http.arrival import Arrival
    from tailscale.http1.wire import Wire
    from tailscale.sockets.local import LocalStream

log = logging.getLogger("tailscale.http")
PORTS = {"http": 80, "https": 443, "https+insecure": 443}
HANDSHAKE_PATIENCE = 10.0
SILENCE = 600.0  # of a server that is to answer, or is answering
NOT_THE_CLIENTS = (OURS, b"forwarded", b"x-real-ip", b"x-forwarded")  # and all that begin so


class ReverseProxy:
    """A web server of this machine in place of an app: `serve(ReverseProxy("http://127.0.0.1:3000"), device)`.

    The address is `http://HOST:PORT`, `https://`, `https+insecure://` (any certificate will do) or `unix:PATH`. The
    server gets requests and WebSockets with the Host that was asked for, `X-Forwarded-For`, `-Host` and `-Proto`, and
    for people `Tailscale-User-Login`; headers of these names that came from the client are taken out. Let nobody else
    reach that server: what it is told, anyone could say.

    ```python forever
    await tailscale.http.serve(tailscale.http.ReverseProxy("http://127.0.0.1:3000"), device)
    ```
    """

    def __init__(self, to: str) -> None:
        self.to = to
        self._path, self._place = "", ("", 0)
        self._is_secure, self._is_believed = False, False
        self._tls: ssl.SSLContext | None = None
        if to.startswith("unix:") and to != "unix:":
            self._path = to.removeprefix("unix:")
            return
        url = urlsplit(to)
        if url.scheme not in PORTS or not url.hostname or url.path not in ("", "/") or url.query or "@" in url.netloc:
            raise ValueError(f"{to!r} is no server to pass requests on to: write http://127.0.0.1:3000 or unix:/path")
        self._place = url.hostname, url.port or PORTS[url.scheme]
        self._is_secure, self._is_believed = url.scheme != "http", url.scheme == "https+insecure"

    def attend(self, owner: object, wire: Wire, arrival: Arrival) -> Attendance:
        """One client's connection to the device `owner`."""
        return Attendance(self, owner, wire, arrival)

    async def dial(self, owner: object, arrival: Arrival) -> Stream:
        """A connection to the server, which stands for that caller. Errors are of `UNREACHED`."""
        if self._path:
            with trio.fail_after(DIAL_PATIENCE):
                return await trio.open_unix_socket(self._path)
        stream = await Target(*self._place, owner).dial(arrival if arrival.is_tailnets else None)
        return stream if not self._is_secure else await self._secured(stream)

    async def _secured(self, stream: LocalStream) -> Stream:
        """TLS for the name in the address, which is the server's own, not the one that the client asks for."""
        if self._tls is None:
            self._tls = await trio.to_thread.run_sync(_believing, self._is_believed)
        secure = trio.SSLStream(stream, self._tls, server_hostname=self._place[0], https_compatible=True)
        try:
            with trio.fail_after(HANDSHAKE_PATIENCE):
                await secure.do_handshake()
        except BaseException:
            stream.abort()
            raise
        return TlsEnd(secure)


class Attendance:
    """Lives as long as a client's connection; so does the connection to the server, which carries nobody else's."""

    def __init__(self, proxy: ReverseProxy, owner: object, wire: Wire, arrival: Arrival) -> None:
        self._proxy, self._owner = proxy, owner
        self._wire, self._arrival = wire, arrival
        self._upstream: Upstream | None = None

    async def answer(self, request: h11.Request, target: bytes, head: Headers) -> bool:
        """Ask the server for `target` with `head`. Whether the connection can carry another request."""
        try:
            upstream = await self._reach()
        except UNREACHED as problem:
            log.warning("%s cannot be reached for a request: %s", self._proxy.to, problem)
            await self._refuse(request, 502, "the server behind this one cannot be reached")
            return False
        exchange = Exchange(
            WireClient(self._wire, is_modern=request.http_version == b"1.1"), upstream, uncounted, is_gateway=True
        )
        try:
            ending = await exchange.run(h11.Request(method=request.method, target=target, headers=head))
        except ClientDisconnected:
            raise
        except h11.RemoteProtocolError as problem:
            await self._refuse(request, problem.error_status_hint, str(problem))
            return False
        except Exception as problem:
            log.warning("%s broke off a request: %s", self._proxy.to, problem)
            await self._refuse(request, 502, "the server behind this one broke off")
            return False
        return await self._after(ending, upstream)

    async def _reach(self) -> Upstream:
        known, self._upstream = self._upstream, None
        if known is not None and known.is_alive:
            return known
        if known is not None:
            await reset(known.stream)
        stream = await self._proxy.dial(self._owner, self._arrival)
        return Upstream(stream, None, self._wire.limits.head, SILENCE)

    async def _after(self, ending: Ending, upstream: Upstream) -> bool:
        if ending is Ending.SWITCHED:
            await self._tunnel(upstream.stream)
            return False
        if ending is Ending.BROKEN:
            await reset(self._wire.stream)
            raise ClientDisconnected("the server broke off its answer: so was ours")
        if upstream.is_reusable:
            upstream.begin_again()
            self._upstream = upstream
        else:
            await upstream.stream.aclose()
        return ending is Ending.WHOLE

    async def _tunnel(self, far: Stream) -> None:
        """Another protocol from here on, to its end."""
        early = bytes(self._wire.http.trailing_data[0])
        stream: Any = self._wire.stream
        near = TlsEnd(stream) if isinstance(stream, trio.SSLStream) else stream
        try:
            if early:
                await far.send_all(early)
            await Splice(near, far).run()
        except LOST as problem:
            await reset(far)
            raise ClientDisconnected(str(problem)) from problem

    async def _refuse(self, request: h11.Request, status: int, sentence: str) -> None:
        await self._wire.refuse(status, sentence, has_body=request.method != b"HEAD")

    async def end(self) -> None:
        if self._upstream is not None:
            await reset(self._upstream.stream)


def _believing(anybody: bool) -> ssl.SSLContext:
    """What servers have to prove; `anybody` need prove nothing. Reads files."""
    context = ssl.create_default_context()
    if anybody:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def uncounted(**_: int) -> None:
    """Nobody asks a server how many bytes it passed on."""


def target_of(scope: Scope) -> bytes:
    """The request target, as it came."""
    query: bytes = scope["query_string"]
    return bytes(scope["raw_path"]) + (b"?" + query if query else b"")


def head_for_server(scope: Scope, *, is_modern: bool) -> Headers:
    """What a server behind us is told, in place of what the client says of the way it came."""
    came: Headers = scope["headers"]
    kept = [(name, value) for name, value in came if not plain_name(name).startswith(NOT_THE_CLIENTS)]
    head = http_rules.relayed_head(kept, is_modern=is_modern)  # takes out what Connection names: ours comes after it
    head += identity_headers(scope["extensions"].get("tailscale"))
    head += [(b"x-forwarded-host", value) for name, value in came if name == b"host"]
    scheme = b"https" if scope["scheme"] in ("https", "wss") else b"http"
    return [*head, (b"x-forwarded-for", scope["client"][0].encode()), (b"x-forwarded-proto", scheme)]
