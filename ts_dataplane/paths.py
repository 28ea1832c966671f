"""PathFinder: which way datagrams to each peer go, now.

Owns the shared `paths` table and everything between a disco datagram and a change in it. Refuses to know sockets,
sessions and netmaps: facts come as `PeerPaths`, activity as peer ids. Rules are magicsock's, bettered where that is
safe: a ping or CallMeMaybe that finds us untrusting is answered with pings at once, and a new best path must show
that it carries full-size datagrams before the relay's copy stops. A path in doubt is always mirrored to the relay.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ts_base.box import TAG_LENGTH
from ts_base.errors import BadPacket
from ts_base.keys import DiscoPrivate, NodePublic
from ts_base.timers import Timers
from ts_dataplane import disco
from ts_dataplane.candidates import MAX_CALLED, Candidate, is_worth_trying
from ts_dataplane.disco import CallMeMaybe, Direct, Message, Ping, Pong
from ts_dataplane.disco_budget import Bucket, DiscoBudget
from ts_dataplane.path_scoring import PathQuality
from ts_dataplane.peer_paths import (
    CANDIDATE_SPACING,
    HEARTBEAT,
    PING_BACK_SPACING,
    SIZE_PROBE_SPACING,
    SIZE_PROBES,
    TRUST_TIME,
    TUNNEL_MTU,
    Path,
    PeerPaths,
    PeerState,
)
from ts_dataplane.ping_ledger import Outstanding, PingLedger

PeerId = int

ENDPOINTS_FRESH = 27.0  # older ones are refreshed before a peer is told to ping them
STUN_PATIENCE = 0.5  # ... unless the refresh takes longer than this
CALL_SPACING = 1.5
CALLS_RATE, CALLS_BURST = 1.0, 4.0  # CallMeMaybes of one peer that we act on
MAX_SEEN_PINGS = 1024
MAX_WAITING_DATAGRAMS = 4096
WIREGUARD_OVERHEAD = 16 + TAG_LENGTH
MAX_UNPROVEN = 4  # addresses of a WireGuard-only peer tried at once
RELAY_HOST = "127.3.3.40"  # stands for "through a relay" where a pong needs an address; the port is the region


@dataclass(frozen=True, slots=True)
class PathChanged:
    """The best path that is not a relay became another one, or none."""

    peer: PeerId
    path: Path | None
    latency: float


@dataclass(frozen=True, slots=True)
class PongArrived:
    peer: PeerId
    token: int
    path: Path
    latency: float


@dataclass(frozen=True, slots=True)
class PingLost:
    peer: PeerId
    token: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class NeedStun:
    """Somebody is about to be told our addresses and they are stale."""

    reason: str


@dataclass(frozen=True, slots=True)
class PathReport:
    """How a peer is reached, for people."""

    best: Path | None
    latency: float
    is_trusted: bool
    relay: Path | None
    candidates: tuple[tuple[Direct, float], ...] = ()


FinderMessage = PathChanged | PongArrived | PingLost | NeedStun


def is_relayed(path: Path) -> bool:
    return type(path[0]) is int


class PathFinder:
    def __init__(
        self, disco_key: DiscoPrivate, node: NodePublic, *, entropy: Callable[[int], bytes], never_direct: bool = False
    ) -> None:
        self.paths: dict[PeerId, tuple[Path, ...]] = {}
        self.drops: Counter[str] = Counter()
        self._boxes = disco.Boxes(disco_key, entropy)
        self._node = node.raw
        self._entropy = entropy
        self._never_direct = never_direct
        self._peers: dict[PeerId, PeerPaths] = {}
        self._by_disco: dict[bytes, tuple[PeerId, ...]] = {}
        self._by_node: dict[bytes, PeerId] = {}
        self._states: dict[PeerId, PeerState] = {}
        self._heard_regions: dict[PeerId, int] = {}  # only where it is not the home region
        self._gone: set[PeerId] = set()  # their home relay says it does not know them
        self._timers: Timers[PeerId] = Timers()
        self._ledger = PingLedger()
        self._budget = DiscoBudget()
        self._seen_pings: OrderedDict[bytes, Path] = OrderedDict()
        self._endpoints: tuple[Direct, ...] = ()
        self._endpoints_at = -math.inf
        self._loopback = False
        self._callers: dict[PeerId, bool] = {}  # wait for fresh endpoints; True: were told stale ones meanwhile
        self._patience_at = math.inf
        self._tokens = itertools.count(1)
        self._out: dict[Path, list[bytes]] = {}
        self._waiting = 0
        self._messages: list[FinderMessage] = []

    # ---- facts

    def set_peers(self, peers: Mapping[PeerId, PeerPaths], now: float) -> None:
        """All peers there are. Unchanged entries should be the same objects: that makes 10,000 of them cheap."""
        for peer in self._peers.keys() - peers.keys():
            self._forget(peer)
        for peer, facts in peers.items():
            before = self._peers.get(peer)
            if before is not facts and before != facts:
                self._learn(peer, before, facts, now)

    def _learn(self, peer: PeerId, before: PeerPaths | None, facts: PeerPaths, now: float) -> None:
        if before is not None and (before.node_key != facts.node_key or facts.expired):
            self._forget(peer)
            before = None
        if before is None or before.disco_key != facts.disco_key:
            if before is not None:
                self._unindex(peer, before)
            if facts.disco_key is not None and not facts.expired:
                self._by_disco[facts.disco_key] = (*self._by_disco.get(facts.disco_key, ()), peer)
        self._by_node[facts.node_key] = peer
        self._peers[peer] = facts
        if before is not None and before.home_region != facts.home_region:
            self._gone.discard(peer)
        state = self._states.get(peer)
        if state is None:
            self._publish(peer, self._choose_idle(peer, facts))
            return
        state.facts = facts
        if before is not None and before.disco_key != facts.disco_key:
            self._lose(self._ledger.forget(peer))
            state.trusted_until = -math.inf  # data still flows there, and by relay, until the new key has answered
            state.search_soon(now) if state.is_awake else None
        if before is None or before.endpoints is not facts.endpoints:
            state.candidates.set_listed(facts.endpoints, loopback=self._loopback)
            if state.is_awake and not state.is_direct(now):
                state.search_soon(now)
        self._settle(state, now)

    def _unindex(self, peer: PeerId, facts: PeerPaths) -> None:
        if facts.disco_key is not None:
            others = tuple(other for other in self._by_disco.get(facts.disco_key, ()) if other != peer)
            if others:
                self._by_disco[facts.disco_key] = others
            else:
                self._by_disco.pop(facts.disco_key, None)

    def _forget(self, peer: PeerId) -> None:
        facts = self._peers.pop(peer)
        self._unindex(peer, facts)
        if self._by_node.get(facts.node_key) == peer:
            del self._by_node[facts.node_key]
        self._heard_regions.pop(peer, None)
        self._gone.discard(peer)
        self._callers.pop(peer, None)
        self._lose(self._ledger.forget(peer))
        self._drop_state(peer)
        self.paths.pop(peer, None)

    def _drop_state(self, peer: PeerId) -> None:
        self._timers.clear(peer)
        state = self._states.pop(peer, None)
        if state is not None and state.best is not None:
            self._messages.append(PathChanged(peer, None, math.inf))

    def set_endpoints(self, endpoints: Iterable[Direct], now: float) -> None:
        """Where we can be reached, as of now: call it after every check, changed or not."""
        fresh = tuple(endpoints)
        changed = set(fresh) != set(self._endpoints)
        self._endpoints, self._endpoints_at = fresh, now
        loopback = any(host.startswith("127.") or host == "::1" for host, _ in fresh)
        relisted = loopback != self._loopback
        self._loopback = loopback
        callers, self._callers, self._patience_at = self._callers, {}, math.inf
        for peer, was_told in callers.items():
            state = self._states.get(peer)
            if state is not None and (changed or not was_told):
                state.called_at = -math.inf
                self._call(state, now)
        if not changed:
            return
        for state in list(self._states.values()):
            if relisted:
                state.candidates.set_listed(state.facts.endpoints, loopback=loopback)
            if state.is_awake and not state.is_direct(now):
                state.called_at = -math.inf if state.peer not in callers else state.called_at
                state.search_soon(now)
                self._attend(state, now)

    def on_network_changed(self, now: float) -> None:
        """Our sockets or addresses are others than before: nothing learnt through them is true any more."""
        self._lose(self._ledger.forget())
        self._endpoints_at = -math.inf
        self._messages.append(NeedStun("network changed"))
        for state in list(self._states.values()):
            self._drop_best(state)
            for candidate in state.candidates.values():
                candidate.refresh()
            state.called_at = -math.inf
            if state.is_awake:
                state.search_soon(now)
            self._attend(state, now)

    # ---- activity

    def on_data_sent(self, peers: Iterable[PeerId], now: float) -> None:
        """User data went to these peers since the last flush."""
        states = self._states
        for peer in peers:
            state = states.get(peer)
            if state is not None and state.is_awake:
                state.sent_at = now
            elif peer in self._peers:
                state = self._state(peer, now)
                state.wake(now)
                self._attend(state, now)

    def is_active(self, now: float) -> bool:
        """Is anybody being talked to, so that our addresses must stay fresh?"""
        return any(state.is_awake for state in self._states.values())

    def on_data_heard(self, heard: Iterable[tuple[PeerId, Path]], now: float) -> None:
        """The tunnel authenticated datagrams of these peers on a path it had not last heard them on."""
        for peer, path in heard:
            facts = self._peers.get(peer)
            if facts is None:
                continue
            if is_relayed(path):
                self._hear_relay(peer, facts, path[0], now)
            elif facts.wireguard_only:
                state = self._state(peer, now)
                self._adopt(state, PathQuality(path, 0.0, TUNNEL_MTU))
                state.trusted_until = math.inf  # this peer has no pongs; silence alone ends the trust
                self._settle(state, now)

    def on_silence(self, peer: PeerId, now: float) -> None:
        """We sent data on the trusted path and the tunnel heard nothing back, its handshake included."""
        state = self._states.get(peer)
        if state is None or state.best is None:
            return
        candidate = state.candidates.get(state.best.path[:2]) if len(state.best.path) == 2 else None
        if state.facts.wireguard_only:
            self._drop_best(state)
        elif self._relay(peer, state.facts) is not None:
            if candidate is not None:
                candidate.block(now)
            self._drop_best(state)
            self.drops["silent path"] += 1
        self._attend(state, now)

    def on_send_failed(self, path: Path, now: float) -> None:
        """The host has no route there: stop using it until something answers again."""
        for state in list(self._states.values()):
            if state.best is not None and state.best.path[:2] == path[:2]:
                self._drop_best(state)
                self._attend(state, now)

    def on_relay_gone(self, region: int, node_key: bytes, now: float) -> None:
        """A relay does not know this peer (any more)."""
        peer = self._by_node.get(node_key)
        if peer is None:
            return
        if self._heard_regions.get(peer) == region:
            del self._heard_regions[peer]
        if self._peers[peer].home_region == region:
            self._gone.add(peer)
        self._republish(peer, now)

    def _hear_relay(self, peer: PeerId, facts: PeerPaths, region: int, now: float) -> None:
        if region == facts.home_region:
            self._gone.discard(peer)
            known = self._heard_regions.pop(peer, None) is None
        else:
            known = self._heard_regions.get(peer) == region
            self._heard_regions[peer] = region
        if not known:
            self._republish(peer, now)

    # ---- the user's ping

    def ping(self, peer: PeerId, now: float, size: int = 0) -> int:
        """Ask `peer` for a pong on the best path, or on all there are; answers carry the token returned."""
        token = next(self._tokens)
        facts = self._peers.get(peer)
        if facts is None or facts.disco_key is None or facts.expired:
            self._messages.append(PingLost(peer, token, None))
            return token
        state = self._state(peer, now)
        was_awake = state.is_awake
        padding = max(0, size - disco.UNPADDED_PING)
        sent = False
        if state.is_trusted(now):
            assert state.best is not None
            sent = self._ping(state, state.best.path, now, padding=padding, token=token)
        else:
            relay = self._relay(peer, facts)
            if relay is not None:
                sent = self._ping(state, relay, now, padding=padding, token=token)
            for endpoint, candidate in self._answerable(state, now):
                candidate.pinged_back_at = now
                sent |= self._ping(state, endpoint, now, padding=padding, token=token)
        if not sent:
            self._messages.append(PingLost(peer, token, None))
        if was_awake:
            state.sent_at = now
        else:
            state.wake(now)
        self._attend(state, now)
        return token

    def report(self, peer: PeerId, now: float) -> PathReport:
        state, facts = self._states.get(peer), self._peers.get(peer)
        relay = None if facts is None else self._relay(peer, facts)
        if state is None or state.best is None:
            best, latency = None, math.inf
        else:
            best, latency = state.best.path, state.best.latency
        known = () if state is None else tuple((key, entry.latency) for key, entry in state.candidates.items())
        return PathReport(best, latency, state is not None and state.is_trusted(now), relay, known)

    # ---- disco datagrams

    def receive(self, batch: Iterable[tuple[bytes, Path]], now: float) -> None:
        for datagram, path in batch:
            try:
                self._receive(datagram, path, now)
            except BadPacket:
                self.drops["bad disco"] += 1

    def _receive(self, datagram: bytes, path: Path, now: float) -> None:
        key = disco.sender_untrusted(datagram)
        peers = self._by_disco.get(key)
        if peers is None:
            self.drops["unknown disco key"] += 1
            return
        over_relay = is_relayed(path)
        if self._never_direct and not over_relay and len(path) == 2:
            self.drops["never direct"] += 1
            return
        state = self._states.get(peers[0])
        in_use = state is not None and state.best is not None and state.best.path == path
        lane = "relay" if over_relay else "best" if in_use else "any"
        if not self._budget.allows((key, lane), now):
            self.drops["disco flood"] += 1
            return
        message = self._boxes.open_untrusted(datagram)
        match message:
            case Ping():
                self._on_ping(key, peers, message, path, now)
            case Pong():
                self._on_pong(key, message, path, now)
            case CallMeMaybe():
                self._on_call(key, message, path, now)
            case _:
                self.drops["unexpected disco message"] += 1

    def _on_ping(self, key: bytes, peers: tuple[PeerId, ...], ping: Ping, path: Path, now: float) -> None:
        seen = self._seen_pings.get(ping.transaction)
        if seen is not None:
            self.drops["repeated ping" if seen == path else "replayed ping"] += 1
            return
        self._seen_pings[ping.transaction] = path
        if len(self._seen_pings) > MAX_SEEN_PINGS:
            self._seen_pings.popitem(last=False)
        peer = self._who(key, peers, path, ping.node_key)
        if peer is None:
            self.drops["ping of nobody"] += 1
            return
        over_relay = is_relayed(path)
        source = (RELAY_HOST, path[0] & 0xFFFF) if over_relay else path[:2]
        self._send(key, path, Pong(ping.transaction, source))
        state = self._state(peer, now)
        state.heard_at = now
        if over_relay:
            self._hear_relay(peer, state.facts, path[0], now)
        elif len(path) == 2:
            self._ping_back(state, path, now)
        self._settle(state, now)

    def _who(self, key: bytes, peers: tuple[PeerId, ...], path: Path, node_key: bytes | None) -> PeerId | None:
        """Several nodes of one process may share a disco key: the relay or the ping itself says which one it is."""
        named = path[1] if is_relayed(path) else node_key
        peer = self._by_node.get(named) if isinstance(named, bytes) else None
        if peer is not None and peer in peers:
            return peer
        return peers[0] if len(peers) == 1 and not is_relayed(path) else None

    def _ping_back(self, state: PeerState, source: Direct, now: float) -> None:
        """The peer's router lets us through now: do not wait for the next round (upstream does, for five seconds)."""
        candidate = state.candidates.hear(source, now)
        if source not in state.candidates:
            self.drops["candidate"] += 1
            return
        if now - candidate.ponged_at < TRUST_TIME or state.facts.disco_key is None:
            return
        if state.is_direct(now):
            if candidate.is_due(now, CANDIDATE_SPACING):
                self._ping(state, source, now)
        elif now - candidate.pinged_back_at >= PING_BACK_SPACING and now >= candidate.blocked_until:
            candidate.pinged_back_at = now
            self._ping(state, source, now)

    def _on_pong(self, key: bytes, pong: Pong, path: Path, now: float) -> None:
        ping = self._ledger.answered(pong.transaction, key)
        if ping is None:
            self.drops["pong to no ping"] += 1
            return
        latency = max(0.0, now - ping.sent_at)
        if ping.token:
            self._messages.append(PongArrived(ping.peer, ping.token, ping.path, latency))
        state = self._states.get(ping.peer)
        if state is None or is_relayed(path) or is_relayed(ping.path):
            return
        # Credit goes to the address that was pinged: behind a hairpin or on a multi-homed host the pong may come
        # from another one.
        candidate = state.candidates.get(ping.path)
        if candidate is None or now < candidate.blocked_until:
            self.drops["pong of no candidate"] += 1
            return
        candidate.ponged_at, candidate.latency = now, latency
        candidate.has_answered, candidate.unanswered = True, 0
        self._credit(state, PathQuality(ping.path, latency, ping.mtu), now)

    def _credit(self, state: PeerState, quality: PathQuality, now: float) -> None:
        installed = state.credit(quality, now)
        if not state.confirmed and state.best is not None and state.best.mtu >= TUNNEL_MTU:
            state.confirmed, state.size_probe_at = True, math.inf
        if installed:
            self._messages.append(PathChanged(state.peer, quality.path, quality.latency))
        self._attend(state, now)

    def _on_call(self, key: bytes, call: CallMeMaybe, path: Path, now: float) -> None:
        peer = self._by_node.get(path[1]) if is_relayed(path) else None
        if peer is None or self._peers[peer].disco_key != key:
            self.drops["call from the wrong place"] += 1
            return
        state = self._state(peer, now)
        state.heard_at = now
        if state.call_tokens is None:
            state.call_tokens = Bucket(CALLS_RATE, CALLS_BURST, now)
        if not state.call_tokens.take(now):
            self.drops["call flood"] += 1
            return
        self.drops["call endpoint"] += state.candidates.set_called(call.endpoints, loopback=self._loopback)
        self._hear_relay(peer, state.facts, path[0], now)
        if not self._never_direct:
            for endpoint, candidate in self._answerable(state, now):
                candidate.pinged_back_at = now
                self._ping(state, endpoint, now)
            # Our own call tells the peer that our pings are out, so that its next ones find the way open.
            if not state.is_direct(now) and now - state.called_at >= CANDIDATE_SPACING:
                self._call(state, now)
        self._settle(state, now)

    def _answerable(self, state: PeerState, now: float) -> list[tuple[Direct, Candidate]]:
        """Candidates that may be pinged out of turn."""
        if self._never_direct:
            return []
        return [item for item in state.due_candidates(now, 0.0) if now - item[1].pinged_back_at >= PING_BACK_SPACING]

    # ---- what is due

    def handle_timer(self, now: float) -> None:
        expired = self._ledger.pop_expired(now)
        self._lose(expired)
        for ping in expired:
            state = self._states.get(ping.peer)
            if state is not None and state.best is not None and state.best.path == ping.path:
                if not state.is_trusted(now):
                    self._drop_best(state)
                    state.search_soon(now) if state.is_awake else None
                    self._attend(state, now)
        if now >= self._patience_at:
            self._patience_at = math.inf
            for peer in self._callers:
                state = self._states.get(peer)
                if state is not None and self._endpoints:
                    self._callers[peer] = True
                    self._tell_endpoints(state, now)
        for peer in self._timers.pop_due(now):
            state = self._states.get(peer)
            if state is not None:
                self._attend(state, now)

    def next_timer(self) -> float:
        return min(self._timers.next(), self._ledger.next_timer(), self._patience_at)

    def _attend(self, state: PeerState, now: float) -> None:
        """Do whatever is due for one peer."""
        if now >= state.retire_at() and self._retire(state, now):
            return
        if state.is_awake and state.is_idle(now):
            state.sleep()
        if now >= state.heartbeat_at:
            self._heartbeat(state, now)
        if now >= state.size_probe_at:
            self._probe_size(state, now)
        if state.is_direct(now):
            state.search_at = math.inf
        elif state.is_awake and state.search_at == math.inf:
            state.search_soon(now)
        if now >= state.search_at:
            self._search(state, now)
        self._settle(state, now)

    def _retire(self, state: PeerState, now: float) -> bool:
        if state.best is not None and self._relay(state.peer, state.facts) is None:
            state.heard_at = now  # its last known address is all there is
            return False
        self._drop_state(state.peer)
        self._publish(state.peer, self._choose_idle(state.peer, state.facts))
        return True

    def _heartbeat(self, state: PeerState, now: float) -> None:
        state.heartbeat_at = now + HEARTBEAT
        if state.facts.wireguard_only:
            return
        best = state.best
        if best is not None:
            self._ping(state, best.path, now)
            if state.is_direct(now) and state.wants_full_ping(now):
                state.full_ping_at = now
                if self._ping_candidates(state, now, CANDIDATE_SPACING):
                    self._call(state, now)

    def _search(self, state: PeerState, now: float) -> None:
        state.full_ping_at = now
        if state.facts.disco_key is not None and not self._never_direct:
            if self._ping_candidates(state, now, state.spacing) or not state.candidates:
                self._call(state, now)
        state.search_later(now)

    def _ping_candidates(self, state: PeerState, now: float, spacing: float) -> bool:
        if self._never_direct:
            return False
        sent = False
        for endpoint, _ in state.due_candidates(now, spacing):
            sent |= self._ping(state, endpoint, now)
        return sent

    def _probe_size(self, state: PeerState, now: float) -> None:
        """Small pings are not enough: a path may swallow full-size datagrams without a word."""
        best = state.best
        if best is None or state.facts.wireguard_only:
            state.size_probe_at = math.inf
            return
        if state.size_probes < SIZE_PROBES:
            state.size_probes += 1
            state.size_probe_at = now + SIZE_PROBE_SPACING + 2 * best.latency
            padding = TUNNEL_MTU + WIREGUARD_OVERHEAD - disco.UNPADDED_PING
            self._ping(state, best.path, now, padding=padding, mtu=TUNNEL_MTU)
            return
        state.size_probe_at = math.inf
        candidate = state.candidates.get(best.path[:2])
        if self._relay(state.peer, state.facts) is not None and len(best.path) == 2 and candidate is not None:
            candidate.block(now)
            self.drops["black hole"] += 1
            self._drop_best(state)

    # ---- out

    def _ping(
        self, state: PeerState, path: Path, now: float, *, padding: int = 0, mtu: int = 0, token: int = 0
    ) -> bool:
        key = state.facts.disco_key
        if key is None or (self._never_direct and len(path) == 2 and not is_relayed(path)):
            return False
        transaction = self._entropy(disco.TRANSACTION_LENGTH)
        crowded_out = self._ledger.add(transaction, Outstanding(state.peer, key, path, now, mtu, token))
        if crowded_out is not None:
            self._lose([crowded_out])
        candidate = state.candidates.get(path)
        if candidate is not None:
            candidate.pinged_at = now
            candidate.unanswered += 1
        return self._send(key, path, Ping(transaction, self._node, padding))

    def _call(self, state: PeerState, now: float) -> None:
        """Tell the peer over the relay where to ping us, once our addresses are fresh."""
        if now - state.called_at < CALL_SPACING or self._relay(state.peer, state.facts) is None:
            return
        if now - self._endpoints_at <= ENDPOINTS_FRESH:
            self._tell_endpoints(state, now)
        elif state.peer not in self._callers:
            if not self._callers:
                self._messages.append(NeedStun("our addresses are stale"))
                self._patience_at = now + STUN_PATIENCE
            self._callers[state.peer] = False

    def _tell_endpoints(self, state: PeerState, now: float) -> None:
        relay, key = self._relay(state.peer, state.facts), state.facts.disco_key
        endpoints = [e for e in self._endpoints if is_worth_trying(e, loopback=self._loopback)][:MAX_CALLED]
        if relay is not None and key is not None and endpoints and not self._never_direct:
            state.called_at = now
            self._send(key, relay, CallMeMaybe(tuple(endpoints)))

    def _send(self, key: bytes, path: Path, message: Message) -> bool:
        if self._waiting >= MAX_WAITING_DATAGRAMS:
            self.drops["disco not sent"] += 1
            return False
        self._waiting += 1
        self._out.setdefault(path, []).append(self._boxes.seal(key, message))
        return True

    def transmit(self, now: float) -> list[tuple[Path, list[bytes]]]:
        if not self._out:
            return []
        out, self._out, self._waiting = self._out, {}, 0
        return list(out.items())

    def take_messages(self) -> list[FinderMessage]:
        messages, self._messages = self._messages, []
        return messages

    def _lose(self, pings: list[Outstanding]) -> None:
        self._messages += [PingLost(ping.peer, ping.token, ping.path) for ping in pings if ping.token]

    # ---- the table

    def _state(self, peer: PeerId, now: float) -> PeerState:
        state = self._states.get(peer)
        if state is None:
            facts = self._peers[peer]
            state = self._states[peer] = PeerState(peer, facts, now)
            state.candidates.set_listed(facts.endpoints, loopback=self._loopback)
        return state

    def _adopt(self, state: PeerState, quality: PathQuality) -> None:
        if state.best is None or state.best.path != quality.path:
            self._messages.append(PathChanged(state.peer, quality.path, quality.latency))
        state.best, state.confirmed = quality, True

    def _drop_best(self, state: PeerState) -> None:
        if state.best is not None:
            state.drop_best()
            self._messages.append(PathChanged(state.peer, None, math.inf))

    def _relay(self, peer: PeerId, facts: PeerPaths) -> Path | None:
        region = facts.home_region
        heard = self._heard_regions.get(peer)
        if heard and (not region or peer in self._gone):
            region = heard
        return (region, facts.node_key) if region and not facts.expired else None

    def _choose(self, state: PeerState, now: float) -> tuple[Path, ...]:
        if state.best is None:
            return self._choose_idle(state.peer, state.facts)
        relay = self._relay(state.peer, state.facts)
        if relay is None or (state.confirmed and state.is_trusted(now)):
            return (state.best.path,)
        return (state.best.path, relay)

    def _choose_idle(self, peer: PeerId, facts: PeerPaths) -> tuple[Path, ...]:
        if facts.expired:
            return ()
        if facts.wireguard_only:
            unproven = PeerState(peer, facts, 0.0).candidates
            unproven.set_listed(facts.endpoints, loopback=self._loopback)
            return tuple(unproven)[:MAX_UNPROVEN]
        relay = self._relay(peer, facts)
        return () if relay is None else (relay,)

    def _republish(self, peer: PeerId, now: float) -> None:
        state = self._states.get(peer)
        if state is not None:
            self._settle(state, now)
        else:
            self._publish(peer, self._choose_idle(peer, self._peers[peer]))

    def _settle(self, state: PeerState, now: float) -> None:
        self._publish(state.peer, self._choose(state, now))
        self._timers.set(state.peer, state.next_timer(now))

    def _publish(self, peer: PeerId, chosen: tuple[Path, ...]) -> None:
        if self.paths.get(peer, ()) != chosen:
            if chosen:
                self.paths[peer] = chosen
            else:
                self.paths.pop(peer, None)


__all__ = ["FinderMessage", "NeedStun", "PathChanged", "PathFinder", "PathReport", "PeerPaths", "PingLost"]
