"""WireGuard's handshake written straight from the paper's formulas (section 5.4), beside the one built on a package."""

from __future__ import annotations

import hmac
from hashlib import blake2s

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

CHAIN = blake2s(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s").digest()
HASH = blake2s(CHAIN + b"WireGuard v1 zx2c4 Jason@zx2c4.com").digest()


def dh(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def kdf(chain: bytes, data: bytes, count: int) -> list[bytes]:
    key, out = hmac.digest(chain, data, blake2s), [b""]
    for n in range(1, count + 1):
        out.append(hmac.digest(key, out[-1] + bytes([n]), blake2s))
    return out[1:]


def seal(key: bytes, clear: bytes, digest: bytes) -> tuple[bytes, bytes]:
    sealed = ChaCha20Poly1305(key).encrypt(bytes(12), clear, digest)
    return sealed, blake2s(digest + sealed).digest()


def twin_initiation(static: bytes, ephemeral: bytes, remote: bytes, timestamp: bytes) -> tuple[bytes, bytes, bytes]:
    """Noise message, chaining key, hash."""
    digest = blake2s(HASH + remote).digest()
    point = public_of(ephemeral)
    [chain] = kdf(CHAIN, point, 1)
    digest = blake2s(digest + point).digest()
    chain, key = kdf(chain, dh(ephemeral, remote), 2)
    sealed_static, digest = seal(key, public_of(static), digest)
    chain, key = kdf(chain, dh(static, remote), 2)
    sealed_timestamp, digest = seal(key, timestamp, digest)
    return point + sealed_static + sealed_timestamp, chain, digest


def twin_response(
    chain: bytes, digest: bytes, ephemeral: bytes, remote_ephemeral: bytes, remote: bytes, psk: bytes
) -> tuple[bytes, tuple[bytes, bytes]]:
    """Noise message, and the keys the initiator and the responder send with."""
    point = public_of(ephemeral)
    [chain] = kdf(chain, point, 1)
    digest = blake2s(digest + point).digest()
    [chain] = kdf(chain, dh(ephemeral, remote_ephemeral), 1)
    [chain] = kdf(chain, dh(ephemeral, remote), 1)
    chain, tau, key = kdf(chain, psk, 3)
    digest = blake2s(digest + tau).digest()
    sealed, _ = seal(key, b"", digest)
    to_responder, to_initiator = kdf(chain, b"", 2)
    return point + sealed, (to_responder, to_initiator)
