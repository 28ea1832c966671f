"""The two macs of a handshake message and the cookies behind the second one (WireGuard paper, sections 5.4.4, 5.4.7).

Owns mac keys, the issuer's rotating secret and the cookie reply. Refuses to know when load is high (that is
`handshake_guard.py`'s) and what a source is: callers hand over bytes that name one.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable
from hashlib import blake2s

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from ts_base.errors import BadPacket
from ts_tunnel.params import COOKIE_LIFETIME
from ts_tunnel.wire import MAC_LENGTH, MACS_LENGTH, ZERO_MAC, encode_cookie_reply, mac1_of

NONCE_LENGTH = 24
SECRET_LENGTH = 32


def mac1_key_of(public: bytes) -> bytes:
    return blake2s(b"mac1----" + public).digest()


def cookie_key_of(public: bytes) -> bytes:
    return blake2s(b"cookie--" + public).digest()


def keyed_mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=MAC_LENGTH).digest()


def append_macs(body: bytes, mac1_key: bytes, cookie: bytes | None) -> bytes:
    """Complete a handshake message for the owner of `mac1_key`."""
    with_mac1 = body + keyed_mac(mac1_key, body)
    return with_mac1 + (ZERO_MAC if cookie is None else keyed_mac(cookie, with_mac1))


def is_mac1_right(handshake: bytes, mac1_key: bytes) -> bool:
    return hmac.compare_digest(keyed_mac(mac1_key, handshake[:-MACS_LENGTH]), mac1_of(handshake))


def open_cookie_untrusted(public: bytes, sent_mac1: bytes, nonce: bytes, sealed_cookie: bytes) -> bytes:
    """The cookie that the owner of `public` gave in answer to the message we sent with `sent_mac1`."""
    try:
        return bytes(crypto_aead_xchacha20poly1305_ietf_decrypt(sealed_cookie, sent_mac1, nonce, cookie_key_of(public)))
    except CryptoError:
        raise BadPacket("cookie reply does not open") from None


class CookieIssuer:
    """Hands out cookies under load: a mac of where the asker sends from, under a secret that lives two minutes."""

    __slots__ = ("_entropy", "_key", "_secret", "_secret_made_at")

    def __init__(self, public: bytes, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._key = cookie_key_of(public)
        self._secret = b""
        self._secret_made_at = -math.inf

    def proves_source(self, handshake: bytes, source: bytes, now: float) -> bool:
        """Does the second mac show that its sender received our cookie at `source`?"""
        if now - self._secret_made_at >= COOKIE_LIFETIME:
            return False
        expected = keyed_mac(keyed_mac(self._secret, source), handshake[:-MAC_LENGTH])
        return hmac.compare_digest(expected, handshake[-MAC_LENGTH:])

    def reply(self, handshake: bytes, receiver: int, source: bytes, now: float) -> bytes:
        """The cookie reply to `handshake`; `receiver` is the sender index it carried."""
        if now - self._secret_made_at >= COOKIE_LIFETIME:
            self._secret, self._secret_made_at = self._entropy(SECRET_LENGTH), now
        nonce = self._entropy(NONCE_LENGTH)
        cookie = keyed_mac(self._secret, source)
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(cookie, mac1_of(handshake), nonce, self._key)
        return encode_cookie_reply(receiver, nonce, bytes(sealed))
