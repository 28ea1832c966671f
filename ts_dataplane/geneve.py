"""The eight Geneve bytes around every datagram that crosses a peer relay.

Owns that header only; the bind handshake that earns a VNI is `peer_relay.py`. RFC 8926, as Tailscale uses it.
"""

from __future__ import annotations

from struct import Struct

from ts_base.errors import BadPacket

# version and option length 1, always 0 | control bit 0x80 1 | protocol 2 | VNI 3 | reserved 1
_HEADER = Struct(">BBHI")
HEADER_LENGTH = _HEADER.size
DISCO, WIREGUARD = 0x7A11, 0x7A12
CONTROL = 0x80
MAX_VNI = 0xFFFFFF
DISCO_MAGIC = b"TS\xf0\x9f\x92\xac"


def encode_header(protocol: int, vni: int, *, control: bool = False) -> bytes:
    if not 0 <= vni <= MAX_VNI:
        raise ValueError(f"a VNI has 24 bits, {vni} does not fit")
    return _HEADER.pack(0, CONTROL if control else 0, protocol, vni << 8)


def is_geneve(datagram: bytes) -> bool:
    """Would a peer relay's datagram look like this? Cheap enough to ask of every datagram."""
    return (
        len(datagram) > HEADER_LENGTH
        and datagram[0] == 0
        and not datagram[1] & 0x3F
        and datagram[2] == 0x7A
        and datagram[3] in (0x11, 0x12)
        and datagram[7] == 0
    )


def decode_header_untrusted(datagram: bytes) -> tuple[int, int, bool]:
    """Protocol, VNI and the control bit; the inner datagram starts at `HEADER_LENGTH`."""
    if not is_geneve(datagram):
        raise BadPacket("not a peer relay's datagram")
    _, flags, protocol, vni = _HEADER.unpack_from(datagram)
    return protocol, vni >> 8, bool(flags & CONTROL)


def encapsulate(vni: int, datagrams: list[bytes]) -> list[bytes]:
    """A run of disco or WireGuard datagrams as the peer relay wants them."""
    wireguard, disco = encode_header(WIREGUARD, vni), encode_header(DISCO, vni)
    return [(disco if datagram.startswith(DISCO_MAGIC) else wireguard) + datagram for datagram in datagrams]
