"""Any bytes as an IP packet: parsed or refused by name, never anything else."""

from __future__ import annotations

import contextlib

from ts_base.errors import BadPacket
from ts_base.ip_headers import SYN
from ts_netstack import icmp
from ts_netstack.fragments import cut
from ts_netstack.wire import (
    is_transport_checksum_right,
    parse_options_untrusted,
    parse_packet_untrusted,
    parse_segment_untrusted,
    reset_for,
    tcp_packet,
    udp_payload,
)

A, B = bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2])
A6, B6 = b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02"


def fuzz_one(data: bytes) -> None:
    parse_options_untrusted(data[:40])
    for verify in (False, True):
        try:
            packet = parse_packet_untrusted(data, verify)
        except BadPacket:
            continue
        assert len(packet.payload) <= len(data)
        is_transport_checksum_right(packet)
        with contextlib.suppress(BadPacket):
            segment = parse_segment_untrusted(packet.payload)
            assert len(segment.payload) <= len(packet.payload)
            reply = reset_for(packet, segment)
            assert reply is None or parse_packet_untrusted(reply, True).destination == packet.source
        with contextlib.suppress(BadPacket):
            icmp.read_error_untrusted(packet, *icmp.parse_untrusted(packet))


def seeds() -> list[bytes]:
    syn = tcp_packet((A, 1), (B, 2), 5, 0, SYN, 100, b"\x02\x04\x04\xd8\x01\x03\x03\x08")
    syn6 = tcp_packet((A6, 1), (B6, 2), 5, 0, SYN, 100)
    return [
        syn,
        syn6,
        *cut(A, B, 17, udp_payload((A, 1), (B, 2), bytes(2000)), 1280, 7),
        *cut(A6, B6, 17, udp_payload((A6, 1), (B6, 2), bytes(2000)), 1280, 7),
        icmp.echo_request(A, B, 7, b"ping"),
        icmp.echo_request(A6, B6, 7, b"ping"),
        icmp.port_unreachable(syn, B, A),
        icmp.port_unreachable(syn6, B6, A6),
    ]
