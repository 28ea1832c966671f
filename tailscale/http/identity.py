"""Who is calling, for apps that another web server runs: uvicorn, hypercorn, waitress and whatever else is there.

The server must be in the process of the device, behind its `expose` or one of its listening sockets: a connection is
known by the addresses that the server sees, and an address that is not one of those is nobody. Waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tailscale.http.caller import Caller, describe, trusted_headers
from tailscale.http.environ import Environ, with_identity
from tailscale.http1.asgi import AsgiApp, Receive, Scope, Send

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.threads.face import DeviceFace


class IdentityMiddleware:
    """Around an ASGI app: `scope["extensions"]["tailscale"]` and `Tailscale-User-Login`, as `http.serve` gives them.

    ```python
    app = tailscale.http.IdentityMiddleware(app, device)
    ```

    Whatever a client says of itself in headers that begin with `Tailscale-` is taken out, in every spelling.
    """

    def __init__(self, app: AsgiApp, device: Device | DeviceFace) -> None:
        self._app = app
        self._device = device

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and "tailscale" not in (scope.get("extensions") or {}):
            scope = self._identified(scope)
        await self._app(scope, receive, send)

    def _identified(self, scope: Scope) -> Scope:
        caller = caller_at(self._device, scope.get("client"), scope.get("server"))
        extensions = dict(scope.get("extensions") or {})
        if caller is not None:
            extensions["tailscale"] = caller
        return {**scope, "headers": trusted_headers(scope["headers"], caller), "extensions": extensions}


class WsgiIdentityMiddleware:
    """Around a WSGI app: `environ["tailscale.caller"]`, `environ["tailscale.user"]`, `HTTP_TAILSCALE_USER_LOGIN`.

    ```python
    from wsgiref.simple_server import demo_app

    application = tailscale.http.WsgiIdentityMiddleware(demo_app, device)
    ```
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], device: Device | DeviceFace) -> None:
        self._app = app
        self._device = device

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "tailscale.caller" not in environ:
            source = environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT") or 0
            environ = with_identity(environ, caller_at(self._device, source, None))
        return self._app(environ, start_response)


def caller_at(device: Device | DeviceFace, source: Any, door: Any) -> Caller | None:
    """Who that connection is; None for nobody of the tailnet."""
    if not _is_address(source):
        return None  # a Unix socket, or a server that does not say
    identity = device.caller_at(tuple(source[:2]), tuple(door[:2]) if _is_address(door) else None)
    return describe(identity) if identity is not None else None


def _is_address(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) < 2:
        return False
    port = value[1]
    return isinstance(port, int) or (isinstance(port, str) and port.isascii() and port.isdigit() and len(port) < 6)
