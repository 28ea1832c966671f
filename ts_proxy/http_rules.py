"""What a proxy makes of an HTTP message: where it goes, what leaves its head, and what is put in. RFC 9110, 9112.

Heads come from a parser and are lists of `(lower-case name, value)`. Where a message ends is the parser's to say.
Knows no stream and no user.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_proxy.destinations import Destination, decode_authority_untrusted

PSEUDONYM = b"pytailscale"
VIA = b"1.1 " + PSEUDONYM
OPTIONAL_WHITESPACE = b" \t"
HTTP_PORT = 80
# RFC 9110, 7.6.1: what concerns one connection, whether or not Connection names it.
HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"))
# What Connection may name and must not take along: by these two readers agree on a message (RFC 9112, 6).
NEVER_TAKEN = frozenset((b"content-length", b"host"))
LONGEST_CREDENTIALS = 2048

Headers = list[tuple[bytes, bytes]]


class Refusal(NamedTuple):
    """The answer to a request that is not passed on."""

    status: int
    sentence: str


class Tunnel(NamedTuple):
    """CONNECT."""

    destination: Destination


class Forward(NamedTuple):
    """A request for an http URL. `target` is what the server is asked for, `authority` its Host."""

    destination: Destination
    authority: bytes
    target: bytes


class OwnPage(NamedTuple):
    """Somebody looks at the proxy as if it were a web server."""


def read_request(method: bytes, target: bytes, headers: Headers) -> Tunnel | Forward | OwnPage | Refusal:
    """RFC 9112, 3.2: what the request line asks for."""
    if method == b"CONNECT":
        if has_body(headers):  # RFC 9110, 9.3.6: what follows would be the tunnel's or the body's, as one likes
            return Refusal(400, "CONNECT has no body")
        try:
            return Tunnel(decode_authority_untrusted(target))
        except BadPacket as problem:
            return Refusal(400, f"CONNECT names host:port or [v6]:port: {problem}")
    if target == b"/" and method in (b"GET", b"HEAD"):
        return OwnPage()
    scheme, separator, rest = target.partition(b"://")
    if not separator or not scheme.isalpha():
        return Refusal(400, "this is a proxy: the request line names a whole URL, or CONNECT a host and port")
    if scheme.lower() == b"https":
        return Refusal(501, "this proxy speaks no TLS for its clients: send CONNECT for https URLs")
    if scheme.lower() != b"http":
        return Refusal(501, "this proxy passes on http URLs, and CONNECT for everything else")
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    if b"#" in rest or b"@" in authority:  # RFC 9110, 4.2.4: a user in front of a host is there to deceive
        return Refusal(400, "a URL in a request line has neither a fragment nor a user")
    try:
        destination = decode_authority_untrusted(authority, HTTP_PORT)
    except BadPacket as problem:
        return Refusal(400, f"the URL names no host: {problem}")
    if not path and method == b"OPTIONS":
        path = b"*"  # RFC 9112, 3.2.4
    elif not path.startswith(b"/"):
        path = b"/" + path
    return Forward(destination, authority, path)


# --- heads ----------------------------------------------------------------------------------------


def tokens(headers: Headers, name: bytes) -> list[bytes]:
    """The members of a list field, wherever they stand, in lower case."""
    joined = b",".join(value for key, value in headers if key == name).lower()
    return [word for part in joined.split(b",") if (word := part.strip(OPTIONAL_WHITESPACE))]


def has_looped(headers: Headers) -> bool:
    """Whether a request has been here before (RFC 9110, 7.6.3)."""
    passed = (entry.split() for entry in tokens(headers, b"via"))
    return any(len(words) > 1 and words[1] == PSEUDONYM for words in passed)


def wants_upgrade(headers: Headers) -> bool:
    return b"upgrade" in tokens(headers, b"connection") and any(name == b"upgrade" for name, _ in headers)


def passed_on(headers: Headers) -> Headers:
    """A head without what concerns this connection only, and with our name among those it came by."""
    named = set(tokens(headers, b"connection")) - NEVER_TAKEN
    kept = [(name, value) for name, value in headers if name not in HOP_BY_HOP | named and not is_proxys(name)]
    return [*kept, (b"via", VIA)]


def is_proxys(name: bytes) -> bool:
    """Between a client and its proxy."""
    return name.startswith(b"proxy-")


def request_head(forward: Forward, headers: Headers, *, http_version: bytes) -> Headers:
    """What the server is sent: its Host is what the request line names (RFC 9112, 3.2.2)."""
    others = [one for one in headers if one[0] != b"host"]
    return [(b"host", forward.authority), *relayed_head(others, is_modern=http_version == b"1.1")]


def relayed_head(headers: Headers, *, is_modern: bool) -> Headers:
    """A request's head for the next server, its Host as it came. HTTP/1.0 cannot upgrade (RFC 9110, 7.8)."""
    upgrading = _upgrading(headers) if is_modern else []
    return passed_on(headers) + _framing(is_coded(headers)) + upgrading


def response_head(status: int, headers: Headers, *, is_gateway: bool = False) -> Headers:
    """What the client is sent. Of two ways to frame a body the coding counts (RFC 9112, 6.3, rule 3).

    A gateway stands for the server and need not say that it is there (RFC 9110, 7.6.3).
    """
    head = passed_on(headers)[: -1 if is_gateway else None]
    if is_coded(headers):
        head = [one for one in head if one[0] != b"content-length"]
    may_switch = status in (101, 426)  # RFC 9110, 15.2.2 and 15.5.22: these say to what
    return head + _framing(is_coded(headers)) + (_upgrading(headers) if may_switch else [])


def is_coded(headers: Headers) -> bool:
    """Whether the body comes in chunks."""
    return any(name == b"transfer-encoding" for name, _ in headers)


def has_body(headers: Headers) -> bool:
    return is_coded(headers) or any(name == b"content-length" and value.strip(b"0") for name, value in headers)


def length_of(headers: Headers) -> int | None:
    """How long a body is by its head; None where that is found out on the way."""
    values = [value for name, value in headers if name == b"content-length"]
    is_told = len(values) == 1 and values[0].isdigit() and len(values[0]) < 19
    return int(values[0]) if is_told and not is_coded(headers) else None


def trailers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Those that may stand behind a body: nothing that frames, routes or logs in (RFC 9110, 6.5.1)."""
    barred = HOP_BY_HOP | NEVER_TAKEN | {b"authorization", b"trailer"}
    return [(name, value) for name, value in headers if name not in barred and not is_proxys(name)]


def _framing(is_chunked: bool) -> Headers:
    return [(b"transfer-encoding", b"chunked")] if is_chunked else []


def _upgrading(headers: Headers) -> Headers:
    if not wants_upgrade(headers):
        return []
    return [(b"connection", b"Upgrade"), *((name, value) for name, value in headers if name == b"upgrade")]


def next_hops(method: bytes, headers: Headers) -> int | None:
    """How often a TRACE or OPTIONS may still be passed on; None where nobody counts (RFC 9110, 7.6.2)."""
    if method not in (b"TRACE", b"OPTIONS"):
        return None
    values = [value for name, value in headers if name == b"max-forwards"]
    return int(values[0]) if len(values) == 1 and values[0].isdigit() and len(values[0]) < 10 else None


def with_hops(headers: Headers, left: int) -> Headers:
    return [(name, b"%d" % left if name == b"max-forwards" else value) for name, value in headers]


# --- who asks -------------------------------------------------------------------------------------


def decode_basic_untrusted(value: bytes) -> tuple[bytes, bytes]:
    """User and password of `Proxy-Authorization: Basic ...` (RFC 7617)."""
    scheme, _, coded = value.strip(OPTIONAL_WHITESPACE).partition(b" ")
    if scheme.lower() != b"basic" or len(coded) > LONGEST_CREDENTIALS:
        raise BadPacket("only Basic is known of Proxy-Authorization")
    try:
        plain = b64decode(coded.strip(OPTIONAL_WHITESPACE), validate=True)
    except binascii.Error:
        raise BadPacket("Proxy-Authorization is not base64") from None
    user, colon, password = plain.partition(b":")
    if not colon:
        raise BadPacket("Proxy-Authorization has no colon between user and password")
    return user, password
