"""WireGuard for one node: ciphertext runs by path in, plaintext runs by peer out, and back (WireGuard paper).

Owns the verbs, every peer's timer, and the way of a run through its session. How sessions come about is
`handshakes.py`'s, sealing `session.py`'s, what is due when `peer.py`'s, who is a peer `roster.py`'s. Refuses to know
IP, routes and which path is best: roaming means that a run tells the path it came by. What is dropped is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import groupby

from ts_base.keys import NodePrivate
from ts_base.timers import Timers
from ts_base.who import Path, PathRun, PeerId, PeerRun
from ts_tunnel import drops as because
from ts_tunnel.handshakes import Handshakes
from ts_tunnel.messages import (
    EXPIRED,
    KEY_CHANGED,
    EndpointStatistics,
    Message,
    PeerSilence,
    PeerStatistics,
    SessionLost,
)
from ts_tunnel.outbox import Outbox
from ts_tunnel.peer import Peer
from ts_tunnel.roster import Roster
from ts_tunnel.session import Session
from ts_tunnel.wire import TRANSPORT_OVERHEAD, prefix_of

PATH_PATIENCE = 0.25  # a handshake younger than this may still be answered on the path it took


class Endpoint:
    """The tunnel's five verbs. Peers are known by `PeerId`."""

    def __init__(
        self, private: NodePrivate, *, entropy: Callable[[int], bytes], wall_clock: Callable[[], float]
    ) -> None:
        self.drops: Counter[str] = Counter()
        self._roster = Roster()
        self._peers = self._roster.active
        self._outbox = Outbox(self.drops)  # emptied by `transmit`, which the shell calls in the same turn
        self._handshakes = Handshakes(
            private, self._roster, self._outbox, self.drops, entropy=entropy, wall_clock=wall_clock
        )
        self._indices = self._handshakes.indices
        self._timers: Timers[PeerId] = Timers()

    # The peer set and our own key.

    def set_peers(self, peers: Mapping[PeerId, bytes], now: float) -> None:
        """Replace the peer set. A peer whose key changed starts anew; our own key among them is passed over."""
        self.change_peers(peers, self._roster.missing_from(peers), now)

    def keep_peers(self, peers: Container[PeerId]) -> None:
        """Let go of all but these."""
        for peer in self._roster.change({}, self._roster.missing_from(peers), own=b""):
            self._let_go(peer)

    def change_peers(self, changed: Mapping[PeerId, bytes], removed: Iterable[PeerId], now: float) -> None:
        """As `set_peers`, told only what is new or different and what is gone: costs no more than that."""
        for peer in self._roster.change(changed, removed, own=self._handshakes.private.public.raw):
            self._let_go(peer)

    def set_private(self, private: NodePrivate, now: float) -> None:
        """Become another node key: peers must handshake anew, and packets that waited for one need not wait longer."""
        self._handshakes.use_private(private, now)
        for peer in self._roster.drop_key(private.public.raw):
            self._let_go(peer)
        for peer in self._peers.values():
            was_pending = peer.pending is not None and peer.retry_at < math.inf
            self._indices.clear_pending(peer)
            peer.retry_at = math.inf
            for session in (peer.current, peer.next):
                if session is not None:
                    session.stop_sealing()
            if peer.expire_at < math.inf:
                peer.expire_at = math.inf
                self._outbox.tell(SessionLost(peer.id, KEY_CHANGED))
            peer.allow_initiation()
            if was_pending or peer.staged:
                self._handshakes.start(peer, now)
            self._rearm(peer)

    def expect_restart(self, peer_id: PeerId) -> None:
        """The peer has probably lost its sessions: let the next user packet start a handshake."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.restart_expected = True

    def on_path_found(self, peer_id: PeerId, now: float) -> None:
        """Datagrams have a new way to the peer: a handshake that waits for an answer is tried on it soon."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.retry_at < math.inf:
            peer.retry_at = min(peer.retry_at, max(now, peer.asking_since + PATH_PATIENCE))
            self._rearm(peer)

    def silence_of(self, peer_id: PeerId) -> PeerSilence:
        """Since when the peer owes us a handshake, and whether it speaks nevertheless."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return PeerSilence(math.inf, 0, 0)
        return PeerSilence(peer.asking_since, peer.initiations, peer.packets_in)

    def distrust_sessions(self, peer_id: PeerId) -> None:
        """The peer is known to have restarted: the next packet waits for a handshake, which begins at once.

        What still arrives under a session is opened: it may be one that the new process has already made.
        """
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.distrust_sessions()

    def _let_go(self, peer: Peer) -> None:
        if peer.expire_at < math.inf:
            self._outbox.tell(SessionLost(peer.id, KEY_CHANGED))
        self._handshakes.forget(peer)
        self._timers.clear(peer.id)
        self._outbox.discard(peer.id)

    # Inbound.

    def receive(
        self, runs: Sequence[tuple[Path, Sequence[bytes]]], now: float
    ) -> list[tuple[PeerId, Path, list[bytes]]]:
        """Authentic plaintexts, padding still on. An empty run is a keepalive or handshake: alive, nothing inside."""
        opened: list[tuple[PeerId, Path, list[bytes]]] = []
        sessions = self._indices.sessions
        for path, datagrams in runs:
            for prefix, group in groupby(datagrams, prefix_of):
                session = sessions.get(prefix)
                if session is not None:
                    plaintexts = self._open(session, list(group), now)
                    if plaintexts is not None:
                        opened.append((session.peer, path, plaintexts))
                else:
                    for datagram in group:
                        peer = self._handshakes.receive(path, datagram, now)
                        if peer is not None:
                            self._rearm(peer)
                            opened.append((peer.id, path, []))
        return opened

    def _open(self, session: Session, datagrams: list[bytes], now: float) -> list[bytes] | None:
        """None: nothing of the run was authentic and new."""
        peer = self._peers[session.peer]
        if not session.is_alive(now):
            self.drops[because.STALE_SESSION] += len(datagrams)
            return None
        plaintexts, forged, replayed = session.open_batch(datagrams)
        if forged:
            self.drops[because.FORGED] += forged
        if replayed:
            self.drops[because.REPLAYED] += replayed
        if not plaintexts:
            return None
        peer.packets_in += len(plaintexts)
        peer.bytes_in += sum(map(len, plaintexts)) + TRANSPORT_OVERHEAD * len(plaintexts)
        if session is peer.next:
            self._handshakes.on_next_confirmed(peer, now)
        peer.on_anything_received()
        if not all(plaintexts):  # keepalives: they end here, and are never answered
            plaintexts = [plaintext for plaintext in plaintexts if plaintext]
        if plaintexts:
            peer.on_data_received(now)
            if peer.needs_rekey_on_receive(now):
                self._handshakes.start(peer, now)
        self._rearm(peer)
        return plaintexts

    # Outbound.

    def send(self, runs: Sequence[tuple[PeerId, Sequence[bytes]]], now: float) -> None:
        """Seal, or keep until there is a session to seal with."""
        for peer_id, packets in runs:
            peer = self._peers.get(peer_id) or self._roster.peer(peer_id)
            if peer is None:
                self.drops[because.UNKNOWN_PEER] += len(packets)
                continue
            if peer.restart_expected and peer.may_initiate(now):
                self._handshakes.start(peer, now)
            if peer.staged:
                packets = [*peer.take_staged(), *packets]
            if packets:
                self._send_data(peer, packets, now)
                self._rearm(peer)

    def send_ahead(self, peer_id: PeerId, packet: bytes, now: float) -> bool:
        """Seal `packet` before whatever waits for the peer's session; False, and nothing done, when there is none."""
        peer = self._peers.get(peer_id)
        session = None if peer is None else peer.usable_session(now)
        if peer is None or session is None:
            return False
        self._seal(peer, session, [packet], now)
        self._rearm(peer)
        return True

    def transmit(self, now: float) -> list[PeerRun]:
        """Every datagram that is ready, by peer, handshakes among them."""
        if self._handshakes.unflushed:
            for peer in self._handshakes.take_unflushed():
                self._flush(peer, now)
        outbox = self._outbox
        out, outbox.datagrams = outbox.datagrams, {}
        return list(out.items())

    def take_replies(self) -> list[PathRun]:
        """Cookie replies, each to the path that asked: whoever that is, it is not known as a peer yet."""
        return self._handshakes.guard.take_replies()

    def _flush(self, peer: Peer, now: float) -> None:
        """A new session: what waited for it goes out, and an initiator sends something in any case (section 6.4)."""
        session = peer.usable_session(now)
        if session is not None:
            staged = peer.take_staged()
            if staged:
                self._send_data(peer, staged, now)
            elif session.is_initiator and session.sent == 0:
                self._send_keepalive(peer, now)
            self._rearm(peer)

    def _send_data(self, peer: Peer, packets: Sequence[bytes], now: float) -> None:
        session = peer.usable_session(now, len(packets))
        if session is not None:
            self._seal(peer, session, packets, now)
            return
        overflow = peer.stage(packets)
        if overflow:
            self.drops[because.STAGED_TOO_MANY] += overflow
        self._handshakes.start(peer, now)

    def _seal(self, peer: Peer, session: Session, packets: Sequence[bytes], now: float) -> None:
        self._outbox.add(peer, session.seal_batch(packets))
        peer.on_data_sent(now)
        if session.needs_rekey_on_send(now):
            self._handshakes.start(peer, now)

    def _send_keepalive(self, peer: Peer, now: float) -> None:
        session = peer.usable_session(now)
        if session is not None:
            self._outbox.add(peer, session.seal_batch([b""]))
            peer.on_keepalive_sent()
            if session.needs_rekey_on_send(now):
                self._handshakes.start(peer, now)

    # Time.

    def handle_timer(self, now: float) -> None:
        for peer_id in self._timers.pop_due(now):
            peer = self._peers[peer_id]
            self._handle_deadlines(peer, now)
            self._rearm(peer)

    def next_timer(self) -> float:
        return self._timers.next()

    def _handle_deadlines(self, peer: Peer, now: float) -> None:
        if peer.expire_at <= now:
            peer.expire_at = math.inf
            self._outbox.tell(SessionLost(peer.id, EXPIRED))
        if peer.erase_at <= now:
            if peer.retry_at == math.inf:
                self._indices.clear_pending(peer)
            self._indices.remove(peer.drop_sessions())
        if peer.retry_at <= now:
            self._handshakes.retry(peer, now)
        if peer.no_answer_at <= now:
            peer.no_answer_at = math.inf
            self._handshakes.start(peer, now)
        if peer.keepalive_at <= now:
            self._send_keepalive(peer, now)
            peer.on_keepalive_expired(now)

    def _rearm(self, peer: Peer) -> None:
        deadline = peer.next_deadline()
        if deadline < math.inf:
            self._timers.set(peer.id, deadline)
        else:
            self._timers.clear(peer.id)

    # What is told.

    def take_messages(self) -> list[Message]:
        messages, self._outbox.messages = self._outbox.messages, []
        return messages

    def statistics(self) -> EndpointStatistics:
        return EndpointStatistics(
            peers=len(self._roster),
            active_peers=len(self._peers),
            sessions=len(self._indices.sessions),
            pending_handshakes=len(self._indices.pending),
            drops=dict(self.drops),
        )

    def peer_statistics(self, peer_id: PeerId) -> PeerStatistics:
        """Zeros for a peer that was never talked to, or is not known."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return PeerStatistics(handshake_at=None)
        return PeerStatistics(
            handshake_at=peer.handshake_at,
            packets_in=peer.packets_in,
            bytes_in=peer.bytes_in,
            packets_out=peer.packets_out,
            bytes_out=peer.bytes_out,
            staged=len(peer.staged or ()),
        )

    def __repr__(self) -> str:
        public = self._handshakes.private.public
        return f"Endpoint({public.short}, peers={len(self._roster)}, sessions={len(self._indices.sessions)})"
