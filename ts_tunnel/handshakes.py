"""How sessions come about: initiations sent, answered, retried and given up; responses and cookies heard.

Owns our own key, the table of indices, the guard, and the sessions that have carried nothing yet. Both halves of one
handshake's bytes are `handshake.py`'s, what is due when is `peer.py`'s. Nothing of a peer changes before a tag has
verified. Refuses to know packets: what waits for a session is the endpoint's to send.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate, clamp
from ts_base.who import Path, PeerId
from ts_tunnel import drops as because
from ts_tunnel.cookie import append_macs, open_cookie_untrusted
from ts_tunnel.handshake import HeardInitiation, Initiation, read_initiation_untrusted
from ts_tunnel.handshake_guard import HandshakeGuard
from ts_tunnel.indices import Indices
from ts_tunnel.messages import NO_ANSWER, SessionEstablished, SessionLost
from ts_tunnel.outbox import Outbox
from ts_tunnel.params import REKEY_TIMEOUT_JITTER
from ts_tunnel.peer import Peer
from ts_tunnel.roster import Roster
from ts_tunnel.session import Session
from ts_tunnel.wire import (
    COOKIE_REPLY,
    INITIATION,
    RESPONSE,
    TRANSPORT,
    decode_cookie_reply_untrusted,
    decode_initiation_untrusted,
    decode_response_untrusted,
    kind_of,
    mac1_of,
)

NEWS_PATIENCE = 0.25  # a peer may hear of our new key so much later than we do, or after a multiple of it


class Handshakes:
    """All of one endpoint's. What they send goes to its outbox, whom they are with its roster says."""

    __slots__ = (
        "_drops",
        "_entropy",
        "_outbox",
        "_private_since",
        "_roster",
        "_wall_clock",
        "guard",
        "indices",
        "private",
        "unflushed",
    )

    def __init__(
        self,
        private: NodePrivate,
        roster: Roster,
        outbox: Outbox,
        drops: Counter[str],
        *,
        entropy: Callable[[int], bytes],
        wall_clock: Callable[[], float],
    ) -> None:
        self.private = private
        self._private_since = -math.inf
        self._roster = roster
        self._outbox = outbox
        self._drops = drops
        self._entropy = entropy
        self._wall_clock = wall_clock
        self.guard = HandshakeGuard(private.public.raw, entropy, drops)
        self.indices = Indices(entropy)
        self.unflushed: dict[PeerId, Peer] = {}  # their session is new and has carried nothing yet

    def use_private(self, private: NodePrivate, now: float) -> None:
        self.private, self._private_since = private, now
        self.guard.use_public(private.public.raw)

    def forget(self, peer: Peer) -> None:
        """Nobody can speak to us as `peer` any more."""
        self.indices.clear_pending(peer)
        self.indices.remove(peer.drop_sessions())
        self.unflushed.pop(peer.id, None)

    # What is heard.

    def receive(self, path: Path, datagram: bytes, now: float) -> Peer | None:
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
            self._drops[because.FORGED] += 1
            return None
        self._drops[because.NO_SESSION if kind == TRANSPORT else because.NOT_WIREGUARD] += 1
        return None

    def _receive_initiation(self, path: Path, datagram: bytes, now: float) -> Peer | None:
        sender, _ = decode_initiation_untrusted(datagram)
        if not self.guard.admits_initiation(path, datagram, sender, now):
            return None
        heard = read_initiation_untrusted(self.private.raw, datagram)
        peer = self._roster.peer_with_key(heard.remote)
        if peer is None:
            self._drops[because.UNKNOWN_KEY] += 1
        elif not peer.is_timestamp_new(heard.timestamp):
            # Usual: the same initiation came by a direct path and by the relay. The first one counts.
            self._drops[because.STALE_INITIATION] += 1
        elif not peer.is_initiation_spaced(now):
            self._drops[because.HURRIED_INITIATION] += 1
        else:
            self._respond(peer, heard, now)
            return peer
        return None

    def _receive_response(self, datagram: bytes, now: float) -> Peer | None:
        sender, receiver, message = decode_response_untrusted(datagram)
        peer = self.indices.pending.get(receiver)
        if peer is None or peer.pending is None:
            self._drops[because.NO_SESSION] += 1
            return None
        if not self.guard.admits_response(datagram, now):
            return None
        keys = peer.pending.read_response_untrusted(message)
        self.indices.clear_pending(peer)
        session = Session(peer.id, receiver, sender, keys, is_initiator=True, now=now)
        self.indices.add(session)
        self.indices.remove(peer.on_initiated_session(session, now))
        self._on_usable(peer, now)
        return peer

    def _receive_cookie(self, datagram: bytes, now: float) -> None:
        receiver, nonce, sealed_cookie = decode_cookie_reply_untrusted(datagram)
        owner = self.indices.owner_of(receiver)
        peer = None if owner is None else self._roster.peer(owner)
        if peer is None or not peer.last_mac1:
            self._drops[because.NO_SESSION] += 1
            return
        peer.keep_cookie(open_cookie_untrusted(peer.public, peer.last_mac1, nonce, sealed_cookie), now)

    def on_next_confirmed(self, peer: Peer, now: float) -> None:
        """The peer has used the session we had responded with."""
        self.indices.remove(peer.on_next_confirmed(now))
        self._on_usable(peer, now)

    def _on_usable(self, peer: Peer, now: float) -> None:
        self.unflushed[peer.id] = peer
        self._outbox.tell(SessionEstablished(peer.id, now))

    def take_unflushed(self) -> list[Peer]:
        unflushed, self.unflushed = self.unflushed, {}
        return list(unflushed.values())

    # What is said.

    def start(self, peer: Peer, now: float) -> None:
        """There is a fresh reason for a new session; if a handshake message just went out, its retry will do."""
        peer.begin_attempt(now)
        if peer.may_initiate(now):
            self._initiate(peer, now)
        elif peer.retry_at == math.inf:
            peer.schedule_retry()

    def retry(self, peer: Peer, now: float) -> None:
        """The initiation was not answered in time."""
        peer.retry_at = math.inf
        if peer.has_given_up(now):
            self._give_up(peer)
        else:
            self._initiate(peer, now)

    def _initiate(self, peer: Peer, now: float) -> None:
        index = self.indices.allocate()
        try:
            initiation = Initiation(
                self.private.raw,
                peer.public,
                ephemeral=clamp(self._entropy(32)),
                timestamp=peer.next_timestamp(self._wall_clock()),
                index=index,
            )
        except BadPacket:
            self._drops[because.UNUSABLE_KEY] += 1
            self._give_up(peer)
            return
        self.indices.set_pending(peer, initiation)
        peer.jitter = int.from_bytes(self._entropy(2), "big") / 0xFFFF * REKEY_TIMEOUT_JITTER
        self._emit(peer, initiation.body, now)
        peer.on_initiation_sent(now)
        # Who has not heard of our new key yet drops this without a word: ask again after as long as the key is old.
        peer.retry_at = min(peer.retry_at, now + max(NEWS_PATIENCE, now - self._private_since))

    def _respond(self, peer: Peer, heard: HeardInitiation, now: float) -> None:
        index = self.indices.allocate()
        body, keys = heard.respond(ephemeral=clamp(self._entropy(32)), index=index)
        peer.on_initiation_heard(heard.timestamp, now)
        session = Session(peer.id, index, heard.remote_index, keys, is_initiator=False, now=now)
        self.indices.add(session)
        self.indices.remove(peer.on_responded_session(session, now))
        self._emit(peer, body, now)
        peer.on_response_sent(now)

    def _give_up(self, peer: Peer) -> None:
        """Nobody answers: what waited is lost, and the next user packet is a new beginning."""
        self.indices.clear_pending(peer)
        if peer.staged:
            self._drops[because.STAGED_TOO_LONG] += len(peer.take_staged())
        peer.retry_at = peer.keepalive_at = peer.asking_since = math.inf
        if peer.expire_at == math.inf:
            self._outbox.tell(SessionLost(peer.id, NO_ANSWER))

    def _emit(self, peer: Peer, body: bytes, now: float) -> None:
        datagram = append_macs(body, peer.mac1_key, peer.cookie(now))
        peer.last_mac1 = mac1_of(datagram)
        self._outbox.add_handshake(peer, datagram)
