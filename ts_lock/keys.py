"""The Ed25519 keys that sign for a tailnet, under the names Tailscale gives them.

Owns: their text forms, signing and checking, and that a private key never shows in a repr. Refuses to know: what is
signed, and who is trusted. Entropy is an argument.
"""

from __future__ import annotations

import hmac
from hashlib import blake2s

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from ts_base.errors import BadPacket
from ts_base.keys import KEY_LENGTH, key_bytes_untrusted

SIGNATURE_LENGTH = 64
PUBLIC, SHOWN, PRIVATE = "nlpub:", "tlpub:", "nlpriv:"  # registration says the first, command lines the second


def digest(data: bytes) -> bytes:
    """BLAKE2s-256, the only hash of a lock."""
    return blake2s(data).digest()


def is_signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `public` signed `message`. libsodium refuses some keys more, that nobody has by chance."""
    if len(public) != KEY_LENGTH or len(signature) != SIGNATURE_LENGTH:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except (CryptoError, ValueError):
        return False
    return True


class LockPrivate:
    """A signing key: a seed of 32 bytes. Its repr is redacted; `export()` is the one way to the secret text."""

    __slots__ = ("_key", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_LENGTH:
            raise BadPacket("not a private key")
        self.seed = bytes(seed)
        self._key = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def parse(cls, text: str) -> LockPrivate:
        """Read the text form; raises BadPacket on anything else, without repeating it."""
        return cls(key_bytes_untrusted(text, PRIVATE, "a lock's private key"))

    def export(self) -> str:
        """The secret itself, for the state store and nothing else."""
        return PRIVATE + self.seed.hex()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def secret_for(self, purpose: bytes) -> bytes:
        """32 bytes that nobody else knows, for a purpose that is no signature."""
        return blake2s(purpose, key=self.seed).digest()

    def __repr__(self) -> str:
        return "LockPrivate([redacted])"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LockPrivate) and hmac.compare_digest(other.seed, self.seed)

    def __hash__(self) -> int:
        return hash(self.public)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("private keys are not pickled; use export()")


def public_text(public: bytes) -> str:
    """`tlpub:` and 64 digits, as people write and read it."""
    return SHOWN + public.hex()


def registered_text(public: bytes) -> str:
    """`nlpub:` and 64 digits, as registration says it."""
    return PUBLIC + public.hex()


def parse_public(text: str) -> bytes:
    """Either text form; raises BadPacket."""
    for prefix in (PUBLIC, SHOWN):
        if text.startswith(prefix):
            return key_bytes_untrusted(text, prefix, "a lock's key")
    raise BadPacket(f"a lock's key starts with {SHOWN!r} or {PUBLIC!r}")
