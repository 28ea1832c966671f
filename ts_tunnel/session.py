"""One pair of transport keys: sealing and opening whole runs (WireGuard paper, section 5.4.6).

Owns counters, padding and the replay window; its two batch functions are the dearest lines of the room and
`bench/tunnel.py` holds them against bare ChaCha20-Poly1305. Refuses to know slots, timers and paths.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from struct import Struct
from sys import byteorder

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ts_base.ip import TUNNEL_MTU
from ts_base.who import PeerId
from ts_tunnel.params import (
    PADDING_MULTIPLE,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_AFTER_TIME_RECEIVING,
)
from ts_tunnel.replay import ReplayWindow
from ts_tunnel.wire import transport_prefix

_counter_field = Struct("<Q").pack
_ZERO4 = bytes(4)  # before the counter field, this makes the nonce
_UNALIGNED = PADDING_MULTIPLE - 1
_LITTLE_ENDIAN = byteorder == "little"


def _pad(packet: bytes) -> bytes:
    """Zero bytes up to a multiple of 16, but never beyond the MTU: a packet that already is longer stays as it is."""
    length = len(packet)
    return packet.ljust(min(length + (-length & _UNALIGNED), TUNNEL_MTU), b"\0")


class Session:
    """Made when a handshake completes, used for at most 180 s. `index` is ours, the peer's is inside the prefix."""

    __slots__ = (
        "_decrypt",
        "_encrypt",
        "_outbound_prefix",
        "_window",
        "created_at",
        "inbound_prefix",
        "index",
        "is_initiator",
        "peer",
        "sent",
    )

    def __init__(
        self,
        peer: PeerId,
        index: int,
        remote_index: int,
        keys: tuple[bytes, bytes],
        *,
        is_initiator: bool,
        now: float,
    ) -> None:
        self.peer = peer
        self.index = index
        self.inbound_prefix = transport_prefix(index)
        self.is_initiator = is_initiator
        self.created_at = now
        self.sent = 0
        self._outbound_prefix = transport_prefix(remote_index)
        self._encrypt = ChaCha20Poly1305(keys[0]).encrypt
        self._decrypt = ChaCha20Poly1305(keys[1]).decrypt
        self._window = ReplayWindow()

    def seal_batch(self, packets: Sequence[bytes]) -> list[bytes]:
        """One datagram per packet, in order; the caller has asked `may_seal` first."""
        encrypt, prefix, zero4 = self._encrypt, self._outbound_prefix, _ZERO4
        if len(packets) == 1:  # a small exchange has no run to share the cost of one with
            packet, field = packets[0], _counter_field(self.sent)
            self.sent += 1
            if len(packet) & _UNALIGNED:
                packet = _pad(packet)
            return [prefix + field + encrypt(zero4 + field, packet, None)]
        counters = range(self.sent, self.sent + len(packets))
        self.sent = counters.stop
        if any(length & _UNALIGNED for length in set(map(len, packets))):
            packets = [_pad(packet) for packet in packets]
        # encrypt_into a reused buffer is slower here: the datagram must become `bytes` of its own anyway.
        return [
            prefix + field + encrypt(zero4 + field, packet, None)
            for packet, field in zip(packets, map(_counter_field, counters), strict=True)
        ]

    def open_batch(self, datagrams: Sequence[bytes]) -> tuple[list[bytes], int, int]:
        """Plaintexts in order of arrival with their padding on, how many did not open, how many were replays."""
        decrypt = self._decrypt
        plaintexts: list[bytes] = []
        fields: list[bytes] = []
        for datagram in datagrams:
            field = datagram[8:16]
            # A datagram too short for a counter or a tag raises like a forged one, which spares each a length test.
            try:
                plaintexts.append(decrypt(_ZERO4 + field, datagram[16:], None))
            except (InvalidTag, ValueError):
                continue
            fields.append(field)
        forged = len(datagrams) - len(fields)
        if not fields:
            return plaintexts, forged, 0
        if len(fields) == 1:
            if self._window.accept(int.from_bytes(fields[0], "little")):
                return plaintexts, forged, 0
            return [], forged, 1
        counters = array("Q", b"".join(fields))
        if not _LITTLE_ENDIAN:
            counters.byteswap()
        refused = self._window.refuse(counters.tolist())
        for position in reversed(refused):
            del plaintexts[position]
        return plaintexts, forged, len(refused)

    def is_alive(self, now: float) -> bool:
        """May what arrives still be opened?"""
        return now - self.created_at < REJECT_AFTER_TIME

    def may_seal(self, now: float, count: int = 1) -> bool:
        return now - self.created_at < REJECT_AFTER_TIME and self.sent + count <= REJECT_AFTER_MESSAGES

    def needs_rekey_on_send(self, now: float) -> bool:
        """Section 6.2: only the initiator renews for age, so that the two sides do not both start."""
        return self.sent > REKEY_AFTER_MESSAGES or (self.is_initiator and now - self.created_at >= REKEY_AFTER_TIME)

    def needs_rekey_on_receive(self, now: float) -> bool:
        return self.is_initiator and now - self.created_at >= REKEY_AFTER_TIME_RECEIVING

    def stop_sealing(self) -> None:
        """Our static key changed: what is on its way may still arrive, nothing new goes out."""
        self.sent = REJECT_AFTER_MESSAGES

    def __repr__(self) -> str:
        return f"Session(index={self.index:#010x}, sent={self.sent}, keys=[redacted])"
