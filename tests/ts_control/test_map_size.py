"""Ten thousand peers: what reading, folding and changing one costs, in CPU time; `-s` shows the figures."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest
import trio
import trio.testing

from ts_control.client import ControlClient
from ts_control.gojson import encode_json
from ts_control.map_reader import decode_map_response_steps
from ts_control.netmap import NetMap, peers_changed
from ts_control.wire import Hostinfo, MapRequest, MapResponse, NetInfo, Node, PeerChange, Service

from control_scripts import NOW, make_node, seeded  # isort: skip
from fake_control import FakeControl, frame  # isort: skip

from ts_base.keys import MachinePrivate

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


@pytest.mark.slow  # a measurement: alone, or the collector's pauses over a whole suite's objects are in it
def test_ten_thousand_peers_are_read_in_short_steps(response: MapResponse) -> None:
    data = encode_json(response)
    began = last = time.process_time()
    longest = 0.0
    steps = decode_map_response_steps(data)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            read: MapResponse = done.value
            break
        now = time.process_time()
        longest, last = max(longest, now - last), now
    netmap = NetMap.empty().apply(read, NOW)
    whole = time.process_time() - began
    deltas = []
    for number in range(2, 52):
        start = time.process_time()
        after = netmap.apply(MapResponse(peers_changed_patch=(PeerChange(node_id=number, online=True),)), NOW)
        deltas.append(time.process_time() - start)
    delta = sorted(deltas)[25]
    assert peers_changed(netmap, after) == ([51], [])
    print(f"\nread and fold {whole:.3f} s, longest step {longest * 1e3:.1f} ms, one delta {delta * 1e3:.3f} ms")
    assert (whole < 2.0, longest < 0.25, delta < 0.005) == (True, True, True)


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
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            start = time.process_time()
            await trio.lowlevel.checkpoint()
            longest = max(longest, time.process_time() - start)

    async with trio.open_nursery() as nursery:
        control = FakeControl(nursery)
        control.map_reply = frame(response)
        client = ControlClient("http://127.0.0.1:8080", control, MachinePrivate.generate(seeded(4)(32)))
        request = MapRequest(stream=True, compress="zstd")
        async with client.connect() as connection, connection.map_stream(request) as stream:
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(watch)
            began = time.process_time()
            assert len((await stream.receive()).peers) == PEERS
            took = time.process_time() - began
        nursery.cancel_scope.cancel()
    print(f"\nreceived and read in {took:.3f} s, longest stall {longest * 1e3:.1f} ms")
    assert longest < 0.25
