"""The first message of a TLS client, as far as it says whom it wants to reach and how: RFC 8446 section 4.1.2.

Owns SNI (RFC 6066 section 3) and ALPN (RFC 7301 section 3.1). Refuses to know anything else of TLS.
"""

from __future__ import annotations

from dataclasses import dataclass

from ts_base.errors import BadPacket

LONGEST_HELLO = 16 << 10
HANDSHAKE, CLIENT_HELLO = 22, 1
SERVER_NAME, ALPN = 0, 16
MOST_PROTOCOLS = 32
MOST_RECORDS = 16  # of one message: nobody cuts it finer but to make us work


@dataclass(frozen=True, slots=True)
class ClientHello:
    name: str
    """In lower case; "" where the client names nobody."""
    protocols: tuple[str, ...]


def client_hello_untrusted(data: bytes) -> ClientHello | None:
    """None while more bytes are needed. BadPacket for what is no such message."""
    message = _message(data)
    if message is None:
        return None
    reader = _Reader(message)
    reader.take(2 + 32)  # version, random
    reader.vector(1)  # session id
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression methods
    name, protocols = "", tuple[str, ...]()
    extensions = _Reader(reader.vector(2) if reader.left else b"")
    while extensions.left:
        kind, content = extensions.number(2), _Reader(extensions.vector(2))
        if kind == SERVER_NAME:
            name = _server_name(content)
        elif kind == ALPN:
            protocols = _protocols(content)
    return ClientHello(name, protocols)


def _message(data: bytes) -> bytes | None:
    """The handshake message, which may be cut into records: RFC 8446 section 5.1."""
    message, rest = b"", data
    for _ in range(MOST_RECORDS):
        if len(rest) < 5:
            return None
        if rest[0] != HANDSHAKE or rest[1] != 3:
            raise BadPacket("TLS: not the beginning of a handshake")
        length = int.from_bytes(rest[3:5])
        if not 0 < length <= LONGEST_HELLO:
            raise BadPacket("TLS: a record of no good length")
        message, rest = message + rest[5 : 5 + length], rest[5 + length :]
        if message[:1] not in (b"", bytes([CLIENT_HELLO])):
            raise BadPacket("TLS: not a client's first message")
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4])
            if wanted > LONGEST_HELLO:
                raise BadPacket("TLS: a first message that is too long")
            if len(message) >= wanted:
                return message[4:wanted]
    raise BadPacket("TLS: a first message in too many records")


class _Reader:
    """Numbers and vectors, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise BadPacket("TLS: a first message that is cut short")
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))


def _server_name(content: _Reader) -> str:
    names = _Reader(content.vector(2))
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == 0:
            return name.decode("ascii", "replace").lower().rstrip(".")
    return ""


def _protocols(content: _Reader) -> tuple[str, ...]:
    listed, found = _Reader(content.vector(2)), list[str]()
    while listed.left:
        if len(found) == MOST_PROTOCOLS:
            raise BadPacket("TLS: too many protocols")
        found.append(listed.vector(1).decode("latin-1"))
    return tuple(found)
