"""The four WireGuard messages as bytes (WireGuard paper, section 5.4). All integers are little-endian.

Owns layouts and lengths. Refuses to know what the sealed parts mean: to this file they are bytes of a fixed length.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct

from ts_base.errors import BadPacket

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4

# The type travels as one byte and three zero bytes, so it is read as one 32-bit integer.
#   initiation   0 type | 4 sender | 8 ephemeral 32, static 48, timestamp 28 | 116 mac1 | 132 mac2
#   response     0 type | 4 sender | 8 receiver | 12 ephemeral 32, nothing 16 | 60 mac1 | 76 mac2
#   cookie reply 0 type | 4 receiver | 8 nonce 24 | 32 cookie 32
#   transport    0 type | 4 receiver | 8 counter | 16 sealed packet, padded to 16
_INITIATION = Struct("<II108s16s16s")
_RESPONSE = Struct("<III48s16s16s")
_COOKIE_REPLY = Struct("<II24s32s")
_PREFIX = Struct("<II")

INITIATION_LENGTH = _INITIATION.size
RESPONSE_LENGTH = _RESPONSE.size
COOKIE_REPLY_LENGTH = _COOKIE_REPLY.size
TRANSPORT_OVERHEAD = 32
MACS_LENGTH = 32
MAC_LENGTH = 16
ZERO_MAC = bytes(MAC_LENGTH)

# Type and receiver of a transport datagram: what picks the session, by one slice and one dict hit.
prefix_of = itemgetter(slice(8))


def transport_prefix(index: int) -> bytes:
    return _PREFIX.pack(TRANSPORT, index)


def kind_of(datagram: bytes) -> int:
    """The message type, or 0 when the first four bytes are none."""
    if datagram[1:4] != b"\0\0\0" or not INITIATION <= datagram[0] <= TRANSPORT:
        return 0
    return datagram[0]


def encode_initiation(sender: int, noise: bytes) -> bytes:
    """Without its macs: they are made over these bytes and appended."""
    return _INITIATION.pack(INITIATION, sender, noise, ZERO_MAC, ZERO_MAC)[:-MACS_LENGTH]


def encode_response(sender: int, receiver: int, noise: bytes) -> bytes:
    """Without its macs."""
    return _RESPONSE.pack(RESPONSE, sender, receiver, noise, ZERO_MAC, ZERO_MAC)[:-MACS_LENGTH]


def encode_cookie_reply(receiver: int, nonce: bytes, sealed_cookie: bytes) -> bytes:
    return _COOKIE_REPLY.pack(COOKIE_REPLY, receiver, nonce, sealed_cookie)


def decode_initiation_untrusted(datagram: bytes) -> tuple[int, bytes]:
    """Sender index and Noise message."""
    if len(datagram) != INITIATION_LENGTH or kind_of(datagram) != INITIATION:
        raise BadPacket("not a handshake initiation")
    _, sender, noise, _, _ = _INITIATION.unpack(datagram)
    return sender, noise


def decode_response_untrusted(datagram: bytes) -> tuple[int, int, bytes]:
    """Sender index, receiver index and Noise message."""
    if len(datagram) != RESPONSE_LENGTH or kind_of(datagram) != RESPONSE:
        raise BadPacket("not a handshake response")
    _, sender, receiver, noise, _, _ = _RESPONSE.unpack(datagram)
    return sender, receiver, noise


def decode_cookie_reply_untrusted(datagram: bytes) -> tuple[int, bytes, bytes]:
    """Receiver index, nonce and sealed cookie."""
    if len(datagram) != COOKIE_REPLY_LENGTH or kind_of(datagram) != COOKIE_REPLY:
        raise BadPacket("not a cookie reply")
    _, receiver, nonce, sealed_cookie = _COOKIE_REPLY.unpack(datagram)
    return receiver, nonce, sealed_cookie


def mac1_of(handshake: bytes) -> bytes:
    """The first mac of a complete initiation or response."""
    return handshake[-MACS_LENGTH:-MAC_LENGTH]
