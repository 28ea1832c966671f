"""Peer relays: peers that carry datagrams between two others, inside Geneve, faster than a DERP relay would.

Owns the dialogue that earns a path through one: allocate a place over DERP, tell the other side, bind by a three-way
handshake, ping through. Sends nothing itself: `transmit` hands out orders that `path_keeping.py` carries out. Knows no
trust and no scores. Rules are magicsock's relayManager.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ts_base.who import Direct, PeerId, PeerRelayed, endpoint_of
from ts_dataplane import disco
from ts_dataplane.disco import AllocateRequest, AllocateResponse, Bind, CallMeMaybeVia, RelayEndpoint
from ts_dataplane.geneve import MAX_VNI

DISCOVERY_SPACING = 30.0
RETRY_AFTER = 3.0
ALLOCATION_TIMEOUT = 10.0
HANDSHAKE_TIMEOUT = 30.0
PING_LIMIT = 10
MAX_SERVERS = 5  # asked for one peer at a time
MAX_HANDSHAKES = 64
MAX_ADDRESSES = 16


class Tell(NamedTuple):
    """Say `message` to `peer` over its DERP relay."""

    peer: PeerId
    message: AllocateRequest | CallMeMaybeVia


class Knock(NamedTuple):
    """Send a step of the bind handshake to a relay server, with Geneve's control bit set."""

    address: Direct
    vni: int
    server_disco: bytes
    message: Bind


class PingThrough(NamedTuple):
    peer: PeerId
    path: PeerRelayed


Order = Tell | Knock | PingThrough


@dataclass(slots=True)
class _Allocation:
    request: AllocateRequest
    retry_at: float
    deadline: float


@dataclass(slots=True)
class _Handshake:
    peer: PeerId
    remote_disco: bytes
    endpoint: RelayEndpoint
    generation: int
    deadline: float
    path: PeerRelayed | None = None  # set when a challenge was answered
    pings: int = field(default=0)


class PeerRelays:
    """All dialogues of one node with relay servers."""

    def __init__(self, our_disco: bytes) -> None:
        self.drops: Counter[str] = Counter()
        self._ours = our_disco
        self._generation = 0
        self._allocations: dict[tuple[PeerId, PeerId], _Allocation] = {}  # (server, peer)
        self._handshakes: dict[tuple[bytes, int], _Handshake] = {}  # (server's disco key, VNI)
        self._discovered_at: dict[PeerId, float] = {}
        self._orders: list[Order] = []

    def knows(self, disco_key: bytes) -> bool:
        """Is this the key of a relay server that we are shaking hands with?"""
        return any(server == disco_key for server, _ in self._handshakes)

    def discover(self, peer: PeerId, remote_disco: bytes, servers: Iterable[PeerId], now: float) -> None:
        """Ask servers for a place between us and `peer`; no more often than every 30 s."""
        if now - self._discovered_at.get(peer, -math.inf) < DISCOVERY_SPACING:
            return
        asked = 0
        for server in servers:
            if server == peer or asked == MAX_SERVERS:
                continue
            asked += 1
            if (server, peer) not in self._allocations:
                request = AllocateRequest(self._pair(remote_disco), self._next_generation())
                self._allocations[server, peer] = _Allocation(request, now + RETRY_AFTER, now + ALLOCATION_TIMEOUT)
                self._orders.append(Tell(server, request))
        if asked:
            self._discovered_at[peer] = now

    def on_allocated(self, server: PeerId, response: AllocateResponse, now: float) -> None:
        """A server answered. Only the answer to the question still open counts."""
        for (asked, peer), allocation in list(self._allocations.items()):
            request = allocation.request
            if (
                asked == server
                and response.generation == request.generation
                and set(response.endpoint.client_discos) == set(request.client_discos)
            ):
                del self._allocations[asked, peer]
                remote = next(key for key in request.client_discos if key != self._ours)
                self._orders.append(Tell(peer, CallMeMaybeVia(response.endpoint)))
                self._shake_hands(peer, remote, response.endpoint, now)
                return
        self.drops["peer_relay.unasked_allocation"] += 1

    def on_offer(self, peer: PeerId, remote_disco: bytes, endpoint: RelayEndpoint, now: float) -> None:
        """`peer` has allocated a place for the two of us."""
        if set(endpoint.client_discos) != {self._ours, remote_disco} or self._ours == remote_disco:
            self.drops["peer_relay.offer_for_others"] += 1
            return
        self._shake_hands(peer, remote_disco, endpoint, now)

    def _shake_hands(self, peer: PeerId, remote_disco: bytes, endpoint: RelayEndpoint, now: float) -> None:
        same_server = [
            (key, known)
            for key, known in self._handshakes.items()
            if key[0] == endpoint.server_disco and (known.peer == peer or key[1] == endpoint.vni)
        ]
        if any(known.endpoint.lamport >= endpoint.lamport for _, known in same_server):
            return  # the same place, or one that is older than what we have
        for key, _ in same_server:
            del self._handshakes[key]
        if len(self._handshakes) >= MAX_HANDSHAKES or not 0 <= endpoint.vni <= MAX_VNI:
            self.drops["peer_relay.handshakes_full"] += 1
            return
        generation = self._next_generation()
        deadline = now + min(endpoint.bind_lifetime_ns / 1e9, HANDSHAKE_TIMEOUT)
        key = endpoint.server_disco, endpoint.vni
        self._handshakes[key] = _Handshake(peer, remote_disco, endpoint, generation, deadline)
        bind = Bind(disco.BIND, endpoint.vni, generation, remote_disco)
        for address in endpoint.addresses[:MAX_ADDRESSES]:
            self._orders.append(Knock(address, endpoint.vni, endpoint.server_disco, bind))

    def on_challenge(self, server_disco: bytes, path: PeerRelayed, challenge: Bind, now: float) -> None:
        """The server wants to see that we are where we say: echo it, and try the way through at once."""
        handshake = self._handshakes.get((server_disco, path[2]))
        if (
            handshake is None
            or challenge.kind != disco.CHALLENGE
            or challenge.vni != path[2]
            or challenge.generation != handshake.generation
            or challenge.remote_disco != handshake.remote_disco
        ):
            self.drops["peer_relay.challenge_to_nothing"] += 1
            return
        if handshake.path is not None:
            return  # servers bind the first of our addresses they hear, and so do we
        handshake.path = path
        answer = Bind(disco.ANSWER, path[2], handshake.generation, handshake.remote_disco, challenge.challenge)
        self._orders.append(Knock(endpoint_of(path), path[2], server_disco, answer))
        self._ping(handshake)

    def on_ping(self, peer: PeerId, path: PeerRelayed) -> None:
        """The peer's ping came through, so our earlier one may have been too early: once more."""
        for handshake in self._handshakes.values():
            if handshake.path == path and handshake.peer == peer:
                self._ping(handshake)

    def on_pong(self, path: PeerRelayed) -> bytes | None:
        """The way through works: nothing more to say to the server, whose key is returned if this was news."""
        for (server, vni), handshake in list(self._handshakes.items()):
            if handshake.path == path:
                del self._handshakes[server, vni]
                return server
        return None

    def _ping(self, handshake: _Handshake) -> None:
        if handshake.pings < PING_LIMIT and handshake.path is not None:
            handshake.pings += 1
            self._orders.append(PingThrough(handshake.peer, handshake.path))

    def forget(self, peer: PeerId) -> None:
        self._discovered_at.pop(peer, None)
        for pair in [pair for pair in self._allocations if peer in pair]:
            del self._allocations[pair]
        for key in [key for key, handshake in self._handshakes.items() if handshake.peer == peer]:
            del self._handshakes[key]

    def transmit(self) -> list[Order]:
        orders, self._orders = self._orders, []
        return orders

    def handle_timer(self, now: float) -> None:
        for (server, peer), allocation in list(self._allocations.items()):
            if now >= allocation.deadline:
                del self._allocations[server, peer]
            elif now >= allocation.retry_at:
                allocation.retry_at = math.inf
                self._orders.append(Tell(server, allocation.request))
        for key, handshake in list(self._handshakes.items()):
            if now >= handshake.deadline:
                del self._handshakes[key]
                self.drops["peer_relay.handshake_timeout"] += 1

    def next_timer(self) -> float:
        if not self._allocations and not self._handshakes:
            return math.inf
        waits = [min(allocation.retry_at, allocation.deadline) for allocation in self._allocations.values()]
        return min(waits + [handshake.deadline for handshake in self._handshakes.values()])

    def _pair(self, remote_disco: bytes) -> tuple[bytes, bytes]:
        first, second = sorted((self._ours, remote_disco))
        return first, second

    def _next_generation(self) -> int:
        self._generation = self._generation % 0xFFFFFFFF + 1  # never 0: servers refuse that
        return self._generation
