"""Who answers a request, and the request in ASGI's words. What every kind of server chooses by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import h11

from tailscale.http.arrival import Arrival
from tailscale.http.caller import Caller, trusted_headers
from tailscale.http1 import framing
from tailscale.http1.asgi import AsgiApp, Headers, Scope
from tailscale.http1.heads import wants_websocket
from tailscale.http1.requests import headers_of

if TYPE_CHECKING:
    from tailscale.http.reverse import ReverseProxy


class ByApp(NamedTuple):
    """The answer is an app's."""

    app: AsgiApp
    scope: Scope


class ByServer(NamedTuple):
    """The answer is that of a server behind this one, which is asked for `target` with `head`."""

    proxy: ReverseProxy
    target: bytes
    head: Headers


Choose = Callable[[h11.Request, Arrival], Awaitable["ByApp | ByServer"]]
"""Who answers a request."""


def scope_of(request: h11.Request, arrival: Arrival, caller: Caller | None, state: dict[str, Any]) -> Scope:
    """A request in ASGI's words, of the type "http"."""
    target = framing.read_target(request.method, request.target)
    assert target is not None, "a request without one was refused"
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "scheme": "https" if arrival.is_secure else "http",
        "path": unquote(target.path.decode("latin-1")),
        "raw_path": target.path,
        "query_string": target.query,
        "root_path": "",
        "headers": trusted_headers(headers_of(request, target), caller),
        "client": arrival.remote_address,
        "server": arrival.local_address,
        "state": state.copy(),
        "extensions": {"tailscale": caller} if caller is not None else {},
    }


def upgraded(request: h11.Request, scope: Scope) -> Scope:
    """The same for an app that takes WebSockets: of the type "websocket" where the client asks for one."""
    if not wants_websocket(request):
        return scope
    scope = {name: value for name, value in scope.items() if name != "method"}
    scheme = "wss" if scope["scheme"] == "https" else "ws"
    extensions = {**scope["extensions"], "websocket.http.response": {}}
    return scope | {"type": "websocket", "scheme": scheme, "extensions": extensions}
