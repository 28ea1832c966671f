"""A DNS response as bytes, from records as text: what `tailscale dns query` wants to read. RFC 1035, 3.

Owns the encoding of the record types that `Device.resolve_all` knows. Refuses to know where they come from.
"""

from __future__ import annotations

from struct import pack

from ts_base.ip import parse_address

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33}
NO_ERROR, SERVER_FAILURE, NAME_ERROR = 0, 2, 3
TTL = 600  # the tailnet's own names have none; what resolvers said is cached by us
RESPONSE = 0x8580  # an answer, authoritative, recursion desired and available
POINTER_TO_QUESTION = b"\xc0\x0c"
IN = 1


def encode_answer(name: str, kind: str, values: list[str], code: int = NO_ERROR) -> bytes:
    """A response to one question."""
    number = TYPES[kind]
    out = pack("!6H", 0, RESPONSE | code, 1, len(values), 0, 0)
    out += _encode_name(name) + pack("!2H", number, IN)
    for value in values:
        data = _encode_value(kind, value)
        out += POINTER_TO_QUESTION + pack("!2HIH", number, IN, TTL, len(data)) + data
    return out


def _encode_name(name: str) -> bytes:
    out = b""
    for label in name.strip(".").split("."):
        data = label.encode("idna") if not label.isascii() else label.encode()
        if not 0 < len(data) < 64:
            raise ValueError(f"{name!r} cannot be a DNS name")
        out += bytes([len(data)]) + data
    return out + b"\0"


def _encode_value(kind: str, value: str) -> bytes:
    if kind in ("A", "AAAA"):
        return parse_address(value)
    if kind == "TXT":
        data = value.encode()
        pieces = [data[start : start + 255] for start in range(0, len(data), 255)] or [b""]
        return b"".join(bytes([len(piece)]) + piece for piece in pieces)
    if kind == "MX":
        preference, _, host = value.partition(" ")
        return pack("!H", int(preference)) + _encode_name(host)
    if kind == "SRV":
        priority, weight, port, host = value.split(" ")
        return pack("!3H", int(priority), int(weight), int(port)) + _encode_name(host)
    return _encode_name(value)
