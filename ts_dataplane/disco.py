"""The disco wire format: the sealed envelope and its nine messages.

Owns layouts and the bounded cache of boxes. Refuses to know peers, paths and time: who may say what, and over
which path, is `disco_inbox.py`'s business. Lenient as upstream: bytes after the known payload are ignored, an unknown
type is dropped. Facts: Tailscale's disco package; all integers big-endian.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, NamedTuple

from ts_base.box import NONCE_LENGTH, TAG_LENGTH, Box
from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_address
from ts_base.keys import KEY_LENGTH, DiscoPrivate, DiscoPublic
from ts_base.who import Direct

# magic 6 | sender's disco key 32 | nonce 24 | tag 16 | type 1, version 1, payload
MAGIC = b"TS\xf0\x9f\x92\xac"
SENDER_END = len(MAGIC) + KEY_LENGTH
ENVELOPE_LENGTH = SENDER_END + NONCE_LENGTH + TAG_LENGTH
HEADER_LENGTH = 2

TRANSACTION_LENGTH = 12
CHALLENGE_LENGTH = 32
ENDPOINT_LENGTH = 18
UNPADDED_PING = ENVELOPE_LENGTH + HEADER_LENGTH + TRANSACTION_LENGTH + KEY_LENGTH  # 124 bytes on the wire

MAX_BOXES = 1024
MAX_ENDPOINTS = 64  # of a list in one message; more is nobody's honest answer

_MAPPED = bytes(10) + b"\xff\xff"
_PORT = Struct(">H")
_BIND = Struct(">II32s32s")  # VNI, generation, remote disco key, challenge
_RELAY_ENDPOINT = Struct(">32s32s32sQIQQ")  # server, two clients, Lamport id, VNI, bind and steady lifetimes in ns
_ALLOCATE = Struct(">32s32sI")
_GENERATION = Struct(">I")


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Padding makes the datagram as large as the data that shall follow it."""

    kind: ClassVar[int] = 1
    transaction: bytes
    node_key: bytes | None = None  # who of the nodes behind this disco key is asking
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Pong:
    kind: ClassVar[int] = 2
    transaction: bytes
    source: Direct  # where the ping was seen to come from


@dataclass(frozen=True, slots=True)
class CallMeMaybe:
    """Ping me at these addresses; I have just opened my side."""

    kind: ClassVar[int] = 3
    endpoints: tuple[Direct, ...]


class Bind(NamedTuple):
    """One step of the three-way handshake with a peer relay; `kind` says which."""

    kind: int
    vni: int
    generation: int
    remote_disco: bytes
    challenge: bytes = bytes(CHALLENGE_LENGTH)


BIND, CHALLENGE, ANSWER = 4, 5, 6


class RelayEndpoint(NamedTuple):
    """A place on a peer relay kept for two clients."""

    server_disco: bytes
    client_discos: tuple[bytes, bytes]
    lamport: int
    vni: int
    bind_lifetime_ns: int
    steady_lifetime_ns: int
    addresses: tuple[Direct, ...]


@dataclass(frozen=True, slots=True)
class CallMeMaybeVia:
    kind: ClassVar[int] = 7
    endpoint: RelayEndpoint


@dataclass(frozen=True, slots=True)
class AllocateRequest:
    kind: ClassVar[int] = 8
    client_discos: tuple[bytes, bytes]
    generation: int


@dataclass(frozen=True, slots=True)
class AllocateResponse:
    kind: ClassVar[int] = 9
    generation: int
    endpoint: RelayEndpoint


Message = Ping | Pong | CallMeMaybe | Bind | CallMeMaybeVia | AllocateRequest | AllocateResponse


# ---- addresses: 16 bytes (IPv4 mapped into IPv6) and a port


def encode_endpoint(endpoint: Direct) -> bytes:
    address = parse_address(endpoint[0])
    return (_MAPPED + address if len(address) == 4 else address) + _PORT.pack(endpoint[1])


def _decode_endpoint(field: bytes) -> Direct:
    # A mapped address must never reach a candidate table: it breaks sending and comparing.
    address = field[12:16] if field[:12] == _MAPPED else field[:16]
    return format_address(address), _PORT.unpack_from(field, 16)[0]


def _decode_endpoints(field: bytes) -> tuple[Direct, ...]:
    end = min(len(field), MAX_ENDPOINTS * ENDPOINT_LENGTH)
    return tuple(_decode_endpoint(field[at : at + ENDPOINT_LENGTH]) for at in range(0, end, ENDPOINT_LENGTH))


# ---- the plaintext


def encode_message(message: Message) -> bytes:
    """Type, version 0 and payload, before sealing."""
    return bytes((message.kind, 0)) + _encode_payload(message)


def _encode_payload(message: Message) -> bytes:
    match message:
        case Ping():
            return message.transaction + (message.node_key or b"") + bytes(message.padding)
        case Pong():
            return message.transaction + encode_endpoint(message.source)
        case CallMeMaybe():
            return b"".join(map(encode_endpoint, message.endpoints))
        case Bind():
            return _BIND.pack(message.vni, message.generation, message.remote_disco, message.challenge)
        case CallMeMaybeVia():
            return _encode_relay_endpoint(message.endpoint)
        case AllocateRequest():
            return _ALLOCATE.pack(*message.client_discos, message.generation)
        case AllocateResponse():
            return _GENERATION.pack(message.generation) + _encode_relay_endpoint(message.endpoint)


def _encode_relay_endpoint(endpoint: RelayEndpoint) -> bytes:
    fixed = _RELAY_ENDPOINT.pack(
        endpoint.server_disco,
        *endpoint.client_discos,
        endpoint.lamport,
        endpoint.vni,
        endpoint.bind_lifetime_ns,
        endpoint.steady_lifetime_ns,
    )
    return fixed + b"".join(map(encode_endpoint, endpoint.addresses))


def decode_message_untrusted(plaintext: bytes) -> Message:
    """The message inside an opened envelope. BadPacket when it is unknown or too short."""
    if len(plaintext) < HEADER_LENGTH:
        raise BadPacket("disco message without a header")
    decode = _DECODERS.get(plaintext[0])
    if decode is None:
        raise BadPacket(f"unknown disco message type {plaintext[0]}")
    return decode(plaintext[0], plaintext[1], plaintext[HEADER_LENGTH:])


def _decode_ping(_kind: int, _version: int, payload: bytes) -> Message:
    _need(payload, TRANSACTION_LENGTH)
    end = TRANSACTION_LENGTH + KEY_LENGTH
    if len(payload) < end:
        return Ping(payload[:TRANSACTION_LENGTH], None, len(payload) - TRANSACTION_LENGTH)
    return Ping(payload[:TRANSACTION_LENGTH], payload[TRANSACTION_LENGTH:end], len(payload) - end)


def _decode_pong(_kind: int, _version: int, payload: bytes) -> Message:
    _need(payload, TRANSACTION_LENGTH + ENDPOINT_LENGTH)
    return Pong(payload[:TRANSACTION_LENGTH], _decode_endpoint(payload[TRANSACTION_LENGTH:]))


def _decode_call(_kind: int, version: int, payload: bytes) -> Message:
    if version != 0 or len(payload) % ENDPOINT_LENGTH:
        return CallMeMaybe(())
    return CallMeMaybe(_decode_endpoints(payload))


def _decode_bind(kind: int, _version: int, payload: bytes) -> Message:
    _need(payload, _BIND.size)
    return Bind(kind, *_BIND.unpack_from(payload))


def _decode_via(_kind: int, version: int, payload: bytes) -> Message:
    _need_version_0(version)
    return CallMeMaybeVia(_decode_relay_endpoint(payload))


def _decode_request(_kind: int, version: int, payload: bytes) -> Message:
    _need_version_0(version)
    _need(payload, _ALLOCATE.size)
    first, second, generation = _ALLOCATE.unpack_from(payload)
    return AllocateRequest((first, second), generation)


def _decode_response(_kind: int, version: int, payload: bytes) -> Message:
    _need_version_0(version)
    _need(payload, _GENERATION.size)
    return AllocateResponse(_GENERATION.unpack_from(payload)[0], _decode_relay_endpoint(payload[_GENERATION.size :]))


def _decode_relay_endpoint(payload: bytes) -> RelayEndpoint:
    _need(payload, _RELAY_ENDPOINT.size + ENDPOINT_LENGTH)
    server, first, second, lamport, vni, bind, steady = _RELAY_ENDPOINT.unpack_from(payload)
    addresses = payload[_RELAY_ENDPOINT.size :]
    if len(addresses) % ENDPOINT_LENGTH:
        raise BadPacket("relay endpoint with a torn address list")
    return RelayEndpoint(server, (first, second), lamport, vni, bind, steady, _decode_endpoints(addresses))


def _need_version_0(version: int) -> None:
    # Go reads a later version as a message of zeros, which then means nothing to anybody.
    if version != 0:
        raise BadPacket(f"disco message of version {version}")


def _need(payload: bytes, length: int) -> None:
    if len(payload) < length:
        raise BadPacket(f"disco payload of {len(payload)} bytes where {length} are needed")


_DECODERS: dict[int, Callable[[int, int, bytes], Message]] = {
    Ping.kind: _decode_ping,
    Pong.kind: _decode_pong,
    CallMeMaybe.kind: _decode_call,
    BIND: _decode_bind,
    CHALLENGE: _decode_bind,
    ANSWER: _decode_bind,
    CallMeMaybeVia.kind: _decode_via,
    AllocateRequest.kind: _decode_request,
    AllocateResponse.kind: _decode_response,
}


# ---- the envelope


def sender_untrusted(datagram: bytes) -> bytes:
    """The disco key the datagram claims to come from; nothing is proven before it opens."""
    if len(datagram) < ENVELOPE_LENGTH or not datagram.startswith(MAGIC):
        raise BadPacket("not a disco datagram")
    return datagram[len(MAGIC) : SENDER_END]


class Boxes:
    """Seals and opens disco datagrams of one private key; the last `MAX_BOXES` key agreements are kept."""

    def __init__(self, ours: DiscoPrivate, entropy: Callable[[int], bytes]) -> None:
        self._ours = ours
        self._prefix = MAGIC + ours.public.raw
        self._entropy = entropy
        self._boxes: OrderedDict[bytes, Box] = OrderedDict()

    @property
    def public(self) -> bytes:
        return self._ours.public.raw

    def seal(self, theirs: bytes, message: Message) -> bytes:
        return self._prefix + self._box(theirs).seal(encode_message(message), self._entropy(NONCE_LENGTH))

    def open_untrusted(self, datagram: bytes) -> Message:
        """The message inside, proven to come from the key in the envelope."""
        sender = sender_untrusted(datagram)
        return decode_message_untrusted(self._box(sender).open_untrusted(datagram[SENDER_END:]))

    def _box(self, theirs: bytes) -> Box:
        box = self._boxes.get(theirs)
        if box is None:
            box = self._boxes[theirs] = Box(self._ours, DiscoPublic(theirs))
            if len(self._boxes) > MAX_BOXES:
                self._boxes.popitem(last=False)
        else:
            self._boxes.move_to_end(theirs)
        return box
