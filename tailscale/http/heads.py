"""What the head of a request asks for, and whether any app may see it. The same for callers near and far."""

from __future__ import annotations

import h11

from tailscale.http import framing
from tailscale.http.caller import Headers


def wants_websocket(request: h11.Request) -> bool:
    tokens = b",".join(value for name, value in request.headers if name == b"connection").lower().split(b",")
    upgrades = [value.lower() for name, value in request.headers if name == b"upgrade"]
    return request.method == b"GET" and b"upgrade" in map(bytes.strip, tokens) and upgrades == [b"websocket"]


def refusal(request: h11.Request, head: bytes) -> tuple[int, str] | None:
    """The answer to a request that no app may see."""
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


def headers_of(request: h11.Request, target: framing.Target) -> Headers:
    """With the host that the request line names, if it names one: that one counts (RFC 9112, 3.2.2)."""
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    if not target.authority:
        return headers
    return [(b"host", target.authority), *((name, value) for name, value in headers if name != b"host")]
