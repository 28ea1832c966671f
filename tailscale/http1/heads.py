"""What the head of a request means before anybody handles it: whether it may be believed, and whether it upgrades.

Knows h11's requests and nothing of connections.
"""

from __future__ import annotations

import h11

from tailscale.http1 import framing


def wants_websocket(request: h11.Request) -> bool:
    """Whether it asks to become a WebSocket."""
    tokens = b",".join(value for name, value in request.headers if name == b"connection").lower().split(b",")
    upgrades = [value.lower() for name, value in request.headers if name == b"upgrade"]
    return request.method == b"GET" and b"upgrade" in map(bytes.strip, tokens) and upgrades == [b"websocket"]


def refusal_of(request: h11.Request, head: bytes) -> tuple[int, str] | None:
    """The answer to a request that nobody may see."""
    if request.http_version not in (b"1.0", b"1.1"):
        return 505, "this server speaks HTTP/1.1"
    if problem := framing.objection(head, request.http_version):
        return 400, problem
    if request.method == b"CONNECT":
        return 501, "this server is no proxy"
    if framing.read_target(request.method, request.target) is None:
        return 400, "the request target is neither a path nor an http URL"
    if request.http_version == b"1.1" and framing.expects_the_impossible(list(request.headers)):
        return 417, "this server can only be expected to 100-continue"
    return None
