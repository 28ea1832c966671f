"""Disco messages as they come in: whose they are, whether they are fresh and fair, and what each one tells the keeper.

Owns the budget of each sender and the transactions already seen. Which path follows is decided in `path_keeping.py`.
Rules are magicsock's, bettered where that is safe: a ping or a CallMeMaybe that finds us without a trusted path is
answered by pings at once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from ts_base.budget import Budget
from ts_base.errors import BadPacket
from ts_base.ip import TUNNEL_MTU
from ts_base.who import Direct, Path, PeerId, PeerRelayed, host_of, is_direct, is_peer_relayed, is_relayed
from ts_dataplane import disco
from ts_dataplane.disco import AllocateResponse, Bind, CallMeMaybe, CallMeMaybeVia, Ping, Pong
from ts_dataplane.disco_budget import DiscoBudget
from ts_dataplane.disco_outbox import DiscoOutbox
from ts_dataplane.hard_nats import HardNats
from ts_dataplane.path_keeping import PathKeeper
from ts_dataplane.path_messages import PingAnswered
from ts_dataplane.path_mtus import PathMtus
from ts_dataplane.path_scoring import PathQuality
from ts_dataplane.peer_paths import CANDIDATE_SPACING, PING_BACK_SPACING, TRUST_TIME, PeerState
from ts_dataplane.ping_ledger import Outstanding

CALLS_RATE, CALLS_BURST = 1.0, 4.0  # CallMeMaybes of one peer that we act on
MAX_SEEN_PINGS = 1024
RELAY_HOST = "127.3.3.40"  # stands for "through a relay" where a pong needs an address; the port is the region


class InboxStatistics(NamedTuple):
    seen_pings: int  # remembered, to refuse repeated ones
    budgets: int  # of senders heard lately, up to three each


class DiscoInbox:
    def __init__(
        self,
        boxes: disco.Boxes,
        outbox: DiscoOutbox,
        keeper: PathKeeper,
        hard: HardNats,
        mtus: PathMtus,
        drops: Counter[str],
    ) -> None:
        self._boxes = boxes
        self._hard = hard
        self._mtus = mtus
        self._outbox = outbox
        self._keeper = keeper
        self._drops = drops
        self._budget = DiscoBudget()
        self._seen_pings: OrderedDict[bytes, Path] = OrderedDict()

    def statistics(self) -> InboxStatistics:
        return InboxStatistics(len(self._seen_pings), len(self._budget))

    def receive(self, batch: Iterable[tuple[bytes, Path]], now: float) -> None:
        for datagram, path in batch:
            try:
                self._receive(datagram, path, now)
            except BadPacket:
                self._drops["disco.bad_datagram"] += 1

    def _receive(self, datagram: bytes, path: Path, now: float) -> None:
        key = disco.sender_untrusted(datagram)
        peers = self._keeper.roster.by_disco.get(key)
        if peers is None and not (is_peer_relayed(path) and self._keeper.relays.knows(key)):
            self._drops["disco.unknown_key"] += 1
            return
        if self._keeper.never_direct and is_direct(path):
            self._drops["disco.never_direct"] += 1
            return
        if not self._budget.allows((key, self._lane(peers, path)), now):
            self._drops["disco.flood"] += 1
            return
        message = self._boxes.open_untrusted(datagram)
        if peers is None:
            if isinstance(message, Bind) and is_peer_relayed(path):
                self._keeper.relays.on_challenge(key, path, message, now)
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
        state = self._keeper.states.get(peers[0]) if peers else None
        return "best" if state is not None and state.best is not None and state.best.path == path else "any"

    def _on_ping(self, key: bytes, ping: Ping, path: Path, now: float) -> None:
        seen = self._seen_pings.get(ping.transaction)
        if seen is not None:
            self._drops["disco.repeated_ping" if seen == path else "disco.replayed_ping"] += 1
            return
        self._seen_pings[ping.transaction] = path
        if len(self._seen_pings) > MAX_SEEN_PINGS:
            self._seen_pings.popitem(last=False)
        named = path[1] if is_relayed(path) else ping.node_key
        peer = self._keeper.roster.who(key, named)
        if peer is None or (is_relayed(path) and self._keeper.roster[peer].node_key != path[1]):
            self._drops["disco.ping_of_nobody"] += 1
            return
        self._outbox.send(key, path, Pong(ping.transaction, _seen_from(path)))
        state = self._keeper.state(peer, now)
        state.heard_at = now
        if is_relayed(path):
            self._keeper.hear_relay(peer, path[0], now)
        elif is_direct(path):
            self._ping_back(state, path, now)
        else:
            self._keeper.relays.on_ping(peer, path)
        self._keeper.settle(state, now)

    def _ping_back(self, state: PeerState, source: Direct, now: float) -> None:
        """The peer's router lets us through now: do not wait for the next round (upstream does, for five seconds)."""
        candidate = state.candidates.hear(source, now)
        if source not in state.candidates:
            self._drops["paths.candidates_full"] += 1
        elif now - candidate.ponged_at < TRUST_TIME:
            return
        elif state.is_direct(now):
            if state.has_moved_to(source):
                self._keeper.ask_best(state, now)
            if candidate.is_due(now, CANDIDATE_SPACING):
                self._keeper.ping(state, source, now)
        elif now - candidate.pinged_back_at >= PING_BACK_SPACING and now >= candidate.blocked_until:
            candidate.pinged_back_at = now
            self._keeper.ping(state, source, now)

    def _on_pong(self, key: bytes, pong: Pong, path: Path, now: float) -> None:
        ping = self._outbox.ledger.answered(pong.transaction, key)
        if ping is None:
            self._drops["disco.pong_to_no_ping"] += 1
            return
        latency = max(0.0, now - ping.sent_at)
        if ping.token:
            self._keeper.messages.append(PingAnswered(ping.peer, ping.token, ping.path, latency))
        state = self._keeper.states.get(ping.peer)
        if state is not None and is_relayed(path) and ping.path == path:
            self._keeper.credit_relay(state, path, latency, now)
        if state is None or is_relayed(path) or is_relayed(ping.path):
            return
        if is_peer_relayed(ping.path):
            self._credit_peer_relay(state, ping, ping.path, latency, now)
            return
        if ping.mtu > TUNNEL_MTU:
            self._mtus.on_pong(ping, now)
        # Credit goes to the address that was pinged: behind a hairpin or on a multi-homed host the pong may come
        # from another one.
        candidate = state.candidates.get(ping.path)
        if candidate is None and self._hard.was_probe(ping):
            candidate = state.candidates.hear(ping.path, now)
        if candidate is None or now < candidate.blocked_until:
            self._drops["paths.pong_of_no_candidate"] += 1
            return
        candidate.ponged_at, candidate.latency = now, latency
        candidate.has_answered, candidate.unanswered = True, 0
        self._keeper.credit(state, PathQuality(ping.path, latency, ping.mtu), now)

    def _credit_peer_relay(
        self, state: PeerState, ping: Outstanding, path: PeerRelayed, latency: float, now: float
    ) -> None:
        server = self._keeper.relays.on_pong(path)
        is_best = state.best is not None and state.best.path == path
        if server is None and not is_best:
            self._drops["paths.pong_of_no_candidate"] += 1
            return
        # A relay forwards from the last address it bound us at: another way to the same one replaces the old.
        same_server = server is not None and state.relay_server == server
        if server is not None:
            state.relay_server = server
        self._keeper.credit(state, PathQuality(path, latency, ping.mtu), now, same_server=same_server)

    def _on_relayed_word(self, key: bytes, message: disco.Message, path: Path, now: float) -> None:
        """What counts only over a relay, which vouches for the node key, and only from that node's own disco key."""
        peer = self._keeper.roster.by_node.get(path[1]) if is_relayed(path) else None
        if not is_relayed(path) or peer is None or self._keeper.roster[peer].disco_key != key:
            self._drops["disco.call_from_wrong_place"] += 1
            return
        state = self._keeper.state(peer, now)
        state.heard_at = now
        if isinstance(message, CallMeMaybe) and self._hard.is_list(message):
            self._hard.on_list(state, message, now)
            return
        if state.call_tokens is None:
            state.call_tokens = Budget(CALLS_RATE, CALLS_BURST)
        if not state.call_tokens.take(now):
            self._drops["disco.call_flood"] += 1
            return
        self._keeper.hear_relay(peer, path[0], now)
        match message:
            case CallMeMaybe():
                self._on_call(state, message, now)
            case CallMeMaybeVia(endpoint):
                self._keeper.relays.on_offer(peer, key, endpoint, now)
            case AllocateResponse():
                self._keeper.relays.on_allocated(peer, message, now)
            case _:
                self._drops["disco.unexpected_message"] += 1
        self._keeper.settle(state, now)

    def _on_call(self, state: PeerState, call: CallMeMaybe, now: float) -> None:
        keeper = self._keeper
        refused = state.candidates.set_called(call.endpoints, loopback=keeper.loopback)
        if refused:
            self._drops["paths.called_endpoint_refused"] += refused
        keeper.ping_out_of_turn(state, now)
        # Our own call tells the peer that our pings are out, so that its next ones find the way open.
        if not state.is_direct(now) and now - state.called_at >= CANDIDATE_SPACING:
            keeper.call(state, now)


def _seen_from(path: Path) -> Direct:
    """Where the peer's ping came from, as a pong can say it: without our own uplink, which is none of its business."""
    return (RELAY_HOST, path[0] & 0xFFFF) if is_relayed(path) else (host_of(path), path[1])
