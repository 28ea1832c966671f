"""The NaCl box (X25519, XSalsa20-Poly1305) that seals disco messages and the DERP hello.

A box is made once per pair of keys and reused: the key agreement is the dear part. Nonces are arguments.
"""

from __future__ import annotations

from nacl.bindings import (
    crypto_box_afternm,
    crypto_box_beforenm,
    crypto_box_BOXZEROBYTES,
    crypto_box_NONCEBYTES,
    crypto_box_open_afternm,
)
from nacl.exceptions import CryptoError

from ts_base.errors import BadPacket
from ts_base.keys import PrivateKey, PublicKey

NONCE_LENGTH: int = crypto_box_NONCEBYTES
TAG_LENGTH: int = crypto_box_BOXZEROBYTES


class Box:
    """Seals and opens between one private and one public key; a sealed message is nonce, tag, ciphertext."""

    __slots__ = ("_shared",)

    def __init__(self, ours: PrivateKey, theirs: PublicKey) -> None:
        try:
            self._shared: bytes = crypto_box_beforenm(theirs.raw, ours.raw)
        except (CryptoError, RuntimeError):
            raise BadPacket("public key gives no shared secret") from None

    def seal(self, plaintext: bytes, nonce: bytes) -> bytes:
        """`nonce` must be 24 bytes that were never used before."""
        return nonce + bytes(crypto_box_afternm(plaintext, nonce, self._shared))

    def open_untrusted(self, sealed: bytes) -> bytes:
        if len(sealed) < NONCE_LENGTH + TAG_LENGTH:
            raise BadPacket("sealed message shorter than its nonce and tag")
        try:
            return bytes(crypto_box_open_afternm(sealed[NONCE_LENGTH:], sealed[:NONCE_LENGTH], self._shared))
        except CryptoError:
            raise BadPacket("sealed message does not open") from None

    def __repr__(self) -> str:
        return "Box([redacted])"
