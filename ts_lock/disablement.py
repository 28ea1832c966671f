"""Turning a lock off: a secret that is shown once, of which the lock keeps a value.

Owns: how the value is made of the secret. Argon2i is slow on purpose (some 80 ms, 16 MiB): only what claims to end a
lock is worth it. Older `cryptography` has no Argon2i: then no secret is right, and the lock stays.
"""

from __future__ import annotations

import hmac

from ts_base.optional import optional
from ts_lock.state import LockState

SALT = b"tailscale network-lock disablement salt"
PASSES, MEMORY, LANES, LENGTH = 4, 16 * 1024, 4, 32  # the memory in KiB
LONGEST_SECRET = 1024

_argon2 = optional("cryptography.hazmat.primitives.kdf.argon2", "Argon2i")


def disablement_value(secret: bytes) -> bytes | None:
    """What a lock stores of a secret; None where this cannot be computed."""
    if _argon2 is None or not 0 < len(secret) <= LONGEST_SECRET:
        return None
    derive = _argon2.Argon2i(salt=SALT, length=LENGTH, iterations=PASSES, lanes=LANES, memory_cost=MEMORY).derive
    value: bytes = derive(secret)
    return value


def turns_off(state: LockState, secret: bytes) -> bool:
    """Whether `secret` is one of those that end this lock."""
    value = disablement_value(secret)
    if value is None:
        return False
    return any(hmac.compare_digest(value, stored) for stored in state.disablement_values)
