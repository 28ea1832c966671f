"""Ten thousand peers: read in short steps, folded with little memory, changed one by one; bench/inside.py has times."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Generator

import pytest
import trio
import trio.testing

from ts_control.client import ControlClient
from ts_control.gojson import encode_json
from ts_control.map_reader import PEERS_PER_STEP, decode_map_response_steps
from ts_control.netmap import NetMap, peers_changed
from ts_control.wire import Hostinfo, MapRequest, MapResponse, NetInfo, Node, PeerChange, Service, UserProfile

from control_scripts import NOW, make_node, seeded  # isort: skip
from fake_control import FakeControl, frame  # isort: skip

from ts_base.errors import BadPacket
from ts_base.keys import MachinePrivate

pytestmark = pytest.mark.slow

PEERS = 10_000


def rich_node(number: int) -> Node:
    """With all that a real server says of a peer: about a kilobyte of JSON."""
    services = tuple(Service(proto=name, port=40_000 + number % 20_000) for name in ("peerapi4", "peerapi6"))
    return make_node(
        number,
        addresses=(
            f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32",
            f"fd7a:115c:a1e0::{number:x}/128",
        ),
        endpoints=("192.0.2.1:41641", f"10.0.0.{number & 255}:41641", f"[2001:db8::{number:x}]:41641"),
        home_derp=900,
        cap_map={"https://tailscale.com/cap/file-sharing": None},
        hostinfo=Hostinfo(
            os="linux",
            ipn_version="1.102.3",
            hostname=f"node-{number}",
            services=services,
            net_info=NetInfo(preferred_derp=900, working_udp=True, derp_latency={"900-v4": 0.01}),
        ),
    )


@pytest.fixture(scope="module")
def response() -> MapResponse:
    return MapResponse(node=rich_node(1), peers=tuple(rich_node(number) for number in range(2, PEERS + 2)))


@pytest.mark.slow
def test_ten_thousand_peers_are_read_in_short_steps(response: MapResponse) -> None:
    data = encode_json(response)
    pauses = 0
    steps = decode_map_response_steps(data)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            read: MapResponse = done.value
            break
        pauses += 1
    assert pauses >= PEERS / PEERS_PER_STEP
    netmap = NetMap.empty().apply(read, NOW)
    after = netmap.apply(MapResponse(peers_changed_patch=(PeerChange(node_id=51, online=True),)), NOW)
    assert peers_changed(netmap, after) == ([51], [])
    assert sum(after.peers[number] is netmap.peers[number] for number in netmap.peers) == PEERS - 1


@pytest.mark.slow
def test_ten_thousand_peers_take_few_kilobytes_each(response: MapResponse) -> None:
    data = encode_json(response)
    gc.collect()
    tracemalloc.start()
    steps = decode_map_response_steps(data)
    try:
        while True:
            next(steps)
    except StopIteration as done:
        netmap = NetMap.empty().apply(done.value, NOW)
        del done
    del steps
    gc.collect()
    each = tracemalloc.get_traced_memory()[0] / len(netmap.peers)
    tracemalloc.stop()
    print(f"\n{each:.0f} bytes per peer")
    assert each < 6000


@pytest.mark.slow
async def test_the_event_loop_goes_on_while_a_big_map_arrives(response: MapResponse) -> None:
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        control = FakeControl(nursery)
        control.map_reply = frame(response)
        client = ControlClient("http://127.0.0.1:8080", control, MachinePrivate.generate(seeded(4)(32)))
        request = MapRequest(stream=True, compress="zstd")
        async with client.connect() as connection, connection.map_stream(request) as stream:
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(watch)
            assert len((await stream.receive()).peers) == PEERS
            assert turns >= PEERS / PEERS_PER_STEP
        nursery.cancel_scope.cancel()


def whole(steps: Generator[None, None, MapResponse]) -> tuple[MapResponse, int]:
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value, pauses
        pauses += 1


@pytest.mark.parametrize(
    "text",
    [
        b'{"Peers":[' + b"{}," * 700_000 + b"{}]}",
        b'{"PeersChanged":[' + b"{}," * 700_000 + b"{}]}",
        b'{"PacketFilter":[' + b"{}," * 700_000 + b"{}]}",
        b'{"PacketFilters":{"a":[' + b"{}," * 70_000 + b'{}],"b":[' + b"{}," * 70_000 + b"{}]}}",
        b'{"PacketFilters":{' + b",".join(b'"%d":[]' % i for i in range(200_000)) + b"}}",
        b'{"UserProfiles":[' + b"{}," * 700_000 + b"{}]}",
        b'{"PeersChangedPatch":[' + b"{}," * 700_000 + b"{}]}",
        b'{"PeersChanged":[' + b"null," * 400_000 + b"{}]}",
        b'{"Peers":[{"Addresses":[' + b'"",' * 4_100_000 + b'""]}]}',
        b'{"Health":[' + b'"",' * 1_100_000 + b'""]}',
        b'{"PeersRemoved":[' + b"9," * 1_100_000 + b"1]}",
        b'{"SSHPolicy":{"rules":[' + b"[]," * 400_000 + b"[]]}}",
        b'{"DNSConfig":{"ExtraRecords":[' + b"{}," * 400_000 + b"{}]}}",
        b'{"SSHPolicy":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}",
        b'{"DisplayMessages":{' + b",".join(b'"%d":{}' % i for i in range(200_000)) + b"}}",
    ],
    ids=lambda text: text[:24].decode() + str(len(text)),
)
def test_a_bomb_is_refused_before_it_is_made(text: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadPacket):
            whole(decode_map_response_steps(text))
        made = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made < 4 * len(text) + (128 << 20), "what is too many was made first"


def test_every_long_list_is_read_in_slices() -> None:
    few = {
        "Peers": {"ID": 1},
        "PeersChanged": {"ID": 1},
        "PeersChangedPatch": {"NodeID": 1},
        "PacketFilter": {"SrcIPs": ["*"]},
        "UserProfiles": {"ID": 1},
    }
    for name, element in few.items():
        _, pauses = whole(decode_map_response_steps(json.dumps({name: [element] * 10_000}).encode()))
        assert pauses >= 10_000 / PEERS_PER_STEP
    rules = {"a": [few["PacketFilter"]] * 10_000, "b": None, "c": []}
    read, pauses = whole(decode_map_response_steps(json.dumps({"PacketFilters": rules, "Domain": "x"}).encode()))
    assert pauses >= 10_000 / PEERS_PER_STEP
    assert read.domain == "x"
    assert read.packet_filters is not None
    assert {name: len(rules or ()) for name, rules in read.packet_filters.items()} == {"a": 10_000, "b": 0, "c": 0}


def test_many_messages_add_up_to_no_more_than_one() -> None:
    netmap = NetMap.empty().apply(MapResponse(node=make_node(1)), NOW)
    profiles = [tuple(UserProfile(id=n) for n in range(start, start + 90_000)) for start in (0, 90_000, 180_000)]
    for some in profiles[:2]:
        netmap = netmap.apply(MapResponse(user_profiles=some), NOW)
    with pytest.raises(BadPacket):
        netmap.apply(MapResponse(user_profiles=profiles[2]), NOW)
