"""Capture files of packets, in the pcapng format: blocks as bytes, each with a comment and the whole packet's length.

Owns the format (draft-ietf-opsawg-pcapng), as much of it as a capture of whole IP packets needs. dpkt reads it back in
tests; its writer cannot say that a packet was cut short. Refuses to know files and queues.
"""

from __future__ import annotations

from struct import Struct, pack

RAW_IP = 101  # LINKTYPE_RAW: each packet begins with its IPv4 or IPv6 header
SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
BYTE_ORDER = 0x1A2B3C4D
END_OF_OPTIONS, COMMENT = 0, 1
PROGRAM, NAME, DESCRIPTION, FLAGS, RECEIVED, DROPPED = 4, 2, 3, 2, 4, 5  # of the block each belongs to
INBOUND, OUTBOUND = 1, 2
LONGEST_COMMENT = 512  # bytes

# block type 4 | total length 4 | ... | total length 4 again
_PACKET = Struct("<IIIIIII").pack  # type, length, interface, time high, time low, captured, original


def header(program: str, name: str, description: str, snaplen: int) -> bytes:
    """What a file begins with: one section, one interface."""
    section = pack("<IHHq", BYTE_ORDER, 1, 0, -1) + _option(PROGRAM, program.encode()) + _option(END_OF_OPTIONS, b"")
    named = _option(NAME, _cut(name)) + _option(DESCRIPTION, _cut(description)) + _option(END_OF_OPTIONS, b"")
    return _block(SECTION, section) + _block(INTERFACE, pack("<HHI", RAW_IP, 0, snaplen) + named)


def packet_block(at: float, data: bytes, length: int, *, is_inbound: bool, comment: str) -> bytes:
    """One packet; `data` is as much of it as is kept of `length` bytes, `at` is Unix time."""
    microseconds = int(at * 1_000_000)
    body = _padded(data) + _option(COMMENT, _cut(comment))
    body += pack("<HHIHH", FLAGS, 4, INBOUND if is_inbound else OUTBOUND, END_OF_OPTIONS, 0)
    total = 28 + len(body) + 4
    when = microseconds >> 32 & 0xFFFFFFFF, microseconds & 0xFFFFFFFF
    return _PACKET(PACKET, total, 0, *when, len(data), length) + body + pack("<I", total)


def end_block(at: float, *, received: int, dropped: int) -> bytes:
    """How many packets there were, and how many of them are not in the file."""
    microseconds = int(at * 1_000_000)
    counts = _option(RECEIVED, pack("<Q", received)) + _option(DROPPED, pack("<Q", dropped))
    when = pack("<III", 0, microseconds >> 32 & 0xFFFFFFFF, microseconds & 0xFFFFFFFF)
    return _block(STATISTICS, when + counts + _option(END_OF_OPTIONS, b""))


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return pack("<II", kind, total) + body + pack("<I", total)


def _option(code: int, value: bytes) -> bytes:
    return pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _cut(text: str) -> bytes:
    """UTF-8 of bounded length, whole characters only."""
    return text.encode("utf-8", "replace")[:LONGEST_COMMENT].decode("utf-8", "ignore").encode()
