"""DNS questions and answers as bytes, by dpkt: a cold path, so a complete codec beats a fast one.

Owns the text form of each record type. Refuses to know where answers come from. RFC 1035, 2782, 6891.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import format_address

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33}
NO_ERROR, SERVER_FAILURE, NAME_ERROR, REFUSED = 0, 2, 3, 5
MAX_NAME = 253
MAX_TTL = 86_400
MAX_RECORDS = 256


ADDRESS_SIZES = {"A": 4, "AAAA": 16}


class NotOurs(BadPacket):
    """A message that answers something else: whoever waits for the answer goes on waiting (RFC 5452, 9.1)."""


class Answer(NamedTuple):
    """What one server said to one question."""

    code: int
    values: tuple[str, ...]
    """Records of the type asked for, aliases followed within the answer."""
    ttl: int
    truncated: bool


def encode_query(identifier: int, name: str, kind: str) -> bytes:
    from dpkt import dns as wire  # 20 ms that only tailnets with resolvers pay

    labels = name.rstrip(".").split(".")
    if len(name) > MAX_NAME or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} cannot be a DNS name")
    question = wire.DNS.Q(name=name.rstrip("."), type=TYPES[kind], cls=wire.DNS_IN)
    return bytes(wire.DNS(id=identifier, op=wire.DNS_RD, qd=[question]))


def decode_answer_untrusted(data: bytes, identifier: int, name: str, kind: str) -> Answer:
    """Read a reply to our question; NotOurs if it answers another, BadPacket if it is no answer at all."""
    from dpkt import dns as wire

    if data[:2] != identifier.to_bytes(2, "big"):  # the cheapest question first: strangers may send many
        raise NotOurs("not the answer to our question")
    try:
        message = wire.DNS(data)
        if message.qr != wire.DNS_R:
            raise NotOurs("not the answer to our question")
        asked = [(q.name.lower(), q.type) for q in message.qd]
        if asked != [(name.rstrip(".").lower(), TYPES[kind])]:
            raise NotOurs("an answer to another question")
        records = message.an[:MAX_RECORDS]
        owners = {name.rstrip(".").lower()}
        for record in records:
            if record.type == wire.DNS_CNAME and record.name.lower() in owners:
                owners.add(record.cname.lower())
        matching = [r for r in records if r.type == TYPES[kind] and r.name.lower() in owners]
        if kind in ADDRESS_SIZES and any(len(r.rdata) != ADDRESS_SIZES[kind] for r in matching):
            raise BadPacket(f"an {kind} record of another size")
        values = tuple(_text_of(r, kind) for r in matching)
        ttl = min([min(r.ttl, MAX_TTL) for r in matching] or [_negative_ttl(message)])
        return Answer(message.rcode, values, ttl, bool(message.tc))
    except BadPacket:
        raise
    except Exception as error:  # dpkt raises whatever its parsing trips over
        raise BadPacket(f"not a DNS message: {type(error).__name__}") from None


def _negative_ttl(message: Any) -> int:
    """How long a missing answer may be remembered (RFC 2308)."""
    return int(min([min(r.ttl, 300) for r in message.ns[:4] if r.type == TYPES["SOA"]] or [30]))


def _text_of(record: Any, kind: str) -> str:
    if kind in ("A", "AAAA"):
        return format_address(record.rdata)
    if kind == "TXT":
        return "".join(record.text)
    if kind == "MX":
        return f"{int.from_bytes(record.rdata[:2], 'big')} {record.mxname}"
    if kind == "SRV":
        return f"{record.priority} {record.weight} {record.port} {record.srvname}"
    attribute = {"CNAME": "cname", "NS": "nsname", "PTR": "ptrname", "SOA": "mname"}[kind]
    return str(getattr(record, attribute))
