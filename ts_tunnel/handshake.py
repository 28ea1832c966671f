"""The two halves of a WireGuard handshake: Noise IKpsk2 with a zero pre-shared key (paper, sections 5.4.2 to 5.4.5).

Owns what goes into the Noise messages, TAI64N timestamps included. Refuses to know macs, cookies, load, and whether a
peer is welcome: `handshakes.py` decides that, between `read_initiation_untrusted` and `respond`.
"""

from __future__ import annotations

from struct import Struct

from ts_base.errors import BadPacket
from ts_base.noise import Handshake
from ts_tunnel.wire import decode_initiation_untrusted, encode_initiation, encode_response

NAME = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
NO_PSK = bytes(32)

Keys = tuple[bytes, bytes]  # to seal with, to open with

_TAI64N = Struct(">QI")
_TAI_OF_UNIX_EPOCH = (1 << 62) + 10
_TICK_BITS = 24  # finer nanoseconds are cleared, so that a timestamp does not tell our clock's detail
TICKS_PER_SECOND = (1_000_000_000 >> _TICK_BITS) + 1


def tick_of(unix_time: float) -> int:
    """Wall-clock seconds as the number of a 2**24 ns tick: what one timestamp is newer than another by."""
    seconds = int(unix_time // 1)
    return seconds * TICKS_PER_SECOND + (int(unix_time % 1 * 1_000_000_000) >> _TICK_BITS)


def encode_timestamp(tick: int) -> bytes:
    """TAI64N of a tick; byte order is time order."""
    seconds, part = divmod(tick, TICKS_PER_SECOND)
    return _TAI64N.pack(_TAI_OF_UNIX_EPOCH + seconds, part << _TICK_BITS)


class Initiation:
    """Ours, waiting for its response. A forged response leaves it exactly as it was."""

    __slots__ = ("_ephemeral", "_noise", "_remote", "_static", "_timestamp", "body", "index")

    def __init__(self, static: bytes, remote: bytes, *, ephemeral: bytes, timestamp: bytes, index: int) -> None:
        self._static = static
        self._remote = remote
        self._ephemeral = ephemeral
        self._timestamp = timestamp
        self.index = index
        self._noise, message = self._write()
        self.body = encode_initiation(index, message)

    def _write(self) -> tuple[Handshake, bytes]:
        noise = Handshake(NAME, prologue=IDENTIFIER, static=self._static, remote_static=self._remote, psk=NO_PSK)
        return noise, noise.write(self._timestamp, ephemeral=self._ephemeral)

    def read_response_untrusted(self, message: bytes) -> Keys:
        try:
            self._noise.read_untrusted(message)
        except BadPacket:
            # The failed read has mixed the forger's bytes in; the same keys write the same state again.
            self._noise, _ = self._write()
            raise
        return self._noise.keys()

    def __repr__(self) -> str:
        return f"Initiation(index={self.index:#010x}, keys=[redacted])"


class HeardInitiation:
    """Theirs, authentic, not yet answered: who sent it, and the timestamp that must be newer than all before."""

    __slots__ = ("_noise", "remote", "remote_index", "timestamp")

    def __init__(self, noise: Handshake, remote_index: int, timestamp: bytes) -> None:
        self._noise = noise
        self.remote = noise.remote_static
        self.remote_index = remote_index
        self.timestamp = timestamp

    def respond(self, *, ephemeral: bytes, index: int) -> tuple[bytes, Keys]:
        """The response without its macs, and the keys; raises BadPacket when the peer's ephemeral is a bad point."""
        message = self._noise.write(ephemeral=ephemeral)
        return encode_response(index, self.remote_index, message), self._noise.keys()


def read_initiation_untrusted(static: bytes, datagram: bytes) -> HeardInitiation:
    remote_index, message = decode_initiation_untrusted(datagram)
    noise = Handshake(NAME, prologue=IDENTIFIER, static=static, psk=NO_PSK)
    timestamp = noise.read_untrusted(message)
    return HeardInitiation(noise, remote_index, timestamp)
