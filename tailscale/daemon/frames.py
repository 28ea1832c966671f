"""What a command and the daemon say to each other once they have changed from HTTP to frames.

A frame is one byte of kind, four of length and its payload. Owns the kinds and the bounds; knows neither sockets nor
commands, and imports next to nothing: the light client starts with it.

    client   CALL, then INPUT when it is asked for, ENDED of a program, FILED of a file, SIGNAL
    daemon   OUT, ERR, WANT_INPUT, PROGRAM to be run there, and last EXIT; or DECLINED alone: run it yourself
             FILE to be written there (a path, and behind a zero a mode that is not 600): DATA, then WHOLE or ABANDON
"""

from __future__ import annotations

from struct import Struct

from ts_base.errors import BadPacket

PROTOCOL = "pytailscale-run"  # what the Upgrade header names
CALL, INPUT, SIGNAL, ENDED = b"C", b"I", b"S", b"E"
OUT, ERR, WANT_INPUT, PROGRAM, EXIT, DECLINED = b"1", b"2", b"R", b"P", b"X", b"N"
FILED, FILE, DATA, WHOLE, ABANDON = b"f", b"F", b"D", b"W", b"A"
OF_A_FILE = frozenset((FILE, DATA, WHOLE, ABANDON))
KINDS = frozenset(b"CISE12RPXNfFDWA")
HEAD = Struct("!cI")
LONGEST_FRAME = 1 << 20


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return HEAD.pack(kind, len(payload)) + payload


def frames(kind: bytes, data: bytes) -> bytes:
    """As many frames of one kind as `data` needs."""
    pieces = [data[start : start + LONGEST_FRAME] for start in range(0, len(data), LONGEST_FRAME)]
    return b"".join(frame(kind, piece) for piece in pieces)


class Frames:
    """Takes bytes as they come, gives whole frames."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def take_untrusted(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The frames that `data` completes. BadPacket for a kind nobody knows, and for one that is too long."""
        waiting = self._waiting
        waiting += data
        found: list[tuple[bytes, bytes]] = []
        start = 0
        while len(waiting) - start >= HEAD.size:
            kind, length = HEAD.unpack_from(waiting, start)
            if kind[0] not in KINDS or length > LONGEST_FRAME:
                raise BadPacket(f"a frame of kind {kind!r} and {length} bytes")
            end = start + HEAD.size + length
            if end > len(waiting):
                break
            found.append((kind, bytes(waiting[start + HEAD.size : end])))
            start = end
        del waiting[:start]
        return found
