"""Serve an ASGI app to programs of this machine, over loopback or a Unix socket: HTTP/1.1 without WebSockets.

Owns the connections. Who may call is the app's to say; what everybody is held to is here: a browser that was led to a
loopback address under another name is refused, so that no web page reads what is meant for this machine.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from urllib.parse import unquote

import h11
import trio

from tailscale.http1 import framing
from tailscale.http1.asgi import AsgiApp, ClientDisconnected, Scope
from tailscale.http1.exchange import HttpExchange
from tailscale.http1.limits import Limits
from tailscale.http1.requests import headers_of, next_request
from tailscale.http1.visits import Visit, Visits
from tailscale.http1.wire import Wire
from tailscale.sockets.local import LocalStream

log = logging.getLogger("tailscale.http")
LOCAL_LIMITS = Limits(connections=64, connections_per_peer=64, head=16 << 10, head_timeout=10.0, stall_timeout=15.0)


async def open_listeners(listen: str) -> list[trio.SocketListener]:
    """Listeners for "HOST:PORT"; every address that the host has, and no other."""
    host, port = split_listen(listen)
    return await trio.open_tcp_listeners(port, host=host)


def split_listen(listen: str) -> tuple[str, int]:
    """`127.0.0.1:9100`, `[::1]:9100` or `localhost:9100` in parts. A host must be named: nothing listens everywhere."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{listen!r} is not HOST:PORT, as in 127.0.0.1:9100")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def serve_local(app: AsgiApp, listeners: Sequence[trio.SocketListener], *, limits: Limits = LOCAL_LIMITS) -> None:
    """Answer until cancelled; the listeners are closed then."""
    visits = Visits()

    async def attend(accepted: trio.SocketStream) -> None:
        stream = LocalStream.adopt(accepted)
        visit = visits.admit("", stream.abort, limits)
        if visit is None:
            stream.abort()
            return
        try:
            await _Caller(app, stream, limits, visits, visit).run()
        finally:
            visits.leave(visit)

    await trio.serve_listeners(attend, list(listeners))


class _Caller:
    """One connection."""

    def __init__(self, app: AsgiApp, stream: LocalStream, limits: Limits, visits: Visits, visit: Visit) -> None:
        self._app, self._stream, self._limits = app, stream, limits
        self._visits, self._visit = visits, visit

    async def run(self) -> None:
        wire = Wire(self._stream, self._limits)
        try:
            while (request := await next_request(wire, set())) is not None:
                self._visits.on_request(self._visit)
                if problem := _misled(request):
                    await wire.refuse(*problem, has_body=request.method != b"HEAD")
                    break
                if not await HttpExchange(wire, request, _scope(request)).run(self._app):
                    break
                wire.http.start_next_cycle()
                self._visits.on_silence(self._visit)
            await wire.finish()
        except trio.Cancelled:
            self._stream.abort()  # so that nobody takes the half of an answer for the whole
            raise
        except (ClientDisconnected, OSError) as error:
            log.debug("a local caller: %r", error)
        except Exception:  # a mistake of ours costs this connection, not the others
            log.exception("a local connection failed")
        finally:
            with trio.CancelScope(shield=True):
                await self._stream.aclose()


def _misled(request: h11.Request) -> tuple[int, str] | None:
    """A page of the web can have its own name lead here (DNS rebinding): then the Host header gives it away."""
    target = framing.read_target(request.method, request.target)
    named = target.authority if target is not None and target.authority else dict(request.headers).get(b"host", b"")
    host = bytes(named).decode("latin-1").lower()
    host = host if host.endswith("]") else host.rpartition(":")[0] or host
    if host in ("", "localhost") or _is_address(host.removeprefix("[").removesuffix("]")):
        return None
    return 403, "this server answers to addresses and to localhost, not to names: it may be a web page that asks"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _scope(request: h11.Request) -> Scope:
    target = framing.read_target(request.method, request.target)
    assert target is not None, "a request without one was refused"
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.http_version.decode(),
        "scheme": "http",
        "method": request.method.decode(),
        "path": unquote(target.path.decode("latin-1")),
        "raw_path": target.path,
        "query_string": target.query,
        "root_path": "",
        "headers": headers_of(request, target),
        "client": None,
        "server": None,
        "state": {},
        "extensions": {},
    }
