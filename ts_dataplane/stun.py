"""STUN binding requests and answers, in the narrow form Tailscale's relays ask for.

Owns the packet layout and nothing else: when to ask and whom is `netcheck.py`. RFC 8489; the SOFTWARE attribute
must read "tailnode" and FINGERPRINT must be right and last, or a relay's STUN server stays silent.
"""

from __future__ import annotations

import zlib
from struct import Struct

from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_address

Direct = tuple[str, int]

# type 2 | length behind the header 2 | cookie 4 | transaction 12 | attributes: type 2, length 2, value, pad to 4
_HEADER = Struct(">HH4s12s")
_ATTRIBUTE = Struct(">HH")
_PORT = Struct(">H")
HEADER_LENGTH = _HEADER.size
COOKIE = b"\x21\x12\xa4\x42"
TRANSACTION_LENGTH = 12

BINDING_REQUEST, BINDING_SUCCESS = 0x0001, 0x0101
MAPPED_ADDRESS, XOR_MAPPED_ADDRESS, OLD_XOR_MAPPED_ADDRESS = 0x0001, 0x0020, 0x8020
SOFTWARE, FINGERPRINT = 0x8022, 0x8028
SOFTWARE_NAME = b"tailnode"
_FINGERPRINT_MASK = 0x5354554E
_PORT_MASK = 0x2112  # the top half of the cookie
_FINGERPRINT_LENGTH = _ATTRIBUTE.size + 4
MAX_ATTRIBUTES = 32


def is_stun(datagram: bytes) -> bool:
    return len(datagram) >= HEADER_LENGTH and datagram[0] < 0x40 and datagram[4:8] == COOKIE


def encode_request(transaction: bytes) -> bytes:
    attributes = _ATTRIBUTE.pack(SOFTWARE, len(SOFTWARE_NAME)) + SOFTWARE_NAME
    length = len(attributes) + _FINGERPRINT_LENGTH
    body = _HEADER.pack(BINDING_REQUEST, length, COOKIE, transaction) + attributes
    return body + _ATTRIBUTE.pack(FINGERPRINT, 4) + _fingerprint(body)


def decode_request_untrusted(datagram: bytes) -> bytes:
    """The transaction of a request that a relay would answer."""
    transaction, attributes = _parse_untrusted(datagram, BINDING_REQUEST)
    if (SOFTWARE, SOFTWARE_NAME) not in attributes:
        raise BadPacket("STUN request from some other software")
    end = HEADER_LENGTH + _HEADER.unpack_from(datagram)[1]
    if not attributes or attributes[-1] != (FINGERPRINT, _fingerprint(datagram[: end - _FINGERPRINT_LENGTH])):
        raise BadPacket("STUN request without its fingerprint")
    return transaction


def encode_response(transaction: bytes, source: Direct) -> bytes:
    address = parse_address(source[0])
    family = 1 if len(address) == 4 else 2
    value = bytes((0, family)) + _PORT.pack(source[1] ^ _PORT_MASK) + _masked(address, transaction)
    head = _HEADER.pack(BINDING_SUCCESS, _ATTRIBUTE.size + len(value), COOKIE, transaction)
    return head + _ATTRIBUTE.pack(XOR_MAPPED_ADDRESS, len(value)) + value


def decode_response_untrusted(datagram: bytes) -> tuple[bytes, Direct]:
    """Transaction and the address we were seen at. The caller checks that it asked, and whom."""
    transaction, attributes = _parse_untrusted(datagram, BINDING_SUCCESS)
    fallback: Direct | None = None
    for kind, value in attributes:
        if kind in (XOR_MAPPED_ADDRESS, OLD_XOR_MAPPED_ADDRESS):
            address, port = _address_untrusted(value)
            return transaction, (_text(_masked(address, transaction)), port ^ _PORT_MASK)
        if kind == MAPPED_ADDRESS and fallback is None:
            address, port = _address_untrusted(value)
            fallback = _text(address), port
    if fallback is None:
        raise BadPacket("STUN answer without an address")
    return transaction, fallback


def _parse_untrusted(datagram: bytes, expected: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    if not is_stun(datagram):
        raise BadPacket("not STUN")
    kind, length, _, transaction = _HEADER.unpack_from(datagram)
    end = HEADER_LENGTH + length
    if kind != expected:
        raise BadPacket(f"STUN message of type {kind:#06x}")
    if len(datagram) < end:
        raise BadPacket("STUN message cut short")
    attributes: list[tuple[int, bytes]] = []
    at = HEADER_LENGTH
    while at < end:
        if end - at < _ATTRIBUTE.size or len(attributes) >= MAX_ATTRIBUTES:
            raise BadPacket("STUN attributes do not fit")
        number, size = _ATTRIBUTE.unpack_from(datagram, at)
        at += _ATTRIBUTE.size
        if end - at < size:
            raise BadPacket("STUN attribute longer than its message")
        attributes.append((number, datagram[at : at + size]))
        at += size + -size % 4
    return transaction, attributes


def _address_untrusted(value: bytes) -> tuple[bytes, int]:
    if len(value) >= 8 and value[1] == 1:
        return value[4:8], _PORT.unpack_from(value, 2)[0]
    if len(value) >= 20 and value[1] == 2:
        return value[4:20], _PORT.unpack_from(value, 2)[0]
    raise BadPacket("STUN address of an unknown family")


def _masked(address: bytes, transaction: bytes) -> bytes:
    mask = (COOKIE + transaction)[: len(address)]
    return (int.from_bytes(address, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(address), "big")


def _text(address: bytes) -> str:
    return format_address(parse_address(format_address(address)))  # unmaps an IPv4 address dressed as IPv6


def _fingerprint(body: bytes) -> bytes:
    return (zlib.crc32(body) ^ _FINGERPRINT_MASK).to_bytes(4, "big")
