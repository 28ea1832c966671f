"""Two endpoints and the wire between them, as a script: who sends, what is lost, what time it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from ts_base.keys import NodePrivate
from ts_base.who import Path
from ts_tunnel.endpoint import Endpoint
from ts_tunnel.handshake_guard import HandshakeGuard
from ts_tunnel.peer import Peer
from ts_tunnel.session import Session
from ts_tunnel.wire import COOKIE_REPLY, INITIATION, RESPONSE, TRANSPORT, kind_of

A, B = 1, 2  # peer ids: A is who B talks to, and the other way round
PATH_A: Path = ("192.0.2.1", 41641)
PATH_B: Path = ("192.0.2.2", 41641)
KIND_NAMES = {INITIATION: "initiation", RESPONSE: "response", COOKIE_REPLY: "cookie", TRANSPORT: "data"}
START_OF_TIME = 1_700_000_000.0


def stream(seed: object) -> Callable[[int], bytes]:
    """Reproducible entropy."""
    state = hashlib.blake2b(repr(seed).encode()).digest()
    count = 0

    def entropy(n: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(state + count.to_bytes(8, "big")).digest(n)

    return entropy


def private(seed: object) -> NodePrivate:
    return NodePrivate.generate(stream(("key", seed))(32))


def guard_of(endpoint: Endpoint) -> HandshakeGuard:
    """Who decides which handshakes are worth computing."""
    return endpoint._handshakes.guard


def peer_of(endpoint: Endpoint, peer_id: int) -> Peer:
    """What it knows of a peer it has talked to."""
    return endpoint._peers[peer_id]


def sessions_of(endpoint: Endpoint) -> list[Session]:
    """Every session whose datagrams it would open."""
    return list(endpoint._indices.sessions.values())


def kinds(datagrams: list[bytes]) -> list[str]:
    return [KIND_NAMES[kind_of(datagram)] for datagram in datagrams]


class Side:
    """One endpoint, what it received, and what it put on the wire that nobody has carried yet."""

    def __init__(self, name: str, seed: object, clock: Callable[[], float]) -> None:
        self.private = private((seed, name))
        self.endpoint = Endpoint(self.private, entropy=stream((seed, name, "entropy")), wall_clock=clock)
        self.received: list[bytes] = []
        self.heard = 0  # authentic runs, empty ones included
        self.wire: list[bytes] = []

    def collect(self, now: float) -> None:
        for _peer, datagrams in self.endpoint.transmit(now):
            self.wire += datagrams
        for _path, datagrams in self.endpoint.take_replies():
            self.wire += datagrams

    def take(self, path: Path, datagrams: list[bytes], now: float) -> None:
        for _peer, _path, plaintexts in self.endpoint.receive([(path, datagrams)], now):
            self.heard += 1
            self.received += plaintexts


class Pair:
    """A and B know each other. Datagrams rest on the sender's `wire` until they are carried or dropped."""

    def __init__(self, seed: object = 1) -> None:
        self.now = 0.0
        self.wall_offset = START_OF_TIME
        self.a = Side("a", seed, self.wall_clock)
        self.b = Side("b", seed, self.wall_clock)
        self.a.endpoint.set_peers({B: self.b.private.public.raw}, 0.0)
        self.b.endpoint.set_peers({A: self.a.private.public.raw}, 0.0)

    def wall_clock(self) -> float:
        return self.wall_offset + self.now

    def send_a(self, *packets: bytes) -> None:
        self.a.endpoint.send([(B, list(packets))], self.now)
        self.a.collect(self.now)

    def send_b(self, *packets: bytes) -> None:
        self.b.endpoint.send([(A, list(packets))], self.now)
        self.b.collect(self.now)

    def carry_a_to_b(self) -> list[str]:
        """Everything on A's wire reaches B; what it was."""
        return self._carry(self.a, self.b, PATH_A)

    def carry_b_to_a(self) -> list[str]:
        return self._carry(self.b, self.a, PATH_B)

    def _carry(self, sender: Side, receiver: Side, path: Path) -> list[str]:
        carried, sender.wire = sender.wire, []
        receiver.take(path, carried, self.now)
        receiver.collect(self.now)
        return kinds(carried)

    def drop_a_to_b(self) -> list[str]:
        dropped, self.a.wire = self.a.wire, []
        return kinds(dropped)

    def drop_b_to_a(self) -> list[str]:
        dropped, self.b.wire = self.b.wire, []
        return kinds(dropped)

    def settle(self) -> None:
        """Carry both ways until both wires are empty."""
        for _ in range(20):
            if not self.a.wire and not self.b.wire:
                return
            self.carry_a_to_b()
            self.carry_b_to_a()
        raise AssertionError("the two never stop talking")

    def tick(self, now: float) -> None:
        """It is `now`: every timer due until then fires at its own time; nothing is carried."""
        while (due := min(self.a.endpoint.next_timer(), self.b.endpoint.next_timer())) <= now:
            self.now = max(self.now, due)
            self._fire()
        self.now = now
        self._fire()

    def run_until(self, now: float) -> None:
        """Like `tick`, and whatever is said on the way is carried at once."""
        while (due := min(self.a.endpoint.next_timer(), self.b.endpoint.next_timer())) <= now:
            self.now = max(self.now, due)
            self._fire()
            self.settle()
        self.now = now

    def _fire(self) -> None:
        for side in (self.a, self.b):
            side.endpoint.handle_timer(self.now)
            side.collect(self.now)

    def connect(self) -> Pair:
        """A session with A as its initiator, confirmed both ways."""
        self.send_a(b"hello")
        self.settle()
        assert self.b.received.pop().rstrip(b"\0") == b"hello"
        self.a.endpoint.take_messages()
        self.b.endpoint.take_messages()
        return self


def unpadded(packets: list[bytes]) -> list[bytes]:
    return [packet.rstrip(b"\0") for packet in packets]


NEVER = math.inf
