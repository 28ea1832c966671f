"""Disco messages as they come in: whose they are, whether they are fresh and fair, and what each one tells the pursuit.

Owns the budget of each sender and the transactions already seen. Which path follows is decided in `path_keeping.py`.
Rules are magicsock's, bettered where that is safe: a ping or a CallMeMaybe that finds us without a trusted path is
answered by pings at once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from ts_base.budget import Budget
from ts_base.errors import BadPacket
from ts_dataplane import disco
from ts_dataplane.disco import AllocateResponse, Bind, CallMeMaybe, CallMeMaybeVia, Direct, Ping, Pong
from ts_dataplane.disco_budget import DiscoBudget
from ts_dataplane.disco_outbox import DiscoOutbox
from ts_dataplane.path_keeping import Pursuit
from ts_dataplane.path_messages import PongArrived
from ts_dataplane.path_scoring import PathQuality
from ts_dataplane.peer_paths import CANDIDATE_SPACING, PING_BACK_SPACING, TRUST_TIME, Path, PeerState
from ts_dataplane.ping_ledger import Outstanding

PeerId = int

CALLS_RATE, CALLS_BURST = 1.0, 4.0  # CallMeMaybes of one peer that we act on
MAX_SEEN_PINGS = 1024
RELAY_HOST = "127.3.3.40"  # stands for "through a relay" where a pong needs an address; the port is the region


def is_relayed(path: Path) -> bool:
    return type(path[0]) is int


class DiscoInbox:
    def __init__(self, boxes: disco.Boxes, outbox: DiscoOutbox, pursuit: Pursuit, drops: Counter[str]) -> None:
        self._boxes = boxes
        self._outbox = outbox
        self._pursuit = pursuit
        self._drops = drops
        self._budget = DiscoBudget()
        self._seen_pings: OrderedDict[bytes, Path] = OrderedDict()

    def receive(self, batch: Iterable[tuple[bytes, Path]], now: float) -> None:
        for datagram, path in batch:
            try:
                self._receive(datagram, path, now)
            except BadPacket:
                self._drops["bad disco"] += 1

    def _receive(self, datagram: bytes, path: Path, now: float) -> None:
        key = disco.sender_untrusted(datagram)
        peers = self._pursuit.roster.by_disco.get(key)
        if peers is None and not (len(path) == 3 and self._pursuit.relays.knows(key)):
            self._drops["unknown disco key"] += 1
            return
        if self._pursuit.never_direct and len(path) == 2 and not is_relayed(path):
            self._drops["never direct"] += 1
            return
        if not self._budget.allows((key, self._lane(peers, path)), now):
            self._drops["disco flood"] += 1
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
        state = self._pursuit.states.get(peers[0]) if peers else None
        return "best" if state is not None and state.best is not None and state.best.path == path else "any"

    def _on_ping(self, key: bytes, ping: Ping, path: Path, now: float) -> None:
        seen = self._seen_pings.get(ping.transaction)
        if seen is not None:
            self._drops["repeated ping" if seen == path else "replayed ping"] += 1
            return
        self._seen_pings[ping.transaction] = path
        if len(self._seen_pings) > MAX_SEEN_PINGS:
            self._seen_pings.popitem(last=False)
        over_relay = is_relayed(path)
        peer = self._pursuit.roster.who(key, path[1] if over_relay else ping.node_key)
        if peer is None or (over_relay and self._pursuit.roster[peer].node_key != path[1]):
            self._drops["ping of nobody"] += 1
            return
        source = (RELAY_HOST, path[0] & 0xFFFF) if over_relay else (path[0], path[1])
        self._outbox.send(key, path, Pong(ping.transaction, source))
        state = self._pursuit.state(peer, now)
        state.heard_at = now
        if over_relay:
            self._pursuit.hear_relay(peer, path[0], now)
        elif len(path) == 2:
            self._ping_back(state, source, now)
        else:
            self._pursuit.relays.on_ping(peer, (path[0], path[1], path[2]))
        self._pursuit.settle(state, now)

    def _ping_back(self, state: PeerState, source: Direct, now: float) -> None:
        """The peer's router lets us through now: do not wait for the next round (upstream does, for five seconds)."""
        candidate = state.candidates.hear(source, now)
        if source not in state.candidates:
            self._drops["candidate"] += 1
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
            self._drops["pong to no ping"] += 1
            return
        latency = max(0.0, now - ping.sent_at)
        if ping.token:
            self._pursuit.messages.append(PongArrived(ping.peer, ping.token, ping.path, latency))
        state = self._pursuit.states.get(ping.peer)
        if state is None or is_relayed(path) or is_relayed(ping.path):
            return
        if len(ping.path) == 3:
            self._credit_peer_relay(state, ping, latency, now)
            return
        # Credit goes to the address that was pinged: behind a hairpin or on a multi-homed host the pong may come
        # from another one.
        candidate = state.candidates.get((ping.path[0], ping.path[1]))
        if candidate is None or now < candidate.blocked_until:
            self._drops["pong of no candidate"] += 1
            return
        candidate.ponged_at, candidate.latency = now, latency
        candidate.has_answered, candidate.unanswered = True, 0
        self._pursuit.credit(state, PathQuality((ping.path[0], ping.path[1]), latency, ping.mtu), now)

    def _credit_peer_relay(self, state: PeerState, ping: Outstanding, latency: float, now: float) -> None:
        path = (ping.path[0], ping.path[1], ping.path[2])
        server = self._pursuit.relays.on_pong(path)
        is_best = state.best is not None and state.best.path == path
        if server is None and not is_best:
            self._drops["pong of no candidate"] += 1
            return
        # A relay forwards from the last address it bound us at: another way to the same one replaces the old.
        same_server = server is not None and state.relay_server == server
        if server is not None:
            state.relay_server = server
        self._pursuit.credit(state, PathQuality(path, latency, ping.mtu), now, same_server=same_server)

    def _on_relayed_word(self, key: bytes, message: disco.Message, path: Path, now: float) -> None:
        """What counts only over a relay, which vouches for the node key, and only from that node's own disco key."""
        peer = self._pursuit.roster.by_node.get(path[1]) if is_relayed(path) else None
        if peer is None or self._pursuit.roster[peer].disco_key != key:
            self._drops["call from the wrong place"] += 1
            return
        state = self._pursuit.state(peer, now)
        state.heard_at = now
        if state.call_tokens is None:
            state.call_tokens = Budget(CALLS_RATE, CALLS_BURST)
        if not state.call_tokens.take(now):
            self._drops["call flood"] += 1
            return
        self._pursuit.hear_relay(peer, path[0], now)
        match message:
            case CallMeMaybe():
                self._on_call(state, message, now)
            case CallMeMaybeVia(endpoint):
                self._pursuit.relays.on_offer(peer, key, endpoint, now)
            case AllocateResponse():
                self._pursuit.relays.on_allocated(peer, message, now)
            case _:
                self._drops["unexpected disco message"] += 1
        self._pursuit.settle(state, now)

    def _on_call(self, state: PeerState, call: CallMeMaybe, now: float) -> None:
        pursuit = self._pursuit
        self._drops["call endpoint"] += state.candidates.set_called(call.endpoints, loopback=pursuit.loopback)
        pursuit.ping_out_of_turn(state, now)
        # Our own call tells the peer that our pings are out, so that its next ones find the way open.
        if not state.is_direct(now) and now - state.called_at >= CANDIDATE_SPACING:
            pursuit.call(state, now)
