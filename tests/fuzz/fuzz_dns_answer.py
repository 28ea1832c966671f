"""Any bytes as a resolver's answer to our question: text records, or BadPacket, never more than was allowed."""

from __future__ import annotations

from dpkt import dns as wire

from tailscale.dns.messages import MAX_RECORDS, MAX_TTL, TYPES, decode_answer_untrusted, encode_query
from ts_base.errors import BadPacket

NAME, IDENTIFIER = "host.example", 0x1234


def fuzz_one(data: bytes) -> None:
    for kind in TYPES:
        try:
            answer = decode_answer_untrusted(data, IDENTIFIER, NAME, kind)
        except BadPacket:
            continue
        assert len(answer.values) <= MAX_RECORDS
        assert all(isinstance(value, str) for value in answer.values)
        assert 0 <= answer.ttl <= MAX_TTL


def seeds() -> list[bytes]:
    body = {
        "A": b"\x7f\0\0\1",
        "AAAA": bytes(15) + b"\1",
        "CNAME": b"\1a\7example\0",
        "NS": b"\2ns\xc0\x0c",
        "PTR": b"\1p\xc0\x0c",
        "MX": b"\0\x0a\4mail\xc0\x0c",
        "TXT": b"\5hello\5world",
        "SRV": b"\0\1\0\2\1\xbb\1s\7example\0",
        "SOA": b"\1n\0\1m\0" + bytes(20),
    }
    made = []
    for kind, rdata in body.items():
        question = bytearray(encode_query(IDENTIFIER, NAME, kind))
        question[2] |= 0x80
        question[7] = 1
        record = (
            b"\xc0\x0c" + TYPES[kind].to_bytes(2, "big") + b"\0\1\0\0\1\x2c" + len(rdata).to_bytes(2, "big") + rdata
        )
        made.append(bytes(question) + record)
    refused = bytes(wire.DNS(id=IDENTIFIER, qr=1, rcode=3, qd=[wire.DNS.Q(name=NAME, type=1, cls=1)]))
    return [*made, refused]
