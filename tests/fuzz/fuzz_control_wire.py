"""JSON in both directions of the control protocol: a message of its kind that survives a round trip, or BadPacket."""

from __future__ import annotations

import base64
import contextlib

from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_control.c2n import answer_c2n_untrusted
from ts_control.framing import decompress_untrusted, encode_frame
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.http1 import Http1Client, check_upgrade_untrusted
from ts_control.wire import Hostinfo, MapRequest, NetInfo
from ts_control.wire_register import EarlyNoise, RegisterAuth, RegisterRequest, RegisterResponse, ServerKeys

KINDS = (EarlyNoise, MapRequest, RegisterRequest, RegisterResponse, ServerKeys)
LIMIT = 1 << 16


def fuzz_one(data: bytes) -> None:
    for kind in KINDS:
        try:
            message = decode_json_untrusted(kind, data)
        except BadPacket:
            continue
        assert decode_json_untrusted(kind, encode_json(message)) == message
        repr(message)
    with contextlib.suppress(BadPacket):
        assert len(decompress_untrusted(data, LIMIT)) <= LIMIT
    with contextlib.suppress(BadPacket):
        answer_c2n_untrusted(data.decode("latin-1"))
    with contextlib.suppress(BadPacket):
        http = Http1Client()
        http.request("POST", "/ts2021", [("Host", "h")])
        if (reply := http.receive_untrusted(data)) is not None:
            check_upgrade_untrusted(reply)


def seeds() -> list[bytes]:
    key = NodePublic(bytes(range(32)))
    info = Hostinfo(hostname="h", os="linux", net_info=NetInfo(preferred_derp=900), routable_ips=("10.0.0.0/8",))
    messages = [
        RegisterRequest(version=131, node_key=key, auth=RegisterAuth(auth_key="k"), hostinfo=info),
        RegisterResponse(machine_authorized=True, auth_url="https://c/a", error="no"),
        MapRequest(version=131, node_key=key, hostinfo=info, stream=True, endpoints=("192.0.2.7:1",)),
        ServerKeys(),
        EarlyNoise(),
    ]
    texts = [encode_json(message) for message in messages]
    upgrade = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\nrest"
    )
    return [
        *texts,
        encode_frame(texts[0] * 20, compressed=True)[4:],
        upgrade,
        base64.b64encode(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"),
    ]
