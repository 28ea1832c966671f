"""The deterministic bytes both sides of the rig agree on; the Go twin is peers/tailscale/pattern.

One block of 65521 bytes (a prime, so a shift by any packet size shows) repeated for ever.
"""

from __future__ import annotations

import hashlib

BLOCK_SIZE = 65521
BLOCK = b"".join(hashlib.sha256(i.to_bytes(8, "big")).digest() for i in range(BLOCK_SIZE // 32 + 1))[:BLOCK_SIZE]


def pattern(count: int) -> bytes:
    """The first `count` bytes of the stream."""
    return (BLOCK * (count // BLOCK_SIZE + 1))[:count]


def pattern_sha256(count: int) -> str:
    """The hash of the first `count` bytes, without building them."""
    h = hashlib.sha256()
    whole, rest = divmod(count, BLOCK_SIZE)
    for _ in range(whole):
        h.update(BLOCK)
    h.update(BLOCK[:rest])
    return h.hexdigest()
