"""Which language a client speaks, by its first byte: one port serves them all. Knows no more than that."""

from __future__ import annotations

from enum import Enum

SOCKS4_REFUSAL = bytes((0, 0x5B, 0, 0, 0, 0, 0, 0))  # "request rejected or failed"


class Language(Enum):
    SOCKS5 = "SOCKS 5"
    SOCKS4 = "SOCKS 4"
    HTTP = "HTTP"
    TLS = "TLS"
    UNKNOWN = "none we know"


def language_of(first: int) -> Language:
    """A method of HTTP begins with a capital letter, a TLS record with 22 (RFC 8446, 5.1)."""
    match first:
        case 5:
            return Language.SOCKS5
        case 4:
            return Language.SOCKS4
        case 22:
            return Language.TLS
    return Language.HTTP if 0x41 <= first <= 0x5A else Language.UNKNOWN
