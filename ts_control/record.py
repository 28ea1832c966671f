"""Noise records: a byte stream sealed in pieces of at most 4096 bytes, either direction, any split.

Owns: record headers, big-endian nonce counters, and the early payload a server may put before HTTP/2.
Refuses to know: the handshake that made the keys, and what the stream carries.
"""

from __future__ import annotations

from struct import Struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ts_base.errors import BadPacket
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.handshake import HEADER_LENGTH, RECORD, REFUSAL, RESPONSE_LENGTH, Initiator
from ts_control.wire_register import EarlyNoise

#  0      1                 3
#  +------+-----------------+---------------------------+
#  | 0x04 | length (BE u16) | ciphertext, tag included  |   the whole at most 4096 bytes
#  +------+-----------------+---------------------------+
_HEADER = Struct(">BH")
MAX_RECORD = 4096
TAG_LENGTH = 16
MAX_CIPHERTEXT = MAX_RECORD - HEADER_LENGTH
MAX_PLAINTEXT = MAX_CIPHERTEXT - TAG_LENGTH

# The counter is big-endian here, little-endian in Noise's own text and in WireGuard.
_NONCE = Struct(">4xQ").pack

EARLY_MAGIC = b"\xff\xff\xffTS"
_EARLY_HEADER = Struct(">5sI")
EARLY_LIMIT = 65536  # what is sent today has 90 bytes


class RecordWriter:
    """Seals one direction."""

    def __init__(self, key: bytes) -> None:
        self._seal = ChaCha20Poly1305(key).encrypt
        self._counter = 0

    def write(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        for start in range(0, len(data), MAX_PLAINTEXT):
            sealed = self._seal(_NONCE(self._counter), data[start : start + MAX_PLAINTEXT], None)
            self._counter += 1
            pieces += (_HEADER.pack(RECORD, len(sealed)), sealed)
        return b"".join(pieces)

    def __repr__(self) -> str:
        return "RecordWriter([redacted])"


class RecordReader:
    """Opens the other direction, fed at any split. BadPacket is the end of the connection."""

    def __init__(self, key: bytes) -> None:
        self._open = ChaCha20Poly1305(key).decrypt
        self._counter = 0
        self._buffer = bytearray()

    def receive_untrusted(self, data: bytes) -> bytes:
        buffer = self._buffer
        buffer += data
        opened: list[bytes] = []
        start, available = 0, len(buffer)
        while available - start >= HEADER_LENGTH:
            kind, length = _HEADER.unpack_from(buffer, start)
            if kind != RECORD:
                raise BadPacket(f"record of unknown type {kind}")
            if not TAG_LENGTH <= length <= MAX_CIPHERTEXT:
                raise BadPacket(f"record of impossible length {length}")
            end = start + HEADER_LENGTH + length
            if end > available:
                break
            try:
                opened.append(self._open(_NONCE(self._counter), bytes(buffer[start + HEADER_LENGTH : end]), None))
            except InvalidTag:
                raise BadPacket("record does not open") from None
            self._counter += 1
            start = end
        del buffer[:start]
        return b"".join(opened)

    def __repr__(self) -> str:
        return "RecordReader([redacted])"


class ClientTransport:
    """The client's byte stream from the 101 on: the rest of the handshake, then records, early payload taken out."""

    def __init__(self, initiator: Initiator) -> None:
        self._initiator = initiator
        self._handshake = bytearray()
        self._reader: RecordReader | None = None
        self._writer: RecordWriter | None = None
        self._early = bytearray()
        self._early_done = False
        self.early: EarlyNoise | None = None

    @property
    def is_established(self) -> bool:
        return self._writer is not None

    def receive_untrusted(self, data: bytes) -> bytes:
        """Bytes off the wire to plaintext."""
        if self._reader is None:
            data = self._continue_handshake(data)
            if self._reader is None:
                return b""
        plain = self._reader.receive_untrusted(data)
        return plain if self._early_done else self._take_early(plain)

    def write(self, data: bytes) -> bytes:
        """Plaintext to bytes for the wire; only once established."""
        if self._writer is None:
            raise RuntimeError("the handshake is not finished")
        return self._writer.write(data)

    def _continue_handshake(self, data: bytes) -> bytes:
        buffer = self._handshake
        buffer += data
        if len(buffer) < HEADER_LENGTH:
            return b""
        kind, length = _HEADER.unpack_from(buffer)
        end = HEADER_LENGTH + length
        if end != RESPONSE_LENGTH and kind != REFUSAL:
            raise BadPacket("not a handshake response")
        if len(buffer) < end:
            return b""
        keys = self._initiator.finish_untrusted(bytes(buffer[:end]))
        self._reader, self._writer = RecordReader(keys.receive), RecordWriter(keys.send)
        rest = bytes(buffer[end:])
        buffer.clear()
        return rest

    def _take_early(self, plain: bytes) -> bytes:
        early = self._early
        early += plain
        if early[:5] != EARLY_MAGIC[: len(early)]:
            self._early_done = True
            return bytes(early)
        if len(early) < _EARLY_HEADER.size:
            return b""
        length = _EARLY_HEADER.unpack_from(early)[1]
        if length > EARLY_LIMIT:
            raise BadPacket(f"early payload of {length} bytes")
        end = _EARLY_HEADER.size + length
        if len(early) < end:
            return b""
        self.early = decode_json_untrusted(EarlyNoise, bytes(early[_EARLY_HEADER.size : end]))
        self._early_done = True
        return bytes(early[end:])


def encode_early_payload(early: EarlyNoise) -> bytes:
    """What a server puts before its first HTTP/2 frame."""
    text = encode_json(early)
    return _EARLY_HEADER.pack(EARLY_MAGIC, len(text)) + text
