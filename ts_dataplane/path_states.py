"""The state of one path to a peer, where there are several uplinks: what is thought of it, and why.

Owns the table below and the pings that a path owes an answer to. Refuses to know other paths, and what follows for the
peer's datagrams: `peer_ways.py` decides that.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum

from ts_base.ip import TUNNEL_MTU
from ts_base.who import Path, host_of, is_direct, is_relayed, uplink_of
from ts_dataplane.heard_log import Heard
from ts_dataplane.path_facts import PathFacts
from ts_dataplane.path_records import Record

# Theory of operation
#
# A path dies without a word, and a healthy one must not cost a packet to be believed in. So a path in use is watched by
# what is sent on it anyway, and questioned only when something seems wrong; then every datagram goes by the next best
# path too until the answer is in. A wrong suspicion costs one doubled burst, a right one costs no time.
#
#            pong + full-size pong          loss, or slow for 2 s
#   UNKNOWN ----------------------> GOOD <------------------------> DEGRADED
#      ^                             | ^     5 s below half of it      |
#      | pong, or data               | | pong, or data on it           |
#      |                     silence v |                               |
#     DEAD <---------------------- SUSPECT <---------------------------+
#       another path answers and this one has not; three pings lost; the host cannot send
#
#   UNKNOWN    a candidate. One full-size ping must come back: some routers pass small datagrams and swallow large ones.
#   GOOD       answers, and carries what the tunnel sends.
#   DEGRADED   more than 5 % of at least 64 verdicts are losses, or the smoothed round trip is 3 times the smallest of a
#              minute, for 2 s. It works, and a good one is better.
#   SUSPECT    one of these, and nothing has come on the path since:
#      (a) We sent what asks for an answer, and nothing authentic came from the peer on any path for 200 ms, or twice
#          the round trip and four variations. On any path: the two ends may prefer different ones.
#      (b) We send and hear nothing, or what came in a stream has stopped: a ping asks, and is not answered.
#      (c) The peer moved: it is heard elsewhere, and no longer on the path by which we send.
#      What (a) and (c) say of a path that the peer itself sent by is said of data, and no pong refutes it: some
#      middleboxes pass disco and nothing else. Data on it does; or a second in which nothing comes by any path.
#      Meanwhile large pings ask whether only what is large is lost.
#   DEAD       beside the roads in the figure: it answers pings, and what asked for data was answered elsewhere; or
#              small pings only. Both are barred for a minute, twice as long each time; the first
#              kind until data is heard there. Others are asked again after a quarter of the time they have been dead,
#              at least every 30 s. What answers then starts over as UNKNOWN.
#
# Only what the tunnel's window has accepted counts as heard, so a datagram repeated on another path earns nothing, and
# only pongs to pings of ours do, so a stranger's earn nothing either.

LOSSY, ENOUGH_VERDICTS = 0.05, 64
SLOW, SLOW_FOR = 3.0, 2.0
RECOVERED_AFTER = 5.0
LEAST_DIFFERENCE = 0.01  # seconds; on a path of a millisecond three times as long is nothing
PING_PATIENCE = 0.2
LOST_PINGS = 3
FIRST_RETRY, MAX_RETRY, RETRY_PART = 1.0, 30.0, 0.25
OPEN_PINGS_LIMIT = 64
FULL_SIZE_TRIES, FULL_SIZE_SPACING = 6, 1.0
AGAIN_TRIES, AGAIN_SPACING = 3, 0.3  # of large pings on a path that had carried them
BARRED, LONGEST_BAR = 60.0, 600.0
SWALLOWS = "it swallows large datagrams"
PINGS_ONLY = "pings pass, and nothing else does"


class PathState(Enum):
    UNKNOWN = "unknown"
    GOOD = "good"
    DEGRADED = "degraded"
    SUSPECT = "suspect"
    DEAD = "dead"


UNKNOWN, GOOD, DEGRADED, SUSPECT, DEAD = PathState

FOLLOWS = {
    UNKNOWN: {GOOD, SUSPECT, DEAD},
    GOOD: {DEGRADED, SUSPECT, DEAD},
    DEGRADED: {GOOD, SUSPECT, DEAD},
    SUSPECT: {GOOD, DEAD},
    DEAD: {UNKNOWN},
}


class Way:
    """One path of one peer."""

    __slots__ = (
        "_fine_since",
        "_full_asked_at",
        "_full_asks",
        "_opens",
        "_slow_since",
        "answered_at",
        "asked_at",
        "barred_until",
        "bars",
        "heard_at",
        "is_full",
        "lost_in_row",
        "missed_at",
        "needs_data",
        "order",
        "path",
        "record",
        "since",
        "state",
        "uplink",
        "weight",
        "why",
    )

    def __init__(self, path: Path, order: int, now: float) -> None:
        self.path = path
        self.uplink = "" if is_relayed(path) else uplink_of(path)
        self.order = order
        self.weight = 1.0
        self.record = Record()
        # A relay was proven by its own connection, and carries what it is given.
        self.state = GOOD if is_relayed(path) else UNKNOWN
        self.is_full = is_relayed(path)
        self.since, self.why = now, "new"
        self.heard_at = self.answered_at = self.asked_at = -math.inf
        self.barred_until = -math.inf
        self.bars = 0  # how often it was left although pings passed
        self.needs_data = False  # a suspect that pings do not clear
        self.missed_at = math.inf  # when data came by another path first, since it became one
        self.lost_in_row = 0
        self._opens: deque[tuple[float, float]] = deque()  # pings on their way: when they left, when they are late
        self._slow_since = self._fine_since = math.inf
        self._full_asks, self._full_asked_at = 0, -math.inf

    # ---- what the choice sees (`strategies.Ranked`)

    @property
    def is_good(self) -> bool:
        return self.state is GOOD or self.state is DEGRADED

    @property
    def is_usable(self) -> bool:
        return self.state is not DEAD and (self.state is not UNKNOWN or self.answered_at > -math.inf)

    @property
    def is_doubted(self) -> bool:
        return self.state is SUSPECT or not self.is_full

    @property
    def rtt(self) -> float | None:
        return self.record.rtt

    @property
    def kind_rank(self) -> int:
        return 0 if is_direct(self.path) else 2 if is_relayed(self.path) else 1

    @property
    def is_ipv6(self) -> bool:
        return not is_relayed(self.path) and ":" in host_of(self.path)

    # ---- the table

    def enter(self, state: PathState, why: str, now: float) -> bool:
        """The one place where the state changes; False when it is in that state already, or cannot come to it."""
        if state is self.state or state not in FOLLOWS[self.state]:
            return False
        if self.state is DEAD:
            self.is_full, self._full_asks = is_relayed(self.path), 0
            self.record.forget_losses()
        self.state, self.since, self.why = state, now, why
        self._slow_since = self._fine_since = math.inf
        if state is DEAD:
            self._opens.clear()
            self.lost_in_row = 0
        return True

    def suspect(self, why: str, now: float, *, needs_data: bool = False) -> bool:
        """With `needs_data` pongs do not clear it: it is data that got no answer. Large ones are tried, too."""
        if not self.enter(SUSPECT, why, now):
            return False
        self.needs_data, self.missed_at = needs_data, math.inf
        if needs_data:
            self.is_full, self._full_asks, self._full_asked_at = False, 0, -math.inf
        return True

    def die(self, why: str, now: float) -> bool:
        return self.enter(DEAD, why, now)

    def bar(self, now: float) -> None:
        """Its pongs would bring it back at once: not before a minute has passed, and twice as many each time."""
        if now - self.barred_until > LONGEST_BAR:
            self.bars = 0
        self.barred_until = now + min(BARRED * 2**self.bars, LONGEST_BAR)
        self.bars += 1

    # ---- what happens

    def on_asked(self, now: float, *, is_full: bool = False) -> None:
        """A ping left."""
        self.asked_at = now
        if is_full:
            self._full_asks += 1
            self._full_asked_at = now
        if len(self._opens) >= OPEN_PINGS_LIMIT:
            self._opens.popleft()
        self._opens.append((now, now + self.record.patience(PING_PATIENCE, 3.0)))

    def on_pong(self, latency: float, mtu: int, now: float) -> None:
        """A ping of ours was answered by the peer itself."""
        sent_at = now - latency
        on_time = [ping for ping in self._opens if abs(ping[0] - sent_at) < 1e-6]
        if on_time:
            self._opens.remove(on_time[0])
            self.record.on_verdicts(0, 1)
        else:
            self.record.on_late()
        self.record.on_round_trip(latency, now)
        self.answered_at = self.heard_at = now
        self.lost_in_row = 0
        if mtu >= TUNNEL_MTU:
            self.is_full = True
        self._revive(now)

    def on_data(self, at: float, now: float) -> None:
        """The tunnel accepted a datagram that came this way, at the moment `at`."""
        self.heard_at = max(self.heard_at, at)
        self.lost_in_row = 0
        if at > self.since + (self.rtt or 0.0 if self.needs_data else 0.0):  # else it may have left before
            self.needs_data = False
            if self.why == PINGS_ONLY:
                self.barred_until = -math.inf
            self._revive(now)

    def clear(self, now: float) -> None:
        """The suspicion was wrong, or nothing will tell."""
        self.needs_data = False
        self._revive(now)

    def _revive(self, now: float) -> None:
        if self.state is DEAD and now >= self.barred_until:
            self.enter(UNKNOWN, "it answers again", now)
        if (self.state is SUSPECT and not self.needs_data) or (
            self.state is UNKNOWN and self.is_full and self.answered_at > -math.inf
        ):
            self.enter(GOOD, "it answers", now)

    @property
    def wants_full(self) -> bool:
        """It answers small pings, and nobody knows of large ones."""
        return self.answered_at > -math.inf and not self.is_full and self.state is not DEAD

    def full_due_at(self) -> float:
        """When the next large ping is due; never once enough of them were lost."""
        if not self.wants_full or self._full_asks > self._full_tries:
            return math.inf
        spacing = FULL_SIZE_SPACING if self.state is UNKNOWN else AGAIN_SPACING
        return self._full_asked_at + self.record.patience(spacing, 3.0)

    @property
    def _full_tries(self) -> int:
        return FULL_SIZE_TRIES if self.state is UNKNOWN else AGAIN_TRIES

    @property
    def swallows_large(self) -> bool:
        """It had carried large datagrams; now small ones pass, and of several large pings none was answered."""
        if self.state is UNKNOWN or not self.wants_full or self._full_asks <= AGAIN_TRIES:
            return False
        return max(self.answered_at, self.heard_at) > self._full_asked_at - AGAIN_TRIES * AGAIN_SPACING

    def retry_at(self) -> float:
        """When a dead path is asked again."""
        if self.state is not DEAD:
            return math.inf
        asked = max(self.asked_at, self.since)
        return max(asked + min(max(FIRST_RETRY, RETRY_PART * (asked - self.since)), MAX_RETRY), self.barred_until)

    # ---- time

    def next_timer(self) -> float:
        late = self._opens[0][1] if self._opens else math.inf
        judged = min(self._slow_since + SLOW_FOR, self._fine_since + RECOVERED_AFTER)
        return min(late, judged)

    def handle_timer(self, now: float) -> float:
        """Give up what is late, and judge the record; when the newest ping left that was given up, else -inf."""
        newest, given_up = -math.inf, 0
        while self._opens and self._opens[0][1] <= now:
            newest = self._opens.popleft()[0]
            given_up += 1
        if given_up:
            self.lost_in_row += given_up
            self.record.on_verdicts(given_up, given_up)
        if self.wants_full and self._full_asks > FULL_SIZE_TRIES and self.state is UNKNOWN:
            self.die(SWALLOWS, now)
        self._judge(now)
        return newest

    def _judge(self, now: float) -> None:
        record = self.record
        if self.state is GOOD:
            if record.judged >= ENOUGH_VERDICTS and record.loss > LOSSY:
                self.enter(DEGRADED, f"{record.loss:.0%} is lost", now)
            elif not self._is_slow(SLOW, now):
                self._slow_since = math.inf
            else:
                self._slow_since = min(self._slow_since, now)
                if now >= self._slow_since + SLOW_FOR:
                    self.enter(DEGRADED, "far slower than it was", now)
        elif self.state is DEGRADED:
            if record.loss > LOSSY / 2 or self._is_slow(SLOW / 2, now):
                self._fine_since = math.inf
            else:
                self._fine_since = min(self._fine_since, now)
                if now >= self._fine_since + RECOVERED_AFTER:
                    self.enter(GOOD, "it recovered", now)

    def _is_slow(self, times: float, now: float) -> bool:
        least = self.record.rtt_min(now)
        if self.record.rtt is None or least is None:
            return False
        return self.record.rtt > max(times * least, least + LEAST_DIFFERENCE)

    def facts(self, heard: Heard | None, now: float) -> PathFacts:
        record = self.record
        return PathFacts(
            path=self.path,
            state=self.state.value,
            rtt=record.rtt,
            rtt_var=record.rtt_var,
            rtt_min=record.rtt_min(now),
            loss=record.loss,
            rate=record.rate(now),
            mtu=TUNNEL_MTU if self.is_full else 0,
            sent=record.sent,
            received=0 if heard is None else heard.bytes,
            since=max(0.0, now - self.since),
            why=self.why,
        )

    def __repr__(self) -> str:
        return f"Way({self.path}, {self.state.value}: {self.why})"
