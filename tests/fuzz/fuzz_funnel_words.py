"""What a relay says of a connection: a source and a target of one form, or BadPacket; and ports of an attribute."""

from __future__ import annotations

import contextlib

from tailscale.funnel.words import (
    LONGEST_NAME,
    PORTS,
    allowed_ports,
    public_name,
    read_source_untrusted,
    read_target_untrusted,
)
from tailscale.ingress.targets import status_of_untrusted
from ts_base.errors import BadPacket
from ts_base.ip import is_tailscale_address, parse_address


def fuzz_one(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        host, port = read_source_untrusted(text)
    except BadPacket:
        pass
    else:
        assert not is_tailscale_address(parse_address(host))
        written = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert read_source_untrusted(written) == (host, port)
    try:
        name, port = read_target_untrusted(text)
    except BadPacket:
        pass
    else:
        assert name == name.lower()
        assert len(name) <= LONGEST_NAME
        assert public_name(name) == name.removesuffix(".")
        assert read_target_untrusted(f"{name}:{port}")[1] == port
    with contextlib.suppress(BadPacket):
        assert 0 <= status_of_untrusted(data) < 1000
    for first, last in allowed_ports([text, f"{PORTS}?ports={text}"]):
        assert 0 <= first < 100_000
        assert 0 <= last < 100_000


def seeds() -> list[bytes]:
    return [
        b"203.0.113.9:5555",
        b"[2001:db8::9]:1",
        b"100.64.0.1:80",
        b"a.rig.ts.net:8443",
        b"443,8443,10000-10010",
        b"443&" + b"ports=80&" * 20,
        b"WEB.example.:443",
        b"HTTP/1.1 101 Switching Protocols\r\nx: y",
    ]
