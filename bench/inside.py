"""Rows that need no second process: the cipher, the tunnel, the engine, the stack, maps, routes, filters, imports.

Each takes its sides in turn, `rounds` times. Refuses to know how rows are shown.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

import msgspec
from msgspec.structs import replace as change

from bench import engine, kernel, netstack, pipeline, tables, tunnel
from bench.results import AS_INSTALLED, Row
from ts_base.ip import TCP, UDP, parse_address
from ts_base.keys import DiscoPublic, MachinePublic, NodePublic
from ts_control.gojson import encode_json
from ts_control.locked_view import LockedView
from ts_control.map_reader import decode_map_response_steps
from ts_control.netmap import NetMap
from ts_control.wire import Hostinfo, MapResponse, NetInfo, Node, PeerChange
from ts_control.wire_lock import to_text
from ts_dataplane.filter import Rule
from ts_lock.chain import Chain
from ts_lock.keys import LockPrivate
from ts_lock.remembered import Remembered
from ts_lock.signatures import sign_node
from ts_lock.updates import Checkpoint, Key, Kind, Update
from ts_lock.vouching import judge
from ts_netstack.checksums import burst_sums_by_folding, fastest_burst_sums

Measure = Callable[[], float]


def in_turn(rounds: int, sides: Mapping[str, Measure]) -> dict[str, list[float]]:
    """One figure per side and round; every other round backwards, so that nobody is always first."""
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides)[:: -1 if number % 2 else 1]:
            samples[side].append(sides[side]())
    return samples


def aead(rounds: int) -> Iterator[Row]:
    """Sealing and opening runs of 48 full packets against the bare cipher."""
    sides: dict[str, dict[str, Callable[[], Callable[[], object]]]] = {
        "seal": {
            "bare ChaCha20-Poly1305": tunnel.prepare_bare_encrypt,
            "session": tunnel.prepare_seal,
            "endpoint": tunnel.prepare_endpoint_send,
        },
        "open": {
            "bare ChaCha20-Poly1305": tunnel.prepare_bare_decrypt,
            "session": tunnel.prepare_open,
            "endpoint": tunnel.prepare_endpoint_receive,
        },
    }
    for name, prepared in sides.items():
        measures = {side: partial(_median_of, prepare) for side, prepare in prepared.items()}
        yield Row(
            f"AEAD {name}, 1,280 B", "us/packet", in_turn(rounds, measures), "endpoint", "bare ChaCha20-Poly1305", True
        )


def _median_of(prepare: Callable[[], Callable[[], object]]) -> float:
    return tunnel.timed(prepare, rounds=40)[1]


def engines(rounds: int) -> Iterator[Row]:
    """Everything but TCP and sockets: routes, filter, tunnel."""
    taken = [engine.measure(TCP, 0, 1280, 960) for _ in range(rounds)]
    for name, bare in (("outbound", "encrypt"), ("inbound", "decrypt")):
        samples = {f"bare {bare}": [one[bare] for one in taken], "engine": [one[name] for one in taken]}
        yield Row(f"engine {name}, 1,280 B", "us/packet", samples, "engine", f"bare {bare}", True)


def stack(rounds: int) -> Iterator[Row]:
    """TCP alone, in memory: sender and receiver, against the sums of the same payloads."""
    payloads = [random.Random(4).randbytes(1240) for _ in range(48)]

    def sums(how: Callable[[list[bytes]], object]) -> float:
        began = time.perf_counter()
        for _ in range(40):
            how(payloads)
        return (time.perf_counter() - began) / 40 / 48 * 1e6

    bare = in_turn(
        rounds,
        {"by folding": partial(sums, burst_sums_by_folding), "as installed": partial(sums, fastest_burst_sums())},
    )
    taken = [netstack.one_round(4, 4 << 20) for _ in range(rounds)]
    send = [one[0] / one[2] * 1e6 for one in taken]
    receive = [one[1] / one[2] * 1e6 for one in taken]
    yield Row("checksum, 1,240 B", "us/segment", bare, "as installed", "by folding", True)
    yield Row(
        "TCP send, in memory", "us/segment", {"bare checksum": bare["as installed"], "stack": send}, "stack",
        "bare checksum", True,
    )  # fmt: skip
    yield Row(
        "TCP receive, in memory", "us/segment", {"stack sends": send, "stack receives": receive}, "stack receives",
        "stack sends", True,
    )  # fmt: skip


def bare_pipeline(rounds: int, seconds: float) -> Iterator[Row]:
    """The pipeline without TCP, beside kernel TCP, for orientation."""
    kernels = [kernel.run(seconds / 2) for _ in range(rounds)]
    pipelines = [pipeline.run(seconds) for _ in range(rounds)]
    samples = {"kernel TCP, no crypto": [one["up"] for one in kernels], "bare pipeline": pipelines}
    yield Row("bare pipeline, MTU 1280", "Mbit/s", samples, "bare pipeline", "kernel TCP, no crypto")
    yield Row("kernel round trip, 64 B", "us", {"kernel TCP": [one["rtt"] for one in kernels]}, "kernel TCP")
    yield Row("kernel connects", "/s", {"kernel TCP": [one["connect"] for one in kernels]}, "kernel TCP")


# --- maps, routes, filters ------------------------------------------------------------------------


def rich_node(number: int) -> Node:
    """With what a real server says of a peer: about a kilobyte of JSON."""
    draw = random.Random(number).randbytes
    addresses = (f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32", f"fd7a:115c:a1e0::{number:x}/128")
    return Node(
        id=number,
        stable_id=str(number),
        name=f"node-{number}.bench.test.",
        user=1,
        key=NodePublic(draw(32)),
        machine=MachinePublic(draw(32)),
        disco_key=DiscoPublic(draw(32)),
        addresses=addresses,
        allowed_ips=addresses,
        endpoints=("192.0.2.1:41641", f"10.0.0.{number & 255}:41641", f"[2001:db8::{number:x}]:41641"),
        home_derp=900,
        cap_map={"https://tailscale.com/cap/file-sharing": None},
        hostinfo=Hostinfo(
            os="linux",
            hostname=f"node-{number}",
            net_info=NetInfo(preferred_derp=900, working_udp=True, derp_latency={"900-v4": 0.01}),
        ),
    )


def big_map(rounds: int, peers: int) -> Iterator[Row]:
    """Reading a whole map and one delta, against parsing the same JSON into dicts."""
    response = MapResponse(node=rich_node(1), peers=tuple(rich_node(number) for number in range(2, peers + 2)))
    data = encode_json(response)
    longest: list[float] = []

    def bare() -> float:
        began = time.process_time()
        msgspec.json.decode(data)
        return (time.process_time() - began) * 1e3

    def read() -> NetMap:
        steps, last, worst = decode_map_response_steps(data), time.process_time(), 0.0
        while True:
            try:
                next(steps)
            except StopIteration as done:
                netmap = NetMap.empty().apply(done.value, 1.8e9)
                longest.append(max(worst, time.process_time() - last) * 1e3)
                return netmap
            now = time.process_time()
            worst, last = max(worst, now - last), now

    def whole() -> float:
        began = time.process_time()
        read()
        return (time.process_time() - began) * 1e3

    samples = in_turn(rounds, {"bare JSON to dicts": bare, "map read and folded": whole})
    yield Row(f"map of {peers:,} peers", "ms CPU", samples, "map read and folded", "bare JSON to dicts", True)
    yield Row(f"map of {peers:,}, longest step", "ms CPU", {"stall": longest}, "stall", lower_is_better=True)
    started_from = read()
    yield from signed_map(rounds, response, started_from)

    def delta() -> float:
        began = time.process_time()
        for number in range(2, 52):
            started_from.apply(MapResponse(peers_changed_patch=(PeerChange(node_id=number, online=True),)), 1.8e9)
        return (time.process_time() - began) / 50 * 1e3

    samples = {"whole map": samples["map read and folded"], "one delta": in_turn(rounds, {"": delta})[""]}
    yield Row(f"delta among {peers:,}", "ms CPU", samples, "one delta", "whole map", True)
    gc.collect()
    tracemalloc.start()
    kept = read()
    gc.collect()
    each = tracemalloc.get_traced_memory()[0] / len(kept.peers)
    tracemalloc.stop()
    yield Row("memory per peer in the map", "bytes", {"netmap": [each]}, "netmap", lower_is_better=True)


def signed_map(rounds: int, response: MapResponse, unlocked: NetMap) -> Iterator[Row]:
    """The same peers in a locked tailnet: every signature checked, and the whole looked at again."""
    signer = LockPrivate(bytes([1]) * 32)
    named = Checkpoint((bytes(32),), (Key(signer.public),))
    chain = Chain(Update(Kind.CHECKPOINT, state=named).signed_by(signer))
    texts = {peer.id: to_text(sign_node(signer, peer.key.raw, None).encode()) for peer in response.peers if peer}
    peers = tuple(change(peer, key_signature=texts[peer.id]) for peer in response.peers if peer)
    told = NetMap.empty().apply(change(response, peers=peers), 1.8e9)
    stalls: list[float] = []

    def follow(view: LockedView) -> float:
        began = last = time.process_time()
        worst, steps = 0.0, view.steps(told)
        with suppress(StopIteration):
            claims = next(steps)
            while True:
                now = time.process_time()
                worst = max(worst, now - last)
                verdicts = [judge(claim) for claim in claims]  # which a device does in threads
                last = time.process_time()
                claims = steps.send(verdicts)
        stalls.append(worst * 1e3)
        return (time.process_time() - began) * 1e3

    def first() -> float:
        view = LockedView(Remembered(bytes(32)))
        view.lock_with(chain)
        return follow(view)

    def again() -> float:
        view = LockedView(Remembered(bytes(32)))
        view.lock_with(chain)
        follow(view)
        view.lock_with(None, is_blind=False)
        view.lock_with(chain)
        return follow(view)

    samples = in_turn(rounds, {"checked": first, "looked at again": again})
    count = len(unlocked.peers)
    yield Row(f"lock over {count:,} signed peers", "ms CPU", samples, "looked at again", "checked", True)
    yield Row(f"lock over {count:,}, longest step", "ms CPU", {"stall": stalls}, "stall", lower_is_better=True)


def lookups(rounds: int, peers: int) -> Iterator[Row]:
    """Routes and verdicts, cold and remembered, against one dictionary look-up."""
    tailnet = tables.peers(peers)
    rules = [Rule(("*",), (("*", 0, 65535),))]
    listed = [address.partition("/")[0] for peer in tailnet for address in peer.addresses]
    hosts = [parse_address(address) for address in listed[::2]]
    bare_table = dict.fromkeys(hosts, 1)
    compiled, compile_seconds, longest = tables.compile_in_steps(tailnet, rules)
    flows = [address + parse_address(tables.OWN[0]) + b"\x10\0\0\x50" for address in hosts]
    questions = [(n + 1, UDP, False, flow) for n, flow in enumerate(flows)]

    def each(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) / len(hosts) * 1e6

    def cold_verdicts() -> float:
        fresh = tables.compile_in_steps(tailnet, rules)[0]
        return each(lambda: [fresh.verdict(*question) for question in questions])

    compiled_peer_for, verdict = compiled.peer_for, compiled.verdict
    [compiled_peer_for(host) for host in hosts], [verdict(*question) for question in questions]
    samples = in_turn(
        rounds,
        {
            "one dict look-up": lambda: each(lambda: [bare_table[host] for host in hosts]),
            "route, remembered": lambda: each(lambda: [compiled_peer_for(host) for host in hosts]),
            "route, cold (3,000 prefixes)": lambda: tables.cold_lookup(4),
            "verdict, remembered": lambda: each(lambda: [verdict(*question) for question in questions]),
            "verdict, cold": cold_verdicts,
        },
    )
    yield Row("routes and filter", "us", samples, "route, remembered", "one dict look-up", True)
    told = {"compile": [compile_seconds * 1e3], "longest step": [longest * 1e3]}
    yield Row(f"tables for {peers:,} peers", "ms", told, "longest step", "compile", True)


# --- imports --------------------------------------------------------------------------------------


def imports(rounds: int) -> Iterator[Row]:
    """A fresh interpreter each time; what it imports is timed inside it."""
    environment = {**os.environ, **AS_INSTALLED}

    def spend(statement: str) -> float:
        program = f"import time; began = time.perf_counter()\n{statement}\nprint(time.perf_counter() - began)"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        return float(done.stdout) * 1e3

    def start() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True, env=environment)
        return (time.perf_counter() - began) * 1e3

    sides: dict[str, Measure] = {
        "bare interpreter start": start,
        "import trio": partial(spend, "import trio"),
        "trio, ssl, cryptography": partial(
            spend, "import trio, ssl; from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305"
        ),
        "import tailscale": partial(spend, "import tailscale"),
        "tailscale.Device": partial(spend, "import tailscale; tailscale.Device"),
    }
    spend("import tailscale; tailscale.Device")  # the first one writes bytecode
    yield Row("import time", "ms", in_turn(rounds, sides), "tailscale.Device", "trio, ssl, cryptography", True)
