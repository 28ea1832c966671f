"""How large the segments of one connection are, and how a burst is cut into them.

Owns what both ends and the path allow, and the suspicion that full or large segments vanish without a word (RFC 4821).
Refuses to know what is in flight. RFC 9293 section 3.7.1.

Windows and loss are counted in segments of `mss`. A large segment is several of them in one packet, as segmentation
offload makes them: it says how the burst is cut and nothing else.
"""

from __future__ import annotations

import math

from ts_netstack.congestion import Congestion
from ts_netstack.tcp_pacing import pacing_rate
from ts_netstack.wire import TIMESTAMP_LENGTH, Sizes

DEFAULT_MSS = (536, 1220)  # when the peer names none: IPv4, IPv6
MINIMUM_MSS = 48
LARGE_SHARE = 4  # a large segment is at most this part of the window: fewer would not keep relay and peer busy
LARGE_TIME = 0.001  # ... and what leaves in this time: on a slow line nobody waits long behind one
LARGE_REST = 5.0  # none for so long after a timeout with large ones in flight: perhaps the way does not carry them

BLACK_HOLE_SIZES = (1024, 536)
BLACK_HOLE_FIRST_HOLD = 1.0
BLACK_HOLE_HOLD = 600.0
BLACK_HOLE_MEMORY = 60.0  # a second suspicion this soon is believed


class SegmentSizes:
    """`mss` is payload alone; what path and peer name counts options too."""

    __slots__ = (
        "_large_again",
        "_options",
        "_suspected_at",
        "cut",
        "hold_until",
        "mss",
        "offered_large",
        "path_large",
        "path_mss",
        "peer_large",
        "peer_mss",
    )

    def __init__(self, ours: Sizes, is_ip6: bool) -> None:
        self.path_mss, self.offered_large = ours  # what every path carries; what we take by relay
        self.peer_mss, self.peer_large = DEFAULT_MSS[is_ip6], 0
        self.path_large = 0  # what the path of this moment carries; told before each emit that may use it
        self.mss = self.cut = ours.mss
        self._options = TIMESTAMP_LENGTH
        self._suspected_at, self.hold_until = -math.inf, math.inf  # of a black hole
        self._large_again = -math.inf

    @property
    def offered(self) -> Sizes:
        """What our SYN says."""
        return Sizes(self.path_mss, self.offered_large)

    def agree(self, peer: Sizes, stamped: bool) -> None:
        """What the peer's SYN offered."""
        if peer.mss:
            self.peer_mss = max(peer.mss, MINIMUM_MSS)
        self.peer_large = peer.large if self.offered_large else 0
        self._options = TIMESTAMP_LENGTH if stamped else 0
        self._fit()

    def limit(self, mss: int) -> None:
        """The path was found to carry no more than this."""
        if mss < self.path_mss:
            self.path_mss = mss
            self._fit()

    def widen(self, mss: int) -> None:
        """The path changed or a limit has expired: what the old one was suspected of is forgotten."""
        self.path_mss = max(self.path_mss, mss)
        self._suspected_at = self._large_again = -math.inf
        self.end_hold()

    def suspect_black_hole(self, now: float) -> None:
        """RFC 4821 section 7.7: full segments vanish without a word, so try smaller ones; a plain outage heals soon."""
        for size in BLACK_HOLE_SIZES:
            if self.mss > size:
                again = now - self._suspected_at < BLACK_HOLE_MEMORY
                self._suspected_at = now
                self.hold_until = now + (BLACK_HOLE_HOLD if again else BLACK_HOLE_FIRST_HOLD)
                self.mss = self.cut = size
                return

    def end_hold(self) -> None:
        """Full segments again, whatever was suspected of them."""
        self.hold_until = math.inf
        self._fit()

    def rest_large(self, now: float) -> None:
        """A timeout: if large segments were in flight, none leaves for a while."""
        if self.cut > self.mss:
            self._large_again = now + LARGE_REST

    def _fit(self) -> None:
        size = min(self.peer_mss, self.path_mss) - self._options
        # An even size keeps every payload of a burst aligned for the checksum.
        self.mss = self.cut = max(size, MINIMUM_MSS - TIMESTAMP_LENGTH) & ~1

    def large_cut(self, congestion: Congestion, smoothed: float, now: float) -> int:
        """The segments of the next burst: powers of two times `mss`, so that templates are few, up to all there is."""
        most = (min(self.path_large, self.peer_large) - TIMESTAMP_LENGTH) // self.mss
        is_doubted = now < self._large_again or self.hold_until < math.inf
        if most < 2 or is_doubted or not smoothed:
            return self.mss
        worth = min(congestion.window / LARGE_SHARE, pacing_rate(congestion, smoothed) * LARGE_TIME)
        count = int(worth) // self.mss
        return self.mss * (most if count >= most else 1 << max(count, 1).bit_length() - 1)
