"""One peer: a pending initiation, three session slots, staged packets and deadlines (paper, sections 6.1 to 6.5).

Owns every rule that says when something is due, named by its cause. Deadlines are attributes, infinity when off; the
endpoint keeps one heap entry per peer, at `next_deadline()`. Refuses to know bytes, indices and other peers.
"""

# Theory of operation
#
# Four slots. Keys move to the left as they age; what falls out at the left is erased, its index with it.
#
#     previous  <-  current  <-  next          pending
#     opens         opens and    opens         an initiation of ours that
#                   seals                      nobody has answered yet
#
# `next` exists because a responder does not know whether its response arrived. The initiator, who has heard both
# messages, seals with the new keys at once; the responder goes on with the old ones until something comes under the
# new. Two nodes that start at the same moment so end with one session each way or one of the two, and never with one
# that only one of them holds.
#
#     event                           previous      current   next      pending
#     our initiation is answered      old current*  the new   -         -            * or old next, if there was one:
#     we answer an initiation         -             same      the new   same           the peer may have begun to use it
#     the peer uses `next`            old current   old next  -         same
#     nothing new for 540 s           -             -         -         - unless it is being retried
#
# Five deadlines, each named for what causes it and switched off by what answers it. All are attributes, infinity when
# off, so that "what is due next" is one `min` and a peer nobody talks to costs no timer.
#
#     deadline      begins when                              after          ends with                   when it comes
#     retry_at      an initiation went out                   5 s, jittered  any usable session          initiate again,
#                                                                                                       for 90 s
#     keepalive_at  data came                                10 s           anything sent               send a keepalive
#     no_answer_at  data went out                            15 s, jittered anything authentic heard    initiate
#     expire_at     a session became usable                  180 s from     a newer session             tell SessionLost
#                                                            its birth
#     erase_at      keys were derived                        540 s          newer keys                  drop all keys
#
# The sixth cause has no clock of its own: a session of 120 s that is used to send, or of 165 s that is used to receive,
# is renewed by whoever initiated it. Only the initiator does, or both would start at once, every two minutes.
#
# Idle is silence: no deadline is armed by time alone, so after the last answer a pair of nodes falls quiet within 15 s
# and its keys are gone after 9 minutes. The first packet after that waits, staged, for one round trip.

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from ts_base.who import PeerId
from ts_tunnel.cookie import mac1_key_of
from ts_tunnel.handshake import Initiation, encode_timestamp, tick_of
from ts_tunnel.params import (
    COOKIE_LIFETIME,
    ERASE_AFTER_TIME,
    INITIATION_SPACING,
    KEEPALIVE_TIMEOUT,
    NO_ANSWER_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
    STAGED_PACKETS_LIMIT,
)
from ts_tunnel.session import Session


class Peer:
    """Made when a peer is first talked to. Idle, it is a few hundred bytes and has no deadline."""

    __slots__ = (
        "_attempt_started_at",
        "_cookie",
        "_cookie_at",
        "_distrusts_sessions",
        "_handshake_sent_at",
        "_initiation_heard_at",
        "_issued_tick",
        "_newest_timestamp",
        "_owes_another_keepalive",
        "_renewed_on_receive",
        "asking_since",
        "bytes_in",
        "bytes_out",
        "current",
        "erase_at",
        "expire_at",
        "handshake_at",
        "id",
        "initiations",
        "jitter",
        "keepalive_at",
        "last_mac1",
        "mac1_key",
        "next",
        "no_answer_at",
        "packets_in",
        "packets_out",
        "pending",
        "previous",
        "public",
        "restart_expected",
        "retry_at",
        "staged",
    )

    def __init__(self, peer_id: PeerId, public: bytes) -> None:
        self.id = peer_id
        self.public = public
        self.mac1_key = mac1_key_of(public)
        self.last_mac1 = b""
        self._cookie: bytes | None = None
        self._cookie_at = -math.inf

        self.pending: Initiation | None = None
        self.previous: Session | None = None
        self.current: Session | None = None
        self.next: Session | None = None
        self.staged: deque[bytes] | None = None

        self._issued_tick = 0
        self._newest_timestamp = b""
        self._initiation_heard_at = -math.inf
        self._handshake_sent_at = -math.inf
        self._attempt_started_at = -math.inf
        self._owes_another_keepalive = False
        self._renewed_on_receive = False
        self.restart_expected = self._distrusts_sessions = False
        self.jitter = 0.0

        self.asking_since = math.inf  # the first initiation that no session has answered
        self.initiations = 0  # how many went out since, that one included
        self.retry_at = math.inf  # the initiation was not answered
        self.keepalive_at = math.inf  # we owe the peer a sign of life for its data
        self.no_answer_at = math.inf  # we sent data and have heard nothing since
        self.expire_at = math.inf  # the current session is too old to use
        self.erase_at = math.inf  # no new session for so long that old keys must go

        self.handshake_at: float | None = None
        self.packets_in = self.bytes_in = self.packets_out = self.bytes_out = 0

    def next_deadline(self) -> float:
        return min(self.retry_at, self.keepalive_at, self.no_answer_at, self.expire_at, self.erase_at)

    # Timers, by cause.

    def on_data_sent(self, now: float) -> None:
        self.keepalive_at = math.inf
        if self.no_answer_at == math.inf:
            self.no_answer_at = now + NO_ANSWER_TIMEOUT + self.jitter

    def on_data_received(self, now: float) -> None:
        if self.keepalive_at == math.inf:
            self.keepalive_at = now + KEEPALIVE_TIMEOUT
            self._owes_another_keepalive = False
        else:
            self._owes_another_keepalive = True

    def on_anything_received(self) -> None:
        """Anything authentic: data, keepalive or handshake."""
        self.no_answer_at = math.inf

    def on_keepalive_sent(self) -> None:
        self.keepalive_at = math.inf

    def on_keepalive_expired(self, now: float) -> None:
        """Data that came while a keepalive was already due is answered by one more, and only one."""
        self.keepalive_at = now + KEEPALIVE_TIMEOUT if self._owes_another_keepalive else math.inf
        self._owes_another_keepalive = False

    def on_initiation_sent(self, now: float) -> None:
        self._handshake_sent_at = now
        self.initiations = 1 if self.asking_since == math.inf else self.initiations + 1
        self.asking_since = min(self.asking_since, now)
        self.keepalive_at = math.inf
        self.no_answer_at = math.inf
        self.restart_expected = False
        self.schedule_retry()

    def on_response_sent(self, now: float) -> None:
        self._handshake_sent_at = now
        self.keepalive_at = math.inf

    # Initiations.

    def distrust_sessions(self) -> None:
        """Seal nothing more with what is there, and let the next initiation keep no distance from the last."""
        self._distrusts_sessions = self.current is not None
        self._handshake_sent_at = -math.inf

    def begin_attempt(self, now: float) -> None:
        """A reason to reach the peer that is younger than the last one: the 90 seconds start again."""
        self._attempt_started_at = now

    def may_initiate(self, now: float) -> bool:
        return now >= self._handshake_sent_at + REKEY_TIMEOUT

    def has_given_up(self, now: float) -> bool:
        return now >= self._attempt_started_at + REKEY_ATTEMPT_TIME

    def schedule_retry(self) -> None:
        """As soon as a handshake message may be sent again, but in time to notice that 90 seconds are over."""
        self.retry_at = min(
            self._handshake_sent_at + REKEY_TIMEOUT + self.jitter, self._attempt_started_at + REKEY_ATTEMPT_TIME
        )

    def next_timestamp(self, wall_clock: float) -> bytes:
        """Newer than every one before, even when the wall clock stands still or steps back."""
        self._issued_tick = max(tick_of(wall_clock), self._issued_tick + 1)
        return encode_timestamp(self._issued_tick)

    def is_timestamp_new(self, timestamp: bytes) -> bool:
        return timestamp > self._newest_timestamp

    def is_initiation_spaced(self, now: float) -> bool:
        return now >= self._initiation_heard_at + INITIATION_SPACING

    def on_initiation_heard(self, timestamp: bytes, now: float) -> None:
        self._newest_timestamp = timestamp
        self._initiation_heard_at = now
        self.on_anything_received()

    def allow_initiation(self) -> None:
        """The next one need not keep its distance: what was sent last can no longer be answered, or went nowhere."""
        self._handshake_sent_at = -math.inf

    # Cookies.

    def cookie(self, now: float) -> bytes | None:
        return self._cookie if now < self._cookie_at + COOKIE_LIFETIME else None

    def keep_cookie(self, cookie: bytes, now: float) -> None:
        self._cookie, self._cookie_at = cookie, now
        self.last_mac1 = b""  # answered: a second reply to the same message is none

    # Session slots; each transition returns the sessions that fell out of them.

    def on_initiated_session(self, session: Session, now: float) -> list[Session]:
        """Our initiation was answered: the new session is used at once."""
        if self.next is not None:
            dropped, self.previous = [self.previous, self.current], self.next
        else:
            dropped, self.previous = [self.previous], self.current
        self.current, self.next = session, None
        self.on_anything_received()
        self._on_session_derived(now)
        self._on_session_usable(session, now)
        return _present(dropped)

    def on_responded_session(self, session: Session, now: float) -> list[Session]:
        """We answered an initiation: nothing is sent on the new session until the peer has used it."""
        dropped, self.next, self.previous = [self.next, self.previous], session, None
        self._on_session_derived(now)
        return _present(dropped)

    def on_next_confirmed(self, now: float) -> list[Session]:
        """The peer used the session we had responded with."""
        session = self.next
        assert session is not None
        dropped, self.previous, self.current, self.next = [self.previous], self.current, session, None
        self._on_session_usable(session, now)
        return _present(dropped)

    def drop_sessions(self) -> list[Session]:
        dropped = [self.previous, self.current, self.next]
        self.previous = self.current = self.next = None
        self.erase_at = self.expire_at = self.no_answer_at = self.keepalive_at = math.inf
        return _present(dropped)

    def _on_session_derived(self, now: float) -> None:
        self.erase_at = now + ERASE_AFTER_TIME

    def _on_session_usable(self, session: Session, now: float) -> None:
        self.retry_at = self.asking_since = math.inf
        self.expire_at = session.created_at + REJECT_AFTER_TIME
        self.handshake_at = now
        self._renewed_on_receive = False
        self.restart_expected = self._distrusts_sessions = False

    def usable_session(self, now: float, count: int = 1) -> Session | None:
        session = self.current
        if session is None or self._distrusts_sessions or not session.may_seal(now, count):
            return None
        return session

    def needs_rekey_on_receive(self, now: float) -> bool:
        """Said once per session: what follows is the retry timer's business."""
        session = self.current
        if self._renewed_on_receive or session is None or not session.needs_rekey_on_receive(now):
            return False
        self._renewed_on_receive = True
        return True

    # Packets that wait for a session.

    def stage(self, packets: Iterable[bytes]) -> int:
        """Keep the newest; how many older ones had to go."""
        if self.staged is None:
            self.staged = deque(maxlen=STAGED_PACKETS_LIMIT)
        before = len(self.staged)
        arriving = list(packets)
        self.staged.extend(arriving)
        return before + len(arriving) - len(self.staged)

    def take_staged(self) -> list[bytes]:
        staged, self.staged = self.staged, None
        return list(staged or ())

    def __repr__(self) -> str:
        return f"Peer({self.id})"


def _present(sessions: list[Session | None]) -> list[Session]:
    return [session for session in sessions if session is not None]
