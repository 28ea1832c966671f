"""Curve25519 keys under the names Tailscale gives them.

Owns the text forms (`nodekey:` + 64 hex digits), clamping, and the promise that a private key never shows in a
repr, a log or an exception. Knows nothing of files, handshakes or randomness: entropy is an argument.
"""

from __future__ import annotations

import base64
import hmac
from typing import ClassVar, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ts_base.errors import BadPacket

KEY_LENGTH = 32
ZERO_KEY = bytes(KEY_LENGTH)


def exchange(private: bytes, public: bytes) -> bytes:
    """X25519. An all-zero shared secret (a low-order public key) is refused."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise BadPacket("public key gives no shared secret") from None


def public_of(private: bytes) -> bytes:
    """The public half of 32 raw private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def clamp(entropy: bytes) -> bytes:
    """Turn 32 random bytes into an X25519 scalar, as every Tailscale key is clamped when it is made."""
    if len(entropy) != KEY_LENGTH:
        raise ValueError(f"a key is made of {KEY_LENGTH} random bytes, not {len(entropy)}")
    scalar = bytearray(entropy)
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    return bytes(scalar)


def key_bytes_untrusted(text: str, prefix: str, what: str) -> bytes:
    """What stands behind the prefix of a key's text form; raises BadPacket on anything else."""
    # The offending text is not repeated: it may be a private key pasted into the wrong place.
    if not text.startswith(prefix):
        raise BadPacket(f"{what} does not start with {prefix!r}")
    digits = text[len(prefix) :]
    if len(digits) != 2 * KEY_LENGTH or not digits.isascii() or not digits.isalnum():
        raise BadPacket(f"{what} is not {2 * KEY_LENGTH} hexadecimal digits")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise BadPacket(f"{what} is not hexadecimal") from None


class PublicKey:
    """32 raw bytes with a text form. Equal and hashable by kind and value."""

    __slots__ = ("raw",)
    prefix: ClassVar[str] = ""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_LENGTH:
            raise BadPacket(f"a public key has {KEY_LENGTH} bytes, not {len(raw)}")
        self.raw = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; raises BadPacket on anything else."""
        return cls(key_bytes_untrusted(text, cls.prefix, cls.__name__))

    @classmethod
    def zero(cls) -> Self:
        """The key that stands for "no key" in fields that may not be left out."""
        return cls(ZERO_KEY)

    @property
    def is_zero(self) -> bool:
        return self.raw == ZERO_KEY

    @property
    def short(self) -> str:
        """`[AbCdE]`, the form Tailscale's own logs use."""
        return f"[{base64.b64encode(self.raw).decode()[:5]}]"

    def __str__(self) -> str:
        return self.prefix + self.raw.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.short})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash((self.prefix, self.raw))


class MachinePublic(PublicKey):
    __slots__ = ()
    prefix = "mkey:"


class NodePublic(PublicKey):
    __slots__ = ()
    prefix = "nodekey:"


class DiscoPublic(PublicKey):
    __slots__ = ()
    prefix = "discokey:"


class ChallengePublic(PublicKey):
    __slots__ = ()
    prefix = "chalpub:"


class PrivateKey:
    """A clamped X25519 scalar. Its repr is redacted; `export()` is the one deliberate way to the secret text."""

    __slots__ = ("public", "raw")
    prefix: ClassVar[str] = "privkey:"
    public_kind: ClassVar[type[PublicKey]] = PublicKey

    public: PublicKey

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_LENGTH or raw == ZERO_KEY:
            raise BadPacket("not a private key")
        self.raw = bytes(raw)
        self.public = self.public_kind(public_of(self.raw))

    @classmethod
    def generate(cls, entropy: bytes) -> Self:
        """Make a key from 32 bytes of somebody else's randomness."""
        return cls(clamp(entropy))

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(key_bytes_untrusted(text, cls.prefix, cls.__name__))

    def export(self) -> str:
        """The secret itself, in text. For the state store and nothing else."""
        return self.prefix + self.raw.hex()

    def exchange(self, public: bytes) -> bytes:
        return exchange(self.raw, public)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([redacted])"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(other.raw, self.raw)

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.public.raw))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("private keys are not pickled; use export()")


class MachinePrivate(PrivateKey):
    __slots__ = ()
    public_kind = MachinePublic
    public: MachinePublic


class NodePrivate(PrivateKey):
    __slots__ = ()
    public_kind = NodePublic
    public: NodePublic


class DiscoPrivate(PrivateKey):
    __slots__ = ()
    public_kind = DiscoPublic
    public: DiscoPublic
