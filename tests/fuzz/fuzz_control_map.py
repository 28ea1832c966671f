"""Map messages: any JSON text is a MapResponse or BadPacket, and whatever is one folds into a netmap."""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.map_reader import decode_map_response_steps
from ts_control.netmap import NetMap
from ts_control.wire import MapResponse, Node, PeerChange

START = NetMap.empty().apply(MapResponse(node=Node(id=1), peers=(Node(id=2), Node(id=3))), 1e9)


def _in_steps(data: bytes) -> MapResponse:
    steps = decode_map_response_steps(data, at_once=0)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            response: MapResponse = done.value
            return response


def fuzz_one(data: bytes) -> None:
    try:
        response = decode_json_untrusted(MapResponse, data)
    except BadPacket:
        return
    nodes = {
        "peers": tuple(n for n in response.peers if n),
        "peers_changed": tuple(n for n in response.peers_changed if n),
    }
    try:
        stepped = _in_steps(data)
    except BadPacket:
        # Text that is no UTF-8 is refused even where a name that nobody knows holds it.
        assert b"\xef\xbf\xbd" in data.decode("utf-8", "replace").encode()
        return
    assert (stepped.peers, stepped.peers_changed) == (nodes["peers"], nodes["peers_changed"])
    assert (stepped.packet_filter, stepped.packet_filters) == (response.packet_filter, response.packet_filters)
    assert (stepped.dns_config, stepped.derp_map) == (response.dns_config, response.derp_map)
    for before in (START, NetMap.empty()):
        try:
            after = before.apply(response, 1e9)
        except BadPacket:
            continue
        after.expire(2e9).next_expiry()
    encode_json(response)


def seeds() -> list[bytes]:
    patch = PeerChange(node_id=2, derp_region=3, online=True, endpoints=("192.0.2.1:1",))
    return [
        b'{"KeepAlive":true,"ControlTime":"2026-01-01T00:00:00Z"}',
        encode_json(MapResponse(node=Node(id=1, name="a."), peers=(Node(id=2),), domain="x")),
        encode_json(MapResponse(peers_changed_patch=(patch,), online_change={2: True}, peer_seen_change={3: False})),
        b'{"PacketFilters":{"*":null,"base":[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":9}}]}]}}',
        b'{"DERPMap":{"Regions":{"1":null,"2":{"RegionID":2,"Nodes":[{"Name":"2a"}]}}}}',
        b'{"Node":{"ID":1,"KeyExpiry":"2026-01-01T00:00:00.5+01:00","CapMap":{"a":null,"b":[{"c":[1]}]}}}',
    ]
