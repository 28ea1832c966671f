"""SOCKS 5 as the server speaks it: bytes in, what the client wants out, replies back as bytes. RFC 1928, RFC 1929.

Owns one client's negotiation up to the reply. Refuses to know who may come in, and what becomes of a request: both are
asked by returning from `receive`, and told by `accept`, `reject` and `reply`.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from struct import Struct
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_address
from ts_proxy.destinations import Destination, decode_host_untrusted

VERSION, SUB_VERSION = 5, 1
NO_USER, USER, NONE_FITS = 0, 2, 0xFF  # methods, RFC 1928 section 3
IPV4, NAME, IPV6 = 1, 3, 4
LENGTHS = {IPV4: 4, IPV6: 16}
PORT = Struct(">H")
UNSPECIFIED = ("0.0.0.0", 0)
MOST_HEAD = 4 + 1 + 255 + 2  # of a datagram: everything before its payload


class Command(IntEnum):
    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class Reply(IntEnum):
    """RFC 1928, section 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


class Credentials(NamedTuple):
    """Who the client says it is; `accept` or `reject` it."""

    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, ...)"


class SocksRequest(NamedTuple):
    """What the client wants; `reply` to it."""

    command: Command
    destination: Destination


class _Step(Enum):
    GREETING = auto()
    CREDENTIALS = auto()
    JUDGING = auto()  # whether the credentials will do
    REQUEST = auto()
    REPLYING = auto()
    OVER = auto()


class Socks5Server:
    """One negotiation. After BadPacket send what `transmit` still has, and hang up."""

    def __init__(self, *, needs_user: bool) -> None:
        self._needs_user = needs_user
        self._step = _Step.GREETING
        self._received = bytearray()
        self._out = bytearray()

    def receive(self, data: bytes) -> Credentials | SocksRequest | None:
        """What there is to decide now, None while more bytes are needed. After `accept` ask again, with b""."""
        self._received += data
        if self._step is _Step.GREETING:
            self._read_greeting()
        if self._step is _Step.CREDENTIALS:
            return self._read_credentials()
        if self._step is _Step.REQUEST:
            return self._read_request()
        return None

    def transmit(self) -> bytes:
        """What must leave."""
        out, self._out = bytes(self._out), bytearray()
        return out

    def take_rest(self) -> bytes:
        """What the client sent behind its request without waiting for the reply: the first bytes of the tunnel."""
        rest, self._received = bytes(self._received), bytearray()
        return rest

    # What is decided above

    def accept(self) -> None:
        self._out += bytes((SUB_VERSION, 0))
        self._step = _Step.REQUEST

    def reject(self) -> None:
        """RFC 1929: the connection must be closed after this."""
        self._out += bytes((SUB_VERSION, 1))
        self._step = _Step.OVER

    def reply(self, code: Reply, bound: tuple[str, int] = UNSPECIFIED) -> None:
        """The outcome. `bound` is our end of the connection that was made, or where datagrams are taken."""
        self._out += bytes((VERSION, code, 0)) + encode_address(*bound)
        self._step = _Step.OVER

    # What is read

    def _read_greeting(self) -> None:
        received = self._received
        if received and received[0] != VERSION:
            raise self._over("the greeting is not of SOCKS 5")
        if len(received) < 2 or len(received) < 2 + received[1]:
            return
        methods = bytes(received[2 : 2 + received[1]])
        del received[: 2 + len(methods)]
        # Without users a name is asked for all the same, if the client has one: it may name a session.
        if USER in methods:
            method, self._step = USER, _Step.CREDENTIALS
        elif NO_USER in methods and not self._needs_user:
            method, self._step = NO_USER, _Step.REQUEST
        else:
            self._out += bytes((VERSION, NONE_FITS))
            raise self._over("the client offers no way to log in that will do" if methods else "no method is offered")
        self._out += bytes((VERSION, method))

    def _read_credentials(self) -> Credentials | None:
        received = self._received
        if received and received[0] != SUB_VERSION:
            self.reject()
            raise BadPacket("the login is not of version 1")
        if len(received) < 2:
            return None
        end_of_user = 2 + received[1]
        if end_of_user == 2:
            self.reject()
            raise BadPacket("the login has no user name")
        if len(received) <= end_of_user:
            return None
        end = end_of_user + 1 + received[end_of_user]
        # RFC 1929 has passwords of 1 to 255 bytes. Where nobody is asked for one, an empty one does as well.
        if end == end_of_user + 1 and self._needs_user:
            self.reject()
            raise BadPacket("the login has no password")
        if len(received) < end:
            return None
        found = Credentials(bytes(received[2:end_of_user]), bytes(received[end_of_user + 1 : end]))
        del received[:end]
        self._step = _Step.JUDGING
        return found

    def _read_request(self) -> SocksRequest | None:
        received = self._received
        if received and received[0] != VERSION:
            self.reply(Reply.GENERAL_FAILURE)
            raise self._over("the request is not of SOCKS 5")
        if len(received) > 1 and received[1] not in (Command.CONNECT, Command.UDP_ASSOCIATE):
            self.reply(Reply.COMMAND_NOT_SUPPORTED)
            raise self._over(f"command {received[1]} is not served: only CONNECT and UDP ASSOCIATE are")
        if len(received) > 3 and received[3] not in (IPV4, NAME, IPV6):
            self.reply(Reply.ADDRESS_NOT_SUPPORTED)
            raise self._over(f"address type {received[3]} is unknown")
        end = end_of_address(received)
        if end is None or len(received) < end:
            return None
        command = Command(received[1])
        try:
            destination = _destination(command, bytes(received[:end]))
        except BadPacket:
            self.reply(Reply.GENERAL_FAILURE)
            raise
        del received[:end]
        self._step = _Step.REPLYING
        return SocksRequest(command, destination)

    def _over(self, why: str) -> BadPacket:
        self._step = _Step.OVER
        return BadPacket(why)


def _destination(command: Command, head: bytes) -> Destination:
    if command is Command.UDP_ASSOCIATE:
        # From where datagrams will come. Clients do not know their address as we see it, and some write the name "0".
        return Destination(UNSPECIFIED[0], PORT.unpack(head[-2:])[0])
    found = decode_address_untrusted(head)
    if found.port == 0:
        raise BadPacket("port 0 cannot be connected to")
    return found


def end_of_address(head: bytes | bytearray) -> int | None:
    """Where the port behind an address ends that begins at its type, byte 3; None while that cannot be said."""
    if len(head) < 5:
        return None
    if head[3] == NAME:
        return 5 + head[4] + 2
    length = LENGTHS.get(head[3])
    return None if length is None else 4 + length + 2


def decode_address_untrusted(head: bytes) -> Destination:
    """The address and port of a whole head: three bytes, then type, address and port."""
    (port,) = PORT.unpack(head[-2:])
    if head[3] == NAME:
        return Destination(decode_host_untrusted(head[5:-2]), port)
    # An IPv4 address in IPv6 clothes is the IPv4 address.
    return Destination(format_address(parse_address(format_address(head[4:-2]))), port)


def encode_address(host: str, port: int) -> bytes:
    """Type, address and port, as replies and datagrams carry them."""
    address = parse_address(host)
    return bytes((IPV4 if len(address) == 4 else IPV6,)) + address + PORT.pack(port)


# --- UDP, RFC 1928 section 7 ----------------------------------------------------------------------


class SocksDatagram(NamedTuple):
    """What a client wants sent, and where."""

    destination: Destination
    payload: bytes


def is_fragment(data: bytes) -> bool:
    """Whether this is a piece of a datagram: those are not put together here, which section 7 allows."""
    return len(data) > 2 and data[2] != 0


def decode_datagram_untrusted(data: bytes) -> SocksDatagram:
    """A whole datagram from a client."""
    if len(data) < 4 or data[:2] != b"\0\0":
        raise BadPacket("a datagram begins with two bytes of zero")
    if is_fragment(data):
        raise BadPacket("a fragment of a datagram")
    end = end_of_address(data)
    if end is None or len(data) < end:
        raise BadPacket("a datagram ends before its payload, or is for an address of an unknown type")
    destination = decode_address_untrusted(data[:end])
    if destination.port == 0:
        raise BadPacket("port 0 receives no datagrams")
    return SocksDatagram(destination, data[end:])


def encode_datagram(host: str, port: int, payload: bytes) -> bytes:
    """A datagram to a client: where it came from, and what it is."""
    return b"\0\0\0" + encode_address(host, port) + payload
