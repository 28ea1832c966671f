"""Short texts that control, a peer or a user may send: addresses, prefixes, keys, endpoints, routes, names, dates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tailscale.dns.names import clean_name, literal_address
from tailscale.dns.resolvers import address_of_arpa, arpa_name, server_address
from ts_base import ip, keys
from ts_base.errors import BadPacket
from ts_base.hosts import check_host_untrusted
from ts_control.directory import clean_label, parse_routes_untrusted
from ts_control.location import answer_target_untrusted
from ts_control.policy import is_valid_tag
from ts_control.retry import RETRY_AFTER_LIMIT, pause_from_retry_after
from ts_control.wire import legacy_home_region_untrusted
from ts_dataplane.candidates import Candidates, format_endpoint, is_worth_trying, parse_endpoint_untrusted
from ts_dataplane.filter import prefixes_untrusted
from ts_dataplane.upnp import error_code

KINDS = (keys.MachinePublic, keys.NodePublic, keys.DiscoPublic, keys.ChallengePublic, keys.NodePrivate)


def _round_trips(text: str, parse: Callable[[str], Any], show: Callable[[Any], str]) -> None:
    with contextlib.suppress(BadPacket):
        value = parse(text)
        assert parse(show(value)) == value


def fuzz_one(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    _round_trips(text, ip.parse_address, ip.format_address)
    _round_trips(text, ip.parse_prefix, ip.format_prefix)
    _round_trips(text, parse_endpoint_untrusted, format_endpoint)
    for kind in KINDS:
        with contextlib.suppress(BadPacket):
            key = kind.parse(text)
            assert isinstance(key, keys.PrivateKey) or kind.parse(str(key)) == key
    with contextlib.suppress(BadPacket):
        is_worth_trying(parse_endpoint_untrusted(text), loopback=True)
    with contextlib.suppress(BadPacket):
        for network, length in prefixes_untrusted(text):
            assert 0 <= length <= 8 * len(network)
    with contextlib.suppress(BadPacket):
        assert 0 <= server_address(text)[1] <= 0xFFFF
    _round_trips(text, check_host_untrusted, str)
    with contextlib.suppress(BadPacket):
        where, path = answer_target_untrusted(text)
        assert 0 < where.port < 65536
        assert path.isascii()
        assert " " not in path
    Candidates().set_listed([text, text], loopback=False)
    assert len(parse_routes_untrusted([text, text])) <= 1
    assert 0 <= pause_from_retry_after(text, 1.9e9, 7.0) <= RETRY_AFTER_LIMIT
    assert 0 <= legacy_home_region_untrusted(text) <= 99_999
    label = clean_label(text)
    assert clean_label(label) == label
    assert 0 < len(label) < 64
    address = address_of_arpa(text)
    assert address is None or address_of_arpa(arpa_name(address)) == address
    literal_address(text)
    clean_name(text)
    is_valid_tag(text)
    error_code(data)


def seeds() -> list[bytes]:
    texts = [
        *("100.64.0.1", "fd7a:115c:a1e0::1", "::ffff:1.2.3.4", "fe80::1%eth0", "10.0.0.0/8", "::/0", "0.0.0.0/0"),
        *("192.0.2.7:41641", "[2001:db8::7]:41641", "1.2.3.4:53", "10.0.0.1-10.0.0.9", "*", "cap:example.com/x"),
        *("127.3.3.40:900", "tag:server", "tag:a-1", "host.example.", "Müller's Laptop", "120", "65536"),
        *("4.3.2.1.in-addr.arpa", "1." + "0." * 31 + "ip6.arpa", "Wed, 21 Oct 2026 07:28:00 GMT"),
        *(f"{prefix}{'0a' * 32}" for prefix in ("mkey:", "nodekey:", "discokey:", "chalpub:", "privkey:")),
        *("http://192.168.1.1:8080/pong?id=1", "https://[::1]/x"),
        "<errorCode>725</errorCode>",
    ]
    return [text.encode() for text in texts]
