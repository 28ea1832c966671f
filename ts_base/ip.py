"""Looking at IP without objects: addresses are `bytes`, a prefix is `(bytes, length)`.

The text forms live here too, so that nobody builds an `ipaddress` object per packet. Rules of RFC 791, 8200 and 1071.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache
from struct import Struct

from ts_base.errors import BadPacket

ICMP, TCP, UDP, ICMP6, TSMP, SCTP = 1, 6, 17, 58, 99, 132
IP6_FRAGMENT = 44

IP6_MINIMUM_MTU = 1280  # what every link carries that carries IPv6 at all (RFC 8200 section 5)
TUNNEL_MTU = IP6_MINIMUM_MTU  # of the tailnet, as every Tailscale node has it
MAXIMUM_DATAGRAM = 65_507  # UDP payload of the largest IPv4 packet; IPv6 would carry twenty bytes more

IP4_LENGTH = Struct(">2xH").unpack_from  # total length, header included
IP6_LENGTH = Struct(">4xH").unpack_from  # payload length, header excluded

Prefix = tuple[bytes, int]

CGNAT: Prefix = (bytes([100, 64, 0, 0]), 10)
TAILSCALE_ULA: Prefix = (bytes.fromhex("fd7a115ca1e0") + bytes(10), 48)
VIA: Prefix = (bytes.fromhex("fd7a115ca1e00b1a") + bytes(8), 64)  # 4via6: then 32 bits that name a site, then IPv4
SERVICE_IP4 = bytes([100, 100, 100, 100])
SERVICE_IP6 = bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\x53"


@lru_cache(256)  # a dial asks several times; what is no address is not kept
def parse_address(text: str) -> bytes:
    """`100.64.0.1` or `fd7a::1` to 4 or 16 bytes; v4-mapped IPv6 becomes IPv4. BadPacket on anything else."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadPacket(f"not an IP address: {text[:64]!r}") from None
    if address.version == 6:
        if address.scope_id is not None:
            raise BadPacket("an IPv6 zone has no meaning here")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.packed
    return address.packed


def maybe_address(text: str) -> bytes | None:
    """The same, for text that may be a name instead."""
    try:
        return parse_address(text)
    except BadPacket:
        return None


def format_address(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def parse_prefix(text: str) -> Prefix:
    """`10.0.0.0/8` to bytes and length; a bare address is a host prefix; host bits set is BadPacket."""
    host, slash, length_text = text.partition("/")
    address = parse_address(host)
    if not slash:
        return address, 8 * len(address)
    if not length_text.isascii() or not length_text.isdigit() or len(length_text) > 3:
        raise BadPacket(f"not a prefix: {text[:64]!r}")
    length = int(length_text)
    if length > 8 * len(address):
        raise BadPacket(f"prefix longer than its address: {text[:64]!r}")
    if mask(address, length) != address:
        raise BadPacket(f"prefix with host bits set: {text[:64]!r}")
    return address, length


def format_prefix(prefix: Prefix) -> str:
    return f"{format_address(prefix[0])}/{prefix[1]}"


def mask(address: bytes, length: int) -> bytes:
    """Clear every bit of `address` behind the first `length`."""
    bits = 8 * len(address)
    number = int.from_bytes(address, "big") >> (bits - length) << (bits - length)
    return number.to_bytes(len(address), "big")


def prefix_contains(prefix: Prefix, address: bytes) -> bool:
    network, length = prefix
    return len(network) == len(address) and mask(address, length) == network


def is_tailscale_address(address: bytes) -> bool:
    return prefix_contains(CGNAT, address) or prefix_contains(TAILSCALE_ULA, address)


# Kinds of addresses. By their first bytes, so that a question costs one comparison.


def is_martian_source(address: bytes) -> bool:
    """Sources no packet may have, whoever sent it: nobody could be answered, or somebody else would be.

    IPv4 (RFC 1122 section 3.2.1.3): "this network", loopback, multicast, reserved and broadcast. IPv6 (RFC 4291
    section 2.5): multicast, and all of ::/96 and ::ffff:0:0/96. These hold the unspecified and the loopback address,
    and IPv4 addresses in IPv6 clothes, which a filter would judge as IPv6 and a socket of the host would take for IPv4.
    """
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] >= 224
    return address[0] == 0xFF or address[:12] in (bytes(12), bytes(10) + b"\xff\xff")


def is_multicast(address: bytes) -> bool:
    return address[0] >> 4 == 0xE if len(address) == 4 else address[0] == 0xFF


def is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def is_link_local(address: bytes) -> bool:
    """RFC 3927, and RFC 4291 section 2.5.6."""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_private(address: bytes) -> bool:
    """RFC 1918 and RFC 4193; the addresses of a tailnet are another thing."""
    if len(address) == 4:
        return address[0] == 10 or address[:2] == b"\xc0\xa8" or (address[0] == 172 and address[1] & 0xF0 == 16)
    return address[0] & 0xFE == 0xFC


def ones_complement_sum(data: bytes) -> int:
    """The 16-bit one's-complement sum of `data`, by one big division: 3 us for a full packet, a loop takes 90."""
    if len(data) & 1:
        data += b"\0"
    return int.from_bytes(data, "big") % 0xFFFF


def checksum(data: bytes, start: int = 0) -> int:
    """The Internet checksum field for `data` (RFC 1071); `start` is a pseudo-header's sum."""
    return ~((ones_complement_sum(data) + start) % 0xFFFF) & 0xFFFF


def pseudo_header_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The sum every TCP, UDP and ICMPv6 checksum starts from."""
    return ones_complement_sum(source + destination) + protocol + (length >> 16) + (length & 0xFFFF)
