"""Anything as a peer relay's datagram."""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_dataplane import geneve


def fuzz_one(data: bytes) -> None:
    try:
        protocol, vni, control = geneve.decode_header_untrusted(data)
    except BadPacket:
        assert not geneve.is_geneve(data)
        return
    assert protocol in (geneve.DISCO, geneve.WIREGUARD)
    header = geneve.encode_header(protocol, vni, control=control)
    assert header[4:8] == data[4:8]


def seeds() -> list[bytes]:
    return [
        geneve.encode_header(geneve.DISCO, 7, control=True) + b"x",
        geneve.encode_header(geneve.WIREGUARD, 7) + b"y",
    ]
