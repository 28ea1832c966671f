"""Which server a TLS client wants, read from the first message it sends, and how to refuse it. Nothing is decrypted.

RFC 8446 sections 4.1.2, 5.1 and 6; RFC 6066 section 3. A client may cut its ClientHello into records as it likes and
its records into segments; what it has sent is read once, however it was cut. A name inside an encrypted ClientHello
stays hidden: the outer one counts, as that RFC's draft wants of whoever only passes bytes on.
"""

from __future__ import annotations

from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import maybe_address

HANDSHAKE, ALERT = 22, 21  # types of records
CLIENT_HELLO = 1
SERVER_NAME, ALPN = 0, 16  # types of extensions; the first is the type of a host name in it as well
RECORD_HEAD, MESSAGE_HEAD = 5, 4
LONGEST_RECORD = 1 << 14
LONGEST_HELLO = 16 << 10  # a client with post-quantum keys and a long ECH sends 2 to 4 KiB
RECORDS = 64  # that one may be cut into
LONGEST_NAME = 253  # RFC 1035, 2.3.4, without the dot at its end
LONGEST_LABEL = 63
NAME_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")

# Alerts, RFC 8446 section 6.
UNEXPECTED_MESSAGE, RECORD_OVERFLOW, ILLEGAL_PARAMETER, DECODE_ERROR = 10, 22, 47, 50
PROTOCOL_VERSION, INTERNAL_ERROR, MISSING_EXTENSION, UNRECOGNIZED_NAME = 70, 80, 109, 112
FATAL = 2


class BadHello(BadPacket):
    """No ClientHello that leads anywhere; `alert` is what its client is told."""

    def __init__(self, sentence: str, alert: int) -> None:
        super().__init__(sentence)
        self.alert = alert


class ClientHello(NamedTuple):
    """What is known of a client. `protocols` are those of ALPN, in its order."""

    name: str
    protocols: tuple[bytes, ...]


def encode_alert(description: int) -> bytes:
    """A whole record that ends a handshake which has not begun."""
    return bytes((ALERT, 3, 3, 0, 2, FATAL, description))


class HelloReader:
    """Takes what a client sends until its ClientHello is whole. `received` is all of it, to be passed on as it came."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._message = bytearray()
        self._next_record = 0
        self._records = 0

    def receive_untrusted(self, data: bytes) -> ClientHello | None:
        """The hello once it is whole, None before that. Raises BadHello."""
        self.received += data
        received = self.received
        while True:
            wanted = self._wanted()
            if wanted and len(self._message) >= wanted:
                return decode_hello_untrusted(bytes(self._message[MESSAGE_HEAD:wanted]))
            start = self._next_record
            if len(received) <= start:
                return None
            if received[start] != HANDSHAKE:
                raise BadHello("the client does not begin with a TLS handshake", UNEXPECTED_MESSAGE)
            if len(received) < start + RECORD_HEAD:
                return None
            if received[start + 1] != 3:
                raise BadHello("the client speaks no version of TLS that there is", PROTOCOL_VERSION)
            length = int.from_bytes(received[start + 3 : start + 5], "big")
            if length > LONGEST_RECORD:
                raise BadHello("a record is longer than TLS allows", RECORD_OVERFLOW)
            if not length:  # RFC 8446, 5.1: zero-length fragments of handshake types are not sent
                raise BadHello("a record of the handshake is empty", UNEXPECTED_MESSAGE)
            end = start + RECORD_HEAD + length
            if len(received) < end:
                return None
            self._records += 1
            if self._records > RECORDS:
                raise BadHello(f"the ClientHello is cut into more than {RECORDS} records", DECODE_ERROR)
            self._message += received[start + RECORD_HEAD : end]
            self._next_record = end

    def _wanted(self) -> int:
        """How long the message is, its head included; 0 while that is not known."""
        if self._message and self._message[0] != CLIENT_HELLO:
            raise BadHello("the client begins with another message than ClientHello", UNEXPECTED_MESSAGE)
        if len(self._message) < MESSAGE_HEAD:
            return 0
        length = int.from_bytes(self._message[1:4], "big")
        if length > LONGEST_HELLO:
            raise BadHello(f"the ClientHello has {length} bytes, more than {LONGEST_HELLO}", DECODE_ERROR)
        return MESSAGE_HEAD + length


class _Fields:
    """A vector of TLS, read from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise BadHello("a field of the ClientHello ends behind its end", DECODE_ERROR)
        taken, self._at = self._data[self._at : end], end
        return taken

    def vector(self, size: int) -> bytes:
        """As many bytes as the number of `size` bytes in front of them says."""
        return self.take(self.number(size))


def decode_hello_untrusted(body: bytes) -> ClientHello:
    """The body of a ClientHello. Raises BadHello, also where it names no server."""
    fields = _Fields(body)
    if fields.take(2)[0] != 3:  # legacy_version
        raise BadHello("the client speaks no version of TLS that there is", PROTOCOL_VERSION)
    fields.take(32)  # random
    if len(fields.vector(1)) > 32 or len(fields.vector(2)) % 2 or not fields.vector(1):  # session, suites, compression
        raise BadHello("the ClientHello breaks RFC 8446, 4.1.2", DECODE_ERROR)
    name = ""
    protocols: tuple[bytes, ...] = ()
    seen: set[int] = set()
    extensions = _Fields(fields.vector(2) if fields else b"")
    if fields:
        raise BadHello("the ClientHello goes on behind its extensions", DECODE_ERROR)
    while extensions:
        kind, data = extensions.number(2), extensions.vector(2)
        if kind in seen:  # RFC 8446, 4.2; and two names would let two readers see two servers
            raise BadHello("the ClientHello has an extension twice", ILLEGAL_PARAMETER)
        seen.add(kind)
        if kind == SERVER_NAME:
            name = _name_untrusted(data)
        elif kind == ALPN:
            protocols = _protocols_untrusted(data)
    if not name:  # RFC 8446, 9.2
        raise BadHello("the client does not say which server it wants", MISSING_EXTENSION)
    return ClientHello(name, protocols)


def _protocols_untrusted(data: bytes) -> tuple[bytes, ...]:
    """RFC 7301, 3.1."""
    names = _Fields(_Fields(data).vector(2))
    protocols = []
    while names:
        protocols.append(names.vector(1))
    return tuple(protocols)


def _name_untrusted(data: bytes) -> str:
    """The one host name that RFC 6066 allows, in small letters."""
    names = _Fields(_Fields(data).vector(2))
    found: list[bytes] = []
    while names:
        kind, value = names.number(1), names.vector(2)
        if kind == SERVER_NAME:
            found.append(value)
    if len(found) != 1:
        raise BadHello("the client names several servers, or none", ILLEGAL_PARAMETER)
    name = found[0].lower().removesuffix(b".")
    labels = name.split(b".")
    if (
        not 0 < len(name) <= LONGEST_NAME
        or not NAME_LETTERS.issuperset(name)
        or not all(0 < len(label) <= LONGEST_LABEL for label in labels)
    ):
        raise BadHello("the client wants a server whose name is none", UNRECOGNIZED_NAME)
    text = name.decode("ascii")
    if maybe_address(text) is not None or labels[-1].isdigit():  # RFC 6066, 3: no addresses, and no 127.1 either
        raise BadHello("the client names an address in place of a server", UNRECOGNIZED_NAME)
    return text
