"""HTTP over the tailnet, both ways.

`AsyncTransport(device)` lets httpx (or httpx2) reach `http://db:8000/`, others here do so for aiohttp, requests and
urllib3; `serve(app, device)` runs an ASGI app that knows who is calling, `serve_wsgi` a WSGI app. Importing this module
loads nothing else; the names come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily

if TYPE_CHECKING:
    from tailscale.http.aiohttp_connector import AiohttpConnector as AiohttpConnector
    from tailscale.http.identity import IdentityMiddleware as IdentityMiddleware
    from tailscale.http.identity import WsgiIdentityMiddleware as WsgiIdentityMiddleware
    from tailscale.http.lifespan import LifespanFailed as LifespanFailed
    from tailscale.http.requests_adapter import RequestsAdapter as RequestsAdapter
    from tailscale.http.reverse import ReverseProxy as ReverseProxy
    from tailscale.http.serving import serve as serve
    from tailscale.http.serving import serve_wsgi as serve_wsgi
    from tailscale.http.transport import AsyncTransport as AsyncTransport
    from tailscale.http.transport import Transport as Transport
    from tailscale.http.urllib3_pools import urllib3_pool as urllib3_pool
    from tailscale.http1.limits import Limits as Limits
    from tailscale.http1.visits import Visits as Visits

__all__ = [
    *("AiohttpConnector", "AsyncTransport", "IdentityMiddleware", "LifespanFailed", "Limits", "RequestsAdapter"),
    *("ReverseProxy", "Transport", "Visits", "WsgiIdentityMiddleware", "serve", "serve_wsgi", "urllib3_pool"),
]

_HOMES = {
    "AiohttpConnector": "tailscale.http.aiohttp_connector",
    "AsyncTransport": "tailscale.http.transport",
    "IdentityMiddleware": "tailscale.http.identity",
    "LifespanFailed": "tailscale.http.lifespan",
    "Limits": "tailscale.http1.limits",
    "RequestsAdapter": "tailscale.http.requests_adapter",
    "ReverseProxy": "tailscale.http.reverse",
    "Transport": "tailscale.http.transport",
    "Visits": "tailscale.http1.visits",
    "WsgiIdentityMiddleware": "tailscale.http.identity",
    "serve": "tailscale.http.serving",
    "serve_wsgi": "tailscale.http.serving",
    "urllib3_pool": "tailscale.http.urllib3_pools",
}


__getattr__ = lazily(__name__, _HOMES)
