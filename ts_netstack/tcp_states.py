"""The states of a connection, the steps from one to the next, and what opening leaves behind.

Owns the table of RFC 9293 figure 5 and nothing that moves: TcpConnection steps through it in one place. Knows no
windows, timers or sockets. RFC 9293 section 3.3.2.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from ts_netstack.wire import Segment


class State(enum.IntEnum):
    """In the order of a connection's life, so that `>= ESTABLISHED` means the handshake is complete.

    LISTEN is missing: a listener stays one whatever is in flight, and is kept by tcp_listen.
    """

    CLOSED = 0
    SYN_SENT = 1
    SYN_RECEIVED = 2
    ESTABLISHED = 3
    FIN_WAIT_1 = 4
    FIN_WAIT_2 = 5
    CLOSE_WAIT = 6
    CLOSING = 7
    LAST_ACK = 8
    TIME_WAIT = 9

    def __str__(self) -> str:
        """The name the RFC gives it: "FIN-WAIT-1"."""
        return self.name.replace("_", "-")


CLOSED, SYN_SENT, SYN_RECEIVED, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK, TIME_WAIT = State

RECEIVING = (ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2)  # the peer may still send text
SENDING = (ESTABLISHED, CLOSE_WAIT, FIN_WAIT_1, CLOSING, LAST_ACK)  # we may, or must send again what we sent
WRITABLE = (ESTABLISHED, CLOSE_WAIT)  # the user may add to it

# RFC 9293 figure 5, without LISTEN. What the figure leaves out or we do otherwise:
#
# - Every state but CLOSED may go to CLOSED: a reset, a timeout, an abort, an address that is ours no more (its note 3;
#   a reset of ours leaves no TIME-WAIT behind).
# - CLOSED to ESTABLISHED: a listener keeps LISTEN and SYN-RECEIVED in a record of its own (tcp_listen.HalfOpen, or a
#   cookie that keeps nothing at all), and a connection is made once the handshake is complete.
# - SYN-RECEIVED is therefore the simultaneous open alone. A FIN asked for in it waits until the handshake is complete
#   (section 3.10.4 asks so where data waits), and FIN-WAIT-1 is entered then and not with the call.
# - FIN-WAIT-1 to TIME-WAIT (its note 2) is two steps: the ACK of a segment is looked at before its FIN.
# - TIME-WAIT has no way back to ESTABLISHED: the stack keeps a record of a few numbers (tcp_demux.TimeWait), and a new
#   incarnation (RFC 6191) is a new connection.
STEPS: dict[State, frozenset[State]] = {
    CLOSED: frozenset({SYN_SENT, ESTABLISHED}),
    SYN_SENT: frozenset({SYN_RECEIVED, ESTABLISHED, CLOSED}),
    SYN_RECEIVED: frozenset({ESTABLISHED, FIN_WAIT_1, CLOSED}),
    ESTABLISHED: frozenset({FIN_WAIT_1, CLOSE_WAIT, CLOSED}),
    FIN_WAIT_1: frozenset({FIN_WAIT_2, CLOSING, CLOSED}),
    FIN_WAIT_2: frozenset({TIME_WAIT, CLOSED}),
    CLOSE_WAIT: frozenset({LAST_ACK, CLOSED}),
    CLOSING: frozenset({TIME_WAIT, CLOSED}),
    LAST_ACK: frozenset({CLOSED}),
    TIME_WAIT: frozenset({CLOSED}),
}


class Handshake(NamedTuple):
    """What was agreed while opening: by our own SYN and its answer, or by a listener for a connection to come."""

    iss: int
    irs: int
    peer_mss: int | None
    peer_shift: int | None
    selective: bool
    stamp: int | None  # the peer's latest TSval, None without timestamps
    round_trip: float  # of the SYN and its answer; 0.0 when it was not timed
    resent: bool  # a SYN of ours was lost: the round trip is not to be believed
    large: int = 0  # see wire.LARGE_PREFIX

    @staticmethod
    def offered(iss: int, syn: Segment) -> Handshake:
        """What the peer's SYN says, as an answer to `iss` or to be answered by it."""
        options = syn.options
        stamp = options.stamps[0] if options.stamps else None
        return Handshake(
            *(iss, syn.seq, options.mss, options.scale, options.sack_permitted, stamp, 0.0, False, options.large)
        )
