"""What a load balancer says in front of a connection of whose it is: PROXY, versions 1 and 2, read and written.

https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt. Believed only where the operator says that a balancer
stands in front: anybody can write such a header.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LONGEST_LINE = 107  # of version 1, its CR LF included: section 2.1
LONGEST_REST = 2048  # of version 2: addresses, and what some balancers add about TLS
HEAD = Struct(">BBH")
INET, INET6 = 1, 2
STREAM = 1
PROXY = 0x21  # version 2, and a connection that is relayed
VERSIONS = (1, 2)
ADDRESSES = {INET: Struct(">4s4sHH"), INET6: Struct(">16s16sHH")}


class ProxyHeader(NamedTuple):
    """`source` is None where the balancer speaks for itself, or does not know. `length` bytes were the header."""

    source: tuple[str, int] | None
    length: int


def encode_proxy_header(version: int, source: tuple[str, int], target: tuple[str, int]) -> bytes:
    """What stands in front of a connection from `source` to `target`: both of one family."""
    (source_host, source_port), (target_host, target_port) = source, target
    is_v6 = ":" in source_host
    if version == 1:
        family = "TCP6" if is_v6 else "TCP4"
        return f"PROXY {family} {source_host} {target_host} {source_port} {target_port}\r\n".encode()
    kind = INET6 if is_v6 else INET
    rest = ADDRESSES[kind].pack(parse_address(source_host), parse_address(target_host), source_port, target_port)
    return SIGNATURE + HEAD.pack(PROXY, kind << 4 | STREAM, len(rest)) + rest


def decode_proxy_header_untrusted(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with; None while it is not whole."""
    if data.startswith(SIGNATURE):
        return _binary_untrusted(data)
    if data.startswith(b"PROXY "):
        return _line_untrusted(data)
    if SIGNATURE.startswith(data) or b"PROXY ".startswith(data):
        return None
    raise BadPacket("the connection does not begin with a PROXY header")


def _line_untrusted(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, LONGEST_LINE)
    if end < 0:
        if len(data) >= LONGEST_LINE:
            raise BadPacket("a PROXY line has at most 107 bytes")
        return None
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return ProxyHeader(None, end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise BadPacket("a PROXY line names TCP4, TCP6 or UNKNOWN, two addresses and two ports")
    source, target = (_address(word, words[1]) for word in words[2:4])
    port, _ = _port(words[4]), _port(words[5])
    del target  # only its form matters
    return ProxyHeader((source, port), end + 2)


def _address(word: bytes, family: bytes) -> str:
    if not word.isascii() or (b":" in word) != (family == b"TCP6"):
        raise BadPacket("a PROXY line has an address of another family than it says")
    return format_address(parse_address(word.decode()))


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (len(word) > 1 and word[0] == 0x30) or int(word) > 65535:
        raise BadPacket("a PROXY line has a port that is none")
    return int(word)


def _binary_untrusted(data: bytes) -> ProxyHeader | None:
    if len(data) < len(SIGNATURE) + HEAD.size:
        return None
    version_and_command, family_and_protocol, rest = HEAD.unpack_from(data, len(SIGNATURE))
    if version_and_command >> 4 != 2 or version_and_command & 0xF > 1:
        raise BadPacket("a PROXY header is of a version or command that is unknown")
    if rest > LONGEST_REST:
        raise BadPacket(f"a PROXY header is longer than {LONGEST_REST} bytes")
    start = len(SIGNATURE) + HEAD.size
    if len(data) < start + rest:
        return None
    shape = ADDRESSES.get(family_and_protocol >> 4)
    if not version_and_command & 0xF or shape is None:
        return ProxyHeader(None, start + rest)
    if rest < shape.size:
        raise BadPacket("a PROXY header ends within its addresses")
    source, _, port, _ = shape.unpack_from(data, start)
    return ProxyHeader((format_address(parse_address(format_address(source))), port), start + rest)
