"""The DERP greeting: who the server is, who the client is, sealed between their two keys.

Owns the bodies of ServerKey, ClientInfo and ServerInfo in both directions and the token bucket ServerInfo may
impose. Knows nothing of connections. `Derp-Public-Key` of the HTTP answer is not used: the ServerKey frame tells.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from ts_base.box import NONCE_LENGTH, Box
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate, NodePublic
from ts_derp.frames import (
    KEY_LENGTH,
    MAGIC,
    MAX_CLIENT_INFO_LENGTH,
    MAX_PACKET_LENGTH,
    MAX_SERVER_KEY_LENGTH,
    PACKET_OVERHEAD,
    PROTOCOL_VERSION,
)

MAGIC_AND_KEY = len(MAGIC) + KEY_LENGTH
MIN_BURST = MAX_PACKET_LENGTH + PACKET_OVERHEAD  # a bucket smaller than the largest frame would never let it through


class RateLimit(NamedTuple):
    """A token bucket over whole frames, header and key included."""

    bytes_per_second: int
    burst: int


class TokenBucket:
    """Says how many bytes may pass now."""

    __slots__ = ("_at", "_burst", "_rate", "tokens")

    def __init__(self, limit: RateLimit, now: float) -> None:
        self._rate = limit.bytes_per_second
        self._burst = max(limit.burst, MIN_BURST)
        self._at = now
        self.tokens = float(self._burst)

    def refill(self, now: float) -> None:
        self.tokens = min(self._burst, self.tokens + (now - self._at) * self._rate)
        self._at = now

    def solvent_at(self) -> float:
        """When the bucket is out of debt; the past if it is not in debt."""
        return self._at if self.tokens >= 0 else self._at - self.tokens / self._rate


def encode_server_key(public: NodePublic) -> bytes:
    return MAGIC + public.raw


def decode_server_key_untrusted(body: bytes) -> NodePublic:
    if not MAGIC_AND_KEY <= len(body) <= MAX_SERVER_KEY_LENGTH or not body.startswith(MAGIC):
        raise BadPacket("not a relay's greeting")
    return NodePublic(body[len(MAGIC) : MAGIC_AND_KEY])


def encode_client_info(ours: NodePrivate, server: NodePublic, nonce: bytes) -> bytes:
    # meshKey is left out: any text but 64 hexadecimal digits makes derper hang up.
    info = json.dumps({"version": PROTOCOL_VERSION, "CanAckPings": True}, separators=(",", ":")).encode()
    return ours.public.raw + Box(ours, server).seal(info, nonce)


def decode_client_info_untrusted(body: bytes, ours: NodePrivate) -> NodePublic:
    """The key the client has proven to hold."""
    if not KEY_LENGTH + NONCE_LENGTH <= len(body) <= MAX_CLIENT_INFO_LENGTH:
        raise BadPacket("client info of an impossible length")
    client = NodePublic(body[:KEY_LENGTH])
    if client.is_zero:
        raise BadPacket("client info without a key")
    _load_object(Box(ours, client).open_untrusted(body[KEY_LENGTH:]))
    return client


def encode_server_info(ours: NodePrivate, client: NodePublic, nonce: bytes, limit: RateLimit | None) -> bytes:
    info: dict[str, int] = {"version": PROTOCOL_VERSION}
    if limit is not None:
        info["TokenBucketBytesPerSecond"] = limit.bytes_per_second
        info["TokenBucketBytesBurst"] = limit.burst
    return Box(ours, client).seal(json.dumps(info, separators=(",", ":")).encode(), nonce)


def decode_server_info_untrusted(body: bytes, ours: NodePrivate, server: NodePublic) -> RateLimit | None:
    """The limit the server asks us to keep, if it asks."""
    info = _load_object(Box(ours, server).open_untrusted(body))
    rate, burst = info.get("TokenBucketBytesPerSecond"), info.get("TokenBucketBytesBurst")
    if type(rate) is int and type(burst) is int and 0 < rate < 1 << 53 and 0 < burst < 1 << 53:
        return RateLimit(rate, burst)
    return None


def _load_object(text: bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadPacket("greeting is not JSON") from None
    if not isinstance(value, dict):
        raise BadPacket("greeting is not a JSON object")
    return value
