"""When the tunnel's silence speaks against a path, and when it is only a lost datagram: real tunnels, a lossy wire."""

from __future__ import annotations

import heapq
import itertools
import math
import random

import pytest
from path_scripts import REGION, paths_of, settled

from ts_base.keys import DiscoPrivate, NodePrivate
from ts_dataplane import disco
from ts_dataplane.candidates import FIRST_PENALTY
from ts_dataplane.paths import SILENCE, PathFinder
from ts_dataplane.peer_paths import PeerPaths
from ts_tunnel.endpoint import Endpoint
from ts_tunnel.messages import PeerSilence

REKEY_AT = 120.0
LOOK = 5.0  # how often the shell asks the tunnel
DIRECT_DELAY, RELAY_DELAY = 0.02, 0.05
PACKET = b"\x45" + bytes(99)


class Node:
    """A tunnel and a path finder, as the engine joins them."""

    def __init__(self, number: int, seed: int) -> None:
        rng = random.Random(seed * 2 + number)
        self.number, self.peer = number, 3 - number
        self.address = (f"192.0.2.{number}", 41641)
        self.node, self.disco = NodePrivate.generate(rng.randbytes(32)), DiscoPrivate.generate(rng.randbytes(32))
        self.endpoint = Endpoint(self.node, entropy=rng.randbytes, wall_clock=lambda: 1.9e9 + self.now)
        self.finder = PathFinder(self.disco, self.node.public, entropy=rng.randbytes)
        self.now = 0.0
        self.heard_on: tuple | None = None
        self.received = 0

    def facts(self) -> PeerPaths:
        (host, port), node, key = self.address, self.node.public.raw, self.disco.public.raw
        return PeerPaths(node, key, (f"{host}:{port}",), REGION)


class Wire:
    """Two nodes; `loses` says which direct datagrams vanish. The relay loses nothing."""

    def __init__(self, seed: int, loses) -> None:
        self.now, self.loses = 0.0, loses
        self.queue: list = []
        self.order = itertools.count()
        self.a, self.b = self.nodes = Node(1, seed), Node(2, seed)
        for node, other in ((self.a, self.b), (self.b, self.a)):
            node.endpoint.set_peers({other.number: other.node.public.raw}, 0.0)
            node.finder.set_peers({other.number: other.facts()}, 0.0)
            node.finder.set_endpoints([node.address], 0.0)

    def other(self, node: Node) -> Node:
        return self.b if node is self.a else self.a

    def send(self, node: Node) -> None:
        node.now = self.now
        node.endpoint.send([(node.peer, [PACKET])], self.now)
        node.finder.on_data_sent([node.peer], self.now)
        self.flush(node)

    def flush(self, node: Node) -> None:
        for peer, datagrams in node.endpoint.transmit(self.now):
            for path in node.finder.paths.get(peer, ()):
                self.carry(node, path, datagrams)
        for path, datagrams in node.finder.transmit(self.now):
            self.carry(node, path, datagrams)
        node.endpoint.take_messages(), node.finder.take_messages()

    def carry(self, node: Node, path: tuple, datagrams: list[bytes]) -> None:
        target = self.other(node)
        if path[0] == REGION:
            self.put(RELAY_DELAY, target, (REGION, node.node.public.raw), datagrams)
        elif path == target.address:
            kept = [datagram for datagram in datagrams if not self.loses(node, datagram)]
            self.put(DIRECT_DELAY, target, node.address, kept)

    def put(self, delay: float, target: Node, path: tuple, datagrams: list[bytes]) -> None:
        heapq.heappush(self.queue, (self.now + delay, next(self.order), target, path, datagrams))

    def arrive(self, node: Node, path: tuple, datagrams: list[bytes]) -> None:
        node.now = self.now
        for datagram in datagrams:
            if datagram.startswith(disco.MAGIC):
                node.finder.receive([(datagram, path)], self.now)
            elif opened := node.endpoint.receive([(path, [datagram])], self.now):
                node.received += len(opened[0][2])
                if node.heard_on != path:
                    node.heard_on = path
                    node.finder.on_data_heard([(node.peer, path)], self.now)
        self.flush(node)

    def timers(self, node: Node) -> None:
        node.now = self.now
        node.endpoint.handle_timer(self.now)
        node.finder.handle_timer(self.now)
        self.flush(node)

    def run(self, until: float) -> None:
        while True:
            event = self.queue[0][0] if self.queue else math.inf
            timer = min(min(n.endpoint.next_timer(), n.finder.next_timer()) for n in self.nodes)
            if min(event, timer) > until:
                break
            self.now = max(self.now, min(event, timer))
            if event <= timer:
                _, _, node, path, datagrams = heapq.heappop(self.queue)
                self.arrive(node, path, datagrams)
            else:
                for node in self.nodes:
                    self.timers(node)
        self.now = until

    def look(self) -> None:
        for node in self.nodes:
            for peer in node.finder.trusted_peers(self.now):
                node.finder.judge_silence(peer, node.endpoint.silence_of(peer), self.now)
            self.flush(node)

    def talk(self, until: float, every: float = 0.5) -> float:
        """Data both ways, and the shell's looks; the longest time that either was off the direct path once found."""
        off = {node.number: -1.0 for node in self.nodes}  # since when; below zero: not
        longest, found, look_at = 0.0, set(), self.now + LOOK
        while self.now < until:
            for node in self.nodes:
                self.send(node)
                if self.other(node).address in node.finder.paths.get(node.peer, ()):
                    found.add(node.number)
                    off[node.number] = -1.0
                elif node.number in found:
                    off[node.number] = self.now if off[node.number] < 0 else off[node.number]
                    longest = max(longest, self.now - off[node.number] + every)
            self.run(self.now + every)
            if self.now >= look_at:
                look_at += LOOK
                self.look()
        return longest


def acquainted(seed: int, loses) -> Wire:
    """A session made through the relay; then nothing until just before it must be renewed."""
    wire = Wire(seed, lambda node, datagram: False)
    wire.a.endpoint.send([(wire.a.peer, [PACKET])], 0.0)
    wire.flush(wire.a)
    wire.run(REKEY_AT - 0.5)
    wire.loses = loses
    return wire


@pytest.mark.parametrize("kind", [1, 2], ids=["initiation", "response"])
def test_one_lost_handshake_message_does_not_cost_the_path(kind):
    lost = []

    def lose_one(node, datagram):
        if datagram[:4] == bytes([kind, 0, 0, 0]) and not lost:
            lost.append(node)
            return True
        return False

    wire = acquainted(1, lose_one)
    assert wire.talk(REKEY_AT + 60.0) == 0.0
    assert lost
    assert wire.a.finder.drops["paths.silent_path"] == wire.b.finder.drops["paths.silent_path"] == 0


def test_a_rekey_that_fails_while_the_old_session_carries_data_is_no_silence():
    wire = acquainted(2, lambda node, datagram: datagram[:4] in (b"\1\0\0\0", b"\2\0\0\0"))
    assert wire.talk(REKEY_AT + 50.0) == 0.0
    assert wire.a.endpoint.silence_of(wire.a.peer).initiations >= 3


def test_a_path_that_swallows_the_tunnel_is_left_when_all_three_conditions_hold():
    wire = acquainted(3, lambda node, datagram: False)
    wire.talk(REKEY_AT - 1.0)
    wire.loses = lambda node, datagram: not datagram.startswith(disco.MAGIC)
    swallowed_at = wire.now
    assert wire.talk(swallowed_at + SILENCE) == 0.0
    before = wire.b.received
    wire.talk(swallowed_at + 2 * SILENCE + 2 * LOOK)
    assert wire.a.finder.paths[wire.a.peer] == ((REGION, wire.b.node.public.raw),)
    assert wire.b.received > before  # the relay carries what the path did not


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in (250, 500, 750))])
def test_random_loss_never_costs_a_path_that_carries_data(first):
    worst, left = 0.0, 0
    for seed in range(first, first + 250):
        rng = random.Random(seed)
        loss = rng.uniform(0.01, 0.15)
        wire = acquainted(seed, lambda node, datagram, rng=rng, loss=loss: rng.random() < loss)
        worst = max(worst, wire.talk(REKEY_AT + 11.0, every=1.0))
        left += sum(node.finder.drops[why] for node in wire.nodes for why in ("paths.silent_path", "paths.black_hole"))
    assert worst <= 5.0
    assert left == 0


# ---- the rule alone


def judged(*silences: PeerSilence, by_relay: bool = False):
    """A trusted path, and what the tunnel says of it every `LOOK` seconds. Was it left at the last, not before?"""
    world, a, b = settled()
    for silence in silences:
        assert a.is_direct(b) or by_relay  # then both ways get everything for a moment
        world.talk(a, b, LOOK)
        if by_relay:
            a.finder.on_data_heard([(b.number, (REGION, b.key))], world.now)
        a.finder.judge_silence(b.number, silence._replace(asking_since=world.now - silence.asking_since), world.now)
    return world, a, b


def test_silence_needs_a_repeated_handshake():
    _, a, b = judged(*[PeerSilence(LOOK * n, 1, 0) for n in range(1, 7)])
    assert a.is_direct(b)


def test_silence_needs_fifteen_seconds_since_the_path_came_into_use():
    _, a, b = judged(*[PeerSilence(60.0, 12, 0) for _ in range(2)])
    assert a.is_direct(b)
    _, a, b = judged(*[PeerSilence(60.0, 12, 0) for _ in range(3)])
    assert not a.is_direct(b)


def test_silence_is_none_while_data_comes_but_not_by_a_relay():
    talking = [PeerSilence(60.0, 12, heard) for heard in range(1, 9)]
    _, a, b = judged(*talking)
    assert a.is_direct(b)
    _, a, b = judged(*talking[:3], by_relay=True)
    assert not a.is_direct(b)


def test_a_block_is_halved_by_hearing_the_tunnel_and_forgotten_when_it_works():
    world, a, b = settled()
    a.finder.on_silence(b.number, world.now)
    candidate = paths_of(a, b).candidates[b.address]
    assert candidate.blocked_until == world.now + FIRST_PENALTY
    a.finder.on_data_heard([(b.number, b.address)], world.now)
    assert candidate.blocked_until == world.now + FIRST_PENALTY / 2
    world.talk(a, b, FIRST_PENALTY / 2 + 6.0)
    assert a.is_direct(b)
    assert candidate.penalty > FIRST_PENALTY
    a.finder.judge_silence(b.number, PeerSilence(math.inf, 0, 7), world.now)
    assert candidate.penalty == FIRST_PENALTY
