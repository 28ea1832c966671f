"""An account's key, and requests signed by it: JWS with ES256, as RFC 8555 section 6.2 narrows it.

Owns the forms of keys and signatures. Refuses to know nonces, and where a key is kept. Entropy is given.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ts_base.errors import BadPacket

LARGEST_KEY = 16 << 10
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ENTROPY_LENGTH = 48  # bytes that make a key: with 128 bits to spare, the remainder is even (FIPS 186-5, A.2.1)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def new_key(entropy: bytes) -> ec.EllipticCurvePrivateKey:
    """A P-256 key of these bytes."""
    if len(entropy) < ENTROPY_LENGTH:
        raise ValueError(f"a key takes {ENTROPY_LENGTH} bytes of entropy")
    return ec.derive_private_key(1 + int.from_bytes(entropy) % (P256_ORDER - 1), ec.SECP256R1())


def key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PEM, as upstream writes it ("EC PRIVATE KEY"). Secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def key_untrusted(text: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a PEM file."""
    try:
        key = load_pem_private_key(text, None) if len(text) <= LARGEST_KEY else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadPacket("no P-256 key in PEM")
    return key


def thumbprint(public: Mapping[str, Any]) -> str:
    """RFC 7638 section 3: the hash of these members in this order."""
    return base64url(hashlib.sha256(compact({name: public.get(name) for name in ("crv", "kty", "x", "y")})).digest())


class AccountKey:
    """The key of an account, and what is signed by it."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        numbers = key.public_key().public_numbers()
        x, y = (base64url(number.to_bytes(32)) for number in (numbers.x, numbers.y))
        self.public = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
        self.thumbprint = thumbprint(self.public)

    def __repr__(self) -> str:
        return f"AccountKey({self.thumbprint})"

    def sign(self, url: str, nonce: str, payload: dict[str, Any] | None, account: str) -> bytes:
        """The body of a POST; None is a POST-as-GET. Without an account the key itself is sent, to get one."""
        who = {"kid": account} if account else {"jwk": self.public}
        protected = base64url(compact({"alg": "ES256", **who, "nonce": nonce, "url": url}))
        text = base64url(compact(payload)) if payload is not None else ""
        der = self._key.sign(f"{protected}.{text}".encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        signature = base64url(r.to_bytes(32) + s.to_bytes(32))  # RFC 7518 section 3.4
        return compact({"protected": protected, "payload": text, "signature": signature})

    def authorize(self, token: str) -> bytes:
        """The hash of a challenge's key authorization: RFC 8555 section 8.1."""
        return hashlib.sha256(f"{token}.{self.thumbprint}".encode()).digest()
