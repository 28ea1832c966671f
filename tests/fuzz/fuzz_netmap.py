"""A story of map responses, one JSON text a line, through everything a device derives from them.

Folding, filter and route tables, relay map, path facts, names, the nodes users see: each takes whatever control says.
Tables that were updated by deltas decide as tables compiled afresh.
"""

from __future__ import annotations

from collections.abc import Generator

from tailscale._config import Preferences
from tailscale.dns.names import TailnetNames
from tailscale.nodes import Peers
from tailscale.runtime.translate_peers import PeerTranslator
from tailscale.runtime.translate_relays import translate_map
from tailscale.runtime.translate_tables import TablesCompiler
from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.netmap import NetMap
from ts_control.wire import DNSConfig, MapResponse, Node, PeerChange
from ts_dataplane.peer_paths import PeerPaths
from ts_dataplane.tables import Tables

WALL = 1.9e9
MOST_LINES = 12
WANTED = Preferences("py", accept_routes=True, exit_node="b")
PROBES = [bytes([100, 64, 0, n]) for n in range(6)] + [bytes([10, 0, 0, 9]), bytes(16), bytes([8, 8, 8, 8])]


def _compiled(steps: Generator[None, None, Tables]) -> Tables:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            tables: Tables = done.value
            return tables


def fuzz_one(data: bytes) -> None:
    netmap = NetMap.empty()
    following, paths = TablesCompiler(), PeerTranslator()
    told: dict[int, PeerPaths] = {}
    for line in data.split(b"\n")[:MOST_LINES]:
        try:
            netmap = netmap.apply(decode_json_untrusted(MapResponse, line), WALL)
        except BadPacket:
            continue
        tables = _compiled(following.steps(netmap, WANTED))
        afresh = _compiled(TablesCompiler().steps(netmap, WANTED))
        for probe in PROBES:
            assert tables.peer_for(probe) == afresh.peer_for(probe)
            assert tables.owner_of(probe) == afresh.owner_of(probe)
            for peer in netmap.peers:
                assert tables.accepts(peer, probe) == afresh.accepts(peer, probe)
        changed, removed = paths.follow(netmap)
        told = {peer: facts for peer, facts in told.items() if peer not in removed} | paths.facts(changed)
        whole = PeerTranslator()
        assert told == whole.facts(whole.follow(netmap)[0])
        translate_map(netmap.derp_map)
        _look_up(netmap)
        netmap.expire(WALL + 1).next_expiry()


def _look_up(netmap: NetMap) -> None:
    names = TailnetNames(netmap)
    for name in ("a", "b.example", "host.a.example."):
        names.addresses(name)
        names.owns(name)
        names.close_to(name)
        for kind in ("A", "AAAA", "TXT"):
            names.records(name, kind)
    for node in Peers(netmap).values():
        repr(node)


def _node(number: int, name: str, **more: object) -> Node:
    fields: dict[str, object] = {
        "id": number,
        "name": f"{name}.example.",
        "key": NodePublic(bytes([number]) * 32),
        "addresses": (f"100.64.0.{number}/32",),
        "allowed_ips": (f"100.64.0.{number}/32",),
        "home_derp": 900,
        **more,
    }
    return Node(**fields)  # type: ignore[arg-type]


def seeds() -> list[bytes]:
    a, b, c = _node(1, "a"), _node(2, "b"), _node(3, "c", home_derp=901)
    routed = _node(2, "b", allowed_ips=("100.64.0.2/32", "10.0.0.0/8", "0.0.0.0/0", "::/0"))
    whole = encode_json(MapResponse(node=a, peers=(b, c), domain="example"))
    deltas = [
        MapResponse(peers_changed=(routed,)),
        MapResponse(peers_removed=(3,)),
        MapResponse(peers_changed_patch=(PeerChange(node_id=2, derp_region=7, endpoints=("192.0.2.1:1",)),)),
        MapResponse(online_change={2: True}, peer_seen_change={3: False}),
        MapResponse(dns_config=DNSConfig(domains=("example",))),
    ]
    lines = [encode_json(delta) for delta in deltas]
    rules = (
        b'{"PacketFilters":{"base":[{"SrcIPs":["100.64.0.2"],"DstPorts":[{"IP":"*","Ports":{"First":1,"Last":9}}]}]}}'
    )
    caps = b'{"PacketFilter":[{"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.1/32"],"CapMap":{"x.y/z":[{"a":1}]}}]}]}'
    relays = b'{"DERPMap":{"Regions":{"900":{"RegionID":900,"Nodes":[{"Name":"a","HostName":"h","IPv4":"1.2.3.4"}]}}}}'
    dns = (
        b'{"DNSConfig":{"Resolvers":[{"Addr":"8.8.8.8"}],"Routes":{"corp.":[{"Addr":"10.0.0.53"}],"x.":null},'
        b'"ExtraRecords":[{"Name":"host.a.example.","Value":"10.1.1.1"},{"Name":"t","Type":"TXT","Value":"v"}]}}'
    )
    return [
        b"\n".join([whole, *lines]),
        b"\n".join([whole, rules, caps, relays, dns]),
        b"\n".join([whole, lines[0], rules, lines[1], whole]),
        *(whole + b"\n" + other for other in (rules, caps, relays, dns)),
    ]
