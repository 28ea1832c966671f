"""PathFinder: which way datagrams to each peer go, now.

The face of the rooms around it: takes facts, activity and disco datagrams, and answers what is asked. What follows from
them for a peer in use is decided in `pursuit.py`. Refuses to know sockets, sessions and netmaps. Rules are magicsock's,
bettered where that is safe: a ping or a CallMeMaybe that finds us without a trusted path is answered by pings at once.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ts_base.budget import Budget
from ts_base.errors import BadPacket
from ts_base.keys import DiscoPrivate, NodePublic
from ts_dataplane import disco
from ts_dataplane.disco import AllocateResponse, Bind, CallMeMaybe, CallMeMaybeVia, Direct, Ping, Pong
from ts_dataplane.disco_budget import DiscoBudget
from ts_dataplane.disco_outbox import DiscoOutbox
from ts_dataplane.path_messages import FinderMessage, NeedStun, PathChanged, PathReport, PingLost, PongArrived
from ts_dataplane.path_scoring import PathQuality
from ts_dataplane.peer_paths import CANDIDATE_SPACING, PING_BACK_SPACING, TRUST_TIME, Path, PeerPaths, PeerState
from ts_dataplane.ping_ledger import Outstanding
from ts_dataplane.pursuit import Pursuit

PeerId = int

CALLS_RATE, CALLS_BURST = 1.0, 4.0  # CallMeMaybes of one peer that we act on
MAX_SEEN_PINGS = 1024
RELAY_HOST = "127.3.3.40"  # stands for "through a relay" where a pong needs an address; the port is the region

__all__ = [
    "FinderMessage",
    "NeedStun",
    "PathChanged",
    "PathFinder",
    "PathReport",
    "PeerPaths",
    "PingLost",
    "PongArrived",
]


def is_relayed(path: Path) -> bool:
    return type(path[0]) is int


class PathFinder:
    """One per device. `paths` is shared with the engine and changed in place."""

    def __init__(
        self, disco_key: DiscoPrivate, node: NodePublic, *, entropy: Callable[[int], bytes], never_direct: bool = False
    ) -> None:
        self.drops: Counter[str] = Counter()
        self._boxes = disco.Boxes(disco_key, entropy)
        self._outbox = DiscoOutbox(self._boxes, node.raw, entropy, self.drops)
        self._pursuit = Pursuit(self._outbox, disco_key.public.raw, self.drops, never_direct=never_direct)
        self.paths = self._pursuit.paths
        self._roster = self._pursuit.roster
        self._states = self._pursuit.states
        self._budget = DiscoBudget()
        self._seen_pings: OrderedDict[bytes, Path] = OrderedDict()
        self._tokens = itertools.count(1)
        self._advertised: dict[PeerId, tuple[bytes | None, bytes]] = {}  # control's disco key then, and the peer's word

    # ---- facts

    def set_peers(self, peers: Mapping[PeerId, PeerPaths], now: float) -> None:
        """All peers there are. Unchanged entries should be the same objects: that makes 10,000 of them cheap."""
        self.change_peers(peers, self._roster.keys() - peers.keys(), now)

    def change_peers(self, changed: Mapping[PeerId, PeerPaths], removed: Iterable[PeerId], now: float) -> None:
        """As `set_peers`, told only what is new or different and what is gone: costs no more than that."""
        roster = self._roster
        for peer in removed:
            if peer not in roster:
                continue
            self._pursuit.drop_state(peer)
            roster.remove(peer)
            self._advertised.pop(peer, None)
            self._pursuit.republish(peer, now)
        for peer, facts in changed.items():
            if peer in self._advertised:
                facts = self._prefer_advert(peer, facts)
            before = roster.get(peer)
            if before is not facts and before != facts:
                self._learn(peer, before, facts, now)

    def on_disco_key_advertised(self, peer: PeerId, disco_key: bytes, now: float) -> None:
        """The peer itself told us, inside its tunnel, the disco key it uses since it restarted: control is slower."""
        before = self._roster.get(peer)
        if before is not None and before.disco_key != disco_key and not before.expired:
            told_by_control = self._advertised.get(peer, (before.disco_key, b""))[0]
            self._advertised[peer] = told_by_control, disco_key
            self._learn(peer, before, replace(before, disco_key=disco_key), now)

    def _prefer_advert(self, peer: PeerId, facts: PeerPaths) -> PeerPaths:
        """What the peer said holds until control says something new."""
        told_by_control, disco_key = self._advertised[peer]
        if facts.disco_key == told_by_control:
            return replace(facts, disco_key=disco_key)
        del self._advertised[peer]
        return facts

    def set_node(self, node: NodePublic) -> None:
        """Our own node key changed: pings carry the new one from now on."""
        self._outbox.node_key = node.raw

    def _learn(self, peer: PeerId, before: PeerPaths | None, facts: PeerPaths, now: float) -> None:
        if before is not None and (before.node_key != facts.node_key or facts.expired):
            self._pursuit.drop_state(peer)
        self._roster.put(peer, facts)
        state = self._states.get(peer)
        if state is None or before is None:
            self._pursuit.republish(peer, now)
            return
        state.facts = facts
        has_new_disco = before.disco_key != facts.disco_key
        if has_new_disco:
            self._pursuit.lose(self._outbox.ledger.forget(peer))
            self._pursuit.relays.forget(peer)
            state.trusted_until = -math.inf  # data still flows there, and by relay, until the new key has answered
        if before.endpoints != facts.endpoints:
            state.candidates.set_listed(facts.endpoints, loopback=self._pursuit.loopback)
        elif not has_new_disco:
            self._pursuit.settle(state, now)
            return
        if state.is_awake and not state.is_direct(now):
            state.search_soon(now)
        self._pursuit.settle(state, now)

    def set_endpoints(self, endpoints: Iterable[Direct], now: float) -> None:
        """Where we can be reached, as of now: call it after every check, changed or not."""
        self._pursuit.set_endpoints(endpoints, now)

    def on_network_changed(self, now: float) -> None:
        """Our sockets or addresses are others than before: nothing learnt through them is true any more."""
        pursuit = self._pursuit
        pursuit.lose(self._outbox.ledger.forget())
        pursuit.endpoints_at = -math.inf
        pursuit.messages.append(NeedStun("network changed"))
        for state in list(self._states.values()):
            pursuit.drop_best(state)
            for candidate in state.candidates.values():
                candidate.refresh()
            state.called_at = -math.inf
            if state.is_awake:
                state.search_soon(now)
            pursuit.attend(state, now)

    # ---- activity

    def on_data_sent(self, peers: Iterable[PeerId], now: float) -> bool:
        """User data went to these peers since the last flush; True when that is news and something follows from it."""
        states, woken = self._states, False
        for peer in peers:
            state = states.get(peer)
            if state is not None and state.is_awake:
                state.sent_at = now
            elif peer in self._roster:
                state = self._pursuit.state(peer, now)
                state.wake(now)
                self._pursuit.attend(state, now)
                woken = True
        return woken

    def is_active(self, now: float) -> bool:
        """Is anybody being talked to, so that our addresses must stay fresh?"""
        return any(state.is_awake for state in self._states.values())

    def on_data_heard(self, heard: Iterable[tuple[PeerId, Path]], now: float) -> None:
        """The tunnel authenticated datagrams of these peers on a path it had not last heard them on."""
        for peer, path in heard:
            facts = self._roster.get(peer)
            if facts is None:
                continue
            if is_relayed(path):
                self._hear_relay(peer, path[0], now)
            elif facts.wireguard_only:
                self._pursuit.adopt(self._pursuit.state(peer, now), path, now)

    def trusted_peers(self, now: float) -> list[PeerId]:
        """Who is being talked to without the relay's help."""
        return [peer for peer, state in self._states.items() if state.is_awake and state.is_trusted(now)]

    def on_silence(self, peer: PeerId, now: float) -> None:
        """On the trusted path the tunnel gets no answer, not even to a handshake: disco passes where it does not."""
        state = self._states.get(peer)
        if state is None or state.best is None:
            return
        if state.facts.wireguard_only:
            self._pursuit.drop_best(state)
        elif self._roster.relay(peer) is not None:
            self.drops["silent path"] += 1
            self._pursuit.block_best(state, now)
        self._pursuit.attend(state, now)

    def on_send_failed(self, path: Path, now: float) -> None:
        """The host has no route there: stop using it until something answers again."""
        for state in list(self._states.values()):
            if state.best is not None and state.best.path[:2] == path[:2]:
                self.drops["no route"] += 1
                self._pursuit.drop_best(state)
                self._pursuit.attend(state, now)

    def on_relay_gone(self, region: int, node_key: bytes, now: float) -> None:
        """A relay does not know this peer (any more)."""
        peer = self._roster.by_node.get(node_key)
        if peer is not None:
            self._roster.lose(peer, region)
            self._pursuit.republish(peer, now)

    def _hear_relay(self, peer: PeerId, region: int, now: float) -> None:
        if self._roster.hear(peer, region):
            self._pursuit.republish(peer, now)

    # ---- what people ask

    def ping(self, peer: PeerId, now: float, size: int = 0) -> int:
        """Ask `peer` for a pong on the best path, or on all there are; answers carry the token returned."""
        token = next(self._tokens)
        facts, pursuit = self._roster.get(peer), self._pursuit
        if facts is None or facts.disco_key is None or facts.expired:
            pursuit.messages.append(PingLost(peer, token, None))
            return token
        state = pursuit.state(peer, now)
        padding = max(0, size - disco.UNPADDED_PING)
        if state.best is not None and state.is_trusted(now):
            sent = pursuit.ping(state, state.best.path, now, padding=padding, token=token)
        else:
            relay = self._roster.relay(peer)
            sent = relay is not None and pursuit.ping(state, relay, now, padding=padding, token=token)
            sent |= pursuit.ping_out_of_turn(state, now, padding=padding, token=token)
        if not sent:
            pursuit.messages.append(PingLost(peer, token, None))
        self.on_data_sent((peer,), now)  # somebody cares for this peer: keep the path warm
        return token

    def report(self, peer: PeerId, now: float) -> PathReport:
        state = self._states.get(peer)
        relay = self._roster.relay(peer) if peer in self._roster else None
        if state is None:
            return PathReport(None, math.inf, False, relay)
        best, latency = (None, math.inf) if state.best is None else (state.best.path, state.best.latency)
        known = tuple((endpoint, candidate.latency) for endpoint, candidate in state.candidates.items())
        return PathReport(best, latency, state.is_trusted(now), relay, known)

    # ---- disco datagrams

    def receive(self, batch: Iterable[tuple[bytes, Path]], now: float) -> None:
        for datagram, path in batch:
            try:
                self._receive(datagram, path, now)
            except BadPacket:
                self.drops["bad disco"] += 1
        self._pursuit.carry_out(now)

    def _receive(self, datagram: bytes, path: Path, now: float) -> None:
        key = disco.sender_untrusted(datagram)
        peers = self._roster.by_disco.get(key)
        if peers is None and not (len(path) == 3 and self._pursuit.relays.knows(key)):
            self.drops["unknown disco key"] += 1
            return
        if self._pursuit.never_direct and len(path) == 2 and not is_relayed(path):
            self.drops["never direct"] += 1
            return
        if not self._budget.allows((key, self._lane(peers, path)), now):
            self.drops["disco flood"] += 1
            return
        message = self._boxes.open_untrusted(datagram)
        if peers is None:
            if isinstance(message, Bind):
                self._pursuit.relays.on_challenge(key, (path[0], path[1], path[2]), message, now)
        elif isinstance(message, Ping):
            self._on_ping(key, message, path, now)
        elif isinstance(message, Pong):
            self._on_pong(key, message, path, now)
        else:
            self._on_relayed_word(key, message, path, now)

    def _lane(self, peers: tuple[PeerId, ...] | None, path: Path) -> str:
        """Which budget a datagram is charged to: nobody can use up that of the relay, or of the path in use."""
        if is_relayed(path):
            return "relay"
        state = self._states.get(peers[0]) if peers else None
        return "best" if state is not None and state.best is not None and state.best.path == path else "any"

    def _on_ping(self, key: bytes, ping: Ping, path: Path, now: float) -> None:
        seen = self._seen_pings.get(ping.transaction)
        if seen is not None:
            self.drops["repeated ping" if seen == path else "replayed ping"] += 1
            return
        self._seen_pings[ping.transaction] = path
        if len(self._seen_pings) > MAX_SEEN_PINGS:
            self._seen_pings.popitem(last=False)
        over_relay = is_relayed(path)
        peer = self._roster.who(key, path[1] if over_relay else ping.node_key)
        if peer is None or (over_relay and self._roster[peer].node_key != path[1]):
            self.drops["ping of nobody"] += 1
            return
        source = (RELAY_HOST, path[0] & 0xFFFF) if over_relay else (path[0], path[1])
        self._outbox.send(key, path, Pong(ping.transaction, source))
        state = self._pursuit.state(peer, now)
        state.heard_at = now
        if over_relay:
            self._hear_relay(peer, path[0], now)
        elif len(path) == 2:
            self._ping_back(state, source, now)
        else:
            self._pursuit.relays.on_ping(peer, (path[0], path[1], path[2]))
        self._pursuit.settle(state, now)

    def _ping_back(self, state: PeerState, source: Direct, now: float) -> None:
        """The peer's router lets us through now: do not wait for the next round (upstream does, for five seconds)."""
        candidate = state.candidates.hear(source, now)
        if source not in state.candidates:
            self.drops["candidate"] += 1
        elif now - candidate.ponged_at < TRUST_TIME:
            return
        elif state.is_direct(now):
            if state.has_moved_to(source):
                self._pursuit.ask_best(state, now)
            if candidate.is_due(now, CANDIDATE_SPACING):
                self._pursuit.ping(state, source, now)
        elif now - candidate.pinged_back_at >= PING_BACK_SPACING and now >= candidate.blocked_until:
            candidate.pinged_back_at = now
            self._pursuit.ping(state, source, now)

    def _on_pong(self, key: bytes, pong: Pong, path: Path, now: float) -> None:
        ping = self._outbox.ledger.answered(pong.transaction, key)
        if ping is None:
            self.drops["pong to no ping"] += 1
            return
        latency = max(0.0, now - ping.sent_at)
        if ping.token:
            self._pursuit.messages.append(PongArrived(ping.peer, ping.token, ping.path, latency))
        state = self._states.get(ping.peer)
        if state is None or is_relayed(path) or is_relayed(ping.path):
            return
        if len(ping.path) == 3:
            self._credit_peer_relay(state, ping, latency, now)
            return
        # Credit goes to the address that was pinged: behind a hairpin or on a multi-homed host the pong may come
        # from another one.
        candidate = state.candidates.get((ping.path[0], ping.path[1]))
        if candidate is None or now < candidate.blocked_until:
            self.drops["pong of no candidate"] += 1
            return
        candidate.ponged_at, candidate.latency = now, latency
        candidate.has_answered, candidate.unanswered = True, 0
        self._pursuit.credit(state, PathQuality((ping.path[0], ping.path[1]), latency, ping.mtu), now)

    def _credit_peer_relay(self, state: PeerState, ping: Outstanding, latency: float, now: float) -> None:
        path = (ping.path[0], ping.path[1], ping.path[2])
        server = self._pursuit.relays.on_pong(path)
        is_best = state.best is not None and state.best.path == path
        if server is None and not is_best:
            self.drops["pong of no candidate"] += 1
            return
        # A relay forwards from the last address it bound us at: another way to the same one replaces the old.
        same_server = server is not None and state.relay_server == server
        if server is not None:
            state.relay_server = server
        self._pursuit.credit(state, PathQuality(path, latency, ping.mtu), now, same_server=same_server)

    def _on_relayed_word(self, key: bytes, message: disco.Message, path: Path, now: float) -> None:
        """What counts only over a relay, which vouches for the node key, and only from that node's own disco key."""
        peer = self._roster.by_node.get(path[1]) if is_relayed(path) else None
        if peer is None or self._roster[peer].disco_key != key:
            self.drops["call from the wrong place"] += 1
            return
        state = self._pursuit.state(peer, now)
        state.heard_at = now
        if state.call_tokens is None:
            state.call_tokens = Budget(CALLS_RATE, CALLS_BURST)
        if not state.call_tokens.take(now):
            self.drops["call flood"] += 1
            return
        self._hear_relay(peer, path[0], now)
        match message:
            case CallMeMaybe():
                self._on_call(state, message, now)
            case CallMeMaybeVia(endpoint):
                self._pursuit.relays.on_offer(peer, key, endpoint, now)
            case AllocateResponse():
                self._pursuit.relays.on_allocated(peer, message, now)
            case _:
                self.drops["unexpected disco message"] += 1
        self._pursuit.settle(state, now)

    def _on_call(self, state: PeerState, call: CallMeMaybe, now: float) -> None:
        pursuit = self._pursuit
        self.drops["call endpoint"] += state.candidates.set_called(call.endpoints, loopback=pursuit.loopback)
        pursuit.ping_out_of_turn(state, now)
        # Our own call tells the peer that our pings are out, so that its next ones find the way open.
        if not state.is_direct(now) and now - state.called_at >= CANDIDATE_SPACING:
            pursuit.call(state, now)

    # ---- the contract

    def transmit(self, now: float) -> list[tuple[Path, list[bytes]]]:
        return self._outbox.transmit()

    def handle_timer(self, now: float) -> None:
        self._pursuit.handle_timer(now)

    def next_timer(self) -> float:
        return self._pursuit.next_timer()

    def take_messages(self) -> list[FinderMessage]:
        if self._outbox.crowded_out:
            self._pursuit.lose(self._outbox.crowded_out)
            self._outbox.crowded_out.clear()
        messages, self._pursuit.messages = self._pursuit.messages, []
        return messages
