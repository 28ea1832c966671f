"""Request lines and heads at the HTTP proxy: a tunnel, a request passed on, a refusal; and what is passed on is clean.

The first line is method and target, the others are the fields of a head.
"""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_base.ip import maybe_address
from ts_proxy import http_rules
from ts_proxy.destinations import decode_authority_untrusted, decode_host_untrusted, decode_port_untrusted
from ts_proxy.http_rules import Forward, OwnPage, Refusal, Tunnel
from ts_proxy.sniffing import language_of

MOST_LINES = 64


def fuzz_one(data: bytes) -> None:
    language_of(data[0] if data else 0)
    first, *lines = data.split(b"\n")[:MOST_LINES]
    method, _, target = first.partition(b" ")
    fields = (line.partition(b":") for line in lines)
    headers = [(name.lower(), value.strip()) for name, _, value in fields]
    asked = http_rules.read_request(method, target, headers)
    if isinstance(asked, Refusal):
        assert 400 <= asked.status < 600
        assert asked.sentence.isprintable()
    elif not isinstance(asked, OwnPage):
        _check_host(asked.destination.host)
        assert 0 < asked.destination.port < 65536
    if isinstance(asked, Forward):
        head = http_rules.request_head(asked, headers, http_version=b"1.1")
        assert [value for name, value in head if name == b"host"] == [asked.authority]
        assert not [name for name, _ in head if name.startswith(b"proxy-")]
        assert http_rules.has_looped(head)
        assert asked.target.startswith(b"/") or asked.target == b"*"
    if isinstance(asked, Tunnel):
        assert not http_rules.has_body(headers)
    http_rules.response_head(200, headers)
    http_rules.trailers(headers)
    left = http_rules.next_hops(method, headers)
    assert left is None or left >= 0
    _parsers(target)


def _parsers(text: bytes) -> None:
    for parse in (decode_authority_untrusted, decode_host_untrusted, decode_port_untrusted):
        try:
            parse(text)
        except BadPacket:
            continue
    try:
        user, password = http_rules.decode_basic_untrusted(text)
    except BadPacket:
        return
    assert b":" not in user
    assert isinstance(password, bytes)


def _check_host(host: str) -> None:
    assert maybe_address(host) is not None or (host.isascii() and 0 < len(host) <= 253 and " " not in host)


def seeds() -> list[bytes]:
    return [
        b"CONNECT example.com:443\nHost: example.com:443\nProxy-Authorization: Basic YTpi",
        b"CONNECT [2001:db8::1]:443\nHost: x",
        b"GET http://example.com/a?b=c\nHost: example.com\nConnection: keep-alive, X-Hop\nX-Hop: 1\nVia: 1.1 a",
        b"POST http://example.com\nTransfer-Encoding: chunked\nContent-Length: 5\nUpgrade: websocket",
        b"OPTIONS http://example.com\nMax-Forwards: 3",
        b"GET /\nHost: proxy",
        b"GET Basic YWxpY2U6c2VjcmV0",
        b"CONNECT b\xc3\xbccher.example:80",
    ]
