"""DERP frames: the table of kinds, the reader that cuts a byte stream into them, and the encoders.

Owns the byte layout and its limits; knows nothing of keys' meaning, connections or time. The unit is the run
`(kind, key, [body, ...])`: consecutive packet frames with one key become one entry, because in bulk a read of
256 KiB holds two hundred of them. Layout: derp/derp.go, protocol version 2.
"""

from __future__ import annotations

from struct import Struct

from ts_base.errors import BadPacket

# kind u8, length u32 big-endian, then `length` bytes
HEADER = Struct(">BI")
HEADER_LENGTH = HEADER.size
KEY_LENGTH = 32

SERVER_KEY = 0x01  # magic 8, key 32 [, more]                                server -> client
CLIENT_INFO = 0x02  # key 32, nonce 24, box(JSON)                            client -> server
SERVER_INFO = 0x03  # nonce 24, box(JSON)                                    server -> client
SEND_PACKET = 0x04  # destination 32, packet                                 client -> server
RECV_PACKET = 0x05  # source 32, packet                                      server -> client
KEEP_ALIVE = 0x06  # empty, never answered                                   server -> client
NOTE_PREFERRED = 0x07  # 1 byte: 1 = my home                                 client -> server
PEER_GONE = 0x08  # peer 32 [, reason 1]                                     server -> client
PEER_PRESENT = 0x09  # peer 32 [, address 16, port 2 [, flags 1]]            server -> mesh
FORWARD_PACKET = 0x0A  # source 32, destination 32, packet                   mesh -> server
WATCH_CONNS = 0x10  # empty                                                  mesh -> server
CLOSE_PEER = 0x11  # peer 32                                                 mesh -> server
PING = 0x12  # 8 bytes                                                       both
PONG = 0x13  # the 8 bytes of the ping                                       both
HEALTH = 0x14  # UTF-8 problem, empty = healthy again                        server -> client
RESTARTING = 0x15  # reconnect-in u32 ms, try-for u32 ms                     server -> client

PROTOCOL_VERSION = 2
MAGIC = b"DERP\xf0\x9f\x94\x91"
PING_LENGTH = 8
MAX_PACKET_LENGTH = 65_536  # inside SendPacket and RecvPacket
MAX_FRAME_LENGTH = 1 << 20  # what a Go client accepts at all
MAX_SERVER_KEY_LENGTH = 1024
MAX_CLIENT_INFO_LENGTH = 256 << 10
PACKET_OVERHEAD = HEADER_LENGTH + KEY_LENGTH

GONE_DISCONNECTED = 0
GONE_NOT_HERE = 1
GONE_MESH_BROKEN = 0xF0

RESTARTING_BODY = Struct(">II")

Run = tuple[bytes, list[bytes]]
FrameRun = tuple[int, bytes, list[bytes]]

_read_header = HEADER.unpack_from
_write_header = HEADER.pack

# Stands for "no packet frame before this one": its length is beyond every limit, so no legal frame begins with it.
_NO_OPENING = b"\xff" * PACKET_OVERHEAD
_NO_STEP = 1 << 32


class FrameReader:
    """Cuts a stream into frames. `packet_kind` is the kind whose first 32 bytes are a key and which comes in bulk.

    Every other kind, and a packet frame too short for its key, is handed over with an empty key and its whole body.
    """

    __slots__ = ("_limit", "_needed", "_packet_kind", "_pending")

    def __init__(self, packet_kind: int, limit: int = MAX_FRAME_LENGTH) -> None:
        self._packet_kind = packet_kind
        self._limit = limit
        self._pending = bytearray()  # the start of a frame whose end has not come; never longer than one frame
        self._needed = HEADER_LENGTH  # how long `_pending` must grow before it is worth looking at again

    def feed(self, data: bytes | bytearray) -> list[FrameRun]:
        """Take the stream's next bytes, return the frames they complete. BadPacket: the stream cannot be read on."""
        data = bytes(data)  # free for bytes; some streams hand out bytearrays, whose slices are no dictionary keys
        pending = self._pending
        if pending:
            # A frame that drips in costs one copy in all, not one per drop.
            if len(pending) + len(data) < self._needed:
                pending += data
                return []
            data = b"".join((pending, data))
            pending.clear()
        frames, at = self._cut_untrusted(data)
        rest = len(data) - at
        if rest:
            pending += data[at:] if at else data
            if rest >= HEADER_LENGTH:
                self._needed = HEADER_LENGTH + self._check_length(_read_header(data, at)[1])
            else:
                self._needed = HEADER_LENGTH
        return frames

    def _check_length(self, length: int) -> int:
        if length > self._limit:
            raise BadPacket(f"relay frame of {length} bytes, the limit is {self._limit}")
        return length

    def _cut_untrusted(self, data: bytes) -> tuple[list[FrameRun], int]:
        frames: list[FrameRun] = []
        packet_kind, at, end = self._packet_kind, 0, len(data)
        opening, step, key, bodies = _NO_OPENING, _NO_STEP, b"", list[bytes]()
        same = data.startswith
        while end - at >= HEADER_LENGTH:
            # In bulk a frame has the header and the key of the one before: one comparison settles both. bench/derp.py
            if same(opening, at):
                after = at + step
                if after > end:
                    break
                bodies.append(data[at + PACKET_OVERHEAD : after])
                at = after
                continue
            kind, length = _read_header(data, at)
            after = at + HEADER_LENGTH + self._check_length(length)
            if after > end:
                break
            if kind == packet_kind and length >= KEY_LENGTH:
                opening, step = data[at : at + PACKET_OVERHEAD], HEADER_LENGTH + length
                if opening[HEADER_LENGTH:] != key:
                    key, bodies = opening[HEADER_LENGTH:], []
                    frames.append((kind, key, bodies))
                bodies.append(data[at + PACKET_OVERHEAD : after])
            else:
                frames.append((kind, b"", [data[at + HEADER_LENGTH : after]]))
                # The next packet opens a new run, so that what is read in order is handed over in order.
                opening, step, key = _NO_OPENING, _NO_STEP, b""
            at = after
        return frames, at


def encode_frame(kind: int, body: bytes = b"") -> bytes:
    return _write_header(kind, len(body)) + body


def encode_packets(kind: int, runs: list[Run]) -> bytes:
    """A whole batch of SendPacket or RecvPacket frames, in one piece. Packets must be within MAX_PACKET_LENGTH."""
    parts: list[bytes] = []
    append = parts.append
    for key, packets in runs:
        size, opening = -1, b""
        for packet in packets:
            if len(packet) != size:
                size = len(packet)
                opening = _write_header(kind, KEY_LENGTH + size) + key
            append(opening)
            append(packet)
    return b"".join(parts)


def encode_peer_gone(peer: bytes, reason: int) -> bytes:
    return encode_frame(PEER_GONE, peer + bytes((reason,)))
