"""PathFinder: which way datagrams to each peer go, now.

The face of the rooms around it: takes facts, activity and disco datagrams, and answers what is asked. What peers say is
heard in `disco_inbox.py`; what follows for a peer in use is decided in `path_keeping.py`. Refuses to know sockets,
sessions and netmaps.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ts_base.keys import DiscoPrivate, NodePublic
from ts_base.who import Direct, Path, PathRun, PeerId, endpoint_of, is_direct, is_relayed
from ts_dataplane import disco
from ts_dataplane.disco_inbox import DiscoInbox, InboxStatistics
from ts_dataplane.disco_outbox import DiscoOutbox
from ts_dataplane.hard_nats import HardNatLimits, HardNats, HardNatStatistics
from ts_dataplane.path_facts import PathFacts, plain_facts
from ts_dataplane.path_keeping import PathKeeper
from ts_dataplane.path_messages import FinderMessage, NeedStun, PathReport, PingLost
from ts_dataplane.path_mtus import PathMtus, PathMtuStatistics
from ts_dataplane.peer_paths import PeerPaths, Standing
from ts_dataplane.strategies import Strategy
from ts_tunnel.messages import PeerSilence

SILENCE = 15.0  # as long as WireGuard itself waits for any answer; a handshake is repeated twice within it


class FinderStatistics(NamedTuple):
    """`standings`: how many peers in use are reached how well."""

    peers: int
    standings: dict[Standing, int]
    open_pings: int
    inbox: InboxStatistics
    hard_nats: HardNatStatistics
    mtus: PathMtuStatistics
    drops: dict[str, int]


class PathFinder:
    """One per device. `paths` and `mtus` are shared with the engine and changed in place."""

    def __init__(
        self,
        disco_key: DiscoPrivate,
        node: NodePublic,
        *,
        entropy: Callable[[int], bytes],
        never_direct: bool = False,
        uplinks: tuple[str, ...] = (),
        hard_nats: HardNatLimits = HardNatLimits(),  # noqa: B008 - of numbers
    ) -> None:
        self.drops: Counter[str] = Counter()
        boxes = disco.Boxes(disco_key, entropy)
        self._outbox = DiscoOutbox(boxes, node.raw, entropy, self.drops)
        self._keeper = PathKeeper(
            self._outbox, disco_key.public.raw, self.drops, never_direct=never_direct, uplinks=uplinks
        )
        self.paths = self._keeper.paths
        self.many = self._keeper.many
        self._roster = self._keeper.roster
        self._states = self._keeper.states
        self._hard = HardNats(self._keeper, self._outbox, self.drops, hard_nats, entropy)
        self.mtus = PathMtus(self._keeper)
        self._keeper.on_fruitless_search = self._hard.consider
        self._inbox = DiscoInbox(boxes, self._outbox, self._keeper, self._hard, self.mtus, self.drops)
        self._tokens = itertools.count(1)
        self._heard_by_relay: set[PeerId] = set()  # where the tunnel last heard them
        self._advertised: dict[PeerId, tuple[bytes | None, bytes]] = {}  # control's disco key then, and the peer's word

    # ---- facts

    def set_peers(self, peers: Mapping[PeerId, PeerPaths], now: float) -> None:
        """All peers there are. Unchanged entries should be the same objects: that makes 10,000 of them cheap."""
        self.change_peers(peers, self._roster.keys() - peers.keys(), now)

    def keep_peers(self, peers: Container[PeerId], now: float) -> None:
        """Let go of all but these."""
        self.change_peers({}, [peer for peer in self._roster.keys() if peer not in peers], now)  # noqa: SIM118

    def change_peers(self, changed: Mapping[PeerId, PeerPaths], removed: Iterable[PeerId], now: float) -> None:
        """As `set_peers`, told only what is new or different and what is gone: costs no more than that."""
        roster = self._roster
        for peer in removed:
            if peer not in roster:
                continue
            self._keeper.drop_state(peer)
            roster.remove(peer)
            self._advertised.pop(peer, None)
            self._heard_by_relay.discard(peer)
            self._hard.forget(peer)
            self._keeper.republish(peer, now)
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
            self._keeper.drop_state(peer)
        self._roster.put(peer, facts)
        state = self._states.get(peer)
        if state is None or before is None:
            self._keeper.republish(peer, now)
            return
        state.facts = facts
        has_new_disco = before.disco_key != facts.disco_key
        if has_new_disco:
            self._keeper.lose(self._outbox.ledger.forget(peer))
            self._keeper.relays.forget(peer)
            state.trusted_until = -math.inf  # data still flows there, and by relay, until the new key has answered
        if before.endpoints != facts.endpoints:
            state.candidates.set_listed(facts.endpoints, loopback=self._keeper.loopback)
        elif not has_new_disco:
            self._keeper.settle(state, now)
            return
        if state.is_awake and not state.is_direct(now):
            state.search_soon(now)
        self._keeper.settle(state, now)

    def set_endpoints(self, endpoints: Iterable[Direct], now: float) -> None:
        """Where we can be reached, as of now: call it after every check, changed or not."""
        self._keeper.set_endpoints(endpoints, now)

    def on_network_changed(self, now: float) -> None:
        """Our sockets or addresses are others than before: nothing learnt through them is true any more."""
        keeper = self._keeper
        self._hard.on_network_changed(now)
        self.mtus.on_network_changed()
        keeper.lose(self._outbox.ledger.forget())
        keeper.endpoints_at = -math.inf
        keeper.messages.append(NeedStun("network changed"))
        for state in list(self._states.values()):
            if state.ways is None:
                keeper.drop_best(state)
            else:
                state.ways.on_network_changed(now)
            for candidate in state.candidates.values():
                candidate.refresh()
            state.called_at = -math.inf
            if state.is_awake:
                state.search_soon(now)
            keeper.attend(state, now)

    def set_hard_router(self, public: str) -> None:
        """Our router gives every destination another port of this address; empty: it does not, or nobody knows."""
        self._hard.set_router(public)

    def on_sockets(self, sockets: Sequence[str], now: float) -> None:
        """What `SocketsWanted` asked for, as far as the system gives it; their names are zones of paths."""
        self._hard.on_sockets(sockets, now)

    # ---- several uplinks

    def set_uplinks(self, names: Iterable[str], now: float) -> None:
        """Paths go through these interfaces from now on; through none in particular where there are none."""
        had_some = bool(self.many.names)
        if not self.many.set_uplinks(names):
            return
        if not had_some or not self.many.names:
            for peer in list(self._states):
                self._keeper.drop_state(peer)
                self._keeper.republish(peer, now)
            return
        for state in list(self._states.values()):
            state.candidates.keep_uplinks()
            state.candidates.set_listed(state.facts.endpoints, loopback=self._keeper.loopback)
            state.called_at = -math.inf
            if state.is_awake:
                state.search_soon(now)
        self.on_uplinks_changed(now)

    def on_uplinks_changed(self, now: float) -> None:
        """One went or came, or is wanted otherwise than before."""
        for state in list(self._states.values()):
            if state.ways is not None:
                state.ways.on_uplinks_changed(now)
                self._keeper.attend(state, now)

    def on_uplink_readdressed(self, name: str, now: float) -> None:
        """An uplink has other addresses: what was learnt through it has to be proven again."""
        self._keeper.endpoints_at = -math.inf
        for state in list(self._states.values()):
            if state.ways is not None:
                state.ways.on_network_changed(now, name)
                state.called_at = -math.inf
                self._keeper.attend(state, now)

    def set_strategies(self, default: Strategy, by_peer: Mapping[PeerId, Strategy], now: float) -> None:
        """How datagrams are laid on paths, where there are several uplinks."""
        self.many.set_strategies(default, by_peer)
        for state in list(self._states.values()):
            if state.ways is not None:
                self._keeper.attend(state, now)

    # ---- activity

    def on_data_sent(self, peers: Iterable[PeerId], now: float, asking: Container[PeerId] = ()) -> bool:
        """User data went to these peers since the last flush; True when that is news and something follows from it.

        `asking`: to whom of them something went that their system answers; needed where there are several uplinks.
        """
        states, woken = self._states, False
        for peer in peers:
            state = states.get(peer)
            if state is not None and state.is_awake:
                state.sent_at = now
                if state.ways is not None:
                    self._keeper.look_at(peer, state.ways.on_sent(now, asks=peer in asking))
            elif peer in self._roster:
                state = self._keeper.state(peer, now)
                state.wake(now)
                self._keeper.attend(state, now)
                woken = True
        return self.mtus.begin(now) or woken if self.mtus.wanted else woken

    def on_resent(self, peer: PeerId, count: int) -> None:
        """TCP sent bytes to a peer once more: so many were lost on the path in use, as far as it knows."""
        state = self._states.get(peer)
        if state is not None and state.ways is not None:
            state.ways.on_resent(count)

    def is_active(self, now: float) -> bool:
        """Is anybody being talked to, so that our addresses must stay fresh?"""
        return any(state.is_awake for state in self._states.values())

    def on_data_heard(self, heard: Iterable[tuple[PeerId, Path]], now: float) -> None:
        """The tunnel authenticated datagrams of these peers on a path it had not last heard them on."""
        for peer, path in heard:
            facts = self._roster.get(peer)
            if facts is None:
                continue
            state = self._states.get(peer)
            if state is not None and state.ways is not None:
                state.ways.look(now)
                self._keeper.attend(state, now)
            elif state is not None and not facts.wireguard_only:
                self._keeper.hear_elsewhere(state, path, now)
            if is_relayed(path):
                self._heard_by_relay.add(peer)
                self._keeper.hear_relay(peer, path[0], now)
                continue
            self._heard_by_relay.discard(peer)
            if facts.wireguard_only:
                self._keeper.adopt(self._keeper.state(peer, now), path, now)
            elif state is not None and is_direct(path) and (candidate := state.candidates.get(path)) is not None:
                candidate.relent(now)

    def trusted_peers(self, now: float) -> list[PeerId]:
        """Who is being talked to without the relay's help."""
        return [peer for peer, state in self._states.items() if state.is_awake and state.is_trusted(now)]

    def judge_silence(self, peer: PeerId, silence: PeerSilence, now: float) -> None:
        """What the tunnel says of a trusted peer, told every few seconds. See the theory in `path_keeping.py`."""
        state = self._states.get(peer)
        if state is None or state.best is None:
            return
        heard = silence.packets_in != state.packets_in
        state.packets_in = silence.packets_in
        if heard and peer not in self._heard_by_relay:
            state.vouched_at = now
            candidate = state.candidate_of_best()
            if candidate is not None and silence.asking_since == math.inf:
                candidate.pardon()
        began = max(silence.asking_since, state.best_since, state.vouched_at)
        if silence.initiations >= 2 and now - began >= SILENCE:
            self.on_silence(peer, now)

    def on_silence(self, peer: PeerId, now: float) -> None:
        """On the trusted path the tunnel gets no answer, not even to a handshake: disco passes where it does not."""
        state = self._states.get(peer)
        if state is None or state.best is None:
            return
        if state.facts.wireguard_only:
            self._keeper.drop_best(state)
        elif self._roster.relay(peer) is not None:
            self.drops["paths.silent_path"] += 1
            self._keeper.block_best(state, now)
        self._keeper.attend(state, now)

    def on_send_failed(self, path: Path, now: float) -> tuple[Path, ...]:
        """The host has no route there: stop using it until something answers again.

        Where there are several uplinks: by which paths the same datagrams go instead, nothing where there is none.
        """
        if is_relayed(path):
            return ()
        instead: tuple[Path, ...] = ()
        for state in list(self._states.values()):
            if state.ways is not None:
                if path in state.ways.ways:
                    was_used = path in self.paths.get(state.peer, ())
                    state.ways.on_error(path, now)
                    self._keeper.attend(state, now)
                    instead = self.paths.get(state.peer, ()) if was_used else instead
            elif state.best is not None and endpoint_of(state.best.path) == endpoint_of(path):
                self.drops["paths.no_host_route"] += 1
                self._keeper.drop_best(state)
                self._keeper.attend(state, now)
        return tuple(one for one in instead if one != path)

    def on_relay_gone(self, region: int, node_key: bytes, now: float) -> None:
        """A relay does not know this peer (any more)."""
        peer = self._roster.by_node.get(node_key)
        if peer is not None:
            self._roster.lose(peer, region)
            self._keeper.republish(peer, now)

    # ---- what people ask

    def ping(self, peer: PeerId, now: float, size: int = 0) -> int:
        """Ask `peer` for a pong on the best path, or on all there are; answers carry the token returned."""
        token = next(self._tokens)
        facts, keeper = self._roster.get(peer), self._keeper
        if facts is None or facts.disco_key is None or facts.expired:
            keeper.messages.append(PingLost(peer, token, None))
            return token
        state = keeper.state(peer, now)
        padding = max(0, size - disco.UNPADDED_PING)
        if state.best is not None and state.is_trusted(now):
            sent = keeper.ping(state, state.best.path, now, padding=padding, token=token)
        else:
            relay = self._roster.relay(peer)
            sent = relay is not None and keeper.ping(state, relay, now, padding=padding, token=token)
            sent |= keeper.ping_out_of_turn(state, now, padding=padding, token=token)
        if not sent:
            keeper.messages.append(PingLost(peer, token, None))
        self.on_data_sent((peer,), now)  # somebody cares for this peer: keep the path warm
        return token

    def report(self, peer: PeerId, now: float) -> PathReport:
        state = self._states.get(peer)
        relay = self._roster.relay(peer) if peer in self._roster else None
        hard_nat = self._hard.outlook(peer, now)
        if state is None:
            return PathReport(None, math.inf, False, relay, hard_nat=hard_nat)
        best, latency = (None, math.inf) if state.best is None else (state.best.path, state.best.latency)
        known = tuple((endpoint, candidate.latency) for endpoint, candidate in state.candidates.items())
        blocked = tuple(endpoint for endpoint, candidate in state.candidates.items() if now < candidate.blocked_until)
        return PathReport(best, latency, state.is_trusted(now), relay, known, blocked, hard_nat)

    def path_facts(self, peer: PeerId, now: float) -> list[PathFacts]:
        """Every path to a peer, and how it does."""
        state = self._states.get(peer)
        if state is not None and state.ways is not None:
            state.ways.look(now)
            return state.ways.facts(now)
        return plain_facts(self.report(peer, now), now)

    def standbys(self, peer: PeerId, now: float) -> tuple[Direct, ...]:
        """The best validated path of each uplink, in the order of the uplinks; none without uplinks."""
        state = self._states.get(peer)
        found = [] if state is None else [state.standby(uplink, now) for uplink in self._keeper.uplinks]
        return tuple(place for place in found if place is not None)

    def statistics(self) -> FinderStatistics:
        standings = Counter(state.standing for state in self._states.values())
        drops = self.drops + self._keeper.relays.drops
        pings, inbox, hard = len(self._outbox.ledger), self._inbox.statistics(), self._hard.statistics()
        return FinderStatistics(
            len(self._roster), dict(standings), pings, inbox, hard, self.mtus.statistics(), dict(drops)
        )

    # ---- the contract

    def receive(self, batch: Iterable[tuple[bytes, Path]], now: float) -> None:
        """Disco datagrams, and the paths they came by."""
        self._inbox.receive(batch, now)
        self._keeper.carry_out(now)

    def transmit(self, now: float) -> list[PathRun]:
        return self._outbox.transmit()

    def handle_timer(self, now: float) -> None:
        self._keeper.handle_timer(now)
        self._hard.handle_timer(now)
        self.mtus.handle_timer(now)

    def next_timer(self) -> float:
        return min(self._keeper.next_timer(), self._hard.next_timer(), self.mtus.next_timer())

    def take_messages(self) -> list[FinderMessage]:
        if self._outbox.crowded_out:
            self._keeper.lose(self._outbox.crowded_out)
            self._outbox.crowded_out.clear()
        messages, self._keeper.messages = self._keeper.messages, []
        return messages
