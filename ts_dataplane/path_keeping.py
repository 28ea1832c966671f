"""Keeping the path to every peer in use good: when to ping, whom to call, what the shared table says.

Owns the peers' states and timers, the table of paths, and our own addresses as told to peers. What arrives is read in
`disco_inbox.py`. A path in doubt is always mirrored to the relay, and a new best path must show that it carries
full-size datagrams before the relay's copy stops.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

from ts_base.box import TAG_LENGTH
from ts_base.ip import TUNNEL_MTU
from ts_base.timers import Timers
from ts_base.who import Direct, Path, PeerId, PeerRelayed, is_direct, is_peer_relayed
from ts_dataplane.candidates import MAX_CALLED, Candidate, Candidates, is_worth_trying
from ts_dataplane.disco import UNPADDED_PING, CallMeMaybe
from ts_dataplane.disco_outbox import DiscoOutbox
from ts_dataplane.path_messages import BestPathChanged, FinderMessage, NeedStun, PathsMoved, PingLost
from ts_dataplane.path_scoring import PathQuality
from ts_dataplane.peer_moves import follow, on_heard, on_second_look
from ts_dataplane.peer_paths import (
    CANDIDATE_SPACING,
    HEARTBEAT,
    PING_BACK_SPACING,
    SIZE_PROBE_SPACING,
    SIZE_PROBES,
    PeerPaths,
    PeerState,
    Standing,
)
from ts_dataplane.peer_relay import Knock, PeerRelays, Tell
from ts_dataplane.peer_roster import PeerRoster
from ts_dataplane.ping_ledger import Outstanding
from ts_dataplane.ways_keeping import WaysKeeper

# Theory of operation
#
# Every peer can be reached through a relay, slowly and always; a direct path is found by pinging the addresses the peer
# may have, and is lost without a word when some router forgets. So the relay is the floor, and a direct path must keep
# proving itself. What is known of a peer is one of five standings, derived in `PeerState.standing_at`, entered in
# `PeerState.settle`, which asserts the table `FOLLOWS`:
#
#       user data             pong                  full-size pong
#   IDLE -------> SEARCHING --------> MIRRORED ---------------------> TRUSTED
#    ^             |     ^               |  ^                          |   ^
#    | 45 s unused |     | lost     asked|  | pong,                    |   | pong
#    +-------------+     |   in vain     v  | or of another path       v   |
#                        +----------------- DOUBTED <------------------+---+
#
#   IDLE, SEARCHING   no path: the relay alone. Searching pings all candidates, every 0.25 s first and every 5 s later.
#   MIRRORED          found, but a path may swallow large datagrams: path and relay both get everything until a
#                     full-size ping came back. Six of them unanswered: a black hole, and the path is blocked.
#   TRUSTED           the path alone. A heartbeat asks it every 3 s while the peer is in use.
#   DOUBTED           a ping is unanswered for 1 s and two round trips, or no pong came for 6.5 s. Path and relay both
#                     get everything, so a wrong suspicion costs bytes, not time. Lost when a ping times out then.
#
# "Lost" leads from any of the last three back to SEARCHING: the host has no route, our network changed, or the tunnel
# is silent. That last one leaves a path that still answers pings, large ones too: some middleboxes pass disco and
# swallow WireGuard. Lost handshakes look the same, so it takes all three (`PathFinder.judge_silence`):
#
#   1. an initiation was repeated and nobody answered either,
#   2. 15 s passed: since the first of them, since the path came into use, and since
#   3. the tunnel last heard the peer other than through a relay. While the old session carries data, a rekey that
#      fails is no silence; if it fails for good the old session ends within a minute, and then this does.
#
# A path left so is blocked for 60 s, doubled each time up to 600 s: else its pongs would bring it back at once. Hearing
# the tunnel there halves what is left, and once it works there in use the next block is a short one again.
#
# With uplinks a path is an address through an uplink, and each is a candidate of its own. The best path of every other
# uplink is kept validated by a ping every 9 s, so that there is something to go to when this uplink dies.

ENDPOINTS_FRESH = 27.0  # older ones are refreshed before a peer is told to ping them
STUN_PATIENCE = 0.5  # ... unless the refresh takes longer than this
CALL_SPACING = 1.5
RELAY_PATIENCE = 1.0  # peer relays are asked once the quick tries for a direct path have failed
WIREGUARD_OVERHEAD = 16 + TAG_LENGTH
FULL_SIZE_PADDING = TUNNEL_MTU + WIREGUARD_OVERHEAD - UNPADDED_PING
MAX_UNPROVEN = 4  # addresses of a WireGuard-only peer tried at once


class PathKeeper:
    """Every peer's standing, and the table of paths that follows from it."""

    def __init__(
        self,
        outbox: DiscoOutbox,
        our_disco: bytes,
        drops: Counter[str],
        *,
        never_direct: bool,
        uplinks: tuple[str, ...] = (),
    ) -> None:
        self.paths: dict[PeerId, tuple[Path, ...]] = {}
        self.many = WaysKeeper(uplinks, self.paths)
        self.uplinks = self.many.names
        self.roster = PeerRoster()
        self.states: dict[PeerId, PeerState] = {}
        self.relays = PeerRelays(our_disco)
        self.messages: list[FinderMessage] = []
        self.never_direct = never_direct
        self.loopback = False
        self.endpoints_at = -math.inf
        self._outbox = outbox
        self._drops = drops
        self._endpoints: tuple[Direct, ...] = ()
        self._timers: Timers[PeerId] = Timers()
        # Peers to be called once our endpoints are fresh; True for those that were told an older list meanwhile.
        self._callers: dict[PeerId, bool] = {}
        self._patience_at = math.inf
        self.on_fruitless_search: Callable[[PeerState, float], None] = lambda state, now: None

    # ---- states

    def state(self, peer: PeerId, now: float) -> PeerState:
        """The state of a peer in use, made when it is first needed."""
        state = self.states.get(peer)
        if state is None:
            facts = self.roster[peer]
            ways = None if facts.wireguard_only else self.many.begin(peer, now)
            state = self.states[peer] = PeerState(peer, facts, now, self.uplinks, ways)
            state.candidates.set_listed(facts.endpoints, loopback=self.loopback)
        return state

    def drop_state(self, peer: PeerId) -> None:
        self._timers.clear(peer)
        self._callers.pop(peer, None)
        self.many.end(peer)
        self.relays.forget(peer)
        self.lose(self._outbox.ledger.forget(peer))
        state = self.states.pop(peer, None)
        if state is not None:
            self.drop_best(state)

    def drop_best(self, state: PeerState) -> None:
        if state.best is not None:
            state.drop_best()
            self.messages.append(BestPathChanged(state.peer, None, math.inf))

    def credit(self, state: PeerState, quality: PathQuality, now: float, *, same_server: bool = False) -> None:
        """A pong proved a path; see whether it becomes the best one."""
        if state.ways is not None:
            self._credit_way(state, quality, now)
            return
        if state.credit(quality, now, insist=same_server):
            self.messages.append(BestPathChanged(state.peer, quality.path, quality.latency))
        if not state.confirmed and state.best is not None and state.best.mtu >= TUNNEL_MTU:
            state.confirmed, state.size_probe_at = True, math.inf
        self.attend(state, now)

    def _credit_way(self, state: PeerState, quality: PathQuality, now: float) -> None:
        assert state.ways is not None
        if is_peer_relayed(quality.path):
            state.ways.peer_relay = quality.path
        self._tend(state, now)  # a path that is new gets its place first
        state.ways.on_pong(quality.path, quality.latency, quality.mtu, now)
        self.attend(state, now)

    def credit_relay(self, state: PeerState, path: Path, latency: float, now: float) -> None:
        """The peer answered a ping by relay."""
        if state.ways is not None:
            state.ways.on_pong(path, latency, TUNNEL_MTU, now)
            self.attend(state, now)

    def _tend(self, state: PeerState, now: float) -> None:
        """Where there are several uplinks: have the peer's ways looked after, and do what they ask."""
        asks, messages = self.many.tend(state, self.roster.relay(state.peer), now)
        self.messages += messages
        for path, is_full in asks:
            padding, mtu = (FULL_SIZE_PADDING, TUNNEL_MTU) if is_full else (0, 0)
            if not self.ping(state, path, now, padding=padding, mtu=mtu) and state.ways is not None:
                state.ways.on_asked(path, now, is_full=is_full)  # nobody can be asked there: that is no answer

    def adopt(self, state: PeerState, path: Direct | PeerRelayed, now: float) -> None:
        """Where a WireGuard-only peer was heard: it has no pongs, so silence alone ends this trust."""
        if state.best is None or state.best.path != path:
            self.messages.append(BestPathChanged(state.peer, path, 0.0))
        state.adopt(path, now)
        self.settle(state, now)

    def lose(self, pings: Iterable[Outstanding]) -> None:
        self.messages += [PingLost(ping.peer, ping.token, ping.path) for ping in pings if ping.token]

    # ---- what is due

    def next_timer(self) -> float:
        return min(self._timers.next(), self._outbox.ledger.next_timer(), self._patience_at, self.relays.next_timer())

    def handle_timer(self, now: float) -> None:
        expired = self._outbox.ledger.pop_expired(now)
        self.lose(expired)
        for ping in expired:
            state = self.states.get(ping.peer)
            if state is None or state.best is None or state.best.path != ping.path or state.is_trusted(now):
                continue  # trusted it is until its ways say otherwise, where there are several uplinks
            self.drop_best(state)
            if state.is_awake:
                state.search_soon(now)
            self.attend(state, now)
        if now >= self._patience_at:
            self._lose_patience(now)
        for peer in self._timers.pop_due(now):
            if peer in self.states:
                self.attend(self.states[peer], now)
        self.relays.handle_timer(now)
        self.carry_out(now)

    def look_at(self, peer: PeerId, at: float) -> None:
        """See to the peer at that moment, if not before."""
        if at < self._timers.get(peer):
            self._timers.set(peer, at)

    def attend(self, state: PeerState, now: float) -> None:
        """Do whatever is due for one peer."""
        if now >= state.retire_at() and self._retire(state, now):
            return
        if state.is_awake and state.is_idle(now):
            state.sleep()
        if now >= state.heartbeat_at:
            self._heartbeat(state, now)
        if now >= state.size_probe_at:
            self._probe_size(state, now)
        if now >= state.move_look_at and on_second_look(state, now):
            self._ask_where_it_was(state, now)
        if state.moved_to is not None and now >= state.moved_until:
            self._follow_move(state, now)
        if state.ways is not None:
            self._tend(state, now)
        elif now >= state.doubt_at() and not state.has_asked_twice:
            state.has_asked_twice = True
            self.ask_best(state, now)
            self.ping_out_of_turn(state, now)
        if state.is_direct(now):
            state.search_at = math.inf
        elif state.is_awake and state.search_at == math.inf:
            state.search_soon(now)
        if now >= state.search_at:
            self._search(state, now)
        self.settle(state, now)

    def hear_elsewhere(self, state: PeerState, path: Path, now: float) -> None:
        """The tunnel heard the peer on another path than before; with several uplinks its ways know by themselves."""
        if on_heard(state, path, now):
            self._ask_where_it_was(state, now)
        self.settle(state, now)

    def _ask_where_it_was(self, state: PeerState, now: float) -> None:
        self.ask_best(state, now)
        self.messages.append(PathsMoved(state.peer))

    def _follow_move(self, state: PeerState, now: float) -> None:
        quality = follow(state, now)
        if quality is not None:
            state.drop_best()
            self.credit(state, quality, now)
            return
        self.drop_best(state)
        if state.is_awake:
            state.search_soon(now)

    def _retire(self, state: PeerState, now: float) -> bool:
        if state.best is not None and self.roster.relay(state.peer) is None:
            state.heard_at = now  # its last known address is all there is
            return False
        self.drop_state(state.peer)
        self.republish(state.peer, now)
        return True

    def _heartbeat(self, state: PeerState, now: float) -> None:
        state.heartbeat_at = now + HEARTBEAT
        if state.best is None or state.facts.wireguard_only:
            return
        self.ask_best(state, now)
        if self.uplinks:
            for place in state.due_standbys(self.uplinks, now):
                self.ping(state, place, now)
        if state.is_direct(now) and state.wants_full_ping(now):
            state.full_ping_at = now
            if self._ping_candidates(state, now, CANDIDATE_SPACING):
                self.call(state, now)

    def ask_best(self, state: PeerState, now: float) -> None:
        """Ping the path in use; silence then casts doubt on it."""
        if state.best is not None and self.ping(state, state.best.path, now):
            state.asked_at = min(state.asked_at, now)

    def _search(self, state: PeerState, now: float) -> None:
        state.full_ping_at = now
        key = state.facts.disco_key
        if key is not None:
            if self._ping_candidates(state, now, state.spacing) or not state.candidates:
                self.call(state, now)
            if state.best is None and state.spacing >= RELAY_PATIENCE and self.roster.relay_servers:
                self.relays.discover(state.peer, key, self.roster.relay_servers, now)
                self.carry_out(now)
        if state.best is None:
            self.on_fruitless_search(state, now)
        state.search_later(now)

    def _probe_size(self, state: PeerState, now: float) -> None:
        """Small pings are not enough: a path may swallow full-size datagrams without a word."""
        best = state.best
        if best is None or state.facts.wireguard_only:
            state.size_probe_at = math.inf
        elif state.size_probes < SIZE_PROBES:
            state.size_probes += 1
            state.size_probe_at = now + SIZE_PROBE_SPACING + 2 * best.latency
            self.ping(state, best.path, now, padding=FULL_SIZE_PADDING, mtu=TUNNEL_MTU)
        else:
            state.size_probe_at = math.inf
            if self.roster.relay(state.peer) is not None:
                self._drops["paths.black_hole"] += 1
                self.block_best(state, now)

    def block_best(self, state: PeerState, now: float) -> None:
        """The best path fails the tunnel although pings pass: off it, and not back soon."""
        candidate = state.candidate_of_best()
        if candidate is not None:
            candidate.block(now)
        if state.ways is None:
            self.drop_best(state)

    # ---- out

    def ping(self, state: PeerState, path: Path, now: float, *, padding: int = 0, mtu: int = 0, token: int = 0) -> bool:
        key = state.facts.disco_key
        if key is None or (self.never_direct and is_direct(path)):
            return False
        if is_direct(path) and (candidate := state.candidates.get(path)) is not None:
            candidate.pinged_at = now
            candidate.unanswered += 1
        if state.ways is not None:
            state.ways.on_asked(path, now, is_full=mtu > 0)
        return self._outbox.ping(state.peer, key, path, now, padding=padding, mtu=mtu, token=token)

    def _ping_candidates(self, state: PeerState, now: float, spacing: float) -> bool:
        sent = False
        for endpoint, _ in state.due_candidates(now, spacing):
            sent |= self.ping(state, endpoint, now)
        return sent

    def answerable(self, state: PeerState, now: float) -> list[tuple[Direct, Candidate]]:
        """Candidates that may be pinged out of turn, at most once a second each."""
        if self.never_direct:
            return []
        return [item for item in state.due_candidates(now, 0.0) if now - item[1].pinged_back_at >= PING_BACK_SPACING]

    def ping_out_of_turn(self, state: PeerState, now: float, *, padding: int = 0, token: int = 0) -> bool:
        sent = False
        for endpoint, candidate in self.answerable(state, now):
            candidate.pinged_back_at = now
            sent |= self.ping(state, endpoint, now, padding=padding, token=token)
        return sent

    def carry_out(self, now: float) -> None:
        """What the dialogues with peer relays want said."""
        for order in self.relays.transmit():
            if isinstance(order, Knock):
                if is_worth_trying(order.address, loopback=self.loopback):
                    self._outbox.knock(order.server_disco, order.address, order.vni, order.message)
            elif isinstance(order, Tell):
                facts = self.roster.get(order.peer)
                relay = None if facts is None else self.roster.relay(order.peer)
                if facts is not None and facts.disco_key is not None and relay is not None:
                    self._outbox.send(facts.disco_key, relay, order.message)
            elif order.peer in self.states:
                self.ping(self.states[order.peer], order.path, now)

    # ---- our own addresses

    def call(self, state: PeerState, now: float) -> None:
        """Tell the peer over the relay where to ping us, once our addresses are fresh."""
        if self.never_direct or now - state.called_at < CALL_SPACING or self.roster.relay(state.peer) is None:
            return
        if now - self.endpoints_at <= ENDPOINTS_FRESH:
            self._tell_endpoints(state, now)
        elif state.peer not in self._callers:
            if not self._callers:
                self.messages.append(NeedStun("our addresses are stale"))
                self._patience_at = now + STUN_PATIENCE
            self._callers[state.peer] = False

    def _tell_endpoints(self, state: PeerState, now: float) -> None:
        relay, key = self.roster.relay(state.peer), state.facts.disco_key
        endpoints = [e for e in self._endpoints if is_worth_trying(e, loopback=self.loopback)][:MAX_CALLED]
        if relay is not None and key is not None and endpoints:
            state.called_at = now
            self._outbox.send(key, relay, CallMeMaybe(tuple(endpoints)))

    def _lose_patience(self, now: float) -> None:
        self._patience_at = math.inf
        for peer in self._callers:
            if peer in self.states and self._endpoints:
                self._callers[peer] = True
                self._tell_endpoints(self.states[peer], now)

    def set_endpoints(self, endpoints: Iterable[Direct], now: float) -> None:
        fresh = tuple(endpoints)
        changed = set(fresh) != set(self._endpoints)
        self._endpoints, self.endpoints_at = fresh, now
        loopback = any(host.startswith("127.") or host == "::1" for host, _ in fresh)
        relisted, self.loopback = loopback != self.loopback, loopback
        callers, self._callers, self._patience_at = self._callers, {}, math.inf
        for peer, was_told in callers.items():
            if peer in self.states and (changed or not was_told):
                self.states[peer].called_at = -math.inf
                self.call(self.states[peer], now)
        for state in list(self.states.values()) if changed else ():
            if relisted:
                state.candidates.set_listed(state.facts.endpoints, loopback=loopback)
            if state.is_awake and (not state.is_direct(now) or state.ways is not None):
                if state.peer not in callers:
                    state.called_at = -math.inf
                state.search_soon(now)
                self.attend(state, now)

    # ---- the table

    def hear_relay(self, peer: PeerId, region: int, now: float) -> None:
        """The peer was heard through the relay of this region."""
        if self.roster.hear(peer, region):
            self.republish(peer, now)

    def settle(self, state: PeerState, now: float) -> None:
        self._publish(state.peer, self._choose(state, state.settle(now), now))
        self._timers.set(state.peer, state.next_timer(now))

    def republish(self, peer: PeerId, now: float) -> None:
        """Something about the peer changed outside its state."""
        state = self.states.get(peer)
        if state is not None:
            self.settle(state, now)
        elif peer in self.roster:
            self._publish(peer, self._choose_idle(peer, self.roster[peer]))
        else:
            self.paths.pop(peer, None)

    def _choose(self, state: PeerState, standing: Standing, now: float) -> tuple[Path, ...]:
        if state.ways is not None and not state.facts.expired:
            return state.ways.selection.choice(now=now)
        if state.best is None:
            return self._choose_idle(state.peer, state.facts)
        relay = self.roster.relay(state.peer)
        if state.moved_to is not None:
            return tuple(dict.fromkeys((state.best.path, state.moved_to)))
        if relay is None or standing is Standing.TRUSTED:
            return (state.best.path,)
        return (state.best.path, relay)

    def _choose_idle(self, peer: PeerId, facts: PeerPaths) -> tuple[Path, ...]:
        if facts.expired:
            return ()
        if facts.wireguard_only:
            unproven = Candidates(self.uplinks)
            unproven.set_listed(facts.endpoints, loopback=self.loopback)
            return tuple(unproven)[:MAX_UNPROVEN]
        relay = self.roster.relay(peer)
        return () if relay is None else (relay,)

    def _publish(self, peer: PeerId, chosen: tuple[Path, ...]) -> None:
        if self.paths.get(peer, ()) != chosen:
            if chosen:
                self.paths[peer] = chosen
            else:
                self.paths.pop(peer, None)
