"""TSMP, the small messages nodes send each other inside the tunnel (IP protocol 99; dataplane notes E.8).

Owns the four bodies and their packets: connection rejected, ping, pong, disco key advertisement. When they are sent is
engine.py's business. All numbers are big-endian.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import TSMP
from ts_base.ip_headers import ip_packet
from ts_base.keys import KEY_LENGTH
from ts_dataplane.packets import Parsed

REJECTED, PING, PONG, DISCO_KEY = 0x21, 0x70, 0x6F, 0x61  # "!", "p", "o", "a"
REASONS = {
    "A": "access rules",
    "S": "shields up",
    "F": "forwarding is off",
    "W": "host firewall",
    "T": "unknown app connector address",
}
TOKEN_LENGTH = 8
_MAYBE_BROKEN = 0x01

# type 1 | IP protocol 1 | reason 1 | source port 2 | destination port 2 [| flags 1], ports of the rejected packet
_REJECTED = Struct(">BBBHH")
# type 1 | the ping's token 8 [| peerAPI port 2]
_PONG = Struct(">B8sH")

Address = tuple[bytes, int]


class TsmpReject(NamedTuple):
    """A peer refuses a connection of ours: the dial from `local` to `remote` may fail at once.

    `maybe_broken` says the peer is not sure that it is final.
    """

    peer: int
    protocol: int
    reason: str  # one letter of REASONS, or any other the future brings
    local: Address
    remote: Address
    maybe_broken: bool
    is_usual: bool = True
    """False: from an exit that only some flows go by. It speaks for `remote` in those and in no others."""


class TsmpPong(NamedTuple):
    """A peer answered the ping that carried `token`; `peerapi_port` is 0 if it did not say."""

    peer: int
    token: bytes
    peerapi_port: int


class DiscoKeyAdvertised(NamedTuple):
    """A peer told us, inside its tunnel, the disco key it uses now."""

    peer: int
    key: bytes


class TsmpPing(NamedTuple):
    """A peer asks whether we hear it."""

    peer: int
    token: bytes


TsmpMessage = TsmpReject | TsmpPong | TsmpPing | DiscoKeyAdvertised


def decode_untrusted(peer: int, packet: bytes, parsed: Parsed) -> TsmpMessage:
    """The message in a whole TSMP packet from `peer`."""
    body = packet[parsed.transport :]
    kind = body[0] if body else 0
    if kind == REJECTED and len(body) >= _REJECTED.size:
        _, protocol, reason, local_port, remote_port = _REJECTED.unpack_from(body)
        flags = body[_REJECTED.size] if len(body) > _REJECTED.size else 0
        # The packet comes from the node that rejects, so its destination is the side that dialled.
        local, remote = (parsed.destination, local_port), (parsed.source, remote_port)
        return TsmpReject(peer, protocol, chr(reason), local, remote, bool(flags & _MAYBE_BROKEN))
    if kind == PING and len(body) >= 1 + TOKEN_LENGTH:
        return TsmpPing(peer, body[1 : 1 + TOKEN_LENGTH])
    if kind == PONG and len(body) >= 1 + TOKEN_LENGTH:
        port = int.from_bytes(body[9:11], "big") if len(body) >= _PONG.size else 0
        return TsmpPong(peer, body[1 : 1 + TOKEN_LENGTH], port)
    if kind == DISCO_KEY and len(body) >= 1 + KEY_LENGTH:
        return DiscoKeyAdvertised(peer, body[1 : 1 + KEY_LENGTH])
    raise BadPacket(f"TSMP message of kind {kind:#04x} and {len(body)} bytes")


def encode_rejected(rejected: Parsed, reason: str) -> bytes:
    """The packet that tells the sender of `rejected` why; goes back the way it came."""
    ports = rejected.source_port, rejected.destination_port
    body = _REJECTED.pack(REJECTED, rejected.protocol, ord(reason), *ports)
    return ip_packet(rejected.destination, rejected.source, TSMP, body)


def encode_ping(source: bytes, destination: bytes, token: bytes) -> bytes:
    if len(token) != TOKEN_LENGTH:
        raise ValueError(f"a ping carries {TOKEN_LENGTH} bytes, not {len(token)}")
    return ip_packet(source, destination, TSMP, bytes([PING]) + token)


def encode_pong(source: bytes, destination: bytes, token: bytes, peerapi_port: int) -> bytes:
    return ip_packet(source, destination, TSMP, _PONG.pack(PONG, token, peerapi_port))


def encode_disco_key(source: bytes, destination: bytes, key: bytes) -> bytes:
    if len(key) != KEY_LENGTH:
        raise ValueError(f"a disco key has {KEY_LENGTH} bytes, not {len(key)}")
    return ip_packet(source, destination, TSMP, bytes([DISCO_KEY]) + key)
