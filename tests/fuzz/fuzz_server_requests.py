"""JSON from clients to the embedded coordination server's tables: an answer or a refusal, whatever they claim.

One line is one request body; lines alternate between two machines. Afterwards every member's map still folds.
"""

from __future__ import annotations

import random

from ts_base.errors import BadPacket
from ts_base.keys import MachinePrivate, MachinePublic, NodePublic
from ts_control.directory import DirectoryError
from ts_control.framing import FrameReader
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.netmap import NetMap
from ts_control.server import ControlServer
from ts_control.server_maps import ServedMap
from ts_control.wire import Hostinfo, MapRequest, MapResponse, NetInfo
from ts_control.wire_register import RegisterAuth, RegisterRequest

WALL = 1.9e9
MACHINES = [MachinePrivate.generate(bytes([n]) * 32).public for n in (1, 2)]
KEYS = [NodePublic(bytes([n]) * 32) for n in (3, 4)]
POLICY = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], "tagOwners": {"tag:a": ["autogroup:member"]}}'
MOST_LINES = 10


def _server() -> tuple[ControlServer, str]:
    server = ControlServer(entropy=random.Random(1).randbytes, wall_clock=lambda: WALL)
    server.set_policy(POLICY, 0.0)
    return server, server.create_auth_key(reusable=True)


AUTH_KEY = _server()[1]


def fuzz_one(data: bytes) -> None:
    server, auth_key = _server()
    assert auth_key == AUTH_KEY
    streams: list[tuple[ServedMap, FrameReader]] = []
    now = 1.0
    for number, line in enumerate(data.split(b"\n")[:MOST_LINES]):
        _register(server, MACHINES[number & 1], line, now)
        _ask(server, MACHINES[number & 1], line, now, streams)
        now += 1.0
        if server.next_timer() <= now:
            server.handle_timer(now)
    for stream, reader in streams:
        netmap = NetMap.empty()
        for chunk in stream.take():
            reader.receive(chunk)
            while (text := reader.next_frame_untrusted()) is not None:
                netmap = netmap.apply(decode_json_untrusted(MapResponse, text), WALL)
        server.close_map(stream, now)
    server.abandon(server, now)


def _register(server: ControlServer, machine: MachinePublic, line: bytes, now: float) -> None:
    try:
        server.register(machine, decode_json_untrusted(RegisterRequest, line), now, server)
    except BadPacket:
        return


def _ask(
    server: ControlServer,
    machine: MachinePublic,
    line: bytes,
    now: float,
    streams: list[tuple[ServedMap, FrameReader]],
) -> None:
    try:
        request = decode_json_untrusted(MapRequest, line)
        answer = server.request_map(machine, request, now, server)
    except (BadPacket, DirectoryError):
        return
    if isinstance(answer, ServedMap):
        streams.append((answer, FrameReader(compressed=request.compress == "zstd")))


def seeds() -> list[bytes]:
    lines = []
    for number, key in enumerate(KEYS):
        info = Hostinfo(hostname=f"h{number}", os="linux", routable_ips=("10.0.0.0/8", "0.0.0.0/0"))
        tagged = Hostinfo(hostname="t", request_tags=("tag:a",), net_info=NetInfo(preferred_derp=900))
        auth = RegisterAuth(auth_key=AUTH_KEY)
        lines.append(encode_json(RegisterRequest(version=131, node_key=key, hostinfo=info, auth=auth)))
        lines.append(encode_json(RegisterRequest(version=131, node_key=key, hostinfo=tagged, auth=auth)))
        lines.append(encode_json(RegisterRequest(version=131, node_key=key, hostinfo=info, ephemeral=True)))
        lines.append(encode_json(MapRequest(version=131, node_key=key, hostinfo=tagged, stream=True)))
        lines.append(encode_json(MapRequest(version=131, node_key=key, hostinfo=info, endpoints=("192.0.2.7:1",))))
    a, b = lines[:5], lines[5:]
    both = [line for pair in zip(a, b, strict=True) for line in pair]
    return [b"\n".join((a[0], b[0], a[3], b[3], a[4], b[4])), b"\n".join(both), b"\n".join((a[2], b[1], a[4], b[3]))]
