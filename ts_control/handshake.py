"""The ts2021 handshake: Noise IK between a machine key and the control server's key, both sides.

Owns: the 101-byte initiation, the 51-byte response, the version prologue, the unauthenticated refusal message.
Refuses to know: records after the handshake (`record.py`), HTTP, and the maths (`ts_base.noise`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.keys import KEY_LENGTH, MachinePrivate, MachinePublic
from ts_base.noise import Handshake

PATTERN = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"

INITIATION, RESPONSE, REFUSAL, RECORD = 1, 2, 3, 4

#  0       2      3        5           37                      85           101
#  +-------+------+--------+-----------+-----------------------+------------+
#  |version| 0x01 | 0x0060 | ephemeral | machine key + its tag | payload tag|
#  +-------+------+--------+-----------+-----------------------+------------+
_INITIATION_HEADER = Struct(">HBH")
#  0      1        3                  35        51
#  +------+--------+------------------+---------+
#  | 0x02 | 0x0030 | server ephemeral |   tag   |
#  +------+--------+------------------+---------+
_FRAME_HEADER = Struct(">BH")
HEADER_LENGTH = _FRAME_HEADER.size
INITIATION_LENGTH = 101
RESPONSE_LENGTH = 51
REFUSAL_LIMIT = 4096  # characters of a stranger's text we are ready to hold

Entropy = Callable[[int], bytes]


class HandshakeRefused(BadPacket):
    """The other side answered with words instead of a handshake. Nobody vouches for the words."""


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """What the handshake leaves behind. The handshake hash may be shown; the keys may not."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)
    handshake_hash: bytes


class Initiator:
    """Our side of one handshake: `initiation` goes out, `finish_untrusted` takes the answer."""

    def __init__(self, machine: MachinePrivate, control: MachinePublic, version: int, *, entropy: Entropy) -> None:
        self._noise = Handshake(PATTERN, prologue=_prologue(version), static=machine.raw, remote_static=control.raw)
        message = self._noise.write(ephemeral=entropy(KEY_LENGTH))
        self.initiation = _INITIATION_HEADER.pack(version, INITIATION, len(message)) + message

    def finish_untrusted(self, response: bytes) -> TransportKeys:
        """`response` is one whole frame, header included."""
        if len(response) < HEADER_LENGTH:
            raise BadPacket("handshake response shorter than its header")
        kind, length = _FRAME_HEADER.unpack_from(response)
        if length != len(response) - HEADER_LENGTH:
            raise BadPacket("handshake response of another length than it says")
        if kind == REFUSAL:
            text = response[HEADER_LENGTH : HEADER_LENGTH + REFUSAL_LIMIT].decode("utf-8", "replace")
            raise HandshakeRefused(f"the server refused the handshake: {text}")
        if kind != RESPONSE or len(response) != RESPONSE_LENGTH:
            raise BadPacket("not a handshake response")
        self._noise.read_untrusted(response[HEADER_LENGTH:])
        return _keys_of(self._noise)

    def __repr__(self) -> str:
        return "Initiator([redacted])"


class Accepted(NamedTuple):
    """A client let in: who it is, what it speaks, and the bytes to answer with."""

    machine: MachinePublic
    version: int
    response: bytes
    keys: TransportKeys


def accept_untrusted(initiation: bytes, private: MachinePrivate, *, entropy: Entropy) -> Accepted:
    """The server's side, in one call. BadPacket for what deserves silence, HandshakeRefused for what gets an answer."""
    if len(initiation) != INITIATION_LENGTH:
        raise BadPacket("initiation of the wrong length")
    version, kind, length = _INITIATION_HEADER.unpack_from(initiation)
    if kind != INITIATION:
        raise HandshakeRefused("unexpected handshake message type")
    if length != INITIATION_LENGTH - _INITIATION_HEADER.size:
        raise HandshakeRefused("wrong handshake initiation length")
    noise = Handshake(PATTERN, prologue=_prologue(version), static=private.raw)
    noise.read_untrusted(initiation[_INITIATION_HEADER.size :])
    machine = MachinePublic(noise.remote_static)
    message = noise.write(ephemeral=entropy(KEY_LENGTH))
    return Accepted(machine, version, _FRAME_HEADER.pack(RESPONSE, len(message)) + message, _keys_of(noise))


def encode_refusal(text: str) -> bytes:
    words = text.encode()[:REFUSAL_LIMIT]
    return _FRAME_HEADER.pack(REFUSAL, len(words)) + words


def _prologue(version: int) -> bytes:
    return b"Tailscale Control Protocol v%d" % version


def _keys_of(noise: Handshake) -> TransportKeys:
    send, receive = noise.keys()
    return TransportKeys(send, receive, noise.digest)
