"""What one connection tells of itself: for operators, metrics and tests. Made on demand; nothing is kept for it.

Owns names and units only. Sizes are bytes of payload, times are seconds.
"""

from __future__ import annotations

from typing import NamedTuple

from ts_netstack.tcp_recovery import Recovery
from ts_netstack.tcp_states import State


class TcpStatistics(NamedTuple):
    """As `ss -ti` would say it."""

    state: State

    # How large segments are, and what was agreed in the SYNs.
    mss: int
    path_mss: int  # what the path is believed to carry, options included
    selective: bool  # SACK
    stamped: bool  # timestamps
    peer_shift: int  # window scale of the peer

    # Sending.
    unsent: int  # written and not yet acknowledged
    outstanding: int  # SND.NXT - SND.UNA
    in_flight: int  # of those, believed to be on the way
    sacked: int  # of those, held by the peer behind a hole
    lost: int  # of those, believed lost and not sent again yet
    acknowledged: int  # SND.UNA - ISS
    peer_window: int  # what the peer takes from SND.UNA on
    largest_peer_window: int  # the most it ever took

    # Congestion and repair.
    congestion_window: int
    slow_start_threshold: float  # infinity until something was lost
    recovery: Recovery
    round_trip: float  # smoothed; 0.0 before the first sample
    smallest_round_trip: float  # infinity before the first sample
    retransmission_timeout: float
    resent: int  # bytes that left more than once
    timeouts: int  # how often the retransmission timer expired
    timeouts_in_a_row: int

    # Receiving.
    received: int  # RCV.NXT - IRS
    unread: int
    unread_pieces: int
    islands: int  # ranges that wait for a hole to be filled
    receive_window: int  # the window we offer to an attentive reader
