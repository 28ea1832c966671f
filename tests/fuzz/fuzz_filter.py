"""Any bytes as a packet, a filter entry or a TSMP body: a verdict or BadPacket, and the slow twin agrees."""

from __future__ import annotations

from contextlib import suppress

from golden.filter import SlowFilter
from ts_base.errors import BadPacket
from ts_base.ip import TSMP, parse_address, parse_prefix
from ts_base.ip_headers import ip_packet
from ts_dataplane import tsmp
from ts_dataplane.bart import Bart
from ts_dataplane.filter import NO_RULE, Rule, compile_filter, prefixes_untrusted
from ts_dataplane.packets import (
    is_source_routed,
    parse,
    reply_flow,
    with_destination,
    with_source,
    without_padding,
)
from ts_dataplane.reply_flows import ReplyFlows

_RULES = [
    Rule(("100.64.0.0/10", "fd7a:115c:a1e0::/48"), (("*", 80, 90), ("100.64.0.1", 22, 22))),
    Rule(("*",), (("100.64.0.1", 0, 65535),), (47, 132)),
    Rule(("cap:x", "10.0.0.1-10.0.0.9"), (("*", 443, 443),)),
]
_LOCAL = ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]
_US, _THEM, _ALIAS = (parse_address(text) for text in ("100.64.0.1", "100.64.0.2", "100.99.0.1"))
_FILTER = compile_filter(_RULES)
_LOCALS = Bart[bool]()
for _text in _LOCAL:
    _LOCALS.insert(parse_prefix(_text), True)


def fuzz_one(data: bytes) -> None:
    held = frozenset({"x"}) if len(data) & 1 else frozenset[str]()
    whole = without_padding(data)
    flows, slow = ReplyFlows(), SlowFilter(_RULES, _LOCAL)
    accepted = not data
    if whole:
        parsed = parse(whole)
        is_source_routed(whole)
        if flow := reply_flow(whole):
            flows.record(flow)
        verdict = _FILTER.decide(whole, parsed, is_local=bool(_LOCALS.lookup(parsed.destination)), held=held)
        accepted = not verdict or (verdict == NO_RULE and flows.admits((parsed.protocol, parsed.flow)))
        slow.outbound(whole)
    assert accepted == slow.inbound(data, held)
    changed = with_destination(with_source(data, _THEM, _ALIAS), _US, _ALIAS)
    assert len(changed) == len(data)
    body = ip_packet(_THEM, _US, TSMP, data[:100])
    with suppress(BadPacket):
        tsmp.decode_untrusted(1, body, parse(body))
    with suppress(BadPacket):
        prefixes_untrusted(data.decode("latin-1"))


def seeds() -> list[bytes]:
    tcp = bytes([0x10, 0, 0, 80, *bytes(8), 0x50, 2, 1, 0, *bytes(4)])
    six = [parse_address(text) for text in ("fd7a:115c:a1e0::2", "fd7a:115c:a1e0::1")]
    fragment = ip_packet(*six, 44, bytes([6, 0, 0, 1, 0, 0, 0, 1]) + tcp)
    packets = [ip_packet(_THEM, _US, protocol, tcp) for protocol in (1, 6, 17, 47, 99, 132)]
    packets += [ip_packet(*six, protocol, tcp) for protocol in (6, 17, 58, 0, 43)] + [fragment]
    texts = ["*", "10.0.0.0/8", "10.0.0.1-10.0.0.9", "::1-::ffff", "cap:x", "10.0.0.9-10.0.0.1", "1-2-3"]
    return packets + [text.encode() for text in texts] + [b"!\x06A\x10\0\0\x50", b"p" + bytes(8), b"a" + bytes(32)]
