"""Host names from outside, checked once before anything resolves or dials them.

Owns: what a host may look like (RFC 1123 section 2.1, RFC 3490). Refuses to know: who asks and what answers.
"""

from __future__ import annotations

import re

from ts_base.errors import BadPacket
from ts_base.ip import maybe_address

LONGEST_NAME = 253  # RFC 1035 section 2.3.4, in text
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


def check_host_untrusted(text: str) -> str:
    """The ASCII form of a name, or an address as it is: what every resolver and TLS library takes. BadPacket else."""
    if len(text) > LONGEST_NAME:
        raise BadPacket("a host name longer than any")
    if maybe_address(text) is not None:
        return text
    try:
        name = text.encode("idna").decode("ascii")
    except UnicodeError:
        raise BadPacket(f"not a host name: {text!a}") from None
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise BadPacket(f"not a host name: {text!a}")
    return name
