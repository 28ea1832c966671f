"""WireGuard for one node: ciphertext runs by path in, plaintext runs by peer out, and back (WireGuard paper).

Owns the peer set and everything sent. What is due when is `peer.py`'s business, sealing `session.py`'s, strangers are
`door.py`'s. Refuses to know IP, routes and which path is best: roaming means that a run tells the path it came by.
Nothing of a peer changes before a tag has verified. What strangers send is dropped and counted in `drops`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from ts_base.errors import BadPacket
from ts_base.keys import KEY_LENGTH, NodePrivate, clamp
from ts_base.timers import Timers
from ts_tunnel import drops as because
from ts_tunnel.cookie import append_macs, open_cookie_untrusted
from ts_tunnel.door import Door
from ts_tunnel.handshake import HeardInitiation, Initiation, read_initiation_untrusted
from ts_tunnel.indices import Indices
from ts_tunnel.messages import (
    EXPIRED,
    KEY_CHANGED,
    NO_ANSWER,
    EndpointStatistics,
    Path,
    PeerId,
    PeerStatistics,
    SessionEstablished,
    SessionLost,
)
from ts_tunnel.params import MESSAGES_LIMIT, REKEY_TIMEOUT_JITTER
from ts_tunnel.peer import Peer
from ts_tunnel.session import Session
from ts_tunnel.wire import (
    COOKIE_REPLY,
    INITIATION,
    RESPONSE,
    TRANSPORT,
    TRANSPORT_OVERHEAD,
    decode_cookie_reply_untrusted,
    decode_initiation_untrusted,
    decode_response_untrusted,
    kind_of,
    mac1_of,
    prefix_of,
)

Message = SessionEstablished | SessionLost


PATH_PATIENCE = 0.25  # a handshake younger than this may still be answered on the path it took
NEWS_PATIENCE = 0.25  # a peer may hear of our new key so much later than we do, or after a multiple of it


class Endpoint:
    """The tunnel's five verbs. Peers are known by `PeerId`; one that was never talked to costs two dict entries."""

    def __init__(
        self, private: NodePrivate, *, entropy: Callable[[int], bytes], wall_clock: Callable[[], float]
    ) -> None:
        self._private = private
        self._private_since = -math.inf
        self._entropy = entropy
        self._wall_clock = wall_clock
        self.drops: Counter[str] = Counter()

        self._keys: dict[PeerId, bytes] = {}
        self._ids: dict[bytes, PeerId] = {}
        self._passed_over: dict[PeerId, bytes] = {}  # their key is another peer's, or our own
        self._peers: dict[PeerId, Peer] = {}  # those talked to
        self._indices = Indices(entropy)
        self._door = Door(private.public.raw, entropy, self.drops)
        self._timers: Timers[PeerId] = Timers()

        self._out: dict[PeerId, list[bytes]] = {}  # emptied by `transmit`, which the shell calls in the same turn
        self._unflushed: dict[PeerId, Peer] = {}  # their session is new and has carried nothing yet
        self._messages: list[Message] = []

    # The peer set and our own key.

    def set_peers(self, peers: Mapping[PeerId, bytes], now: float) -> None:
        """Replace the peer set. A peer whose key changed starts anew; our own key among them is passed over."""
        gone = [peer_id for peer_id in (*self._keys, *self._passed_over) if peer_id not in peers]
        self.change_peers(peers, gone, now)

    def change_peers(self, changed: Mapping[PeerId, bytes], removed: Iterable[PeerId], now: float) -> None:
        """As `set_peers`, told only what is new or different and what is gone: costs no more than that."""
        keys, ids = self._keys, self._ids
        for peer_id in removed:
            self._passed_over.pop(peer_id, None)
            if peer_id in keys:
                self._forget(peer_id)
        for peer_id, public in changed.items():
            if len(public) != KEY_LENGTH:
                raise ValueError(f"a node key has {KEY_LENGTH} bytes")
            if keys.get(peer_id, public) != public:
                self._forget(peer_id)
        waiting = {**self._passed_over, **changed} if self._passed_over else changed
        self._passed_over = {}
        for peer_id, public in waiting.items():
            if peer_id in keys:
                continue
            if public in ids or public == self._private.public.raw:
                self._passed_over[peer_id] = public
            else:
                keys[peer_id] = public
                ids[public] = peer_id

    def set_private(self, private: NodePrivate, now: float) -> None:
        """Become another node key: peers must handshake anew, and packets that waited for one need not wait longer."""
        self._private, self._private_since = private, now
        self._door.use_public(private.public.raw)
        if private.public.raw in self._ids:
            self._forget(self._ids[private.public.raw])
        for peer in self._peers.values():
            was_pending = peer.pending is not None and peer.retry_at < math.inf
            self._indices.clear_pending(peer)
            peer.retry_at = math.inf
            for session in (peer.current, peer.next):
                if session is not None:
                    session.stop_sealing()
            if peer.expire_at < math.inf:
                peer.expire_at = math.inf
                self._tell(SessionLost(peer.id, KEY_CHANGED))
            peer.allow_initiation()
            if was_pending or peer.staged:
                self._start_handshake(peer, now)
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

    def asking_since(self, peer_id: PeerId) -> float:
        """Since when the peer owes us a handshake; infinity when it does not."""
        peer = self._peers.get(peer_id)
        return math.inf if peer is None else peer.asking_since

    def distrust_sessions(self, peer_id: PeerId) -> None:
        """The peer is known to have restarted: the next packet waits for a handshake, which begins at once.

        What still arrives under a session is opened: it may be one that the new process has already made.
        """
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.distrust_sessions()

    def _forget(self, peer_id: PeerId) -> None:
        del self._ids[self._keys.pop(peer_id)]
        peer = self._peers.pop(peer_id, None)
        if peer is None:
            return
        self._indices.clear_pending(peer)
        if peer.expire_at < math.inf:
            self._tell(SessionLost(peer_id, KEY_CHANGED))
        self._indices.remove(peer.drop_sessions())
        self._timers.clear(peer_id)
        self._out.pop(peer_id, None)
        self._unflushed.pop(peer_id, None)

    def _peer(self, peer_id: PeerId) -> Peer | None:
        peer = self._peers.get(peer_id)
        if peer is None and peer_id in self._keys:
            peer = self._peers[peer_id] = Peer(peer_id, self._keys[peer_id])
        return peer

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
                        opened.append((session.peer.id, path, plaintexts))
                else:
                    for datagram in group:
                        peer = self._receive_handshake(path, datagram, now)
                        if peer is not None:
                            self._rearm(peer)
                            opened.append((peer.id, path, []))
        return opened

    def _open(self, session: Session, datagrams: list[bytes], now: float) -> list[bytes] | None:
        """None: nothing of the run was authentic and new."""
        peer = session.peer
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
            self._indices.remove(peer.on_next_confirmed(now))
            self._on_usable(peer, now)
        peer.on_anything_received()
        if not all(plaintexts):  # keepalives: they end here, and are never answered
            plaintexts = [plaintext for plaintext in plaintexts if plaintext]
        if plaintexts:
            peer.on_data_received(now)
            if peer.needs_rekey_on_receive(now):
                self._start_handshake(peer, now)
        self._rearm(peer)
        return plaintexts

    def _receive_handshake(self, path: Path, datagram: bytes, now: float) -> Peer | None:
        """The peer that proved itself by `datagram`, if one did."""
        kind = kind_of(datagram)
        try:
            if kind == INITIATION:
                return self._receive_initiation(path, datagram, now)
            if kind == RESPONSE:
                return self._receive_response(datagram, now)
            if kind == COOKIE_REPLY:
                self._receive_cookie(datagram, now)
                return None
        except BadPacket:
            self.drops[because.FORGED] += 1
            return None
        self.drops[because.NO_SESSION if kind == TRANSPORT else because.NOT_WIREGUARD] += 1
        return None

    def _receive_initiation(self, path: Path, datagram: bytes, now: float) -> Peer | None:
        sender, _ = decode_initiation_untrusted(datagram)
        if not self._door.admits_initiation(path, datagram, sender, now):
            return None
        heard = read_initiation_untrusted(self._private.raw, datagram)
        peer_id = self._ids.get(heard.remote)
        peer = None if peer_id is None else self._peer(peer_id)
        if peer is None:
            self.drops[because.UNKNOWN_KEY] += 1
        elif not peer.is_timestamp_new(heard.timestamp):
            # Usual: the same initiation came by a direct path and by the relay. The first one counts.
            self.drops[because.STALE_INITIATION] += 1
        elif not peer.is_initiation_spaced(now):
            self.drops[because.HURRIED_INITIATION] += 1
        else:
            self._respond(peer, heard, now)
            return peer
        return None

    def _respond(self, peer: Peer, heard: HeardInitiation, now: float) -> None:
        index = self._indices.allocate()
        body, keys = heard.respond(ephemeral=clamp(self._entropy(32)), index=index)
        peer.on_initiation_heard(heard.timestamp, now)
        session = Session(peer, index, heard.remote_index, keys, is_initiator=False, now=now)
        self._indices.add(session)
        self._indices.remove(peer.on_responded_session(session, now))
        self._emit_handshake(peer, body, now)
        peer.on_response_sent(now)

    def _receive_response(self, datagram: bytes, now: float) -> Peer | None:
        sender, receiver, message = decode_response_untrusted(datagram)
        peer = self._indices.pending.get(receiver)
        if peer is None or peer.pending is None:
            self.drops[because.NO_SESSION] += 1
            return None
        if not self._door.admits_response(datagram, now):
            return None
        keys = peer.pending.read_response_untrusted(message)
        self._indices.clear_pending(peer)
        session = Session(peer, receiver, sender, keys, is_initiator=True, now=now)
        self._indices.add(session)
        self._indices.remove(peer.on_initiated_session(session, now))
        self._on_usable(peer, now)
        return peer

    def _receive_cookie(self, datagram: bytes, now: float) -> None:
        receiver, nonce, sealed_cookie = decode_cookie_reply_untrusted(datagram)
        peer = self._indices.peer_of(receiver)
        if peer is None or not peer.last_mac1:
            self.drops[because.NO_SESSION] += 1
            return
        peer.keep_cookie(open_cookie_untrusted(peer.public, peer.last_mac1, nonce, sealed_cookie), now)

    # Outbound.

    def send(self, runs: Sequence[tuple[PeerId, Sequence[bytes]]], now: float) -> None:
        """Seal, or keep until there is a session to seal with."""
        for peer_id, packets in runs:
            peer = self._peers.get(peer_id) or self._peer(peer_id)
            if peer is None:
                self.drops[because.UNKNOWN_PEER] += len(packets)
                continue
            if peer.restart_expected and peer.may_initiate(now):
                self._start_handshake(peer, now)
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

    def transmit(self, now: float) -> list[tuple[PeerId, list[bytes]]]:
        """Every datagram that is ready, by peer, handshakes among them."""
        if self._unflushed:
            unflushed, self._unflushed = self._unflushed, {}
            for peer in unflushed.values():
                self._flush(peer, now)
        out, self._out = self._out, {}
        return list(out.items())

    def take_replies(self) -> list[tuple[Path, list[bytes]]]:
        """Cookie replies, each to the path that asked: whoever that is, it is not known as a peer yet."""
        return self._door.take_replies()

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
        self._start_handshake(peer, now)

    def _seal(self, peer: Peer, session: Session, packets: Sequence[bytes], now: float) -> None:
        self._emit(peer, session.seal_batch(packets))
        peer.on_data_sent(now)
        if session.needs_rekey_on_send(now):
            self._start_handshake(peer, now)

    def _send_keepalive(self, peer: Peer, now: float) -> None:
        session = peer.usable_session(now)
        if session is not None:
            self._emit(peer, session.seal_batch([b""]))
            peer.on_keepalive_sent()
            if session.needs_rekey_on_send(now):
                self._start_handshake(peer, now)

    def _emit(self, peer: Peer, datagrams: list[bytes]) -> None:
        peer.packets_out += len(datagrams)
        peer.bytes_out += sum(map(len, datagrams))
        waiting = self._out.get(peer.id)
        if waiting is None:
            self._out[peer.id] = datagrams
        else:
            waiting += datagrams

    def _emit_handshake(self, peer: Peer, body: bytes, now: float) -> None:
        datagram = append_macs(body, peer.mac1_key, peer.cookie(now))
        peer.last_mac1 = mac1_of(datagram)
        self._out.setdefault(peer.id, []).append(datagram)

    # Handshakes and sessions.

    def _start_handshake(self, peer: Peer, now: float) -> None:
        """There is a fresh reason for a new session; if a handshake message just went out, its retry will do."""
        peer.begin_attempt(now)
        if peer.may_initiate(now):
            self._initiate(peer, now)
        elif peer.retry_at == math.inf:
            peer.schedule_retry()

    def _initiate(self, peer: Peer, now: float) -> None:
        index = self._indices.allocate()
        try:
            initiation = Initiation(
                self._private.raw,
                peer.public,
                ephemeral=clamp(self._entropy(32)),
                timestamp=peer.next_timestamp(self._wall_clock()),
                index=index,
            )
        except BadPacket:
            self.drops[because.UNUSABLE_KEY] += 1
            self._give_up(peer)
            return
        self._indices.set_pending(peer, initiation)
        peer.jitter = int.from_bytes(self._entropy(2), "big") / 0xFFFF * REKEY_TIMEOUT_JITTER
        self._emit_handshake(peer, initiation.body, now)
        peer.on_initiation_sent(now)
        # Who has not heard of our new key yet drops this without a word: ask again after as long as the key is old.
        peer.retry_at = min(peer.retry_at, now + max(NEWS_PATIENCE, now - self._private_since))

    def _on_usable(self, peer: Peer, now: float) -> None:
        self._unflushed[peer.id] = peer
        self._tell(SessionEstablished(peer.id, now))

    def _give_up(self, peer: Peer) -> None:
        """Nobody answers: what waited is lost, and the next user packet is a new beginning."""
        self._indices.clear_pending(peer)
        if peer.staged:
            self.drops[because.STAGED_TOO_LONG] += len(peer.take_staged())
        peer.retry_at = peer.keepalive_at = peer.asking_since = math.inf
        if peer.expire_at == math.inf:
            self._tell(SessionLost(peer.id, NO_ANSWER))

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
            self._tell(SessionLost(peer.id, EXPIRED))
        if peer.erase_at <= now:
            if peer.retry_at == math.inf:
                self._indices.clear_pending(peer)
            self._indices.remove(peer.drop_sessions())
        if peer.retry_at <= now:
            peer.retry_at = math.inf
            if peer.has_given_up(now):
                self._give_up(peer)
            else:
                self._initiate(peer, now)
        if peer.no_answer_at <= now:
            peer.no_answer_at = math.inf
            self._start_handshake(peer, now)
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
        messages, self._messages = self._messages, []
        return messages

    def _tell(self, message: Message) -> None:
        if len(self._messages) >= MESSAGES_LIMIT:
            self.drops[because.MESSAGES_FULL] += 1
        else:
            self._messages.append(message)

    def statistics(self) -> EndpointStatistics:
        return EndpointStatistics(
            peers=len(self._keys),
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
        return (
            f"Endpoint({self._private.public.short}, peers={len(self._keys)}, sessions={len(self._indices.sessions)})"
        )
