"""Where a client wants to go, as it wrote it: a host that may be an address in disguise, and a port.

Gives back one spelling for each destination, so that whoever judges it sees what will be dialled. Looks nothing up.
"""

from __future__ import annotations

import string
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import format_address, maybe_address

LONGEST_NAME = 253  # RFC 1035, 2.3.4, without the dot at its end
LONGEST_LABEL = 63
LONGEST_WRITTEN = 255  # what SOCKS can carry; nothing longer is looked at
OF_ADDRESSES = frozenset(string.hexdigits + ".:[]")
OF_NAMES = frozenset(string.ascii_letters + string.digits + "-_.")


class Destination(NamedTuple):
    """`host` is an address in its usual form, or a name in ASCII without a dot at its end."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def decode_host_untrusted(written: bytes) -> str:
    """A name or an address; one in brackets, and IPv4 in IPv6 clothes, become what they stand for."""
    if not 0 < len(written) <= LONGEST_WRITTEN:
        raise BadPacket("a host has between 1 and 255 bytes")
    text = _ascii(written)
    if OF_ADDRESSES.issuperset(text):
        in_brackets = text.startswith("[") and text.endswith("]")
        address = maybe_address(text[1:-1] if in_brackets else text)
        if address is not None and (":" in text or not in_brackets):
            return format_address(address)
    name = text.removesuffix(".")
    if not OF_NAMES.issuperset(name):
        raise BadPacket("a host name holds letters, digits, hyphens and dots")
    labels = name.split(".")
    if len(name) > LONGEST_NAME or not all(0 < len(label) <= LONGEST_LABEL for label in labels):
        raise BadPacket("no host can have that name: a part of it, or all of it, is too long or empty")
    if labels[-1].isdigit() or labels[-1][:2] in ("0x", "0X"):  # some resolvers take 127.1 and 0x7f000001 for addresses
        raise BadPacket("a host name ends in a number, and is no address")
    return name


def _ascii(written: bytes) -> str:
    """Names of other scripts as DNS carries them (RFC 5891)."""
    if written.isascii():
        return written.decode()
    import idna  # few clients leave this to the proxy

    try:
        return idna.encode(written.decode(), uts46=True).decode()
    except (UnicodeError, ValueError, IndexError):  # IDNAError among them
        raise BadPacket("a host name is neither ASCII nor UTF-8 that can be a name") from None


def decode_authority_untrusted(written: bytes, default_port: int | None = None) -> Destination:
    """`host:port`, `[v6]:port`, and `host` where there is a port to assume (RFC 3986, 3.2, without a user)."""
    host, colon, port = written.rpartition(b":")
    if not colon or written.endswith(b"]"):
        host, port = written, b""
    if b":" in host and not host.startswith(b"["):
        raise BadPacket("an IPv6 address in front of a port is written in brackets")
    if not port:
        if default_port is None:
            raise BadPacket("there is no port behind the host")
        return Destination(decode_host_untrusted(host), default_port)
    return Destination(decode_host_untrusted(host), decode_port_untrusted(port))


def decode_port_untrusted(written: bytes) -> int:
    """1 to 65535, in digits and nothing else."""
    if not written.isdigit() or len(written) > 5 or not 0 < int(written) < 65536:
        raise BadPacket("a port is a number between 1 and 65535")
    return int(written)
